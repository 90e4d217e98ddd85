"""Four-bit data types: sixteen numbers each, built from their definitions.

A 4-bit code says which of sixteen levels a weight sits on; the block's scale says how large that level is. A data type
is therefore a table of sixteen levels (the codebook), the fifteen thresholds halfway between neighbours, and a rule for
the scale. This module builds the tables; `blockwise` uses them.

    nf4          quantiles of the normal distribution, an exact zero, asymmetric (QLoRA paper, appendix E)
    fp4          sign, two exponent bits, one mantissa bit, as bitsandbytes lays them out
    int4         fifteen equally spaced levels from -7 to 7, scaled by the block's largest magnitude
    int4_affine  sixteen equally spaced levels from the block's minimum to its maximum (a second constant per block)

What came after NF4 differs in three things: the levels, whether the scale has a sign, and what a scale costs. Bits per
weight are those of whole blocks.

    nf4_float16  NF4 with scales in float16: 4.25 bits at block 64, 4.5 at block 32
    int4_signed  sixteen equally spaced levels from -8/8 to 7/8; the scale's sign puts the extreme weight at -8/8
    bof4         levels that make the squared error on Gaussian blocks of 64 smallest, with -1, 0 and 1 among them
    bof4_s       the same with a signed scale: the extreme weight is at 1, and -1 is not needed (arXiv 2505.06653)
    q4_0         llama.cpp's int4_signed: blocks of 32, scales in float16; 4.5 bits
    q4_1         llama.cpp's int4_affine: blocks of 32, both constants in float16; 5 bits
    iq4_nl       llama.cpp's sixteen uneven levels, a signed scale in float16, blocks of 32; 4.5 bits
    mxfp4        0, 1/2, 1, 1 1/2, 2, 3, 4, 6 and negatives (E2M1), blocks of 32, scales powers of two (E8M0); 4.25 bits
    nvfp4        the same levels, blocks of 16, scales in 8 bits (E4M3) times one number per tensor; 4.5 bits

`q4_1` decodes to `int4_affine` at block 32 but for the rounding of its two constants to float16, and `q4_0` likewise to
`int4_signed`. llama.cpp itself looks for a better scale of iq4_nl than the extreme weight gives; here it is that one.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

# Tables never follow torch's defaults: a process may be loading a model under bfloat16 as its default dtype, or under
# "meta" as its default device.
_FLOAT32 = {"dtype": torch.float32, "device": "cpu"}


# How scales can be stored, and in what: a number of 32 or 16 bits; 8 bits that are the exponent of a power of two; or 8
# bits that are a float of 4 exponent and 3 mantissa bits, times one float32 for the whole tensor.
SCALES = {"float32": torch.float32, "float16": torch.float16, "e8m0": torch.uint8, "e4m3": torch.uint8}
TIES = ("lower", "even", "upper")
BLOCK_SIZE = 64  # of data types that have blocks of any size, where nobody asks for another


@dataclass(frozen=True)
class DataType:
    """A 4-bit data type.

    A block's scale is its extreme weight, the one of the largest magnitude, divided by `extreme`; without its sign
    unless the data type is `signed`. Every weight is divided by the scale and takes the nearest level.

    Attributes:
        name: the name `get_datatype` knows it by.
        levels: sixteen finite numbers, rounded to float32; `levels[code]` is what a code means before the scale.
            Weights divided by the scale lie between -extreme and extreme (affine types: 0 and extreme).
        affine: whether a block stores its minimum beside its scale. In place of the extreme weight stands the largest
            minus the smallest.
        signed: whether the scale has the sign that takes the extreme weight to `extreme` and never to `-extreme`. Of
            two extreme weights the first counts.
        extreme: what the extreme weight becomes.
        scales: what a scale is stored in, one of `SCALES`; under "float16" offsets too. "e8m0" rounds it down to a
            power of two: the extreme weight may become up to twice `extreme`, and takes the last level there is.
        ties: which level a weight on a threshold takes: the "lower", the one with the "even" code, or the "upper" as
            llama.cpp rounds, which adds half a step and cuts off the rest in float32.
        block_size: how many weights its blocks have. None: as many as one likes.

    Raises:
        ValueError: not sixteen levels, a level that is not finite, all levels equal, or a rule for the scale that
            makes no sense (the message says which).
    """

    name: str
    levels: tuple[float, ...]
    affine: bool = False
    signed: bool = False
    extreme: float = 1.0
    scales: str = "float32"
    ties: str = "lower"
    block_size: int | None = None

    def __post_init__(self):
        if len(self.levels) != 16:
            raise ValueError(f"a 4-bit data type has 16 levels; {self.name!r} was given {len(self.levels)}")
        levels = tuple(float(np.float32(level)) for level in self.levels)
        if not np.isfinite(levels).all() or len(set(levels)) == 1:
            raise ValueError(f"the levels of a data type are finite and not all equal; {self.name!r} has {self.levels}")
        object.__setattr__(self, "levels", levels)
        for what, allowed in (("scales", SCALES), ("ties", TIES)):
            if getattr(self, what) not in allowed:
                raise ValueError(
                    f"the {what} of a data type are one of {', '.join(allowed)}; {self.name!r} has "
                    f"{getattr(self, what)!r}"
                )
        if not (math.isfinite(self.extreme) and (self.extreme > 0 or (self.signed and self.extreme))):
            raise ValueError(
                f"what an extreme weight becomes is above zero, or with a signed scale below; {self.name!r} has "
                f"extreme={self.extreme!r}"
            )
        if self.affine and self.signed:
            raise ValueError(f"{self.name!r} is affine and signed; a scale with a minimum beside it has no sign")
        if SCALES[self.scales] == torch.uint8 and (self.affine or self.signed):
            raise ValueError(f"the scales of {self.name!r}, {self.scales}, have no sign, and no minimum beside them")
        if self.ties == "upper" and set(np.diff(levels)) != {1.0}:
            raise ValueError(f"ties='upper' is for levels in steps of one; {self.name!r} has {self.levels}")

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
        """Decision thresholds, float32: a value takes the upper of two levels where it is above the threshold.

        Midpoints of neighbouring levels. Where a value on the midpoint takes the upper level, the number before it.
        """
        return tuple(self._threshold(rank) for rank in range(1, len(self.order)))

    def _threshold(self, rank: int) -> float:
        """The one below the level of that rank."""
        below, above = self.order[rank - 1], self.order[rank]
        middle = np.float32((self.levels[below] + self.levels[above]) / 2)
        if self.ties == "lower" or (self.ties == "even" and above % 2):
            return float(middle)
        if self.ties == "upper":  # x + half a step rounds up to `rank` from half a unit in the last place below on
            unit = np.spacing(np.nextafter(np.float32(rank), np.float32(0)))
            middle = np.float32(rank - float(unit) / 2 - (0.5 - self.levels[self.order[0]]))
        return float(np.nextafter(middle, np.float32(-np.inf)))

    @cached_property
    def negative_zero(self) -> int | None:
        """The code of -0.0, where there is one: what is below zero and rounds to zero keeps its sign."""
        zeros = (code for code, level in enumerate(self.levels) if level == 0 and math.copysign(1, level) < 0)
        return next(zeros, None)

    @property
    def usual_block_size(self) -> int:
        """That of its blocks where nobody asks for another."""
        return self.block_size or BLOCK_SIZE

    @property
    def allows_double_quant(self) -> bool:
        """Whether its scales can be stored in 8 bits by double quantization."""
        return self.scales == "float32" and not self.affine

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


def _e2m1() -> tuple[float, ...]:
    """Code bits s, e, e, m: (1 + m/2) * 2^(e - 1), and m/2 where e is 0. Code 8 is -0.0."""
    positive = [(1 + m / 2) * 2.0 ** (e - 1) if e else m / 2 for e in range(4) for m in (0, 1)]
    return tuple(positive + [-level for level in positive])


# What `fit_bof4` finds for blocks of 64, to float32; written down, since the last bits of erf differ between machines.
_BOF4_POSITIVE = (0.08876418, 0.17945258, 0.27424848, 0.3759495, 0.48859093, 0.6187701, 0.7790818, 1.0)
_BOF4_NEGATIVE = (-1.0, -0.7535689, -0.5792681, -0.43867195, -0.31681907, -0.20602907, -0.101564065)
_BOF4_S_NEGATIVE = (-0.8568214, -0.6691702, -0.5234594, -0.40044922, -0.29103446, -0.18999179, -0.09385577)


def fit_bof4(block_size: int = 64, signed: bool = False) -> tuple[float, ...]:
    """The levels of BOF4 (signed: BOF4-S): of the least squared error on blocks of Gaussian weights, absmax-scaled.

    After the idea of arXiv 2505.06653, worked out here, and compared with the tables in its appendix C afterwards: the
    levels of BOF4 for blocks of 64 that its authors find by integration are met to 2e-6; those of BOF4 and of BOF4-S
    that they find from random blocks to 1.3e-4, which is also how far their own two ways lie apart.

    What counts is the error of weights and not of weights divided by their scale, so a block weighs with its scale's
    square. Lloyd's algorithm: thresholds halfway between levels, then each level to the weighted mean of what lies
    between its thresholds, until nothing moves. Three levels stay: 0, 1 and -1, or with a signed scale 0 and 1.

    With M the largest magnitude of n weights, the others divided by it have the density m phi(m x) / P(m) on [-1, 1],
    and M itself 2 n phi(m) P(m)^(n - 1), where P(m) = P(|w| < m). Integrals over x are known, that over m is a sum.

    Returns:
        sixteen levels, ascending.
    """
    float64 = {"dtype": torch.float64, "device": "cpu"}
    m = torch.linspace(0, 10, 401, **float64)[1:]
    inside = torch.special.erf(m / math.sqrt(2))
    weight = m**2 * torch.exp(-(m**2) / 2) * inside ** (block_size - 2)  # up to a factor
    levels = torch.cat((torch.linspace(-1, 0, 8, **float64), torch.linspace(0, 1, 9, **float64)[1:]))
    fixed = [7, 15] if signed else [0, 7, 15]
    ends = torch.ones(1, **float64)
    for _ in range(5000):
        t = torch.cat((-ends, (levels[1:] + levels[:-1]) / 2, ends))[:, None]
        mass = torch.special.erf(m * t / math.sqrt(2)) @ weight / 2  # the integrals up to t, of the density
        moment = -torch.exp(-((m * t) ** 2) / 2) @ (weight / m) / math.sqrt(2 * math.pi)  # and of x times it
        moved = moment.diff() / mass.diff()
        moved[fixed] = levels[fixed]
        done = (moved - levels).abs().max() < 1e-10
        levels = moved
        if done:
            break
    return tuple(levels.tolist())


_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # ggml-common.h, kvalues_iq4nl

DATATYPES: tuple[str, ...] = ("nf4", "fp4", "int4", "int4_affine")  # those of QLoRA's time: blocks of any size
SINCE_NF4: tuple[str, ...] = (
    "nf4_float16", "int4_signed", "bof4", "bof4_s", "q4_0", "q4_1", "iq4_nl", "mxfp4", "nvfp4",
)  # fmt: skip

with _disable_current_modes():  # this module may be imported first where all new tensors are fake ones
    _known = {
        datatype.name: datatype
        for datatype in (
            DataType("nf4", _nf4()),
            DataType("fp4", _fp4()),
            DataType("int4", _int4()),
            DataType("int4_affine", _int4_affine(), affine=True),
            DataType("nf4_float16", _nf4(), scales="float16"),
            DataType("int4_signed", tuple(k / 8 for k in range(-8, 8)), signed=True, extreme=-1),
            DataType("bof4", (*_BOF4_NEGATIVE, 0, *_BOF4_POSITIVE), block_size=64),
            DataType("bof4_s", (*_BOF4_S_NEGATIVE, 0, *_BOF4_POSITIVE), signed=True, block_size=64),
            DataType(
                "q4_0", tuple(range(-8, 8)), signed=True, extreme=-8, scales="float16", ties="upper", block_size=32
            ),
            DataType("q4_1", tuple(range(16)), affine=True, extreme=15, scales="float16", ties="upper", block_size=32),
            DataType("iq4_nl", _IQ4_NL, signed=True, extreme=-127, scales="float16", block_size=32),
            DataType("mxfp4", _e2m1(), extreme=4, scales="e8m0", ties="even", block_size=32),
            DataType("nvfp4", _e2m1(), extreme=6, scales="e4m3", ties="even", block_size=16),
        )
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
