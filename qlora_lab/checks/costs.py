"""Exercises of notebook 07 about costs: which conditions are worth choosing, and when decoding is cheap."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def not_dominated(conditions: dict[str, tuple[int, float]]) -> list[str]:
    def better(one, other):
        return one[0] <= other[0] and one[1] <= other[1] and one != other

    return sorted(
        name for name, point in conditions.items() if not any(better(other, point) for other in conditions.values())
    )


def _front_case(generator: torch.Generator, number: int):
    """Some have equal bytes, some equal losses, two are the same point, and what is worth choosing is several."""
    count = 5 + number
    sizes = torch.randint(3, 12, (count,), generator=generator).tolist()
    losses = torch.randint(3, 12, (count,), generator=generator).tolist()
    points = {f"c{i}": (100 * size, loss / 10) for i, (size, loss) in enumerate(zip(sizes, losses, strict=True))}
    points |= {"twin": (300, 0.6), "other twin": (300, 0.6), "large": (1200, 0.2), "larger": (1300, 0.2)}
    return (points | {"as large": (1200, 0.4), "small": (100, 1.2), "middle": (600, 0.3)},)


def _one_of_equals(conditions) -> list[str]:
    found, least = [], math.inf
    for name, (_, loss) in sorted(conditions.items(), key=lambda item: item[1]):
        if loss < least:
            found.append(name)
            least = loss
    return sorted(found)


def tokens_for_share(decoding: float, fixed: float, per_token: float, share: float) -> int:
    return max(1, math.ceil((decoding / share - fixed) / per_token))


def _tokens_case(generator: torch.Generator, number: int):
    """In fractions of two, so that nothing is rounded. What is left of a token is little, much or nothing; the last
    case needs no more than one token."""
    a, b, c = torch.randint(1, 40, (3,), generator=generator).tolist()
    if number % 8 == 7:
        return 1 / 64, 4.0, 1 / 64, 0.25
    decoding, per_token, share = (8 + a) / 64, (1 + c) / 1024, (0.125, 0.25, 0.0625)[number % 3]
    most = int((decoding / share - decoding) / per_token)  # beyond that, `fixed` would be less than decoding
    tokens = max(1, most - b) - (0.75, 0.25, 0.0)[number // 2 % 3]
    return decoding, decoding / share - tokens * per_token, per_token, share


EXERCISES = (
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
            *(
                Misconception("One of two equal ones is gone; neither beats the other. Open hint 2.", lost)
                for lost in (_one_of_equals, lambda conditions: _one_of_equals(dict(sorted(conditions.items()))))
            ),
            Misconception(
                "Those are the right ones; return their names sorted.",
                lambda conditions: [name for name in conditions if name in not_dominated(conditions)],
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
                "That is the nearest whole number, which may be a token too few: round up. Open hint 2.",
                lambda decoding, fixed, per_token, share: max(1, round((decoding / share - fixed) / per_token)),
            ),
            Misconception(
                "Rounding down and adding one gives a token too many where the division leaves no rest: `math.ceil`. "
                "Open hint 2.",
                lambda decoding, fixed, per_token, share: max(
                    1, math.floor((decoding / share - fixed) / per_token) + 1
                ),
            ),
            Misconception(
                "Where decoding is cheap from the first token on, your number is not positive. Open hint 3.",
                lambda decoding, fixed, per_token, share: math.ceil((decoding / share - fixed) / per_token),
            ),
        ),
    ),
)
