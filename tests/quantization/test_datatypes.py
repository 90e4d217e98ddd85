"""The tables against bitsandbytes', and the rules that follow from them."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import bitsandbytes.functional as reference
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from qlora_lab.quantization.blockwise import quantize_blocks, scale_levels
from qlora_lab.quantization.datatypes import (
    DATATYPES,
    SINCE_NF4,
    DataType,
    dynamic_map,
    fit_bof4,
    get_datatype,
)
from qlora_lab.quantization.fast.kernels import _levels_of_bytes
from qlora_lab.quantization.tensor import quantize


def test_nf4_equals_bitsandbytes_bit_for_bit():
    assert torch.equal(get_datatype("nf4").table(), reference.get_4bit_type("nf4", device="cpu"))


def test_fp4_equals_bitsandbytes_to_its_four_decimals():
    torch.testing.assert_close(
        get_datatype("fp4").table(), reference.get_4bit_type("fp4", device="cpu"), rtol=2e-3, atol=1e-12
    )


def test_the_dynamic_map_equals_bitsandbytes_bit_for_bit():
    assert torch.equal(torch.tensor(dynamic_map()), reference.create_dynamic_map())
    assert len(set(dynamic_map())) == 256


@pytest.mark.parametrize("name", (*DATATYPES, *SINCE_NF4))
def test_order_sorts_the_distinct_levels(name):
    datatype = get_datatype(name)
    levels = [datatype.levels[code] for code in datatype.order]
    assert levels == sorted(set(datatype.levels))
    assert all(low < t < high for low, t, high in zip(levels[:-1], datatype.thresholds, levels[1:], strict=True))


@pytest.mark.parametrize(
    "name, code",
    [
        ("nf4", 7), ("fp4", 0), ("int4", 8), ("int4_affine", 0), ("int4_signed", 8), ("bof4", 7), ("bof4_s", 7),
        ("q4_0", 8), ("mxfp4", 0),
    ],
)  # fmt: skip
def test_zero_has_a_code_of_its_own(name, code):
    datatype = get_datatype(name)
    assert datatype.zero_code == code
    assert datatype.levels[code] == 0.0


@pytest.mark.parametrize("name", ["nf5", "", None, 4, ["nf4"]])
def test_an_unknown_name_is_told_the_known_ones(name):
    with pytest.raises(ValueError, match="nf4, fp4, int4, int4_affine"):
        get_datatype(name)


def test_a_data_type_has_sixteen_levels():
    with pytest.raises(ValueError, match="16 levels; 'short' was given 3"):
        DataType("short", (0.0, 0.5, 1.0))


@pytest.mark.parametrize("name", ["bof4", "bof4_s"])
def test_bof4_is_what_the_fit_finds_and_what_weights_ask_for(name):
    """Each level that is free is the mean of the weights that take it, those of larger blocks counting for more."""
    kind = get_datatype(name)
    assert torch.allclose(torch.tensor(fit_bof4(64, kind.signed)), kind.table(), rtol=0, atol=2e-7)
    blocks = torch.randn(2**15, 64, generator=torch.Generator().manual_seed(0))
    codes, scales, _ = quantize_blocks(blocks, kind)
    square = scales.double().square()[:, None].expand(-1, 64).reshape(-1)
    x = (blocks / scales[:, None]).view(-1)
    mean = torch.bincount(codes.view(-1).int(), square * x) / torch.bincount(codes.view(-1).int(), square)
    free = [code for code, level in enumerate(kind.levels) if level not in (0, 1, -1)]
    assert len(free) == 13 + kind.signed
    assert torch.allclose(mean[free], kind.table()[free].double(), rtol=0, atol=1e-3)


# arXiv 2505.06653, appendix C, for blocks of 64: integrated in table 8, sampled in table 6.
PUBLISHED = {
    "bof4, integrated": (
        -1.0, -0.7535689, -0.5792681, -0.4386720, -0.3168191, -0.2060291, -0.1015641, 0.0,
        0.0887647, 0.1794535, 0.2742498, 0.3759510, 0.4885925, 0.6187716, 0.7790828, 1.0,
    ),
    "bof4, sampled": (
        -1.0, -0.7535245, -0.5792037, -0.4385999, -0.3167680, -0.2059924, -0.1015388, 0.0,
        0.0887245, 0.1793770, 0.2741500, 0.3758211, 0.4884938, 0.6187059, 0.7790452, 1.0,
    ),
    "bof4_s, sampled": (
        -0.8568464, -0.6692874, -0.5235266, -0.4004883, -0.2910638, -0.1900093, -0.0938530, 0.0,
        0.0887672, 0.1794803, 0.2743096, 0.3760197, 0.4886530, 0.6188604, 0.7791396, 1.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", PUBLISHED)
def test_bof4_is_what_its_authors_publish(which):
    """As near as `fit_bof4` says; what they found from samples is no nearer to what they integrated."""
    name, how = which.split(", ")
    ours = torch.tensor(get_datatype(name).levels, dtype=torch.float64)
    theirs = torch.tensor(PUBLISHED[which], dtype=torch.float64)
    assert (ours - theirs).abs().max() < (2e-6 if how == "integrated" else 1.3e-4)


def test_each_step_from_nf4_to_bof4_s_saves_error():
    weight = torch.randn(2**15, generator=torch.Generator().manual_seed(1))
    errors = [(quantize(weight, name).dequantize() - weight).norm() for name in ("nf4", "bof4", "bof4_s")]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    "rule, words",
    [
        ({"scales": "float8"}, "scales .* one of float32, float16, e8m0, e4m3; 'odd' has 'float8'"),
        ({"ties": "up"}, "ties .* one of lower, even, upper"),
        ({"extreme": -1}, "above zero"),
        ({"extreme": 0, "signed": True}, "above zero"),
        ({"affine": True, "signed": True}, "affine and signed"),
        ({"signed": True, "scales": "e8m0"}, "no sign"),
        ({"ties": "upper"}, "steps of one"),
    ],
)
def test_a_rule_for_scales_that_makes_no_sense_is_refused(rule, words):
    with pytest.raises(ValueError, match=words):
        DataType("odd", tuple(k / 8 for k in range(-8, 8)), **rule)


def _in_a_thread(call):
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(call).result()


def _inside(mode):
    def run(call):
        with mode():
            return call()

    return run


FIRST_ASKED_FOR = {
    "fake tensors": _inside(lambda: FakeTensorMode(allow_non_fake_inputs=True)),
    "a counter of operations": _inside(lambda: FlopCounterMode(display=False)),
    "functional tensors": _inside(FunctionalTensorMode),
    "inference mode": _inside(torch.inference_mode),
    "no gradients": _inside(torch.no_grad),
    "autocast": _inside(lambda: torch.autocast("cpu", torch.bfloat16)),
    "meta as the default device": _inside(lambda: torch.device("meta")),
    "a gradient of torch.func": lambda call: torch.func.grad(lambda x: (call(), x.sum())[1])(torch.ones(2)),
    "vmap": lambda call: torch.func.vmap(lambda x: (call(), x)[1])(torch.ones(2)),
    "make_fx": lambda call: make_fx(lambda x: (call(), x + 1)[1])(torch.ones(2)),
    "torch.jit.trace": lambda call: torch.jit.trace(lambda x: (call(), x + 1)[1], torch.ones(2)),
    "another thread": _in_a_thread,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("under", FIRST_ASKED_FOR)
@pytest.mark.parametrize(
    "table",
    [
        lambda: scale_levels(torch.device("cpu")),
        lambda: _levels_of_bytes(get_datatype("fp4"), torch.device("cpu")),
    ],
    ids=["levels of scales", "levels of bytes"],
)
def test_a_kept_table_is_good_for_the_whole_process_whatever_it_is_first_asked_under(table, under):
    expected = table()
    scale_levels.cache_clear()
    _levels_of_bytes.cache_clear()
    try:
        FIRST_ASKED_FOR[under](table)
        found = table()
        assert type(found) is torch.Tensor and not found.is_inference() and not found.requires_grad
        assert torch.equal(found, expected) and found.dtype == torch.float32 and found.device.type == "cpu"
        assert table() is found  # and it is kept
        scale = torch.ones((), requires_grad=True)
        (found * scale).sum().backward()  # may be saved for backward
        if under not in ("make_fx", "torch.jit.trace", "functional tensors"):  # these see through what is made here
            weight = quantize(torch.linspace(-1, 1, 640), double_quant=True)
            before = weight.scales.clone()
            FIRST_ASKED_FOR[under](lambda: weight.scales)
            assert type(weight.scales) is torch.Tensor and torch.equal(weight.scales, before)
    finally:
        scale_levels.cache_clear()
        _levels_of_bytes.cache_clear()


@pytest.mark.parametrize("under", ["fake tensors", "meta as the default device", "inference mode"])
def test_the_package_can_be_imported_first_under(under):
    lines = {
        "fake tensors": "FakeTensorMode()",
        "meta as the default device": "torch.device('meta')",
        "inference mode": "torch.inference_mode()",
    }
    code = f"""
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with {lines[under]}:
    from qlora_lab.quantization import tensor
q = tensor.quantize(torch.linspace(-1, 1, 256), double_quant=True)
assert (q.dequantize() - torch.linspace(-1, 1, 256)).abs().max() < 0.2
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
