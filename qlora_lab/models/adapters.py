"""Adapters on disk, in PEFT's format, so that either side loads what the other saved.

adapter_model.safetensors   base_model.model.<path>.lora_A.weight (r, in) and ...lora_B.weight (out, r)
adapter_config.json         rank, alpha, targets and the options PEFT needs to rebuild the layers

Such files come from elsewhere. All of both is looked at before the model is touched: what is read is plain LoRA on
linear layers and gives what PEFT would give; anything else is refused, and the model stays as it was.
"""

import json
import os
import re
import reprlib
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from qlora_lab.lora import LoRALayer, LoRALinear, check_adapter_arguments, output_head, replace_module
from qlora_lab.machine import processes
from qlora_lab.machine.arguments import is_count, is_number
from qlora_lab.machine.files import load_tensors, save_tensors, write_json
from qlora_lab.models.wrappers import inner_model, is_of, plain_modules, plain_parameters, without_marks
from qlora_lab.quantization.tensor import quantize

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_SECONDS = 5.0  # for all regular expressions of a file together
_LARGEST_CONFIG = 1 << 24  # bytes

# -- the options of PEFT

# What each may be. Those in the second part say where the adapter comes from, or how it began or was stored: nothing
# about what it computes. Other options change what is computed in ways that the layers here do not have.
_NAMES, _FLAG, _TABLE = "a string or a list of strings", "true or false", "an object"
_READ = {
    "r": (lambda value: is_count(value), "a whole number of at least 1"),
    "lora_alpha": (lambda value: is_number(value) and 0 < value <= torch.finfo(torch.float32).max, "a positive number"),
    "lora_dropout": (lambda value: is_number(value) and 0 <= value < 1, "a probability below 1"),
    "use_rslora": (lambda value: value is None or isinstance(value, bool), _FLAG),
    "rank_pattern": (lambda value: value is None or isinstance(value, dict), _TABLE),
    "alpha_pattern": (lambda value: value is None or isinstance(value, dict), _TABLE),
    "target_modules": (lambda value: _is_names(value), _NAMES),
    "exclude_modules": (lambda value: value is None or _is_names(value), _NAMES),
    "layers_pattern": (lambda value: value is None or _is_names(value), _NAMES),
    "layers_to_transform": (lambda value: value is None or _is_counts(value), "a whole number or a list of them"),
    "bias": (lambda value: isinstance(value, str), "a string"),
    "init_lora_weights": (lambda value: value is None or isinstance(value, bool | str), "a string or true or false"),
} | {
    "ensure_weight_tying": (lambda value: value is None or isinstance(value, bool), _FLAG),
    "fan_in_fan_out": (lambda value: value is None or isinstance(value, bool), _FLAG),
    "task_type": (lambda value: value is None or isinstance(value, str), "a string"),
    **dict.fromkeys(
        ("corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_config", "velora_config"),
        (lambda value: value is None or isinstance(value, dict), _TABLE),
    ),
    **dict.fromkeys(
        (
            *("auto_mapping", "base_model_name_or_path", "inference_mode", "megatron_core", "peft_type"),
            *("peft_version", "qalora_group_size", "revision", "runtime_config"),
        ),
        (lambda value: True, "anything"),
    ),
}
# Options of PEFT's that are refused where they are used; as unknown ones are, but for texts, which are mostly remarks.
_KNOWN = (
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
# How A and B began. Others (pissa, corda, olora, loftq, lora_ga) replace the base weights: such an adapter belongs to a
# base that no longer exists as a file.
_INITIALIZATIONS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")

# -- saving


def save_adapter(model: nn.Module, directory: str | os.PathLike, base_model: str | None = None) -> Path:
    """Write the model's adapters into `directory` (made if missing), in PEFT's format; each file whole or not at all.

    Of a sharded model (`distributed.shard`) every process must call it, and the main one writes the whole adapters.
    A model that is wrapped, or parts of which are (torch.compile, DataParallel, AveragedModel, ...), is written as if
    it were not: the paths are those of the plain model.

    Where routed experts are one weight (DeepSeek and the like in transformers 5), PEFT takes the names gate_proj and
    up_proj for theirs and drops the adapters of other layers so called. A warning says so; `load_adapter` reads them.

    What is trained beside the adapters (a head, a norm) has no place in the format and is not saved: a warning says so.

    Args:
        base_model: what the configuration calls the base: a hub id or a folder, where PEFT's `AutoPeftModel` then looks
            for it. None: the hub id it was loaded by. Of a folder only its last part, as "./part": a path of this
            machine is nobody else's business, and with "./" it is not taken for a model of that name on the hub.

    Returns:
        the directory.

    Raises:
        ValueError: the model has no adapters, some are merged into their weights at this moment, hold NaN or infinity,
            are parts of sharded ones, or differ in a way the format cannot say; or PEFT's own adapters are in the model
            too. Nothing is written then.
    """
    layers = _adapters(model)
    if any(is_of(module, "peft", "BaseTunerLayer") for module in model.modules()):
        raise ValueError("this model has adapters of PEFT's; save those with PEFT's save_pretrained")
    if not layers:
        raise ValueError("this model has no adapters to save; add them with inject_lora or quantize_model")
    if any(getattr(layer, "merged", False) for layer in layers.values()):
        raise ValueError("the adapters are merged into the base weights; call unmerge(model) before saving them")
    config = _config(model, layers, base_model)
    directory, tensors = Path(directory), _tensors(layers)
    for path, layer in layers.items():
        _check_whole(path, layer, *(tensors[f"{_PREFIX}{path}.lora_{name}.weight"] for name in "AB"))
    _warn_of_experts(model, layers)
    others = [name for name, parameter in plain_parameters(model) if parameter.requires_grad and ".lora_" not in name]
    if others:
        warnings.warn(
            f"{others[0]}{' and others' * (len(others) > 1)} can be trained in this model and is no adapter: it is not "
            "saved",
            stacklevel=2,
        )
    if processes.is_main() or not any(processes.is_part(layer.lora_A) for layer in layers.values()):
        directory.mkdir(parents=True, exist_ok=True)
        save_tensors(directory / WEIGHTS, tensors, {"format": "pt"})
        write_json(directory / CONFIG, config)
    return directory


def adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapters' tensors under PEFT's names."""
    return _tensors(_adapters(model))


def _adapters(model: nn.Module) -> dict[str, LoRALayer]:
    """The layers that have adapters, by their plain paths, in the model's order."""
    modules = dict(model.named_modules())
    found = {path: modules[real] for path, real in plain_modules(model).items()}
    return {path: layer for path, layer in found.items() if isinstance(layer, LoRALayer) and layer.rank}


def _tensors(layers: dict[str, LoRALayer]) -> dict[str, torch.Tensor]:
    tensors = {}
    for path, layer in layers.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = processes.whole(layer.lora_A)
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = processes.whole(layer.lora_B)
    return tensors


def _check_whole(path: str, layer: LoRALayer, a: torch.Tensor, b: torch.Tensor) -> None:
    if a.is_meta or b.is_meta:
        raise ValueError(f"the adapter of {path} is on the meta device and has no values to save")
    if a.shape != (layer.rank, layer.in_features) or b.shape != (layer.out_features, layer.rank):
        raise ValueError(
            f"the adapter of {path} is A {tuple(a.shape)}, B {tuple(b.shape)}: not whole, as where FSDP or DeepSpeed "
            "keeps a part in each process; gather it first (FSDP: inside summon_full_params), or use distributed.shard"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in (a, b)):
        raise ValueError(f"the adapter of {path} holds NaN or infinity; go back to a checkpoint before that")


def _warn_of_experts(model: nn.Module, layers: dict[str, LoRALayer]) -> None:
    renamed = [path for path in layers if path.rpartition(".")[2] in ("gate_proj", "up_proj")]
    fused = any(name.endswith("experts.gate_up_proj") for name, _ in model.named_parameters())
    if renamed and fused:
        warnings.warn(
            "this model's experts are one weight, for which PEFT takes the names gate_proj and up_proj: it will drop "
            f"the adapters of {len(renamed)} layers, {renamed[0]} for one (load_adapter reads them). For use in PEFT, "
            "train without these targets",
            stacklevel=3,
        )


def _config(model: nn.Module, layers: dict[str, LoRALayer], base_model: str | None) -> dict:
    first = next(iter(layers.values()))
    if len({(layer.use_rslora, layer.dropout) for layer in layers.values()}) > 1:
        raise ValueError("the adapters differ in dropout or rsLoRA scaling, which PEFT's format cannot say per layer")
    inner = inner_model(model)
    if base_model is None:
        base_model = getattr(getattr(inner, "config", None), "_name_or_path", None) or None
        if base_model and os.path.isabs(base_model):
            base_model = f"./{Path(base_model).name}"
    return {
        "peft_type": "LORA",
        "task_type": _task_type(inner),
        "base_model_name_or_path": base_model,
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


def _task_type(model: nn.Module) -> str | None:
    """What PEFT wraps the model as; None is its plain wrapper, which takes any model.

    None it has to be where the inputs are others than token ids, and for classifiers and answers to questions: there
    PEFT trains the head too, and takes no file without one.
    """
    if getattr(model, "main_input_name", "input_ids") != "input_ids":  # a spectrogram, a picture
        return None
    if hasattr(model, "prepare_inputs_for_generation"):
        two = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
        return "SEQ_2_SEQ_LM" if two else "CAUSAL_LM"
    headless = is_of(model, "transformers", "PreTrainedModel") and type(model).__name__.endswith("Model")
    return "FEATURE_EXTRACTION" if headless else None


def _targets(model: nn.Module, layers: dict[str, LoRALayer]) -> list[str] | str:
    """Leaf names ("q_proj") where they mean exactly the adapted layers, else full paths, else a regular expression.

    A name in a list means every module whose path ends in it, so that a path, too, can mean more than itself.
    """
    modules = plain_modules(model)
    inner = {f"{path}.base" for path, real in modules.items() if isinstance(model.get_submodule(real), LoRALinear)}
    paths = [path for path in modules if path not in inner]
    for targets in (sorted({name.rpartition(".")[2] for name in layers}), sorted(layers)):
        ends = tuple(f".{target}" for target in targets)
        if {path for path in paths if f".{path}".endswith(ends)} == set(layers):
            return targets
    return "|".join(re.escape(name) for name in sorted(layers))


def _exactly(path: str) -> str:
    """The pattern key that matches this path only, not every path that ends in it."""
    return f"^{re.escape(path)}"


# -- loading


def load_adapter(model: nn.Module, directory: str | os.PathLike) -> nn.Module:
    """Load adapters saved by `save_adapter` or by PEFT into `model`, in place.

    A plain model gets LoRA layers where the file has adapters; a model from `quantize_model` (or one with adapters
    already) keeps its bases and gets the file's adapters in place of its own. Adapters become float32 and trainable,
    whatever they were saved as; everything else is frozen. The model, or parts of it, may be wrapped, as for
    `save_adapter`.

    PEFT adds the base's own weights of a layer to the file where that is the head or an embedding. They are compared
    with the model's and must be the same.

    Returns:
        the same model.

    Raises:
        FileNotFoundError: the directory lacks one of the two files.
        ValueError: a kind of adapter that is not plain LoRA on linear layers, an option that is unknown or makes no
            sense, a damaged file, or an adapter that does not fit this model. Nothing is changed then.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"no {name} in {directory}: not an adapter in PEFT's safetensors format")
    if any(is_of(module, "peft", "BaseTunerLayer") for module in model.modules()):
        raise ValueError("this model has adapters of PEFT's; load the base model anew, or use PEFT's load_adapter")
    config = _read_config(directory / CONFIG)
    pairs, bases = _read_tensors(directory / WEIGHTS)
    real = plain_modules(model)
    if not pairs.keys() <= real.keys():  # saved from a module of one's own with the model inside, under its paths
        real = max((real, plain_modules(model, own=False)), key=lambda paths: len(pairs.keys() & paths.keys()))
    modules = {path: model.get_submodule(name) for path, name in real.items()}
    written = {path: name for path, (name, _, _) in pairs.items()}
    options = _options(config, written, {path: len(a) for path, (_, a, _) in pairs.items()}, directory / CONFIG)
    for path, (_, a, b) in pairs.items():
        _check_fit(modules, path, a, b)
    _check_targets(config, written, modules, inner_model(model), directory / CONFIG)
    for path, tensors in bases.items():
        for name, tensor in tensors.items():
            _check_base(modules.get(path), f"{path}.{name}", name, tensor, directory / WEIGHTS)
    _install(model, modules, real, pairs, options)
    return model


@torch.inference_mode(False)  # A and B are to be trained, whatever this is called under
def _install(model: nn.Module, modules: dict, real: dict, pairs: dict, options: dict) -> None:
    devices = {path: next(modules[path].parameters()).device for path in pairs}
    new = {path: (a.to(devices[path]), b.to(devices[path])) for path, (_, a, b) in pairs.items()}
    model.requires_grad_(False)
    for path, layer in modules.items():
        if isinstance(layer, LoRALinear):
            layer.unmerge()
        if isinstance(layer, LoRALayer) and path not in pairs:  # a layer without an adapter in the file gets none
            layer.reset_adapter(0, 1)
    for path, (a, b) in new.items():
        layer = modules[path]
        if isinstance(layer, LoRALayer):
            layer.reset_adapter(*options[path], devices[path])
        else:
            layer = LoRALinear(layer, *options[path]).train(layer.training)
            replace_module(model, real[path], layer)
        layer.lora_A.data.copy_(a)
        layer.lora_B.data.copy_(b)


def _read_config(path: Path) -> dict:
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON that could be read ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ValueError(f"{path} describes an adapter of type {reprlib.repr(kind)}; only LORA is read")
    for name, (fits, words) in _READ.items():
        if (name in config or name == "target_modules") and not fits(config.get(name)):
            raise ValueError(f"{path} says {name}={reprlib.repr(config.get(name))}; it should be {words}")
    if config.get("layers_pattern") and config.get("layers_to_transform") is None:
        raise ValueError(f"{path} has a layers_pattern, but no layers_to_transform that it would belong to")
    others = {name: value for name, value in config.items() if name not in _READ}
    used = {name: value for name, value in others.items() if not (value is None or value is False or value == [])}
    remarks = {name: value for name, value in used.items() if name not in _KNOWN and isinstance(value, str)}
    empty = {name for name, value in used.items() if name not in _KNOWN and value in (0, {})}
    unsupported = {name: value for name, value in used.items() if name not in remarks.keys() | empty}
    if config.get("bias", "none") != "none":
        unsupported["bias"] = config["bias"]
    began = config.get("init_lora_weights")
    if (began.lower() if isinstance(began, str) else began) not in _INITIALIZATIONS:
        unsupported["init_lora_weights"] = began
    if unsupported:
        said = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in unsupported.items())
        raise ValueError(f"{path} says {said}: more than plain LoRA, which is all that is read")
    for name, value in remarks.items():
        if value not in ("", "none"):
            warnings.warn(f"{path} says {name}={reprlib.repr(value)}, which is unknown here and ignored", stacklevel=3)
    return config


def _is_names(value) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _is_counts(value) -> bool:
    return is_count(value, 0) or (isinstance(value, list) and all(is_count(number, 0) for number in value))


def _read_tensors(path: Path) -> tuple[dict, dict]:
    """(name in the file, A, B) of each adapted layer, and the base's own tensors by name, both by the layer's path."""
    found: dict[str, dict] = {}
    bases: dict[str, dict] = {}
    names: dict[str, str] = {}
    seen: dict[str, str] = {}
    for key, tensor in load_tensors(path)[0].items():
        plain = without_marks(key.removeprefix(_PREFIX))
        if plain in seen:
            raise ValueError(f"{path} holds {plain} twice, as {seen[plain]!r} and as {key!r}")
        seen[plain] = key
        said = f"{path} holds {key!r} {tuple(tensor.shape)} {tensor.dtype}"
        if (match := re.fullmatch(r"(.+)\.(lora_[AB])\.weight", plain)) is not None:
            if tensor.ndim != 2 or tensor.dtype not in _DTYPES or not len(tensor) * tensor.shape[1]:
                raise ValueError(f"{said}, which is neither lora_A nor lora_B of a linear layer")
            layer = match[1]
            with torch.no_grad():
                tensor = tensor.float()  # float64 may hold what becomes infinite
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{path} holds NaN or infinity in the adapter of {layer}")
            found.setdefault(layer, {})[match[2]] = tensor
            names[layer] = key.removeprefix(_PREFIX).partition(".lora_")[0]
        elif "lora_" in plain:
            where = f"; {plain.partition('.lora_')[0]} is an embedding" if ".lora_embedding" in plain else ""
            raise ValueError(f"{said}, which is neither lora_A nor lora_B of a linear layer{where}")
        else:
            layer, _, name = plain.replace(".base_layer.", ".").rpartition(".")
            if name in bases.setdefault(layer, {}):
                raise ValueError(f"{path} holds {layer}.{name} twice")
            bases[layer][name] = tensor
    if not found:
        raise ValueError(f"{path} holds no adapters")
    for layer, pair in found.items():
        if len(pair) != 2:
            raise ValueError(f"{path} is incomplete: {layer} has {next(iter(pair))} only")
    return {layer: (names[layer], pair["lora_A"], pair["lora_B"]) for layer, pair in found.items()}, bases


def _options(config: dict, written: dict[str, str], ranks: dict[str, int], path: Path) -> dict[str, tuple]:
    """(rank, alpha, dropout, use_rslora) of each layer, by its path."""
    stated = _by_pattern(config.get("rank_pattern") or {}, written, config.get("r", 8), path)
    alphas = _by_pattern(config.get("alpha_pattern") or {}, written, config.get("lora_alpha", 8), path)
    dropout, use_rslora = config.get("lora_dropout", 0.0), bool(config.get("use_rslora"))
    for layer, rank in ranks.items():
        for name, value in (("r", stated[layer]), ("lora_alpha", alphas[layer])):
            fits, words = _READ[name]
            if not fits(value):
                raise ValueError(f"{path} says {name}={reprlib.repr(value)} for {layer}; it should be {words}")
        if rank != stated[layer]:
            raise ValueError(f"{path}: the adapter of {layer} has rank {rank}, but {CONFIG} says {stated[layer]}")
        check_adapter_arguments(rank, alphas[layer], dropout)
    return {layer: (rank, alphas[layer], dropout, use_rslora) for layer, rank in ranks.items()}


def _by_pattern(patterns: dict, written: dict[str, str], default, path: Path) -> dict:
    """PEFT's rank_pattern and alpha_pattern: the first key that, as a regular expression, matches the path's end.

    Each layer goes by its plain path and by the one that was written, which may hold wrappers.
    """
    texts = sorted({*written, *written.values()})
    found = _matches([rf"(.*\.)?({key})$" for key in patterns], texts, path)
    values = {}
    for layer, name in written.items():
        hits = (value for value, match in zip(patterns.values(), found, strict=True) if {layer, name} & match.keys())
        values[layer] = next(hits, default)
    return values


def _check_targets(config: dict, written: dict[str, str], modules: dict, model: nn.Module, path: Path) -> None:
    """Refuse weights of a layer that the configuration does not name: PEFT would leave them out without a word."""
    targets, excluded = config["target_modules"], config.get("exclude_modules") or []
    texts = sorted({*written, *written.values()})

    def named(names: str | list[str]) -> set[str]:
        if isinstance(names, str):
            return set(_matches([rf"(?:{names})\Z"], texts, path)[0])
        return {text for text in texts if f".{text}".endswith(tuple(f".{name}" for name in names))}

    if isinstance(targets, str) and targets.lower() == "all-linear":
        head = output_head(model)
        meant = {text for text in texts if head is None or modules.get(text) is not head}
    else:
        meant = named(targets)
    meant -= named(excluded)
    if isinstance(targets, list) and config.get("layers_to_transform") not in (None, []):
        meant &= _in_layers(config["layers_to_transform"], config.get("layers_pattern") or [], texts, path)
    for layer, name in written.items():
        if not {layer, name} & meant:
            raise ValueError(
                f"{path.parent} has weights for {layer}, which {CONFIG} does not name among its targets "
                f"({reprlib.repr(targets)}): PEFT would leave them out"
            )


def _in_layers(numbers: int | list[int], patterns: str | list[str], texts: list[str], path: Path) -> set[str]:
    """The paths that PEFT's layers_to_transform means."""
    numbers = numbers if isinstance(numbers, list) else [numbers]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    expressions = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." for pattern in patterns]
    found = _matches(expressions or [r".*?\.[^.]*\.(?P<idx>\d+)\."], texts, path)
    indices: dict[str, str] = {}
    for match in reversed(found):
        indices.update(match)
    return {text for text, index in indices.items() if index.isdecimal() and int(index) in numbers}


# Characters that mean themselves or one other, and anchors: such an expression takes no more than a look at each.
_PLAIN = re.compile(r"(?:\\[^A-Za-z0-9]|[^\\*+?{}()\[\]|])*")
_CHILD = """
import json, re, sys
expressions, texts = json.load(sys.stdin)
found = []
for expression in expressions:
    matches = {text: re.match(expression, text) for text in texts}
    found.append({text: match.groupdict().get("idx") or "" for text, match in matches.items() if match})
json.dump(found, sys.stdout)
"""


def _matches(expressions: list[str], texts: list[str], path: Path) -> list[dict[str, str]]:
    r"""Which texts each regular expression matches from their beginning, with its group "idx".

    An expression from elsewhere may take longer than the universe lasts, (a+)+b for one, and Python's `re` cannot be
    interrupted. What could is matched in a process of its own, which is ended after some seconds.
    """
    for expression in expressions:
        try:
            re.compile(expression)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}: {reprlib.repr(expression)} is not a regular expression ({error})") from error
    frames = (r"(.*\.)?(", ")$", "(?:", r")\Z")
    bare = [e.removeprefix(frames[0]).removesuffix(frames[1]) for e in expressions]
    bare = [e.removeprefix(frames[2]).removesuffix(frames[3]) for e in bare]
    if all(_PLAIN.fullmatch(part) for e in bare for part in e.split("|")):
        found = [{text: re.match(expression, text) for text in texts} for expression in expressions]
        return [{text: "" for text, match in matches.items() if match} for matches in found]
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps([expressions, texts]),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        return json.loads(child.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        late = isinstance(error, subprocess.TimeoutExpired)
        reason = f"takes longer than {_SECONDS:g} s" if late else f"could not be matched ({error})"
        shown = reprlib.repr(expressions[0] if len(expressions) == 1 else expressions)
        raise ValueError(f"{path}: the regular expression {shown} {reason}; write a simpler one") from error


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
    if any(parameter.is_meta for parameter in module.parameters()):
        raise ValueError(
            f"{path} is on the meta device, where an adapter has no values; load the model's weights first"
        )


def _check_base(module: nn.Module | None, name: str, leaf: str, stored: torch.Tensor, path: Path) -> None:
    """Refuse a base's own tensor in the file that is not the model's: PEFT would put it in place of the model's."""
    layer = module.base if isinstance(module, LoRALinear) else module
    said = f"{path} holds {name} {tuple(stored.shape)} {stored.dtype}"
    own = layer._parameters.get(leaf) if layer is not None else None
    if hasattr(layer, "quantized") and leaf == "weight" and stored.shape == (layer.out_features, layer.in_features):
        same = _encodes(layer, stored)
    elif own is None:
        raise ValueError(f"{said}, which this model does not have: more than plain LoRA, which is all that is read")
    else:
        values = processes.whole(own.detach())
        merged = leaf == "weight" and getattr(module, "merged", False)
        if merged:  # what `unmerge` would leave
            values = (values.float() - module.delta().detach()).to(own.dtype)
        same = own.shape == stored.shape and _agree(values.cpu(), stored, rounded=merged)
    if not same:
        raise ValueError(
            f"{said}, and this model's is another ({tuple(own.shape) if own is not None else '4-bit'}): the adapter "
            "was saved with a base layer that had been trained or resized, and belongs to that one"
        )


def _agree(own: torch.Tensor, stored: torch.Tensor, rounded: bool = False) -> bool:
    """Whether two tensors are one; of two dtypes, or after a merge: up to the rounding of the coarser one."""
    if own.dtype == stored.dtype and not rounded:
        return torch.equal(own, stored)
    if not (own.is_floating_point() and stored.is_floating_point()):
        return False
    coarse = max((torch.finfo(own.dtype), torch.finfo(stored.dtype)), key=lambda info: info.eps)
    own, stored = own.double(), stored.double()
    least = coarse.eps * float(own.abs().max()) if rounded else coarse.smallest_normal * coarse.eps
    return torch.allclose(own, stored, rtol=coarse.eps, atol=least)


def _encodes(layer: LoRALayer, stored: torch.Tensor) -> bool:
    """Whether a 4-bit layer is what `stored` becomes when it is quantized alike."""
    if stored.dtype not in _DTYPES or not bool(stored.isfinite().all()):
        return False
    own = layer.quantized
    weight = quantize(stored.to(own.dtype).to(own.device), own.datatype, own.block_size, own.double_quant)
    return torch.equal(weight.codes, own.codes) and torch.equal(weight.scales, own.scales)
