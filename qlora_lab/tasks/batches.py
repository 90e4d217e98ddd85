"""From examples to batches: encoded once, grouped by length, in an order that a seed decides.

Sorting by length within groups of batches keeps padding small (padded positions cost as much as real ones); groups and
the order of batches are shuffled anew for every epoch. Batch `n` of a run is a function of (seed, n) alone, which is
what lets a resumed run go on exactly where it was.
"""

from dataclasses import dataclass

import torch

from qlora_lab.tasks.encoding import IGNORED

GROUP = 16  # batches that are sorted by length together


@dataclass(frozen=True)
class Batch:
    """input_ids, attention_mask, labels: int64 (batch, length), padded on the right.

    position_ids: int64 of the same shape where rows are packed (see `packing`): each example in a row counts from 0.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.attention_mask.sum())

    @property
    def supervised(self) -> int:
        """Tokens that have a label and something before them to predict it from."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def to(self, device) -> "Batch":
        wait = torch.device(device).type == "mps"  # where a copy that nobody waits for may come too late
        return self._each(lambda tensor: tensor.to(device, non_blocking=not wait))

    def rows(self, number: int, of: int) -> "Batch":
        """Every `of`-th row from `number` on, without columns of padding only."""
        own = self._each(lambda tensor: tensor[number::of])
        length = int(own.attention_mask.sum(1).max())
        return own._each(lambda tensor: tensor[:, :length])

    def inputs(self) -> dict[str, torch.Tensor | None]:
        """What the loss and a model take. Rows that are packed come without a mask: their positions say what it would,
        and models of transformers make one from them that no example sees beyond."""
        if self.position_ids is None:
            return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "labels": self.labels}
        return {
            "input_ids": self.input_ids,
            "attention_mask": None,
            "labels": self.labels,
            "position_ids": self.position_ids,
        }

    def _each(self, change) -> "Batch":
        tensors = self.input_ids, self.attention_mask, self.labels, self.position_ids
        return Batch(*(None if tensor is None else change(tensor) for tensor in tensors))


class Batches:
    """All batches of a run, by number.

    Args:
        encoded: (input_ids, labels) per example, int64 of one dimension each.
        batch_size: examples per batch. Where it does not divide their number, an epoch leaves out the rest: other
            examples, drawn at random, each time. More than there are examples: one batch of all of them.
        pad: token id that fills up (any; it is masked).
        seed: decides the order.

    Raises:
        ValueError: no examples, one without a label to learn from, or a batch size below 1.
    """

    def __init__(self, encoded: list[tuple[torch.Tensor, torch.Tensor]], batch_size: int, pad: int, seed: int):
        if not encoded:
            raise ValueError("there are no examples to train on")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is not allowed; give at least 1")
        unsupervised = [i for i, (_, labels) in enumerate(encoded) if not (labels[1:] != IGNORED).any()]
        if unsupervised:
            raise ValueError(f"example {unsupervised[0]} has no token to learn from (every label is {IGNORED})")
        self.encoded, self.batch_size, self.pad, self.seed = encoded, min(batch_size, len(encoded)), pad, seed
        self.per_epoch = len(encoded) // self.batch_size
        self._epoch, self._order = -1, []

    def __getitem__(self, number: int) -> Batch:
        """Batch `number` of the run, from 0 on without end."""
        if number < 0:
            raise IndexError(f"batches are numbered from 0, not {number}")
        epoch, index = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return pad_batch([self.encoded[i] for i in self._order[index]], self.pad)

    def longest(self) -> tuple[int, int]:
        """(tokens, supervised tokens) of the longest examples: what the memory for a step must be planned for."""
        supervised = max(int((labels[1:] != IGNORED).sum()) for _, labels in self.encoded)
        return max(len(ids) for ids, _ in self.encoded), supervised

    def _shuffled(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        group, size = GROUP * self.batch_size, self.batch_size
        # cut before sorting: cut afterwards, the rest would be the longest examples, which then are hardly ever seen
        order = torch.randperm(len(self.encoded), generator=generator).tolist()[: self.per_epoch * size]
        batches = []
        for start in range(0, len(order), group):
            part = sorted(order[start : start + group], key=lambda i: len(self.encoded[i][0]))
            batches += [part[i : i + size] for i in range(0, len(part), size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def pad_batch(encoded: list[tuple[torch.Tensor, torch.Tensor]], pad: int) -> Batch:
    """Pad examples, or packed rows of them, on the right to the length of the longest."""
    length = max(len(ids) for ids, _ in encoded)
    input_ids = torch.full((len(encoded), length), pad)
    labels = torch.full((len(encoded), length), IGNORED)
    mask = torch.zeros(len(encoded), length, dtype=torch.int64)
    for row, (ids, label) in enumerate(encoded):
        input_ids[row, : len(ids)], labels[row, : len(ids)], mask[row, : len(ids)] = ids, label, 1
    positions = [getattr(row, "positions", None) for row in encoded]
    if all(row is None for row in positions):
        return Batch(input_ids, mask, labels)
    counted = torch.zeros_like(input_ids)
    for row, ((ids, _), own) in enumerate(zip(encoded, positions, strict=True)):
        counted[row, : len(ids)] = torch.arange(len(ids)) if own is None else own
        counted[row, len(ids) :] = torch.arange(length - len(ids))  # padding: a sequence of its own, seen by none
    return Batch(input_ids, mask, labels, counted)
