"""Wrong answers to the exercise of notebook 06 on right answers."""

from wrong_answers import wrong


@wrong("calls-match", says="`True == 1`")
def plain_equality(said, wanted):
    return wanted == said


@wrong("calls-match", says="Compared as texts")
def as_texts(said, wanted):
    return repr(said) == repr(wanted)


@wrong("calls-match", says="order of calls is ignored")
def any_order(said, wanted):
    return said is not None and len(said) == len(wanted) and all(call in wanted for call in said)


@wrong("calls-match", says="`zip` stops")
def wanted_is_there(said, wanted):
    if said is None:
        return False
    for one, other in zip(said, wanted, strict=False):
        if one["name"] != other["name"]:
            return False
        for key, value in other["arguments"].items():
            if one["arguments"].get(key) != value:
                return False
    return True


@wrong("calls-match", says="TypeError")
def forgets_none(said, wanted):
    return len(said) == len(wanted) and all(a == b for a, b in zip(said, wanted, strict=True))


def compare(said, wanted, names=True, number=True, keys=lambda given, right: given.keys() == right.keys(), same=None):
    """The right comparison, of which each of the following leaves something out."""
    if said is None or (number and len(said) != len(wanted)):
        return False
    for call, other in zip(said, wanted, strict=False):
        given, right = call["arguments"], other["arguments"]
        if (names and call["name"] != other["name"]) or not keys(given, right):
            return False
        for name in given.keys() & right.keys():
            if not (same or equal)(given[name], right[name]):
                return False
    return True


def equal(one, other):
    return isinstance(one, bool) == isinstance(other, bool) and one == other


@wrong("calls-match", says="names of the functions are not compared")
def any_function(said, wanted):
    return compare(said, wanted, names=False)


@wrong("calls-match", says="lacks an argument")
def goes_through_what_was_said(said, wanted):
    return compare(said, wanted, keys=lambda given, right: given.keys() <= right.keys())


@wrong("calls-match", says="too few or too many")
def number_forgotten(said, wanted):
    return compare(said, wanted, number=False)


@wrong("calls-match", says="call too many")
def enough_calls(said, wanted):
    return said is not None and len(said) >= len(wanted) and compare(said, wanted, number=False)


@wrong("calls-match", says="Texts are not compared")
def numbers_only(said, wanted):
    return compare(said, wanted, same=lambda one, other: isinstance(one, str) or equal(one, other))


@wrong("calls-match", says="in one direction only")
def true_for_one_only(said, wanted):
    return compare(said, wanted, same=lambda one, other: one == other and not (one is True and type(other) is int))


@wrong("calls-match", says="in one direction only")
def bool_where_bool_is_wanted(said, wanted):
    return compare(
        said, wanted, same=lambda one, other: one == other and (isinstance(one, bool) or not isinstance(other, bool))
    )


@wrong("calls-match", says="of two types")
def equal_types(said, wanted):
    return compare(said, wanted, same=lambda one, other: (type(one), one) == (type(other), other))


@wrong("calls-match", says="also where `true` is wanted")
def no_bools(said, wanted):
    return compare(said, wanted, same=lambda one, other: one == other and type(one) is not bool)


@wrong("calls-match", says="5.5 passes for 5")
def whole_numbers(said, wanted):
    def same(one, other):
        return equal(int(one) if type(one) is float else one, int(other) if type(other) is float else other)

    return compare(said, wanted, same=same)


@wrong("calls-match", says="Upper and lower case")
def any_case(said, wanted):
    return compare(
        said, wanted, same=lambda one, other: equal(*(str(v).lower() if type(v) is str else v for v in (one, other)))
    )


@wrong("calls-match", says="no JSON, None, passes")
def none_is_nothing(said, wanted):
    return compare(said or [], wanted)


@wrong("calls-match", says="Calls are as wanted: your function returned False")
def never(said, wanted):
    return False


@wrong("calls-match", says="Call 2 has count = True where 1 is wanted: your function returned True")
def first_call_only(said, wanted):
    return bool(said) and compare(said[:1], wanted[:1])
