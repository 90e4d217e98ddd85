"""Wrong answers to the exercises of notebook 07 about costs."""

import math

from wrong_answers import wrong


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
