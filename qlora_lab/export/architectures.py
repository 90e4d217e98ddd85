"""What llama.cpp calls the parts of a model, and in which order it wants their rows.

The `gguf` package knows the names of every architecture's tensors. It does not know what else changes on the way: in
the llama family a rotated pair lies half a head apart in transformers and side by side in GGUF, so the rows of q and k
change places; where q, k and v are one weight, GPT-NeoX has them head by head and GGUF one after the other; Gemma's
norms count from one. Left out, the answers are plausible and wrong. So a family is written down here when what
llama.cpp computes from it has been compared with what transformers computes (`tests/export/test_architectures.py`), and
others are refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import gguf
import torch

Read = Callable[[object], object]  # from a configuration of transformers' to a value for GGUF


def head_size(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def key_value_heads(config) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _pairs(heads: int, size: int) -> torch.Tensor:
    """Rows of rotated heads: half a head apart -> side by side."""
    return torch.arange(heads * size).view(heads, 2, size // 2).transpose(1, 2).reshape(-1)


def _one_after_the_other(config) -> torch.Tensor:
    """Rows of q, k and v in one weight: head by head -> all of q, all of k, all of v."""
    heads, size = config.num_attention_heads, head_size(config)
    return torch.arange(3 * heads * size).view(heads, 3, size).transpose(0, 1).reshape(-1)


_ROTATED = {
    "self_attn.q_proj": lambda config: _pairs(config.num_attention_heads, head_size(config)),
    "self_attn.k_proj": lambda config: _pairs(key_value_heads(config), head_size(config)),
}


@dataclass(frozen=True)
class Architecture:
    """How a family of transformers' is written in GGUF.

    Attributes:
        name: llama.cpp's, as in `gguf.MODEL_ARCH_NAMES`.
        orders: by the end of a module's path, how many rows go where: row i of GGUF's is row order[i] of transformers'.
        norms_from_one: the weights of norms are stored less one in transformers.
        settings: values beside those that every model has, by their key in GGUF after the architecture's name.
        differs: says of a configuration in what llama.cpp would compute something else; None: in nothing.
        biases: linear layers may have them.
        whole: the merged model can be written without a GGUF file of the base, too.
    """

    name: str
    orders: dict[str, Callable[[object], torch.Tensor]] = field(default_factory=dict)
    norms_from_one: bool = False
    settings: dict[str, Read] = field(default_factory=dict)
    differs: Callable[[object], str | None] = lambda config: None
    biases: bool = True
    whole: bool = True

    def tensor_name(self, path: str, blocks: int) -> str | None:
        """GGUF's name of `path` ("model.layers.0.mlp.up_proj.weight"), or None where it has none."""
        return self._names(blocks).get_name(path, try_suffixes=(".weight", ".bias"))

    def _names(self, blocks: int):
        arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == self.name)
        return gguf.get_tensor_name_map(arch, blocks)

    def order(self, module: str, config) -> torch.Tensor | None:
        """The order of a module's rows, or None where it is transformers'."""
        return next((make(config) for end, make in self.orders.items() if module.endswith(f".{end}")), None)


def _read(name: str) -> Read:
    return lambda config: getattr(config, name, None)


def _rotated_part(config) -> int:
    parameters = getattr(config, "rope_parameters", None) or {}
    share = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    return int((1.0 if share is None else share) * head_size(config))


_HEADS = {"attention.key_length": head_size, "attention.value_length": head_size}
_ROPE = {"rope.dimension_count": _rotated_part}
_WINDOW = {"attention.sliding_window": _read("sliding_window")}


def _no_window(config) -> str | None:
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    return f"layers of {', '.join(sorted(kinds))}" if kinds else None


def _rope_in_every_fourth(config) -> str | None:
    usual = [int((i + 1) % 4 != 0) for i in range(config.num_hidden_layers)]
    return None if list(config.no_rope_layers) == usual else "rotation in other layers than usual"


def _stablelm(config) -> str | None:
    return "norms of q and k" if config.qk_layernorm else None


# By `model_type` of the configuration.
ARCHITECTURES = {
    "llama": Architecture("llama", _ROTATED, settings=_ROPE | _HEADS),
    "mistral": Architecture("llama", _ROTATED, settings=_ROPE | _HEADS),
    "mixtral": Architecture("llama", _ROTATED, whole=False),
    "smollm3": Architecture("smollm3", _ROTATED, settings=_ROPE | _HEADS, differs=_rope_in_every_fourth, biases=False),
    "granite": Architecture(
        "granite",
        _ROTATED,
        settings=_ROPE
        | {
            "attention.scale": _read("attention_multiplier"),
            "embedding_scale": _read("embedding_multiplier"),
            "residual_scale": _read("residual_multiplier"),
            "logit_scale": _read("logits_scaling"),
        },
    ),
    "qwen2": Architecture("qwen2", differs=_no_window),
    "qwen3": Architecture("qwen3", settings=_HEADS, differs=_no_window, biases=False),
    "phi3": Architecture(
        "phi3",
        settings=_ROPE | {"attention.sliding_window": lambda config: config.sliding_window or 0},
        biases=False,
    ),
    "gemma": Architecture("gemma", norms_from_one=True, settings=_HEADS, biases=False),
    "gemma2": Architecture(
        "gemma2",
        norms_from_one=True,
        biases=False,
        settings=_HEADS
        | _WINDOW
        | {
            "attn_logit_softcapping": _read("attn_logit_softcapping"),
            "final_logit_softcapping": _read("final_logit_softcapping"),
        },
    ),
    "olmo2": Architecture("olmo2", biases=False),
    "starcoder2": Architecture("starcoder2"),
    "stablelm": Architecture(
        "stablelm", settings=_ROPE | {"use_parallel_residual": _read("use_parallel_residual")}, differs=_stablelm
    ),
    "gpt_neox": Architecture(
        "gptneox",
        {"attention.query_key_value": _one_after_the_other},
        settings=_ROPE | {"use_parallel_residual": _read("use_parallel_residual")},
    ),
}


def find_architecture(config, whole: bool = False) -> Architecture:
    """How a model with this configuration is written in GGUF.

    Args:
        whole: the model itself is to be written, without a GGUF file of its base to go by.

    Raises:
        ValueError: a family that is not written down here, or one that needs the base's file.
    """
    kind = config.model_type
    found = ARCHITECTURES.get(kind)
    if found is None or found.name not in gguf.MODEL_ARCH_NAMES.values():
        raise ValueError(
            f"how a {kind} model is written in GGUF is not known here; known are {', '.join(sorted(ARCHITECTURES))}. "
            "Export it as peft or merged, and convert that with llama.cpp's own scripts"
        )
    if (different := found.differs(config)) is not None:
        raise ValueError(f"this {kind} model has {different}, which llama.cpp would compute otherwise; use merged")
    if whole and not found.whole:
        raise ValueError(
            f"a whole {kind} model is not written to GGUF without a file of its base; give one with --base-gguf, or "
            "use gguf-lora"
        )
    return found
