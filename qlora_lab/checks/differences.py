"""In what two results differ, in words that help: type, shape, first difference, or a pattern over all of them."""

import math

import torch


def is_same(one, other, tolerance: float) -> bool:
    """Whether two results are equal.

    Args:
        tolerance: for numbers that are not whole: largest difference, relative to the largest number of `other`. Shapes
            must be equal, and so must dtypes where the tolerance is 0.
    """
    if isinstance(other, torch.Tensor):
        if not isinstance(one, torch.Tensor) or one.shape != other.shape:
            return False
        if one.dtype.is_floating_point != other.dtype.is_floating_point:
            return False
        if not tolerance or not other.dtype.is_floating_point:
            return one.dtype == other.dtype and bool(
                ((one == other) | (one.isnan() & other.isnan())).all()
                if other.dtype.is_floating_point
                else torch.equal(one, other)
            )
        if not other.numel():
            return True
        off = (one.detach().double() - other.double()).abs().max().item()
        return off <= tolerance * max(other.double().abs().max().item(), 1e-30)
    if isinstance(other, bool):
        return isinstance(one, bool) and one == other
    if isinstance(other, int | float):
        if isinstance(one, torch.Tensor):
            one = one.item() if one.numel() == 1 else None
        if isinstance(one, bool) or not isinstance(one, int | float):
            return False
        # a zero that was rounded on its way is a zero
        return math.isclose(one, other, rel_tol=max(tolerance, 1e-12), abs_tol=1e-15 if tolerance else 0.0)
    if isinstance(other, tuple | list):
        return (
            isinstance(one, tuple | list)
            and len(one) == len(other)
            and all(is_same(a, b, tolerance) for a, b in zip(one, other, strict=True))
        )
    if isinstance(other, dict):
        return (
            isinstance(one, dict)
            and one.keys() == other.keys()
            and all(is_same(one[k], other[k], tolerance) for k in other)
        )
    return type(one) is type(other) and one == other


def describe_difference(one, other, tolerance: float) -> str:
    """A sentence on what `one`, the answer, has that `other`, the right result, has not."""
    if one is None:
        wanted = f" instead of {other!r}" if isinstance(other, int | float | str) else ""
        return f"it returned None{wanted}. Is there a `return`?"
    if isinstance(other, tuple | list):
        if not isinstance(one, tuple | list):
            return f"it returned a {type(one).__name__}; {len(other)} values are wanted."
        if len(one) != len(other):
            return f"it returned {len(one)} values instead of {len(other)}{_lists(one, other)}."
        for number, (a, b) in enumerate(zip(one, other, strict=True), 1):
            if not is_same(a, b, tolerance):
                return f"value {number} of {len(other)} differs: {describe_difference(a, b, tolerance)}"
    if isinstance(other, torch.Tensor):
        return _tensors(one, other, tolerance)
    if isinstance(other, int | float) and not isinstance(other, bool) and isinstance(one, int | float):
        times = f"{one / other:.6g}" if other and not isinstance(one, bool) else "1"
        ratio = f", {times} times as much" if times != "1" else ""
        return f"it returned {one!r} instead of {other!r}{ratio}."
    if other is None and isinstance(one, int | float):
        return f"it returned {one!r} instead of None."
    if type(one) is not type(other):
        return f"it returned {_a(type(one).__name__)}; {_a(type(other).__name__)} is wanted."
    return f"it returned {one!r} instead of {other!r}."


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


def _a(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _lists(one, other) -> str:
    plain = all(isinstance(item, int | float | str) for item in (*one, *other))
    return f": {list(one)!r} instead of {list(other)!r}" if plain and len(one) + len(other) < 40 else ""


def _tensors(one, other: torch.Tensor, tolerance: float) -> str:
    if not isinstance(one, torch.Tensor):
        return f"it returned a {type(one).__name__}; a tensor of shape {tuple(other.shape)} is wanted."
    if one.shape != other.shape:
        turned = (
            one.ndim == 2
            and one.t().shape == other.shape
            and is_same(one.t().contiguous(), other, max(tolerance, 1e-6))
        )
        more = ", and it is exactly the transpose" if turned else ""
        return f"its shape is {tuple(one.shape)} instead of {tuple(other.shape)}{more}."
    both_float = one.dtype.is_floating_point and other.dtype.is_floating_point
    if one.dtype != other.dtype and not (tolerance and both_float):
        return f"its dtype is {one.dtype} instead of {other.dtype}."
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
