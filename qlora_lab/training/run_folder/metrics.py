"""What each training step measured, and `metrics.jsonl`, which holds it: one JSON object a line, one line a step."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from qlora_lab.machine.files import write_text


@dataclass(frozen=True)
class StepRecord:
    """One line of metrics.jsonl.

    loss: mean over the step's supervised tokens, in nats, before the update. grad_norm: before clipping; infinite where
    float16 gradients overflowed and the update was left out (null in the file: JSON has no infinity). tokens: without
    padding. seconds: of this step alone.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    seconds: float


def append_record(path: Path, record: StepRecord) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(_line(record))


def write_records(path: Path, records: list[StepRecord]) -> None:
    """Replace the file, whole or not at all."""
    write_text(path, "".join(map(_line, records)))


def sync_records(path: Path) -> None:
    """Force the lines appended so far onto the disk, so that no power cut leaves a checkpoint ahead of them."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read_records(path: Path, until: int) -> list[StepRecord]:
    """The records of steps 1 to `until`, in order; later steps, and lines that a kill cut short, are left out."""
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
            if values["grad_norm"] is None:
                values["grad_norm"] = math.inf
            record = StepRecord(**values)
        except (ValueError, TypeError, KeyError):
            continue
        if 1 <= record.step <= until:
            found[record.step] = record
    return [found[step] for step in sorted(found)]


def _line(record: StepRecord) -> str:
    values = asdict(record)
    if not math.isfinite(record.grad_norm):
        values["grad_norm"] = None
    return json.dumps(values, allow_nan=False) + "\n"
