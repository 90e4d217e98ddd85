"""The decoder in Triton: the definition's bits in Triton's interpreter, and code for GPUs that keeps them."""

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qlora_lab.quantization.fast import compilation
from qlora_lab.quantization.tensor import QuantizedTensor, quantize

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which is not installed here: NOT RUN"
)
SMALL, LARGE = "i32", "i64"  # what Triton makes of a number below 2^31, and of one above


@needs_triton
@pytest.mark.slow
def test_the_same_bits_as_the_definition_in_tritons_interpreter():
    script = Path(__file__).parent / "decode_in_interpreter.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) == 4


def compiled(capability: int, bits: str, double: bool, affine: bool, half: int, number: str, fuse: bool = False):
    """The kernel for a GPU of that capability. No GPU is needed."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qlora_lab.quantization.fast import triton_decoder

    datatype_argument = {"codes": "*u8", "scales": "*u8" if double else "*fp32", "levels": "*fp32", "decoded": bits}
    datatype_argument |= {"size": number, "n": number}
    datatype_argument |= dict.fromkeys(("scale_scales", "scale_offset", "scale_map") if double else (), "*fp32")
    datatype_argument |= {"offsets": "*fp32"} if affine else {}
    names = triton_decoder.decoding_kernel.arg_names
    constants = {name: None for name in names if name not in datatype_argument}
    constants |= triton_decoder.constants(2 * half)
    signature = {name: datatype_argument.get(name, "constexpr") for name in names}
    known = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name] != "constexpr"}
    source = ASTSource(triton_decoder.decoding_kernel, signature, constants, known)
    options = {"enable_fp_fusion": fuse}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm


@needs_triton
@pytest.mark.parametrize("capability", [75, 80, 90])
def test_compiles_for_each_generation_and_rounds_each_operation(capability):
    ways = [(False, False), (True, False), (False, True)]
    for bits, (double, affine) in itertools.product(("*fp32", "*fp16", "*i16"), ways):
        for half, number in ((32, SMALL), (32, LARGE), (9, SMALL), (2048, SMALL)):
            made = compiled(capability, bits, double, affine, half, number)
            assert len(made["cubin"])
            assert "mul.rn.f32" in made["ptx"] and ("add.rn.f32" in made["ptx"]) == (double or affine)
            for inexact in ("fma", ".ftz", "approx"):  # two roundings in one; subnormal numbers as zeros
                assert inexact not in made["ptx"]


@needs_triton
def test_without_the_option_the_compiler_would_fuse():
    assert "fma.rn.f32" in compiled(90, "*fp32", True, False, 32, SMALL, fuse=True)["ptx"]


@needs_triton
@pytest.mark.parametrize("number", [SMALL, LARGE])
def test_places_of_weights_and_blocks_are_64_bit_numbers(number):
    """32 bits are enough where a table is looked into: a level, or a level of the scales."""
    text = compiled(90, "*fp32", True, False, 32, number)["ttir"]
    widths = re.findall(r"tt\.addptr .*: tensor<([\dx]+)!tt\.ptr<\w+>>, tensor<[\dx]+x?(i32|i64)>", text)
    assert [width for _, width in widths].count("i32") == 3  # the scale's level, and those of both halves of a byte
    assert [width for _, width in widths].count("i64") == 4  # codes of scales, their scales, codes, weights


@pytest.mark.slow
def test_on_a_cpu_nothing_of_it_is_imported():
    code = (
        "import sys, torch; from qlora_lab.quantization.tensor import quantize\n"
        "quantize(torch.ones(4, 64), double_quant=True).dequantize()\n"
        "print('qlora_lab.quantization.fast.triton_decoder' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.cuda
@pytest.mark.parametrize(
    "datatype, double, dtype",
    [
        ("nf4", False, torch.bfloat16),
        ("nf4", True, torch.float32),
        ("nf4", True, torch.float16),
        ("nf4", True, torch.bfloat16),
        ("int4_affine", False, torch.float32),
    ],
)
def test_a_gpu_decodes_to_the_same_bits(datatype, double, dtype, monkeypatch):
    monkeypatch.setattr(compilation, "_state", {"mode": "always", "broken": set(), "proved": set()})
    for n, block_size in ((4999, 18), (3 * 16384 + 1, 64), (1024 * 1024, 64), (9000, 4094)):
        q = quantize(torch.randn(n, generator=torch.Generator().manual_seed(n)), datatype, block_size, double)
        assert torch.equal(q.to("cuda").dequantize(dtype).cpu(), q.dequantize(dtype)), (n, block_size)
    assert any("decoding in Triton" in key for key in compilation._state["proved"])  # by this kernel, and no other
    assert not compilation._state["broken"]


@pytest.mark.cuda
def test_it_is_one_launch():
    q = quantize(torch.randn(1024, 1024).cuda(), double_quant=True)
    q.dequantize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        q.dequantize()
        torch.cuda.synchronize()
    launched = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(launched) == 1 and "decoding_kernel" in launched[0], launched


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.parametrize("way", ["triton", "torch.compile"])
def test_more_than_four_thousand_million_weights(way, monkeypatch):
    """Beyond 2^32 weights places in the codes, too, are beyond 32 bits: the last blocks would be somebody else's."""
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip("needs 20 GB of free GPU memory: NOT RUN")
    broken = set() if way == "triton" else {compilation.TRITON}
    monkeypatch.setattr(compilation, "_state", {"mode": "always", "broken": set(broken), "proved": set()})
    small = quantize(torch.randn(1000, 64, generator=torch.Generator().manual_seed(0)).cuda())
    assert len(small.dequantize(torch.bfloat16)) == 1000  # first what 32 bits are enough for
    blocks = 2**26 + 1000
    codes, scales = (
        torch.cat([old.new_zeros(blocks * len(old) // 1000 - len(old)), old]) for old in (small.codes, small.scales)
    )
    large = QuantizedTensor(codes, {"scales": scales}, torch.Size((blocks, 64)), torch.bfloat16)
    found = large.dequantize()
    assert torch.equal(found[-1000:], small.dequantize(torch.bfloat16))
    assert not found[-2000:-1000].any()
    assert compilation._state["broken"] == broken
