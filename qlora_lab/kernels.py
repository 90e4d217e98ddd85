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

from qlora_lab.blocks import SCALE_BLOCK, dequantize_scales, scale_levels
from qlora_lab.datatypes import DataType

SMALLEST = 2**16  # weights; below this a look-up in plain PyTorch takes microseconds and compiling seconds
_HUGE_PAGE = 2**21  # bytes
_MODES = ("auto", "always", "never")


def _mode_from_environment() -> str:
    mode = os.environ.get("QLORA_LAB_COMPILE", "auto")
    if mode in _MODES:
        return mode
    choices = ", ".join(_MODES)
    warnings.warn(f"QLORA_LAB_COMPILE={mode!r} is none of {choices}; using auto", RuntimeWarning, stacklevel=2)
    return "auto"


_state = {"mode": _mode_from_environment(), "broken": set()}


def set_compile(mode: str) -> str:
    """Choose when compiled kernels are used; returns the mode until now. The results are equal in every mode.

    Args:
        mode: "auto" (from `SMALLEST` weights on), "always", or "never". The environment variable QLORA_LAB_COMPILE
            sets it at import (another value there: a warning, and "auto").

    Raises:
        ValueError: unknown mode.
    """
    if mode not in _MODES:
        raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(_MODES)}")
    before, _state["mode"] = _state["mode"], mode
    return before


def wanted(tensor: torch.Tensor, weights: int) -> bool:
    """Whether the compiled kernel should handle `weights` weights that lie where `tensor` does."""
    mode, kind = _state["mode"], tensor.device.type
    if mode == "never" or weights == 0 or kind not in ("cpu", "cuda") or kind in _state["broken"]:
        return False
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False  # someone compiles the caller, or watches every operation (a FLOP counter, fake tensors)
    return mode == "always" or weights >= SMALLEST


def quantize_blocks(blocks: torch.Tensor, datatype: DataType) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Compiled `blocks.quantize_blocks` for absmax data types; None where no compiler works.

    Args:
        blocks: (number of blocks, block size), float32 or bfloat16, contiguous.

    Returns:
        codes uint8 (number of blocks, block size / 2) and scales float32 (number of blocks,).
    """
    count, size = blocks.shape
    codes = empty((count, size // 2), torch.uint8, blocks.device)
    scales = torch.empty(count, dtype=torch.float32, device=blocks.device)
    if blocks.storage_offset() % 2:  # a slice that starts inside a pair
        blocks = blocks.clone()
    pairs = blocks.view(torch.int64 if blocks.dtype == torch.float32 else torch.int32)
    return (codes, scales) if _run(_quantize_kernel, (datatype, blocks.dtype), pairs, codes, scales) else None


def dequantize_blocks(
    codes: torch.Tensor,
    scales: torch.Tensor,
    datatype: DataType,
    dtype: torch.dtype,
    second: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor | None:
    """Compiled `blocks.dequantize_blocks` for absmax data types; None where no compiler works.

    Args:
        codes: uint8 (number of blocks, block size / 2).
        scales: float32 (number of blocks,), or their 8-bit codes.
        dtype: float32, float16 or bfloat16.
        second: of double-quantized scales, the scales float32 (ceil(blocks / 256),) and the offset float32 ().

    Returns:
        (number of blocks, block size) of `dtype`.
    """
    count, half = codes.shape
    if second is not None and (codes.device.type != "cpu" or dtype != torch.float32):
        # Triton would round a product and a sum only once, and the vector code for 16 bits reads beyond the levels
        scales, second = dequantize_scales(scales, *second), None
    scales = (scales,) if second is None else (scales, *second, scale_levels(codes.device))
    wide = torch.int64 if dtype == torch.float32 else torch.int32
    pairs = empty((count, half), wide, codes.device)  # one element holds two neighbouring weights
    if dtype == torch.float32:
        done = _run(_dequantize_32bit_kernel, (datatype,), pairs, codes, *scales)
    else:
        products = torch.empty((8, count), dtype=torch.int32, device=codes.device).t()
        done = _run(_products_kernel, (datatype, dtype), products, scales[0])
        done = done and _run(_dequantize_16bit_kernel, (), codes, products, pairs)
    return pairs.view(dtype) if done else None


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`torch.empty`, in huge pages where that helps: on Linux CPUs, from two huge pages on."""
    count = 1
    for n in shape:
        count *= n
    size = count * dtype.itemsize
    if device.type != "cpu" or size < 2 * _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # no memory left, or a kernel built without huge pages: PyTorch knows what to say or do
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)  # the tensor keeps the mapping alive


def _run(make, key: tuple, *tensors: torch.Tensor) -> bool:
    """Call the compiled kernel `make(context, *key)`; the number of blocks may change from call to call.

    On the first failure for a kind of device it says so, and `wanted` never tries there again.
    """
    kind = tensors[0].device.type
    try:
        if torch._dynamo.config.disable:  # TORCH_COMPILE_DISABLE: it would run the kernel uncompiled, which is slow
            return False
        for tensor in tensors:  # one compilation serves every number of blocks
            if tensor.ndim:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        with torch.no_grad():
            make(_context(tensors[0]), *key)(*tensors)
    except Exception as error:
        _state["broken"].add(kind)
        need = "a C++ compiler (g++ or clang++)" if kind == "cpu" else "Triton and a C compiler"
        error = getattr(error, "inner_exception", error)
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        warnings.warn(
            f"torch.compile does not work here for {kind} ({reason[:200]}); quantization takes the plain PyTorch path: "
            f"the same results, several times slower. Installing {need} brings the fast path.",
            RuntimeWarning,
            stacklevel=4,
        )
        return False
    return True


def _context(tensor: torch.Tensor) -> tuple:
    """Settings around the call that PyTorch compiles anew for; a kernel of its own for each keeps all below its limit.

    Dynamo gives up on a function after eight recompilations. Block sizes take up to four.
    """
    kind = tensor.device.type
    return (
        torch.is_inference_mode_enabled(),
        tensor.is_inference(),
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )


def _compiled(function):
    """torch.compile with a compilation cache of its own.

    Dynamo counts recompilations per code object; the closures made here share theirs, so each gets a copy.
    """
    own = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )
    return torch.compile(own, fullgraph=True)


def _constants(values, device: torch.device) -> list[torch.Tensor]:
    """float32 scalars. Bare numbers in `where` would take torch's default dtype, which the caller may have changed."""
    return [torch.full((), value, dtype=torch.float32, device=device) for value in values]


def _choose(bits: list[torch.Tensor], entries: list):
    """The entry whose index has these bits (lowest first): a tree of `where`s, seven for eight entries."""
    for bit in bits:
        entries = [torch.where(bit, high, low) for low, high in zip(entries[::2], entries[1::2], strict=True)]
    return entries[0]


def _bits(nibble: torch.Tensor, which: tuple[int, ...]) -> list[torch.Tensor]:
    return [(nibble & (1 << bit)) != 0 for bit in which]


def _decoded(scales, second) -> torch.Tensor:
    """Scales as they are, or from 8-bit codes and (scales of scales, offset, levels); see `blocks`. float32 (b,)"""
    if not second:
        return scales
    scale_scales, offset, levels = second
    block = torch.arange(len(scales), device=scales.device) // SCALE_BLOCK
    return levels[scales.int()] * scale_scales[block] + offset


@functools.cache
def _dequantize_32bit_kernel(context: tuple, datatype: DataType):
    levels = datatype.levels

    def kernel(pairs, codes, scales, *second):  # uint8 (b, s/2), float32 or uint8 (b,) -> int64 (b, s/2)
        scale = _decoded(scales, second)[:, None]
        byte, table = codes.to(torch.int32), _constants(levels, codes.device)
        first = (_choose(_bits(byte >> 4, (0, 1, 2, 3)), table) * scale).view(torch.int32).to(torch.int64)
        second = (_choose(_bits(byte, (0, 1, 2, 3)), table) * scale).view(torch.int32).to(torch.int64)
        pairs.copy_((first & 0xFFFFFFFF) | (second << 32))

    return _compiled(kernel)


@functools.cache
def _products_kernel(context: tuple, datatype: DataType, dtype: torch.dtype):
    levels = datatype.levels

    def kernel(products, scales):  # float32 (b,) -> int32 (b, 8): levels 2i and 2i+1 times the scale
        def bits(level):
            product = scales * level
            if dtype == torch.float16:
                return product.to(dtype).view(torch.int16).to(torch.int32)
            # bfloat16 is the upper half of float32: round to nearest even there, in integers, which vectorizes
            whole = product.view(torch.int32)
            return (whole + 0x7FFF + ((whole >> 16) & 1)) >> 16

        for i in range(8):
            products[:, i].copy_((bits(levels[2 * i]) & 0xFFFF) | (bits(levels[2 * i + 1]) << 16))

    return _compiled(kernel)


@functools.cache
def _dequantize_16bit_kernel(context: tuple):
    def kernel(codes, products, pairs):  # uint8 (b, s/2), int32 (b, 8) -> int32 (b, s/2)
        byte = codes.to(torch.int32)
        entries = [products[:, i, None] for i in range(8)]

        def look_up(nibble):  # the pair by the upper three bits, then its half by the lowest
            return _choose(_bits(nibble, (1, 2, 3)), entries) >> ((nibble & 1) << 4)

        pairs.copy_((look_up(byte >> 4) & 0xFFFF) | (look_up(byte) << 16))

    return _compiled(kernel)


@functools.cache
def _quantize_kernel(context: tuple, datatype: DataType, dtype: torch.dtype):
    thresholds, order = datatype.thresholds, datatype.order
    order = list(order) + [order[-1]] * (16 - len(order))  # fp4 has fifteen distinct levels
    sorted_already = order == list(range(16))

    def halves(pairs):  # two neighbouring weights from one integer, as float32
        if dtype == torch.float32:
            return pairs.to(torch.int32).view(torch.float32), (pairs >> 32).to(torch.int32).view(torch.float32)
        return (pairs << 16).view(torch.float32), (pairs & -65536).view(torch.float32)  # bfloat16: the upper half

    def code(x):  # the number of thresholds below x, counted in floats: their lanes are as wide as x's
        zero, one = _constants((0.0, 1.0), x.device)
        rank = functools.reduce(lambda total, t: total + torch.where(x > t, one, zero), thresholds, zero)
        if sorted_already:
            return rank
        return _choose(_bits(rank.to(torch.int32), (0, 1, 2, 3)), _constants(order, x.device))

    def kernel(pairs, codes, scales):  # int64 or int32 (b, s/2) -> uint8 (b, s/2), float32 (b,)
        first, second = halves(pairs)
        absmax = torch.maximum(first.abs(), second.abs()).amax(1)
        # by way of float64, which rounds once more but to the same number: Triton's float32 division is approximate
        inverse = (1.0 / absmax.clamp(min=1e-38).double()).float()[:, None]
        scales.copy_(absmax)
        codes.copy_((code(first * inverse) * 16 + code(second * inverse)).to(torch.uint8))

    return _compiled(kernel)
