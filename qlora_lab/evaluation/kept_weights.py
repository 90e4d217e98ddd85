"""Decoded weights kept for a while: generation runs one short forward pass per token, and each would decode them all.

With a few dozen rows in a batch, decoding the weights costs about as much as the products with them. Inside
`keep_decoded` every 4-bit layer decodes once and keeps the result, 2 or 4 bytes a weight, which is what quantizing
saved: so only where that much memory is free, and never in training. The results are the same to the bit.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from qlora_lab.machine import processes
from qlora_lab.machine.free_memory import free_memory
from qlora_lab.qlora import QLoRALinear

SHARE = 0.5  # of the free memory, which the decoded weights may take; the rest is for the key-value cache and others


@contextlib.contextmanager
def keep_decoded(model: nn.Module) -> Iterator[bool]:
    """Inside, the 4-bit layers of `model` keep their weights decoded; yields whether there was memory for it.

    The weights must not change inside. Decoded weights are given back at the end, also after an exception. Layers that
    are sharded between processes at this moment decode as ever.
    """
    layers = [module for module in model.modules() if isinstance(module, QLoRALinear) and module.kept is None]
    layers = [layer for layer in layers if not processes.is_sharded(layer.codes)]
    wanted: dict[torch.device, int] = {}
    for layer in layers:
        size = (layer.compute_dtype or layer.base_dtype).itemsize
        wanted[layer.codes.device] = wanted.get(layer.codes.device, 0) + size * layer.encoded_elements
    fits = all(count <= SHARE * free_memory(device) for device, count in wanted.items())
    try:
        for layer in layers if fits else ():
            layer.kept = _Kept(layer.quantized)
        yield fits
    finally:
        for layer in layers:
            layer.kept = None


class _Kept:
    """A quantized tensor that decodes once for each dtype asked for."""

    def __init__(self, quantized):
        self._quantized, self._decoded = quantized, {}

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        if dtype not in self._decoded:
            self._decoded[dtype] = self._quantized.dequantize(dtype)
        return self._decoded[dtype]


__all__ = ["keep_decoded"]
