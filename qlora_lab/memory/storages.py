"""Storages: what tensors are views of, and what costs memory."""

from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Storage:
    """What a ledger notes of a storage; it refers to it weakly."""

    __slots__ = ("category", "forward", "module", "nbytes", "operation", "reference")

    def __init__(self, nbytes: int, category: str, operation: str = "", module: str = "", forward: bool = True):
        self.nbytes, self.category, self.operation, self.module = nbytes, category, operation, module
        self.forward = forward  # made by a forward pass, also a recomputed one, and not by a gradient
        self.reference = None


def tensors_in(value) -> Iterator[torch.Tensor]:
    """The tensors with a storage in nested lists, tuples and dictionaries; a wrapper's or a sparse tensor's parts."""
    if isinstance(value, torch.Tensor):
        if is_traceable_wrapper_subclass(value):
            for name in value.__tensor_flatten__()[0]:
                yield from tensors_in(getattr(value, name))
        elif value.layout == torch.strided:
            yield value
        elif value.layout == torch.sparse_coo:
            yield from (value._indices(), value._values())
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def address_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
