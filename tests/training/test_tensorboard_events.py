"""Events for TensorBoard: what the files beside them say; without the package, a sentence and nothing written."""

import importlib.util
from typing import ClassVar

import pytest
from tiny import adapted, pairs, tiny_tokenizer

from qlora_lab.training import tensorboard_events
from qlora_lab.training.loop import finetune
from qlora_lab.training.tensorboard_events import EventWriter

INSTALLED = importlib.util.find_spec("tensorboard") is not None


def test_without_the_package_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard_events, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="tensorboard is not installed; `pip install tensorboard`"):
        EventWriter(tmp_path / "events")
    assert not list(tmp_path.iterdir())


class Recorder:
    """Stands for torch's SummaryWriter."""

    made: ClassVar = []

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.scalars, self.texts, self.closed = folder, purge_step, {}, [], False
        Recorder.made.append(self)

    def add_scalar(self, name, value, step):
        self.scalars[name, step] = value

    def add_text(self, name, text, step):
        self.texts.append((name, text, step))

    def close(self):
        self.closed = True


def test_what_is_written_is_what_was_measured(tmp_path, monkeypatch):
    import sys
    from types import ModuleType

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Recorder
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(tensorboard_events, "find_spec", lambda name: True)
    monkeypatch.setattr(Recorder, "made", [])
    events = EventWriter(tmp_path)
    result = finetune(
        adapted(), tiny_tokenizer(), pairs(), steps=4, batch_size=4, validation=pairs(4, 5), validate_every=2,
        on_step=events.step, on_validation=events.validation,
    )  # fmt: skip
    events.close()
    (writer,) = Recorder.made
    assert writer.closed and writer.purge_step == 0
    for record in result.records:
        assert writer.scalars["training/loss", record.step] == record.loss
        assert writer.scalars["training/learning_rate", record.step] == record.learning_rate
    assert [writer.scalars["validation/loss", r.step] for r in result.validations] == [
        r.loss for r in result.validations
    ]


@pytest.mark.skipif(not INSTALLED, reason="needs the package tensorboard, which is optional: NOT RUN")
def test_tensorboard_reads_them(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventWriter(tmp_path)
    result = finetune(adapted(), tiny_tokenizer(), pairs(), steps=3, batch_size=4, on_step=events.step)
    events.close()
    read = EventAccumulator(str(tmp_path)).Reload().Scalars("training/loss")
    assert [event.step for event in read] == [1, 2, 3]
    assert [event.value for event in read] == pytest.approx([record.loss for record in result.records])
