"""Validation: the loss on examples that are not trained on, measured as a run goes on.

It is measured before the first step, every so many steps, and after the last. While it falls, what is learned holds for
examples never seen; where it turns and rises, the rest is learned by heart. The weights of the lowest one are kept and
are what the run ends with, and with `patience` the run ends by itself when nothing has improved for so many of them.

Nothing of it reaches training: the steps of a run with validation are those of a run without, to the bit.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import torch
from torch import nn

from qlora_lab import distributed
from qlora_lab.loss import supervised_loss_sum
from qlora_lab.machine import processes
from qlora_lab.machine.arguments import is_count, is_number
from qlora_lab.machine.generators import kept_random
from qlora_lab.tasks.batches import IGNORED, Batch, pad_batch


@dataclass(frozen=True)
class ValidationRecord:
    """One line of validation.jsonl. step: after which it was measured; 0 is before the first. loss: the mean over all
    supervised tokens of the validation examples, in nats."""

    step: int
    loss: float
    supervised_tokens: int
    seconds: float

    @classmethod
    def of(cls, values: dict) -> "ValidationRecord":
        """From a checkpoint's JSON.

        Raises:
            ValueError, TypeError, KeyError: it says something else.
        """
        record = cls(**{field.name: values[field.name] for field in fields(cls)})
        if not (is_count(record.step, 0) and is_count(record.supervised_tokens) and is_number(record.loss)):
            raise ValueError(f"{values} is no record of a validation")
        return record


class Validation:
    """The validation of one run: when it is due, what was measured, and the best weights so far.

    Args:
        encoded: (input_ids, labels) per example, int64 of one dimension each.
        rows, length: of the largest batch that training computes; those here hold no more tokens.
        pad: token id that fills up.
        every: steps between two; None: a tenth of `steps`.
        patience: measurements in a row without a new lowest loss after which the run ends; None: never.

    Raises:
        ValueError: no examples, or one without a label to learn from.
    """

    def __init__(self, encoded: Sequence, rows: int, length: int, pad: int, steps: int, every, patience):
        if not encoded:
            raise ValueError("there are no validation examples; give some, or leave validation out")
        for number, (_, labels) in enumerate(encoded):
            if not (labels[1:] != IGNORED).any():
                raise ValueError(f"validation example {number} has no token with a label, so no loss can be measured")
        self.steps, self.every, self.patience = steps, every or max(1, steps // 10), patience
        self.batches = _batches(encoded, rows, length, pad)
        self.supervised = sum(batch.supervised for batch in self.batches)
        self.records: list[ValidationRecord] = []
        self.best: ValidationRecord | None = None
        self.weights: dict[str, torch.Tensor] = {}  # at the best one

    def due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.steps

    @property
    def enough(self) -> bool:
        """Whether the last `patience` measurements brought nothing better."""
        if self.patience is None or self.best is None:
            return False
        return sum(record.step > self.best.step for record in self.records) >= self.patience

    def copy_bytes(self, parameters: dict[str, nn.Parameter]) -> int:
        """Bytes that the copy of the best weights takes beside the model, on its device."""
        return sum(p.numel() * p.element_size() for p in map(processes.local, filter(_stays, parameters.values())))

    def measure(self, model: nn.Module, step: int, parameters: dict[str, nn.Parameter], entrance) -> ValidationRecord:
        """Measure after `step`; keeps a copy of `parameters` if the loss is the lowest yet.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        began, training = time.perf_counter(), model.training
        model.eval()
        try:
            with torch.no_grad(), kept_random(entrance):
                total = sum(_loss(model, batch, entrance) for batch in self.batches)
        finally:
            model.train(training)
        if processes.count() > 1:
            total = processes.summed(torch.tensor(total, dtype=torch.float64, device=entrance)).item()
        loss = total / self.supervised
        if not math.isfinite(loss):
            raise FloatingPointError(f"the validation loss is {loss}")
        record = ValidationRecord(step, loss, self.supervised, time.perf_counter() - began)
        self.records.append(record)
        if self.best is None or loss < self.best.loss:
            self.best = record
            self.weights = {name: _copy(p) for name, p in parameters.items()}
        return record

    def restore(self, records: Sequence[dict], weights: dict[str, torch.Tensor]) -> None:
        """Go on from what a checkpoint holds: `state`, and the weights of the best."""
        self.records = [ValidationRecord.of(values) for values in records]
        self.best = min(self.records, key=lambda record: (record.loss, record.step), default=None)
        self.weights = weights

    def state(self) -> list[dict]:
        return [asdict(record) for record in self.records]


def _batches(encoded: Sequence, rows: int, length: int, pad: int) -> list[Batch]:
    """All examples in order of their length, at most `rows` (a process) at a time, and fewer of longer ones."""
    order = sorted(encoded, key=lambda example: len(example[0]))
    batches, count = [], processes.count()
    while order:
        fitting = max(1, min(rows, rows * length // max(1, len(order[-1][0])))) * count
        part, order = order[-fitting:], order[:-fitting]
        while len(part) < count:  # each process computes in each batch: some a row without labels
            part = [*part, (part[0][0], torch.full_like(part[0][1], IGNORED))]
        batches.append(pad_batch(part, pad))
    return batches


def _loss(model: nn.Module, batch: Batch, entrance: torch.device) -> float:
    own = distributed.share_of_batch(batch).to(entrance)
    return supervised_loss_sum(model, **own.inputs()).item()


def _stays(parameter: torch.Tensor) -> bool:
    """Whether its copy is kept where it is: there is no other place, or it is a part of a sharded one."""
    return parameter.device.type == "cpu" or processes.is_part(parameter)


def _copy(parameter: nn.Parameter) -> torch.Tensor:
    """A copy that training does not reach: in memory of the CPU, unless it is a part of a sharded one."""
    if _stays(parameter):
        return parameter.detach().clone()
    return parameter.detach().to("cpu", copy=True)
