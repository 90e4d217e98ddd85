"""Notebook 06: the base model on its way in, and the adapter on its way out.

Read `base_model` (load a model and its tokenizer) and `adapters` (save and load what was trained, in PEFT's format).
`hub` and `downloads` fetch files, `conversion` turns the default model's GGUF file into safetensors,
`gradient_checkpointing` switches it on and off, `wrappers` looks through torch.compile and its like. `never_quantized`
has real weights that no 4-bit format has touched.
"""

from qlora_lab.machine.dtypes import default_compute_dtype, default_dtype
from qlora_lab.models.adapters import load_adapter, save_adapter
from qlora_lab.models.base_model import (
    DEFAULT,
    default_model_status,
    ensure_default_gguf,
    ensure_default_model,
    load_model,
    load_tokenizer,
)
from qlora_lab.models.downloads import ModelUnavailable
from qlora_lab.models.never_quantized import ensure_never_quantized, never_quantized_weights

__all__ = [
    "DEFAULT",
    "ModelUnavailable",
    "default_compute_dtype",
    "default_dtype",
    "default_model_status",
    "ensure_default_gguf",
    "ensure_default_model",
    "ensure_never_quantized",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "never_quantized_weights",
    "save_adapter",
]
