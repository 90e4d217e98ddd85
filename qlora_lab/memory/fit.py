"""Whether a training step fits, asked before anything is allocated; and if not, what to change.

`check_fits` asks it of a model that is there and of the memory that is free; `fit_to_gpu` of a plan on paper and a GPU
of any size. Both propose what costs least first. Changes that leave the result as it is and cost time: gradient
checkpointing (about a third more computing), a smaller batch with accumulation. Then, for a plan, those that train
something else: adapters instead of all weights, a 4-bit base, adapters in 16 bits, a lower rank, shorter sequences.

What both give up is exactness: they are closed forms, true within a few percent. Sizes are in bytes; GB means 10^9
bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import nn

from qlora_lab.lora import adapted_layers, output_head
from qlora_lab.loss import is_frozen_linear
from qlora_lab.machine import processes
from qlora_lab.machine.arguments import is_number
from qlora_lab.machine.errors import UserFacingError
from qlora_lab.machine.free_memory import free_memory
from qlora_lab.memory.closed_form import (
    Budget,
    ModelShape,
    adapter_activations,
    layer_activations,
    logit_bytes,
    predict_plan,
)
from qlora_lab.memory.plan import METHODS, TrainingPlan
from qlora_lab.models.inputs import embedding_weight

SMALLEST_RANK = 8  # below these no advice goes
SHORTEST = 128
RESERVE_GB = 1.5  # of a GPU, for what no formula counts: its driver, PyTorch's libraries, an allocator's gaps
SMALL_RESERVE = 0.1  # of a GPU of which a tenth is less


class SlowerStep(NamedTuple):
    """A step that gives the same result in less memory and more time; `change` says how it differs."""

    change: str
    batch_size: int
    accumulation: int
    checkpointing: bool


def slower_steps(batch_size: int, accumulation: int, checkpointing: bool) -> tuple[list[SlowerStep], ...]:
    """Three lists, cheapest first: with gradient checkpointing; with a smaller batch, large ones first; with both.

    The first and the last are empty where a step checkpoints already.
    """
    alone, smaller, both = [], [], []
    if not checkpointing:
        alone.append(SlowerStep("gradient checkpointing", batch_size, accumulation, True))
    for size in range(batch_size // 2, 0, -1):
        if batch_size % size == 0:  # then accumulation makes up for it exactly
            times = accumulation * batch_size // size
            step = SlowerStep(f"batch_size={size} with accumulation={times}", size, times, checkpointing)
            smaller.append(step)
            if not checkpointing:
                both.append(step._replace(change=f"gradient checkpointing and {step.change}", checkpointing=True))
    return alone, smaller, both


def _gb(count: int, decimals: int = 1) -> str:
    """In words; what is below a GB with two decimals."""
    return f"{count / 1e9:.{decimals if count >= 1e9 else 2}f} GB"


# -- a model that is there


class DoesNotFit(UserFacingError, RuntimeError):
    """The predicted peak of a step is larger than the memory that is free."""


@dataclass(frozen=True)
class StepMemory:
    """Predicted bytes of one training step, by category."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.gradients + self.optimizer + self.activations + self.logits

    @property
    def to_allocate(self) -> int:
        """What a step adds to the model that is in memory already."""
        return self.gradients + self.optimizer + self.activations + self.logits


def _nbytes(tensor: torch.Tensor) -> int:
    part = processes.local(tensor)
    return part.numel() * part.element_size()


def _compute_size(model: nn.Module) -> int:
    """Bytes of an element of the hidden states, which have the embeddings' dtype (4-bit layers do not tell)."""
    weight = embedding_weight(model)
    return weight.element_size() if weight is not None and weight.is_floating_point() else 4


def predict_step(
    model: nn.Module, batch_size: int, sequence_length: int, supervised_tokens: int, checkpointing: bool = False
) -> StepMemory:
    """Predict one step of training `model` (as it is: quantized or not, with adapters or not) with AdamW.

    The formulas are those of `closed_form`, for a batch with padding; the model says what is trained and how it is
    stored. With checkpointing one layer's activations are alive at a time, and a layer's input is kept for all of them.

    Of a model sharded between processes, this process's parts count, and its rows of the batch.

    Gradients, activations and logits count as if all were alive at once: with accumulation they are, without it the
    peak is somewhat lower.

    Args:
        supervised_tokens: tokens of the batch that have a label; only they get logits.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    trained_bytes = sum(map(_nbytes, trained))
    layers = [layer for _, layer in adapted_layers(model) if layer.rank]
    adapters = sum(_nbytes(t) for layer in layers for t in (layer.lora_A, layer.lora_B))
    seen = {id(t): t for t in (*model.parameters(), *model.buffers())}
    weights = sum(map(_nbytes, seen.values())) - adapters

    shape, size = ModelShape.of(getattr(model, "config", None)), _compute_size(model)
    norms = sum(p.numel() for p in trained if p.ndim == 1)  # a trained norm keeps its normalized input too
    per_token = shape.layers * layer_activations(shape, size, mask=sequence_length) + size * norms
    per_token += sum(
        adapter_activations([(layer.in_features, layer.rank)], size, layer.dropout > 0) for layer in layers
    )
    if checkpointing:
        per_token = per_token // max(1, shape.layers) + size * shape.layers * shape.hidden
    activations = batch_size * sequence_length * per_token
    head = output_head(model)
    logits = logit_bytes(supervised_tokens, shape.vocabulary, size, kept=head is None or not is_frozen_linear(head))
    return StepMemory(weights, adapters, trained_bytes, 2 * trained_bytes, activations, logits)


def check_fits(
    model: nn.Module,
    batch_size: int,
    sequence_length: int,
    supervised_tokens: int,
    checkpointing: bool,
    accumulation: int = 1,
    optimizer_bytes: int | None = None,
) -> StepMemory:
    """Predict a step and raise `DoesNotFit`, with what to change, where less memory is free than it needs.

    Args:
        accumulation: forward passes per optimizer step now; it decides nothing here, but the advice names the new one.
        optimizer_bytes: of the optimizer's state, where they are not AdamW's.
    """

    def predict(size: int, saving: bool) -> StepMemory:
        step = predict_step(model, size, sequence_length, -(-supervised_tokens * size // batch_size), saving)
        return step if optimizer_bytes is None else replace(step, optimizer=optimizer_bytes)

    predicted = predict(batch_size, checkpointing)
    device = next(model.parameters()).device
    free = free_memory(device)
    if predicted.to_allocate <= free:
        return predicted

    def advise(steps: list[SlowerStep], words: str) -> list[str]:
        """The first that fits, in words; nothing where none does."""
        for step in steps:
            need = predict(step.batch_size, step.checkpointing).to_allocate
            if need <= free:
                return [words.format(step.change, _gb(need, 2))]
        return []

    alone, smaller, both = slower_steps(batch_size, accumulation, checkpointing)
    as_many = "{} ({}, as many examples a step)"
    advice = advise(alone, "{}, which brings it to {}") + advise(smaller, as_many) or advise(both, as_many)
    rest = predicted.gradients + predicted.optimizer
    raise DoesNotFit(
        f"a step needs about {_gb(predicted.to_allocate, 2)} beside the model "
        f"(activations {_gb(predicted.activations, 2)}, logits {_gb(predicted.logits, 2)}, "
        f"gradients and optimizer {_gb(rest, 2)}), but {_gb(free, 2)} are free on {device}. Use "
        + (" or ".join(advice) if advice else "shorter examples or a smaller model")
    )


# -- a plan on paper


@dataclass(frozen=True)
class GpuFit:
    """Whether a budget fits a GPU; else the change to make and the budget after it (None where no change is enough).

    `reserve_gb` of the GPU are not the step's. `str` of it says so in a sentence or two. GB = 10^9 bytes.
    """

    fits: bool
    gpu_gb: float
    budget: Budget
    change: str | None = None
    changed: Budget | None = None
    reserve_gb: float = 0.0

    def __str__(self) -> str:
        need, peak = f"{self.budget.plan.method} needs {_gb(self.budget.peak)} at its peak", f"{self.gpu_gb:g} GB"
        if self.reserve_gb:
            peak += f" with {self.reserve_gb:g} GB in reserve"
        if self.fits:
            left = round((self.gpu_gb - self.reserve_gb) * 1e9) - self.budget.peak
            return f"{need}: it fits {peak}, and {_gb(left)} are left."
        if self.change is None:
            return f"{need}: it does not fit {peak}, and nothing tried here makes it fit. Use a smaller model."
        return f"{need}: it does not fit {peak}. Cheapest change: {self.change} ({_gb(self.changed.peak)})."


def _resized(plan: TrainingPlan, **changed) -> TrainingPlan:
    """The plan with another batch size or length, and labels in proportion."""
    batch, length = changed.get("batch_size", plan.batch_size), changed.get("sequence_length", plan.sequence_length)
    before = plan.batch_size * (plan.sequence_length - 1)
    labels = -(-plan.supervised_tokens * batch * (length - 1) // before)
    return replace(plan, supervised_tokens=labels, **changed)


def _same_result(plan: TrainingPlan) -> Iterator[tuple[str, TrainingPlan]]:
    """(in words, changed plan): checkpointing, a smaller batch, or both."""
    for step in chain(*slower_steps(plan.batch_size, plan.accumulation, plan.checkpointing != "none")):
        kind = "non-reentrant" if step.checkpointing and plan.checkpointing == "none" else plan.checkpointing
        option = replace(plan, checkpointing=kind)
        yield step.change, _resized(option, batch_size=step.batch_size, accumulation=step.accumulation)


def _changes(plan: TrainingPlan) -> Iterator[tuple[str, TrainingPlan]]:
    """(in words, changed plan), cheapest first."""
    yield from _same_result(plan)
    moments = None if plan.method == "full" else plan.moments_dtype
    last = [], plan
    for method in METHODS[METHODS.index(plan.method) + 1 :]:
        other = replace(plan, method=method, moments_dtype=moments)
        words = [{"lora": "LoRA", "qlora": "QLoRA"}[method] + f" with rank {plan.rank}"]
        yield words[0], other
        last = words, other
        for change, smaller in _same_result(other):
            yield f"{words[0]}, {change}", smaller
            last = [*words, change], smaller
    if plan.method == "qlora":
        for change, smaller in _same_result(plan):
            last = [change], smaller
    words, least = last  # everything so far at once; from here on less of the rest
    if least.dtype.itemsize < least.adapter_dtype.itemsize:
        moments = torch.bfloat16 if least.moments_dtype == least.adapter_dtype else least.moments_dtype
        least = replace(least, adapter_dtype=torch.bfloat16, moments_dtype=moments)
        words = [*words, "adapters in 16 bits"]
        yield ", ".join(words), least
    while least.rank > SMALLEST_RANK:
        rank = least.rank // 2
        least = replace(least, rank=rank, alpha=least.alpha * rank / least.rank)
        yield ", ".join([*words, f"rank {rank}"]), least
    words = [*words, f"rank {least.rank}"] if least.rank != plan.rank else words
    while least.sequence_length > SHORTEST:
        least = _resized(least, sequence_length=least.sequence_length // 2)
        yield ", ".join([*words, f"sequences of {least.sequence_length} tokens"]), least


def usual_reserve(gpu_gb: float) -> float:
    """GB of a GPU that are not the step's if nobody says how many: 1.5, of a small one a tenth."""
    return min(RESERVE_GB, SMALL_RESERVE * gpu_gb)


def fit_to_gpu(prediction: Budget, gpu_gb: float, reserve_gb: float | None = None) -> GpuFit:
    """Compare a budget with a GPU's memory, and look for the cheapest change where it does not fit.

    Args:
        prediction: from `predict_training`.
        gpu_gb: the GPU's memory in GB = 10^9 bytes. A card sold as "48 GB" has 51.5 of these, or, with its error
            correction on, a little over 48: the number on the box is the cautious one.
        reserve_gb: GB of it that are not the step's: a driver, PyTorch's libraries and an allocator's gaps commonly
            take 1 to 2. None: `usual_reserve`.

    Raises:
        ValueError: gpu_gb is not a positive number, or the reserve is not a number from 0 to below it.
    """
    if not (is_number(gpu_gb) and gpu_gb > 0):
        raise ValueError(f"gpu_gb {gpu_gb!r} is not allowed; give the memory in GB, for example 24")
    if reserve_gb is None:
        reserve_gb = usual_reserve(gpu_gb)
    if not (is_number(reserve_gb) and 0 <= reserve_gb < gpu_gb):
        raise ValueError(f"reserve_gb {reserve_gb!r} is not allowed; give GB from 0 to below the GPU's {gpu_gb:g}")
    most = (gpu_gb - reserve_gb) * 1e9
    if prediction.peak <= most:
        return GpuFit(True, gpu_gb, prediction, reserve_gb=reserve_gb)
    for change, plan in _changes(prediction.plan):
        changed = predict_plan(plan)
        if changed.peak <= most:
            return GpuFit(False, gpu_gb, prediction, change, changed, reserve_gb)
    return GpuFit(False, gpu_gb, prediction, reserve_gb=reserve_gb)
