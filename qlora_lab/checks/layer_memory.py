"""Exercises of notebook 05 about memory: the bytes of a 4-bit tensor and of a step, and whether they fit."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def _numbers(generator: torch.Generator, low: int, high: int, count: int) -> list[int]:
    return torch.randint(low, high, (count,), generator=generator).tolist()


def full_training_bytes(parameters: int) -> int:
    return 12 * parameters


def stored_bytes(elements: int, block_size: int, double_quant: bool) -> int:
    blocks = math.ceil(elements / block_size)
    scales = blocks + 4 * math.ceil(blocks / 256) + 4 if double_quant else 4 * blocks
    return math.ceil(elements / 2) + scales


def qlora_bytes(quantized: int, others: int, adapters: int, tokens: int, hidden: int, layers: int) -> float:
    return 4.127 / 8 * quantized + 2 * others + 12 * adapters + 2 * tokens * hidden * layers


def fits(peak: int, gib: float, reserve: float) -> bool:
    return peak <= gib * 2**30 - reserve * 10**9


def _stored_case(generator: torch.Generator, number: int):
    """Any number, and some that leave no rest: whole blocks in whole groups of 256 scales, after which none begins."""
    size = (64, 32, 128)[number % 3]
    blocks = (0, 0, 8, 256, 0, 512, 0, 300)[number]  # of the last one, 256 scales and a rest
    elements = size * blocks if blocks else _numbers(generator, 1, 4000 * (number + 1), 1)[0]
    return elements + (_numbers(generator, 1, 20 * size, 1)[0] if blocks == 300 else 0), size, bool(number % 2)


def _fits_case(generator: torch.Generator, number: int):
    """Peaks between any two limits that one may take for the right one: exactly it, one byte more, and further off."""
    gib, reserve = float(_numbers(generator, 16, 97, 1)[0]), (0.0, 1.5, 2.0, 0.5)[number % 4]
    limit, full = int(gib * 2**30 - reserve * 10**9), int(gib * 2**30)
    below_with_reserve_in_gib = limit - int(reserve * (2**30 - 10**9)) // 2
    above = limit + int(reserve * 10**9) // 2 if reserve else full + 10**8
    in_gb = int((gib - reserve) * 10**9)
    between = (in_gb + limit) // 2
    return (limit, below_with_reserve_in_gib, above, between, limit + 1, above, in_gb // 2, limit)[number], gib, reserve


def _any_card(generator: torch.Generator, number: int):
    """Peaks around what fits, as far from it as a tenth of the card or as a tenth of a GB."""
    gib, reserve = float(_numbers(generator, 4, 200, 1)[0]), (0.0, 0.5, 1.5)[number % 3]
    limit = gib * 2**30 - reserve * 10**9
    return (
        int(limit + (10**8 if number % 2 else 0.1 * limit) * (2 * torch.rand((), generator=generator).item() - 1)),
        gib,
        reserve,
    )


def _one_more(n: int, size: int) -> int:
    return n // size + 1


def _rounded_up(n: int, size: int) -> int:
    return -(-n // size)


def _block_added(elements: int, block_size: int, double_quant: bool) -> int:
    blocks = _one_more(elements, block_size)
    return _rounded_up(elements, 2) + (blocks + 4 * _rounded_up(blocks, 256) + 4 if double_quant else 4 * blocks)


def _group_added(elements: int, block_size: int, double_quant: bool, more=_rounded_up) -> int:
    blocks = more(elements, block_size)
    return _rounded_up(elements, 2) + (blocks + 4 * _one_more(blocks, 256) + 4 if double_quant else 4 * blocks)


def _groups(elements: int, block_size: int, double_quant: bool) -> int:
    """Second-level scales."""
    return double_quant * _rounded_up(_rounded_up(elements, block_size), 256)


EXERCISES = (
    Exercise(
        "full-training-bytes",
        lambda generator, number: (_numbers(generator, 1, 10**9, 1)[0],),
        full_training_bytes,
        (
            Misconception(
                "That is without gradients: each trained weight has one, in 16 bits here. Open hint 1.",
                lambda n: 10 * n,
            ),
            Misconception("AdamW keeps two moments for each weight, not one. Open hint 2.", lambda n: 8 * n),
            Misconception(
                "That is the bill for weights and gradients in 32 bits; here both have 16. Open hint 1.",
                lambda n: 16 * n,
            ),
            Misconception("These are the bits of one number; the answer is in bytes. Open hint 1.", lambda n: 96 * n),
        ),
    ),
    Exercise(
        "stored-bytes",
        _stored_case,
        stored_bytes,
        (
            Misconception(
                "These are the codes alone; every block has a scale. Open hint 1.", lambda n, size, double: -(-n // 2)
            ),
            Misconception(
                "The last block may be shorter, and it has a scale too: round the number of blocks up. Open hint 1.",
                lambda n, size, double: (
                    -(-n // 2) + ((n // size) + 4 * -(-(n // size) // 256) + 4 if double else 4 * (n // size))
                ),
            ),
            Misconception(
                "With double quantization the 8-bit scales have scales of their own (one for 256), and one offset. "
                "Open hint 2.",
                lambda n, size, double: -(-n // 2) + (1 if double else 4) * -(-n // size),
            ),
            Misconception(
                "The offset (the mean of the scales, four bytes for the whole tensor) is missing. Open hint 2.",
                lambda n, size, double: stored_bytes(n, size, double) - 4 * double,
            ),
            Misconception(
                "The last group of 256 scales may be short, and it has a second-level scale too: you round down. "
                "Open hint 2.",
                lambda n, size, double: stored_bytes(n, size, double) - 4 * (double and -(-n // size) % 256 > 0),
            ),
            Misconception(
                "There is a second-level scale for each 256 scales, not one for the whole tensor. Open hint 2.",
                lambda n, size, double: stored_bytes(n, size, double) - 4 * (_groups(n, size, double) - double),
            ),
            Misconception(
                "The second-level scales, four bytes for each 256 scales or part of 256, are missing. Open hint 2.",
                lambda n, size, double: stored_bytes(n, size, double) - 4 * _groups(n, size, double),
            ),
            *(
                Misconception(
                    "One is added to a number of blocks or groups that leaves no rest: `n // m + 1` is one too many "
                    "there; -(-n // m) rounds up. Open hint 1.",
                    added,
                )
                for added in (_block_added, _group_added, lambda *given: _group_added(*given, more=_one_more))
            ),
            Misconception(
                "The offset is one for the whole tensor, not one for each 256 scales. Open hint 2.",
                lambda n, size, double: stored_bytes(n, size, double) + 4 * (_groups(n, size, double) - double),
            ),
            Misconception(
                "Two codes share a byte, and an odd one takes a byte to itself: round up. Open hint 1.",
                lambda n, size, double: stored_bytes(n, size, double) - n % 2,
            ),
            Misconception(
                "That counts a whole byte for each code; two share one. Open hint 1.",
                lambda n, size, double: stored_bytes(n, size, double) + n - -(-n // 2),
            ),
        ),
    ),
    Exercise(
        "qlora-bytes",
        lambda generator, number: tuple(
            _numbers(generator, 10, 10 ** (3 + number), 3) + _numbers(generator, 1, 512, 3)
        ),
        qlora_bytes,
        (
            Misconception(
                "Only adapters are trained here: the base has no gradients and no moments. Open hint 1.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, n) + 10 * q,
            ),
            Misconception(
                "4 bits are not all a quantized weight takes: its share of the scales makes it 4.127. Open hint 1.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, n) - 0.127 / 8 * q,
            ),
            Misconception(
                "Adapters cost more than their weights: a gradient (2 bytes) and two moments (8). Open hint 2.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, n) - 10 * p,
            ),
            Misconception(
                "The gradients of the adapters are missing. Open hint 2.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, n) - 2 * p,
            ),
            Misconception(
                "With checkpointing each layer keeps its input, so the activations count once per layer. Open hint 3.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, 1),
            ),
            Misconception(
                "The weights that are not quantized are missing: two bytes each. Open hint 1.",
                lambda q, o, p, t, d, n: qlora_bytes(q, 0, p, t, d, n),
            ),
            Misconception(
                "The inputs of the layers are missing: tokens times hidden numbers for each. Open hint 3.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, 0, d, n),
            ),
            Misconception(
                "The inputs of the layers are counted as numbers; each takes two bytes. Open hint 3.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, n) - t * d * n,
            ),
            Misconception(
                "AdamW keeps two moments, each in 32 bits: eight bytes, and you count four. Open hint 2.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, n) - 4 * p,
            ),
            Misconception(
                "These are bits for the quantized weights and bytes for the rest: divide by 8. Open hint 1.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, n) + (4.127 - 4.127 / 8) * q,
            ),
        ),
        tolerance=1e-9,
    ),
    Exercise(
        "fits",
        _fits_case,
        fits,
        (
            Misconception(
                "A card sold as so many gigabytes has GiB, 2^30 bytes each, which is 7 % more than GB. Open hint 1.",
                lambda peak, gib, reserve: peak <= (gib - reserve) * 10**9,
            ),
            Misconception(
                "The reserve is given in GB, 10^9 bytes each; you take it for GiB. Open hint 2.",
                lambda peak, gib, reserve: peak <= (gib - reserve) * 2**30,
            ),
            Misconception(
                "What exactly fills the card fits: at most, so `<=`.",
                lambda peak, gib, reserve: peak < gib * 2**30 - reserve * 10**9,
            ),
            Misconception(
                "The reserve is not subtracted: a driver and an allocator take some of the card. Open hint 2.",
                lambda peak, gib, reserve: peak <= gib * 2**30,
            ),
            Misconception(
                "The comparison is the wrong way round: it fits if the peak is at most what is left.",
                lambda peak, gib, reserve: not fits(peak, gib, reserve),
            ),
        ),
        draw_more=_any_card,
    ),
)
