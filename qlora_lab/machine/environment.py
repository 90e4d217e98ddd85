"""What this machine is and what would run on it: versions, device, number formats, memory, compiler."""

import importlib.metadata
import os
import platform
import shutil

import torch

from qlora_lab.machine import processor
from qlora_lab.machine.dtypes import default_compute_dtype, default_dtype
from qlora_lab.machine.free_memory import free_memory
from qlora_lab.machine.matmul import prefers_onednn

PACKAGES = ("torch", "transformers", "safetensors", "bitsandbytes", "peft", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries its results depend on; "missing" for what is not installed."""
    found = {"python": platform.python_version()}
    for name in ("qlora-lab", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def default_device() -> torch.device:
    """Where to compute if nobody says: on a GPU that works, NVIDIA's (cuda) or Apple's (mps), else on the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() and _mps_works() else "cpu")


def _mps_works() -> bool:
    """Some virtual machines show a GPU of Apple's on which nothing can be allocated."""
    try:
        return torch.ones(2, device="mps").sum().item() == 2
    except RuntimeError:
        return False


def device_name(device: torch.device | str) -> str:
    """The GPU's name, or the processor's with the number of threads that PyTorch uses."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"GPU of {processor.name()}"
    return f"{processor.name()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def describe() -> dict[str, str]:
    """Facts for a person (`qlora-lab doctor`) and for the head of a recorded measurement, as name -> text."""
    device = default_device()
    compiler = next((c for c in (os.environ.get("CXX"), "g++", "clang++") if c and shutil.which(c)), None)
    return {
        "device": device_name(device),
        "computes in": _computes_in(device),
        "bfloat16": _bfloat16(device),
        "float32 products": "by oneDNN" if prefers_onednn(torch.empty(1, device=device)) else "by PyTorch's own choice",
        "free memory": f"{free_memory(device) / 1e9:.1f} GB",
        "compiler": compiler or "none found: quantization takes the plain PyTorch path (same results, slower)",
    }


def _computes_in(device: torch.device) -> str:
    model, products = default_dtype(device), default_compute_dtype(device)
    text = str(model).removeprefix("torch.")
    return (
        text if products is None else f"{text}; products with 4-bit weights in {str(products).removeprefix('torch.')}"
    )


def _bfloat16(device: torch.device) -> str:
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
        return "yes" if fast else "emulated, slow: float16 is used instead (this GPU is older than Ampere)"
    if device.type == "mps":
        return "not used: float32 is the default on this GPU"
    return "in hardware" if processor.multiplies_bfloat16() else "emulated; float32 is faster on this CPU"
