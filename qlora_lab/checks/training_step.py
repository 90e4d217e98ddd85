"""Exercises of notebook 06 about a training step: gradients of several batches made one, and the learning rate."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def _number(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=generator))


# Accumulation


def _micro_batches(generator: torch.Generator, number: int):
    """Gradients of mean losses, and the numbers of supervised tokens they are means over."""
    shape = ((3,), (4, 4), (2, 5))[number % 3]
    count = 2 + number % 4
    gradients = [torch.randn(shape, generator=generator) for _ in range(count)]
    tokens = [_number(generator, 1, 40) * (1 + i) for i in range(count)]
    return gradients, tokens


def accumulate(gradients, tokens):
    return sum(g * n for g, n in zip(gradients, tokens, strict=True)) / sum(tokens)


# Learning rate


def _schedule(generator: torch.Generator, number: int):
    steps = 20 + _number(generator, 0, 200)
    warmup = 2 + _number(generator, 0, 8)
    step = (1, warmup, warmup + 1, steps, warmup - 1, steps - 1, (steps + warmup) // 2, steps // 3 + warmup)[number % 8]
    return step, steps, 10.0 ** -(1 + number % 4), warmup


def learning_rate(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / (steps - warmup)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def _to(floor: float, shape):
    """The schedule that falls to `floor` times the peak as `shape`, from 1 to 0, says."""

    def rate(step, steps, peak, warmup):
        if step <= warmup:
            return peak * step / warmup
        return peak * (floor + (1 - floor) * shape((step - warmup) / (steps - warmup)))

    return rate


def _after_warmup(rate):
    """The warm-up as it should be, and after it `rate` of the peak and the progress."""

    def answer(step, steps, peak, warmup):
        return peak * step / warmup if step <= warmup else rate(peak, (step - warmup) / (steps - warmup))

    return answer


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


EXERCISES = (
    Exercise(
        "accumulate",
        _micro_batches,
        accumulate,
        (
            Misconception(
                "That is the mean of the means. A token of a micro-batch with few labels then counts more than others. "
                "Open hint 1.",
                lambda gradients, tokens: sum(gradients) / len(gradients),
            ),
            Misconception(
                "That is the sum of the means, too large by about the number of micro-batches. Open hint 1.",
                lambda gradients, tokens: sum(gradients),
            ),
            Misconception(
                "The weights are right, but they must be divided by the tokens of the whole step, not by the number of "
                "micro-batches. Open hint 2.",
                lambda gradients, tokens: accumulate(gradients, tokens) * sum(tokens) / len(tokens),
            ),
            Misconception(
                "That is the gradient of the summed loss: divide by the tokens of the whole step. Open hint 2.",
                lambda gradients, tokens: accumulate(gradients, tokens) * sum(tokens),
            ),
            Misconception(
                "The weights are turned round: a mean over few tokens counts little. Open hint 1.",
                lambda gradients, tokens: (
                    sum(g / n for g, n in zip(gradients, tokens, strict=True)) / sum(1 / n for n in tokens)
                ),
            ),
        ),
        tolerance=1e-5,
    ),
    Exercise(
        "learning-rate",
        _schedule,
        learning_rate,
        (
            Misconception(
                "It falls to zero; a tenth of the peak is what should be left. Open hint 3.", _to(0.0, _cosine)
            ),
            Misconception(
                "There is no warm-up: the first steps, when the optimizer knows no moments yet, take the full rate. "
                "Open hint 1.",
                lambda step, steps, peak, warmup: (
                    peak * (0.1 + 0.9 * _cosine(max(0, step - warmup) / (steps - warmup)))
                ),
            ),
            Misconception(
                "It falls along a straight line; a cosine is wanted. Open hint 2.",
                _to(0.1, lambda progress: 1 - progress),
            ),
            Misconception(
                "After the warm-up the cosine must begin at its start: progress counts from the end of the warm-up. As "
                "it is the rate jumps there. Open hint 2.",
                lambda step, steps, peak, warmup: (
                    peak * step / warmup if step <= warmup else peak * (0.1 + 0.9 * _cosine(step / steps))
                ),
            ),
            Misconception(
                "A tenth of the peak is added to a cosine that falls by the whole of it: the rate jumps above the peak "
                "after the warm-up. Let the cosine fall by 0.9 of it. Open hint 3.",
                _after_warmup(lambda peak, progress, floor=0.1: peak * (floor + _cosine(progress))),
            ),
            Misconception(
                "The cosine falls to zero and is cut off at a tenth of the peak; it has to fall *to* a tenth, without "
                "a kink. Open hint 3.",
                _after_warmup(lambda peak, progress: peak * max(0.1, _cosine(progress))),
            ),
            Misconception(
                "The cosine is spread over all steps, and only those after the warm-up are left: at the last step it "
                "has not reached its end. Divide by steps - warmup. Open hint 2.",
                lambda step, steps, peak, warmup: (
                    peak * step / warmup if step <= warmup else peak * (0.1 + 0.9 * _cosine((step - warmup) / steps))
                ),
            ),
            Misconception(
                "Steps count from 1: the first one would have rate zero and teach nothing. Open hint 1.",
                lambda step, steps, peak, warmup: (
                    peak * (step - 1) / warmup if step <= warmup else learning_rate(step, steps, peak, warmup)
                ),
            ),
            Misconception(
                "The cosine is used as it is, from 1 to -1: the rate would become negative. Open hint 2.",
                _to(0.1, lambda progress: math.cos(math.pi * progress)),
            ),
            Misconception(
                "That is a quarter of a cosine, which falls most steeply at its end; half a period is wanted. "
                "Open hint 2.",
                _to(0.1, lambda progress: math.cos(math.pi / 2 * progress)),
            ),
        ),
        tolerance=1e-9,
    ),
)
