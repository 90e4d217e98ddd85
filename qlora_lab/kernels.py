"""The fast path: quantization and dequantization written so that torch.compile turns them into vector code.

`quantization` holds the definitions, in the fewest words. Here the same functions are written a second time for speed,
with equal results bit for bit, and compiled: to C++ on a CPU, to Triton on an NVIDIA GPU. What makes them fast:

- A look-up in a table of 16 becomes a tree of fifteen `where`s over the code's four bits. Vector units have no cheap
  gather, but they blend sixteen lanes in one instruction.
- The table's numbers are constants in the code, not a tensor: the compiler cannot know that writing the output leaves a
  tensor as it was and would read it again for every sixteen weights.
- Two neighbouring outputs are written as one integer of twice the width, so that stores stay contiguous.
- A block has only sixteen different 16-bit results. They are computed once per block, two to an integer, and then
  looked up; neither the product with the scale nor the rounding happens per weight.
- Large outputs are allocated in huge pages (Linux): touching fresh memory 4 KiB at a time costs more than filling it.

Where no compiler works, one warning says so and the definitions run instead.
"""

import functools
import mmap
import os
import types
import warnings

import torch

from qlora_lab.datatypes import DataType

SMALLEST = 2**16  # weights; below this a look-up in plain PyTorch takes microseconds and compiling seconds
_HUGE_PAGE = 2**21  # bytes
_MODES = ("auto", "always", "never")
_state = {"mode": os.environ.get("QLORA_LAB_COMPILE", "auto"), "broken": set()}


def set_compile(mode: str) -> str:
    """Choose when compiled kernels are used; returns the mode until now. The results are equal in every mode.

    Args:
        mode: "auto" (from `SMALLEST` weights on), "always", or "never". The environment variable QLORA_LAB_COMPILE
            sets it at import.
    """
    if mode not in _MODES:
        raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(_MODES)}")
    before, _state["mode"] = _state["mode"], mode
    return before


def wanted(tensor: torch.Tensor, weights: int) -> bool:
    """Whether the compiled kernel should handle `weights` weights that lie where `tensor` does."""
    mode = _state["mode"] if _state["mode"] in _MODES else "auto"
    if mode == "never" or weights == 0 or tensor.device.type not in ("cpu", "cuda"):
        return False
    return tensor.device.type not in _state["broken"] and (mode == "always" or weights >= SMALLEST)


def quantize_blocks(blocks: torch.Tensor, datatype: DataType) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Compiled `quantization.quantize_blocks` for absmax data types; None where no compiler works.

    Args:
        blocks: (number of blocks, block size), float32 or bfloat16, contiguous.

    Returns:
        codes uint8 (number of blocks, block size / 2) and scales float32 (number of blocks,).
    """
    count, size = blocks.shape
    codes = empty((count, size // 2), torch.uint8, blocks.device)
    scales = torch.empty(count, dtype=torch.float32, device=blocks.device)
    pairs = blocks.view(torch.int64 if blocks.dtype == torch.float32 else torch.int32)
    kernel = _quantize_kernel(datatype, blocks.dtype)
    return (codes, scales) if _run(kernel, pairs, codes, scales) else None


def dequantize_blocks(
    codes: torch.Tensor, scales: torch.Tensor, datatype: DataType, dtype: torch.dtype
) -> torch.Tensor | None:
    """Compiled `quantization.dequantize_blocks` for absmax data types; None where no compiler works.

    Args:
        codes: uint8 (number of blocks, block size / 2).
        scales: float32 (number of blocks,).
        dtype: float32, float16 or bfloat16.

    Returns:
        (number of blocks, block size) of `dtype`.
    """
    count, half = codes.shape
    wide = torch.int64 if dtype == torch.float32 else torch.int32
    pairs = empty((count, half), wide, codes.device)  # one element holds two neighbouring weights
    if dtype == torch.float32:
        done = _run(_dequantize_32bit_kernel(datatype), codes, scales, pairs)
    else:
        products = torch.empty((8, count), dtype=torch.int32, device=codes.device)
        done = _run(_products_kernel(datatype, dtype), scales, products)
        done = done and _run(_dequantize_16bit_kernel(), codes, products, pairs)
    return pairs.view(dtype) if done else None


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`torch.empty`, in huge pages where that helps: on Linux CPUs, from two huge pages on."""
    count = 1
    for n in shape:
        count *= n
    size = count * dtype.itemsize
    if device.type != "cpu" or size < 2 * _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel built without huge pages
        memory.close()
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)  # the tensor keeps the mapping alive


def _run(kernel, *tensors: torch.Tensor) -> bool:
    """Call a compiled kernel; on the first failure for a kind of device say so and never try there again."""
    kind = tensors[0].device.type
    for tensor in tensors:  # one compilation serves every number of blocks
        torch._dynamo.maybe_mark_dynamic(tensor, 1 if tensor.shape[0] == 8 and tensor.ndim == 2 else 0)
    try:
        with torch.no_grad():
            kernel(*tensors)
    except Exception as error:
        _state["broken"].add(kind)
        need = "a C++ compiler (g++ or clang++)" if kind == "cpu" else "Triton and a C compiler"
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        warnings.warn(
            f"torch.compile does not work here for {kind} ({reason[:200]}); quantization takes the plain PyTorch path: "
            f"the same results, several times slower. Installing {need} brings the fast path.",
            RuntimeWarning,
            stacklevel=4,
        )
        return False
    return True


def _compiled(function):
    """torch.compile with a compilation cache of its own.

    Dynamo counts recompilations per code object and gives up after eight; the closures made here share theirs, so each
    gets a copy.
    """
    own = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )
    return torch.compile(own, fullgraph=True)


def _choose(bits: list[torch.Tensor], entries: list):
    """The entry whose index has these bits (lowest first): a tree of `where`s, seven for eight entries."""
    for bit in bits:
        entries = [torch.where(bit, high, low) for low, high in zip(entries[::2], entries[1::2], strict=True)]
    return entries[0]


def _bits(nibble: torch.Tensor, which: tuple[int, ...]) -> list[torch.Tensor]:
    return [(nibble & (1 << bit)) != 0 for bit in which]


@functools.cache
def _dequantize_32bit_kernel(datatype: DataType):
    levels = datatype.levels

    def kernel(codes, scales, pairs):  # uint8 (b, s/2), float32 (b,) -> int64 (b, s/2)
        byte, scale = codes.to(torch.int32), scales[:, None]
        first = (_choose(_bits(byte >> 4, (0, 1, 2, 3)), levels) * scale).view(torch.int32).to(torch.int64)
        second = (_choose(_bits(byte, (0, 1, 2, 3)), levels) * scale).view(torch.int32).to(torch.int64)
        pairs.copy_((first & 0xFFFFFFFF) | (second << 32))

    return _compiled(kernel)


@functools.cache
def _products_kernel(datatype: DataType, dtype: torch.dtype):
    levels = datatype.levels

    def kernel(scales, products):  # float32 (b,) -> int32 (8, b): levels 2i and 2i+1 times the scale, in 16 bits each
        def bits(level):
            product = scales * level
            if dtype == torch.float16:
                return product.to(dtype).view(torch.int16).to(torch.int32)
            # bfloat16 is the upper half of float32: round to nearest even there, in integers, which vectorizes
            whole = product.view(torch.int32)
            return (whole + 0x7FFF + ((whole >> 16) & 1)) >> 16

        for i in range(8):
            products[i].copy_((bits(levels[2 * i]) & 0xFFFF) | (bits(levels[2 * i + 1]) << 16))

    return _compiled(kernel)


@functools.cache
def _dequantize_16bit_kernel():
    def kernel(codes, products, pairs):  # uint8 (b, s/2), int32 (8, b) -> int32 (b, s/2)
        byte = codes.to(torch.int32)
        entries = [products[i][:, None] for i in range(8)]

        def look_up(nibble):  # the pair by the upper three bits, then its half by the lowest
            return _choose(_bits(nibble, (1, 2, 3)), entries) >> ((nibble & 1) << 4)

        pairs.copy_((look_up(byte >> 4) & 0xFFFF) | (look_up(byte) << 16))

    return _compiled(kernel)


@functools.cache
def _quantize_kernel(datatype: DataType, dtype: torch.dtype):
    thresholds, order = datatype.thresholds, datatype.order
    order = list(order) + [order[-1]] * (16 - len(order))  # fp4 has fifteen distinct levels
    sorted_already = order == list(range(16))

    def halves(pairs):  # two neighbouring weights from one integer, as float32
        if dtype == torch.float32:
            return pairs.to(torch.int32).view(torch.float32), (pairs >> 32).to(torch.int32).view(torch.float32)
        return (pairs << 16).view(torch.float32), (pairs & -65536).view(torch.float32)  # bfloat16: the upper half

    def code(x):  # the number of thresholds below x, counted in floats: their lanes are as wide as x's
        rank = functools.reduce(lambda total, t: total + torch.where(x > t, 1.0, 0.0), thresholds, 0.0)
        return rank if sorted_already else _choose(_bits(rank.to(torch.int32), (0, 1, 2, 3)), [float(c) for c in order])

    def kernel(pairs, codes, scales):  # int64 or int32 (b, s/2) -> uint8 (b, s/2), float32 (b,)
        first, second = halves(pairs)
        absmax = torch.maximum(first.abs(), second.abs()).amax(1)
        inverse = (1.0 / absmax.clamp(min=1e-38))[:, None]
        scales.copy_(absmax)
        codes.copy_((code(first * inverse) * 16 + code(second * inverse)).to(torch.uint8))

    return _compiled(kernel)
