"""Q4_0, Q4_1 and IQ4_NL as llama.cpp has them, by its own package `gguf`. That quantizes to the first two; IQ4_NL it
only decodes, since llama.cpp looks for a scale there that makes the error small."""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize as decode
from gguf.quants import quantize as encode
from hard_weights import hard_weights

from qlora_lab.quantization.datatypes import get_datatype
from qlora_lab.quantization.tensor import quantize

KINDS = {name: gguf.GGMLQuantizationType[name.upper()] for name in ("q4_0", "q4_1", "iq4_nl")}
CONSTANTS = {"q4_0": 1, "q4_1": 2, "iq4_nl": 1}  # of a block, in float16, before its codes
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def codes_of(q):
    return torch.stack((q.codes >> 4, q.codes & 15), -1).view(-1, 32)


def as_gguf(q) -> np.ndarray:
    """The same tensor in gguf's bytes: its constants, then a byte for each code of the first half and of the second."""
    constants = [q.stored[name].numpy()[:, None].view(np.uint8) for name in ("scales", "offsets") if name in q.stored]
    codes = codes_of(q).numpy()
    return np.concatenate((*constants, codes[:, :16] | codes[:, 16:] << 4), 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name, case", [(name, case) for name in ("q4_0", "q4_1") for case in hard_weights(get_datatype(name), 32)]
)
def test_every_bit_is_ggufs(name, case, dtype):
    weight = hard_weights(get_datatype(name), 32)[case].to(dtype)
    with np.errstate(all="ignore"):  # it divides by a scale of zero, and does not use the result
        theirs = encode(weight.float().numpy(), KINDS[name]).reshape(-1, 2 * CONSTANTS[name] + 16)
    mine = quantize(weight, name)
    found = as_gguf(mine)
    if name == "q4_1":  # a minimum of zeros of both signs has one sign or the other
        minima = theirs[:, 2:4].copy().view(np.float16) + np.float16(0)
        assert np.array_equal(mine.stored["offsets"].numpy()[:, None], minima)
        theirs[:, 2:4], found[:, 2:4] = 0, 0
    assert np.array_equal(found, theirs)


@pytest.mark.parametrize("name", ["q4_0", "q4_1"])
@pytest.mark.parametrize("seed", range(4))
def test_on_gaussians(name, seed):
    weight = torch.randn(1000, 320, generator=torch.Generator().manual_seed(seed)) * 10.0**-seed
    if seed % 2:
        weight = weight.bfloat16().float()
    assert np.array_equal(as_gguf(quantize(weight, name)), encode(weight.numpy(), KINDS[name]).reshape(10_000, -1))


@pytest.mark.parametrize(
    "name, case", [(name, case) for name in KINDS for case in hard_weights(get_datatype(name), 32)]
)
def test_it_is_decoded_as_gguf_decodes_it(name, case):
    weight = hard_weights(get_datatype(name), 32)[case]
    mine = quantize(weight, name)
    theirs = torch.from_numpy(decode(as_gguf(mine), KINDS[name]))
    assert torch.equal(mine.dequantize().view(-1, 32), theirs)


def test_iq4_nl_has_ggufs_levels():
    assert get_datatype("iq4_nl").levels == gguf.quants.IQ4_NL.kvalues


@pytest.mark.parametrize("name, free", [("q4_0", "int4_signed"), ("q4_1", "int4_affine")])
def test_how_they_relate_to_the_types_of_any_block_size(name, free):
    """The same codes but where float32 rounds a tie; what is decoded differs by the rounding of constants."""
    weight = torch.randn(100, 320, generator=torch.Generator().manual_seed(0))
    one, other = quantize(weight, name), quantize(weight, free, 32)
    assert (codes_of(one) != codes_of(other)).float().mean() < 1e-4
    assert torch.allclose(one.dequantize(), other.dequantize(), rtol=0, atol=4 * 2.0**-11 * weight.abs().max())
