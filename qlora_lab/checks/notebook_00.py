"""The exercise of notebook 00: what weights take."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def weights_in_gb(parameters: int, bits: float) -> float:
    return parameters * bits / 8 / 10**9


EXERCISES = (
    Exercise(
        "weights-in-gb",
        lambda generator, number: (
            int(
                torch.randint(1, 10**11 if number % 4 else 100, (), generator=generator)
            ),  # few ones leave parts of a byte
            (32, 16, 4.127, 8, 4.25, 4)[number % 6],
        ),
        weights_in_gb,
        (
            Misconception(
                "These are gigabits: a byte has 8 bits. Open hint 1.",
                lambda parameters, bits: parameters * bits / 10**9,
            ),
            Misconception(
                "These are bytes; the answer is in GB, 10^9 bytes each. Open hint 2.",
                lambda parameters, bits: parameters * bits / 8,
            ),
            Misconception(
                "These are GiB, 2^30 bytes each; GB are 10^9 bytes throughout this workbook. Open hint 2.",
                lambda parameters, bits: parameters * bits / 8 / 2**30,
            ),
            Misconception(
                "That is a whole byte for each parameter, whatever it is stored in. Open hint 1.",
                lambda parameters, bits: parameters / 10**9,
            ),
            *(
                Misconception(
                    "The bits of a parameter are rounded to a whole number. On average it may take 4.127. Open hint 1.",
                    lambda parameters, bits, rounded=rounded: parameters * rounded(bits) / 8 / 10**9,
                )
                for rounded in (round, math.ceil)
            ),
            Misconception(
                "Bytes are rounded to whole ones before they become GB. `/` keeps what `//` drops. Open hint 1.",
                lambda parameters, bits: parameters * bits // 8 / 10**9,
            ),
            Misconception(
                "Bits become bytes by dividing by 8, and you multiply. Open hint 1.",
                lambda parameters, bits: parameters * bits * 8 / 10**9,
            ),
        ),
        tolerance=1e-9,
    ),
)
