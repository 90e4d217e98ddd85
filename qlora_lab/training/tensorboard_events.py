"""A run's metrics for people who look at TensorBoard, where it is installed.

    events = EventWriter("runs/mine/tensorboard")
    finetune(..., on_step=events.step, on_validation=events.validation)

`tensorboard --logdir runs` then shows them. A resumed run writes another file into the folder, and its steps take the
place of those that the killed one had got further with.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from qlora_lab.training.run_folder.metrics import StepRecord
from qlora_lab.training.validation import ValidationRecord


def check_tensorboard() -> None:
    """Raise ValueError where the package is not installed."""
    if find_spec("tensorboard") is None:
        raise ValueError(
            "the package tensorboard is not installed; `pip install tensorboard`, or leave --tensorboard out"
        )


class EventWriter:
    """Writes step and validation records as events into `folder`, which is made with the first of them.

    Raises:
        ValueError: the package `tensorboard` is not installed.
    """

    def __init__(self, folder: str | os.PathLike):
        check_tensorboard()
        self.folder, self._writer = Path(folder), None

    def step(self, record: StepRecord) -> None:
        writer = self._begun(record.step)
        for name in ("loss", "learning_rate", "grad_norm"):
            writer.add_scalar(f"training/{name}", getattr(record, name), record.step)
        writer.add_scalar("training/tokens_per_second", record.tokens / record.seconds, record.step)

    def validation(self, record: ValidationRecord, samples: Sequence[tuple[str, str]] = ()) -> None:
        """samples: (question, answer) pairs, shown as text."""
        writer = self._begun(record.step)
        writer.add_scalar("validation/loss", record.loss, record.step)
        for number, (question, answer) in enumerate(samples):
            writer.add_text(f"sample {number}", f"    {question}\n\n    {answer}", record.step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _begun(self, step: int):
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=step)
        return self._writer
