"""What a memory ledger tells: births and deaths of storages, their peak, and its bytes by category. Plain numbers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

CATEGORIES = (
    "quantized base",
    "base weights",
    "adapters",
    "gradients",
    "optimizer state",
    "activations",
    "temporary",
)


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """One storage born or died.

    Attributes:
        step: number of the operation, from 1 on; 0 for what was there before.
        event: "born" or "died".
        nbytes: of the storage. One that is resized has another "born" (grown) or "died" (shrunk) with the difference.
        category: one of `CATEGORIES`; a storage has the same at birth and at death.
        operation: that made it, such as "aten.mm"; "" if it was there before.
        module: path of the module whose forward made it ("model.layers.0.mlp"), for a gradient of the module whose
            operation is differentiated; "" outside any.
        live: bytes alive after the event.
    """

    step: int
    event: str
    nbytes: int
    category: str
    operation: str
    module: str
    live: int


class Replay(NamedTuple):
    """peak in bytes, its bytes by category, and all records."""

    peak: int
    by_category: dict[str, int]
    records: list[MemoryRecord]


def replay(events: Iterable[tuple]) -> Replay:
    """Go through (step, storage, bytes added) in order; a storage has `.category`, `.operation` and `.module`."""
    live = peak = 0
    at, at_peak, records = dict.fromkeys(CATEGORIES, 0), dict.fromkeys(CATEGORIES, 0), []
    for step, storage, added in events:
        live += added
        at[storage.category] += added
        if live > peak:
            peak, at_peak = live, dict(at)
        event = "born" if added >= 0 else "died"
        records.append(MemoryRecord(step, event, abs(added), storage.category, storage.operation, storage.module, live))
    return Replay(peak, at_peak, records)


def highest_points(records: Iterable[MemoryRecord]) -> list[tuple[int, dict[str, int]]]:
    """(step, bytes by category) at the highest point of each step that has a record: a stacked area plot's data."""
    highest, at = {}, dict.fromkeys(CATEGORIES, 0)
    for record in records:
        at[record.category] += record.nbytes if record.event == "born" else -record.nbytes
        if record.step not in highest or record.live > highest[record.step][0]:
            highest[record.step] = (record.live, dict(at))
    return [(step, by_category) for step, (_, by_category) in highest.items()]
