"""The float dtypes weights come in, and which of them this machine computes in.

`FLOAT_DTYPES` is what a file or an option may say, name -> dtype.
"""

import contextlib

import torch

from qlora_lab.machine import processor

FLOAT_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def default_dtype(device) -> torch.dtype:
    """float32 on a CPU; on CUDA bfloat16 where the hardware has it (compute capability 8.0 and up), else float16."""
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def default_compute_dtype(device) -> torch.dtype | None:
    """dtype for the products with 4-bit weights: on a CPU that multiplies bfloat16 in hardware, bfloat16.

    Elsewhere None, the dtype of the model. The rest of a model on a CPU stays in float32, adapters and gradients too.
    """
    return torch.bfloat16 if torch.device(device).type == "cpu" and processor.multiplies_bfloat16() else None


def autocast_dtype(device: str) -> torch.dtype | None:
    """Of a kind of device ("cpu", "cuda", "meta"); None where autocast is off, or is none."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def without_autocast(device: str) -> contextlib.AbstractContextManager:
    """Inside, products are computed in the dtypes given, on this kind of device."""
    return torch.autocast(device, enabled=False) if autocast_dtype(device) else contextlib.nullcontext()
