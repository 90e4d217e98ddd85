"""Exercises of notebook 05 about the layer: its forward and its backward pass."""

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def _numbers(generator: torch.Generator, low: int, high: int, count: int) -> list[int]:
    return torch.randint(low, high, (count,), generator=generator).tolist()


def _layer(generator: torch.Generator, number: int):
    """x (n, in), w (out, in), a (r, in), b (out, r), s. The first case is square, where a missing transpose runs."""
    n, n_in, n_out, r = _numbers(generator, 1, 9 + 4 * number, 4)
    if number == 0:
        n_in = n_out = r = n = 6
    x, w, a, b = (
        torch.randn(shape, generator=generator) for shape in ((n, n_in), (n_out, n_in), (r, n_in), (n_out, r))
    )
    return x, w, a, b, 0.5 + number


def _with_gradient(generator: torch.Generator, number: int):
    x, w, a, b, s = _layer(generator, number)
    return torch.randn(len(x), len(w), generator=generator), x, w, a, b, s


def _fit(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether x A^T B^T can be added to x W^T."""
    return (b.shape[0], b.shape[1], a.shape[1]) == (w.shape[0], a.shape[0], w.shape[1])


def qlora_forward(x, w, a, b, s):
    return x @ w.T + s * (x @ a.T) @ b.T


def qlora_backward(g, x, w, a, b, s):
    return g @ w + s * (g @ b) @ a, s * (g @ b).T @ x, s * g.T @ (x @ a.T)


EXERCISES = (
    Exercise(
        "qlora-forward",
        _layer,
        qlora_forward,
        (
            Misconception(
                "The adapter's share is there without its factor s = alpha / r. Open hint 2.",
                lambda x, w, a, b, s: qlora_forward(x, w, a, b, 1.0),
            ),
            Misconception(
                "s multiplies the adapter's share only; you scale the base with it. Open hint 2.",
                lambda x, w, a, b, s: s * (x @ w.T + (x @ a.T) @ b.T),
            ),
            Misconception(
                "The adapter is missing: this is the base alone. Open hint 1.", lambda x, w, a, b, s: x @ w.T
            ),
            Misconception(
                "The weight is (out, in), so the product needs its transpose. With a square weight nothing complains. "
                "Open hint 1.",
                lambda x, w, a, b, s: x @ w + s * (x @ a.T) @ b.T if w.shape[0] == w.shape[1] else x @ w.T,
            ),
            Misconception(
                "A and B are in the wrong order, or not transposed: x goes through A first, then B. Open hint 1.",
                lambda x, w, a, b, s: x @ w.T + s * (x @ a @ b if a.shape[0] == a.shape[1] == b.shape[0] else 0),
            ),
            Misconception(
                "A and B are in the wrong order, or not transposed: x goes through A first, then B. Open hint 1.",
                lambda x, w, a, b, s: x @ w.T + s * (x @ b.T @ a.T if a.shape[0] == a.shape[1] == b.shape[0] else 0),
            ),
            *(
                Misconception(
                    "One of A and B is not transposed: x meets the transpose of each. With square matrices nothing "
                    "complains. Open hint 1.",
                    lambda x, w, a, b, s, turned=turned: (
                        qlora_forward(x, w, *turned(a, b), s) if _fit(*turned(a, b), w) else None
                    ),
                )
                for turned in (lambda a, b: (a.T, b), lambda a, b: (a, b.T))
            ),
        ),
        tolerance=1e-5,
    ),
    Exercise(
        "qlora-backward",
        _with_gradient,
        qlora_backward,
        (
            Misconception(
                "dx has only the base's share; x went through the adapter too. Open hint 1.",
                lambda g, x, w, a, b, s: (g @ w, *qlora_backward(g, x, w, a, b, s)[1:]),
            ),
            Misconception(
                "The factor s is missing in dA and dB: it is part of what A and B were multiplied with. Open hint 2.",
                lambda g, x, w, a, b, s: (qlora_backward(g, x, w, a, b, s)[0], (g @ b).T @ x, g.T @ (x @ a.T)),
            ),
            Misconception(
                "The factor s is missing everywhere. Open hint 2.",
                lambda g, x, w, a, b, s: qlora_backward(g, x, w, a, b, 1.0),
            ),
            Misconception(
                "dA and dB are transposed: a gradient has the shape of what it belongs to, A (r, in) and B (out, r). "
                "Open hint 2.",
                lambda g, x, w, a, b, s: (
                    g @ w + s * (g @ b) @ a,
                    s * x.T @ (g @ b),
                    s * (x @ a.T).T @ g,
                ),
            ),
            Misconception(
                "dx uses the weight transposed: y = x W^T, so dx = g W. Open hint 1.",
                lambda g, x, w, a, b, s: (
                    (g @ w.T if w.shape[0] == w.shape[1] else g @ w) + s * (g @ b) @ a,
                    *qlora_backward(g, x, w, a, b, s)[1:],
                ),
            ),
            Misconception(
                "dA and dB are swapped: return dx, dA, dB.",
                lambda g, x, w, a, b, s: tuple(qlora_backward(g, x, w, a, b, s)[i] for i in (0, 2, 1)),
            ),
        ),
        tolerance=1e-5,
    ),
)
