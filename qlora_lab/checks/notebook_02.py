"""Exercises of notebook 02, first half: what a scale does, and how weights are decoded."""

import math

import torch

from qlora_lab.checks.differences import a_value_each, in_blocks, with_arguments
from qlora_lab.checks.exercise import Exercise, Misconception
from qlora_lab.quantization.datatypes import get_datatype

NF4, INT4 = get_datatype("nf4").levels, get_datatype("int4").levels


def _number(generator: torch.Generator, low: int, high: int) -> int:
    return torch.randint(low, high, (), generator=generator).item()


def _randn(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def scale_from_example(weight: float, code: int, levels: list) -> float:
    return weight / levels[code]


def weights_of_a_code(code: int, absmax: float, levels: list) -> tuple[float, float]:
    low = (levels[code - 1] + levels[code]) / 2 if code else levels[0]
    high = (levels[code] + levels[code + 1]) / 2 if code < len(levels) - 1 else levels[-1]
    return low * absmax, high * absmax


def _codes(arguments: tuple) -> torch.Tensor:
    packed = arguments[0]
    return torch.stack((packed >> 4, packed & 15), 1).view(-1)


def dequantize_packed(packed, scales, table, block_size: int, n: int):
    return table[_codes((packed,))[:n].int()] * scales.repeat_interleave(block_size)[:n]


def least_error_scale(w, q):
    below = (q * q).sum(1)
    return (w * q).sum(1) / torch.where(below == 0, 1.0, below)


def _example(generator: torch.Generator, number: int):
    levels = list(INT4 if number % 2 else NF4)
    code = [code for code in range(1, 15) if levels[code]][_number(generator, 0, 13)]
    return levels[code] * (0.05 + 4 * torch.rand((), generator=generator).item()), code, levels


def _code(generator: torch.Generator, number: int):
    code = (0, 15, 7, 8, 1, 14)[number] if number < 6 else _number(generator, 0, 16)
    return code, 0.1 + _number(generator, 0, 300) / 100, list(NF4)


def _packed(generator: torch.Generator, number: int):
    size = (16, 64, 32, 16)[number % 4]
    n = (2 * size, 3 * size + 1, 7, 5 * size - 3, size, 4 * size + 9, 2 * size - 1, 6 * size)[number]
    packed = torch.randint(0, 256, (-(-n // 2),), generator=generator, dtype=torch.uint8)
    return packed, _randn(generator, -(-n // size)).abs() + 0.1, torch.tensor(NF4), size, n


def _blocks(generator: torch.Generator, number: int):
    """Weights and the levels of their codes; from the second case on, one block is all zeros, and another was coded
    with a scale so large that its levels are all near zero."""
    count, size = 2 + number, (16, 64, 32)[number % 3]
    w = _randn(generator, count, size) * 10.0 ** (number % 3 - 1)
    levels = torch.tensor(NF4)
    q = levels[(w[..., None] / w.abs().amax(1)[:, None, None] - levels).abs().argmin(-1)]
    if number:
        w[1] = q[1] = 0.0
        q[2] = levels[(w[2, :, None] / (6 * w[2].abs().max()) - levels).abs().argmin(-1)]
    return w, q


def _always(_w, q, scale):
    return torch.where((q == 0).all(1), 0.0, scale)


EXERCISES = (
    Exercise(
        "scale-from-example",
        _example,
        scale_from_example,
        (
            Misconception(
                "You divided by the code itself. A code is a place in the table; its level is `levels[code]`. "
                "Open hint 1.",
                lambda w, code, levels: w / code,
            ),
            Misconception(
                "That is a weight decoded once more; the scale is what the level has to be multiplied with. "
                "Open hint 2.",
                lambda w, code, levels: w * levels[code],
            ),
            Misconception(
                "That is one over the scale: weight = scale * level, so divide by the level. Open hint 2.",
                lambda w, code, levels: levels[code] / w,
            ),
            Misconception(
                "A scale here is positive: a negative weight has a negative level. Keep both signs. Open hint 2.",
                lambda w, code, levels: -w / levels[code] if w < 0 else w / levels[code],
            ),
        ),
        tolerance=1e-6,
    ),
    Exercise(
        "weights-of-a-code",
        _code,
        weights_of_a_code,
        (
            Misconception(
                "These are the neighbouring levels; the border lies half-way to them. Open hint 1.",
                lambda code, absmax, levels: (levels[max(code - 1, 0)] * absmax, levels[min(code + 1, 15)] * absmax),
            ),
            Misconception(
                "These are the borders before scaling: multiply them with absmax. Open hint 2.",
                lambda code, absmax, levels: weights_of_a_code(code, 1.0, levels),
            ),
            Misconception(
                "No weight of a block lies beyond its absmax, so the first and the last range end there. Open hint 3.",
                lambda code, absmax, levels: (
                    -math.inf if code == 0 else weights_of_a_code(code, absmax, levels)[0],
                    math.inf if code == 15 else weights_of_a_code(code, absmax, levels)[1],
                ),
            ),
            Misconception(
                "That cuts [-absmax, absmax] into sixteen equal parts; NF4's levels are not equally far apart. "
                "Open hint 1.",
                lambda code, absmax, levels: ((code / 8 - 1) * absmax, ((code + 1) / 8 - 1) * absmax),
            ),
        ),
        tolerance=1e-6,
    ),
    Exercise(
        "dequantize-packed",
        _packed,
        dequantize_packed,
        (
            Misconception(
                "These are the right codes with the nibbles swapped: the first weight sits in the high four bits. "
                "Open hint 1.",
                lambda p, s, t, size, n: dequantize_packed((p >> 4) | (p << 4), s, t, size, n),
            ),
            Misconception(
                "All high nibbles come first, then all low ones; they have to alternate. Open hint 1.",
                lambda p, s, t, size, n: t[torch.cat((p >> 4, p & 15)).int()][:n] * s.repeat_interleave(size)[:n],
            ),
            Misconception(
                "The scales are dealt out in turn; neighbours share one: the first `block_size` weights have the first "
                "scale. Open hint 2.",
                lambda p, s, t, size, n: dequantize_packed(p, s.repeat(-(-n // len(s)))[:n], t, 1, n),
            ),
            Misconception(
                "A scale is used for `block_size` bytes; it belongs to `block_size` weights, two to a byte. "
                "Open hint 2.",
                lambda p, s, t, size, n: dequantize_packed(p, s, t, 2 * size, n),
            ),
            Misconception(
                "The codes are multiplied with the scale as if they were numbers. Look each up in the table first. "
                "Open hint 1.",
                lambda p, s, t, size, n: dequantize_packed(p, s, torch.arange(16.0), size, n),
            ),
            Misconception(
                "With an odd n the last byte holds one weight and a filler; return n weights. Open hint 3.",
                lambda p, s, t, size, n: torch.cat(
                    (
                        dequantize_packed(p, s, t, size, n),
                        t[(p[-1:] & 15).int()][: n % 2] * s.repeat_interleave(size)[n : n + n % 2],
                    )
                ),
            ),
        ),
        describe=with_arguments(in_blocks(0.0, lambda arguments: arguments[3], codes=_codes)),
    ),
    Exercise(
        "least-error-scale",
        _blocks,
        least_error_scale,
        (
            Misconception(
                "That is the mean of the quotients: a level near zero then counts as much as a large one, and zero "
                "gives no number. Open hint 1.",
                lambda w, q: (
                    (torch.where(q == 0, 0.0, w / torch.where(q == 0, 1.0, q))).sum(1) / (q != 0).sum(1).clamp(min=1)
                ),
            ),
            Misconception(
                "The square of the weights is below the line; it has to be that of the levels. Open hint 2.",
                lambda w, q: _always(w, q, (w * q).sum(1) / (w * w).sum(1).clamp(min=1e-38)),
            ),
            Misconception(
                "This makes the decoded block as long as the weights; that does not bring it nearest. Open hint 1.",
                lambda w, q: _always(w, q, ((w * w).sum(1) / (q * q).sum(1).clamp(min=1e-38)).sqrt()),
            ),
            Misconception(
                "The denominator is kept at 1 or above. It is only to be kept from zero, and a block of small levels "
                "has a small one. Open hint 3.",
                lambda w, q: (w * q).sum(1) / (q * q).sum(1).clamp(min=1),
            ),
            Misconception("That is absmax, the scale you started from. Open hint 1.", lambda w, q: w.abs().amax(1)),
            Misconception(
                "This is one scale for all blocks together; each has its own. Sum over dim 1 only. Open hint 2.",
                lambda w, q: ((w * q).sum() / (q * q).sum()).expand(len(w)),
            ),
        ),
        tolerance=1e-5,
        describe=with_arguments(a_value_each(1e-5)),
    ),
)
