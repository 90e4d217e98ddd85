"""Which learning rate suits this model and these examples: a range test of a minute.

The rate rises from step to step by the same factor, from far too small to far too large (Smith 2017, "Cyclical Learning
Rates for Training Neural Networks", section 3.3). At first nothing happens; then the loss falls; then it breaks.

What is suggested lies a factor of `BELOW` under the rate at which nearly all of the fall was done: from there on a
higher rate brings nothing, or breaks, and a run stays at its rate for longer than one step.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from qlora_lab.machine.arguments import check_count, check_positive
from qlora_lab.memory.fit import check_fits
from qlora_lab.training.learning_rate import default_rate
from qlora_lab.training.loop import NonFiniteLoss, Run, prepared
from qlora_lab.training.optimizer import close_pages, device_bytes
from qlora_lab.training.run_folder import checkpoints
from qlora_lab.training.settings import Settings

BELOW = 2.0
NEARLY = 0.95
BROKEN = 1.5  # times the loss at the beginning: nothing is learned from there on


@dataclass(frozen=True)
class RateTest:
    """What a range test found.

    rates, losses: of each step; the loss before the step's update, in nats per supervised token. suggested: a peak
    learning rate. usual: the default for a base of this size.
    """

    rates: list[float] = field(repr=False)
    losses: list[float] = field(repr=False)
    suggested: float
    usual: float

    def __str__(self) -> str:
        said = f"learning rate {self.suggested:.1e} fits these examples"
        return f"{said}; the default for a base of this size is {self.usual:.1e}"


@dataclass(frozen=True)
class _Rising(Settings):
    """Settings whose rate rises from `lowest` at step 1 to `learning_rate` at the last, by the same factor."""

    lowest: float = 1e-6

    def rate(self, step: int) -> float:
        return self.lowest * (self.learning_rate / self.lowest) ** ((step - 1) / max(1, self.steps - 1))


def find_rate(
    model: nn.Module,
    tokenizer,
    examples: Iterable,
    *,
    lowest: float = 1e-5,
    highest: float = 0.3,
    steps: int = 60,
    on_step: Callable | None = None,
    **settings,
) -> RateTest:
    """Train for `steps` steps at rising rates, and say which rate to train at. The model is afterwards what it was.

    Args:
        examples: as `finetune` takes them.
        lowest, highest: the rates of the first and the last step. The test ends sooner where the loss breaks.
        on_step: called after every step with its `StepRecord`.
        **settings: fields of `Settings`; those of the schedule (steps, learning_rate, warmup) have no meaning here.

    Returns:
        `RateTest`. To the bit, model, gradients and random numbers are left as they were.

    Raises:
        ValueError: rates that do not rise, too few steps, a loss that never fell; and as `finetune`.
        DoesNotFit: as `finetune`.
    """
    check_positive("lowest", lowest), check_positive("highest", highest), check_count("steps", steps, 10)
    if not lowest < highest:
        raise ValueError(f"the rate should rise, and goes from {lowest:g} to {highest:g}; give lowest below highest")
    plain = Settings.of(**settings)
    chosen = _Rising(**{**vars(plain), "steps": steps, "learning_rate": highest}, lowest=lowest)
    chosen = replace(chosen, validate_every=None, patience=None)
    with torch.inference_mode(False), torch.enable_grad():
        parameters, _, batches = prepared(model, tokenizer, examples, chosen)
        length, supervised = batches.longest()
        rows = len(batches[0].input_ids)
        beside = device_bytes(parameters.values(), chosen, None)
        beside += sum(p.numel() * p.element_size() for p in parameters.values())
        check = chosen.checkpointing != "none"
        check_fits(model, rows, length, supervised * rows, check, chosen.accumulation, optimizer_bytes=beside)
        rates, losses = _tried(model, parameters, batches, chosen, on_step or (lambda record: None))
    return RateTest(rates, losses, suggestion(rates, losses), default_rate(model))


def _tried(model, parameters, batches, chosen: _Rising, on_step) -> tuple[list[float], list[float]]:
    """Rates and losses up to where the loss breaks; the model is put back."""
    values = {name: p.detach().clone() for name, p in parameters.items()}
    gradients = {name: p.grad for name, p in parameters.items()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    for parameter in parameters.values():
        parameter.grad = None
    run = Run(model, parameters, batches, chosen, None, {}, None)
    rates, losses = [], []
    try:
        with checkpoints.own_randomness(chosen.seed, run.device), run.training_mode():
            for step in range(1, chosen.steps + 1):
                try:
                    record = run.step(step)
                except NonFiniteLoss:
                    break
                rates.append(record.learning_rate)
                losses.append(record.loss)
                on_step(record)
                if record.loss > BROKEN * losses[0]:
                    break
    finally:
        close_pages(run.optimizer)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(values[name])
                parameter.grad = gradients[name]
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, mode in modes:
            module.training = mode
    return rates, losses


def suggestion(rates: list[float], losses: list[float]) -> float:
    """Where the running mean of the losses had fallen by `NEARLY` of all that it fell, divided by `BELOW`; two digits.

    Raises:
        ValueError: the losses never fell.
    """
    mean, means = None, []
    for loss in losses:
        mean = loss if mean is None else 0.7 * mean + 0.3 * loss
        means.append(mean)
    if not means or min(means) == means[0]:
        raise ValueError(
            "the loss fell at no rate, so the test says nothing; begin with a lower one (lowest=), or look at what is "
            "learned of the examples"
        )
    wanted = means[0] - NEARLY * (means[0] - min(means))
    return float(f"{next(rate for rate, mean in zip(rates, means, strict=True) if mean <= wanted) / BELOW:.1e}")
