"""In what two results differ, in words that help: type, shape, first difference, or a pattern over all of them.

The second half makes an `Exercise.describe` for results that are packed codes, blocks, or a value for each block: which
block, which codes, how much. There None means that nothing can be compared so, and `describe_difference` is to tell of
types, shapes and dtypes. Places are counted from 0, as in Python.
"""

import decimal
import itertools
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Describe = Callable[[tuple, Any, Any], str | None]


def is_same(one, other, tolerance: float, any_float: bool = False) -> bool:
    """Whether two results are equal. A number may be Python's, numpy's, or a tensor of one element without a shape.

    Args:
        tolerance: for numbers that are not whole: largest difference, relative to the largest number of `other`, which
            is also the largest of a list. Shapes and dtypes must be equal.
        any_float: float64 is as good as float32; for what does not say which it wants.
    """
    if isinstance(other, torch.Tensor):
        if not isinstance(one, torch.Tensor) or one.shape != other.shape:
            return False
        both_float = one.dtype.is_floating_point and other.dtype.is_floating_point
        if one.dtype != other.dtype and not (any_float and tolerance and both_float):
            return False
        if not tolerance or not other.dtype.is_floating_point:
            return bool(
                ((one == other) | (one.isnan() & other.isnan())).all()
                if other.dtype.is_floating_point
                else torch.equal(one, other)
            )
        if not other.numel():
            return True
        a, b = one.detach().double(), other.double()
        off = (a - b).abs().masked_fill((a == b) | (a.isnan() & b.isnan()), 0.0)  # infinities are equal, and so are NaN
        finite = b.abs()[b.isfinite()]
        return off.max().item() <= tolerance * max(finite.max().item() if finite.numel() else 0.0, 1e-30)
    one = plain_number(one)
    if isinstance(other, bool):
        return isinstance(one, bool) and one == other
    if isinstance(other, int | float):
        return _same_number(one, other, tolerance, abs(other))
    if isinstance(other, tuple | list):
        if not isinstance(one, tuple | list) or len(one) != len(other):
            return False
        if other and all(type(item) is float for item in other):
            largest = max(map(abs, other))
            return all(_same_number(plain_number(a), b, tolerance, largest) for a, b in zip(one, other, strict=True))
        return all(is_same(a, b, tolerance, any_float) for a, b in zip(one, other, strict=True))
    if isinstance(other, dict):
        return (
            isinstance(one, dict)
            and one.keys() == other.keys()
            and all(is_same(one[k], other[k], tolerance, any_float) for k in other)
        )
    if isinstance(other, str):
        return isinstance(one, str) and one == other
    return type(one) is type(other) and one == other


def _same_number(one, other: float, tolerance: float, largest: float) -> bool:
    """Whether `one` is `other`, or as near to it as `tolerance` allows where the largest number is `largest`."""
    if isinstance(one, bool) or not isinstance(one, int | float):
        return False
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    try:  # a zero that was rounded on its way is a zero
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=max(tolerance * largest, 1e-15 if tolerance else 0.0))
    except OverflowError:  # a whole number beyond all floats
        return False


def plain_number(value):
    """A number of numpy's, or a tensor or an array of one number and no shape, as Python's; else the value itself."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0):
        plain = value.item()
        return float(plain) if isinstance(plain, np.floating) else plain  # a long double stays one
    return value


def describe_difference(one, other, tolerance: float, ask_for_return: bool = True) -> str:
    """A sentence on what `one`, the answer, has that `other`, the right result, has not.

    Args:
        ask_for_return: where None came back, whether a missing `return` may be why.
    """
    if not isinstance(other, torch.Tensor):
        one = plain_number(one)
    if one is None:
        wanted = f" instead of {other!r}" if isinstance(other, int | float | str) else ""
        in_place = " (`reverse`, `sort` and `append` change a list and give None.)" if isinstance(other, list) else ""
        return f"it returned None{wanted}.{f' Is there a `return`?{in_place}' if ask_for_return else ''}"
    if isinstance(other, tuple | list):
        if not isinstance(one, tuple | list):
            kind = "tuple" if isinstance(other, tuple) else "list"
            same = is_same(_listed(one, len(other)), other, tolerance)
            return f"it returned {_a(type(one).__name__)} where a {kind} of {len(other)} is wanted" + (
                f"; the values in it are right: make {'it' if kind == 'list' else 'them'} a {kind}." if same else "."
            )
        if len(one) != len(other):
            return f"it returned {len(one)} values instead of {len(other)}{_lists(one, other)}."
        for number, (a, b) in enumerate(zip(one, other, strict=True), 1):
            if not is_same(a, b, tolerance):
                if isinstance(other, list) and (lists := _lists(one, other)):
                    return f"value {number} of {len(other)} differs{lists}."
                return f"value {number} of {len(other)} differs: {describe_difference(a, b, tolerance)}"
    if isinstance(other, torch.Tensor):
        return _tensors(one, other, tolerance)
    if isinstance(other, int | float) and not isinstance(other, bool) and isinstance(one, int | float):
        beyond = isinstance(one, int) and one.bit_length() > 1000  # Python writes no more than 4,300 digits
        shown = "a number of hundreds of digits" if beyond else repr(one)
        return f"it returned {shown} instead of {other!r}{_how_far(one, other)}."
    if other is None and isinstance(one, int | float):
        return f"it returned {one!r} instead of None."
    if type(one) is not type(other):
        right = isinstance(one, numbers.Number | decimal.Decimal) and is_same(_as_float(one), other, tolerance or 1e-9)
        same = "; its value is right" if right else ""
        return f"it returned {_a(type(one).__name__)}; {_a(type(other).__name__)} is wanted{same}."
    return f"it returned {written(one)} instead of {other!r}."


def written(value) -> str:
    """As `repr`, but with words for tensors: writing out one of many dimensions takes minutes."""
    try:
        return repr(_in_words(value))
    except RecursionError:  # a list that is in itself
        return repr(value)


class _Words(str):
    __repr__ = str.__str__


def _in_words(value):
    if isinstance(value, torch.Tensor):
        return _Words(f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}")
    if type(value) in (list, tuple, set):
        return type(value)(map(_in_words, value))
    return {_in_words(k): _in_words(v) for k, v in value.items()} if type(value) is dict else value


def describe_arguments(arguments: tuple) -> str:
    """Short words for what a function was called with."""

    def one(value) -> str:
        if isinstance(value, torch.Tensor):
            kind = str(value.dtype).removeprefix("torch.")
            return f"{kind} of shape {tuple(value.shape)}" if value.ndim else f"{value.item():.4g}"
        if isinstance(value, float):
            return f"{value:.4g}"
        if isinstance(value, list) and value and all(isinstance(item, torch.Tensor) for item in value):
            return f"[{len(value)} tensors, the first {one(value[0])}]"
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "..."

    return "(" + ", ".join(map(one, arguments)) + ")"


def _how_far(one: float, other: float) -> str:
    """How far a number is off: the difference where that is a few of many, else the ratio."""
    try:
        off = one - other
        if isinstance(one, bool) or not math.isfinite(off):
            return ""
    except OverflowError:  # a whole number beyond all floats
        return ""
    if float(one).is_integer() and float(other).is_integer() and abs(off) <= max(8, 0.01 * abs(other)):
        return f", {abs(off):.12g} too {'many' if off > 0 else 'few'}"
    times = f"{one / other:.6g}" if other else "1"
    return f", {times} times as much" if times not in ("0", "1") else ""


def _as_float(number) -> float | None:
    try:
        return float(number)
    except (TypeError, ValueError, OverflowError):  # complex, say
        return None


def _listed(value, count: int) -> list | None:
    """What a set, range, generator, view, array or tensor gives one after the other, as far as one beyond `count`."""
    try:
        values = list(itertools.islice(iter(sorted(value) if isinstance(value, set | frozenset) else value), count + 1))
    except Exception:
        return None
    return [plain_number(item) for item in values]


def _a(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' or name == 'ndarray' else 'a'} {name}"


def _lists(one, other) -> str:
    plain = all(isinstance(item, int | float | str) for item in (*one, *other))
    return f": {list(one)!r} instead of {list(other)!r}" if plain and len(one) + len(other) < 40 else ""


def _tensors(one, other: torch.Tensor, tolerance: float) -> str:
    if not isinstance(one, torch.Tensor):
        return f"it returned {_a(type(one).__name__)}; a tensor of shape {tuple(other.shape)} is wanted."
    if one.shape != other.shape:
        turned = (
            one.ndim == 2
            and one.t().shape == other.shape
            and is_same(one.t().contiguous(), other, max(tolerance, 1e-6))
        )
        more = ", and it is exactly the transpose" if turned else ""
        return f"its shape is {tuple(one.shape)} instead of {tuple(other.shape)}{more}."
    both_float = one.dtype.is_floating_point and other.dtype.is_floating_point
    if one.dtype != other.dtype and (not (tolerance and both_float) or is_same(one, other, tolerance, any_float=True)):
        right = is_same(one.to(other.dtype), other, max(tolerance, 1e-6)) if both_float else (one == other).all()
        return f"its dtype is {one.dtype} instead of {other.dtype}{'; its numbers are right' if right else ''}."
    a, b = one.detach().double(), other.double()
    if not a.isfinite().all() and b.isfinite().all():
        where = (~a.isfinite()).nonzero()[0].tolist()
        return f"it has a NaN or an infinity, the first at {where}. Is there a division by zero?"
    limit = tolerance * max(b.abs().max().item(), 1e-30)
    wrong = (a - b).abs() > limit
    first = wrong.nonzero()[0].tolist()
    text = (
        f"{int(wrong.sum())} of {wrong.numel()} elements differ, the first at {first}: "
        f"{one[tuple(first)].item():.6g} instead of {other[tuple(first)].item():.6g}."
    )
    return text + pattern(one, other, tolerance)


def pattern(one: torch.Tensor, other: torch.Tensor, tolerance: float, what: str = "it") -> str:
    """Whether all of it is off in one way."""
    a, b = one.detach().double().flatten(), other.double().flatten()
    limit = max(tolerance, 1e-6) * max(b.abs().max().item(), 1e-30)
    norm = (b @ b).item()
    factor = (a @ b).item() / norm if norm else 0.0
    if factor and (a - factor * b).abs().max().item() <= limit * max(1.0, abs(factor)):
        return f" All of {what} is {factor:.6g} times what it should be."
    shift = (a - b).mean().item()
    if (a - b - shift).abs().max().item() <= limit:
        return f" All of {what} is off by {shift:+.6g}."
    if (a.sort().values - b.sort().values).abs().max().item() <= limit:
        return " They are the right numbers in another order."
    return f" The largest difference is {(a - b).abs().max().item():.3g}."


def with_arguments(describe: Describe) -> Describe:
    """The same, with what the function was called with before it."""

    def told(arguments: tuple, one, other) -> str | None:
        text = describe(arguments, one, other)
        return None if text is None else f"With {describe_arguments(arguments)}: {text}"

    return told


def each(tolerance: float, *describes: Describe | None) -> Describe:
    """For several values: of the first that differs. None: `differences` is to tell of that value."""

    def told(arguments: tuple, one, other) -> str | None:
        if not isinstance(one, tuple | list) or len(one) != len(other):
            return None
        for number, (describe, a, b) in enumerate(zip(describes, one, other, strict=True), 1):
            if not is_same(a, b, tolerance):
                text = None if describe is None else describe(arguments, a, b)
                return None if text is None else f"value {number} of {len(other)} differs: {text}"
        return None

    return told


def where_off(one, other: torch.Tensor, tolerance: float) -> torch.Tensor | None:
    """(n,) places that differ. None: the two are not of one kind, or do not differ."""
    if not isinstance(one, torch.Tensor) or one.shape != other.shape or other.ndim != 1 or one.is_complex():
        return None
    both_float = one.dtype.is_floating_point and other.dtype.is_floating_point
    if (one.dtype != other.dtype and not (tolerance and both_float)) or not one.isfinite().all():
        return None
    largest = other.double().abs().max().item() if len(other) else 0.0
    off = (one.detach().double() - other.double()).abs() > tolerance * largest
    return off.nonzero().flatten() if off.any() else None


def packed_codes(arguments: tuple, one, other) -> str | None:
    """Of bytes with two codes each."""
    off = where_off(one, other, 0.0)
    if off is None:
        return None
    first, changed = int(off[0]), one ^ other
    codes = [f"{byte // 16}, {byte % 16}" for byte in (one[first].item(), other[first].item())]
    text = (
        f"{len(off)} of {len(other)} bytes differ, the first is byte {first}: codes {codes[0]} instead of {codes[1]}."
    )
    if len(off) == 1 and first == len(other) - 1 > 0:
        return f"{text} All bytes before the last are right."
    for nibbles, wrong in (("high", changed >> 4), ("low", changed & 15)):
        if not wrong.any():
            return f"{text} All {nibbles} nibbles are right."
    return text


def a_value_each(tolerance: float, unit: str = "block", size: Callable[[tuple], int] | None = None) -> Describe:
    """Of a value for each block. size: weights of a block, from the arguments."""

    def told(arguments: tuple, one, other) -> str | None:
        off = where_off(one, other, tolerance)
        if off is None:
            return None
        first, wide = int(off[0]), 0 if size is None else size(arguments)
        place = f" (elements from {first * wide})" if wide else ""
        values = f"{one[first].item():.6g} instead of {other[first].item():.6g}"
        start = f"{len(off)} of {len(other)} {unit}s differ, the first is {unit} {first}{place}: {values}."
        return start + pattern(one, other, tolerance)

    return told


def in_blocks(
    tolerance: float, size: Callable[[tuple], int], unit: str = "block", codes: Callable[[tuple], Any] | None = None
) -> Describe:
    """Of values of which each `size` make a block, such as decoded weights, or codes.

    Args:
        codes: the codes that were decoded, from the arguments.
    """

    def told(arguments: tuple, one, other) -> str | None:
        off = where_off(one, other, tolerance)
        if off is None:
            return None
        wide, first = size(arguments), int(off[0])
        blocks = (off // wide).unique()
        begin = int(blocks[0]) * wide
        a, b = one[begin : begin + wide], other[begin : begin + wide]
        word = "" if one.dtype.is_floating_point else "code "
        text = (
            f"{len(blocks)} of {-(-len(other) // wide)} {unit}s differ, the first is {unit} {int(blocks[0])} (elements "
            f"{begin} to {begin + len(b) - 1}), in {int((off // wide == blocks[0]).sum())} of its {len(b)} elements. "
            f"Element {first}: {word}{one[first].item():.6g} instead of {other[first].item():.6g}."
        )
        text += pattern(a, b, tolerance, f"{unit} {int(blocks[0])}")
        return text if codes is None else text + _which_codes(codes(arguments)[: len(other)], off)

    return told


def _which_codes(codes: torch.Tensor, off: torch.Tensor) -> str:
    """Whether it is the code, or the nibble, that decides what is wrong."""
    if len(off) == len(codes):
        return ""
    wrong = codes[off].unique()
    alone = torch.isin(codes, wrong).sum() == len(off)
    if len(off) > 1 and alone and len(wrong) < len(codes.unique()):
        return f" Wrong are exactly the elements of code {', '.join(map(str, wrong.tolist()))}."
    if len(off) > 1 and (off % 2 == off[0] % 2).all():
        return f" All wrong ones come from {'low' if off[0] % 2 else 'high'} nibbles."
    return ""
