"""MXFP4 and NVFP4 bit for bit as torchao has them: codes, scales and decoded weights.

torchao is not among what the package or its tests install; `make formats-check` brings it.
"""

import pytest
import torch
from hard_weights import enormous_weights, hard_weights

from qlora_lab.quantization.datatypes import get_datatype
from qlora_lab.quantization.tensor import quantize

pytest.importorskip(
    "torchao",
    reason="torchao is not here, so MXFP4 and NVFP4 were compared with nothing (`make formats-check`): NOT RUN",
)

from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def mxfp4(weight):
    """torchao's codes (a byte each), scales (bytes), decoded weights."""
    scales, packed = to_mx(weight, torch.float4_e2m1fn_x2, 32)
    decoded = to_dtype(packed, scales, torch.float4_e2m1fn_x2, 32, weight.dtype)
    return _unpacked(packed), scales.view(torch.uint8).view(-1), decoded


def nvfp4(weight):
    theirs = NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=per_tensor_amax_to_scale(weight.abs().max()))
    return _unpacked(theirs.qdata), theirs.scale.view(torch.uint8).view(-1), theirs.dequantize(weight.dtype)


def _unpacked(packed):
    packed = packed.view(torch.uint8)
    return torch.stack((packed & 15, packed >> 4), -1).view(-1)  # the first in the low nibble


THEIRS = {"mxfp4": mxfp4, "nvfp4": nvfp4}


def assert_equal(name: str, weight: torch.Tensor) -> None:
    codes, scales, decoded = THEIRS[name](weight)
    mine = quantize(weight, name)
    assert torch.equal(torch.stack((mine.codes >> 4, mine.codes & 15), -1).view(-1), codes)
    assert torch.equal(mine.stored["scale_codes"], scales)
    kind = INTEGERS[weight.dtype]  # bits, so that -0.0 is not 0.0
    assert torch.equal(mine.dequantize().view(kind), decoded.view(weight.shape).view(kind))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize(
    "name, case",
    [
        (name, case)
        for name in THEIRS
        for case in hard_weights(get_datatype(name), get_datatype(name).block_size)
        | enormous_weights(get_datatype(name).block_size)
        if not (name == "nvfp4" and case in ("zeros", "negative zeros", "zeros of both signs"))
    ],
)
def test_every_bit_is_torchaos(name, case, dtype):
    size = get_datatype(name).block_size
    weight = (hard_weights(get_datatype(name), size) | enormous_weights(size))[case]
    most = torch.finfo(dtype).max
    assert_equal(name, weight.clamp(-most, most).to(dtype))


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("seed", range(10))
def test_on_random_bits_and_on_gaussians(name, seed):
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**31), 2**31, (1000, 64), generator=generator).to(torch.int32).view(torch.float32)
    for weight in (torch.where(bits.isfinite(), bits, 0), torch.randn(600, 96, generator=generator) * 10.0**-seed):
        assert_equal(name, weight)


def test_where_torchao_halves_the_tiniest_blocks_they_are_nearest_here():
    """Its MXFP4 divides by 2^-126; what it stores as the scale, and multiplies by, is 2^-127."""
    weight = torch.tensor([1.0, -0.5, 0.25, 0.75] * 8) * 2.0**-125
    assert torch.equal(quantize(weight, "mxfp4").dequantize(), weight)
    _, scales, decoded = mxfp4(weight)
    assert scales.tolist() == [0] and torch.equal(decoded[::4], weight[::4] / 2)


def test_a_tensor_of_zeros_has_no_nan_where_torchao_has():
    weight = torch.zeros(2, 32)
    assert quantize(weight, "nvfp4").dequantize().equal(weight)
    assert nvfp4(weight)[2].isnan().all()
