"""QLoRA Lab: QLoRA built piece by piece, each piece proved against the library people use.

The modules, bottom floor first: `datatypes`, `quantization`, `lora`, `qlora`, `models`, `tasks`, `training`. What the
notebooks and the command line use is importable from here.
"""

from qlora_lab.evaluation.exact_match import evaluate
from qlora_lab.lora import LoRALinear, count_parameters, inject_lora, merge, merge_and_unload, unmerge
from qlora_lab.memory.ledger import MemoryTrace
from qlora_lab.memory.simulation import simulate_training
from qlora_lab.models.adapters import load_adapter, save_adapter
from qlora_lab.models.base_model import load_model, load_tokenizer
from qlora_lab.paging.paged_adamw import PagedAdamW
from qlora_lab.qlora import QLoRALinear, quantize_model
from qlora_lab.quantization.datatypes import DATATYPES, DataType, get_datatype
from qlora_lab.quantization.tensor import QuantizedTensor, quantize
from qlora_lab.training.loop import finetune

__version__ = "0.1.0"

__all__ = [
    "DATATYPES",
    "DataType",
    "LoRALinear",
    "MemoryTrace",
    "PagedAdamW",
    "QLoRALinear",
    "QuantizedTensor",
    "count_parameters",
    "evaluate",
    "finetune",
    "get_datatype",
    "inject_lora",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "merge",
    "merge_and_unload",
    "quantize",
    "quantize_model",
    "save_adapter",
    "simulate_training",
    "unmerge",
]
