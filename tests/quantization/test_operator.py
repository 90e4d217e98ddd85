"""Decoding as an operator."""

import subprocess
import sys

import pytest
import torch

from qlora_lab.quantization.tensor import quantize


@pytest.mark.parametrize("double_quant", [False, True])
def test_the_operator_keeps_pytorchs_contract(double_quant):
    q = quantize(torch.randn(10, 33), double_quant=double_quant)
    scales = tuple(q.stored.values()) if double_quant else (q.scales, None, None)
    arguments = (q.codes, *scales, None, "nf4", 64, [10, 33], torch.float32)
    torch.library.opcheck(torch.ops.qlora_lab.dequantize_4bit.default, arguments)


@pytest.mark.slow
def test_reloading_the_module_works():
    """Jupyter's autoreload runs a module again; PyTorch lets an operator's name be defined only once."""
    code = (
        "import importlib, torch, qlora_lab.quantization.fast.operator as d; from qlora_lab import quantize\n"
        "importlib.reload(d); importlib.reload(d)\n"
        "q = quantize(torch.ones(4, 64)); print(torch.equal(q.dequantize(), torch.ones(4, 64)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "True\n", result.stderr
