"""What stands round a model or round its parts, and the names that things have without it.

`torch.compile(layer)` returns a module that holds the layer as `_orig_mod`, and every path through it says so:
`layers.0._orig_mod.self_attn.q_proj`. Data parallelism, averaging and checkpointing of activations wrap alike. Nobody
else's model has such paths, so what is written to disk goes by the plain ones: `layers.0.self_attn.q_proj`.
"""

from collections.abc import Iterator

from torch import nn

# The package and the class of a wrapper, and the attribute that holds what it wraps.
_WRAPPERS = {
    ("torch", "OptimizedModule"): "_orig_mod",  # torch.compile
    ("torch", "DataParallel"): "module",
    ("torch", "DistributedDataParallel"): "module",
    ("torch", "FullyShardedDataParallel"): "_fsdp_wrapped_module",
    ("torch", "ActivationWrapper"): "_checkpoint_wrapped_module",  # checkpoint_wrapper, offload_wrapper
    ("torch", "AveragedModel"): "module",
    ("deepspeed", "DeepSpeedEngine"): "module",
    ("peft", "PeftModel"): "base_model",
    ("peft", "BaseTuner"): "model",
}
_MARKS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def is_of(module: nn.Module, package: str, name: str) -> bool:
    """Whether a module's class is, or derives from, the one of this name in this package, which is not imported."""
    return any(c.__name__ == name and c.__module__.partition(".")[0] == package for c in type(module).__mro__)


def without_marks(path: str) -> str:
    """A path without the components that no module of a model's own is called by, such as `_orig_mod`."""
    return ".".join(part for part in path.split(".") if part not in _MARKS)


def plain_modules(model: nn.Module, own: bool = True) -> dict[str, str]:
    """The modules of a model by the paths they have without wrappers, with the paths that lead there in fact.

    Where a wrapper stands, the plain path leads to what it wraps. A module of one's `own` that adds no weights to the
    one transformers model in it (`self.model = causal_lm`, nn.Sequential) counts as a wrapper of that model.
    """
    plain = {"": ""}  # real path -> plain path
    innermost = {"": ""}  # plain path -> real path; children come after their parents
    for real, module in model.named_modules():
        over, inside = plain[real], _wrapped(module)
        for name, _ in module.named_children():
            path = over if name == inside else f"{over}.{name}".removeprefix(".")
            plain[f"{real}.{name}".removeprefix(".")] = path
        innermost[over] = real
    prefix = _inner_model(model, plain) if own else ""
    if not prefix:
        return innermost
    inner = {path: real for path, real in innermost.items() if f"{path}.".startswith(f"{prefix}.")}
    return {path.removeprefix(prefix).removeprefix("."): real for path, real in inner.items()}


def plain_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """`model.named_parameters()`, under the names that they have without wrappers."""
    modules = {real: path for path, real in plain_modules(model).items()}
    for name, parameter in model.named_parameters():
        real, _, leaf = name.rpartition(".")
        yield (f"{modules[real]}.{leaf}".removeprefix(".") if real in modules else name), parameter


def inner_model(model: nn.Module) -> nn.Module:
    """The model itself, without what stands round it."""
    return model.get_submodule(plain_modules(model)[""])


def _wrapped(module: nn.Module) -> str | None:
    """The name of the child that a wrapper wraps; None: it is no wrapper."""
    for (package, kind), name in _WRAPPERS.items():
        if name in module._modules and is_of(module, package, kind):
            return name
    return None


def _inner_model(model: nn.Module, plain: dict[str, str]) -> str:
    """The plain path of the one transformers model that holds all weights there are, or ""."""
    found: list[str] = []
    for real, module in model.named_modules():
        if is_of(module, "transformers", "PreTrainedModel"):
            path = plain[real]
            if not path:
                return ""
            if not any(f"{path}.".startswith(f"{other}.") for other in found):
                found.append(path)
    if len(found) != 1:
        return ""
    within = {real for real, path in plain.items() if f"{path}.".startswith(f"{found[0]}.")}
    names = [name.rpartition(".")[0] for name, _ in model.named_parameters()]
    return found[0] if all(name in within for name in names) else ""
