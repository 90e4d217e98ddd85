"""Exercises of notebook 07 about seeds: intervals, pairing, and which rank they allow."""

import math
import statistics

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def seed_interval(results: list[float], t: float) -> tuple[float, float]:
    mean = statistics.mean(results)
    half = t * statistics.stdev(results) / math.sqrt(len(results))
    return mean - half, mean + half


def _interval_with(spread, root=math.sqrt, quantile=lambda t: t):
    def interval(results, t):
        mean = statistics.mean(results)
        half = quantile(t) * spread(results) / root(len(results))
        return mean - half, mean + half

    return interval


def _numbers(generator: torch.Generator, count: int, digits: int = 3) -> list[float]:
    return [round(x, digits) for x in torch.rand(count, generator=generator).tolist()]


T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 10: 2.262}
T_99 = {2: 63.657, 3: 9.925, 4: 5.841, 5: 4.604, 6: 4.032, 10: 3.250}


def _results_case(generator: torch.Generator, number: int):
    """In every second case t is that for 99 %, so that it does not follow from the number of results."""
    count = (3, 2, 5, 3, 4, 10, 3, 6)[number % 8]
    return _numbers(generator, count), (T_99 if number % 2 else T_95)[count]


def paired(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def _pairs_case(generator: torch.Generator, number: int):
    """Seeds in different orders; from the third case on each side has one that the other lacks."""
    count = 3 + number % 4
    order = (torch.randperm(2000, generator=generator)[:count] + 2).tolist()  # neither 3 digits each nor one
    order[0] = number + 2
    ours = dict(zip(order, _numbers(generator, count), strict=True))
    theirs = dict(zip(reversed(order), _numbers(generator, count), strict=True))
    if number >= 2:
        ours |= {3001: 0.125}
        theirs = {1: 0.375} | theirs
    return ours, theirs


def smallest_rank(differences: dict[int, tuple[float, float]]) -> int:
    return min(rank for rank, (low, _) in differences.items() if low <= 0)


def _best(differences) -> int:
    return next(rank for rank, pair in differences.items() if pair == (0.0, 0.0))


def _strictly_below(differences, default=None):
    return min((rank for rank, (low, _) in differences.items() if low < 0), default=default)


def _ranks_case(generator: torch.Generator, number: int):
    """{rank: interval of its loss minus the best rank's}, unsorted; the best's own is (0, 0)."""
    ranks = [1, 2, 4, 8, 16, 32, 64]
    best = ranks[2 + number % 5]
    found = {}
    for rank in ranks:
        mean, half = 0.4 * abs(math.log2(rank / best)) / 6, 0.02 + 0.1 * torch.rand(1, generator=generator).item()
        found[rank] = (round(mean - half, 3), round(mean + half, 3))
    found[best] = (0.0, 0.0)
    found[ranks[0]] = (0.001 if number % 3 else 0.05, 0.4)
    if number in (2, 6):  # here the best is the smallest, and larger ones are as good
        found |= {rank: (0.001 * rank, 0.3) for rank in ranks if rank < best}
        found[ranks[-1]] = (-0.02, 0.07)
    if number == 4:
        found[ranks[1]] = (0.0, 0.25)  # just not shown
    if number % 2:
        found[ranks[1]] = (-0.3, -0.01)  # lower than the best mean in every pair it has: certainly as good
    order = torch.randperm(len(ranks), generator=generator).tolist()
    return ({ranks[i]: found[ranks[i]] for i in order},)


EXERCISES = (
    Exercise(
        "seed-interval",
        _results_case,
        seed_interval,
        (
            Misconception(
                "That takes the spread with n in its denominator. With the mean estimated from the same few numbers it "
                "comes out too small; `statistics.stdev` divides by n - 1. Open hint 1.",
                _interval_with(statistics.pstdev),
            ),
            Misconception(
                "That is where single runs fall, not their mean: the mean of n runs spreads by √n less. Open hint 2.",
                _interval_with(statistics.stdev, root=lambda n: 1),
            ),
            Misconception(
                "That uses 1.96, which is right for many runs. Three runs know their own spread badly, and t is what "
                "pays for it. Open hint 3.",
                _interval_with(statistics.stdev, quantile=lambda t: 1.96),
            ),
            Misconception(
                "You look t up by the number of results. Use the one that you are given: it may be for 99 %. "
                "Open hint 3.",
                lambda results, t: seed_interval(results, T_95[len(results)]),
            ),
            Misconception(
                "That divides by n, not by its root. Open hint 2.", _interval_with(statistics.stdev, root=lambda n: n)
            ),
        ),
        tolerance=1e-9,
    ),
    Exercise(
        "paired",
        _pairs_case,
        paired,
        (
            Misconception(
                "The signs are the other way round: ours minus theirs.",
                lambda ours, theirs: paired(theirs, ours),
            ),
            Misconception(
                "These are differences of runs that stand at the same place in the two dictionaries; their seeds "
                "differ. Look them up by seed. Open hint 1.",
                lambda ours, theirs: [a - b for a, b in zip(ours.values(), theirs.values(), strict=False)],
            ),
            Misconception(
                "A seed that only one side has got a partner out of thin air (zero). Leave it out. Open hint 2.",
                lambda ours, theirs: [
                    ours.get(s, 0.0) - theirs.get(s, 0.0) for s in sorted(ours.keys() | theirs.keys())
                ],
            ),
            *(
                Misconception(
                    "These are the right differences, but not in the order of the seeds, smallest first. Open hint 2.",
                    ordered,
                )
                for ordered in (
                    lambda ours, theirs: [ours[seed] - theirs[seed] for seed in ours if seed in theirs],
                    lambda ours, theirs: [ours[seed] - theirs[seed] for seed in theirs if seed in ours],
                    lambda ours, theirs: [ours[s] - theirs[s] for s in sorted(ours.keys() & theirs.keys(), key=str)],
                    lambda ours, theirs: sorted(paired(ours, theirs)),
                    lambda ours, theirs: paired(ours, theirs)[::-1],
                )
            ),
            Misconception(
                "The differences have lost their signs. Who is better, and how often, is what they are there to tell.",
                lambda ours, theirs: [abs(difference) for difference in paired(ours, theirs)],
            ),
            Misconception(
                "That is the difference of the means. The point of pairing is to keep one difference for each seed.",
                lambda ours, theirs: [statistics.mean(ours.values()) - statistics.mean(theirs.values())],
            ),
        ),
        tolerance=1e-9,
    ),
    Exercise(
        "smallest-rank",
        _ranks_case,
        smallest_rank,
        (
            Misconception(
                "That is the rank of the best mean. The question is which smaller one the seeds do not tell from it. "
                "Open hint 1.",
                lambda differences: _best(differences),
            ),
            Misconception(
                "An interval that lies below zero says that this rank is *better* than the best mean. Of course it "
                "qualifies: ask only whether it is clearly worse. Open hint 2.",
                lambda differences: min(rank for rank, (low, high) in differences.items() if low <= 0 <= high),
            ),
            *(
                Misconception(
                    "An interval that begins at zero does not lie above it: `low <= 0`. The rank of the best "
                    "mean, with the interval (0, 0), qualifies as well. Open hint 2.",
                    strict,
                )
                for strict in (_strictly_below, lambda differences: _strictly_below(differences, _best(differences)))
            ),
            *(
                Misconception(
                    "You ask whether the middle or the upper end lies above zero. Shown to be worse is a rank whose "
                    "whole interval does. Open hint 1.",
                    other_end,
                )
                for other_end in (
                    lambda differences: min(rank for rank, (low, high) in differences.items() if low + high <= 0),
                    lambda differences: min(rank for rank, (_, high) in differences.items() if high <= 0),
                )
            ),
            Misconception(
                "That is the first in the dictionary's order; ranks need not be sorted. Open hint 3.",
                lambda differences: next(rank for rank, (low, _) in differences.items() if low <= 0),
            ),
            Misconception(
                "That is the largest such rank. The smallest costs least.",
                lambda differences: max(rank for rank, (low, _) in differences.items() if low <= 0),
            ),
        ),
    ),
)
