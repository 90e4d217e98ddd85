"""Optimizer state in 8 bits: blocks of 256 numbers, each block with a scale of its own.

The first moment uses the signed dynamic map, the second, which is never negative, an unsigned one with a bit more of
mantissa. Two things differ from bitsandbytes, for a reason:

- a block's scale is its number of largest magnitude *with its sign*, so that this number is always the level 1.0 and
  survives exactly; decoding and encoding again gives the same codes, so a resumed run goes on exactly;
- a second moment that is not zero never becomes zero: the step divides by its root, and an update of m / eps would
  throw the weight away.

Source: "8-bit Optimizers via Block-wise Quantization" (Dettmers et al. 2022), section 2.
"""

from functools import cache

import torch

from qlora_lab.quantization.datatypes import dynamic_map

STATE_BLOCK = 256  # numbers that share a scale


@cache
def unsigned_dynamic_map() -> tuple[float, ...]:
    """256 sorted levels from 0 to 1: as `datatypes.dynamic_map`, with twice the levels per decade instead of signs."""
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade + 1) + 1, dtype=torch.float32, device="cpu")
        levels += (10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
    return tuple(torch.tensor(sorted(levels), dtype=torch.float32, device="cpu").tolist())


@cache
def _tables(signed: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels (256,) and the midpoints between them (255,), float32."""
    levels = torch.tensor(dynamic_map() if signed else unsigned_dynamic_map(), dtype=torch.float32, device=device)
    return levels, (levels[1:] + levels[:-1]) / 2


def encode_state(values: torch.Tensor, signed: bool, codes: torch.Tensor, scales: torch.Tensor) -> None:
    """Write `values` as codes and scales.

    Args:
        values: float32 (n,).
        signed: which map; without it all values must be at least zero.
        codes: uint8 (n,), written. scales: float32 (ceil(n / 256),), written.
    """
    thresholds = _tables(signed, values.device)[1]
    blocks = torch.nn.functional.pad(values, (0, -len(values) % STATE_BLOCK)).view(-1, STATE_BLOCK)
    extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    nearest = torch.bucketize(blocks / torch.where(extreme == 0, 1.0, extreme), thresholds, out_int32=True)
    if not signed:
        nearest = nearest.clamp_(min=1).masked_fill_(blocks == 0, 0)
    codes.copy_(nearest.view(-1)[: len(values)])
    scales.copy_(extreme[:, 0])


def decode_state(codes: torch.Tensor, scales: torch.Tensor, signed: bool) -> torch.Tensor:
    """level[code] * scale of its block. codes uint8 (n,), scales float32 (ceil(n / 256),) -> float32 (n,)."""
    levels, _ = _tables(signed, codes.device)
    values = torch.nn.functional.pad(levels[codes.int()], (0, -len(codes) % STATE_BLOCK)).view(-1, STATE_BLOCK)
    return values.mul_(scales[:, None]).view(-1)[: len(codes)]
