"""The compiled kernels equal the definitions."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qlora_lab.quantization.fast import compilation, kernels
from qlora_lab.quantization.tensor import quantize


def both(function):
    results = []
    for mode in ("never", "always"):
        before = compilation.set_compile(mode)
        try:
            results.append(function())
        finally:
            compilation.set_compile(before)
    return results


@pytest.mark.parametrize("wide", [True, False], ids=["wide vectors", "narrow vectors"])
@pytest.mark.parametrize("datatype", ["nf4", "fp4", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compiled_equals_the_definition_bit_for_bit(datatype, dtype, wide, monkeypatch):
    monkeypatch.setattr(kernels, "has_wide_vectors", lambda: wide)
    monkeypatch.setattr(kernels, "_PART", 1000)  # several parts, the last one smaller
    monkeypatch.setitem(compilation._state, "proved", set())  # what the other kind has proved is no proof of this one
    generator = torch.Generator().manual_seed(0)
    for shape, block_size in (((300, 64), 64), ((41, 77), 64), ((30, 256), 128), ((31, 54), 18)):
        weight = torch.randn(shape, generator=generator).to(dtype)
        slow, fast = both(lambda weight=weight, block_size=block_size: quantize(weight, datatype, block_size))
        assert torch.equal(slow.codes, fast.codes) and torch.equal(slow.scales, fast.scales)
        for to in (torch.float32, torch.bfloat16, torch.float16):
            one, other = both(lambda q=slow, to=to: q.dequantize(to))
            assert one.dtype == to and torch.equal(one, other)
        if datatype == "nf4":
            double = quantize(weight, datatype, block_size, double_quant=True)
            one, other = both(double.dequantize)
            assert torch.equal(one, other)
    assert not compilation._state["broken"]


@pytest.mark.parametrize("datatype", ["mxfp4", "bof4_s"])
def test_formats_since_nf4_are_decoded_alike(datatype):
    """Of codes and scales that are decoded first: that they have eight bits or a sign is nothing to the kernels."""
    q = quantize(torch.randn(41, 77, generator=torch.Generator().manual_seed(0)), datatype)
    one, other = both(q.dequantize)
    assert torch.equal(one, other) and not compilation._state["broken"]


def test_special_numbers_are_quantized_alike(monkeypatch):
    """Zeros of both signs, subnormal numbers, and the largest and smallest normal ones, in every place of a block."""
    torch.manual_seed(0)
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1.0])
    for wide in (True, False):
        monkeypatch.setattr(kernels, "has_wide_vectors", lambda wide=wide: wide)
        for _ in range(4):
            blocks = special[torch.randint(0, len(special), (64, 64))]
            slow, fast = both(lambda blocks=blocks: quantize(blocks))
            assert torch.equal(slow.codes, fast.codes) and torch.equal(slow.scales, fast.scales)


@pytest.mark.parametrize("wide", [True, False], ids=["wide vectors", "narrow vectors"])
def test_scales_that_are_too_few_are_refused(wide, monkeypatch):
    monkeypatch.setattr(kernels, "has_wide_vectors", lambda: wide)
    q = quantize(torch.randn(600, 64), double_quant=True)
    q.stored["scale_scales"] = q.stored["scale_scales"][:2]  # of three
    before = compilation.set_compile("always")
    try:
        with pytest.raises((RuntimeError, IndexError)):
            q.dequantize()
    finally:
        compilation.set_compile(before)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which is not installed here: NOT RUN"
)
def test_what_they_become_on_a_gpu_compiles_for_each_generation():
    """The Triton code that torch.compile writes, down to machine code. No GPU is needed, and none is proved."""
    script = Path(__file__).parent / "triton_of_kernels.py"
    done = subprocess.run([sys.executable, script, "75", "80", "90"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 11  # quantizing and products in two dtypes, 32 bits, for two data types; 16 bits for all
    for name, kernel in found.items():
        assert set(kernel["cubin"]) == {"75", "80", "90"} and all(all(sizes) for sizes in kernel["cubin"].values())
        # places are 32-bit numbers while they fit: larger tensors fail this guard, and get a kernel with 64 bits
        assert any("<= 2147483647" in guard for guard in kernel["guards"]), name
        for text in (text for texts in kernel["ptx"].values() for text in texts):
            assert ".ftz" not in text and "approx" not in text and "div.full" not in text, name
            assert "fma" not in text or name.startswith("quantize"), name  # there: code * 16 + code, which is exact
