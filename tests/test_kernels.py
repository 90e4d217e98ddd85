"""The compiled kernels equal the definitions, and their absence is told once."""

import os
import subprocess
import sys

import pytest
import torch

from qlora_lab import kernels
from qlora_lab.quantization import quantize


def both(function):
    results = []
    for mode in ("never", "always"):
        before = kernels.set_compile(mode)
        try:
            results.append(function())
        finally:
            kernels.set_compile(before)
    return results


@pytest.mark.parametrize("datatype", ["nf4", "fp4", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compiled_equals_the_definition_bit_for_bit(datatype, dtype):
    generator = torch.Generator().manual_seed(0)
    for shape, block_size in (((300, 64), 64), ((41, 77), 64), ((30, 256), 128)):
        weight = torch.randn(shape, generator=generator).to(dtype)
        slow, fast = both(lambda weight=weight, block_size=block_size: quantize(weight, datatype, block_size))
        assert torch.equal(slow.codes, fast.codes) and torch.equal(slow.scales, fast.scales)
        for to in (torch.float32, torch.bfloat16, torch.float16):
            one, other = both(lambda q=slow, to=to: q.dequantize(to))
            assert one.dtype == to and torch.equal(one, other)
    assert not kernels._state["broken"]


@pytest.mark.parametrize("double_quant", [False, True])
def test_the_operator_keeps_pytorchs_contract(double_quant):
    q = quantize(torch.randn(10, 33), double_quant=double_quant)
    scales = tuple(q.stored.values()) if double_quant else (q.scales, None, None)
    arguments = (q.codes, *scales, None, "nf4", 64, [10, 33], torch.float32)
    torch.library.opcheck(torch.ops.qlora_lab.dequantize_4bit.default, arguments)


def test_a_large_allocation_is_an_ordinary_tensor():
    tensor = kernels.empty((3, 2**20), torch.float32, torch.device("cpu"))
    tensor.fill_(1).mul_(2)
    assert tensor.shape == (3, 2**20) and tensor.sum().item() == 6 * 2**20
    assert tensor.clone().data_ptr() != tensor.data_ptr()


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="auto, always, never"):
        kernels.set_compile("sometimes")


@pytest.mark.slow
def test_without_a_compiler_one_warning_and_the_same_results(tmp_path):
    script = """
import warnings, torch
from qlora_lab import kernels, quantize
w = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
kernels.set_compile("never"); expected = quantize(w)
kernels.set_compile("always")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        q = quantize(w)
        assert torch.equal(q.codes, expected.codes) and torch.equal(q.dequantize(), expected.dequantize())
said = [str(w.message) for w in caught if "plain PyTorch path" in str(w.message)]
assert len(said) == 1, said
print("ok")
"""
    environment = {**os.environ, "CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "ok", done.stderr[-2000:]
