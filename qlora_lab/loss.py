"""The training loss: cross-entropy over the tokens that have a label, with logits computed only for these.

With a vocabulary of 49,152 the output head is the largest matrix product of a step and its result the largest tensor.
Three things keep both small. Only positions whose successor has a label reach the head (a prompt's tokens have none).
The logits are made a few rows at a time, and never kept: where the head is frozen, all that the backward pass needs of
them is the gradient of the hidden states, as small as these, so it is computed in the forward pass, while the rows are
there:

    loss = sum(logsumexp(z) - z[label]),  z = W h        dloss/dh = (softmax(z) - onehot(label)) W
"""

import contextlib
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from qlora_lab.lora import output_head
from qlora_lab.machine import processes
from qlora_lab.machine.dtypes import autocast_dtype, without_autocast
from qlora_lab.machine.generators import random_states, restore_random
from qlora_lab.machine.matmul import matmul
from qlora_lab.tasks.batches import IGNORED

CHUNK_BYTES = 2**25  # of float32 logits that are alive at a time, where they need not be kept
PROBE = 2, 32  # rows and tokens on which a way to compute the loss is compared with the model's own


def supervised_loss_sum(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy summed over the tokens that have a label, float32 of shape ().

    Divided by the number of these tokens it equals the loss that the model itself computes, `model(labels=...).loss`,
    also where that is more than the cross-entropy of its logits (experts' loss of balance, smoothed labels).

    Args:
        input_ids, attention_mask, labels: int64 (batch, length). The label at position t is predicted from position
            t - 1; labels of -100 are ignored. Without an attention_mask nothing is padding, or the positions say it.
        position_ids: int64 (batch, length), of packed rows: where each example in them begins. See `tasks.packing`.

    Where a model does more with logits than make them (scaling, capping), or trains its head, or computes in float16
    (whose gradients have to be scaled first), all labelled rows of logits are made at once and kept for the backward
    pass. A model without a known head, or compiled as a whole, computes all logits.

    Which of these ways a model takes, its first call finds out: the loss of a few tokens is compared with the model's
    own, unless it is one of transformers' whose code says that its loss is that of its logits. Where none of them
    agrees, the model's own is taken.

    Raises:
        ValueError: nested tensors, or a model without a loss of its own whose logits are none for each token.
    """
    if input_ids.is_nested or labels.is_nested:
        raise ValueError("the loss takes batches that are padded, and no nested tensors; see tasks.pad_batch")
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    if position_ids is not None:
        batch["position_ids"] = position_ids
    key = _circumstances(model)
    ways = _agreeing(model, key, batch)
    again = _random_numbers(input_ids.device)
    while True:
        try:
            return ways[0](model, **batch)
        except _Unsuited as error:
            if len(ways) == 1:
                raise ValueError(f"the loss of a {type(model).__name__} cannot be computed: {error}") from error
            ways = _known.setdefault(model, {})[key] = ways[1:]
            again()  # a run that is resumed here draws the same


# -- ways to compute the loss, from the cheapest to the surest


class _Unsuited(Exception):
    """A way to compute the loss does not fit what the model does."""


def _by_rows(model, input_ids, attention_mask, labels, **more) -> torch.Tensor:
    """Logits of a few rows at a time, apart from the model: its head is a frozen product, and nothing comes after."""
    head = output_head(model)
    if head is None or not is_frozen_linear(head):
        raise _Unsuited("its head is more than a frozen product")
    keep, wanted = _labelled(labels)
    with _intercept(head, keep, rows=1) as seen:  # the head computes one row, which is thrown away
        logits, out = _forward(model, input_ids, attention_mask, **more)
    if not seen.untouched(logits):
        raise _Unsuited("it does more with its logits than make them")
    return _HeadLoss.apply(seen.hidden, head.weight, wanted.to(seen.hidden.device)) + _balance(model, out, len(wanted))


def _kept_logits(model, input_ids, attention_mask, labels, **more) -> torch.Tensor:
    """All labelled rows of logits, as the model's own head and what follows it make them."""
    head = output_head(model)
    if head is None or _hooked(head):  # a hook would not see what it expects
        raise _Unsuited("it has no head that may compute fewer logits")
    keep, wanted = _labelled(labels)
    with _intercept(head, keep) as seen:
        logits, out = _forward(model, input_ids, attention_mask, **more)
    if seen.calls != 1 or logits.ndim != 3 or tuple(logits.shape[:2]) != (1, len(wanted)):
        raise _Unsuited("its logits are not what its head makes")
    return _summed(logits[0], wanted) + _balance(model, out, len(wanted))


def _all_logits(model, input_ids, attention_mask, labels, **more) -> torch.Tensor:
    keep, wanted = _labelled(labels)
    logits, out = _forward(model, input_ids, attention_mask, **more)
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise _Unsuited(f"its logits have the shape {tuple(logits.shape)}, not one row for each token")
    return _summed(logits[:, :-1][keep.to(logits.device)], wanted) + _balance(model, out, len(wanted))


def _own_loss(model, input_ids, attention_mask, labels, **more) -> torch.Tensor:
    """What the model makes of the labels, which is a mean, times their number."""
    count = int((labels[:, 1:] != IGNORED).sum())
    logits, out = _forward(model, input_ids, attention_mask, labels=labels, **more)
    if getattr(out, "loss", None) is None:
        raise _Unsuited("it has no loss of its own")
    return out.loss.float() * count if count else 0 * logits.float().sum()


_WAYS: tuple[Callable, ...] = (_by_rows, _kept_logits, _all_logits, _own_loss)


def _forward(model: nn.Module, input_ids, attention_mask, **more) -> tuple[torch.Tensor, object]:
    """Logits, and the whole result, of a forward pass that keeps nothing for generation."""
    if _takes_use_cache(type(model)):
        more["use_cache"] = False
    out = model(input_ids=input_ids, attention_mask=attention_mask, **more)
    logits = getattr(out, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise _Unsuited("its result has no `logits`")
    return logits, out


@cache
def _takes_use_cache(kind: type) -> bool:
    parameters = inspect.signature(kind.forward).parameters
    return "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _labelled(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which positions predict a label (batch, length - 1), and these labels (n,)."""
    keep = labels[:, 1:] != IGNORED
    return keep, labels[:, 1:][keep]


def _summed(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), wanted.to(logits.device), reduction="sum")


def _balance(model, out, count: int) -> torch.Tensor | float:
    """What mixture-of-experts models of transformers add to a mean loss if they are told to return router logits."""
    aux_loss = getattr(out, "aux_loss", None)
    if aux_loss is None:
        return 0.0
    share = getattr(model, "router_aux_loss_coef", getattr(model.config, "router_aux_loss_coef", None))
    if share is None:
        raise _Unsuited("it has a second loss, of unknown weight")
    return share * aux_loss.float() * count


# -- which of them a model takes

_known: WeakKeyDictionary = WeakKeyDictionary()  # model -> {circumstances: ways that agree with its own loss}


def _circumstances(model: nn.Module) -> tuple:
    """What decides, beside the model, which ways agree."""
    settings = getattr(model, "config", None)
    plain = tuple((name, getattr(settings, name, None)) for name in ("output_router_logits", "loss_type"))
    functions = getattr(model, "loss_function", None), getattr(model, "forward", None)
    head = output_head(model)
    frozen = head is not None and is_frozen_linear(head)
    return model.training, frozen, plain, *(id(getattr(f, "__func__", f)) for f in functions)


def _agreeing(model: nn.Module, key: tuple, batch: dict[str, torch.Tensor]) -> tuple[Callable, ...]:
    """The ways that agree with the model's own loss, cheapest first; found out once for a model and its circumstances.

    Where several processes hold parts of a model they ask together, and have one answer.
    """
    known = _known.setdefault(model, {})
    if key in known:
        return known[key]
    if _is_compiled(model):  # a compiled graph would keep the first batch's selection
        inner = getattr(model, "_orig_mod", None)
        trusted = _says_so(model if inner is None else inner)
        ways = (_all_logits, _own_loss) if trusted else _compared((_all_logits, _own_loss), model, batch)
    else:
        ways = _WAYS if _says_so(model) else _compared(_WAYS, model, batch)
    if ways is None:  # nothing can be compared here: not remembered
        return _WAYS[:-1] if not _is_compiled(model) else (_all_logits,)
    known[key] = ways
    return ways


def _says_so(model: nn.Module) -> bool:
    """Whether the code of a model of transformers says that its loss is the usual one of its logits.

    That is the case for most: no trial is needed, and no hook of anybody's is called one time more.
    """
    kind = next(kind for kind in type(model).__mro__ if "forward" in vars(kind))  # FSDP makes a class of its own
    ours = kind.__module__.startswith("transformers.models.") and type(model).__call__ is nn.Module.__call__
    if not ours or _hooked(model):
        return False
    try:
        usual = model.loss_function is _usual_loss()
    except Exception:
        return False
    return usual and _code_says_so(kind.forward)


@cache
def _usual_loss() -> Callable | None:
    return getattr(sys.modules.get("transformers.loss.loss_utils"), "ForCausalLMLoss", None)


@cache
def _code_says_so(forward: Callable) -> bool:
    try:
        code = inspect.getsource(inspect.unwrap(forward))
    except (OSError, TypeError):
        return False
    made = re.findall(r"\bloss\s*[-+*/]?=(?!=)(.*)", code)  # also as a keyword: loss=loss
    calls = [text for text in made if "self.loss_function(" in text]
    rest = [text.strip(" ,)") for text in made if "self.loss_function(" not in text]
    balance = [text for text in made if "aux_loss" in text]  # which `_balance` knows
    arguments = re.search(r"self\.loss_function\(([^()]*(?:\([^()]*\)[^()]*)*)\)", code)
    plain = arguments is not None and "shift" not in arguments[1] and "num_items" not in arguments[1]
    return len(calls) == 1 and plain and not balance and set(rest) <= {"None", "loss"}


def _compared(ways: tuple[Callable, ...], model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple | None:
    """Those of `ways` that agree with the model's own loss, or, if it has none, with that of all its logits.

    None where there are no values to compare: tensors without memory.
    """
    ids = batch["input_ids"]
    parameter = next(model.parameters(), ids)
    if isinstance(ids, FakeTensor) or isinstance(parameter, FakeTensor) or parameter.is_meta or ids.shape[1] < 2:
        return None
    trial, losses, problems = _trial(batch), {}, {}
    with _unobserved(model, ids.device) as again:
        for way in reversed(ways):
            again()
            try:
                losses[way] = float(way(model, **trial))
            except _Unsuited as error:
                problems[way] = ValueError(f"the loss of a {type(model).__name__} cannot be computed: {error}")
            except Exception as error:  # a model that takes no labels, or no fewer rows
                problems[way] = error
    found = [losses.get(way) for way in ways]
    everyones = processes.gathered(found) if any(map(processes.is_part, model.parameters())) else [found]
    coarse = autocast_dtype(parameter.device.type) is not None or parameter.dtype != torch.float32
    agreed = [_agreed(dict(zip(ways, values, strict=True)), 5e-3 if coarse else 2e-5) for values in everyones]
    common = tuple(way for way in ways if all(way in one for one in agreed))
    if not common:
        differ = ValueError(f"the processes' losses of a {type(model).__name__} differ")
        raise problems.get(_all_logits, problems.get(_own_loss, differ))
    return common


def _agreed(losses: dict[Callable, float | None], tolerance: float) -> list[Callable]:
    """The ways whose loss is the model's own, from the same logits; or, of fewer rows, the same up to `tolerance`,
    relative: products of other shapes round otherwise."""
    everything, own = losses[_all_logits], losses[_own_loss]
    if own is not None and (everything is None or not _close(everything, own, 2e-5)):
        return [_own_loss]
    if everything is None:
        return []
    rest = (way for way in (_by_rows, _kept_logits) if losses.get(way) is not None)
    return [*(way for way in rest if _close(losses[way], everything, tolerance)), _all_logits, _own_loss]


def _close(one: float, other: float, tolerance: float) -> bool:
    return abs(one - other) <= tolerance * max(1.0, abs(other)) or one == other or (one != one and other != other)


def _trial(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A few rows and tokens of a batch, with labels of their own: none for the beginning, as for a prompt."""
    rows, length = PROBE
    mask, more = batch["attention_mask"], {}
    if mask is None:
        mask = torch.ones_like(batch["input_ids"])
        more["attention_mask"] = None
    begin = slice(length) if bool(mask.reshape(len(mask), -1)[:rows, 0].all()) else slice(-length, None)
    ids = batch["input_ids"][:rows, begin]
    mask = mask[:rows, begin] if mask.ndim == 2 else mask[:rows, ..., begin, begin]
    if "position_ids" in batch:
        more["position_ids"] = batch["position_ids"][:rows, begin]
    labels = ids.clone()
    for row, label in enumerate(labels):  # rows with unlike numbers of labels: a mean of means would show
        label[: min(len(label) - 1, (1 + len(label)) // (2 + 2 * row))] = IGNORED
    if mask.ndim == 2:
        labels = labels.masked_fill(mask == 0, IGNORED)
    if not bool((labels[:, 1:] != IGNORED).any()):
        labels[:, -1] = ids[:, -1]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, **more}


@contextlib.contextmanager
def _unobserved(model: nn.Module, device: torch.device) -> Iterator[Callable[[], None]]:
    """Inside, forward passes leave nothing behind: random numbers, buffers, what watches operations.

    Yields a function that sets random numbers to what they were, so that dropout drops the same again.
    """
    buffers = [(b, b.clone()) for b in model.buffers() if b.is_floating_point() or not b.ndim]
    again, eager = _random_numbers(device), torch.compiler.set_stance("force_eager")
    with _disable_current_modes(), torch.no_grad(), eager, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield again
        finally:
            again()
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def _random_numbers(device: torch.device) -> Callable[[], None]:
    """A function that sets the random numbers that a forward pass draws to what they are now."""
    return partial(restore_random, random_states(device), device)


# -- a frozen head


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy of `hidden` (n, d) through a frozen head (vocabulary, d), summed; labels int64 (n,)."""

    @staticmethod
    def forward(ctx, hidden, weight, labels):
        kind = hidden.device.type
        dtype = autocast_dtype(kind) or hidden.dtype
        with without_autocast(kind):  # which would cast in a product, and not what it writes to
            part, weight = hidden.to(dtype), weight.to(dtype)
            total, gradient = _HeadLoss.in_rows(part, weight, labels, hidden.requires_grad)
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        return total

    @staticmethod
    def in_rows(hidden, weight, labels, differentiated: bool):
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if differentiated else None
        rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        for start in range(0, len(hidden), rows):
            part, label = hidden[start : start + rows], labels[start : start + rows, None]
            z = matmul(part, weight.t()).float()  # (rows, vocabulary)
            top, chosen = z.amax(1, keepdim=True), z.gather(1, label)
            norm = z.sub_(top).exp_().sum(1, keepdim=True)  # in place: nothing else of the logits' size is made
            total += (norm.log() + top - chosen).sum()
            if gradient is not None:  # of softmax - onehot, times norm: divided out where it is small
                z.scatter_add_(1, label, -norm)
                matmul(z.to(weight.dtype), weight, out=gradient[start : start + rows]).div_(norm)
            del z  # before the next rows are made
        return total, gradient

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (gradient,) = ctx.saved_tensors
        return (gradient * g).to(ctx.dtype), None, None


class _Seen:
    """What an intercepted head saw and made: `hidden` states where there is a label (n, d), `logits`, its `calls`."""

    def __init__(self):
        self.calls, self.hidden, self.logits, self.values, self.version = 0, None, None, None, None

    def untouched(self, logits) -> bool:
        """Whether `logits` are the head's, as it made them: the tensor, its values, and no gradient that is changed."""
        if self.calls != 1 or logits is not self.logits:
            return False
        if not all(map(_of_fsdp, (logits._backward_hooks or {}).values())):
            return False
        values, self.values = self.values, None  # not kept while the loss is computed
        if isinstance(logits, FakeTensor):
            return True
        return _version(logits) == self.version and torch.equal(logits, values)


def _version(tensor: torch.Tensor) -> int | None:
    """Counts changes in place; tensors of inference mode have no count."""
    return None if tensor.is_inference() else tensor._version


@contextlib.contextmanager
def _intercept(head: nn.Module, keep: torch.Tensor, rows: int | None = None) -> Iterator[_Seen]:
    """Inside, `head` sees only the hidden states at positions in `keep` (batch, length - 1), or `rows` of them."""
    seen = _Seen()

    def select(module, inputs):
        if not inputs or inputs[0].ndim != 3 or tuple(inputs[0].shape[:2]) != (len(keep), keep.shape[1] + 1):
            raise _Unsuited("its head sees other states than one for each token")
        seen.calls += 1
        seen.hidden = inputs[0][:, :-1][keep.to(inputs[0].device)]  # (b, t, d) -> (n, d)
        return (seen.hidden[None, :rows], *inputs[1:])

    def remember(module, inputs, output):
        seen.logits = output
        if rows is not None:  # they are few
            seen.values, seen.version = output.detach().clone(), _version(output)

    handles = head.register_forward_pre_hook(select), head.register_forward_hook(remember)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def is_frozen_linear(head: nn.Module) -> bool:
    """Whether the gradient of the hidden states can be had without keeping logits."""
    if type(head) is not nn.Linear or head.bias is not None or _hooked(head):
        return False
    weight = head.weight
    computed_in = autocast_dtype(weight.device.type) or weight.dtype
    return not weight.requires_grad and torch.float16 not in (weight.dtype, computed_in) and weight.element_size() > 1


def _hooked(module: nn.Module) -> bool:
    """Whether something is done with what a module sees or makes, or it computes otherwise than its class does."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    own = (hook for group in hooks for hook in group.values() if not _of_fsdp(hook))
    return "forward" in vars(module) or next(own, None) is not None


def _of_fsdp(hook) -> bool:
    """It gathers parameters, and leaves what passes through as it is."""
    return (getattr(hook, "__module__", None) or "").startswith("torch.distributed.fsdp")


def _is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile wrapped the model as a whole."""
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None
