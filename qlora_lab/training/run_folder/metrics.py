"""What each training step measured, and `metrics.jsonl`, which holds it: one JSON object a line, one line a step.

`validation.jsonl` beside it has a line for each measurement on validation examples. A resumed run does not read it: its
checkpoint holds the same, and it is written anew from there.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from qlora_lab.machine.arguments import is_count, is_number
from qlora_lab.machine.files import sync_file, told_writing, write_text

_LATER = "the run can go on from its last checkpoint with resume=True (--resume)"


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
    with told_writing(path, _LATER), open(path, "a", encoding="utf-8", newline="") as file:
        file.write(_line(record))


def write_records(path: Path, records: list[StepRecord]) -> None:
    """Replace the file, whole or not at all."""
    write_text(path, "".join(map(_line, records)))


def append_line(path: Path, values: dict) -> None:
    """Append an object to a file of such lines."""
    with told_writing(path, _LATER), open(path, "a", encoding="utf-8", newline="") as file:
        file.write(json.dumps(values, allow_nan=False) + "\n")


def write_lines(path: Path, lines: list[dict]) -> None:
    """Replace the file by these objects, whole or not at all; without any, remove it."""
    if lines:
        write_text(path, "".join(json.dumps(values, allow_nan=False) + "\n" for values in lines))
    else:
        path.unlink(missing_ok=True)


def sync_records(path: Path) -> None:
    """Force the lines appended so far onto the disk, so that no power cut leaves a checkpoint ahead of them."""
    with told_writing(path, _LATER):
        sync_file(path)


def read_records(path: Path, until: int) -> list[StepRecord]:
    """The records of steps 1 to `until`, in order; later steps are left out, and a last line that a kill cut short.

    A step that stands there twice counts with its last line. A line may hold more than a record does.

    Raises:
        ValueError: a line that is no record, the last one excepted.
    """
    return [record for record, _ in _found(path, until)]


def records_before(path: Path, checkpoint: int) -> list[StepRecord]:
    """`read_records` for a run that goes on from step `checkpoint`: all of its steps, or none where the file is gone.

    Raises:
        ValueError: as `read_records`, or a step is missing.
    """
    records = read_records(path, checkpoint)
    missing = sorted(set(range(1, checkpoint + 1)) - {record.step for record in records})
    if missing and path.exists() and path.stat().st_size:
        raise ValueError(
            f"{path} has no record of step {missing[0]}, though the checkpoint is of step {checkpoint}; restore the "
            "file, or delete it to go on without what was measured so far"
        )
    return records


def keep_records(path: Path, until: int) -> None:
    """Cut the file after step `until`; the lines that stay are as they were, in the order of their steps.

    Raises: as `read_records`; nothing is changed then.
    """
    write_text(path, "".join(line + "\n" for _, line in _found(path, until)))


def _found(path: Path, until: int) -> list[tuple[StepRecord, str]]:
    """Records of steps 1 to `until` with their lines. An editor may have added a byte-order mark or changed the ends of
    lines; a kill may have cut the last one short."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file; it should hold what each step measured")
    content = path.read_text(encoding="utf-8-sig", errors="replace") if path.exists() else ""
    lines = [(number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]
    found = {}
    for number, line in lines:
        try:
            record = _record(line)
        except (ValueError, TypeError, KeyError) as error:
            if number == lines[-1][0]:
                continue
            raise ValueError(
                f"{path}, line {number}, is no record of a step ({error}); mend the line, or delete the file to go on "
                "without what was measured so far"
            ) from error
        found[record.step] = record, line
    return [found[step] for step in sorted(found) if 1 <= step <= until]


def _record(line: str) -> StepRecord:
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    if values["grad_norm"] is None:
        values["grad_norm"] = math.inf
    record = StepRecord(**{field.name: values[field.name] for field in fields(StepRecord)})
    counts = record.step, record.tokens, record.supervised_tokens
    numbers = record.loss, record.learning_rate, record.seconds, 0 if record.grad_norm == math.inf else record.grad_norm
    if not all(is_count(value, 0) for value in counts) or not all(map(is_number, numbers)):
        raise ValueError("a value that is no number")
    return record


def _line(record: StepRecord) -> str:
    values = asdict(record)
    if not math.isfinite(record.grad_norm):
        values["grad_norm"] = None
    return json.dumps(values, allow_nan=False) + "\n"
