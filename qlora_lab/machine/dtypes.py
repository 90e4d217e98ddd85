"""The float dtypes weights come in, and which of them this machine computes in.

`FLOAT_DTYPES` is what a file or an option may say, name -> dtype.
"""

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
