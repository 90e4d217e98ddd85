"""Exercises of notebook 07: intervals, pairing, a rate, the smallest rank, what is worth choosing, cheap decoding."""

import math
import statistics

import torch

from qlora_lab.checks.exercise import Exercise, Misconception, draw_integers, edits


def seed_interval(results: list[float], t: float) -> tuple[float, float]:
    mean = statistics.mean(results)
    half = t * statistics.stdev(results) / math.sqrt(len(results))
    return mean - half, mean + half


def _draw_results(generator: torch.Generator, count: int) -> list[float]:
    return [round(x, 3) for x in torch.rand(count, generator=generator).tolist()]


T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 10: 2.262}
T_99 = {2: 63.657, 3: 9.925, 4: 5.841, 5: 4.604, 6: 4.032, 10: 3.250}


def _results_case(generator: torch.Generator, number: int):
    """In every second case t is that for 99 %, so that it does not follow from the number of results."""
    count = (3, 2, 5, 3, 4, 10, 3, 6)[number % 8]
    return _draw_results(generator, count), (T_99 if number % 2 else T_95)[count]


def paired(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    seeds = sorted(ours.keys() & theirs.keys())
    return [ours[s] - theirs[s] for s in seeds]


def _pairs_case(generator: torch.Generator, number: int):
    """Seeds in different orders; from the third case on each side has one that the other lacks."""
    count = 3 + number % 4
    order = (torch.randperm(2000, generator=generator)[:count] + 2).tolist()  # neither 3 digits each nor one
    order[0] = number + 2
    ours = dict(zip(order, _draw_results(generator, count), strict=True))
    theirs = dict(zip(reversed(order), _draw_results(generator, count), strict=True))
    if number >= 2:
        ours |= {3001: 0.125}
        theirs = {1: 0.375} | theirs
    return ours, theirs


def choose_rate(losses: dict[float, float]) -> tuple[float, bool]:
    best = min(losses, key=losses.get)
    if best == min(losses):
        return best / 2, False
    if best == max(losses):
        return 2 * best, False
    return best, True


def _rates_case(generator: torch.Generator, number: int):
    """Rates a factor of two apart; the best lies inside, at the lowest or at the highest, by turns. In the dictionary's
    order the best stands first or last where it lies inside, and the lowest and the highest rate never do."""
    count = 5 + number % 3
    lowest = 2.0 ** -(8 + number % 4)
    best = (1 + number % (count - 2), 0, count - 1)[number % 3]
    rates = [lowest * 2**i for i in range(count)]
    noise = torch.rand(count, generator=generator).tolist()
    losses = [round(1 + 0.3 * abs(i - best) + 0.2 * x, 3) for i, x in enumerate(noise)]
    first, last = [i for i in range(1, count - 1) if i != best][:2]
    if best not in (0, count - 1):
        first, last = (first, best) if number % 2 else (best, first)
    between = [i for i in range(count) if i not in (first, last)]
    order = [between[i] for i in torch.randperm(len(between), generator=generator).tolist()]
    return ({rates[i]: losses[i] for i in (first, *order, last)},)


def _turned_round(losses: dict[float, float]) -> tuple[float, bool]:
    rate, chosen = choose_rate(losses)
    best = min(losses, key=losses.get)
    return (rate, True) if chosen else (best * best / rate, False)


def _ends_of_the_dictionary(losses: dict[float, float]) -> tuple[float, bool]:
    best, (first, *_, last) = min(losses, key=losses.get), losses
    if best == first:
        return best / 2, False
    return (2 * best, False) if best == last else (best, True)


def smallest_rank(differences: dict[int, tuple[float, float]]) -> int:
    not_worse = [rank for rank, (low, high) in differences.items() if low <= 0]
    return min(not_worse)


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


def not_dominated(conditions: dict[str, tuple[int, float]]) -> list[str]:
    def beaten(size, loss):
        return any(s <= size and x <= loss and (s, x) != (size, loss) for s, x in conditions.values())

    return sorted(name for name, point in conditions.items() if not beaten(*point))


def _front_case(generator: torch.Generator, number: int):
    """Some have equal bytes, some equal losses, two are the same point, and what is worth choosing is several."""
    sizes, losses = (draw_integers(generator, 3, 12, 5 + number) for _ in range(2))
    points = {f"c{i}": (100 * size, loss / 10) for i, (size, loss) in enumerate(zip(sizes, losses, strict=True))}
    points |= {"twin": (300, 0.6), "other twin": (300, 0.6), "large": (1200, 0.2), "larger": (1300, 0.2)}
    return (points | {"as large": (1200, 0.4), "small": (100, 1.2), "middle": (600, 0.3)},)


def tokens_for_share(decoding: float, fixed: float, per_token: float, share: float) -> int:
    tokens = (decoding / share - fixed) / per_token
    return max(1, math.ceil(tokens))


def _tokens_case(generator: torch.Generator, number: int):
    """In fractions of two, so that nothing is rounded. What is left of a token is little, much or nothing; the last
    case needs no more than one token."""
    a, b, c = draw_integers(generator, 1, 40, 3)
    if number % 8 == 7:
        return 1 / 64, 4.0, 1 / 64, 0.25
    decoding, per_token, share = (8 + a) / 64, (1 + c) / 1024, (0.125, 0.25, 0.0625)[number % 3]
    most = int((decoding / share - decoding) / per_token)  # beyond that, `fixed` would be less than decoding
    tokens = max(1, most - b) - (0.75, 0.25, 0.0)[number // 2 % 3]
    return decoding, decoding / share - tokens * per_token, per_token, share


EXERCISES = (
    Exercise(
        "seed-interval",
        _results_case,
        seed_interval,
        edits("""
            statistics.stdev → statistics.pstdev
            1: That takes the spread with n in its denominator. With the mean estimated from the same few numbers it
               comes out too small; `statistics.stdev` divides by n - 1.

            statistics.stdev(results) / math.sqrt(len(results)) → statistics.stdev(results)
            2: That is where single runs fall, not their mean: the mean of n runs spreads by √n less.

            t * statistics → 1.96 * statistics
            3: That uses 1.96, which is right for many runs. Three runs know their own spread badly, and t is what pays
               for it.

            t * statistics → T_95[len(results)] * statistics
            3: You look t up by the number of results. Use the one that you are given: it may be for 99 %.

            math.sqrt(len(results)) → len(results)
            2: That divides by n, not by its root.

            math.sqrt(len(results)) → math.sqrt(len(results) - 1)
            2: The root is of n, not of n - 1. (It is the variance that is divided by n - 1, and `statistics.stdev` does
               that.)

            return mean - half, mean + half → return mean, half
            -: These are the mean and half of the interval; its two ends are wanted, low and high.

            return mean - half, mean + half → return min(results), max(results)
            -: These are the smallest and the largest result; the interval of the *mean* is wanted.

            statistics.mean(results) → statistics.median(results)
            -: The interval is that of the mean; its middle is not the median.

            t * statistics.stdev(results) → t * statistics.variance(results)
            1: That is the variance; the deviation is its root.

            t * statistics.stdev(results) → statistics.stdev(results)
            3: The factor t is missing.

            return mean - half, mean + half → return mean - half / 2, mean + half / 2
            -: That is half of the interval: t times the standard error to *each* side.

            statistics.stdev(results) / math.sqrt(len(results)) → math.sqrt(statistics.stdev(results) / len(results))
            2: The root is taken of the deviation as well; it is of n only. (Of the variance over n, it would be right.)
        """),
        tolerance=1e-5,
    ),
    Exercise(
        "paired",
        _pairs_case,
        paired,
        edits("""
            ours[s] - theirs[s] → theirs[s] - ours[s]
            -: The signs are the other way round: ours minus theirs.

            ours[s] - theirs[s] for s in seeds → a - b for a, b in zip(ours.values(), theirs.values())
            1: These are differences of runs that stand at the same place in the two dictionaries; their seeds differ.
               Look them up by seed.

            ours[s] - theirs[s] for s in seeds → ours.get(s, 0) - theirs.get(s, 0) for s in sorted(ours | theirs)
            2: A seed that only one side has got a partner out of thin air (zero). Leave it out.

            sorted(ours.keys() & theirs.keys()) → [s for s in ours if s in theirs]
            sorted(ours.keys() & theirs.keys()) → [s for s in theirs if s in ours]
            sorted(ours.keys() & theirs.keys()) → sorted(ours.keys() & theirs.keys(), key=str)
            [ours[s] - theirs[s] for s in seeds] → sorted(ours[s] - theirs[s] for s in seeds)
            for s in seeds → for s in reversed(seeds)
            2: These are the right differences, but not in the order of the seeds, smallest first.

            ours[s] - theirs[s] → abs(ours[s] - theirs[s])
            -: The differences have lost their signs. Who is better, and how often, is what they are there to tell.

            ours[s] - theirs[s] for s in seeds → statistics.mean(ours.values()) - statistics.mean(theirs.values())
            -: That is the difference of the means. The point of pairing is to keep one difference for each seed.

            ours[s] - theirs[s] → ours[s] / theirs[s]
            -: These are quotients; differences are wanted.

            return [ours[s] - theirs[s] for s in seeds] → return dict((s, ours[s] - theirs[s]) for s in seeds)
            -: The differences are right, and come with their seeds: give them alone, as a list.
        """),
        tolerance=1e-4,
    ),
    Exercise(
        "choose-rate",
        _rates_case,
        choose_rate,
        (
            *edits("""
            min(losses, key=losses.get) → min(losses, key=losses.get); return best, True
            2: That is the rate of least loss, called chosen wherever it lies. At either end of what was tried there may
               be a better one beyond.

            min(losses, key=losses.get) → min(losses, key=losses.get); return best, min(losses) < best < max(losses)
            3: Whether it is chosen is right. Where it is not, the rate to *try next* is wanted: the next one beyond
               that end.

            min(losses, key=losses.get) → max(losses, key=losses.get)
            1: You start from the rate of the highest loss.

            min(losses, key=losses.get) → min(losses.values())
            1: You start from the least loss, where the rate that it belongs to is wanted.

            best == min(losses) → best == next(iter(losses))
            best == max(losses) → best == list(losses)[-1]
            2: A dictionary has the order in which it was filled. The ends meant here are the lowest and the highest
               rate.

            if best == min(losses) → if False
            2: Where the lowest rate is the best, an even lower one may be better still.

            if best == max(losses) → if False
            2: Where the highest rate is the best, an even higher one may be better still.

            return best / 2, False → return 2 * best, False
            return 2 * best, False → return best / 2, False
            3: At one end you go inwards, to a rate that was tried already: beyond the lowest means half of it, beyond
               the highest twice.

            return best, True → return best, False
            -: Where the best lies between others it is chosen: True.
            """),
            Misconception(
                "You go inwards, to a rate that was tried already: beyond the lowest means half of it, beyond the "
                "highest twice.",
                3,
                function=_turned_round,
            ),
            Misconception(
                "A dictionary has the order in which it was filled. The ends meant here are the lowest and the highest "
                "rate.",
                2,
                function=_ends_of_the_dictionary,
            ),
        ),
        tolerance=1e-6,
    ),
    Exercise(
        "smallest-rank",
        _ranks_case,
        smallest_rank,
        edits("""
            low <= 0 → low == high == 0
            1: That is the rank of the best mean. The question is which smaller one the seeds do not tell from it.

            low <= 0 → low <= 0 <= high
            2: An interval that lies below zero says that this rank is *better* than the best mean. Of course it
               qualifies: ask only whether it is clearly worse.

            low <= 0] → low < 0] or [None]
            low <= 0] → low < 0] or [rank for rank, interval in differences.items() if interval == (0, 0)]
            2: An interval that begins at zero does not lie above it: `low <= 0`. The rank of the best mean, with the
               interval (0, 0), qualifies as well.

            low <= 0 → low + high <= 0
            low <= 0 → high <= 0
            1: You ask whether the middle or the upper end lies above zero. Shown to be worse is a rank whose whole
               interval does.

            min(not_worse) → not_worse[0]
            3: That is the first in the dictionary's order; ranks need not be sorted.

            min(not_worse) → max(not_worse)
            -: That is the largest such rank. The smallest costs least.

            min(not_worse) → min(differences)
            1: That is the smallest rank there is, whatever its interval says. Leave out those that are clearly worse.

            low <= 0] → low < 0] or [min(differences)]
            low <= 0] → low < 0 or low == high]
            2: An interval that begins at zero does not lie above it: `low <= 0`. The rank of the best mean, with the
               interval (0, 0), qualifies as well.
        """),
    ),
    Exercise(
        "not-dominated",
        _front_case,
        not_dominated,
        edits("""
            s <= size and x <= loss and (s, x) != (size, loss) → s < size and x < loss
            1: That wants both to be strictly less. One of equal bytes and lower loss beats another as well.

            (s, x) != (size, loss) → ((s, x) != (size, loss) or list(conditions.values()).count((s, x)) > 1)
            2: Two equal conditions beat each other here, and both are gone. Equal is not better.

            not beaten(*point) → any(x == min(column) for x, column in zip(point, zip(*conditions.values())))
            -: That keeps the best at one thing each: fewest bytes or least loss. What lies between is worth having.

            in conditions.items() → in {p: (n, p) for n, p in reversed(conditions.items())}.values()
            in conditions.items() → in {p: (n, p) for n, p in sorted(conditions.items(), reverse=True)}.values()
            2: One of two equal ones is gone; neither beats the other.

            return sorted( → return list(
            -: Those are the right ones; return their names sorted.

            if not beaten → if beaten
            -: Those are the ones that are beaten. Return the others.

            x <= loss and → x >= loss and
            -: A higher loss counts as better here; less is better, of bytes and of loss.

            s <= size and x → s >= size and x
            -: More bytes count as better here; less is better, of bytes and of loss.

            not beaten(*point) → point[1] == min(x for _, x in conditions.values())
            -: That keeps the best at one thing alone. A condition with less memory may be worth its higher loss.
        """),
    ),
    Exercise(
        "tokens-for-share",
        _tokens_case,
        tokens_for_share,
        edits("""
            decoding / share - fixed → decoding / share
            1: That leaves out what a step takes however few its tokens are.

            decoding / share - fixed → decoding / share - decoding - fixed
            1: That counts decoding twice: `fixed` has it already.

            math.ceil(tokens) → math.floor(tokens)
            2: Rounded down: with that many tokens the share is still a little above.

            math.ceil(tokens) → round(tokens)
            2: That is the nearest whole number, which may be a token too few: round up.

            math.ceil(tokens) → math.floor(tokens) + 1
            2: Rounding down and adding one gives a token too many where the division leaves no remainder: `math.ceil`.

            max(1, math.ceil(tokens)) → math.ceil(tokens)
            3: Where decoding is cheap from the first token on, your number is not positive.

            decoding / share - fixed → decoding / share - (fixed - decoding)
            1: The share is of the whole step, in which `fixed` has the decoding already; you leave it out of that.

            tokens = → tokens = decoding / (share * per_token) - fixed; dropped =
            tokens = → tokens = decoding / share / per_token - fixed; dropped =
            1: `fixed` is a time and is subtracted from a number of tokens: subtract it before you divide by
               `per_token`.

            decoding / share - fixed → decoding * share - fixed
            1: Decoding is multiplied by the share. The step may last `decoding / share`.

            (decoding / share - fixed) / per_token → decoding / share / (fixed + per_token)
            1: That divides as if `fixed` came with every token. It comes once: subtract it, then divide by `per_token`.
        """),
    ),
)
