"""Weights on which implementations of a 4-bit format come apart, by name: float32 (rows, some blocks)."""

import functools
import itertools

import torch

from qlora_lab.quantization.datatypes import DataType


@functools.cache
def hard_weights(datatype: DataType, block_size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(24, 4 * block_size, generator=generator)
    zeros = torch.zeros(2, 2 * block_size)
    found = {
        "Gaussian": gaussian,
        "zeros": zeros,
        "negative zeros": -zeros,
        "zeros of both signs": torch.where(torch.rand(gaussian.shape, generator=generator) < 0.5, 0.0, -0.0),
        "zeros among weights": torch.where(torch.rand(gaussian.shape, generator=generator) < 0.5, -0.0, gaussian),
        "constant": torch.tensor([[1.0], [-1.0], [0.3], [-7e-3]]).expand(4, 2 * block_size).clone(),
        "extremes of both signs": gaussian.clamp(-0.5, 0.5),
        "bfloat16": gaussian.bfloat16().float(),
        "float16": gaussian.half().float(),
        "heavy tails": gaussian / torch.rand(gaussian.shape, generator=generator),
        "rows of very different size": gaussian * 10.0 ** torch.linspace(-6, 3, 24)[:, None],
        "below float16": gaussian * 1e-7,
        "tiny": gaussian * 1e-30,
        "whole numbers": gaussian.mul(4).round(),
        "powers of two": torch.ldexp(gaussian.sign(), torch.randint(-9, 9, gaussian.shape, generator=generator)),
        "mostly one size": torch.where(gaussian > 1.5, gaussian, 1e-3),
    }
    one = torch.zeros(3, 2 * block_size)
    one[0, 3], one[1, block_size - 1], one[2, block_size] = 1e4, -1e4, 3.0
    found["one outlier"] = one
    found["an outlier among weights"] = gaussian.clone()
    found["an outlier among weights"][::3, 5] = -300
    found["large"] = gaussian * 1e4
    found |= {f"ties, {name}": ties for name, ties in _ties(datatype, block_size)}
    return found


@functools.cache
def enormous_weights(block_size: int) -> dict[str, torch.Tensor]:
    """Near float32's limits on both sides, subnormal numbers among them: not for scales in float16."""
    generator = torch.Generator().manual_seed(1)
    gaussian = torch.randn(24, 4 * block_size, generator=generator)
    spread = torch.randint(-149, 127, gaussian.shape, generator=generator)
    return {
        "the largest": torch.full_like(gaussian, torch.finfo(torch.float32).max),
        "huge": gaussian.clamp(-3, 3) * 1e38,
        "subnormal beside ordinary": torch.where(gaussian > 1, gaussian, gaussian * 1e-40),
        "subnormal beside huge": torch.where(gaussian > 1, gaussian * 1e37, gaussian * 1e-40),
        "every exponent": torch.ldexp(gaussian.clamp(-1.9, 1.9), spread),
    }


def _ties(datatype: DataType, block_size: int):
    """Weights on, just below and just above every midpoint of two levels, for scales that are exact and ones that are
    not."""
    levels = sorted(set(datatype.levels))
    middles = torch.tensor([(low + high) / 2 for low, high in itertools.pairwise(levels)])
    extreme = datatype.extreme if datatype.affine or datatype.signed else max(levels)
    for scale in (1.0, -1.0, 0.25, 2.0**-9, 0.7, 1 / 3, 1e-4):
        if scale < 0 and datatype.affine:
            continue
        rows = []
        for steps in range(-3, 4):
            x = middles * scale
            for _ in range(abs(steps)):
                x = torch.nextafter(x, torch.tensor(float("inf") if steps > 0 else float("-inf")))
            row = torch.zeros(block_size)
            row[: len(x)] = x
            row[len(x)] = extreme * scale
            rows.append(row)
        yield f"scale {scale:.3g}", torch.stack(rows)
