"""The arithmetic of block-wise quantization, in plain PyTorch: what every faster form must equal bit for bit.

A block is a row of a matrix here: (number of blocks, block size). `tensor` cuts tensors into blocks and keeps the
results; `fast.kernels` is fast.
"""

import torch

from qlora_lab.quantization.datatypes import SCALES, DataType, cached_table, dynamic_map

SCALE_BLOCK = 256  # scales that share one second-level scale under double quantization
_E4M3 = torch.finfo(torch.float8_e4m3fn)


def quantize_blocks(
    blocks: torch.Tensor, datatype: DataType, tensor_scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The definition: quantize each row of `blocks` with a scale of its own.

    Args:
        blocks: (number of blocks, block size), any float dtype.
        tensor_scale: float32 (1,), of data types whose scales are "e4m3"; see `find_tensor_scale`.

    Returns:
        codes uint8, one per element, the shape of `blocks`; scales (number of blocks,) as the data type stores them,
        `decode_scales` makes float32 of them; offsets likewise, float32 or float16, for affine data types, else None.
    """
    x = blocks.float()  # scaling in bfloat16 would move about 0.2 % of the codes
    offsets = None
    if datatype.affine:
        offsets = x.amin(1)
        reach = x.amax(1) - offsets
        x = x - offsets[:, None]
    elif datatype.signed:
        reach = x.gather(1, x.abs().argmax(1, keepdim=True))[:, 0]
    else:
        reach = x.abs().amax(1)
    scales = reach / datatype.extreme
    if datatype.scales == "e8m0":  # the exponent of a float32: it is a power of two's code in E8M0 too
        stored = (scales.view(torch.int32) >> 23).to(torch.uint8)
        inverse = 1.0 / decode_scales(stored, datatype)  # exact
    elif datatype.scales == "e4m3":
        stored = (scales / tensor_scale).clamp(_E4M3.tiny, _E4M3.max).to(torch.float8_e4m3fn)
        inverse = (1.0 / tensor_scale) / stored.float()
        stored = stored.view(torch.uint8)
    else:  # rounded to float16, if at all, after the weights were divided by what it was before
        stored = scales.to(SCALES[datatype.scales])
        offsets = None if offsets is None else offsets.to(stored.dtype)
        # a block of zeros stays zeros instead of becoming 0/0
        inverse = torch.copysign(1.0 / scales.abs().clamp(min=1e-38), scales)
    x = x * inverse[:, None]
    thresholds = torch.tensor(datatype.thresholds, dtype=torch.float32, device=x.device)
    rank = torch.bucketize(x, thresholds, out_int32=True)  # how many thresholds lie below
    codes = torch.tensor(datatype.order, dtype=torch.uint8, device=x.device)[rank]
    if datatype.negative_zero is not None:
        codes[(codes == datatype.zero_code) & x.signbit()] = datatype.negative_zero
    return codes, stored, offsets


def find_tensor_scale(weight: torch.Tensor, datatype: DataType) -> torch.Tensor | None:
    """The one number of a tensor whose scales are "e4m3": it makes the largest of them E4M3's largest number, 448.

    Returns:
        float32 (1,); None for data types that have none.
    """
    if datatype.scales != "e4m3":
        return None
    largest = (
        weight.abs().amax().float() if weight.numel() else torch.ones((), dtype=torch.float32, device=weight.device)
    )
    # so large that 1 divided by it, and by the least scale of a block, is a number: tensors of zeros stay zeros
    return (largest / (_E4M3.max * datatype.extreme)).clamp(min=2.0**-121).view(1)


def decode_scales(stored: torch.Tensor, datatype: DataType, tensor_scale: torch.Tensor | None = None) -> torch.Tensor:
    """Scales as a data type stores them -> float32 (number of blocks,)."""
    if stored.dtype != torch.uint8:
        return stored.float()
    scales = _numbers_of_eight_bits(datatype.scales, stored.device)[stored.int()]
    return scales if tensor_scale is None else scales * tensor_scale


@cached_table
def _numbers_of_eight_bits(kind: str, device: torch.device) -> torch.Tensor:
    """What the 256 codes of E8M0 or E4M3 stand for, float32 (256,)."""
    codes = torch.arange(256, dtype=torch.uint8, device="cpu")
    if kind == "e4m3":
        return codes.view(torch.float8_e4m3fn).float().to(device)
    powers = torch.ldexp(torch.ones(256, device="cpu", dtype=torch.float64), codes.double() - 127)
    powers[255] = torch.nan
    return powers.float().to(device)


def dequantize_blocks(
    codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None, datatype: DataType, dtype: torch.dtype
) -> torch.Tensor:
    """The definition: level[code] * scale (+ offset), in float32, then rounded once.

    Args:
        codes: uint8 (number of blocks, block size / 2), two codes per byte.
        scales, offsets: float32 (number of blocks,), decoded.

    Returns:
        (number of blocks, block size) of `dtype`.
    """
    table = datatype.table(codes.device)
    byte = torch.arange(256, device=codes.device)
    pairs = torch.stack((table[byte >> 4], table[byte & 15]), 1)  # (256, 2): both weights of a byte in one look-up
    x = pairs.index_select(0, codes.reshape(-1).int()).view(len(codes), 2 * codes.shape[1]) * scales[:, None]
    if offsets is not None:
        x = x + offsets[:, None]
    return x.to(dtype)


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """Two 4-bit codes per byte, the first in the high nibble. uint8 (..., 2n) -> uint8 (..., n)."""
    return (codes[..., ::2] << 4) | codes[..., 1::2]


def quantize_scales(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Double quantization: float32 scales to 8 bits with the signed dynamic map, in blocks of 256, around their mean.

    Args:
        scales: float32 (blocks,).

    Returns:
        codes uint8 (blocks,), second-level scales float32 (ceil(blocks / 256),), offset float32 ().

    Raises:
        ValueError: the sum of the scales, of which the mean is made, is beyond float32.
    """
    levels = torch.tensor(dynamic_map(), dtype=torch.float32, device=scales.device)
    thresholds = (levels[1:] + levels[:-1]) / 2
    offset = scales.mean() if len(scales) else scales.new_zeros(())
    if not offset.isfinite():
        raise ValueError("the sum of the scales exceeds float32's largest number; use double_quant=False")
    centred = torch.nn.functional.pad(scales - offset, (0, -len(scales) % SCALE_BLOCK)).view(-1, SCALE_BLOCK)
    absmax = centred.abs().amax(1) if len(centred) else centred.new_zeros(0)
    codes = torch.bucketize(centred * (1.0 / absmax.clamp(min=1e-38))[:, None], thresholds, out_int32=True)
    return codes.view(-1)[: len(scales)].to(torch.uint8), absmax, offset


def dequantize_scales(codes: torch.Tensor, absmax: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Undo `quantize_scales`: map[code] * absmax of its block of 256 + offset. float32 (blocks,)."""
    return scale_levels(codes.device)[codes.int()] * absmax.repeat_interleave(SCALE_BLOCK)[: len(codes)] + offset


@cached_table
def scale_levels(device: torch.device) -> torch.Tensor:
    """The signed dynamic map, float32 (256,)."""
    return torch.tensor(dynamic_map(), dtype=torch.float32, device=device)
