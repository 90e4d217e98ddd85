"""Adapters on disk, in PEFT's format, so that either side loads what the other saved.

adapter_model.safetensors   base_model.model.<path>.lora_A.weight (r, in) and ...lora_B.weight (out, r)
adapter_config.json         rank, alpha, targets and the options PEFT needs to rebuild the layers
"""

import json
import os
import re
from pathlib import Path

import torch
from torch import nn

from qlora_lab.lora import LoRALayer, LoRALinear, adapted_layers, check_adapter_arguments, replace_module
from qlora_lab.machine import processes
from qlora_lab.machine.files import load_tensors, save_tensors, write_json

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
# Options of PEFT that change what is computed and that the layers here do not have: refused rather than ignored.
_UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# Initializations that replace the base weights: such an adapter belongs to a base that no longer exists as a file.
_BASE_CHANGING = ("pissa", "corda", "olora", "loftq", "lora_ga")


def save_adapter(model: nn.Module, directory: str | os.PathLike) -> Path:
    """Write the model's adapters into `directory` (made if missing), in PEFT's format; each file whole or not at all.

    Of a sharded model (`distributed.shard`) every process must call it, and the main one writes the whole adapters.

    Returns:
        the directory.

    Raises:
        ValueError: the model has no adapters, some are merged into their weights at this moment, or they differ in a
            way the format cannot say. Nothing is written then.
    """
    model = _uncompiled(model)
    layers = {name: layer for name, layer in adapted_layers(model) if layer.rank}
    if not layers:
        raise ValueError("this model has no adapters to save; add them with inject_lora or quantize_model")
    if any(getattr(layer, "merged", False) for layer in layers.values()):
        raise ValueError("the adapters are merged into the base weights; call unmerge(model) before saving them")
    config = _config(model, layers)
    directory, tensors = Path(directory), adapter_tensors(model)
    if processes.is_main() or not any(processes.is_part(layer.lora_A) for layer in layers.values()):
        directory.mkdir(parents=True, exist_ok=True)
        save_tensors(directory / WEIGHTS, tensors, {"format": "pt"})
        write_json(directory / CONFIG, config)
    return directory


def load_adapter(model: nn.Module, directory: str | os.PathLike) -> nn.Module:
    """Load adapters saved by `save_adapter` or by PEFT into `model`, in place.

    A plain model gets LoRA layers where the file has adapters; a model from `quantize_model` (or one with adapters
    already) keeps its bases and gets the file's adapters in place of its own. Adapters become float32 and trainable,
    whatever they were saved as; everything else is frozen.

    Returns:
        the same model.

    Raises:
        FileNotFoundError: the directory lacks one of the two files.
        ValueError: a kind of adapter that is not plain LoRA, a damaged file, or an adapter that does not fit this
            model. Nothing is changed then.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"no {name} in {directory}: not an adapter in PEFT's safetensors format")
    config = _read_config(directory / CONFIG)
    pairs = _read_pairs(directory / WEIGHTS)
    base = _uncompiled(model)
    modules = dict(base.named_modules())
    options = {path: _options(config, path, len(a), directory) for path, (a, _) in pairs.items()}
    for path, (a, b) in pairs.items():
        _check_fit(modules, path, a, b)
    base.requires_grad_(False)
    for path, layer in adapted_layers(base):
        if isinstance(layer, LoRALinear):
            layer.unmerge()
        if path not in pairs:  # a layer without an adapter in the file gets none
            layer.reset_adapter(0, 1)
    for path, (a, b) in pairs.items():
        layer, device = modules[path], next(modules[path].parameters()).device
        if isinstance(layer, LoRALayer):
            layer.reset_adapter(*options[path], device)
        else:
            layer = LoRALinear(layer, *options[path]).train(layer.training)
            replace_module(base, path, layer)
        layer.lora_A.data.copy_(a)
        layer.lora_B.data.copy_(b)
    return model


def adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapters' tensors under PEFT's names."""
    tensors = {}
    for path, layer in adapted_layers(model):
        if layer.rank:
            tensors[f"{_PREFIX}{path}.lora_A.weight"] = processes.whole(layer.lora_A)
            tensors[f"{_PREFIX}{path}.lora_B.weight"] = processes.whole(layer.lora_B)
    return tensors


def _uncompiled(model: nn.Module) -> nn.Module:
    """The model inside the wrapper that torch.compile(model) returns, whose paths all begin with "_orig_mod."."""
    return getattr(model, "_orig_mod", model)


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ValueError(f"{path} describes an adapter of type {kind!r}; only LORA is read")
    unsupported = [f"{name}={config[name]!r}" for name in _UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":
        unsupported.append(f"bias={config['bias']!r}")
    if str(config.get("init_lora_weights")).lower().startswith(_BASE_CHANGING):
        unsupported.append(f"init_lora_weights={config['init_lora_weights']!r}")
    if unsupported:
        raise ValueError(f"{path} says {', '.join(unsupported)}: more than plain LoRA, which is all that is read")
    return config


def _read_pairs(path: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B of each adapted layer, by the layer's path."""
    found: dict[str, dict] = {}
    for key, tensor in load_tensors(path)[0].items():
        match = re.fullmatch(r"(.+)\.(lora_[AB])\.weight", key.removeprefix(_PREFIX))
        if match is None or tensor.ndim != 2 or not tensor.is_floating_point():
            shape, dtype = tuple(tensor.shape), tensor.dtype
            raise ValueError(
                f"{path} holds {key!r} {shape} {dtype}, which is neither lora_A nor lora_B of a linear layer"
            )
        found.setdefault(match[1], {})[match[2]] = tensor
    if not found:
        raise ValueError(f"{path} holds no adapters")
    for layer, pair in found.items():
        if len(pair) != 2:
            raise ValueError(f"{path} is incomplete: {layer} has {next(iter(pair))} only")
        if not all(bool(tensor.isfinite().all()) for tensor in pair.values()):
            raise ValueError(f"{path} holds NaN or infinity in the adapter of {layer}")
    return {layer: (pair["lora_A"], pair["lora_B"]) for layer, pair in found.items()}


def _options(config: dict, path: str, rank: int, directory: Path) -> tuple:
    """(rank, alpha, dropout, use_rslora) of one layer."""
    stated = _by_pattern(config.get("rank_pattern"), path, config.get("r", 8))
    if rank != stated:
        raise ValueError(f"{directory}: the adapter of {path} has rank {rank}, but {CONFIG} says {stated}")
    alpha = _by_pattern(config.get("alpha_pattern"), path, config.get("lora_alpha", 8))
    dropout = config.get("lora_dropout", 0.0)
    try:
        check_adapter_arguments(rank, alpha, dropout)
    except ValueError as error:
        raise ValueError(f"{directory / CONFIG}: {error}") from error
    return rank, alpha, dropout, bool(config.get("use_rslora"))


def _by_pattern(patterns: dict | None, path: str, default):
    """PEFT's rank_pattern and alpha_pattern: the first key that, as a regular expression, matches the path's end."""
    for key, value in (patterns or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{key})", path):
            return value
    return default


def _exactly(path: str) -> str:
    """The pattern key that matches this path only, not every path that ends in it."""
    return f"^{re.escape(path)}"


def _check_fit(modules: dict[str, nn.Module], path: str, a: torch.Tensor, b: torch.Tensor) -> None:
    module = modules.get(path)
    if not isinstance(module, nn.Linear | LoRALayer):
        linears = (name for name, module in modules.items() if isinstance(module, nn.Linear | LoRALayer))
        names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linears))
        raise ValueError(
            f"the adapter has weights for {path}, which is no linear layer of this model (it has: {names})"
        )
    n_in, n_out = module.in_features, module.out_features
    if a.shape[1] != n_in or b.shape != (n_out, len(a)):
        raise ValueError(
            f"the adapter of {path} is A {tuple(a.shape)}, B {tuple(b.shape)}; the layer maps {n_in} to {n_out} "
            "features: the adapter was trained for another base model"
        )


def _config(model: nn.Module, layers: dict[str, LoRALayer]) -> dict:
    first = next(iter(layers.values()))
    if len({(layer.use_rslora, layer.dropout) for layer in layers.values()}) > 1:
        raise ValueError("the adapters differ in dropout or rsLoRA scaling, which PEFT's format cannot say per layer")
    base = getattr(getattr(model, "config", None), "_name_or_path", None)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None,
        "base_model_name_or_path": os.path.basename(base) if base and os.path.isabs(base) else base or None,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        "use_rslora": first.use_rslora,
        "target_modules": _targets(model, layers),
        "rank_pattern": {_exactly(n): layer.rank for n, layer in layers.items() if layer.rank != first.rank},
        "alpha_pattern": {_exactly(n): layer.alpha for n, layer in layers.items() if layer.alpha != first.alpha},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _targets(model: nn.Module, layers: dict[str, LoRALayer]) -> list[str] | str:
    """Leaf names ("q_proj") where they mean exactly the adapted layers, else full paths, else a regular expression.

    A name in a list means every module whose path ends in it, so that a path, too, can mean more than itself.
    """
    inner = {f"{name}.base" for name, layer in adapted_layers(model) if isinstance(layer, LoRALinear)}
    paths = [name for name, _ in model.named_modules() if name not in inner]
    for targets in (sorted({name.rpartition(".")[2] for name in layers}), sorted(layers)):
        ends = tuple(f".{target}" for target in targets)
        if {path for path in paths if f".{path}".endswith(ends)} == set(layers):
            return targets
    return "|".join(re.escape(name) for name in sorted(layers))
