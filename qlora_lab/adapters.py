"""Adapters on disk, in PEFT's format, so that either side loads what the other saved.

adapter_model.safetensors   base_model.model.<path>.lora_A.weight (r, in) and ...lora_B.weight (out, r)
adapter_config.json         rank, alpha, targets and the options PEFT needs to rebuild the layers
"""

import json
import os
from pathlib import Path

from torch import nn

from qlora_lab.files import load_tensors, save_tensors, write_json
from qlora_lab.lora import LoRALayer, LoRALinear, adapted_layers, output_head, replace_module

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
# Options of PEFT that change the mathematics and that the layers here do not have: refused rather than ignored.
_UNSUPPORTED = (
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
)


def save_adapter(model: nn.Module, directory: str | os.PathLike) -> Path:
    """Write the model's adapters into `directory` (made if missing), in PEFT's format; each file whole or not at all.

    Returns:
        the directory.

    Raises:
        ValueError: the model has no adapters, or some are merged into their weights at this moment.
    """
    layers = {name: layer for name, layer in adapted_layers(model) if layer.rank}
    if not layers:
        raise ValueError("this model has no adapters to save; add them with inject_lora or quantize_model")
    if any(getattr(layer, "merged", False) for layer in layers.values()):
        raise ValueError("the adapters are merged into the base weights; call unmerge(model) before saving them")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(directory / WEIGHTS, adapter_tensors(model), {"format": "pt"})
    write_json(directory / CONFIG, _config(model, layers))
    return directory


def load_adapter(model: nn.Module, directory: str | os.PathLike) -> nn.Module:
    """Load adapters saved by `save_adapter` or by PEFT into `model`, in place.

    A plain model gets LoRA layers where the file has adapters; a model from `quantize_model` (or one with adapters
    already) keeps its bases and gets the file's adapters in place of its own.

    Raises:
        FileNotFoundError: the directory lacks one of the two files.
        ValueError: a kind of adapter that is not plain LoRA, or one that does not fit this model. Nothing is changed.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"no {name} in {directory}: not an adapter in PEFT's safetensors format")
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise ValueError(
            f"{directory} holds {config.get('peft_type')} with bias={config.get('bias')!r}; only LoRA without trained biases is read"
        )
    unsupported = [name for name in _UNSUPPORTED if config.get(name)]
    if unsupported:
        raise ValueError(
            f"{directory} was trained with {', '.join(unsupported)}, which changes what the adapter means; only plain LoRA is read"
        )
    tensors, _ = load_tensors(directory / WEIGHTS)
    pairs = _pairs(tensors, directory)
    modules = dict(model.named_modules())
    for path, (a, b) in pairs.items():
        module = modules.get(path)
        if not isinstance(module, nn.Linear | LoRALayer):
            known = ", ".join(
                dict.fromkeys(n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, nn.Linear | LoRALayer))
            )
            raise ValueError(
                f"the adapter has weights for {path}, which is no linear layer of this model (it has: {known})"
            )
        if (a.shape[1], b.shape[0]) != (module.in_features, module.out_features) or a.shape[0] != b.shape[1]:
            raise ValueError(
                f"the adapter of {path} is A {tuple(a.shape)}, B {tuple(b.shape)}; the layer maps {module.in_features} to {module.out_features}: it was trained for another base model"
            )
    adapting = any(True for _ in adapted_layers(model))
    model.requires_grad_(False)
    if adapting:  # a layer without an adapter in the file gets none
        for path, layer in adapted_layers(model):
            if path not in pairs:
                layer.reset_adapter(0, 1)
    for path, (a, b) in pairs.items():
        _set(model, modules[path], path, a, b, config)
    return model


def adapter_tensors(model: nn.Module) -> dict:
    """The adapters' tensors under PEFT's names."""
    tensors = {}
    for path, layer in adapted_layers(model):
        if layer.rank:
            tensors[f"{_PREFIX}{path}.lora_A.weight"] = layer.lora_A
            tensors[f"{_PREFIX}{path}.lora_B.weight"] = layer.lora_B
    return tensors


def _set(model, module, path, a, b, config) -> None:
    rank, dropout, rslora = a.shape[0], config.get("lora_dropout", 0.0), config.get("use_rslora", False)
    alpha = _pattern(config.get("alpha_pattern"), path, config.get("lora_alpha", 8))
    if isinstance(module, LoRALayer):
        layer, device = module, next(module.parameters()).device
        if isinstance(layer, LoRALinear):
            layer.unmerge()
        layer.reset_adapter(rank, alpha, dropout, rslora, device)
    else:
        layer = LoRALinear(module, rank, alpha, dropout, rslora).train(module.training)
        replace_module(model, path, layer)
    layer.lora_A.data.copy_(a)
    layer.lora_B.data.copy_(b)


def _pairs(tensors, directory) -> dict:
    found: dict[str, dict] = {}
    for key, tensor in tensors.items():
        path, matrix = key.removeprefix(_PREFIX), None
        for name in ("lora_A", "lora_B"):
            if path.endswith(f".{name}.weight"):
                path, matrix = path.removesuffix(f".{name}.weight"), name
        if matrix is None:
            raise ValueError(
                f"{directory / WEIGHTS} holds {key!r}, which is neither lora_A nor lora_B of a linear layer"
            )
        found.setdefault(path, {})[matrix] = tensor
    single = [path for path, pair in found.items() if len(pair) != 2]
    if single or not found:
        raise ValueError(
            f"{directory / WEIGHTS} is incomplete: {single[0] + ' lacks lora_A or lora_B' if single else 'no adapters in it'}"
        )
    return {path: (pair["lora_A"], pair["lora_B"]) for path, pair in found.items()}


def _pattern(patterns: dict | None, path: str, default):
    """PEFT's rank_pattern / alpha_pattern: values for paths that end in the key."""
    for key, value in (patterns or {}).items():
        if path == key or path.endswith(f".{key}"):
            return value
    return default


def _config(model: nn.Module, layers: dict[str, LoRALayer]) -> dict:
    first = next(iter(layers.values()))
    others = {name: layer for name, layer in layers.items() if (layer.rank, layer.alpha) != (first.rank, first.alpha)}
    if len({(layer.use_rslora, layer.dropout) for layer in layers.values()}) > 1:
        raise ValueError("the adapters differ in dropout or rsLoRA scaling, which PEFT's format cannot say per layer")
    base = getattr(getattr(model, "config", None), "_name_or_path", None)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": os.path.basename(base) if base and os.path.isabs(base) else base or None,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        "use_rslora": first.use_rslora,
        "target_modules": _targets(model, layers),
        "rank_pattern": {name: layer.rank for name, layer in others.items()},
        "alpha_pattern": {name: layer.alpha for name, layer in others.items()},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _targets(model: nn.Module, layers: dict[str, LoRALayer]) -> list[str]:
    """Leaf names ("q_proj") where they mean exactly the adapted layers, else full paths."""
    leaves = sorted({name.rpartition(".")[2] for name in layers})
    head = output_head(model)
    candidates = {
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in leaves and (isinstance(module, nn.Linear | LoRALayer) or module is head)
    }
    # LoRALinear keeps its frozen layer under .base; those paths are not targets
    candidates = {name for name in candidates if name.rpartition(".")[2] != "base" or name in layers}
    return leaves if candidates == set(layers) else sorted(layers)
