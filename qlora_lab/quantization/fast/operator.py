"""Decoding as an operator of PyTorch, `torch.ops.qlora_lab.dequantize_4bit`.

What runs inside an operator is one step for whoever watches or transforms the code above it: the memory ledger, fake
tensors, torch.compile of a whole model, gradient checkpointing.
"""

import torch

from qlora_lab.quantization.blockwise import decode_scales, dequantize_blocks, dequantize_scales
from qlora_lab.quantization.datatypes import get_datatype
from qlora_lab.quantization.fast import compilation, kernels


def dequantize_4bit(
    codes: torch.Tensor,
    scales: torch.Tensor,
    scale_scales: torch.Tensor | None,
    scale_offset: torch.Tensor | None,
    offsets: torch.Tensor | None,
    datatype: str,
    block_size: int,
    shape: torch.Size,
    dtype: torch.dtype,
) -> torch.Tensor:
    """scale * level for each code, computed in float32 and rounded once.

    Args:
        codes, scales, scale_scales, scale_offset, offsets: what a `QuantizedTensor` stores; `scales` are the codes of
            the scales where they have codes, and `scale_offset` is given for those of double quantization.
        dtype: float32, float16 or bfloat16.

    Returns:
        a tensor of `shape` and `dtype`.
    """
    return torch.ops.qlora_lab.dequantize_4bit(
        codes, scales, scale_scales, scale_offset, offsets, datatype, block_size, list(shape), dtype
    )


def _dequantize(codes, scales, scale_scales, scale_offset, offsets, datatype, block_size, shape, dtype) -> torch.Tensor:
    datatype, shape = get_datatype(datatype), torch.Size(shape)
    second = None if scale_offset is None else (scale_scales, scale_offset)  # double quantization
    if second is None:
        scales = decode_scales(scales, datatype, scale_scales)
    offsets = None if offsets is None else offsets.float()
    n = shape.numel()
    if codes.is_cuda and compilation.wanted(codes, n, compilation.TRITON):
        result = _decode_on_gpu(codes, scales, second, offsets, datatype, block_size, n, dtype)
        if result is not None:
            return result.view(shape)
    whole = n - n % block_size
    count = whole // block_size
    blocks = codes[: whole // 2].view(count, block_size // 2)
    result = None
    if offsets is None and compilation.wanted(codes, whole):
        result = kernels.dequantize_blocks(blocks, scales[:count], datatype, dtype, second)
        if result is not None and whole == n:
            return result.view(shape)
    if second is not None:
        scales = dequantize_scales(scales, *second)
    if result is None:
        result = dequantize_blocks(
            blocks, scales[:count], None if offsets is None else offsets[:count], datatype, dtype
        )
    if whole == n:
        return result.view(shape)
    tail = None if offsets is None else offsets[count:]
    last = dequantize_blocks(codes[None, whole // 2 :], scales[count:], tail, datatype, dtype)[0, : n - whole]
    return torch.cat((result.view(-1), last)).view(shape)


def _decode_on_gpu(*arguments) -> torch.Tensor | None:
    try:
        from qlora_lab.quantization.fast import triton_decoder
    except ImportError:  # no Triton here; torch.compile, which needs it too, will say so
        return None
    return triton_decoder.decode_on_gpu(*arguments)


if _before := globals().get("_library"):  # this module is being reloaded (Jupyter's autoreload)
    _before._destroy()
_library = torch.library.Library("qlora_lab", "DEF")
_library.define(
    "dequantize_4bit(Tensor codes, Tensor scales, Tensor? scale_scales, Tensor? scale_offset, Tensor? offsets, "
    "str datatype, int block_size, SymInt[] shape, ScalarType dtype) -> Tensor"
)
_library.impl("dequantize_4bit", _dequantize, "CompositeExplicitAutograd")


@torch.library.register_fake("qlora_lab::dequantize_4bit", lib=_library)
def _(codes, scales, scale_scales, scale_offset, offsets, datatype, block_size, shape, dtype):
    return codes.new_empty(shape, dtype=dtype)
