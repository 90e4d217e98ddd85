"""Random small models, and what one does with them: python tests/machines/fuzz.py [--count N] [--seed N] [--only SEED]

Each case is an architecture, a wrapper, a dtype, targets, and one thing that is done with them, all drawn from a seed
of its own. Its outcome is

    equal        to a reference that uses nothing of the layers here: plain PyTorch with decoded weights, or PEFT
    refused      an error of this package in a sentence, after which the model is as it was, to the bit
    warned       as equal, with a warning that says what stays as it was
    no case      PyTorch, transformers or PEFT alone fail on the same input

and anything else is a finding: another error, another value, a model that is changed after a refusal, most weights
left in full precision without a word.
"""

import argparse
import contextlib
import copy
import hashlib
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT / "tests") not in sys.path:
    sys.path.insert(0, str(ROOT / "tests"))

import peft  # noqa: E402
import transformers  # noqa: E402
from random_models import Drawn, call, draw_model, quiet  # noqa: E402

import qlora_lab  # noqa: E402
from qlora_lab.lora import LoRALayer, adapted_layers, disabled, output_head  # noqa: E402
from qlora_lab.qlora import QLoRALinear  # noqa: E402
from qlora_lab.quantization.parameters import KEPT_IN, QuantizedParameter  # noqa: E402

PACKAGE = str(Path(qlora_lab.__file__).parent)
ROUNDING = {torch.float64: 1e-5, torch.float32: 3e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Refused(Exception):
    """This package said no, in a sentence, having changed nothing."""


class NoCase(Exception):
    """The reference itself cannot do it."""


class Finding(Exception):
    """Neither equal nor refused."""


# -- what is equal, what is unchanged, what is a sentence


def fingerprint(model: nn.Module) -> list:
    """Everything a refusal must leave as it was."""
    seen = []
    for name, module in model.named_modules(remove_duplicate=False):
        hooks = [len(module.__dict__.get(kind) or ()) for kind in ("_forward_hooks", "_forward_pre_hooks")]
        seen.append((name, id(module), type(module), module.training, sorted(module.__dict__), hooks))
    for kind in (model.named_parameters, model.named_buffers):
        for name, tensor in kind(remove_duplicate=False):
            seen.append((name, id(tensor), tensor.requires_grad, tensor.dtype, _digest(tensor)))
    return seen


def _digest(tensor: torch.Tensor) -> str:
    if tensor.is_meta or isinstance(tensor, nn.parameter.UninitializedParameter):
        return ""
    return hashlib.sha256(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def is_sentence(error: BaseException) -> bool:
    """Whether this package raised it, with words of its own."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.startswith(PACKAGE)
    return ours and frames[-1].line.startswith("raise") and len(str(error).split()) >= 4


def where(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(PACKAGE)]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {str(error)[:300]}{place}"


def ours(what: str, function, *models: nn.Module):
    """What a call of this package gives; a refusal must leave `models` as they were."""
    before = [fingerprint(model) for model in models]
    try:
        return function()
    except Exception as error:
        if not is_sentence(error):
            raise Finding(f"{what}: {where(error)}") from error
        if before != [fingerprint(model) for model in models]:
            raise Finding(f"{what}: changed after a refusal: {where(error)}") from error
        raise Refused(f"{what}: {type(error).__name__}: {error}") from error


def reference(function, *arguments):
    try:
        return function(*arguments)
    except Exception as error:
        raise NoCase(f"{type(error).__name__}: {error}") from error


def difference(one, other) -> float:
    """Largest difference, as a share of the largest value expected; infinite where only one is finite."""
    if (one is None) != (other is None):
        return 0.0 if float((other if one is None else one).abs().max()) == 0 else float("inf")
    if one is None or not other.numel():
        return 0.0 if one is None or one.shape == other.shape else float("inf")
    if one.shape != other.shape:
        return float("inf")
    one, other = one.detach().double(), other.detach().double()
    if not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    one, other = one[other.isfinite()], other[other.isfinite()]
    scale = float(other.abs().max()) if other.numel() else 0.0
    gap = float((one - other).abs().max()) if other.numel() else 0.0
    return gap / scale if scale else (0.0 if gap < 1e-12 else float("inf"))


def same(what: str, one, other, tolerance: float) -> None:
    gap = difference(one, other)
    if gap > tolerance:
        raise Finding(f"{what} differs by {gap:.1e} of its largest value (allowed {tolerance:.0e})")


# -- a case


@dataclass
class Case:
    seed: int
    drawn: Drawn
    action: str
    method: str
    target: object
    rank: object
    alpha: object
    rslora: bool
    around: str
    at_forward: str
    options: dict = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)
    r: random.Random = field(default_factory=random.Random, repr=False)

    def __str__(self):
        said = [self.action, self.method, self.drawn.name, str(self.drawn.dtype), f"wrapper={self.drawn.wrapper}"]
        said += [f"target={self.target!r}", f"rank={self.rank!r}", f"alpha={self.alpha!r}", f"rslora={self.rslora}"]
        return ", ".join([*said, f"around={self.around}", f"forward={self.at_forward}", str(self.options)])

    def base(self) -> nn.Module:
        """The model as it is given to this package."""
        return reference(lambda: self.drawn.wrap(self.drawn.build()))

    def out(self, model: nn.Module) -> torch.Tensor:
        torch.manual_seed(0)
        with CONTEXTS[self.at_forward]():
            return call(model, self.drawn.inputs)

    @property
    def tolerance(self) -> float:
        known = {"autocast bfloat16": torch.bfloat16, "autocast float16": torch.float16}
        dtypes = {self.drawn.dtype, known.get(self.at_forward, self.drawn.dtype)}
        if self.drawn.name.startswith("mixed"):
            dtypes.add(torch.bfloat16)
        return max(ROUNDING[dtype] for dtype in dtypes)


CONTEXTS = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "default bfloat16": lambda: _default_dtype(torch.bfloat16),
    "default float64": lambda: _default_dtype(torch.float64),
    "default meta": lambda: torch.device("meta"),
}


@contextlib.contextmanager
def _default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def linears(model: nn.Module) -> dict[str, nn.Module]:
    found = model.named_modules(remove_duplicate=False)
    return {
        name: module
        for name, module in found
        if isinstance(module, nn.Linear | transformers.pytorch_utils.Conv1D) and name
    }


def _draw_target(r: random.Random, drawn: Drawn):
    if r.random() < 0.5:
        return "all-linear"
    names = reference(lambda: list(linears(drawn.build())))
    leaves = sorted({name.rpartition(".")[2] for name in names}) or ["none"]
    some = r.sample(leaves, min(len(leaves), r.choice((1, 1, 2, 3))))
    if r.random() < 0.25:
        return r.choice((some[0], ["nope"], [], [*some, "nope"], "(", ["lm_head"], [names[-1]] if names else ["none"]))
    pattern = rf".*({'|'.join(map(re.escape, some))})$"
    return r.choice((some, some, tuple(some), set(some), names[:2] or ["none"], ".*" + some[0], pattern))


def draw_case(seed: int) -> Case:
    r = random.Random(seed)
    drawn = draw_model(r)
    rank = r.choice((1, 2, 2, 4, 8) if r.random() < 0.96 else (np.int64(2), np.int32(3)))
    case = Case(
        seed,
        drawn,
        action=r.choice(list(ACTIONS)),
        method=r.choice(("inject", "quantize")),
        target=_draw_target(r, drawn),
        rank=rank,
        alpha=r.choice((1, 4, 8.0, 0.5) if r.random() < 0.96 else (np.float32(2.0), np.int64(16))),
        rslora=r.random() < 0.2,
        around="nothing" if r.random() < 0.7 else r.choice(list(CONTEXTS)),
        at_forward=r.choice(("autocast bfloat16", "autocast float16")) if r.random() < 0.12 else "nothing",
        r=r,
    )
    datatype = r.choice(("nf4", "nf4", "fp4", "int4", "int4_affine"))
    case.options = {
        "datatype": datatype,
        "block_size": r.choice((16, 32, 64, 64, 128, 4096)),
        "double_quant": datatype != "int4_affine" and r.random() < 0.5,
    }
    if case.method == "inject":
        case.options = {}
    return case


def change(case: Case, model: nn.Module | None = None, rank=None, target=None) -> nn.Module:
    """The model with adapters, or in 4 bits, and proof that it is what was asked for."""
    model = case.base() if model is None else model
    rank = case.rank if rank is None else rank
    target = case.target if target is None else target
    adapters = {"alpha": case.alpha, "target_modules": target, "use_rslora": case.rslora}
    before = torch.get_default_dtype(), torch.is_grad_enabled(), model.training

    def do():
        with CONTEXTS[case.around]():
            if case.method == "inject":
                return qlora_lab.inject_lora(model, rank, **adapters)
            return qlora_lab.quantize_model(model, rank=rank, **adapters, **case.options)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        changed = ours(case.method, do, model)
    case.warned += [str(w.message) for w in caught if is_ours(w)]
    if before != (torch.get_default_dtype(), torch.is_grad_enabled(), model.training):
        raise Finding("changes what is set for all of torch, or the model's mode")
    if case.method == "quantize":
        _check_share(case, changed)
    return changed


def is_ours(warning) -> bool:
    return warning.filename.startswith((PACKAGE, str(ROOT / "tests"))) and issubclass(warning.category, UserWarning)


def encoded(module: nn.Module) -> int:
    wrapper = hasattr(module, "_orig_mod") or hasattr(module, "_checkpoint_wrapped_module")  # has what it wraps has
    return 0 if wrapper else getattr(module, "encoded_elements", None) or 0


def _check_share(case: Case, model: nn.Module) -> None:
    """Nothing large may stay in full precision without a word."""
    spared = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    head = output_head(getattr(model, "module", getattr(model, "inner", model)))
    spared |= {id(p) for p in head.parameters()} if head is not None else set()
    four = sum(encoded(module) for module in model.modules())
    left = {
        name: p.numel()
        for name, p in model.named_parameters()
        if p.ndim >= 2 and id(p) not in spared and "lora_" not in name and p.is_floating_point()
    }
    left = {name: n for name, n in left.items() if not name.endswith(("scales", "offsets", "scale_scales"))}
    if sum(left.values()) > max(four, 200) and not case.warned:
        raise Finding(f"most weights stay in full precision without a word: {list(left)[:3]} of {sum(left.values())}")


def decoded(case: Case, model: nn.Module) -> nn.Module:
    """The reference of a quantized model: the plain one with its weights coded and decoded."""
    plain, done = case.base(), set()
    if case.method == "inject":
        return plain
    for name, layer in model.named_modules(remove_duplicate=False):
        if not encoded(layer):
            continue
        if isinstance(layer, QuantizedParameter):
            _decode_parameter(case, plain, name)
            continue
        module = plain.get_submodule(name)
        if id(module) in done:
            continue
        done.add(id(module))
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
        weight = module.weight.detach()
        transposed = isinstance(module, transformers.pytorch_utils.Conv1D)
        new = qlora_lab.quantize(weight.t() if transposed else weight, **case.options).dequantize()
        for key, hook in list(module._forward_pre_hooks.items()):  # older norms and pruning compute a weight there
            if "weight" in (getattr(hook, "name", None), getattr(hook, "_tensor_name", None)):
                del module._forward_pre_hooks[key]
                del module.weight
        module.weight = nn.Parameter(new.t() if transposed else new)
    return plain


def _decode_parameter(case: Case, plain: nn.Module, place: str) -> None:
    path, _, name = place.replace(f"{KEPT_IN}.", "").rpartition(".")
    module = plain.get_submodule(path)
    weight = getattr(module, name).detach()
    setattr(module, name, nn.Parameter(qlora_lab.quantize(weight, **case.options).dequantize()))


def stir(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for _, layer in adapted_layers(model):
        if layer.rank:
            with torch.no_grad():
                for part in (layer.lora_A, layer.lora_B):
                    if part.is_inference():
                        raise Finding("A and B are inference tensors, which nothing can train")
                    part.copy_(torch.randn(part.shape, generator=generator) * 0.2)
    return model


READ_WEIGHTS = ("Reading", "MultiheadAttention", "TransformerEncoderLayer", "TinyLM", "MambaMixer", "FalconMambaMixer")


def reads_weights(model: nn.Module) -> bool:
    """Whether it computes with a linear layer's weight itself: then PEFT's adapter on that layer does nothing."""
    return any(type(module).__name__ in READ_WEIGHTS for module in model.modules())


class _Updated(nn.Module):
    """W -> W + scaling B A, as a parametrization."""

    def __init__(self, a, b, scaling):
        super().__init__()
        self.a, self.b, self.scaling = a, b, scaling

    def forward(self, weight):
        wide = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast("cpu", enabled=False):
            return (weight.to(wide) + self.scaling * (self.b.to(wide) @ self.a.to(wide))).to(weight.dtype)


def with_hooks(plain: nn.Module, model: nn.Module) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """`plain` with the adapters of `model` added by forward hooks, which are the definition; and its As and Bs."""
    parameters = {}
    if any(layer.rank for _, layer in adapted_layers(model)):
        plain.requires_grad_(False)
    for name, layer in adapted_layers(model):
        if not layer.rank:
            continue
        a, b = (nn.Parameter(p.detach().clone()) for p in (layer.lora_A, layer.lora_B))
        parameters[f"{name}.lora_A"], parameters[f"{name}.lora_B"] = a, b

        module = plain.get_submodule(name)
        if reads_weights(plain) and not parametrize.is_parametrized(module):
            parametrize.register_parametrization(module, "weight", _Updated(a, b, float(layer.scaling)))
            continue
        # hooks of the layer itself see the adapter's share; hooks that stayed on its base do not
        outer, seen = bool(layer._forward_hooks or layer._forward_pre_hooks), []

        def look(module, inputs, options, seen=seen):
            seen[:] = [inputs[0] if inputs else options["input"]]

        def add(module, inputs, options, y, a=a, b=b, scaling=float(layer.scaling), outer=outer, seen=seen):
            x = (inputs[0] if inputs else options["input"]) if outer else seen[0]
            wide = torch.promote_types(x.dtype, torch.float32)
            with torch.autocast("cpu", enabled=False):
                return y + (scaling * (x.to(wide) @ a.to(wide).t() @ b.to(wide).t())).to(y.dtype)

        module.register_forward_pre_hook(look, with_kwargs=True, prepend=True)
        module.register_forward_hook(add, with_kwargs=True, prepend=outer)
    return plain, parameters


# What PyTorch's product over experts asks of strides and dtypes, some of it only where a gradient is needed.
LIMITS_OF_GROUPED_MM = ("strides should be multiple of", "Expected mat_a to be")


def use(case: Case, what: str, function):
    """What a changed model gives. That it is refused only now, after the change, is a finding: it can be told before.

    But not whether a value leaves the range of float16, or code casts to the dtype of a layer's first parameter, which
    is that of codes.
    """
    try:
        return ours(f"{what} (later)", function)
    except Refused as error:
        if isinstance(error.__cause__, FloatingPointError) or "not torch.uint8" in str(error):
            raise
        raise Finding(f"refused only after the change: {error}") from error
    except Finding as error:
        if any(limit in str(error) for limit in LIMITS_OF_GROUPED_MM):
            raise NoCase(str(error)) from error
        raise


def compare_gradients(case: Case, model, plain, expected_parameters) -> None:
    want = reference(case.out, plain)
    weights = torch.linspace(-1, 1, want.numel(), dtype=torch.float64)
    needed = want.requires_grad
    if needed:
        reference(lambda: (want * weights).sum().backward())
    got = use(case, "forward", lambda: case.out(model))
    in_doubt = difference(got, want) > case.tolerance > 1e-3 and case.drawn.is_hf
    if in_doubt and difference(want, reference(case.out, plain.float())) > case.tolerance / 2:
        raise NoCase("the reference itself is far from what it is in float32")
    same("output with adapters", got, want, case.tolerance)
    if needed:
        use(case, "backward", lambda: (got * weights).sum().backward())
    elif got.requires_grad:
        raise Finding("output has a gradient, the reference has none")
    got_parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {
        f"{name}.{part}": getattr(layer, part).grad
        for name, layer in adapted_layers(model)
        if layer.rank
        for part in ("lora_A", "lora_B")
    }
    if len(got_parameters) != len(gradients):
        raise Finding(f"trainable beside the adapters: {[n for n in got_parameters if 'lora_' not in n][:3]}")
    largest = max(
        (float(p.grad.abs().max()) for p in expected_parameters.values() if p.grad is not None and p.numel()), default=0
    )
    for name, p in expected_parameters.items():
        if (case.drawn.dtype == torch.float16 or case.at_forward == "autocast float16") and largest < 1e-4:
            break  # below float16's smallest numbers
        least = largest * (1e-3 if case.tolerance < 1e-3 else 0.1)  # smaller ones are roundings of the others
        if p.grad is None or (p.numel() and float(p.grad.abs().max()) > least):
            same(f"gradient of {name.rpartition('.')[2]}", gradients[name], p.grad, 8 * case.tolerance)


def check_alive(case: Case, model, plain) -> None:
    want = reference(case.out, plain)
    same("output", use(case, "forward", lambda: case.out(model)), want, case.tolerance)


# -- what is done


def do_change(case: Case) -> None:
    model = change(case)
    check_alive(case, model, decoded(case, model))


def do_adapters(case: Case) -> None:
    model = stir(change(case), case.seed)
    compare_gradients(case, model, *with_hooks(decoded(case, model), model))


def do_count(case: Case) -> None:
    plain = case.base()
    total = reference(lambda: sum(p.numel() for p in plain.parameters()))
    model = change(case)
    adapters = sum(
        p.numel()
        for layer in {id(m): m for _, m in adapted_layers(model)}.values()
        if layer.rank
        for p in (layer.lora_A, layer.lora_B)
    )
    count = ours("count_parameters", lambda: qlora_lab.count_parameters(model), model)
    if count.trainable != adapters:
        raise Finding(f"count_parameters: {count.trainable} trainable, not {adapters}")
    untied = sum(
        module.weight.numel() - 0
        for name, module in linears(plain).items()
        if case.method == "quantize"
        and isinstance(model.get_submodule(name), QLoRALinear)
        and sum(p is module.weight for m in plain.modules() for p in m.parameters(recurse=False)) > 1
    )
    if not total + adapters <= count.total <= total + adapters + untied:
        raise Finding(f"count_parameters: {count.total} in all, not {total + adapters}")


def inner(case: Case) -> nn.Module:
    """The model without its wrapper."""
    return case.drawn.build()


def _exact(case: Case, model) -> list[str]:
    return [name for name, layer in adapted_layers(model) if layer.rank]


def do_save(case: Case) -> None:
    model = stir(change(case), case.seed)
    want = use(case, "forward", lambda: case.out(model)).detach()
    with tempfile.TemporaryDirectory() as place:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            ours("save_adapter", lambda: qlora_lab.save_adapter(model, place), model)
        case.warned += [str(w.message) for w in said if is_ours(w)]
        again = (
            change(case, rank=0 if case.method == "quantize" else None) if case.method == "quantize" else case.base()
        )
        ours("load_adapter", lambda: qlora_lab.load_adapter(again, place), again)
        same("output after load_adapter", use(case, "forward", lambda: case.out(again)), want, 1e-6)
        if any("PEFT takes the names" in told for told in case.warned):
            return  # told that PEFT drops some of these
        _same_meaning_in_peft(case, model)
        plain_model = decoded(case, model)
        plain_model = strip(plain_model)
        with quiet(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = reference(lambda: peft.PeftModel.from_pretrained(plain_model, place).eval())
            missing = [
                str(w.message)[:200] for w in caught if "missing" in str(w.message) or "unexpected" in str(w.message)
            ]
        if model.training:
            loaded.train()
        got = reference(case.out, loaded)
        if difference(got, want) > case.tolerance and not _peft_loads_its_own(case, model):
            raise NoCase("PEFT does not load what it saved of this model")
        same(f"output of PEFT's model from our adapter {missing}", got, want, case.tolerance)


def _same_meaning_in_peft(case: Case, model: nn.Module) -> None:
    if case.drawn.wrapper.startswith("hook that changes"):
        raise NoCase("in PEFT, hooks of a layer stay with its base and do not see the adapter's share")
    if case.drawn.name.startswith(("shared:module", "shared:nested")):
        raise NoCase("PEFT adapts a module at two places at the first of them")
    if reads_weights(model):
        raise NoCase("PEFT's adapter does nothing where a weight is read")


def _peft_loads_its_own(case: Case, model: nn.Module) -> bool:
    """Whether an adapter of PEFT's on the same layers survives PEFT's own way to a file and back."""
    names = [name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "") for name in _exact(case, model)]
    names = [name.removeprefix("module.") for name in names]
    config = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    with quiet(), tempfile.TemporaryDirectory() as place:
        theirs = reference(lambda: peft.get_peft_model(strip(case.base()), config))
        want = reference(case.out, theirs)
        theirs.save_pretrained(place)
        again = reference(lambda: peft.PeftModel.from_pretrained(strip(case.base()), place).train(theirs.training))
        return difference(case.out(again), want) <= case.tolerance


def strip(model: nn.Module) -> nn.Module:
    """Without what compiles, replicates, averages or recomputes."""
    while isinstance(model, nn.DataParallel | torch.optim.swa_utils.AveragedModel):
        model = model.module
    if hasattr(model, "_orig_mod"):
        model = model._orig_mod
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            for attribute in ("_orig_mod", "_checkpoint_wrapped_module"):
                if hasattr(child, attribute):
                    setattr(module, name, getattr(child, attribute))
    return model


def do_load_peft(case: Case) -> None:
    first = change(case)
    _same_meaning_in_peft(case, first)
    names = _exact(case, first)
    if case.method == "inject" and not names:
        raise NoCase("no targets")
    plain = strip(decoded(case, first))
    target = case.target if isinstance(case.target, str) else list(case.target)
    config = peft.LoraConfig(
        r=int(case.rank), lora_alpha=float(case.alpha), target_modules=target, use_rslora=case.rslora
    )
    with quiet(), tempfile.TemporaryDirectory() as place:
        theirs = reference(lambda: peft.get_peft_model(plain, config).train(plain.training))
        generator = torch.Generator().manual_seed(case.seed)
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                p.data.copy_(torch.randn(p.shape, generator=generator) * 0.2)
        want = reference(case.out, theirs).detach()
        reference(lambda: theirs.save_pretrained(place))
        model = change(case) if case.r.random() < 0.5 or case.method == "quantize" else case.base()
        ours("load_adapter", lambda: qlora_lab.load_adapter(model, place), model)
        same("output after load_adapter of PEFT's", use(case, "forward", lambda: case.out(model)), want, case.tolerance)


def do_merge(case: Case) -> None:
    case.method, case.options = "inject", {}
    model = stir(change(case), case.seed)
    want = use(case, "forward", lambda: case.out(model)).detach()
    before = {name: p.detach().clone() for name, p in model.state_dict().items() if isinstance(p, torch.Tensor)}

    def do():
        with CONTEXTS[case.around]():
            qlora_lab.merge(model)

    ours("merge", do, model)
    same("merged output", use(case, "forward", lambda: case.out(model)), want, 2 * case.tolerance)
    merged = {name: p.detach().clone() for name, p in model.state_dict().items() if isinstance(p, torch.Tensor)}
    ours("unmerge", lambda: qlora_lab.unmerge(model), model)
    for name, p in model.state_dict().items():  # one rounding of the sum, which may be larger than the weight
        share = (
            min(1.0, float(before[name].abs().max() / merged[name].abs().max()))
            if p.numel() and merged[name].any()
            else 1
        )
        if share > 0.1:
            same(f"{name.rpartition('.')[2]} after unmerge", p, before[name], case.tolerance / 2 / share)
    same("unmerged output", use(case, "forward", lambda: case.out(model)), want, case.tolerance)


def do_merge_and_unload(case: Case) -> None:
    model = stir(change(case), case.seed)
    want = use(case, "forward", lambda: case.out(model)).detach()

    def do():
        with CONTEXTS[case.around]():
            return qlora_lab.merge_and_unload(model)

    merged = ours("merge_and_unload", do, model)
    if any(isinstance(m, LoRALayer) for m in merged.modules()):
        raise Finding("merge_and_unload leaves adapters")
    same("output after merge_and_unload", use(case, "forward", lambda: case.out(merged)), want, 2 * case.tolerance)


@torch.no_grad()  # PyTorch computes some products otherwise where a gradient is needed, which a base alone does not
def do_disabled(case: Case) -> None:
    model = change(case)
    want = use(case, "forward", lambda: case.out(model))
    stir(model, case.seed)
    tuned = use(case, "forward", lambda: case.out(model))
    with disabled(model):
        same("output while disabled", use(case, "forward", lambda: case.out(model)), want, 1e-6)
    same("output afterwards", use(case, "forward", lambda: case.out(model)), tuned, 0)


def do_state_dict(case: Case) -> None:
    model = stir(change(case), case.seed)
    want = use(case, "forward", lambda: case.out(model)).detach()
    state = {
        name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in model.state_dict().items()
    }
    again = change(case)
    use(case, "load_state_dict", lambda: again.load_state_dict(state))
    same("output after load_state_dict", use(case, "forward", lambda: case.out(again)), want, 1e-6)
    if case.method == "inject":
        return
    other = copy.copy(case)
    other.options = dict(case.options)
    kind = case.r.choice(("datatype", "block_size", "double_quant", "rank"))
    if kind == "datatype":
        other.options["datatype"] = "fp4" if case.options["datatype"] != "fp4" else "nf4"
    elif kind == "block_size":
        other.options["block_size"] = 32 if case.options["block_size"] != 32 else 64
    elif kind == "double_quant" and case.options["datatype"] != "int4_affine":
        other.options["double_quant"] = not case.options["double_quant"]
    elif kind == "rank":
        other.rank = int(case.rank) + 1
    different = change(other)
    if not any(isinstance(m, QLoRALinear) for m in different.modules()) or (
        other.options == case.options and kind != "rank"
    ):
        return
    if kind == "rank" and not _exact(case, different):
        return
    try:
        different.load_state_dict(state)
    except (RuntimeError, ValueError):
        return
    same(f"output after load_state_dict into another {kind}", case.out(different), want, 1e-6)


def do_deepcopy(case: Case) -> None:
    reference(lambda: copy.deepcopy(case.base()))
    model = stir(change(case), case.seed)
    want = use(case, "forward", lambda: case.out(model)).detach()
    other = use(case, "deepcopy", lambda: copy.deepcopy(model))
    same("output of the copy", use(case, "forward", lambda: case.out(other)), want, 0)
    stir(other, case.seed + 1)
    same("output after the copy has changed", use(case, "forward", lambda: case.out(model)), want, 0)


def do_cast(case: Case) -> None:
    dtype = case.r.choice((torch.bfloat16, torch.float16, torch.float32))
    case.at_forward = "nothing"
    if case.drawn.dtype == torch.float64 or case.drawn.name.startswith("mixed"):
        raise NoCase("not cast")
    plain = reference(lambda: case.base().to(dtype))
    first, inputs = case.drawn.dtype, case.drawn.inputs
    case.drawn.inputs = inputs if case.drawn.is_hf else tuple(x.to(dtype) for x in inputs)
    reference(case.out, plain)
    model = stir(change(case), case.seed)
    plain, _ = with_hooks(decoded(case, model).to(dtype), model)
    ours("cast", lambda: model.to(dtype))
    tolerance = max(ROUNDING[first], ROUNDING[dtype])
    want = reference(case.out, plain)
    same("output after a cast", use(case, "forward", lambda: case.out(model)), want, 2 * tolerance)
    if case.r.random() < 0.5:
        merged = ours("merge_and_unload", lambda: qlora_lab.merge_and_unload(model), model)
        same(
            "output after a cast and merge_and_unload",
            use(case, "forward", lambda: case.out(merged)),
            want,
            3 * tolerance,
        )


class Tokenizer:
    pad_token_id = 0

    def __call__(self, text, **options):
        return {"input_ids": [3 + byte % 37 for byte in text.encode()]}


EXAMPLES = [
    SimpleNamespace(prompt="abc", target="defg", command=""),
    SimpleNamespace(prompt="hello", target="wo", command=""),
]


def _loss(case: Case, model: nn.Module) -> torch.Tensor:
    """transformers' loss of the examples one by one: no padding, all logits."""
    total, count = 0, 0
    for example in EXAMPLES:
        prompt, target = (Tokenizer()(text)["input_ids"] for text in (example.prompt, example.target))
        tokens = torch.tensor([[*prompt, *target]])
        with CONTEXTS[case.at_forward]():
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0].float()
        total = total + nn.functional.cross_entropy(
            logits[len(prompt) - 1 : -1], tokens[0, len(prompt) :], reduction="sum"
        )
        count += len(target)
    return total / count


def _own_loss_is_shifted(case: Case) -> None:
    """Some decoders of transformers (Whisper, TrOCR) compare logits with labels at one place; that is trained."""
    tokens = torch.tensor([[5, 6, 7, 8]])
    try:
        out = case.base()(input_ids=tokens, labels=tokens)
    except Exception:
        return  # it computes no loss
    shifted = nn.functional.cross_entropy(out.logits[0, :-1].float(), tokens[0, 1:])
    if out.loss is not None and difference(out.loss, shifted) > case.tolerance:
        raise NoCase("the model's own loss is another")


def do_finetune(case: Case) -> None:
    if not case.drawn.causal:
        return do_adapters(case)
    reference(lambda: _loss(case, case.base()))
    model = stir(change(case), case.seed)
    plain, parameters = with_hooks(decoded(case, model), model)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    _own_loss_is_shifted(case)
    loss = reference(lambda: _loss(case, plain))
    reference(lambda: loss.backward() if parameters and loss.requires_grad else None)
    norm = torch.stack([p.grad.norm() for p in parameters.values() if p.grad is not None] or [torch.zeros(())]).norm()
    settings = {
        "checkpointing": case.r.choice(("none", "none", "reentrant", "non-reentrant")),
        "accumulation": 1,
        "learning_rate": 1e-2,
    }
    paging = case.r.choice((None, None, {"device_budget": 2**14, "host_budget": 2**20}))
    with tempfile.TemporaryDirectory() as place:

        def do():
            with CONTEXTS[case.at_forward]():
                return qlora_lab.finetune(
                    model,
                    Tokenizer(),
                    EXAMPLES,
                    steps=1,
                    batch_size=2,
                    out=Path(place) / "run",
                    paging=paging,
                    **settings,
                )

        result = ours("finetune", do)
        record = result.records[0]
        tolerance = case.tolerance
        same(f"loss {settings}", torch.tensor(record.loss), loss, tolerance)
        if case.drawn.dtype == torch.float16 and not np.isfinite(record.grad_norm):
            return  # the first scale of the loss was too large for float16, and the step was left out
        same("gradient's norm", torch.tensor(record.grad_norm), norm, 4 * tolerance)
        _check_step(case, model, parameters, before, record, norm)
        again = change(case)
        ours("load_adapter", lambda: qlora_lab.load_adapter(again, result.adapter), again)
        model.eval(), again.eval()
        same("output of the adapter of the run", case.out(again), use(case, "forward", lambda: case.out(model)), 1e-6)


def _check_step(case, model, parameters, before, record, norm) -> None:
    """The first step of AdamW goes by the rate against the gradient's sign, where that is no rounding error."""
    rate = getattr(record, "learning_rate", None) or getattr(record, "rate", None) or record[2]
    largest = max(
        (float(p.grad.abs().max()) for p in parameters.values() if p.grad is not None and p.numel()), default=0
    )
    for path, layer in adapted_layers(model):
        for part in ("lora_A", "lora_B"):
            p = parameters.get(f"{path}.{part}")
            if p is None or p.grad is None:
                continue
            sure = p.grad.abs() > max(10 * case.tolerance, 1e-2) * largest
            step = getattr(layer, part).detach() - before[f"{path}.{part}"]
            same("the step", step[sure], (-rate * p.grad.sign())[sure], 0.02)


def do_pretrained(case: Case) -> None:
    if not case.drawn.is_hf or case.drawn.name.startswith("own") or case.drawn.wrapper != "none":
        return do_change(case)
    model = stir(change(case), case.seed)
    if case.r.random() < 0.5:
        model = ours("merge_and_unload", lambda: qlora_lab.merge_and_unload(model), model)
    want = use(case, "forward", lambda: case.out(model)).detach()
    with quiet(), tempfile.TemporaryDirectory() as place:
        auto, adapted = type(model), any(isinstance(m, LoRALayer) for m in model.modules())
        try:
            use(case, "save_pretrained", lambda: model.save_pretrained(place))
        except Finding as error:
            if adapted:  # transformers' own errors: nothing was written, and it is told
                raise Refused(str(error)) from error
            raise
        if adapted:
            return _layers_unknown_to_transformers(case, auto, place)
        again = use(case, "from_pretrained", lambda: auto.from_pretrained(place, dtype=case.drawn.dtype).eval())
        same("output after save_pretrained and from_pretrained", case.out(again), want, case.tolerance)
        if case.drawn.causal:
            loaded = ours("load_model", lambda: qlora_lab.load_model(place, dtype=case.drawn.dtype))
            same("output after load_model", case.out(loaded.eval()), want, case.tolerance)
    return None


def _layers_unknown_to_transformers(case: Case, auto, place: str) -> None:
    """transformers refuses such a file or reports what it made up; `load_model` refuses it."""
    try:
        _, found = auto.from_pretrained(place, dtype=case.drawn.dtype, output_loading_info=True)
    except RuntimeError as error:
        raise Refused(f"by transformers: {error}") from error
    if not found["missing_keys"] and not found["unexpected_keys"]:
        raise Finding("from_pretrained takes layers it does not know, without a word")
    case.warned.append(f"reported by transformers: {sorted(found['missing_keys'])[:2]} are missing")
    if case.drawn.causal:
        ours("load_model", lambda: qlora_lab.load_model(place, dtype=case.drawn.dtype))
        raise Finding("load_model takes layers that it does not know")


def do_load_model(case: Case) -> None:
    """Of a plain model: load_model gives what from_pretrained gives."""
    if not case.drawn.is_hf or not case.drawn.causal or case.drawn.name.startswith("own"):
        return do_adapters(case)
    plain = case.drawn.build()
    want = reference(case.out, plain)
    with quiet(), tempfile.TemporaryDirectory() as place:
        reference(lambda: plain.save_pretrained(place))
        loaded = reference(lambda: type(plain).from_pretrained(place, dtype=case.drawn.dtype).eval())
        same_as = reference(case.out, loaded)
        if difference(same_as, want) > case.tolerance:
            raise NoCase("transformers does not load what it saved")
        model = ours("load_model", lambda: qlora_lab.load_model(place, dtype=case.drawn.dtype))
        same("output after load_model", case.out(model.eval()), want, case.tolerance)
    return None


def do_twice(case: Case) -> None:
    """Quantized without adapters, then adapters on it; or adapters on adapters, which is refused."""
    case.method, options = "quantize", case.options or {"datatype": "nf4", "block_size": 64, "double_quant": True}
    case.options = options
    model = change(case, rank=0)
    plain = decoded(case, model)
    case.method = "inject"
    change(case, model)
    stir(model, case.seed)
    case.method = "quantize"
    compare_gradients(case, model, *with_hooks(plain, model))
    case.method = case.r.choice(("inject", "quantize"))
    try:
        change(case, model)
    except Refused:
        return
    raise Finding("adapters were added to a model that has some")


def do_wrong(case: Case) -> None:
    """Arguments that make no sense are refused, or make sense after all."""
    wrong = {
        "rank": (-1, 1.5, "8", None, True, 10**9 if False else -3),
        "alpha": (0, -1, "x", None, float("nan"), float("inf")),
        "target_modules": (None, 3, [None], [3], [""], "", ["["], {"a": 1}),
        "dropout": (1.0, -0.1, "0", None, float("nan")),
    }
    if case.method == "quantize":
        wrong |= {
            "datatype": ("nf5", None, 4),
            "block_size": (0, 7, 15, -64, 64.5, "64", None, 10**6),
            "compute_dtype": (torch.float64, torch.int8, "float32", 3),
        }
    name = case.r.choice(list(wrong))
    value = case.r.choice(wrong[name])
    arguments = {"rank": 2, "alpha": 4, "target_modules": "all-linear"} | {name: value}
    model = case.base()
    do = qlora_lab.inject_lora if case.method == "inject" else qlora_lab.quantize_model
    ours(f"{name}={value!r}", lambda: do(model, **arguments), model)
    if (name, value) not in {("compute_dtype", "float32"), ("datatype", None)}:
        raise Finding(f"{name}={value!r} is taken")


def do_reentrant(case: Case) -> None:
    """Gradient checkpointing as transformers switches it on."""
    if not case.drawn.is_hf or case.drawn.name.startswith("own") or case.drawn.wrapper != "none":
        return do_adapters(case)
    base = case.base()
    reference(lambda: base.gradient_checkpointing_enable())
    model = stir(change(case), case.seed).train()
    plain, parameters = with_hooks(decoded(case, model).train(), model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    compare_gradients(case, model, plain, parameters)
    return None


def do_compiled_later(case: Case) -> None:
    """torch.compile after the change."""
    model = stir(change(case), case.seed)
    want = use(case, "forward", lambda: case.out(model)).detach()
    compiled = torch.compile(model, backend="eager")
    if not isinstance(compiled, nn.Module):
        raise NoCase("what is compiled twice is a function")
    same("output of the compiled model", use(case, "forward", lambda: case.out(compiled)), want, case.tolerance)
    with tempfile.TemporaryDirectory() as place:
        ours("save_adapter", lambda: qlora_lab.save_adapter(compiled, place), model)


ACTIONS = {
    "change": do_change,
    "adapters": do_adapters,
    "count": do_count,
    "save": do_save,
    "load PEFT's": do_load_peft,
    "merge": do_merge,
    "merge_and_unload": do_merge_and_unload,
    "disabled": do_disabled,
    "state_dict": do_state_dict,
    "deepcopy": do_deepcopy,
    "cast": do_cast,
    "finetune": do_finetune,
    "pretrained": do_pretrained,
    "load_model": do_load_model,
    "twice": do_twice,
    "wrong": do_wrong,
    "checkpointing": do_reentrant,
    "compiled later": do_compiled_later,
}


# -- all of them


def is_mixture(case: Case) -> bool:
    return any("experts" in name for name, _ in case.base().named_modules())


@dataclass
class Outcome:
    seed: int
    kind: str
    what: str
    case: str

    @property
    def signature(self) -> str:
        """The same for findings of one kind."""
        return re.sub(r"'[^']*'|\d+(\.\d+)?(e[-+]?\d+)?|/\S+", "_", self.what)[:160]


def run_case(seed: int, really_compile: bool = False) -> Outcome:
    """Draw a case from its seed and judge it."""
    case = None
    stance = contextlib.nullcontext() if really_compile else torch.compiler.set_stance("force_eager")
    with torch.random.fork_rng(devices=[]), stance, quiet():
        try:
            case = reference(draw_case, seed)
            if case.action not in ("wrong", "load_model"):
                for frozen in (False, True):
                    reference(lambda frozen=frozen: case.out(case.base().requires_grad_(not frozen)))
            ACTIONS[case.action](case)
            kind, what = ("warned", case.warned[0]) if case.warned else ("equal", "")
        except Refused as error:
            kind, what = "refused", str(error)
        except NoCase as error:
            kind, what = "no case", str(error)
        except Finding as error:
            kind, what = "FINDING", str(error)
            if case.tolerance > 1e-3 and re.search("^(output|gradient).* differs", what) and is_mixture(case):
                kind, what = "no case", "one rounding to 16 bits may choose another expert"
        except Exception as error:
            kind, what = "FINDING", f"of the harness: {''.join(traceback.format_exception(error)[-3:])}"
    return Outcome(seed, kind, what, str(case))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--count", type=int, default=2000, help="cases that say something (those without are drawn anew)"
    )
    parser.add_argument("--seed", type=int, default=None, help="of the first case; the others count on from it")
    parser.add_argument("--only", type=int, default=None, help="one case, with its traceback")
    parser.add_argument("--refusals", action="store_true", help="list what was refused, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only is not None:
        print(run_case(options.only))
        return
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6) * 1000
    print(f"seed {first}", flush=True)
    counts, kinds, examples = Counter(), Counter(), {}
    began, seed = time.perf_counter(), first
    while sum(counts.values()) - counts["no case"] < options.count:
        outcome = run_case(seed)
        seed += 1
        counts[outcome.kind] += 1
        if outcome.kind == "FINDING" or (options.refusals and outcome.kind != "equal"):
            key = outcome.kind, outcome.signature
            kinds[key] += 1
            if key not in examples:
                examples[key] = outcome
                print(f"{outcome.kind} {outcome.seed}: {outcome.what}\n    {outcome.case}", flush=True)
    print(f"\nseeds {first} to {seed - 1}, {time.perf_counter() - began:.0f} s: {dict(counts)}")
    for key, count in kinds.most_common():
        print(f"{count:5} {key[0]} {key[1]!r} (first: {examples[key].seed})")
    sys.exit(1 if counts["FINDING"] else 0)


if __name__ == "__main__":
    main()
