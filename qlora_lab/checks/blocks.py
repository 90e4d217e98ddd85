"""What differs where a result is packed codes, blocks, or a value for each block: which block, which codes, how much.

These make an `Exercise.describe`. None means that there is nothing to compare so: `differences` tells of types, shapes
and dtypes. Places are counted from 0, as in Python.
"""

from collections.abc import Callable
from typing import Any

import torch

from qlora_lab.checks.differences import describe_arguments, is_same, pattern

Describe = Callable[[tuple, Any, Any], str | None]


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
