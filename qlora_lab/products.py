"""Matrix products in float32: oneDNN's where the library behind PyTorch's `@` does not know the processor.

On x86 PyTorch hands float32 products to Intel's MKL, which takes its AVX-512 code on Intel processors only; on AMD it
computes with vectors half as wide. oneDNN, which PyTorch carries as well (for its compiler), asks the processor what it
can do. The sums are the same but for the order in which they are rounded.
"""

import functools
import platform
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_CPUINFO = Path("/proc/cpuinfo")


def matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x @ w for two matrices that need no gradient; by oneDNN where that is faster.

    Args:
        x: (n, k). w: (k, m), the same dtype and device.
    """
    return _onednn(x, w.t()) if prefers_onednn(x) else x @ w


def frozen_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear(x, weight, bias)` whose weight and bias get no gradient; by oneDNN where that is faster.

    Args:
        x: (..., in). weight: (out, in). bias: (out,) or None.
    """
    if prefers_onednn(x) and type(weight) in (nn.Parameter, torch.Tensor) and weight.dtype == torch.float32:
        return _FrozenLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def prefers_onednn(x: torch.Tensor) -> bool:
    """Whether `matmul` takes oneDNN for this left factor: float32 on an AMD processor with AVX-512.

    Not where someone compiles or transforms the caller, or watches every operation (a counter of FLOPs, fake tensors):
    they should see a plain matrix product. And not inside `torch.backends.mkldnn.flags(enabled=False)`.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or not x.numel() or not _onednn_is_faster():
        return False
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or torch._C._are_functorch_transforms_active():
        return False
    return torch.backends.mkldnn.enabled and not torch.is_autocast_enabled("cpu")


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, g):
        (weight,) = ctx.saved_tensors
        return frozen_linear(g, weight.t()), None, None


def _onednn(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ w.t() + bias: the operator that PyTorch's own compiler puts in for a linear layer on a CPU."""
    return torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")


@functools.cache
def _onednn_is_faster() -> bool:
    """Decided by the processor, not by a stopwatch: one machine has to give the same bits in every run."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    if not (torch.backends.mkl.is_available() and is_amd()):
        return False
    try:  # the operator is internal to PyTorch: make sure that it is there and what it does
        x, w, bias = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3), torch.ones(4)
        return torch.equal(_onednn(x, w, bias), x @ w.t() + bias)
    except Exception:
        return False


def is_amd() -> bool:
    try:
        return "AuthenticAMD" in _CPUINFO.read_text(encoding="utf-8")
    except OSError:  # not Linux
        return "AuthenticAMD" in platform.processor()
