"""Matrix products in float32: oneDNN's where the library behind PyTorch's `@` does not know the processor.

On x86 PyTorch hands float32 products to Intel's MKL, which takes its AVX-512 code on Intel processors only; on AMD it
computes with vectors half as wide. oneDNN, which PyTorch carries as well (for its compiler), asks the processor what it
can do. The sums are the same but for the order in which they are rounded. A training step takes 1.6 times as long with
PyTorch's own products on an AMD EPYC with AVX-512 (two threads; `benchmarks/race.py products` measures it).
"""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import _disable_current_modes, is_in_torch_dispatch_mode

from qlora_lab.machine import processor

_state = {"plain": False}


def matmul(x: torch.Tensor, w: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """x @ w for two matrices that need no gradient; by oneDNN where that is faster.

    Args:
        x: (n, k). w: (k, m), the same dtype and device.
        out: (n, m) to write to, as `torch.mm` does.
    """
    if not prefers_onednn(x):
        return torch.mm(x, w, out=out)
    y = _onednn(_by_rows_or_columns(x), _by_rows_or_columns(w.t()))
    return y if out is None else out.copy_(y)


def prefers_onednn(x: torch.Tensor) -> bool:
    """Whether `matmul` takes oneDNN for this left factor: float32 on an AMD processor with AVX-512.

    Not where someone compiles or transforms the caller, or watches every operation (a counter of FLOPs, fake tensors):
    they should see a plain matrix product. And not inside `plain()`.
    """
    if torch.compiler.is_compiling() or x.dtype != torch.float32 or x.device.type != "cpu" or not x.numel():
        return False
    if is_in_torch_dispatch_mode() or torch._C._are_functorch_transforms_active():
        return False
    return not _state["plain"] and not torch.is_autocast_enabled("cpu") and _onednn_is_faster()


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Inside, every product is PyTorch's own `@`: for comparisons with layers that have nothing else."""
    before, _state["plain"] = _state["plain"], True
    try:
        yield
    finally:
        _state["plain"] = before


def _by_rows_or_columns(x: torch.Tensor) -> torch.Tensor:
    """x laid out so that oneDNN has fast code for it. The gradient of a sum is one number, expanded: stride 0."""
    return x if 1 in x.stride() and 0 not in x.stride() else x.contiguous()


def _onednn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x @ w.t(): the operator that PyTorch's own compiler puts in for a linear layer on a CPU."""
    return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


@functools.cache
def _onednn_is_faster() -> bool:
    """Decided by the processor, not by a stopwatch: one machine has to give the same bits in every run."""
    if not processor.has_wide_vectors() or not torch.backends.mkldnn.is_available():
        return False
    if not (torch.backends.mkl.is_available() and processor.is_amd()):
        return False
    try:  # the operator is internal to PyTorch: make sure that it is there and what it does
        # ... whatever the defaults and modes are that it is asked under first: the answer is kept
        with _disable_current_modes(), torch.autocast("cpu", enabled=False):
            x, w = (torch.arange(float(n), dtype=torch.float32, device="cpu").view(-1, 3) for n in (6, 12))
            return torch.equal(_onednn(x, w), x @ w.t())
    except Exception:
        return False
