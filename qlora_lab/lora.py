"""LoRA: train a low-rank change of a frozen weight.

    y = W x + (alpha / r) B A x        A: (r, in), B: (out, r)

W stays as it is; only A and B are trained, r (in + out) numbers instead of in * out. A starts as nn.Linear does,
U(-1/sqrt(in), 1/sqrt(in)), and B at zero, so the first forward equals the base model's exactly.

What it gives up: changes of W of a rank above r, and, until the adapter is merged into W, the time of two narrow
products more per layer.

Sources: LoRA (Hu et al. 2021), section 4.1; rsLoRA (Kalajdzievski 2023): alpha / sqrt(r); initialization as in PEFT.
"""

import contextlib
import math
import numbers
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from qlora_lab.machine.arguments import is_count, is_number
from qlora_lab.machine.dtypes import autocast_dtype, without_autocast
from qlora_lab.quantization.parameters import dequantize_parameters

# -- the layer


def _plain(value):
    """A number of numpy's as Python's own; anything else as it is."""
    return value.item() if isinstance(value, numbers.Number) and hasattr(value, "item") else value


def check_adapter_arguments(rank, alpha, dropout) -> None:
    """Raises ValueError for a rank, alpha or dropout that makes no sense, with what would."""
    rank, alpha, dropout = _plain(rank), _plain(alpha), _plain(dropout)
    if not is_count(rank, least=0):
        raise ValueError(f"rank {rank!r} is not allowed; give a whole number of at least 1 (usual: 8 to 64)")
    if rank and not (is_number(alpha) and alpha > 0):
        raise ValueError(f"alpha {alpha!r} is not allowed; give a positive number (usual: the rank or twice it)")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout!r} is not a probability below 1")


def check_adapter_dtype(dtype) -> None:
    """Raises TypeError for what adapters are not trained in: float16 loses small updates altogether."""
    if dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"adapter_dtype {dtype} is not allowed; choose torch.float32 or torch.bfloat16")


def _widened(weight: torch.Tensor) -> torch.Tensor:
    """The weight in float32, or wider where it is: sums with an update are made there and rounded once."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


class LoRALayer(nn.Module):
    """The trainable half of an adapted linear layer: A, B, their scaling and the dropout before A.

    Args:
        in_features, out_features: of the linear layer it belongs to.
        rank: r; 0 for no adapter.
        alpha: numerator of the scaling: alpha / r, or alpha / sqrt(r) with `use_rslora`.
        dropout: probability of dropping an input of A while training.
        device: where A and B live; None is torch's default device. They are float32 whatever the base is: an update
            of 1e-4 relative to a weight is lost in bfloat16.

    Raises:
        ValueError: a rank, alpha or dropout that makes no sense.
    """

    def __init__(self, in_features, out_features, rank, alpha, dropout=0.0, use_rslora=False, device=None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.switched_off = 0  # how many uses of `disabled` are open: forward then computes the base alone
        self.reset_adapter(rank, alpha, dropout, use_rslora, device)

    def reset_adapter(self, rank, alpha, dropout=0.0, use_rslora=False, device=None) -> None:
        """Replace the adapter by a fresh one: B = 0, so the layer again equals its base."""
        check_adapter_arguments(rank, alpha, dropout)
        rank, alpha = _plain(rank), _plain(alpha)
        self.rank, self.alpha, self.use_rslora, self.dropout = rank, alpha, bool(use_rslora), float(dropout)
        self.scaling = (alpha / math.sqrt(rank) if use_rslora else alpha / rank) if rank else 0.0
        if not rank:
            self.lora_A = self.lora_B = None
            return
        device = torch.device(device or torch.get_default_device())
        bound = 1 / math.sqrt(max(1, self.in_features))
        drawn_on = device if device.type == "meta" else "cpu"  # one seed gives one adapter, on whatever device
        with torch.inference_mode(False):  # what is made in inference mode can never be trained
            a = torch.empty(rank, self.in_features, dtype=torch.float32, device=drawn_on).uniform_(-bound, bound)
            self.lora_A = nn.Parameter(a.to(device))  # (r, in)
            self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=torch.float32, device=device))

    def delta(self) -> torch.Tensor:
        """scaling * B A: what the adapter adds to the weight. float32 (out, in), under autocast too."""
        if not self.rank:
            raise ValueError("this layer has no adapter (rank 0)")
        with without_autocast(self.lora_A.device.type):
            return self.scaling * (_widened(self.lora_B) @ _widened(self.lora_A))

    @torch.inference_mode(False)
    @torch.no_grad()
    def merged_linear(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """A plain linear layer whose weight is base + delta, computed in float32 and rounded once to `dtype`."""
        weight = _widened(self.base_weight())  # (out, in)
        dtype = dtype or self.merged_dtype
        if self.rank and not getattr(self, "merged", False):
            weight = weight + self.delta()
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.to(dtype), requires_grad=False)
        return linear

    @property
    def weight(self) -> torch.Tensor:
        """What the layer computes with: base, and delta where the adapter acts, in the model's dtype. (out, in)

        Made anew each time, for code that reads a layer's weight instead of calling it (T5, Mamba, torch's attention);
        gradients of it reach A and B.
        """
        weight = self.base_weight()
        if self.rank and not self.switched_off and not getattr(self, "merged", False):
            weight = _widened(weight) + self.delta()
        return weight.to(self.merged_dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, alpha={self.alpha}"


class LoRALinear(LoRALayer):
    """A frozen `nn.Linear` with a trainable low-rank update beside it.

    Args:
        base: the linear layer; its parameters are frozen in place.
        rank, alpha, dropout, use_rslora: see `LoRALayer`.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0, use_rslora: bool = False):
        super().__init__(base.in_features, base.out_features, rank, alpha, dropout, use_rslora, base.weight.device)
        self.base = base.requires_grad_(False)
        self.merged = False

    @property
    def bias(self):
        return self.base.bias

    @property
    def base_dtype(self) -> torch.dtype:
        return self.base.weight.dtype

    @property
    def merged_dtype(self) -> torch.dtype:
        return self.base_dtype

    def base_weight(self) -> torch.Tensor:
        """The frozen weight. (out, in)

        Raises:
            ValueError: it is stored as packed integers by another library (bitsandbytes), whose codec is not here.
        """
        if not self.base.weight.is_floating_point():
            kind, dtype = type(self.base).__name__, self.base.weight.dtype
            raise ValueError(f"a {kind} keeps its weight as packed {dtype}; dequantize it with its own library first")
        return self.base.weight

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        if f"{prefix}codes" in state_dict:  # with strict=False the adapter would be taken, and the base it is for not
            errors.append(
                f"{prefix.rstrip('.')} is in full precision, but the state holds its weight in 4 bits: load it into a "
                "model that was quantized as that one, or load only what belongs to adapters"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # (..., in) -> (..., out)
        x = input
        if self.rank and x.dtype == self.lora_A.dtype:  # which code that asks the first parameter here is told
            base_dtype = next(self.base.parameters()).dtype
            by_autocast = autocast_dtype(x.device.type) and base_dtype != torch.float64
            if base_dtype.is_floating_point and not by_autocast:
                x = x.to(base_dtype)
        y = self.base(x)  # (..., in) -> (..., out)
        if self.merged or self.switched_off or not self.rank:
            return y
        h = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.to(x.dtype))  # (..., in) -> (..., r)
        return y + self.scaling * F.linear(h, self.lora_B.to(x.dtype))  # (..., r) -> (..., out)

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the adapter into the base weight, in place; forward then costs what the base alone does."""
        if not self.merged and self.rank:
            self.base.weight.copy_(_widened(self.base_weight()) + self.delta())  # rounded once, after the sum
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the adapter out of the weight again: equal to before up to one rounding of the weight's dtype."""
        if self.merged:
            self.base.weight.copy_(_widened(self.base.weight) - self.delta())
            self.merged = False


# -- in a model


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoRALayer]]:
    """(path, layer) of every layer that can carry an adapter."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALayer))


def ordinary_tensors(model: nn.Module) -> None:
    """Replace what was made under `torch.inference_mode`, in place: the backward pass takes no such tensors.

    What is tied stays tied.
    """
    ordinary = {}
    with torch.inference_mode(False):
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None or not tensor.is_inference():
                        continue
                    if id(tensor) not in ordinary:
                        copy = tensor.detach().clone()
                        if tensors is module._parameters:
                            copy = nn.Parameter(copy, tensor.requires_grad)
                        ordinary[id(tensor)] = (tensor, copy)  # the old one too: its id must not be given away
                    tensors[name] = ordinary[id(tensor)][1]


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that turns hidden states into vocabulary logits, if the model says which."""
    get = getattr(model, "get_output_embeddings", None)
    return get() if callable(get) else None


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` where `path` ("layers.0.q_proj") leads, and wherever else in `model` the same module stands.

    Its hooks go over to `module`: they see what the whole of the new layer takes and gives.
    """
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for leaf, child in parent._modules.items():
            if child is old and parent is not module:  # which may hold the old one as its base
                parent._modules[leaf] = module
                if leaf == "_orig_mod" and hasattr(parent, "_initialize"):  # torch.compile's: it calls what it compiled
                    parent._initialize()
    _move_hooks(old, module)


_HOOKS = (
    ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    ("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)


def _move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Hooks of a layer to the one that replaces it; the handles that remove them go on working.

    What computes a layer's weight before its forward pass (the older weight and spectral norm, pruning) stays with it.
    """
    for names in _HOOKS:
        if not any(_makes_weight(hook) for hook in vars(old)[names[0]].values()):
            for name in names:
                vars(old)[name], vars(new)[name] = vars(new)[name], vars(old)[name]


def _makes_weight(hook) -> bool:
    return isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod)


@torch.no_grad()
def computes(layer: nn.Module) -> str:
    """ "linear" where a layer's forward is x W^T + bias, "rows" where it gives (..., out) for (..., in), else "".

    A subclass of `nn.Linear` with a forward of its own is asked, with two rows (experts' routers give tuples).
    """
    plain = type(layer).forward is nn.Linear.forward and "forward" not in vars(layer)
    weight = layer.weight
    if plain or isinstance(layer, LoRALayer) or weight.is_meta or not weight.is_floating_point() or not weight.numel():
        return "linear"
    x = torch.linspace(-1, 1, 2 * layer.in_features, dtype=weight.dtype, device=weight.device).view(2, -1)
    with torch.random.fork_rng(devices=[]), torch.autocast(weight.device.type, enabled=False):
        try:
            y = layer.forward(x)
        except Exception:  # whatever it takes, it is not what a linear layer takes
            return ""
        expected = F.linear(x, weight, layer.bias)
    if not isinstance(y, torch.Tensor) or y.shape != expected.shape:
        return ""
    tolerance = 1e-3 if weight.dtype in (torch.float32, torch.float64) else 0.03
    return "linear" if bool((y - expected).abs().max() <= tolerance * expected.abs().max()) else "rows"


def _matches(path: str, target: str, is_pattern: bool) -> bool:
    if not is_pattern:
        return path == target or path.endswith(f".{target}")
    try:
        return re.fullmatch(target, path) is not None
    except re.error as error:
        raise ValueError(f"target_modules={target!r} is not a regular expression: {error}") from error


def _leaf_names(linears: dict[str, nn.Module]) -> str:
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linears))


def find_targets(model: nn.Module, target_modules: str | Iterable[str]) -> dict[str, nn.Module]:
    """The linear layers a target specification means, by path; see `inject_lora` for the forms and errors."""
    if any(layer.rank for _, layer in adapted_layers(model)):
        raise ValueError("this model has adapters already; load the base model anew before adding others")
    modules = {name: module for name, module in model.named_modules() if name}
    inner = {f"{name}.base" for name, layer in adapted_layers(model) if isinstance(layer, LoRALinear)}
    linears = {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Linear | LoRALayer) and name not in inner
    }
    for name, module in linears.items():
        if nn.parameter.is_lazy(module._parameters.get("weight")):
            raise ValueError(f"{name} is a {type(module).__name__} without a weight yet; call the model once first")
    if not linears:
        raise ValueError(f"this model has no linear layers to adapt{_conv1d_share(model)}")
    if isinstance(target_modules, str) and target_modules == "all-linear":
        head = output_head(model)
        found = {name: module for name, module in linears.items() if module is not head and computes(module)}
        if not found:
            raise ValueError(f"the only linear layer of this model is its output head{_conv1d_share(model)}")
        return found
    if not isinstance(target_modules, Iterable):
        raise TypeError(f"target_modules={target_modules!r} is not allowed; give 'all-linear', names, or an expression")
    targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    if not targets:
        raise ValueError(f"target_modules is empty; give 'all-linear' or some of {_leaf_names(linears)}")
    found = set()
    for target in targets:
        matches = [name for name in modules if _matches(name, target, isinstance(target_modules, str))]
        if not matches:
            hint = ""
            if isinstance(target_modules, str) and any(_matches(name, target, False) for name in modules):
                hint = f" (one string is a regular expression for the whole path: did you mean [{target!r}]?)"
            raise ValueError(
                f"target {target!r} matches no module{hint}; the linear layers here are {_leaf_names(linears)}"
            )
        wrong = [name for name in matches if name not in linears]
        if wrong:
            kind = type(modules[wrong[0]]).__name__
            raise ValueError(
                f"target {target!r} matches {wrong[0]}, a {kind}; adapters go on linear layers: {_leaf_names(linears)}"
            )
        for name in matches:
            if not computes(linears[name]):
                raise ValueError(
                    f"target {target!r} matches {name}, a {type(linears[name]).__name__}, which does not give one "
                    f"tensor (..., {linears[name].out_features}) that an adapter could add to; leave it out"
                )
        found.update(matches)
    return {name: module for name, module in linears.items() if name in found}  # in the model's order


def _conv1d_share(model: nn.Module) -> str:
    """What to add to a message where the weights lie in transformers' Conv1D, as GPT-2's do."""
    layers = [module for module in model.modules() if type(module).__name__ == "Conv1D"]
    if not layers:
        return ""
    share = sum(layer.weight.numel() for layer in layers) / sum(p.numel() for p in model.parameters())
    return (
        f"; {share:.0%} of its weights lie in {len(layers)} Conv1D layers, which are not adapted or quantized here: "
        "use PEFT for it, or a model whose layers are nn.Linear"
    )


def inject_lora(
    model: nn.Module,
    rank: int,
    alpha: float,
    target_modules: str | Iterable[str] = "all-linear",
    dropout: float = 0.0,
    use_rslora: bool = False,
    adapter_dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Freeze `model` and put a LoRA adapter beside each targeted linear layer, in place.

    Args:
        target_modules: "all-linear" (every linear layer but the output head), a list of module names, where "q_proj"
            stands for every module whose path ends in it, or one string read as a regular expression that must match
            the whole path (as in PEFT). Linear layers are `nn.Linear` and 4-bit layers that have no adapter yet.
        adapter_dtype: of A and B, their gradients and, with torch's AdamW, their moments. bfloat16 halves their memory;
            updates below about 1/256 of a weight are then mostly rounded away.

    Returns:
        the same model.

    Raises:
        TypeError: adapter_dtype is neither float32 nor bfloat16.
        ValueError: a target matches nothing (the message lists the names there are) or is no linear layer; the model
            has adapters already; rank below 1, alpha not positive, dropout outside [0, 1). Nothing is changed then.
    """
    if rank == 0:
        raise ValueError("rank 0 would train nothing; give a rank of at least 1")
    check_adapter_arguments(rank, alpha, dropout)
    check_adapter_dtype(adapter_dtype)
    targets = find_targets(model, target_modules)
    model.requires_grad_(False)
    ordinary_tensors(model)
    for name, layer in targets.items():
        if isinstance(layer, LoRALayer):
            layer.reset_adapter(rank, alpha, dropout, use_rslora, next(layer.parameters()).device)
        else:
            replace_module(model, name, LoRALinear(layer, rank, alpha, dropout, use_rslora).train(layer.training))
    cast_adapters(model, adapter_dtype)
    return model


@torch.inference_mode(False)  # tensors made in inference mode cannot take part in training
def cast_adapters(model: nn.Module, dtype: torch.dtype) -> None:
    """Make A and B of every adapter parameters of `dtype`; those that are of it stay the same objects."""
    for _, layer in adapted_layers(model):
        for name in ("lora_A", "lora_B") if layer.rank else ():
            parameter = getattr(layer, name)
            if parameter.dtype != dtype:
                setattr(layer, name, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, every adapter of `model` is switched off: it computes what its base alone would, to the bit.

    One model in memory is then both, base and tuned. Nothing is copied or changed; also after an exception the adapters
    are as they were. May be nested, also by several threads at once: as long as one of them is inside, the adapters are
    off for all of them, so let only threads that want the base alone use the model then.

    Raises:
        ValueError: an adapter is merged into its base, which therefore is no longer there; `unmerge` first.
    """
    layers = [layer for _, layer in adapted_layers(model)]
    if any(getattr(layer, "merged", False) for layer in layers):
        raise ValueError("an adapter is merged into its base weight and cannot be switched off; call unmerge first")
    with _switching:
        for layer in layers:
            layer.switched_off += 1
    try:
        yield model
    finally:
        with _switching:
            for layer in layers:
                layer.switched_off -= 1


_switching = threading.Lock()


# -- counting


class ParameterCount(NamedTuple):
    trainable: int
    total: int


def count_parameters(model: nn.Module) -> ParameterCount:
    """Trainable parameters and all parameters, as element counts of the weights they stand for.

    A 4-bit weight counts with the elements it encodes, not with its bytes (two elements share one; counting bytes makes
    adapters look twice as large a share). Tied weights count once. bitsandbytes' 4-bit layers are understood too.
    """
    trainable = total = 0
    seen = set()
    for module in model.modules():
        # Our 4-bit layers say what their bytes stand for. Asked of the class: a wrapper (torch.compile's, torch's for
        # checkpointing) has what it wraps has.
        encoded = module.encoded_elements if hasattr(type(module), "encoded_elements") else None
        total += encoded or 0
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or (encoded is not None and name not in ("lora_A", "lora_B", "bias")):
                continue
            seen.add(id(parameter))
            state = getattr(parameter, "quant_state", None)  # bitsandbytes' Params4bit
            count = math.prod(state.shape) if state is not None else parameter.numel()
            total += count
            trainable += count if parameter.requires_grad else 0
    return ParameterCount(trainable, total)


# -- merging


def merge(model: nn.Module) -> nn.Module:
    """Fold every adapter into its 16- or 32-bit base weight, in place; `unmerge` takes it out again.

    Raises:
        ValueError: a base is in 4 bits, where a small update would be rounded away, or its weight is tied to another
            module's, which must not change, is expanded, or is computed from other parameters; see
            `merge_and_unload`. No layer is merged then.
    """
    layers = {name: layer for name, layer in adapted_layers(model) if layer.rank}
    users = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    spans = [_span(weight) for weight in model.parameters() if not weight.is_meta]
    for name, layer in layers.items():
        if not isinstance(layer, LoRALinear):
            raise ValueError(
                f"{name} has a 4-bit base: rounding base + update back to 4 bits would lose nearly all of the update. "
                "Use merge_and_unload(model, dtype), which gives 16- or 32-bit weights"
            )
        if "weight" not in layer.base._parameters:
            raise ValueError(
                f"{name} computes its weight from other parameters (weight norm, a parametrization, pruning), where "
                "the update would be lost. Use merge_and_unload(model), which gives it a weight of its own"
            )
        _check_base_is_linear(name, layer)
        weight = layer.base_weight()
        start, end = (0, 0) if weight.is_meta else _span(weight)
        if users[id(weight)] > 1 or sum(one < end and start < other for one, other in spans) > 1:
            raise ValueError(
                f"{name} shares its weight with another module (tied embeddings?), which merging would change too. "
                "Use merge_and_unload(model), which gives it a weight of its own"
            )
        if any(step == 0 and n > 1 for n, step in zip(weight.shape, weight.stride(), strict=True)):
            raise ValueError(
                f"{name} has an expanded weight: several of its elements are one in memory, which merging would make "
                "different. Use merge_and_unload(model), which gives it a weight of its own"
            )
    for layer in layers.values():
        layer.merge()
    return model


def _span(weight: torch.Tensor) -> tuple[int, int]:
    """The addresses between which a tensor's elements lie."""
    elements = 1 + sum((n - 1) * step for n, step in zip(weight.shape, weight.stride(), strict=True))
    return weight.data_ptr(), weight.data_ptr() + (elements * weight.element_size() if weight.numel() else 0)


def _check_base_is_linear(name: str, layer: LoRALayer) -> None:
    if isinstance(layer, LoRALinear) and computes(layer.base) != "linear":
        raise ValueError(
            f"{name} is a {type(layer.base).__name__} that computes something else than nn.Linear: its weight plus the "
            "update would not compute what the two do now; keep the adapter apart"
        )


def unmerge(model: nn.Module) -> nn.Module:
    """Undo `merge`."""
    for _, layer in adapted_layers(model):
        if isinstance(layer, LoRALinear):
            layer.unmerge()
    return model


def merge_and_unload(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Replace every adapted layer, also one with a 4-bit base, by a plain `nn.Linear` of base + update, in place.

    Experts that were stored in 4 bits become plain parameters again, decoded.

    Args:
        dtype: of the merged weights; None keeps each base's own (for a 4-bit base: the dtype it was quantized from, or
            that the model was cast to since).

    Raises:
        ValueError: a base is packed by another library, or computes something else than nn.Linear. Nothing is changed
            then.
    """
    layers = dict(adapted_layers(model))
    for name, layer in layers.items():
        if isinstance(layer, LoRALinear):
            layer.base_weight()
            _check_base_is_linear(name, layer)
    for name, layer in layers.items():
        replace_module(model, name, layer.merged_linear(dtype).train(layer.training))
    dequantize_parameters(model, dtype)
    return model
