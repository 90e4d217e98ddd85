"""Packing: several short examples in one row, where each of them alone would be filled up with padding.

Each example's positions count from 0 again. From that, models of transformers make an attention mask of blocks, inside
of which alone tokens see each other (`models.packed_inputs` asks a model whether it does). The first token of an
example has no label then, as it has none alone: there is nothing before it that it could be predicted from. So the loss
and its gradient are those of the same examples in rows of their own.
"""

import bisect
from collections.abc import Iterator, Sequence

import torch

from qlora_lab.tasks.batches import IGNORED


class PackedRow(tuple):
    """A pair of input_ids and labels, int64 (n,) each, as of one example; `positions` says where each one begins."""

    positions: torch.Tensor

    def __new__(cls, input_ids: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor):
        row = super().__new__(cls, (input_ids, labels))
        row.positions = positions
        return row


def pack_examples(encoded: Sequence[tuple[torch.Tensor, torch.Tensor]], length: int | None = None) -> list[PackedRow]:
    """The examples in rows of at most `length` tokens (None: as many as the longest has): longest first, each into the
    row in which it leaves the least room.

    An example is never cut. The order in which rows are trained on, `Batches` decides.

    Raises:
        ValueError: an example has more than `length` tokens.
    """
    sizes = [len(ids) for ids, _ in encoded]
    if not sizes:
        return []
    length = max(sizes) if length is None else length
    if max(sizes) > length:
        raise ValueError(
            f"example {sizes.index(max(sizes))} has {max(sizes)} tokens, more than a row of {length} holds"
        )
    return [_row([encoded[i] for i in members]) for members in _rows(sizes, length)]


def _rows(sizes: list[int], length: int) -> Iterator[list[int]]:
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens that are left, row), sorted
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = bisect.bisect_left(room, (sizes[i], -1))
        if place < len(room):
            left, row = room.pop(place)
        else:
            left, row = length, len(rows)
            rows.append([])
        rows[row].append(i)
        bisect.insort(room, (left - sizes[i], row))
    return iter(rows)


def _row(examples: list[tuple[torch.Tensor, torch.Tensor]]) -> PackedRow:
    labels = [label.clone() for _, label in examples]
    for label in labels:
        label[:1] = IGNORED
    positions = [torch.arange(len(ids)) for ids, _ in examples]
    return PackedRow(torch.cat([ids for ids, _ in examples]), torch.cat(labels), torch.cat(positions))
