"""Quantization against bitsandbytes, and what must hold for any tensor."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.quantization.datatypes import DATATYPES, SINCE_NF4, dynamic_map, get_datatype
from qlora_lab.quantization.fast import compilation
from qlora_lab.quantization.tensor import QuantizedTensor, quantize

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ALL = (*DATATYPES, *SINCE_NF4)
SHAPES = st.lists(st.integers(0, 40), min_size=0, max_size=3).map(tuple)


def draw(shape, seed, dtype=torch.float32, spread=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread).to(dtype)


@pytest.fixture(autouse=True, params=["never", "always"])
def compile_mode(request):
    """Everything here holds for the definitions and for the compiled kernels."""
    if request.param == "always" and "property" in request.node.name:
        pytest.skip("properties draw too many shapes to compile for; the kernels equal the definitions (below)")
    before = compilation.set_compile(request.param)
    yield
    compilation.set_compile(before)


@pytest.fixture
def reference():
    return pytest.importorskip("bitsandbytes.functional")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [64, 256, 4096])
@pytest.mark.parametrize("spread", [1.0, 1e-4, 1e4])
def test_codes_scales_and_weights_equal_bitsandbytes_bit_for_bit(reference, dtype, block_size, spread):
    weight = draw((24, 4096), 0, dtype, spread)
    weight[3, :block_size] = 0
    weight[4, :64] = weight[4, 0]
    mine = quantize(weight, "nf4", block_size)
    codes, state = reference.quantize_4bit(weight, quant_type="nf4", blocksize=block_size)
    assert torch.equal(mine.codes, codes.view(-1))
    assert torch.equal(mine.scales, state.absmax)
    assert torch.equal(mine.dequantize(), reference.dequantize_4bit(codes, state))


def test_fp4_equals_bitsandbytes_by_value(reference):
    weight = draw((64, 256), 1)
    mine = quantize(weight, "fp4").dequantize()
    codes, state = reference.quantize_4bit(weight, quant_type="fp4", blocksize=64)
    theirs = reference.dequantize_4bit(codes, state)
    same = torch.isclose(mine, theirs, rtol=2e-3, atol=1e-6)
    # its table has four decimals, so values next to a threshold may take the other side; both are then equally near
    tie = ((mine - weight).abs() - (theirs - weight).abs()).abs() < 2e-3 * weight.abs().amax()
    assert (same | tie).all()
    assert same.float().mean() > 0.998


@pytest.mark.parametrize("datatype", ALL)
@given(shape=SHAPES, seed=st.integers(0, 999), dtype=st.sampled_from(DTYPES), half=st.integers(8, 60))
def test_property_error_is_at_most_half_a_step(datatype, shape, seed, dtype, half):
    """Or, where the levels do not reach as far as weights do, at most the distance from the last one."""
    kind = get_datatype(datatype)
    weight = draw(shape, seed, dtype)
    original, block_size = weight.clone(), kind.block_size or 2 * half
    q = quantize(weight, datatype, block_size)
    assert torch.equal(weight, original)
    assert q.shape == weight.shape
    assert q.codes.numel() == -(-weight.numel() // 2)
    assert q.scales.numel() == -(-weight.numel() // block_size)
    decoded = q.dequantize(torch.float32)
    assert decoded.shape == weight.shape
    order = [kind.levels[c] for c in kind.order]
    reach = abs(kind.extreme) * (2 if kind.scales == "e8m0" else 17 / 16 if kind.scales == "e4m3" else 1)
    ends = (0 if kind.affine else -reach, reach)
    widest = (
        max(*(b - a for a, b in itertools.pairwise(order)), 2 * (order[0] - ends[0]), 2 * (ends[1] - order[-1])) / 2
    )
    per_weight, slack = q.scales.abs(), 1e-30
    if kind.scales == "float16":  # constants are rounded once more, tiny ones to a multiple of 2^-24
        widest = widest * (1 + 2.0**-10) + reach * 2.0**-11
        slack = 2.0**-11 * (0 if q.offsets is None or not len(q.offsets) else q.offsets.abs().max()) + reach * 2.0**-25
    per_weight = per_weight.repeat_interleave(block_size)[: weight.numel()].view(weight.shape)
    assert ((decoded - weight.float()).abs() <= per_weight * widest * (1 + 1e-5) + slack * (1 + 2.0**-10)).all()


@given(seed=st.integers(0, 999), power=st.integers(-20, 20), length=st.integers(1, 300))
def test_property_scaling_by_powers_of_two_changes_only_the_scales(seed, power, length):
    weight = draw((length,), seed)
    one, other = quantize(weight), quantize(weight * 2.0**power)
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scales * 2.0**power, other.scales)


# Not those whose largest weight is decoded to another number than it was scaled by: it would be scaled anew.
@pytest.mark.parametrize("datatype", [name for name in ALL if name not in ("int4_affine", "q4_1", "nvfp4")])
@given(seed=st.integers(0, 999), length=st.integers(1, 300))
def test_property_quantizing_again_changes_nothing(datatype, seed, length):
    once = quantize(draw((length,), seed), datatype)
    again = quantize(once.dequantize(), datatype)
    assert torch.equal(again.codes, once.codes) and torch.equal(again.scales, once.scales)


@given(seed=st.integers(0, 99), rows=st.integers(1, 6), columns=st.integers(1, 90))
def test_property_strides_do_not_matter(seed, rows, columns):
    weight = draw((rows, columns), seed)
    assert torch.equal(quantize(weight.t()).codes, quantize(weight.t().contiguous()).codes)


@given(seed=st.integers(0, 99), length=st.integers(1, 400))
def test_property_affine_equals_the_slow_loop(seed, length):
    weight = draw((length,), seed)
    decoded = quantize(weight, "int4_affine", 16).dequantize()
    for start in range(0, length, 16):
        block = weight[start : start + 16]
        low, high = block.min().item(), block.max().item()
        for w, d in zip(block.tolist(), decoded[start : start + 16].tolist(), strict=True):
            nearest = min((low + (high - low) * k / 15 for k in range(16)), key=lambda level: abs(level - w))
            assert abs(d - w) <= abs(nearest - w) + 1e-6


def test_first_element_in_the_high_nibble_and_the_tail_padded_with_zeros_code():
    assert quantize(torch.tensor([1.0, -1.0, 0.0])).codes.tolist() == [0xF0, 0x77]


def test_a_block_of_zeros_stays_zero():
    q = quantize(torch.zeros(130))
    assert set(q.codes.tolist()) == {0x77}
    assert q.scales.tolist() == [0, 0, 0]
    assert torch.equal(q.dequantize(), torch.zeros(130))


def test_a_tie_takes_the_lower_level():
    nf4 = get_datatype("nf4")
    weight = torch.tensor([1.0, *nf4.thresholds])
    codes = quantize(weight, block_size=16).codes
    assert [c for byte in codes.tolist() for c in (byte >> 4, byte & 15)] == [15, *range(15)]


@pytest.mark.parametrize(
    "datatype, expected", [("nf4", 0.0919), ("fp4", 0.1219), ("int4", 0.1076), ("int4_affine", 0.0895)]
)
def test_error_on_a_gaussian_is_that_of_the_data_type(datatype, expected):
    weight = draw((1024, 1024), 5)
    assert (quantize(weight, datatype).dequantize() - weight).square().mean().sqrt().item() == pytest.approx(
        expected, rel=4e-3
    )


def test_bits_per_parameter_are_the_stored_bytes():
    weight = draw((4096, 256), 2)
    for datatype, double, expected in (
        ("nf4", False, 4.5),
        ("int4_affine", False, 5.0),
        ("nf4", True, 4 + 8 / 64 + 32 / (64 * 256) + 32 / weight.numel()),
    ):
        q = quantize(weight, datatype, double_quant=double)
        assert q.nbytes == q.codes.nbytes + sum(t.nbytes for t in q.stored.values())
        assert q.bits_per_parameter == pytest.approx(expected, abs=1e-12)


def test_double_quantization_equals_bitsandbytes_under_its_rounding_and_the_nearest_under_ours(reference):
    weight = draw((512, 2048), 3)
    q = quantize(weight, double_quant=True)
    _, state = reference.quantize_4bit(weight, quant_type="nf4", blocksize=64, compress_statistics=True)
    assert torch.equal(q.stored["scale_offset"], state.offset)
    assert torch.equal(q.stored["scale_scales"], state.state2.absmax)
    levels = torch.tensor(dynamic_map())
    plain = quantize(weight).scales
    x = (plain - state.offset).view(-1, 256) / q.stored["scale_scales"][:, None]
    nearest = (x[..., None] - levels).abs().argmin(-1)
    distance = (levels[q.stored["scale_codes"].int()].view_as(x) - x).abs()
    assert torch.allclose(distance, (levels[nearest] - x).abs(), atol=1e-7)
    # bitsandbytes' CPU code finds the level through a table of 65,536 bins: now and then it is the neighbour
    moved = (q.stored["scale_codes"].int() - state.absmax.int()).abs()
    assert moved.max() <= 1
    assert 0 < moved.float().mean() < 0.01


def test_a_scale_far_below_the_others_can_decode_to_a_negative_one():
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** (-6 * torch.rand(512, 1, generator=generator))
    weight = sizes * torch.randn(512, 64, generator=generator)
    assert quantize(weight, double_quant=True).scales.min() < 0


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 3), (7, 33), (2, 3, 65)])
def test_save_and_load_keep_every_bit(tmp_path, datatype, shape):
    for double in (False, True) if datatype != "int4_affine" else (False,):
        q = quantize(draw(shape, 4, torch.bfloat16), datatype, 32, double)
        q.save(tmp_path / "q.safetensors")
        back = QuantizedTensor.load(tmp_path / "q.safetensors")
        assert (back.shape, back.dtype, back.datatype) == (q.shape, q.dtype, q.datatype)
        assert torch.equal(back.codes, q.codes) and torch.equal(back.scales, q.scales)
        assert torch.equal(back.dequantize(), q.dequantize())


def test_a_foreign_file_is_refused(tmp_path):
    from qlora_lab.machine.files import save_tensors

    save_tensors(tmp_path / "x.safetensors", {"codes": torch.zeros(3)})
    with pytest.raises(ValueError, match="not written by"):
        QuantizedTensor.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_bad_element_is_named(bad):
    weight = draw((5, 70), 6)
    weight[3, 2] = bad
    weight[4, 1] = bad
    with pytest.raises(ValueError, match=r"weight\[3, 2\] is .*2 of 350"):
        quantize(weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.bool, torch.complex64])
def test_other_dtypes_are_told_the_allowed_ones(dtype):
    with pytest.raises(TypeError, match=r"torch\.float32, torch\.float16, torch\.bfloat16"):
        quantize(torch.ones(4).to(dtype))


@pytest.mark.parametrize("block_size", [0, -64, 8, 15, 17, 8192, True, 64.0, "64"])
def test_block_sizes_out_of_range_are_told_the_range(block_size):
    with pytest.raises(ValueError, match="16 to 4096"):
        quantize(torch.ones(4), block_size=block_size)


def test_other_misuse_is_explained():
    with pytest.raises(TypeError, match="not list"):
        quantize([1.0])
    with pytest.raises(ValueError, match="double quantization is for absmax"):
        quantize(torch.ones(4), "int4_affine", double_quant=True)
    with pytest.raises(TypeError, match="cannot dequantize to"):
        quantize(torch.ones(4)).dequantize(torch.int32)


@pytest.mark.parametrize("double", [False, True])
def test_float64_holds_the_float32_numbers(double):
    q = quantize(torch.randn(3, 70), double_quant=double)
    assert torch.equal(q.dequantize(torch.float64), q.dequantize(torch.float32).double())


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double", [False, True])
def test_a_gpu_gives_the_same_bits_as_the_cpu(dtype, double):
    """Double-quantized scales lie around their mean, a sum, which a GPU adds up in another order."""
    weight = draw((96, 1024), 7, dtype)
    here, there = quantize(weight, double_quant=double), quantize(weight.cuda(), double_quant=double)
    assert torch.equal(here.codes, there.codes.cpu())
    if double:
        for name in ("scale_scales", "scale_offset"):
            torch.testing.assert_close(there.stored[name].cpu(), here.stored[name], rtol=1e-5, atol=0)
        moved = (here.stored["scale_codes"].int() - there.stored["scale_codes"].cpu().int()).abs()
        assert moved.max() <= 1 and moved.sum() <= 2  # of 1,536: of those that all but lie on a threshold
    else:
        assert torch.equal(here.scales, there.scales.cpu())
    assert torch.equal(there.to("cpu").scales, there.scales.cpu())
    for wanted in DTYPES:  # what is stored decodes to the same bits on both
        assert torch.equal(there.to("cpu").dequantize(wanted), there.dequantize(wanted).cpu())


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_hardly_a_code_differs_from_bitsandbytes(reference, dtype):
    """Its build for GPUs divides less exactly, so a weight that all but lies on a threshold may get the other code."""
    weight = draw((2048, 4096), 9, dtype).cuda()
    mine = quantize(weight)
    codes, state = reference.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    other = mine.codes ^ codes.view(-1)
    differing = ((other >> 4) > 0).sum() + ((other & 15) > 0).sum()
    assert differing < 1e-6 * weight.numel()
    assert torch.equal(mine.scales, state.absmax)
    same = QuantizedTensor(codes.view(-1), {"scales": state.absmax}, weight.shape, dtype)
    rtol = {torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]  # one rounding
    torch.testing.assert_close(same.dequantize(), reference.dequantize_4bit(codes, state), rtol=rtol, atol=1e-7)
