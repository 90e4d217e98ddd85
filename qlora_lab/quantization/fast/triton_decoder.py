"""Decoding on an NVIDIA GPU in one launch, double-quantized scales included: a kernel in Triton.

Decoding the scales alone, `blockwise.dequantize_scales`, is several launches one after the other, and a layer that is
small may wait for their starts longer than for their work. Here a program of the kernel takes some blocks: it decodes
their scales, looks up both levels of each byte, multiplies, rounds once, and writes. A shorter last block and an odd
number of weights are the same work under a mask.

The same bits as the definition: map[code] * absmax + offset rounds twice there, so the compiler must not fuse it, and
bfloat16 is rounded in integers, which gives the same on all GPUs and in Triton's interpreter. Whatever counts weights
or blocks is a 64-bit integer: a tensor may have more than 2^31.

Its speed has not been measured yet, and `_BYTES` not been tuned. Triton does not come with a CPU build of PyTorch:
`operator` imports this file where a tensor is on a GPU.
"""

import torch
import triton
import triton.language as tl

from qlora_lab.quantization.blockwise import SCALE_BLOCK, dequantize_blocks, dequantize_scales, scale_levels
from qlora_lab.quantization.datatypes import DataType, cached_table
from qlora_lab.quantization.fast.compilation import TRITON, attempt, proved

_BYTES = 1024  # that a program reads of the codes, at least a block's
_SAMPLE = 64  # blocks at either end that are compared with the definition


@triton.jit
def decoding_kernel(
    codes,  # uint8 (ceil(n / 2),)
    scales,  # float32 (blocks,), or uint8 with the three that follow
    scale_scales,  # None, or float32 (ceil(blocks / SCALE_BLOCK),)
    scale_offset,  # None, or float32 ()
    scale_map,  # None, or float32 (256,)
    offsets,  # None, or float32 (blocks,)
    levels,  # float32 (16,)
    decoded,  # (n,) float32, float16, or int16 for the bits of bfloat16
    size,  # of the codes, bytes
    n,
    SCALE_BLOCK: tl.constexpr,
    HALF: tl.constexpr,  # bytes of a block
    WIDTH: tl.constexpr,  # the power of two that holds them
    ROWS: tl.constexpr,  # blocks of a program
):
    block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = block * (2 * HALF) < n
    if scale_scales is None:
        scale = tl.load(scales + block, mask=there, other=0.0)
    else:
        level = tl.load(scale_map + tl.load(scales + block, mask=there, other=0).to(tl.int32))
        product = level * tl.load(scale_scales + block // SCALE_BLOCK, mask=there, other=0.0)
        scale = product + tl.load(scale_offset)
    column = tl.arange(0, WIDTH)[None, :]
    byte = block[:, None] * HALF + column
    inside = byte < size if HALF == WIDTH else (column < HALF) & (byte < size)
    pair = tl.load(codes + byte, mask=inside, other=0).to(tl.int32)
    weights = tl.interleave(tl.load(levels + (pair >> 4)), tl.load(levels + (pair & 15)))  # (ROWS, 2 * WIDTH)
    weights = weights * scale[:, None]
    if offsets is not None:
        weights = weights + tl.load(offsets + block, mask=there, other=0.0)[:, None]
    if decoded.dtype.element_ty == tl.int16:  # the upper half of float32, to the nearest even
        whole = weights.to(tl.int32, bitcast=True)
        rounded = (whole + 0x7FFF + ((whole >> 16) & 1)) >> 16
        weights = tl.where(weights == weights, rounded, 0x7FC0)  # a NaN's bits may be all ones
    column = tl.arange(0, 2 * WIDTH)[None, :]
    index = block[:, None] * (2 * HALF) + column
    inside = index < n if HALF == WIDTH else (column < 2 * HALF) & (index < n)
    tl.store(decoded + index, weights.to(decoded.dtype.element_ty), mask=inside)


def decode_on_gpu(
    codes: torch.Tensor,
    scales: torch.Tensor,
    second: tuple[torch.Tensor, torch.Tensor] | None,
    offsets: torch.Tensor | None,
    datatype: DataType,
    block_size: int,
    n: int,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """`n` weights, bit for bit as `blockwise` decodes them; None where the kernel does not work, or is found wrong.

    Args:
        codes: uint8 (ceil(n / 2),).
        scales: float32 (blocks,), or their 8-bit codes; the last block may be shorter.
        second: of double-quantized scales, the scales float32 (ceil(blocks / 256),) and the offset float32 ().
        offsets: float32 (blocks,), of affine data types.
        dtype: float32, float16 or bfloat16.

    Returns:
        (n,) of `dtype`.
    """
    blocks = -(-n // block_size)
    needed = [(codes, -(-n // 2)), (scales, blocks), (offsets, blocks)]
    needed += [] if second is None else [(second[0], -(-blocks // SCALE_BLOCK))]
    needed = [(tensor, length) for tensor, length in needed if tensor is not None]
    if any(len(tensor) < length or tensor.device != codes.device for tensor, length in needed):
        return None  # too short, or elsewhere: the definition complains, while nothing here checks what is read
    codes, scales, offsets = codes.contiguous(), scales.contiguous(), None if offsets is None else offsets.contiguous()
    second = None if second is None else (second[0].contiguous(), second[1].to(codes.device))
    decoded = torch.empty(n, dtype=dtype, device=codes.device)
    arguments = _arguments(codes, scales, second, offsets, datatype, decoded)
    constant = constants(block_size)

    def launch():
        with torch.cuda.device_of(codes):
            grid = (triton.cdiv(blocks, constant["ROWS"]),)
            decoding_kernel[grid](*arguments, **constant, enable_fp_fusion=False)

    def agrees() -> bool:
        """Whether the first blocks and the last are as defined: the last are where numbers of weights get large."""
        scale = scales if second is None else dequantize_scales(scales, *second)
        for start in {0, max(0, blocks - _SAMPLE)}:
            some = slice(start, start + _SAMPLE)
            found = decoded[start * block_size : (start + _SAMPLE) * block_size]
            row = codes[some.start * block_size // 2 : some.stop * block_size // 2]
            row = torch.nn.functional.pad(row, (0, -len(row) % (block_size // 2))).view(-1, block_size // 2)
            expected = dequantize_blocks(row, scale[some], None if offsets is None else offsets[some], datatype, dtype)
            if not torch.allclose(found, expected.view(-1)[: len(found)], rtol=0, atol=0, equal_nan=True):
                return False
        return True

    if not attempt(TRITON, launch):
        return None
    # Triton compiles for what is known of numbers and addresses
    known = (n % 16, n < 2**31, *(t.data_ptr() % 16 for t in arguments if isinstance(t, torch.Tensor)))
    key = (datatype, block_size, dtype, second is None, *known)
    return decoded if proved("decoding in Triton", codes, key, agrees, TRITON) else None


def _arguments(codes, scales, second, offsets, datatype: DataType, decoded: torch.Tensor) -> tuple:
    """What `decoding_kernel` takes, up to its constants."""
    double = (None, None, None) if second is None else (*second, scale_levels(codes.device))
    out = decoded.view(torch.int16) if decoded.dtype == torch.bfloat16 else decoded
    n = decoded.numel()
    return (codes, scales, *double, offsets, _levels(datatype, codes.device), out, -(-n // 2), n)


def constants(block_size: int) -> dict[str, int]:
    """What `decoding_kernel` is compiled for."""
    half = block_size // 2
    width = triton.next_power_of_2(half)
    return {"SCALE_BLOCK": SCALE_BLOCK, "HALF": half, "WIDTH": width, "ROWS": max(1, _BYTES // width)}


@cached_table
def _levels(datatype: DataType, device: torch.device) -> torch.Tensor:
    return datatype.table(device)
