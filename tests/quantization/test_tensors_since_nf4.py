"""The formats since NF4 as tensors: what they cost, keep and refuse. Their arithmetic is in test_datatypes_in_torchao,
test_datatypes_in_gguf and test_blockwise; the properties that all data types have, in test_tensor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.checks.notebook_01 import signed_absmax
from qlora_lab.quantization import datatypes
from qlora_lab.quantization.datatypes import SINCE_NF4, DataType, get_datatype
from qlora_lab.quantization.fast import compilation
from qlora_lab.quantization.tensor import QuantizedTensor, quantize


@pytest.fixture(autouse=True)
def by_the_definitions():
    """Kernels would be compiled for each of them; that they equal the definitions is in test_kernels."""
    before = compilation.set_compile("never")
    yield
    compilation.set_compile(before)


def draw(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_bits_per_parameter_are_the_stored_bytes():
    weight = draw((256, 256), 2)
    for datatype, double, expected in (
        ("nf4_float16", False, 4.25),
        ("int4_signed", False, 4.5),
        ("bof4_s", True, 4 + 8 / 64 + 32 / (64 * 256) + 32 / weight.numel()),
        ("q4_0", False, 4.5),
        ("q4_1", False, 5.0),
        ("iq4_nl", False, 4.5),
        ("mxfp4", False, 4.25),
        ("nvfp4", False, 4.5 + 32 / weight.numel()),
    ):
        q = quantize(weight, datatype, double_quant=double)
        assert q.nbytes == q.codes.nbytes + sum(t.nbytes for t in q.stored.values())
        assert q.bits_per_parameter == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "datatype, expected", [("nf4_float16", 0.0919), ("int4_signed", 0.0950), ("iq4_nl", 0.0800), ("q4_0", 0.0859)]
)
def test_error_on_a_gaussian_is_that_of_the_data_type(datatype, expected):
    """As notebook 01 has it, which rounds with a signed scale in another way: it turns blocks and turns them back."""
    weight = draw((1024, 512), 5)
    assert (quantize(weight, datatype).dequantize() - weight).square().mean().sqrt().item() == pytest.approx(
        expected, rel=4e-3
    )


@pytest.mark.parametrize("datatype", SINCE_NF4)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 3), (7, 33), (2, 3, 65)])
def test_save_and_load_keep_every_bit(tmp_path, datatype, shape):
    kind = get_datatype(datatype)
    for double in (False, True) if kind.allows_double_quant else (False,):
        q = quantize(draw(shape, 4, torch.bfloat16), datatype, kind.block_size or 32, double)
        q.save(tmp_path / "q.safetensors")
        back = QuantizedTensor.load(tmp_path / "q.safetensors")
        assert (back.shape, back.dtype, back.datatype) == (q.shape, q.dtype, q.datatype)
        assert back.stored.keys() == q.stored.keys()
        assert all(back.stored[n].dtype == t.dtype and torch.equal(back.stored[n], t) for n, t in q.stored.items())
        assert q.nbytes == QuantizedTensor.empty(q.shape, q.dtype, datatype, q.block_size, double).nbytes
        assert torch.equal(back.codes, q.codes) and torch.equal(back.scales, q.scales)
        assert torch.equal(back.dequantize(), q.dequantize())


@given(seed=st.integers(0, 999), length=st.integers(1, 300))
def test_property_nvfp4_keeps_its_codes_when_it_is_quantized_again(seed, length):
    once = quantize(draw((length,), seed), "nvfp4")
    again = quantize(once.dequantize(), "nvfp4")
    assert torch.equal(again.codes, once.codes)
    assert torch.allclose(again.scales, once.scales, rtol=1e-6, atol=0)


@pytest.mark.parametrize("datatype, size", [("mxfp4", 32), ("nvfp4", 16), ("q4_0", 32), ("bof4", 64), ("nf4", 64)])
def test_a_data_type_has_its_own_block_size_and_refuses_others(datatype, size):
    assert quantize(torch.ones(100), datatype).block_size == size
    if get_datatype(datatype).block_size is not None:
        with pytest.raises(ValueError, match=f"block_size 128 is not {datatype}'s, .* {size} weights"):
            quantize(torch.ones(4), datatype, 128)


@pytest.mark.parametrize("datatype, bits", [("nf4_float16", 16), ("q4_0", 16), ("mxfp4", 8), ("nvfp4", 8)])
def test_scales_in_fewer_bits_are_not_quantized_once_more(datatype, bits):
    with pytest.raises(ValueError, match=f"{datatype} stores its scales in {bits} bits already"):
        quantize(torch.ones(4), datatype, double_quant=True)


@pytest.mark.parametrize("datatype", ["nf4_float16", "q4_0", "q4_1", "iq4_nl"])
def test_scales_beyond_float16_are_refused(datatype):
    weight = torch.ones(64)
    weight[3] = 2e7
    with pytest.raises(ValueError, match="exceeds float16's largest number, 65504"):
        quantize(weight, datatype)


@pytest.mark.parametrize("datatype", SINCE_NF4)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_bad_element_is_named_in_later_formats(datatype, bad):
    weight = draw((5, 70), 6)
    weight[3, 2] = bad
    with pytest.raises(ValueError, match=r"weight\[3, 2\] is .*1 of 350"):
        quantize(weight, datatype)


@pytest.mark.parametrize("datatype", SINCE_NF4)
def test_parts_are_parts_of_the_whole(datatype):
    q = quantize(draw((7, 66), 8), datatype)
    whole = q.dequantize().view(-1)
    for start, stop in ((0, 462), (70, 71), (100, 300), (400, 462)):
        part, first = q.part(start, stop)
        assert first <= start and torch.equal(part.dequantize(), whole[first : first + part.shape[0]])
        assert part.shape[0] >= stop - first


def test_a_float_that_is_none_in_eight_bits_is_found_in_a_file(tmp_path):
    for datatype, code in (("mxfp4", 255), ("nvfp4", 127)):
        q = quantize(torch.ones(32), datatype)
        q.stored["scale_codes"][0] = code
        q.save(tmp_path / "q.safetensors")
        with pytest.raises(ValueError, match="scale_codes holds a NaN"):
            QuantizedTensor.load(tmp_path / "q.safetensors")


@given(seed=st.integers(0, 999), length=st.integers(1, 300), half=st.integers(8, 60))
def test_property_the_scales_of_int4_signed_are_those_of_notebook_01(seed, length, half):
    weight = draw((length,), seed)
    assert torch.equal(quantize(weight, "int4_signed", 2 * half).scales, signed_absmax(weight, 2 * half))


def test_double_quantization_of_scales_with_a_sign_adds_little():
    weight = draw((512, 128), 9)
    for datatype in ("int4_signed", "bof4_s"):
        once, twice = ((quantize(weight, datatype, double_quant=double)) for double in (False, True))
        one, two = ((q.dequantize() - weight).norm() for q in (once, twice))
        assert one < two < 1.004 * one  # of scales that lie close to their mean it is a tenth of that
        assert torch.equal(once.scales.sign(), twice.scales.sign())


def test_a_data_type_of_ones_own_with_a_rule_of_its_own_is_read_where_nobody_knows_it(tmp_path, monkeypatch):
    mine = DataType("mine, in a file", tuple(range(-8, 8)), signed=True, extreme=-8.0, scales="float16", block_size=48)
    q = quantize(draw((300,), 10), mine)
    assert q.block_size == 48
    q.save(tmp_path / "q.safetensors")
    decoded = q.dequantize()
    monkeypatch.delitem(datatypes._known, mine.name)  # as in another process
    back = QuantizedTensor.load(tmp_path / "q.safetensors")
    assert get_datatype(back.datatype) == mine and get_datatype(back.datatype) is not mine
    assert torch.equal(back.dequantize(), decoded)


@pytest.mark.cuda
@pytest.mark.parametrize("datatype", SINCE_NF4)
def test_a_gpu_gives_the_same_bits_as_the_cpu(datatype):
    weight = draw((96, 330), 7)
    here, there = quantize(weight, datatype), quantize(weight.cuda(), datatype)
    assert torch.equal(here.codes, there.codes.cpu())
    assert all(torch.equal(here.stored[name], tensor.cpu()) for name, tensor in there.stored.items())
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(here.dequantize(dtype), there.dequantize(dtype).cpu())
