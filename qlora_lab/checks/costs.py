"""Exercises of notebook 07: intervals over seeds, pairing, which condition to choose, and when decoding is cheap."""

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


def _results_case(generator: torch.Generator, number: int):
    count = (3, 2, 5, 3, 4, 10, 3, 6)[number % 8]
    t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 10: 2.262}[count]
    return _numbers(generator, count), t


def paired(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def _pairs_case(generator: torch.Generator, number: int):
    """Seeds in different orders; from the third case on each side has one that the other lacks."""
    count = 3 + number % 4
    order = torch.randperm(count, generator=generator).tolist()
    ours = dict(zip(order, _numbers(generator, count), strict=True))
    theirs = dict(zip(reversed(order), _numbers(generator, count), strict=True))
    if number >= 2:
        ours |= {count + 5: 0.125}
        theirs = {count + 7: 0.375} | theirs
    return ours, theirs


def smallest_rank(differences: dict[int, tuple[float, float]]) -> int:
    return min(rank for rank, (low, _) in differences.items() if low <= 0)


def _ranks_case(generator: torch.Generator, number: int):
    """{rank: interval of its loss minus the best rank's}, unsorted; the best's own is (0, 0)."""
    ranks = [1, 2, 4, 8, 16, 32, 64]
    best = ranks[2 + number % 5]
    found = {}
    for rank in ranks:
        mean, half = 0.4 * abs(math.log2(rank / best)) / 6, 0.02 + 0.1 * torch.rand(1, generator=generator).item()
        found[rank] = (round(mean - half, 3), round(mean + half, 3))
    found[best] = (0.0, 0.0)
    found[ranks[0]] = (0.05, 0.4)
    if number % 2:
        found[ranks[1]] = (-0.3, -0.01)  # lower than the best mean in every pair it has: certainly as good
    order = torch.randperm(len(ranks), generator=generator).tolist()
    return ({ranks[i]: found[ranks[i]] for i in order},)


def not_dominated(conditions: dict[str, tuple[int, float]]) -> list[str]:
    def better(one, other):
        return one[0] <= other[0] and one[1] <= other[1] and one != other

    return sorted(
        name for name, point in conditions.items() if not any(better(other, point) for other in conditions.values())
    )


def _front_case(generator: torch.Generator, number: int):
    """Some have equal bytes, some equal losses, and two are the same point."""
    count = 5 + number
    sizes = torch.randint(1, 5, (count,), generator=generator).tolist()
    losses = torch.randint(1, 6, (count,), generator=generator).tolist()
    points = {f"c{i}": (100 * size, loss / 10) for i, (size, loss) in enumerate(zip(sizes, losses, strict=True))}
    return (points | {"twin": (100, 0.2), "other twin": (100, 0.2)},)


def tokens_for_share(decoding: float, fixed: float, per_token: float, share: float) -> int:
    return max(1, math.ceil((decoding / share - fixed) / per_token))


def _tokens_case(generator: torch.Generator, number: int):
    """In 64ths, so that nothing is rounded; the last case needs no more than one token."""
    a, b, c = torch.randint(1, 40, (3,), generator=generator).tolist()
    if number % 8 == 7:
        return 1 / 64, 4.0, 1 / 64, 0.25
    return (8 + a) / 64, (8 + a + b) / 64, (1 + c) / 1024, (0.125, 0.25, 0.0625)[number % 3]


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
                lambda differences: next(rank for rank, pair in differences.items() if pair == (0.0, 0.0)),
            ),
            Misconception(
                "An interval that lies below zero says that this rank is *better* than the best mean. Of course it "
                "qualifies: ask only whether it is clearly worse. Open hint 2.",
                lambda differences: min(rank for rank, (low, high) in differences.items() if low <= 0 <= high),
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
    Exercise(
        "not-dominated",
        _front_case,
        not_dominated,
        (
            Misconception(
                "That wants both to be strictly less. One of equal bytes and lower loss beats another as well. "
                "Open hint 1.",
                lambda conditions: sorted(
                    name
                    for name, (size, loss) in conditions.items()
                    if not any(s < size and x < loss for s, x in conditions.values())
                ),
            ),
            Misconception(
                "Two equal conditions beat each other here, and both are gone. Equal is not better. Open hint 2.",
                lambda conditions: sorted(
                    name
                    for name, (size, loss) in conditions.items()
                    if not any(s <= size and x <= loss for other, (s, x) in conditions.items() if other != name)
                ),
            ),
            Misconception(
                "That keeps the best at one thing each: fewest bytes or least loss. What lies between is worth having.",
                lambda conditions: sorted(
                    name
                    for name, (size, loss) in conditions.items()
                    if size == min(s for s, _ in conditions.values()) or loss == min(x for _, x in conditions.values())
                ),
            ),
            Misconception(
                "Those are the ones that are beaten. Return the others.",
                lambda conditions: sorted(conditions.keys() - set(not_dominated(conditions))),
            ),
        ),
    ),
    Exercise(
        "tokens-for-share",
        _tokens_case,
        tokens_for_share,
        (
            Misconception(
                "That leaves out what a step takes however few its tokens are. Open hint 1.",
                lambda decoding, fixed, per_token, share: max(1, math.ceil(decoding / share / per_token)),
            ),
            Misconception(
                "That counts decoding twice: `fixed` has it already. Open hint 1.",
                lambda decoding, fixed, per_token, share: max(
                    1, math.ceil((decoding / share - decoding - fixed) / per_token)
                ),
            ),
            Misconception(
                "Rounded down: with that many tokens the share is still a little above. Open hint 2.",
                lambda decoding, fixed, per_token, share: max(1, math.floor((decoding / share - fixed) / per_token)),
            ),
            Misconception(
                "Where decoding is cheap from the first token on, your number is not positive. Open hint 3.",
                lambda decoding, fixed, per_token, share: math.ceil((decoding / share - fixed) / per_token),
            ),
        ),
    ),
)
