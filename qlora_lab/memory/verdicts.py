"""Whether a training step fits a GPU, and if not, the change that costs least and makes it fit.

Changes are tried from cheap to dear. First those that leave the result as it is and cost time: gradient checkpointing
(about a third more computing), a smaller batch with accumulation. Then those that train something else: adapters
instead of all weights, a 4-bit base, a lower rank, shorter sequences.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qlora_lab.memory.closed_form import Budget, budget
from qlora_lab.memory.plan import METHODS, Plan

SMALLEST_RANK = 8  # below these no advice goes
SHORTEST = 128


@dataclass(frozen=True)
class Verdict:
    """Whether a budget fits; else the change to make and the budget after it (None where no change is enough).

    `str(verdict)` says it in a sentence or two. GB = 10^9 bytes.
    """

    fits: bool
    gpu_gb: float
    budget: Budget
    change: str | None = None
    changed: Budget | None = None

    def __str__(self) -> str:
        need, peak = f"{self.budget.plan.method} needs {_gb(self.budget.peak)} at its peak", f"{self.gpu_gb:g} GB"
        if self.fits:
            return f"{need}: it fits {peak}, with {_gb(round(self.gpu_gb * 1e9) - self.budget.peak)} left."
        if self.change is None:
            return f"{need}: it does not fit {peak}, and nothing tried here makes it fit. Use a smaller model."
        return f"{need}: it does not fit {peak}. Cheapest change: {self.change} ({_gb(self.changed.peak)})."


def verdict(prediction: Budget, gpu_gb: float) -> Verdict:
    """Compare a budget with a GPU's memory, and look for the cheapest change where it does not fit.

    Args:
        prediction: from `predict_training`.
        gpu_gb: memory that the step may take, in GB = 10^9 bytes. A card sold as "48 GB" has 51.5 of these; what a
            driver, PyTorch's libraries and an allocator take (commonly 1 to 2 GB) has to come out of that difference.

    Raises:
        ValueError: gpu_gb is not a positive number.
    """
    if isinstance(gpu_gb, bool) or not isinstance(gpu_gb, int | float) or not math.isfinite(gpu_gb) or gpu_gb <= 0:
        raise ValueError(f"gpu_gb {gpu_gb!r} is not allowed; give the memory in GB, for example 24")
    most = gpu_gb * 1e9
    if prediction.peak <= most:
        return Verdict(True, gpu_gb, prediction)
    for change, plan in _changes(prediction.plan):
        changed = budget(plan)
        if changed.peak <= most:
            return Verdict(False, gpu_gb, prediction, change, changed)
    return Verdict(False, gpu_gb, prediction)


def _changes(plan: Plan) -> Iterator[tuple[str, Plan]]:
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
    while least.rank > SMALLEST_RANK:
        rank = least.rank // 2
        least = replace(least, rank=rank, alpha=least.alpha * rank / least.rank)
        yield ", ".join([*words, f"rank {rank}"]), least
    words = [*words, f"rank {least.rank}"] if least.rank != plan.rank else words
    while least.sequence_length > SHORTEST:
        least = _resized(least, sequence_length=least.sequence_length // 2)
        yield ", ".join([*words, f"sequences of {least.sequence_length} tokens"]), least


def _same_result(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Checkpointing, a smaller batch, or both."""
    saving = [("", plan)]
    if plan.checkpointing == "none":
        saving.append(("gradient checkpointing", replace(plan, checkpointing="non-reentrant")))
        yield saving[1]
    for words, option in saving:
        for size in range(plan.batch_size // 2, 0, -1):
            if plan.batch_size % size == 0:  # then accumulation makes up for it exactly
                times = plan.accumulation * plan.batch_size // size
                change = f"batch_size={size} with accumulation={times}"
                changed = _resized(option, batch_size=size, accumulation=times)
                yield (f"{words} and {change}" if words else change), changed


def _resized(plan: Plan, **changed) -> Plan:
    """The plan with another batch size or length, and labels in proportion."""
    batch, length = changed.get("batch_size", plan.batch_size), changed.get("sequence_length", plan.sequence_length)
    before = plan.batch_size * (plan.sequence_length - 1)
    labels = -(-plan.supervised_tokens * batch * (length - 1) // before)
    return replace(plan, supervised_tokens=labels, **changed)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e9:.2f} GB"
