"""What wrong results have to do with the right ones, in any exercise, in a sentence. Nothing is guessed: each relation
is compared over all inputs, and is said as what it is.

- `changed_result`: the right results, changed (transposed, in another order, times a factor, rounded).
- `other_parts`: a sum some of whose parts are missing, or counted too often.
- `other_arguments`: what is right for other arguments (one of them zero, two exchanged, some transposed).
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import torch

from qlora_lab.checks.differences import is_same, plain_number

Cases = list[tuple]  # (arguments, result, expected)
UNITS = {
    8.0: "bits, where bytes are wanted?",
    0.125: "bytes, where bits are wanted?",
    1e9: "is the division by 10^9 missing?",
    1e-9: "in GB, where bytes are wanted?",
    -1.0: "the sign is turned.",
}
OF_TENSORS = (
    (lambda right: right.transpose(-2, -1), "It is the transpose of what it should be."),
    (lambda right: right.unsqueeze(-1), "The numbers are right, but there is a dimension of 1 too many at the end."),
    (lambda right: right.unsqueeze(0), "The numbers are right, but there is a dimension of 1 too many in front."),
    (lambda right: right.flatten(), "The numbers are right, in one dimension only: give them the shape wanted."),
    (lambda right: list(right.tolist()), "The numbers are right, but in a list; a tensor is wanted."),
    (lambda right: right.numpy(), "The numbers are right, but in an array; a tensor is wanted."),
    (lambda right: right.flip(0), "It is in the opposite order."),
    (lambda right: right.flip(-1), "Each row is in the opposite order."),
    (lambda right: right.abs(), "It has lost its signs: these are the magnitudes."),
    (lambda right: right.sort().values, "They are the right ones, sorted; their order should stay."),
    (lambda right: right[1:], "The first is missing."),
    (lambda right: right[:-1], "The last is missing."),
    (lambda right: right + 1, "All are one too large."),
    (lambda right: right - 1, "All are one too small."),
    (lambda right: right.roll(1, 0), "All are one place too late."),
    (lambda right: right.roll(-1, 0), "All are one place too early."),
)
OF_NUMBERS = (
    (math.floor, "It is rounded down to a whole number."),
    (math.ceil, "It is rounded up to a whole number."),
    (abs, "It has lost its sign: these are the magnitudes."),
    (lambda right: 1 / right, "It is one over what it should be."),
    (lambda right: right**2, "It is the square of what it should be."),
    (lambda right: right**0.5, "It is the root of what it should be."),
)
OF_LISTS = (
    (lambda right: right[::-1], "It is in the opposite order."),
    (lambda right: right[1:], "The first is missing."),
    (lambda right: right[:-1], "The last is missing."),
    (lambda right: right[1:-1], "The first and the last are missing."),
    (lambda right: right[:1], "Only the first came back."),
    (lambda right: [item + 1 for item in right], "All are one too large: is it counted from 0?"),
    (lambda right: [item - 1 for item in right], "All are one too small."),
    (lambda right: [*right, right[-1] + 1], "There is one too many at the end."),
    (lambda right: [right[0] - 1, *right], "There is one too many at the beginning."),
)


def changed_result(names: list[str], cases: Cases, tolerance: float, all_values: bool = True) -> str | None:
    """A sentence on how all results follow from the right ones.

    Args:
        names: of the arguments.
        all_values: of several values, each wrong one has to follow; else one of them is enough.
    """
    rights = [expected for _, _, expected in cases]
    if all(isinstance(right, tuple) for right in rights) and len({len(right) for right in rights}) == 1:
        return _of_several(names, cases, tolerance, all_values)
    for told in (_of_anything, _of_numbers, _of_tensors, _of_lists):
        if (text := told(names, cases, tolerance)) is not None:
            return text
    return None


def _all_same(cases: Cases, change: Callable, tolerance: float) -> bool:
    """Whether each result is what `change` makes of the right one. What cannot be changed so is not."""
    try:
        return all(is_same(result, change(expected), max(tolerance, 1e-6)) for _, result, expected in cases)
    except Exception:
        return False


def _first(changes: tuple, cases: Cases, tolerance: float) -> str | None:
    return next((words for change, words in changes if _all_same(cases, change, tolerance)), None)


def _of_several(names: list[str], cases: Cases, tolerance: float, all_values: bool) -> str | None:
    count = len(cases[0][2])
    for turned, order in itertools.product((False, True), itertools.permutations(range(count))):
        if _all_same(cases, lambda right, o=order, t=turned: tuple(_turned(right[k], t) for k in o), tolerance):
            places = ", ".join(str(k + 1) for k in order)
            in_order = "" if list(order) == sorted(order) else f"where 1 to {count} should be, there is {places}"
            each = "each is the transpose of what it should be" if turned else ""
            return f"The values are right, but {' and '.join(filter(None, (in_order, each)))}."
    for k in range(count):
        if _all_same(cases, lambda right, k=k: right[k], tolerance):
            return f"Only value {k + 1} of {count} came back."
    for k in range(count + 1) if all(_has(result, count + 1) for _, result, _ in cases) else ():
        if all(is_same((*x[:k], *x[k + 1 :]), y, max(tolerance, 1e-6)) for _, x, y in cases):
            return f"All {count} values are there, and one too many: leave out value {k + 1} of {count + 1}."
    if not all(_has(result, count) for _, result, _ in cases):
        return None
    parts = [[(a, x[k], y[k]) for a, x, y in cases] for k in range(count)]
    wrong = [k for k in range(count) if not _all_same(parts[k], lambda right: right, tolerance)]
    told = [changed_result(names, parts[k], tolerance) for k in wrong]
    if not any(told) or (all_values and None in told):
        return None
    if len(wrong) == count > len(set(told)) == 1:
        return f"In each of the {count} values: {told[0][0].lower()}{told[0][1:]}"
    rest = "" if len(wrong) > 1 else "; the rest is right"
    return " ".join(
        f"Value {k + 1} of {count} is wrong{rest}: {text[0].lower()}{text[1:]}"
        for k, text in zip(wrong, told, strict=True)
        if text
    )


def _has(value: Any, count: int) -> bool:
    return isinstance(value, tuple | list) and len(value) == count


def _turned(value: Any, turn: bool) -> Any:
    return value.transpose(-2, -1) if turn else value


def _of_anything(names: list[str], cases: Cases, tolerance: float) -> str | None:
    for k, name in enumerate(names):
        if all(is_same(result, arguments[k], max(tolerance, 1e-6)) for arguments, result, _ in cases):
            return f"It is the argument `{name}` as it came."
    if not isinstance(cases[0][2], tuple | list) and all(isinstance(result, tuple) for _, result, _ in cases):
        for k in range(max(len(result) for _, result, _ in cases)):
            if all(len(x) > k and is_same(x[k], y, max(tolerance, 1e-6)) for _, x, y in cases):
                return (
                    f"Of the {len(cases[0][1])} values that came back, value {k + 1} is the right one: give it alone."
                )
    results = [plain_number(result) for _, result, _ in cases]
    plain = all(isinstance(result, bool | int | float | str) for result in results)
    if len(cases) > 2 and plain and all(type(x) is type(results[0]) and x == results[0] for x in results):
        return f"It is always {results[0]!r}."
    if all(isinstance(right, bool) for *_, right in cases) and _all_same(cases, lambda right: not right, tolerance):
        return "It is always the opposite of what is right."
    return None


def _of_numbers(names: list[str], cases: Cases, tolerance: float) -> str | None:
    pairs = [(plain_number(result), expected) for _, result, expected in cases]
    if len(pairs) < 3 or not all(
        isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for pair in pairs for x in pair
    ):
        return None
    for places in range(10):
        if _all_same(cases, lambda right, places=places: round(right, places), 0.0):
            return f"It is rounded to {places} places." if places else "It is rounded to a whole number."
    if (text := _first(OF_NUMBERS, cases, tolerance)) is not None:
        return text
    if all(isinstance(right, int) for _, right in pairs) and not all(float(x).is_integer() for x, _ in pairs):
        for change, words in ((math.floor, "down"), (math.ceil, "up"), (round, "to the nearest whole number")):
            if all(change(x) == right for x, right in pairs):
                return f"A whole number is wanted: it has to be rounded {words}."
    return (
        _factor(names, [(a, x, y) for (a, *_), (x, y) in zip(cases, pairs, strict=True)], tolerance)
        or _offset(names, [(a, x - y) for (a, *_), (x, y) in zip(cases, pairs, strict=True)], pairs, tolerance)
        or _by_a_few(pairs)
    )


def _factor(names: list[str], cases: Cases, tolerance: float, what: str = "All of it") -> str | None:
    """Of numbers: whether each is off by one factor, or by one that the arguments give."""
    found = [(arguments, x / y) for arguments, x, y in cases if y]
    if len(found) < 2 or any(x for _, x, y in cases if not y) or not all(f for _, f in found):
        return None
    close = functools.partial(math.isclose, rel_tol=max(10 * tolerance, 1e-6))
    first = found[0][1]
    if all(abs(f - 1) < 1e-3 for _, f in found):  # too near to tell
        return None
    if all(close(f, first) for _, f in found):
        unit = next((words for value, words in UNITS.items() if close(first, value)), "")
        return f"{what} is {first:.6g} times what it should be{': ' + unit if unit else '.'}"
    for words, value in _quantities(names, [arguments for arguments, _ in found]):
        # "too small" would be wrong for a factor below one
        for power, told in (
            (1, "times"),
            (-1, "divided by"),
            (0.5, "times the root of"),
            (-0.5, "divided by the root of"),
        ):
            if all(v > 0 and close(f, v**power) for v, (_, f) in zip(value, found, strict=True)):
                return f"{what} is what it should be, {told} {words}."
    return None


def _offset(names: list[str], cases: list[tuple], pairs: list[tuple], tolerance: float) -> str | None:
    """Of numbers: whether each is off by the same, or by a multiple of what the arguments give."""
    slack = max(tolerance, 1e-9) * max(abs(y) for _, y in pairs) * 2
    differences = [d for _, d in cases]
    if all(abs(d - differences[0]) <= slack for d in differences):
        more, less = ("many", "few") if all(isinstance(y, int) for _, y in pairs) else ("large", "small")
        return f"It is {abs(differences[0]):.6g} too {more if differences[0] > 0 else less} in each case."
    for words, value in _quantities(names, [arguments for arguments, _ in cases]):
        if not any(value) or len(set(value)) < 2:
            continue
        times = next(d / v for d, v in zip(differences, value, strict=True) if v)
        near = all(
            abs(d - times * v) <= max(tolerance, 1e-9) * 4 * (abs(y) + abs(d)) + 1e-12
            for d, v, (_, y) in zip(differences, value, pairs, strict=True)
        )
        if near and times:
            part = "" if abs(times) == 1 else f"{abs(times):.6g} times "
            return f"It is too {'large' if times > 0 else 'small'} by {part}{words} in each case."
    return None


def _by_a_few(pairs: list[tuple]) -> str | None:
    """Of whole numbers: right in some cases, and in the others too many or too few by no more than 2."""
    if not all(isinstance(y, int) and float(x).is_integer() for x, y in pairs):
        return None
    off = [int(x - y) for x, y in pairs if x != y]
    if 0 < len(off) < len(pairs) and len(set(off)) == 1 and abs(off[0]) <= 2:
        return (
            f"It is right for {len(pairs) - len(off)} of {len(pairs)} inputs, and {abs(off[0])} too "
            f"{'many' if off[0] > 0 else 'few'} for the others: look at the border, and at what divides evenly."
        )
    return None


def _quantities(names: list[str], arguments: list[tuple]) -> Iterator[tuple[str, list[float]]]:
    """What can be multiplied or added by mistake: numbers among the arguments, lengths, sides, and products of two."""
    found: list[tuple[str, list[float]]] = []
    for k, name in enumerate(names):
        values = [each[k] for each in arguments]
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            found.append((f"`{name}`", [float(v) for v in values]))
        elif all(isinstance(v, list | dict) for v in values):
            found.append((f"`len({name})`", [float(len(v)) for v in values]))
            if all(isinstance(item, int) for v in values for item in v):
                found.append((f"`sum({name})`", [float(sum(v)) for v in values]))
        elif all(isinstance(v, torch.Tensor) and v.ndim for v in values) and len({v.ndim for v in values}) == 1:
            found += [(f"`{name}.shape[{d}]`", [float(v.shape[d]) for v in values]) for d in range(values[0].ndim)]
    yield from found
    for (one, a), (other, b) in itertools.combinations_with_replacement(found[:8], 2):
        yield f"{one} times {other}", [x * y for x, y in zip(a, b, strict=True)]


def _of_tensors(names: list[str], cases: Cases, tolerance: float) -> str | None:
    if not all(isinstance(right, torch.Tensor) for *_, right in cases):
        return None
    if (text := _first(OF_TENSORS, cases, tolerance)) is not None:
        return text
    if not all(
        isinstance(x, torch.Tensor) and x.shape == y.shape and x.dtype == y.dtype and x.dtype.is_floating_point
        for _, x, y in cases
    ):
        return None
    for dtype in (torch.bfloat16, torch.float16):
        if _all_same(cases, lambda right, dtype=dtype: right.to(dtype).to(right.dtype), 0.0):
            return f"The numbers are rounded to {dtype} on the way."
    cases = [(a, x, y) for a, x, y in cases if x.any() or y.any()]
    factors = [_common_factor(x.detach().double(), y.double(), max(tolerance, 1e-6)) for _, x, y in cases]
    if None in factors:
        return None
    if not any(factors):
        return "It is all zeros."
    return _factor(names, [(a, f, 1.0) for (a, *_), f in zip(cases, factors, strict=True)], tolerance)


def _common_factor(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> float | None:
    """The number by which `other` has to be multiplied, or None."""
    norm = (other * other).sum().item()
    if not norm or not one.isfinite().all():
        return None
    factor = (one * other).sum().item() / norm
    off = (one - factor * other).abs().max().item()
    return factor if off <= tolerance * max(1.0, abs(factor)) * other.abs().max().item() else None


def _of_lists(_: list[str], cases: Cases, tolerance: float) -> str | None:
    if not all(isinstance(result, list | tuple) and isinstance(right, list) for _, result, right in cases):
        return None
    if (text := _first(OF_LISTS, cases, tolerance)) is not None:
        return text
    try:
        pairs = [([plain_number(item) for item in result], right) for _, result, right in cases]
        if all(sorted(x) == sorted(y) for x, y in pairs):
            return "They are the right ones, in another order."
        if all(sorted(set(x)) == sorted(set(y)) for x, y in pairs):
            return "They are the right ones, but some are there more than once."
        if all(set(x) <= set(y) for x, y in pairs):
            return "All that are there are right, but some are missing."
        if all(set(x) >= set(y) for x, y in pairs):
            return "None is missing, but some are there that should not be."
    except TypeError:  # not to be sorted
        pass
    return None


def other_parts(names: list[str], parts: Callable[..., dict[str, Any]], cases: Cases, tolerance: float) -> str | None:
    """A sentence on a result that is a sum of parts, if each has one factor in all cases, or one is off by what the
    arguments give.

    Args:
        parts: the parts of the right result, by name, from the arguments; numbers, or tensors of the result's shape.
    """
    given = [parts(*arguments) for arguments, *_ in cases]
    columns = {name: torch.cat([torch.as_tensor(each[name]).double().flatten() for each in given]) for name in given[0]}
    columns = {name: column for name, column in columns.items() if column.any()}
    try:
        result = torch.cat([torch.as_tensor(plain_number(x)).double().flatten() for _, x, _ in cases])
    except (TypeError, ValueError, RuntimeError):
        return None
    right = sum(columns.values())
    if result.shape != right.shape or not result.isfinite().all():
        return None
    limit = max(tolerance, 1e-9) * right.abs().clamp(min=0.0 if tolerance == 0 else right.abs().max().item() * 1e-3)
    factors = _factors(torch.stack(list(columns.values()), 1), result, limit)
    if factors is not None and len(set(factors)) == 1 < len(factors):
        return None  # all of it, for which there are better words
    if factors is not None:
        off = {name: factor for name, factor in zip(columns, factors, strict=True) if abs(factor - 1) > 1e-6}
        odd = not all(abs(f) < 1e-6 or float(f).is_integer() or float(1 / f).is_integer() for f in off.values())
        if odd or (len(off) > 1 and any(off.values())):  # other factors of other parts might be meant
            return None
        rest = ", the rest right" if len(off) < len(columns) else ""
        return f"Part by part: {', '.join(f'{name} {_times(factor)}' for name, factor in off.items())}{rest}."
    found = [_of_part(names, name, column, given, cases, result - right, tolerance) for name, column in columns.items()]
    found = [told for told in found if told is not None]
    return found[0] if len(found) == 1 else None


def _of_part(names, name: str, column: torch.Tensor, given: list[dict], cases: Cases, off, tolerance) -> str | None:
    """Whether this part alone is off, in each case by a factor that the arguments give."""
    sizes = [torch.as_tensor(each[name]).numel() for each in given]
    factors = []
    for (arguments, *_), part, rest in zip(cases, column.split(sizes), off.split(sizes), strict=True):
        more = ((rest @ part) / (part @ part)).item() if part.any() else 0.0
        if (rest - more * part).abs().max() > max(tolerance, 1e-6) * part.abs().max():
            return None
        factors.append((arguments, 1 + more if part.any() else 0.0, 1.0 if part.any() else 0.0))
    return _factor(names, factors, max(tolerance, 1e-6), f"{name[0].upper()}{name[1:]}: this part")


def _factors(parts: torch.Tensor, result: torch.Tensor, limit: torch.Tensor) -> list[float] | None:
    """Of each part (a column), such that they give the result; None if none do, or several sets."""
    size = parts.abs().amax(0)
    scaled = parts / size
    weights = 1 / scaled.abs().amax(1, keepdim=True).clamp(min=1e-30)
    if torch.linalg.matrix_rank(scaled * weights, rtol=1e-9) < parts.shape[1]:
        return None
    found = torch.linalg.lstsq(scaled * weights, (result[:, None] * weights), driver="gelsd").solution.flatten() / size
    simple = [float(Fraction(f).limit_denominator(64)) for f in found.tolist()]
    for factors in (simple, found.tolist()):
        off = (parts @ torch.tensor(factors, dtype=torch.float64) - result).abs()
        if len(result) > parts.shape[1] and (off <= limit.clamp(min=1e-12)).all():
            return factors
    return None


def _times(factor: float) -> str:
    if abs(factor) < 1e-6:
        return "missing"
    return "subtracted" if factor == -1 else f"{factor:.6g} times what it should be"


def evidence(value: Any) -> float:
    """About how many bits there are in a result: of few, many a function gives the same by chance."""
    value = plain_number(value)
    if isinstance(value, torch.Tensor):
        return 20.0 * value.numel() if value.dtype.is_floating_point else 2.0 * value.numel()
    if isinstance(value, tuple | list):
        return sum(map(evidence, value))
    if isinstance(value, bool | None):
        return 1.0
    return 20.0 if not isinstance(value, int) else math.log2(1 + abs(value))


def other_arguments(names: list[str], arguments: tuple) -> Iterator[tuple[str, Callable[[tuple], tuple]]]:
    """Words for other arguments, and what makes them of the right ones, which are of the kinds that these are."""

    def put(k: int, change: Callable) -> Callable[[tuple], tuple]:
        return lambda given: (*given[:k], change(given[k]), *given[k + 1 :])

    def exchange(k: int, m: int) -> Callable[[tuple], tuple]:
        return lambda given: tuple(given[{k: m, m: k}.get(i, i)] for i in range(len(given)))

    for k, (name, value) in enumerate(zip(names, arguments, strict=True)):
        if isinstance(value, bool):
            yield f"`{name}` always False", put(k, lambda _: False)
            yield f"`{name}` always True", put(k, lambda _: True)
            yield f"`not {name}` for `{name}`", put(k, lambda v: not v)
        elif isinstance(value, int | float):
            for text, change in (
                ("0", lambda v: type(v)(0)),
                ("1", lambda v: type(v)(1)),
                (f"1 / {name}", lambda v: 1 / v),
                (f"-{name}", lambda v: -v),
            ):
                yield f"`{text}` for `{name}`", put(k, change)
            if isinstance(value, float):
                yield f"`{name}**2` for `{name}`", put(k, lambda v: v * v)
            else:
                for more in (1, -1):
                    text = f"{name} {'+' if more > 0 else '-'} 1"
                    yield f"`{text}` for `{name}`", put(k, lambda v, more=more: v + more)
                yield f"`2 * {name}` for `{name}`", put(k, lambda v: 2 * v)
                yield f"`{name} // 2` for `{name}`", put(k, lambda v: v // 2)
        elif isinstance(value, torch.Tensor):
            yield f"zeros for `{name}`, as if it were left out", put(k, torch.zeros_like)
            if value.dtype.is_floating_point:
                yield f"`-{name}` for `{name}`", put(k, lambda v: -v)
                yield f"`{name}.abs()` for `{name}`", put(k, lambda v: v.abs())
                if value.ndim:
                    yield f"`{name}` in the opposite order", put(k, lambda v: v.flip(0))
            elif value.dtype != torch.uint8:
                yield f"`{name} + 1` for `{name}`", put(k, lambda v: v + 1)
                yield f"`{name} - 1` for `{name}`", put(k, lambda v: v - 1)
        elif isinstance(value, list):
            yield f"`{name}` in the opposite order", put(k, lambda v: v[::-1])
            yield f"`{name}[:1]` for `{name}`", put(k, lambda v: v[:1])
            yield f"`{name}[:-1]` for `{name}`", put(k, lambda v: v[:-1])
            yield f"`{name}[1:]` for `{name}`", put(k, lambda v: v[1:])
        elif isinstance(value, set):
            yield f"an empty set for `{name}`", put(k, lambda _: set())
    for k, m in itertools.combinations(range(len(names)), 2):
        one, other = arguments[k], arguments[m]
        both = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, other))
        if both or (type(one) is type(other) and not isinstance(one, bool)):
            yield f"`{names[k]}` and `{names[m]}` exchanged", exchange(k, m)
    matrices = [k for k, value in enumerate(arguments) if isinstance(value, torch.Tensor) and value.ndim == 2]
    for count in range(1, len(matrices) + 1):
        for some in itertools.combinations(matrices, count):
            words = " and ".join(f"`{names[k]}.T` for `{names[k]}`" for k in some)
            yield words, lambda given, some=some: tuple(v.t() if k in some else v for k, v in enumerate(given))
