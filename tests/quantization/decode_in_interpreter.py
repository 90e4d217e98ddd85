"""Run by test_triton_decoder.py with TRITON_INTERPRET=1: the decoder's kernel, executed on the CPU by Triton."""

import itertools
import warnings

import torch

from qlora_lab.quantization.datatypes import DATATYPES, get_datatype
from qlora_lab.quantization.fast import compilation, triton_decoder
from qlora_lab.quantization.tensor import quantize

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# (weights, block size): one weight, odd tails, one block, blocks that are no power of two, the largest, a last block
# of one weight, and more than 256 blocks, so that scales of scales change within and between programs
SIZES = [(1, 16), (2, 16), (15, 16), (16, 16), (33, 16), (4999, 18), (4095, 64), (3 * 16384 + 1, 64), (30000, 100)]
SIZES += [(2049, 2050), (4097, 4096), (9000, 4094)]


def decode(q, dtype):
    scales = q.stored["scale_codes" if q.double_quant else "scales"]
    second = (q.stored["scale_scales"], q.stored["scale_offset"]) if q.double_quant else None
    datatype = get_datatype(q.datatype)
    return triton_decoder.decode_on_gpu(
        q.codes, scales, second, q.offsets, datatype, q.block_size, q.shape.numel(), dtype
    )


def assert_same_bits(q, dtype):
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    found, expected = decode(q, dtype), q.dequantize(dtype).view(-1)
    assert found is not None and found.dtype == dtype, (q, dtype)
    nan = expected.isnan()
    assert torch.equal(found.isnan(), nan), (q, dtype)
    assert torch.equal(found.view(bits)[~nan], expected.view(bits)[~nan]), (q, dtype)


def test_sizes():
    for (n, block_size), datatype, double in itertools.product(SIZES, DATATYPES, (False, True)):
        if double and datatype == "int4_affine":
            continue
        generator = torch.Generator().manual_seed(n)
        spread = 10 ** (6 * torch.rand(n, generator=generator) - 3)  # scales that double quantization makes negative
        q = quantize(torch.randn(n, generator=generator) * spread, datatype, block_size, double)
        for dtype in DTYPES:
            assert_same_bits(q, dtype)


def test_special_scales():
    """Zeros of both signs, subnormal and huge ones, overflow of float16, infinity and NaN (which nothing may hide)."""
    special = [0.0, -0.0, 1e-45, -1e-40, 1.1754944e-38, 3.4028235e38, -7e4, 65519.0, 65520.0, torch.inf, torch.nan]
    q = quantize(torch.randn(64 * len(special)), "fp4")
    q.stored["scales"] = torch.tensor(special)
    q.stored["scales"].view(torch.int32)[-1] = 0x7FFFFFFF  # a GPU's NaN: adding to it would turn it over to -0
    for dtype in DTYPES:
        assert_same_bits(q, dtype)


def test_too_few_are_left_to_the_definition():
    for name in ("scale_scales", "scale_codes"):
        q = quantize(torch.randn(300, 64), double_quant=True)
        q.stored[name] = q.stored[name][:-1]
        assert decode(q, torch.float32) is None
    q.codes = q.codes[:-1]
    assert decode(q, torch.float32) is None
    assert not compilation._state["broken"]


def test_a_kernel_that_computes_something_else_is_given_up():
    right = triton_decoder.dequantize_blocks
    for wrong in ("first", "last"):
        compilation._state.update(broken=set(), proved=set())
        q = quantize(torch.randn(200 * 64 + 3))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            altered = q.stored["scales"][0 if wrong == "first" else -1]

            def definition(codes, scales, *more, altered=altered):  # differs in the one block of that scale
                return right(codes, torch.where(scales == altered, scales * 2, scales), *more)

            triton_decoder.dequantize_blocks = definition
            assert decode(q, torch.float32) is None, wrong
            triton_decoder.dequantize_blocks = right
        said = [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
        assert len(said) == 1 and "decoding in Triton differs from the definition" in said[0], said
        assert compilation._state["broken"] == {compilation.TRITON}


if __name__ == "__main__":
    compilation.set_compile("never")  # what `dequantize` computes is the definition
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            compilation._state.update(broken=set(), proved=set())
            test()
            print(name)
