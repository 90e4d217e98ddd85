"""The fast path is taken where it works and is right; its absence is told once."""

import errno
import os
import subprocess
import sys
import types

import pytest
import torch

from qlora_lab.machine import processor
from qlora_lab.quantization.fast import compilation, kernels
from qlora_lab.quantization.tensor import quantize


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="auto, always, never"):
        compilation.set_compile("sometimes")


@pytest.mark.parametrize("wide", [True, False], ids=["wide vectors", "narrow vectors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_that_computes_something_else_is_found_out(monkeypatch, dtype, wide):
    monkeypatch.setattr(compilation, "_state", {"mode": "always", "broken": set(), "proved": set()})
    monkeypatch.setattr(kernels, "has_wide_vectors", lambda: wide)
    miscompiled = {"_quantize_kernel": 1, "_dequantize_32bit_kernel": 0, "_dequantize_16bit_kernel": 2}
    miscompiled |= {"_pack_kernel": 1, "_look_up_32bit_kernel": 0}
    for name, output in miscompiled.items():  # writes zeros where its results belong
        monkeypatch.setattr(kernels, name, lambda *key, i=output: lambda *tensors: tensors[i].zero_())
    weight = torch.randn(30, 64)
    with pytest.warns(RuntimeWarning, match="quantization differs from the definition"):
        q = quantize(weight)
    assert compilation._state["broken"] == {"cpu"}
    assert compilation.path_taken("cpu")["given up"] == "its quantization differs from the definition"
    compilation._state["broken"].clear()
    with pytest.warns(RuntimeWarning, match="dequantization differs from the definition") as said:
        decoded = [q.dequantize(dtype) for _ in range(2)]
    assert len([warning for warning in said if warning.category is RuntimeWarning]) == 1
    compilation.set_compile("never")
    expected = quantize(weight)
    assert torch.equal(q.codes, expected.codes) and torch.equal(q.scales, expected.scales)
    assert all(torch.equal(d, expected.dequantize(dtype)) for d in decoded)


def test_each_kind_of_device_proves_its_own_kernels(monkeypatch):
    monkeypatch.setattr(compilation, "_state", {"mode": "always", "broken": set(), "proved": set()})
    monkeypatch.setattr(compilation, "_reasons", {})
    on = {kind: types.SimpleNamespace(device=torch.device(kind), is_inference=bool) for kind in ("cpu", "cuda")}
    assert compilation.proved("decoding", on["cpu"], (), lambda: True)
    assert compilation.path_taken("cpu") == {"compiled and proved": ["decoding"], "given up": None}
    assert compilation.path_taken("cuda") == {
        "compiled and proved": [],
        "given up": None,
        "decoder in Triton given up": None,
    }
    with pytest.warns(RuntimeWarning, match="does not work here for cuda"):
        assert not compilation.proved("decoding", on["cuda"], (), lambda: False)
    assert compilation.path_taken("cuda")["given up"] == "its decoding differs from the definition"
    assert compilation.path_taken("cpu")["given up"] is None


def test_a_decoder_that_fails_is_given_up_alone_and_said_once(monkeypatch):
    monkeypatch.setattr(compilation, "_state", {"mode": "always", "broken": set(), "proved": set()})
    monkeypatch.setattr(compilation, "_reasons", {})

    def fails():
        raise OSError("no libcuda")

    weight = torch.zeros(4)
    assert compilation.wanted(weight, 4, compilation.TRITON)
    with pytest.warns(RuntimeWarning, match=r"decoder in Triton does not work here \(no libcuda\); .*torch\.compile"):
        assert not compilation.attempt(compilation.TRITON, fails)
    assert not compilation.wanted(weight, 4, compilation.TRITON)
    assert compilation.wanted(weight, 4)  # what torch.compile makes goes on
    taken = compilation.path_taken("cuda")
    assert (taken["given up"], taken["decoder in Triton given up"]) == (None, "no libcuda")


def test_weights_that_cannot_be_quantized_prove_nothing(monkeypatch):
    monkeypatch.setattr(compilation, "_state", {"mode": "always", "broken": set(), "proved": set()})
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize(torch.full((4, 64), torch.nan))
    assert not compilation._state["proved"] and not compilation._state["broken"]


def double_into(out, x, *more):
    out.copy_(sum((m.sum() for m in more), x * 2))


def test_sizes_that_happened_to_be_equal_are_not_taken_for_one():
    kernel = compilation.Compiled(double_into)
    for rows, more in ((4, 4), (4, 4), (6, 4), (4, 6), (6, 6), (5, 7)):
        x = torch.randn(rows, 8)
        out = torch.empty(rows, 8)
        kernel(out, x, torch.ones(more))
        assert torch.equal(out, x * 2 + more), (rows, more)


def test_rows_that_happened_to_be_as_many_as_columns_are_not_taken_for_these():
    kernel = compilation.Compiled(double_into)
    for rows, columns in ((6, 8), (12, 12), (12, 12), (500, 12), (12, 16)):  # a second number of columns: for any
        x = torch.randn(rows, columns)
        out = torch.empty(rows, columns)
        kernel(out, x)
        assert torch.equal(out, x * 2), (rows, columns)


@pytest.mark.slow
def test_without_a_compiler_one_warning_and_the_same_results(tmp_path):
    script = """
import warnings, torch
from qlora_lab import quantize; from qlora_lab.quantization.fast import compilation
w = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
compilation.set_compile("never"); expected = quantize(w)
compilation.set_compile("always")
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


COMPILE = """
import sys, warnings, torch
from qlora_lab import quantize; from qlora_lab.quantization.fast import compilation
w = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
compilation.set_compile("never"); expected = quantize(w)
compilation.set_compile("always")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        q = quantize(w)
        assert torch.equal(q.codes, expected.codes) and torch.equal(q.dequantize(), expected.dequantize())
said = [str(w.message) for w in caught if "plain PyTorch path" in str(w.message)]
assert len(said) <= 1, said
print(*said)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("circumstances", "words"),
    [
        ({"TORCHINDUCTOR_CACHE_DIR": "a b"}, "TORCHINDUCTOR_CACHE_DIR (PATH/a b) without a space in it"),
        ({"TORCHINDUCTOR_CACHE_DIR": "it's"}, "TORCHINDUCTOR_CACHE_DIR (PATH/it's) without a ' in it"),
        ({"TORCHINDUCTOR_CACHE_DIR": "käse"}, ""),
        ({"CXX": "/no/such/compiler"}, "A compiler where CXX=/no/such/compiler says there is one"),
        ({"PATH": "/nowhere"}, "Installing a C++ compiler"),
        ({"PATH": "broken"}, "there is one, and it does not"),
    ],
    ids=["space", "quote", "umlaut", "CXX", "none", "one that fails"],
)
def test_the_warning_names_the_true_cause(tmp_path, circumstances, words):
    (tmp_path / "broken").mkdir()
    for name in ("g++", "clang++", "c++"):
        (tmp_path / "broken" / name).write_text('#!/bin/sh\n[ "$1" = --version ] && echo g++ 12 && exit 0\nexit 1\n')
        (tmp_path / "broken" / name).chmod(0o755)
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("CXX", None)
    for name, value in circumstances.items():
        inside = name == "TORCHINDUCTOR_CACHE_DIR" or value == "broken"
        environment[name] = str(tmp_path / value) if inside else value
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert words.replace("PATH", str(tmp_path)) in done.stdout
    assert bool(done.stdout.strip()) == bool(words)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOENT, errno.ENOTDIR])
def test_a_folder_that_cannot_be_written_to_is_named(monkeypatch, code):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/cache")
    assert compilation._remedy("cpu", OSError(code, os.strerror(code), "/cache/xy")).startswith(
        "A TORCHINDUCTOR_CACHE_DIR (/cache) that is there"
    )
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert "temporary folder (" in compilation._remedy("cpu", OSError(code, os.strerror(code), "/tmp/xy"))
    missing = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert "TMPDIR" in compilation._remedy("cpu", missing)


@pytest.mark.slow
def test_processes_with_other_vectors_share_a_cache_on_disk(tmp_path):
    script = """
import torch
from qlora_lab import quantize; from qlora_lab.quantization.fast import compilation
w = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
compilation.set_compile("never"); expected = quantize(w)
compilation.set_compile("always"); found = quantize(w)
assert torch.equal(found.codes, expected.codes) and torch.equal(found.scales, expected.scales), "quantize"
for dtype in (torch.float32, torch.bfloat16):
    fast = expected.dequantize(dtype)
    compilation.set_compile("never"); slow = expected.dequantize(dtype); compilation.set_compile("always")
    assert torch.equal(fast, slow), f"dequantize {dtype}"
print(torch.backends.cpu.get_cpu_capability())
"""
    capabilities = ["default", "avx2"]
    if processor.has_wide_vectors():  # elsewhere PyTorch would obey, and crash
        capabilities.insert(1, "avx512")
    for capability in capabilities:
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (capability, done.stdout, done.stderr[-2000:])
