"""Wrong answers to the exercises of notebook 07."""

import math
import statistics

from wrong_answers import wrong


@wrong("seed-interval", says="n in its denominator")
def numpy_default(results, t):
    mean = sum(results) / len(results)
    spread = (sum((x - mean) ** 2 for x in results) / len(results)) ** 0.5
    half = t * spread / len(results) ** 0.5
    return mean - half, mean + half


@wrong("seed-interval", says="where single runs fall")
def of_single_runs(results, t):
    mean, half = statistics.mean(results), t * statistics.stdev(results)
    return mean - half, mean + half


@wrong("seed-interval", says="right for many runs")
def gaussian(results, t):
    mean, half = statistics.mean(results), 1.96 * statistics.stdev(results) / math.sqrt(len(results))
    return mean - half, mean + half


@wrong("seed-interval", says="by n, not by its root")
def root_forgotten(results, t):
    mean, half = statistics.mean(results), t * statistics.stdev(results) / len(results)
    return mean - half, mean + half


@wrong("paired", says="the other way round")
def turned(ours, theirs):
    return [theirs[seed] - ours[seed] for seed in sorted(set(ours) & set(theirs))]


@wrong("paired", says="same place in the two dictionaries")
def zipped(ours, theirs):
    return [a - b for a, b in zip(ours.values(), theirs.values())]  # noqa: B905


@wrong("paired", says="out of thin air")
def missing_is_zero(ours, theirs):
    return [ours.get(s, 0.0) - theirs.get(s, 0.0) for s in sorted(set(ours) | set(theirs))]


@wrong("paired", says="difference of the means")
def of_means(ours, theirs):
    return [statistics.mean(ours.values()) - statistics.mean(theirs.values())]


@wrong("smallest-rank", says="rank of the best mean")
def the_best(differences):
    return next(rank for rank, (low, high) in differences.items() if low == high == 0)


@wrong("smallest-rank", says="is *better* than the best mean")
def contains_zero(differences):
    return min(rank for rank, (low, high) in differences.items() if low <= 0 <= high)


@wrong("smallest-rank", says="dictionary's order")
def first_found(differences):
    for rank, (low, _) in differences.items():
        if low <= 0:
            return rank


@wrong("smallest-rank", says="largest such rank")
def largest(differences):
    return max(rank for rank, (low, _) in differences.items() if low <= 0)


@wrong("seed-interval", says="Use the one that you are given")
def t_looked_up(results, t):
    t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 10: 2.262}[len(results)]
    mean, half = statistics.mean(results), t * statistics.stdev(results) / math.sqrt(len(results))
    return mean - half, mean + half


@wrong("seed-interval", says="its middle is not the median")
def around_the_median(results, t):
    middle, half = statistics.median(results), t * statistics.stdev(results) / math.sqrt(len(results))
    return middle - half, middle + half


@wrong("paired", says="not in the order of the seeds")
def in_our_order(ours, theirs):
    return [value - theirs[seed] for seed, value in ours.items() if seed in theirs]


@wrong("paired", says="not in the order of the seeds")
def sorted_as_texts(ours, theirs):
    return [ours[int(s)] - theirs[int(s)] for s in sorted(str(seed) for seed in ours if seed in theirs)]


@wrong("paired", says="differ")
def a_set_has_no_order(ours, theirs):
    return [ours[seed] - theirs[seed] for seed in set(ours) & set(theirs)]


@wrong("paired", says="lost their signs")
def magnitudes(ours, theirs):
    return [abs(ours[seed] - theirs[seed]) for seed in sorted(set(ours) & set(theirs))]


@wrong("smallest-rank", says="begins at zero does not lie above it")
def strictly_below(differences):
    return min((rank for rank, (low, _) in differences.items() if low < 0), default=None)


@wrong("smallest-rank", says="begins at zero does not lie above it")
def best_only_if_alone(differences):
    below = [rank for rank, (low, _) in differences.items() if low < 0]
    return min(below) if below else next(rank for rank, pair in differences.items() if pair == (0, 0))


@wrong("smallest-rank", says="whole interval does")
def by_the_middle(differences):
    return min(rank for rank, (low, high) in differences.items() if (low + high) / 2 <= 0)


@wrong("smallest-rank", says="instead of")
def with_a_tolerance(differences):
    return min(rank for rank, (low, _) in differences.items() if low <= 0.01)


@wrong("not-dominated", says="strictly less")
def strict_in_both(conditions):
    return sorted(n for n, (s, x) in conditions.items() if not any(a < s and b < x for a, b in conditions.values()))


@wrong("not-dominated", says="both are gone")
def twins_lost(conditions):
    kept = []
    for n, (s, x) in conditions.items():
        if all(m == n or a > s or b > x for m, (a, b) in conditions.items()):
            kept.append(n)
    return sorted(kept)


@wrong("not-dominated", says="best at one thing each")
def extremes(conditions):
    size, loss = min(s for s, _ in conditions.values()), min(x for _, x in conditions.values())
    return sorted(n for n, (s, x) in conditions.items() if s == size or x == loss)


@wrong("tokens-for-share", says="leaves out")
def no_fixed_part(decoding, fixed, per_token, share):
    return max(1, math.ceil(decoding / share / per_token))


@wrong("tokens-for-share", says="counts decoding twice")
def decoding_on_top(decoding, fixed, per_token, share):
    return max(1, math.ceil((decoding / share - decoding - fixed) / per_token))


@wrong("tokens-for-share", says="Rounded down")
def truncated(decoding, fixed, per_token, share):
    return max(1, int((decoding / share - fixed) / per_token))


@wrong("tokens-for-share", says="is not positive")
def unbounded(decoding, fixed, per_token, share):
    return math.ceil((decoding / share - fixed) / per_token)


@wrong("not-dominated", says="One of two equal ones is gone")
def sweeps_once(conditions):
    kept, least = [], math.inf
    for name, (_, loss) in sorted(conditions.items(), key=lambda item: item[1]):
        if loss < least:
            kept.append(name)
            least = loss
    return sorted(kept)


@wrong("not-dominated", says="return their names sorted")
def as_they_stand(conditions):
    points = conditions.values()
    return [n for n, (s, x) in conditions.items() if not any(a <= s and b <= x and (a, b) != (s, x) for a, b in points)]


@wrong("not-dominated", says="values instead of")
def least_product(conditions):
    least = min(s * x for s, x in conditions.values())
    return sorted(n for n, (s, x) in conditions.items() if s * x == least)


@wrong("tokens-for-share", says="nearest whole number")
def rounded(decoding, fixed, per_token, share):
    return max(1, round((decoding / share - fixed) / per_token))


@wrong("tokens-for-share", says="a token too many")
def one_added(decoding, fixed, per_token, share):
    return max(1, int((decoding / share - fixed) / per_token) + 1)


@wrong("choose-rate", says="called chosen wherever it lies")
def the_best_as_it_is(losses):
    return min(losses, key=lambda rate: losses[rate]), True


@wrong("choose-rate", says="the rate to *try next* is wanted")
def only_whether(losses):
    rates = sorted(losses, key=losses.get)
    return rates[0], rates[0] not in (min(losses), max(losses))


@wrong("choose-rate", says="order in which it was filled")
def ends_of_the_dictionary(losses):
    best, rates = min(losses, key=losses.get), list(losses)
    if best == rates[0]:
        return best / 2, False
    return (best * 2, False) if best == rates[-1] else (best, True)


@wrong("choose-rate", says="You go inwards")
def inwards(losses):
    best = min(losses, key=losses.get)
    if best == min(losses):
        return 2 * best, False
    return (best / 2, False) if best == max(losses) else (best, True)


@wrong("choose-rate", says="an even higher one may be better")
def only_below(losses):
    best = min(losses, key=losses.get)
    return (best / 2, False) if best == min(losses) else (best, True)


@wrong("choose-rate", says="value")
def always_a_tuple_of_loss(losses):
    loss, rate = min((loss, rate) for rate, loss in losses.items())
    return loss, min(losses) < rate < max(losses)
