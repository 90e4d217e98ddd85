"""The processor: its name, its maker, how wide its vectors are, and whether it multiplies bfloat16."""

import platform
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


def cpuinfo() -> str:
    """What Linux says of the processor; empty elsewhere."""
    try:
        return _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return ""


def name() -> str:
    """Its name, or what kind it is."""
    names = [line.split(":", 1)[1].strip() for line in cpuinfo().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def is_amd() -> bool:
    return "AuthenticAMD" in (cpuinfo() or platform.processor())


def has_wide_vectors() -> bool:
    """Whether PyTorch computes with vectors of 512 bits, sixteen float32, on it."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def multiplies_bfloat16() -> bool:
    """Whether it has instructions for bfloat16 products. Known on Linux; elsewhere False."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpuinfo().split())  # the last one is ARM's name
