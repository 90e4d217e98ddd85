"""The exercise of notebook 00: what weights take."""

import torch

from qlora_lab.checks.exercise import Exercise, draw_integers, edits


def weights_in_gb(parameters: int, bits: float) -> float:
    return parameters * bits / 8 / 10**9


def _weights_case(generator: torch.Generator, number: int):
    """In two cases so few parameters that parts of a byte are left."""
    (parameters,) = draw_integers(generator, 1, 10**11 if number % 4 else 100, 1)
    return parameters, (32, 16, 4.127, 8, 4.25, 4)[number % 6]


EXERCISES = (
    Exercise(
        "weights-in-gb",
        _weights_case,
        weights_in_gb,
        edits("""
            bits / 8 / 10**9 → bits / 10**9
            1: These are gigabits: a byte has 8 bits.

            bits / 8 / 10**9 → bits / 8
            2: These are bytes; the answer is in GB, 10^9 bytes each.

            10**9 → 2**30
            2: These are GiB, 2^30 bytes each; GB are 10^9 bytes throughout this workbook.

            parameters * bits / 8 → parameters
            1: That is a whole byte for each parameter, whatever it is stored in.

            * bits → * round(bits)
            * bits → * math.ceil(bits)
            1: The bits of a parameter are rounded to a whole number. On average it may take 4.127.

            bits / 8 → bits // 8
            1: Bytes are rounded to whole ones before they become GB. `/` keeps what `//` drops.

            bits / 8 → bits * 8
            1: Bits become bytes by dividing by 8, and you multiply.

            parameters * bits / 8 → parameters * (bits // 8)
            1: The bits of a parameter are divided by 8 and rounded down: a parameter of 4 bits then takes nothing. `/`
               keeps half a byte.

            parameters * bits / 8 → parameters * math.ceil(bits / 8)
            1: Each parameter is rounded up to whole bytes; several share one.

            10**9 → (10 ^ 9)
            2: In Python `^` is no power; write `10**9`.

            10**9 → 10**6
            2: These are MB, 10^6 bytes each; the answer is in GB, 10^9 bytes each.
        """),
        tolerance=2e-6,
    ),
)
