"""The compiled kernels equal the definitions."""

import pytest
import torch

from qlora_lab import compilation, kernels
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
    assert not compilation._state["broken"]
