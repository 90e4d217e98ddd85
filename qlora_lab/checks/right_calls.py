"""Exercise of notebook 06 about the score: when the calls that a model said are those that were wanted."""

import operator
from collections.abc import Callable

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def _number(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=generator))


def _changed(call: dict, **arguments) -> dict:
    return {"name": call["name"], "arguments": {**call["arguments"], **arguments}}


def _without(call: dict, name: str) -> dict:
    return {"name": call["name"], "arguments": {k: v for k, v in call["arguments"].items() if k != name}}


# What a model said, given the two calls that were wanted. Each differs in one thing, or in nothing that counts.
KINDS: tuple[Callable[[dict, dict], list | None], ...] = (
    lambda timer, add: [timer, add],
    lambda timer, add: None,
    lambda timer, add: [timer, _changed(add, count=True)],  # true is not 1
    lambda timer, add: [add, timer],
    lambda timer, add: [_changed(timer, minutes=float(timer["arguments"]["minutes"])), add],  # 5.0 is 5
    lambda timer, add: [timer, _changed(add, room="kitchen")],
    lambda timer, add: [timer],
    lambda timer, add: [{"arguments": dict(reversed(timer["arguments"].items())), "name": "timer"}, add],
    lambda timer, add: [_changed(timer, minutes=timer["arguments"]["minutes"] + 1), add],
    lambda timer, add: [{**timer, "name": "alarm"}, add],
    lambda timer, add: [_without(timer, "label"), add],
    lambda timer, add: [timer, add, add],
    lambda timer, add: [_changed(timer, label="coffee"), add],
    lambda timer, add: [timer, _changed(add, shelf=False)],  # nor is false 0 ...
    lambda timer, add: [_changed(timer, repeat=1), add],  # ... or 1 true
    lambda timer, add: [_changed(timer, minutes=timer["arguments"]["minutes"] + 0.5), add],
    lambda timer, add: [timer, _changed(add, count="1")],
    lambda timer, add: [_changed(timer, label="Tea"), add],
)


def _calls(generator: torch.Generator, number: int):
    """What a model said (calls, or None), and what was wanted."""
    timer = {"name": "timer", "arguments": {"minutes": _number(generator, 2, 90), "label": "tea", "repeat": True}}
    add = {"name": "add", "arguments": {"item": "eggs", "count": 1, "shelf": 0}}
    if number == len(KINDS):
        return None, []  # that nothing was wanted does not make it right
    return KINDS[number](timer, add), [timer, add]


def _same(one, other) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _matching(names=True, fewer=False, more=False, lacking=False, further=False, same=_same):
    """The comparison that lets pass what is named: fewer or more calls, arguments that are lacking or further ones."""

    def match(said, wanted) -> bool:
        if said is None or (len(said) < len(wanted) and not fewer) or (len(said) > len(wanted) and not more):
            return False
        for one, other in zip(said, wanted, strict=False):
            given, right = one["arguments"], other["arguments"]
            if names and one["name"] != other["name"]:
                return False
            if (right.keys() - given.keys() and not lacking) or (given.keys() - right.keys() and not further):
                return False
            if not all(same(given[name], right[name]) for name in given.keys() & right.keys()):
                return False
        return True

    return match


calls_match = _matching()


def _in_any_order(said, wanted):
    return said is not None and len(said) == len(wanted) and all(call in said for call in wanted)


def _only_names(said, wanted):
    return said is not None and [call["name"] for call in said] == [call["name"] for call in wanted]


def _as_numbers(one, other) -> bool:
    try:
        return isinstance(one, bool) == isinstance(other, bool) and float(one) == float(other)
    except ValueError:
        return one == other


def _whole(one, other) -> bool:
    return _same(*(int(value) if isinstance(value, float) else value for value in (one, other)))


def _lower(one, other) -> bool:
    return _same(*(value.lower() if isinstance(value, str) else value for value in (one, other)))


def _texts_where_wanted(one, other) -> bool:
    return isinstance(other, str) or _same(one, other)


def _texts_where_said(one, other) -> bool:
    return isinstance(one, str) or _same(one, other)


def _texts_on_both_sides(one, other) -> bool:
    return (isinstance(one, str) and isinstance(other, str)) or _same(one, other)


def _what_differs(said, wanted) -> str:
    if said is None:
        return f"The answer is None, and {wanted!r} is wanted" if not wanted else "The answer is None"
    if len(said) != len(wanted):
        return (
            f"The answer has {len(said)} of {len(wanted)} calls"
            if len(said) < len(wanted)
            else "The answer has a call too many"
        )
    for number, (one, other) in enumerate(zip(said, wanted, strict=True), 1):
        if one["name"] != other["name"]:
            return f"Call {number} is to {one['name']!r} where {other['name']!r} is wanted"
        given, right = one["arguments"], other["arguments"]
        for name in (*right, *given):
            if name not in given or name not in right:
                return f"Call {number} {'lacks' if name in right else 'has a further'} argument {name!r}"
            if repr(given[name]) != repr(right[name]):  # 5.0 and 5 are shown, equal as they are
                return f"Call {number} has {name} = {given[name]!r} where {right[name]!r} is wanted"
    return "Calls are as wanted" + (", with keys in another order" if repr(said) != repr(wanted) else "")


def _describe(arguments: tuple, result, expected) -> str:
    return f"{_what_differs(*arguments)}: your function returned {result!r} instead of {expected!r}."


def _lets_pass(message: str, **what) -> tuple[Misconception, ...]:
    """With values compared as they should be, and by `==` alone."""
    return tuple(Misconception(message, _matching(**what, same=same)) for same in (_same, operator.eq))


ONE_SIDE = (
    "You ask for a bool in one direction only: `true` for 1, 1 for `true` and `false` for 0 are all wrong. Ask on both "
    "sides, and compare. Open hint 2."
)

EXERCISES = (
    Exercise(
        "calls-match",
        _calls,
        calls_match,
        (
            Misconception(
                "In Python `True == 1`, so the answer `true` passes for 1, and someone buys `true` eggs. Open hint 2.",
                _matching(same=operator.eq),
            ),
            Misconception(
                "Compared as texts, the order of keys and 5.0 instead of 5 count as errors. Open hint 1.",
                lambda said, wanted: str(said) == str(wanted),
            ),
            Misconception(
                "The order of calls is ignored; they are carried out one after the other. Open hint 1.", _in_any_order
            ),
            *_lets_pass(
                "An answer with further arguments passes. Names, arguments and values must be exactly those wanted. "
                "Open hint 3.",
                further=True,
            ),
            *_lets_pass(
                "An answer passes that lacks a call or has further arguments: `zip` stops at the shorter one. "
                "Open hint 3.",
                fewer=True,
                more=True,
                further=True,
            ),
            *_lets_pass(
                "An answer with a call too few or too many passes: `zip` stops at the shorter one. Compare the number "
                "of calls first. Open hint 3.",
                fewer=True,
                more=True,
            ),
            *_lets_pass("An answer with a call too many passes. Compare the number of calls. Open hint 3.", more=True),
            *_lets_pass("An answer with a call too few passes. Compare the number of calls. Open hint 3.", fewer=True),
            *_lets_pass(
                "An answer that lacks an argument passes. Compare the keys before you go through them. Open hint 3.",
                lacking=True,
            ),
            *_lets_pass(
                "The names of the functions are not compared: an alarm passes for a timer. Open hint 3.", names=False
            ),
            Misconception("Only the names of the functions are compared. Open hint 3.", _only_names),
            *(
                Misconception(
                    "Texts are not compared: any label passes for any other. Open hint 2.", _matching(same=same)
                )
                for same in (_texts_where_wanted, _texts_where_said, _texts_on_both_sides)
            ),
            Misconception(
                ONE_SIDE, _matching(same=lambda one, other: one == other and not (one is True and other is not True))
            ),
            Misconception(
                ONE_SIDE,
                _matching(same=lambda one, other: one == other and isinstance(one, bool) <= isinstance(other, bool)),
            ),
            Misconception(
                ONE_SIDE,
                _matching(same=lambda one, other: one == other and isinstance(one, bool) >= isinstance(other, bool)),
            ),
            Misconception(
                "5 and 5.0 are the same number, of two types. Ask whether values are bool, not whether their types are "
                "equal. Open hint 2.",
                _matching(same=lambda one, other: type(one) is type(other) and one == other),
            ),
            Misconception(
                "A `true` is always wrong in your answer, also where `true` is wanted. Open hint 2.",
                _matching(same=lambda one, other: not isinstance(one, bool) and one == other),
            ),
            Misconception("Numbers are cut to whole ones: 5.5 passes for 5.", _matching(same=_whole)),
            Misconception('A text is no number: "1" must not pass for 1.', _matching(same=_as_numbers)),
            Misconception(
                "Upper and lower case are different texts; compare them as they are.", _matching(same=_lower)
            ),
            Misconception(
                "An answer that was no JSON, None, passes where no call is wanted. It is never right.",
                lambda said, wanted: calls_match(said or [], wanted),
            ),
        ),
        describe=_describe,
        cases=len(KINDS) + 1,
    ),
)
