"""Four-bit data types: sixteen numbers each, built from their definitions.

A 4-bit code says which of sixteen levels a weight sits on; the block's scale says how large that level is. A data type
is therefore only a table of sixteen levels (the codebook) and the fifteen thresholds halfway between neighbours. This
module builds the tables; `blockwise` uses them.

    nf4          quantiles of the normal distribution, an exact zero, asymmetric (QLoRA paper, appendix E)
    fp4          sign, two exponent bits, one mantissa bit, as bitsandbytes lays them out
    int4         fifteen equally spaced levels from -7 to 7, scaled by the block's largest magnitude
    int4_affine  sixteen equally spaced levels from the block's minimum to its maximum (a second constant per block)
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

# Tables never follow torch's defaults: a process may be loading a model under bfloat16 as its default dtype, or under
# "meta" as its default device.
_FLOAT32 = {"dtype": torch.float32, "device": "cpu"}


@dataclass(frozen=True)
class DataType:
    """A 4-bit data type.

    Attributes:
        name: the name `get_datatype` knows it by.
        levels: sixteen finite numbers, rounded to float32; `levels[code]` is what a code means before the scale.
            Weights divided by it lie in [-1, 1] (affine types: [0, 1]).
        affine: whether a block stores its minimum beside its scale.

    Raises:
        ValueError: not sixteen levels, a level that is not finite, or all levels equal.
    """

    name: str
    levels: tuple[float, ...]
    affine: bool = False

    def __post_init__(self):
        if len(self.levels) != 16:
            raise ValueError(f"a 4-bit data type has 16 levels; {self.name!r} was given {len(self.levels)}")
        levels = tuple(float(np.float32(level)) for level in self.levels)
        if not np.isfinite(levels).all() or len(set(levels)) == 1:
            raise ValueError(f"the levels of a data type are finite and not all equal; {self.name!r} has {self.levels}")
        object.__setattr__(self, "levels", levels)

    def table(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The codebook as a float32 tensor of shape (16,)."""
        return torch.tensor(self.levels, dtype=torch.float32, device=device)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Codes from the smallest level to the largest; of two codes with one level (fp4's two zeros) the lower."""
        distinct = {level: code for code, level in reversed(list(enumerate(self.levels)))}
        return tuple(distinct[level] for level in sorted(distinct))

    @cached_property
    def thresholds(self) -> tuple[float, ...]:
        """Decision thresholds: float32 midpoints of neighbouring levels. A value on one takes the lower level."""
        levels = [self.levels[code] for code in self.order]
        return tuple(float(np.float32((low + high) / 2)) for low, high in pairwise(levels))

    @cached_property
    def zero_code(self) -> int:
        """The code that zero maps to; it also fills the last nibble when the number of weights is odd."""
        return self.order[sum(t < 0.0 for t in self.thresholds)]


def _nf4() -> tuple[float, ...]:
    """Eight positive and seven negative quantiles of N(0, 1) and a zero, divided by the largest.

    The outermost probability, 0.9677083, is the mean of 1 - 1/32 and 1 - 1/30: half a step short of certainty for 16
    and for 15 levels, where the quantile would be infinite. The probabilities are spaced in float32 and the division is
    done in float32 because bitsandbytes' table was made that way; in float64 the last bit of some levels differs.
    """
    quantile = NormalDist().inv_cdf
    positive = [quantile(p) for p in torch.linspace(0.9677083, 0.5, 9, **_FLOAT32)[:-1].tolist()]
    negative = [-quantile(p) for p in torch.linspace(0.9677083, 0.5, 8, **_FLOAT32)[:-1].tolist()]
    levels = torch.tensor(sorted([*negative, 0.0, *positive]), **_FLOAT32)
    return tuple((levels / levels.max()).tolist())


def _fp4() -> tuple[float, ...]:
    """Code bits s, e, e, m. Exponents 1, 2, 3 stand for 2^3, 2^2, 2^1 (times 1 or 1.5); exponent 0 for 0 and 1/16.

    Divided by the largest, 12: 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4 and their negatives. The order, and a subnormal far
    below the rest, are bitsandbytes'.
    """
    positive = [0.0, 1 / 16]
    positive += [(1 + mantissa / 2) * 2.0 ** (4 - exponent) for exponent in (1, 2, 3) for mantissa in (0, 1)]
    levels = torch.tensor(positive + [-level for level in positive], **_FLOAT32) / 12
    return tuple((levels + 0.0).tolist())  # + 0.0: code 8 is a plain zero, not -0.0


def _int4() -> tuple[float, ...]:
    """Code = integer + 8. Absmax scaling uses -7 to 7; code 0 (-8) is never produced and decodes to -8/7."""
    return tuple((torch.arange(-8, 8, **_FLOAT32) / 7).tolist())


def _int4_affine() -> tuple[float, ...]:
    """Sixteen equally spaced levels over [0, 1]: weight = minimum + (maximum - minimum) * code / 15."""
    return tuple((torch.arange(16, **_FLOAT32) / 15).tolist())


DATATYPES: tuple[str, ...] = ("nf4", "fp4", "int4", "int4_affine")

with _disable_current_modes():  # this module may be imported first where all new tensors are fake ones
    _known = {
        "nf4": DataType("nf4", _nf4()),
        "fp4": DataType("fp4", _fp4()),
        "int4": DataType("int4", _int4()),
        "int4_affine": DataType("int4_affine", _int4_affine(), affine=True),
    }


def get_datatype(name: str | DataType) -> DataType:
    """The data type of that name.

    A `DataType` of your own is returned as it is, and known by its name from then on in this process: tensors quantized
    with it carry only the name.

    Raises:
        ValueError: no such data type (the message lists those there are), or a `DataType` whose name another one has.
    """
    if isinstance(name, DataType):
        if _known.setdefault(name.name, name) != name:
            raise ValueError(f"there is another data type named {name.name!r}; give yours a name of its own")
        return name
    if not isinstance(name, str) or name not in _known:
        raise ValueError(f"unknown data type {name!r}; the 4-bit data types are {', '.join(_known)}")
    return _known[name]


def _dynamic_map() -> tuple[float, ...]:
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, **_FLOAT32)
        centres = (edges[:-1] + edges[1:]) / 2
        for sign in (1, -1):
            levels += (sign * 10 ** (decade - 6) * centres).tolist()
    return tuple(torch.tensor(sorted(levels), **_FLOAT32).tolist())


with _disable_current_modes():
    _dynamic_levels = _dynamic_map()


def dynamic_map() -> tuple[float, ...]:
    """The signed dynamic 8-bit data type: 256 sorted levels from -0.99297 to 1.0, used to store scales in 8 bits.

    For each of seven decades 10^-6 .. 10^0 the mantissa gets one bit more: 1, 2, 4, ... 64 levels, the centres of equal
    steps over [0.1, 1], with both signs; plus 0 and 1. Small numbers keep their order of magnitude, large ones their
    digits. Source: "8-bit Optimizers via Block-wise Quantization", section 2.2; values as in bitsandbytes.
    """
    return _dynamic_levels


def cached_table(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`functools.cache` for a function that makes a tensor, such that what is kept is good for the whole process.

    Under a mode that makes other tensors of new ones (fake ones, a trace's, those of a transform of `torch.func`) the
    table is made anew and not kept. Inference mode would make one that the backward pass refuses: it is left for that.
    """

    @functools.cache
    def kept(*key):
        with torch.inference_mode(False):
            return make(*key)

    @functools.wraps(make)
    def table(*key):
        return make(*key) if is_watched() else kept(*key)

    table.cache_clear = kept.cache_clear
    return table


def is_watched() -> bool:
    """Whether operations are carried out by somebody else than usual: traced, compiled, transformed or faked."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
