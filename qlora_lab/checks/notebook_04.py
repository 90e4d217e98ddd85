"""Exercises of notebook 04 about AdamW: its step, and what it remembers."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def _numbers(generator: torch.Generator, low: int, high: int, count: int) -> list[int]:
    return torch.randint(low, high, (count,), generator=generator).tolist()


def state_bytes(parameters: int, bits: int) -> int:
    if bits == 8:
        return 2 * (parameters + 4 * math.ceil(parameters / 256))
    return 2 * parameters * bits // 8


def _state_case(generator: torch.Generator, number: int):
    """In 8 bits, one has whole blocks, after which none begins, and one less than half of a last one."""
    blocks, rest, parameters = (_numbers(generator, *limits, 1)[0] for limits in ((2, 4000), (1, 129), (300, 10**6)))
    parameters = {4: 256 * blocks, 1: 256 * blocks + rest}.get(number, parameters)
    return parameters, (32, 8, 16)[number % 3]


def adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    p = p * (1 - lr * weight_decay)
    m = m + (1 - beta1) * (gradient - m)
    v = beta2 * v + (1 - beta2) * gradient**2
    root = (v / (1 - beta2**step)).sqrt()
    return p - lr / (1 - beta1**step) * m / (root + eps), m, v


def _coupled(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    return adamw_step(p, gradient + weight_decay * p, m, v, step, lr, beta1, beta2, eps, 0.0)


def _uncorrected(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    _, m, v = adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay)
    return p * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps), m, v


def _eps_inside(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    _, m, v = adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay)
    root = (v / (1 - beta2**step) + eps).sqrt()
    return p * (1 - lr * weight_decay) - lr / (1 - beta1**step) * m / root, m, v


def _corrected_by(first, second, p, gradient, m, v, lr, beta1, beta2, eps, weight_decay):
    """With powers of its own in each correction; an infinite one corrects nothing."""
    _, m, v = adamw_step(p, gradient, m, v, 1, lr, beta1, beta2, eps, weight_decay)
    root = (v / (1 - beta2**second)).sqrt() + eps
    return p * (1 - lr * weight_decay) - lr / (1 - beta1**first) * m / root, m, v


def _corrected_kept(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    p, m, v = adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay)
    return p, m / (1 - beta1**step), v / (1 - beta2**step)


def _no_root(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    _, m, v = adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay)
    return p * (1 - lr * weight_decay) - lr / (1 - beta1**step) * m / (v / (1 - beta2**step) + eps), m, v


def _no_rate_on_decay(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    return adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay / lr)


def _step_case(generator: torch.Generator, number: int):
    n = 3 + 5 * number
    p, gradient, m = (torch.randn(n, generator=generator) for _ in range(3))
    v = torch.rand(n, generator=generator) * 1e-2
    beta1, beta2, decay = (0.9, 0.8, 0.95)[number % 3], (0.99, 0.999)[number // 2 % 2], (0.1, 0.01, 0.05)[number % 3]
    return p, gradient, m, v, 1 + number, 10 ** -(1 + number % 3), beta1, beta2, (1e-8, 1e-3)[number % 2], decay


EXERCISES = (
    Exercise(
        "state-bytes",
        _state_case,
        state_bytes,
        (
            Misconception(
                "AdamW keeps two moments, m and v; that is one. Open hint 1.", lambda n, bits: state_bytes(n, bits) // 2
            ),
            Misconception(
                "In 8 bits each block of 256 numbers has a scale of four bytes, for both moments. Open hint 2.",
                lambda n, bits: 2 * n * bits // 8,
            ),
            Misconception("These are bits; a byte has eight. Open hint 1.", lambda n, bits: 2 * n * bits),
            Misconception(
                "The last block of 256 may be shorter and has a scale all the same: round up. Open hint 2.",
                lambda n, bits: 2 * (n + 4 * (n // 256)) if bits == 8 else state_bytes(n, bits),
            ),
            Misconception(
                "One is added to a number of blocks that leaves no rest: `n // 256 + 1` is one too many there; "
                "-(-n // 256) rounds up. Open hint 2.",
                lambda n, bits: 2 * (n + 4 * (n // 256 + 1)) if bits == 8 else state_bytes(n, bits),
            ),
            Misconception(
                "Only in 8 bits are there scales; 16 and 32 bits hold the numbers as they are. Open hint 2.",
                lambda n, bits: 2 * (n * bits // 8 + 4 * math.ceil(n / 256)),
            ),
            Misconception(
                "Each moment has blocks of its own, so round up for each. Open hint 2.",
                lambda n, bits: 2 * n + 4 * math.ceil(2 * n / 256) if bits == 8 else state_bytes(n, bits),
            ),
            Misconception(
                "There are scales for both moments; you count them for one. Open hint 2.",
                lambda n, bits: 2 * n + 4 * math.ceil(n / 256) if bits == 8 else state_bytes(n, bits),
            ),
        ),
    ),
    Exercise(
        "adamw-step",
        _step_case,
        adamw_step,
        (
            Misconception(
                "Both moments start at zero and are too small at first; their corrections by 1 - beta^step are "
                "missing. Open hint 2.",
                _uncorrected,
            ),
            Misconception(
                "Weight decay goes into the gradient here, which is Adam with L2. The W in AdamW means that the weight "
                "is made smaller by itself, beside the gradient. Open hint 1.",
                _coupled,
            ),
            Misconception(
                "m and v come back corrected. They are running means that go on with the next step: correct them only "
                "where the weight is moved. Open hint 2.",
                _corrected_kept,
            ),
            Misconception(
                "beta1 and beta2 have changed places: beta1 belongs to m, beta2 to v. Open hint 2.",
                lambda p, g, m, v, step, lr, beta1, beta2, eps, decay: adamw_step(
                    p, g, m, v, step, lr, beta2, beta1, eps, decay
                ),
            ),
            Misconception(
                "The weight decay is missing: the W in AdamW. Open hint 1.",
                lambda p, g, m, v, step, lr, beta1, beta2, eps, decay: adamw_step(
                    p, g, m, v, step, lr, beta1, beta2, eps, 0.0
                ),
            ),
            *(
                Misconception(
                    "Only one of the two moments is corrected; both start at zero. Open hint 2.",
                    lambda p, g, m, v, step, lr, beta1, beta2, eps, decay, powers=powers: _corrected_by(
                        *powers(step), p, g, m, v, lr, beta1, beta2, eps, decay
                    ),
                )
                for powers in (lambda step: (step, math.inf), lambda step: (math.inf, step))
            ),
            Misconception(
                "The corrections are those of the first step at every step: 1 - beta**step. Open hint 2.",
                lambda p, g, m, v, step, *rest: _corrected_by(1, 1, p, g, m, v, *rest),
            ),
            Misconception("eps is added after the square root, not inside it. Open hint 3.", _eps_inside),
            Misconception("m is divided by the square root of v, not by v. Open hint 3.", _no_root),
            Misconception(
                "The decay is lr * weight_decay, so that a schedule of the learning rate scales both. Open hint 1.",
                _no_rate_on_decay,
            ),
            Misconception(
                "Return all three: the new p, m and v, in this order.",
                lambda *arguments: adamw_step(*arguments)[0],
            ),
        ),
        tolerance=1e-5,
    ),
)
