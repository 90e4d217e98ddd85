"""Adapters and models as GGUF files, which llama.cpp, Ollama and what is built on them read.

A file is planned first: the name, shape and type of every tensor, and every field. Whatever cannot be said in GGUF
comes out then, before a byte is written. Values are made one tensor at a time while the file is written.

A GGUF file of the base, where there is one, gives all that is not weights (tokenizer, template, settings), the type of
each tensor, and the bytes of those tensors that did not change.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType
from torch import nn

from qlora_lab.export.architectures import Architecture, head_size, key_value_heads
from qlora_lab.export.gguf_vocabulary import COUNT, LIST, REAL, TEXT, Field
from qlora_lab.lora import adapted_layers, output_head

TYPES = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
}
F32, F16, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0
# What the `gguf` package can encode; the rest (K-quants and the like) it only decodes.
_ENCODED = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
_LARGEST = float(np.finfo(np.float16).max)


class Planned(NamedTuple):
    """A tensor that is to be written: `make` gives its values, float32 of `shape`, or its bytes if they are encoded."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    make: Callable[[], np.ndarray]
    encoded: bool = False

    @property
    def nbytes(self) -> int:
        elements, size = gguf.GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // elements * size


@dataclass(frozen=True)
class GGUFPlan:
    """A GGUF file that can be written: its fields, its tensors, and what should be said about it."""

    architecture: str
    fields: dict[str, Field]
    tensors: list[Planned]
    remarks: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """About what it will take on disk."""
        fields = sum(len(value) * 12 if isinstance(value, list) else 64 for value, _, _ in self.fields.values())
        return sum(tensor.nbytes + 96 for tensor in self.tensors) + fields + 4096


# -- an adapter


def plan_adapter(model: nn.Module, architecture: Architecture, base: GGUFReader | None = None) -> GGUFPlan:
    """The adapters of `model` as a LoRA file: A (r, in) and B (out, r) in float32, the rows of B in GGUF's order.

    llama.cpp scales by alpha / r, with one alpha for all layers and each layer's own r. Where a layer's scaling is
    another (rsLoRA, other alphas), the rest goes into B.

    Args:
        base: the file it will run beside; every adapted weight must be in it, in the same shape.

    Raises:
        ValueError: an adapter on a layer that GGUF has no name for, or that the base's file lacks.
    """
    layers = {path: layer for path, layer in adapted_layers(model) if layer.rank}
    alpha = float(next(iter(layers.values())).alpha)
    head, tied = output_head(model), bool(getattr(model.config, "tie_word_embeddings", False))
    there = {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in base.tensors} if base is not None else None
    tensors = []
    for path, layer in layers.items():
        name = _tensor_name(architecture, f"{path}.weight", model.config)
        if layer is head and tied:
            raise ValueError(
                f"{path} is adapted and shares its weight with the embedding, where a LoRA in GGUF cannot change it "
                "alone; use gguf, which gives it a weight of its own"
            )
        if there is not None and there.get(name) != (layer.in_features, layer.out_features):
            raise ValueError(
                f"{path} maps {layer.in_features} to {layer.out_features} features, and {name} of the base's GGUF file "
                f"is {there.get(name, 'not there')}: the file is of another model"
            )
        order = architecture.order(path, model.config)
        share = layer.scaling * layer.rank / alpha
        b = layer.lora_B.detach().float() * (1 if math.isclose(share, 1, rel_tol=1e-9) else share)  # (out, r)
        b = b if order is None else b[order]
        for part, values in (("a", layer.lora_A.detach().float()), ("b", b)):
            array = values.contiguous().numpy()
            tensors.append(Planned(f"{name}.lora_{part}", array.shape, F32, lambda array=array: array))
    fields = {
        "general.type": ("adapter", TEXT, None),
        "adapter.type": ("lora", TEXT, None),
        "adapter.lora.alpha": (alpha, REAL, None),
    }
    return GGUFPlan(architecture.name, fields, tensors)


# -- a model


def plan_model(
    model: nn.Module,
    architecture: Architecture,
    kind: str,
    fields: dict[str, Field],
    base: GGUFReader | None = None,
) -> GGUFPlan:
    """A plain model as a GGUF file.

    Args:
        model: without adapters or 4-bit layers; see `merge_into_base`.
        kind: "f16" and "q8_0" for all matrices; "q4_1" for the types that the tensors have in the base's file. Vectors
            are float32. A matrix whose rows are no multiple of 32 long stays in float16.
        fields: those of the tokenizer and of `model_fields`, or what `carried_fields` took from the base.

    Raises:
        ValueError: a weight that GGUF has no name for or cannot hold, or a file that is of another base.
    """
    config, biases = model.config, []
    own: dict[str, tuple[torch.Tensor, torch.Tensor | None, float]] = {}
    for path, parameter in model.named_parameters():  # a weight that two share comes once, as the embedding
        name, module = _tensor_name(architecture, path, config), path.rpartition(".")[0]
        shift = 1.0 if architecture.norms_from_one and "norm" in module.rpartition(".")[2] else 0.0
        own[name] = parameter.detach(), architecture.order(module, config), shift
        biases += [path] * path.endswith(".bias")
    if biases and not architecture.biases:
        raise ValueError(f"llama.cpp has no place for {biases[0]} in a model of this family ({architecture.name})")
    if (factors := rope_factors(config)) is not None:
        own["rope_freqs.weight"] = factors, None, 0.0
    there = {tensor.name: tensor for tensor in base.tensors} if base is not None else {}
    if base is not None:
        _check_base(own, there)
    wanted, remarks, tensors = TYPES[kind][0], [], []
    for name, (values, order, shift) in own.items():
        old = there.get(name)
        chosen = _choose_type(name, values, wanted, old if kind == "q4_1" else None)
        if chosen != wanted and values.ndim > 1 and kind != "q4_1" and not name.endswith("ffn_gate_inp.weight"):
            remarks.append(f"{name} stays in {chosen.name}: its rows of {values.shape[-1]} make no whole blocks")
        if chosen == F16 and float(values.abs().max()) > _LARGEST:
            raise ValueError(f"{name} holds numbers beyond the range of float16, {_LARGEST:g}; use q8_0 or merged")

        def make(values=values, order=order, shift=shift) -> np.ndarray:
            values = values.float() if order is None else values[order].float()
            return (values + shift if shift else values).contiguous().numpy()

        if old is not None and old.tensor_type == chosen and _is_unchanged(old, make()):
            tensors.append(Planned(name, tuple(values.shape), chosen, lambda old=old: np.asarray(old.data), True))
        else:
            tensors.append(Planned(name, tuple(values.shape), chosen, make))
    for name, old in there.items():
        if name not in own and name.startswith("rope_f"):  # computed from the settings, which are the base's
            shape = tuple(int(n) for n in reversed(old.shape))
            tensors.append(Planned(name, shape, old.tensor_type, lambda old=old: np.asarray(old.data), True))
    fields = fields | {
        "general.type": ("model", TEXT, None),
        "general.file_type": (int(TYPES[kind][1]), COUNT, None),
        "general.quantization_version": (gguf.GGML_QUANT_VERSION, COUNT, None),
    }
    return GGUFPlan(architecture.name, fields, tensors, tuple(remarks))


def model_fields(config, architecture: Architecture) -> dict[str, Field]:
    """The settings of a model, from its configuration.

    Raises:
        ValueError: one that llama.cpp does not compute as transformers does.
    """
    usual = type(config)()
    for name in ("hidden_act", "hidden_activation"):
        given, known = (str(getattr(c, name, None)).split("_")[0] for c in (config, usual))
        if given != known:
            raise ValueError(f"this model's {name} is {given}, and llama.cpp computes {known} in its family")
    eps = next(
        (kind, getattr(config, name))
        for name, kind in (
            ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
            ("layer_norm_eps", "attention.layer_norm_epsilon"),
            ("norm_epsilon", "attention.layer_norm_epsilon"),
        )
        if getattr(config, name, None) is not None
    )
    rope = getattr(config, "rope_parameters", None) or {}
    values = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": key_value_heads(config),
        "vocab_size": config.vocab_size,
        eps[0]: float(eps[1]),
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
        **{key: read(config) for key, read in architecture.settings.items()},
    }
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    elif kind not in ("default", "llama3"):
        raise ValueError(
            f"this model turns positions by {kind!r}, which is not written here; give a GGUF file of the base with "
            "--base-gguf, or use gguf-lora"
        )
    types = {bool: gguf.GGUFValueType.BOOL, int: COUNT, float: REAL, str: TEXT}
    return {
        f"{architecture.name}.{key}": (value, types[type(value)], None)
        for key, value in values.items()
        if value is not None
    }


def rope_factors(config) -> torch.Tensor | None:
    """What llama.cpp divides the frequencies of Llama 3's stretched positions by, (size of a head / 2), or None."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "llama3":
        return None
    size = head_size(config)
    turns = rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    length = 2 * math.pi * turns  # of a wave, in tokens
    old, low, high = (rope[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    smooth = ((old / length - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).float()


def carried_fields(base: GGUFReader) -> dict[str, Field]:
    """All fields of a GGUF file but those about the file itself and about what it came from."""
    dropped = ("GGUF.", "general.architecture", "general.base_model.", "general.file_type", "general.quantiz", "split.")
    fields = {}
    for name, field in base.fields.items():
        if name.startswith(dropped):
            continue
        value = field.contents()
        if isinstance(value, list) and not value:
            continue  # an empty list says nothing, and cannot be written
        fields[name] = (value, field.types[0], field.types[-1] if field.types[0] == LIST else None)
    return fields


def read_gguf(path: Path) -> GGUFReader:
    """Open a GGUF file.

    Raises:
        ValueError: no file, no GGUF, cut short, or a part of several.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file; give the GGUF file of the base")
    try:
        reader = GGUFReader(path)
        reader.fields["general.architecture"].contents()
    except Exception as error:  # whatever numpy makes of bytes that are no GGUF
        raise ValueError(
            f"{path} is not a whole GGUF file ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from error
    if "split.count" in reader.fields and reader.fields["split.count"].contents() > 1:
        raise ValueError(f"{path} is one part of several; join them with llama.cpp's gguf-split first")
    return reader


# -- on disk


def write_gguf(path: Path, plan: GGUFPlan) -> None:
    """Write a planned file. Whoever calls sees to it that it is there whole or not at all."""
    writer = gguf.GGUFWriter(path, plan.architecture)
    for key, (value, kind, inner) in plan.fields.items():
        writer.add_key_value(key, value, kind, inner)
    for tensor in plan.tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in plan.tensors:
        values = tensor.make()
        writer.write_tensor_data(values if tensor.encoded else gguf.quantize(values, tensor.type))
    writer.close()


def _tensor_name(architecture: Architecture, path: str, config) -> str:
    name = architecture.tensor_name(path, config.num_hidden_layers)
    if name is None:
        raise ValueError(f"{path} has no name in GGUF for a model of this family ({architecture.name}); use merged")
    return name


def _choose_type(name: str, values: torch.Tensor, wanted: GGMLQuantizationType, old) -> GGMLQuantizationType:
    if values.ndim < 2 or name.endswith("ffn_gate_inp.weight"):
        return F32
    if old is not None:
        wanted = old.tensor_type if old.tensor_type.name in _ENCODED else Q8_0
    elif wanted == GGMLQuantizationType.Q4_1:  # not in the file: a head that was tied there
        wanted = Q8_0
    return wanted if values.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0 else F16


def _check_base(own: dict, there: dict) -> None:
    """Refuse a file whose tensors are not those of the model: other names or shapes, other norms, other rows of q."""
    advice = "the file is of another model than the run's base"
    strange = [name for name in there if name not in own and not name.startswith("rope_f") and name != "output.weight"]
    absent = [name for name in own if name not in there and name not in ("output.weight", "rope_freqs.weight")]
    if strange or absent:
        which = f"has {strange[0]}, which the model lacks" if strange else f"lacks {absent[0]}"
        raise ValueError(f"the base's GGUF file {which}: {advice}")
    for name, (values, order, shift) in own.items():
        old = there.get(name)
        if old is None:
            continue
        shape = tuple(int(n) for n in reversed(old.shape))
        if shape != tuple(values.shape):
            raise ValueError(
                f"{name} is {shape} in the base's GGUF file and {tuple(values.shape)} in the model: {advice}"
            )
        if values.ndim > 1 and not name.startswith("blk.0."):
            continue  # one block is enough to know a model by, and all of them take long
        decoded = torch.from_numpy(np.array(gguf.dequantize(old.data, old.tensor_type))).flatten()
        values = ((values if order is None else values[order]).float() + shift).flatten()
        alike = float(torch.nn.functional.cosine_similarity(decoded, values, dim=0))
        if alike < (0.99 if len(shape) == 1 else 0.5):  # an adapter changes matrices, and not by that much
            raise ValueError(f"{name} has other values in the base's GGUF file: {advice}")


def _is_unchanged(old, values: np.ndarray) -> bool:
    decoded = gguf.dequantize(old.data, old.tensor_type).reshape(values.shape)
    return bool(np.array_equal(decoded, values))
