"""Wrong answers to the exercise of notebook 01 about testing."""

import torch

from wrong_answers import wrong


@wrong("counterexamples", says="None of your blocks")
def random_blocks(levels):
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(3, 16, generator=generator)
    return list(blocks)


@wrong("counterexamples", says="random numbers do not find")
def random_with_a_negative_outlier(levels):
    blocks = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    blocks[:, 4] = -2.0
    return list(blocks)


@wrong("counterexamples", says="does not expose the tie")
def a_level_instead_of_a_midpoint(levels):
    block = torch.zeros(16)
    block[0], block[1] = 1.0, levels[5]
    return [-torch.arange(16.0), block, torch.zeros(16)]


@wrong("counterexamples", says="does not expose the missing abs()")
def positive_outlier(levels):
    block = torch.zeros(16)
    block[0], block[1] = 1.0, (levels[3] + levels[4]) / 2
    return [torch.arange(16.0), block, torch.zeros(16)]


@wrong("counterexamples", says="does not expose the division")
def nearly_zero(levels):
    block = torch.zeros(16)
    block[0], block[1] = 1.0, (levels[3] + levels[4]) / 2
    return [-torch.arange(16.0), block, torch.full((16,), 1e-30)]


@wrong("counterexamples", says="finite float32")
def breaks_every_version(levels):
    return [torch.full((16,), float("nan"))] * 3


@wrong("counterexamples", says="Your first and second block expose nothing")
def two_in_each_others_place(levels):
    tie = torch.zeros(16)
    tie[0], tie[1] = 1.0, (levels[3] + levels[4]) / 2
    return [tie, -torch.arange(16.0), torch.zeros(16)]
