"""What a training run is, as numbers: a model's configuration and how it would be trained.

The budget computes with a plan, the simulation builds and runs it. Neither needs the model's weights.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from qlora_lab.machine.arguments import check_choice, check_count, is_count
from qlora_lab.machine.dtypes import FLOAT_DTYPES
from qlora_lab.models import hub
from qlora_lab.models.gradient_checkpointing import CHECKPOINTING
from qlora_lab.quantization.datatypes import DataType, get_datatype
from qlora_lab.quantization.tensor import check_options

METHODS = ("full", "lora", "qlora")
OPTIMIZERS = ("adamw", "sgd")


def _llama(hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, **others) -> dict:
    return {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
        **others,
    }


# Sources: LLaMA (Touvron et al. 2023), table 2; Llama 2 (Touvron et al. 2023), table 1; the models' own config.json.
PRESETS = {
    "llama-7b": _llama(4096, 11_008, 32, 32),
    "llama-13b": _llama(5120, 13_824, 40, 40),
    "llama-33b": _llama(6656, 17_920, 60, 52),
    "llama-65b": _llama(8192, 22_016, 80, 64),
    "llama-2-70b": _llama(8192, 28_672, 80, 64, num_key_value_heads=8, max_position_embeddings=4096),
    "SmolLM2-135M-Instruct": _llama(
        576, 1536, 30, 9, num_key_value_heads=3, vocab_size=49_152, tie_word_embeddings=True, rope_theta=100_000
    ),
}
_ALIASES = {"llama-30b": "llama-33b", "llama-70b": "llama-2-70b"}


def find_config(config: str | os.PathLike | PreTrainedConfig) -> PreTrainedConfig:
    """The configuration meant by a preset's name, a config.json (or its folder), or a hub id ("owner/model").

    Raises:
        ValueError: nothing of that name; the message lists the presets.
        TypeError: neither a name nor a path nor a transformers configuration.
        ModelUnavailable: a hub id that cannot be had.
    """
    if isinstance(config, PreTrainedConfig):
        return config
    if not isinstance(config, str | os.PathLike):
        raise TypeError(f"config must be a name, a path or a transformers configuration, not {type(config).__name__}")
    name = os.fspath(config)
    lower = {preset.lower(): preset for preset in PRESETS}
    preset = lower.get(_ALIASES.get(name.lower(), name.lower()))
    if preset is not None:
        return LlamaConfig(**PRESETS[preset])
    path = Path(name)
    if not path.exists() and name.count("/") == 1 and not name.startswith((".", "/")):
        path = Path(hub.find_folder(name, weights=False))
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"unknown model {name!r}; choose one of {', '.join(PRESETS)}, or give the path of a config.json"
        )
    try:
        return AutoConfig.from_pretrained(file, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"{file} is not a model configuration: {hub.first_line(error)}") from error


@dataclass(frozen=True)
class TrainingPlan:
    """One training run, checked.

    Attributes:
        config: transformers configuration; a name or path is looked up (`find_config`).
        method: "full" (every parameter is trained), "lora" (adapters on a frozen base), "qlora" (on a 4-bit base).
        rank, alpha, dropout, target_modules: of the adapters; see `inject_lora`. alpha None: twice the rank.
        batch_size, sequence_length: of one forward pass; every sequence is full, so no padding and no mask.
        accumulation: forward and backward passes per optimizer step.
        supervised_tokens: of a batch; only they get logits. None: all but each sequence's first.
        optimizer: "adamw" (two moments a trained parameter) or "sgd" (no state).
        checkpointing: "none", "reentrant" or "non-reentrant".
        dtype: of the base's weights and of activations.
        adapter_dtype: of adapters and their gradients. None: float32, in which they are trained unless one asks
            `quantize_model` or `inject_lora` for another.
        moments_dtype: None: float32 for "full", as in the usual mixed-precision recipe, else that of the adapters.
        datatype, block_size, double_quant: of the 4-bit base; see `quantize`.
        chunked_loss: logits only where there is a label, a few rows at a time (`loss`). False: as a transformers model
            computes its own loss, with the logits of all tokens at once.

    Raises:
        ValueError, TypeError: a value that makes no sense; the message lists or says what does.
    """

    config: PreTrainedConfig
    method: str = "full"
    rank: int = 16
    batch_size: int = 1
    sequence_length: int = 512
    alpha: float | None = None
    dropout: float = 0.0
    target_modules: str | Iterable[str] = "all-linear"
    accumulation: int = 1
    supervised_tokens: int | None = None
    optimizer: str = "adamw"
    checkpointing: str = "none"
    dtype: torch.dtype = torch.bfloat16
    adapter_dtype: torch.dtype | None = None
    moments_dtype: torch.dtype | None = None
    datatype: str | DataType = "nf4"
    block_size: int | None = None
    double_quant: bool = True
    chunked_loss: bool = True

    def __post_init__(self):
        def put(name, value):
            object.__setattr__(self, name, value)

        put("config", find_config(self.config))
        for name, choices in (("method", METHODS), ("optimizer", OPTIMIZERS), ("checkpointing", CHECKPOINTING)):
            check_choice(name, getattr(self, name), choices)
        for name in ("rank", "batch_size", "sequence_length", "accumulation"):
            check_count(name, getattr(self, name))
        if self.sequence_length < 2:
            raise ValueError("sequence_length 1 leaves no token to predict; give at least 2")
        most = self.batch_size * (self.sequence_length - 1)
        if self.supervised_tokens is None:
            put("supervised_tokens", most)
        count = self.supervised_tokens
        if not is_count(count) or count > most:
            raise ValueError(
                f"supervised_tokens {count!r} is not allowed; this batch has 1 to {most}, as first tokens have no label"
            )
        for name in ("dtype", "adapter_dtype", "moments_dtype"):
            put(name, _as_dtype(name, getattr(self, name)))
        if self.adapter_dtype is None:
            put("adapter_dtype", torch.float32)
        if self.moments_dtype is None:
            put("moments_dtype", torch.float32 if self.method == "full" else self.adapter_dtype)
        if self.alpha is None:
            put("alpha", 2 * self.rank)
        put("datatype", get_datatype(self.datatype))
        double_quant = self.double_quant and self.method == "qlora"  # what is not used is not asked about
        put("block_size", check_options(self.datatype, self.block_size, double_quant))
        if not isinstance(self.target_modules, str):
            put("target_modules", tuple(self.target_modules))

    @property
    def trained_dtype(self) -> torch.dtype:
        return self.dtype if self.method == "full" else self.adapter_dtype

    def check_rank(self, adapted: dict[str, tuple[int, int]]) -> None:
        """Raises ValueError where the rank exceeds the smaller dimension of a layer: {name: (in, out)}."""
        if self.method == "full" or not adapted:
            return
        name, shape = min(adapted.items(), key=lambda item: min(item[1]))
        if self.rank > min(shape):
            raise ValueError(
                f"rank {self.rank} is above {min(shape)}, the smaller dimension of {name} {shape}; "
                f"give a rank of 1 to {min(shape)} (usual: 8 to 64)"
            )


def _as_dtype(name: str, dtype) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is None and name != "dtype":
        return None
    if found not in FLOAT_DTYPES.values():
        raise ValueError(f"{name} {dtype!r} is not allowed; choose torch.{', torch.'.join(FLOAT_DTYPES)}")
    return found
