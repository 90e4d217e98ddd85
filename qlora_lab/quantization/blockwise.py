"""The arithmetic of block-wise quantization, in plain PyTorch: what every faster form must equal bit for bit.

A block is a row of a matrix here: (number of blocks, block size). `tensor` cuts tensors into blocks and keeps the
results; `fast.kernels` is fast.
"""

import torch

from qlora_lab.quantization.datatypes import DataType, cached_table, dynamic_map

SCALE_BLOCK = 256  # scales that share one second-level scale under double quantization


def quantize_blocks(blocks: torch.Tensor, datatype: DataType) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The definition: quantize each row of `blocks` with a scale of its own.

    Args:
        blocks: (number of blocks, block size), any float dtype.

    Returns:
        codes uint8, one per element, the shape of `blocks`; scales float32 (number of blocks,); offsets likewise for
        affine data types, else None.
    """
    x = blocks.float()  # scaling in bfloat16 would move about 0.2 % of the codes
    if datatype.affine:
        offsets = x.amin(1)
        scales = x.amax(1) - offsets
        x = x - offsets[:, None]
    else:
        offsets = None
        scales = x.abs().amax(1)
    x = x * (1.0 / scales.clamp(min=1e-38))[:, None]  # a block of zeros stays zeros instead of becoming 0/0
    thresholds = torch.tensor(datatype.thresholds, dtype=torch.float32, device=x.device)
    rank = torch.bucketize(x, thresholds, out_int32=True)  # how many thresholds lie below: a tie takes the lower level
    order = torch.tensor(datatype.order, dtype=torch.uint8, device=x.device)
    return order[rank], scales, offsets


def dequantize_blocks(
    codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None, datatype: DataType, dtype: torch.dtype
) -> torch.Tensor:
    """The definition: level[code] * scale (+ offset), in float32, then rounded once.

    Args:
        codes: uint8 (number of blocks, block size / 2), two codes per byte.
        scales, offsets: float32 (number of blocks,).

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
