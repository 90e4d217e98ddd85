"""Exercises of notebook 03: multiplying with a low-rank update, differentiating, merging and truncating it."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def _numbers(generator: torch.Generator, low: int, high: int, count: int) -> list[int]:
    return torch.randint(low, high, (count,), generator=generator).tolist()


def _normal(generator: torch.Generator, *shapes: tuple) -> list[torch.Tensor]:
    return [torch.randn(shape, generator=generator) for shape in shapes]


def lora_forward(x, w, a, b, alpha, use_rslora):
    rank = a.shape[0]
    return x @ w.T + alpha / (math.sqrt(rank) if use_rslora else rank) * (x @ a.T @ b.T)


def _forward_case(generator: torch.Generator, number: int):
    """x (batch, n, in), w (out, in), a (r, in), b (out, r). The first case is square."""
    batch, n, n_in, n_out, r = _numbers(generator, 2, 7 + 2 * number, 5)
    if number == 0:
        batch, n, n_in, n_out, r = 2, 6, 6, 6, 6
    tensors = _normal(generator, (batch, n, n_in), (n_out, n_in), (r, n_in), (n_out, r))
    return (*tensors, 1.5 + number, bool(number % 2))


def _forward_scaled(scale):
    return lambda x, w, a, b, alpha, rs: x @ w.T + scale(a, b, alpha, rs) * (x @ a.T @ b.T)


def _square(a, b) -> bool:
    return a.shape[0] == a.shape[1] == b.shape[0]


def _fit(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> bool:
    """Whether x A^T B^T can be added to x W^T."""
    return (b.shape[0], b.shape[1], a.shape[1]) == (w.shape[0], a.shape[0], w.shape[1])


def adapter_gradients(gradient, a, b, s):
    return s * b.T @ gradient, s * gradient @ a.T


def _gradients_case(generator: torch.Generator, number: int):
    n_in, n_out, r = _numbers(generator, 2, 8 + 3 * number, 3)
    if number == 0:
        n_in = n_out = r = 5
    gradient, a, b = _normal(generator, (n_out, n_in), (r, n_in), (n_out, r))
    return gradient, a, torch.zeros_like(b) if number == 3 else b, 0.5 + number


def _turned(gradient, a, b, s):
    """Multiplied without transposing, which only square matrices allow; else as it should be."""
    if not _square(a, b):
        return adapter_gradients(gradient, a, b, s)
    return s * b @ gradient, s * gradient @ a


def merge_adapter(w, a, b, alpha):
    return (w.float() + alpha / a.shape[0] * (b @ a)).to(w.dtype)


def _merge_case(generator: torch.Generator, number: int):
    """Whole numbers over a power of two, so that every order of float32 operations gives the same bits."""
    r = (1, 2, 4, 8)[number % 4]
    n_in, n_out = (r, r) if number == 3 else _numbers(generator, 3, 40, 2)
    w = (torch.randn(n_out, n_in, generator=generator) * 64).round() / 256
    a, b = (torch.randint(-511, 512, shape, generator=generator) / 1024 for shape in ((r, n_in), (n_out, r)))
    return (
        w.to((torch.bfloat16, torch.float16, torch.bfloat16, torch.float32)[number % 4]),
        a,
        b,
        (2.0, 0.5, 2.0, 4.0)[number % 4] * r,
    )


def best_rank_r(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank]


def _matrix_case(generator: torch.Generator, number: int):
    rows, columns = _numbers(generator, 4, 12 + 3 * number, 2) if number else (8, 8)
    rank = 1 + _numbers(generator, 0, min(rows, columns) - 2, 1)[0]
    return torch.randn(rows, columns, generator=generator), rank


def _svd_variant(build):
    def answer(matrix, rank):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return build(u, s, vh, rank, matrix)

    return answer


EXERCISES = (
    Exercise(
        "lora-forward",
        _forward_case,
        lora_forward,
        (
            Misconception(
                "The adapter is multiplied with alpha; the factor is alpha / r. Open hint 2.",
                _forward_scaled(lambda a, b, alpha, rs: alpha),
            ),
            Misconception("The factor is missing. Open hint 2.", _forward_scaled(lambda a, b, alpha, rs: 1.0)),
            Misconception(
                "use_rslora is ignored: with it the factor is alpha / sqrt(r). Open hint 2.",
                _forward_scaled(lambda a, b, alpha, rs: alpha / len(a)),
            ),
            Misconception(
                "The two factors are exchanged: plain LoRA has alpha / r, rsLoRA alpha / sqrt(r). Open hint 2.",
                _forward_scaled(lambda a, b, alpha, rs: alpha / (len(a) if rs else math.sqrt(len(a)))),
            ),
            Misconception(
                "r is the number of rows of A, (r, in); you divide by its number of columns. Open hint 2.",
                _forward_scaled(lambda a, b, alpha, rs: alpha / (math.sqrt(a.shape[1]) if rs else a.shape[1])),
            ),
            Misconception(
                "The factor belongs to the adapter only; you scale the base with it as well. Open hint 2.",
                lambda x, w, a, b, alpha, rs: (
                    lora_forward(x, w, a, b, alpha, rs)
                    + (alpha / (math.sqrt(len(a)) if rs else len(a)) - 1) * (x @ w.T)
                ),
            ),
            Misconception(
                "A and B are multiplied in the wrong order: the product is B A, and x meets A first. With square "
                "matrices nothing complains. Open hint 1.",
                lambda x, w, a, b, alpha, rs: (
                    lora_forward(x, w, b, a, alpha, rs) if _square(a, b) else lora_forward(x, w, a, b, alpha, rs)
                ),
            ),
            Misconception(
                "A weight is (out, in), so x needs its transpose. With square matrices nothing complains. Open hint 1.",
                lambda x, w, a, b, alpha, rs: (
                    lora_forward(x, w.T, a.T, b.T, alpha, rs) if _square(a, b) else lora_forward(x, w, a, b, alpha, rs)
                ),
            ),
            *(
                Misconception(
                    "One of A and B is not transposed: x meets the transpose of each. With square matrices nothing "
                    "complains. Open hint 1.",
                    lambda x, w, a, b, alpha, rs, turned=turned: (
                        lora_forward(x, w, *turned(a, b), alpha, rs) if _fit(*turned(a, b), w) else None
                    ),
                )
                for turned in (lambda a, b: (a.T, b), lambda a, b: (a, b.T))
            ),
        ),
        tolerance=1e-5,
    ),
    Exercise(
        "adapter-gradients",
        _gradients_case,
        adapter_gradients,
        (
            Misconception(
                "The factor s is missing: W = W0 + s B A, so both gradients carry it. Open hint 2.",
                lambda g, a, b, s: adapter_gradients(g, a, b, 1.0),
            ),
            Misconception(
                "dA and dB are swapped: return A's first. Open hint 1.",
                lambda g, a, b, s: adapter_gradients(g, a, b, s)[::-1],
            ),
            Misconception(
                "These are the transposes: a gradient has the shape of what it belongs to, A (r, in) and B (out, r). "
                "Open hint 1.",
                lambda g, a, b, s: tuple(t.T.contiguous() for t in adapter_gradients(g, a, b, s)),
            ),
            Misconception(
                "A transpose is missing: dA = s B^T G and dB = s G A^T. With square matrices nothing complains. "
                "Open hint 2.",
                _turned,
            ),
            Misconception(
                "dA does not depend on B in your answer. For the product B A, A's gradient passes through B. "
                "Open hint 2.",
                lambda g, a, b, s: (s * a, s * g @ a.T),
            ),
        ),
        tolerance=1e-5,
    ),
    Exercise(
        "merge-adapter",
        _merge_case,
        merge_adapter,
        (
            Misconception(
                "The factor alpha / r is missing. Open hint 1.",
                lambda w, a, b, alpha: merge_adapter(w, a, b, len(a)),
            ),
            Misconception(
                "You multiply with alpha instead of alpha / r. Open hint 1.",
                lambda w, a, b, alpha: merge_adapter(w, a, b, alpha * len(a)),
            ),
            Misconception(
                "The update is rounded to the weight's dtype before the sum and the sum once more: two roundings where "
                "one is enough. Add in float32. Open hint 2.",
                lambda w, a, b, alpha: w + (alpha / len(a) * (b @ a)).to(w.dtype),
            ),
            Misconception(
                "A and B are rounded to the weight's dtype before they are multiplied. Compute in float32 and round "
                "once, at the end. Open hint 2.",
                lambda w, a, b, alpha: w + alpha / len(a) * (b.to(w.dtype) @ a.to(w.dtype)),
            ),
            Misconception(
                "The merged weight should have the dtype of the base, so that it costs no more. Open hint 2.",
                lambda w, a, b, alpha: w.float() + alpha / len(a) * (b @ a),
            ),
            Misconception(
                "That takes the adapter out (unmerge). Open hint 1.",
                lambda w, a, b, alpha: merge_adapter(w, a, b, -alpha),
            ),
        ),
    ),
    Exercise(
        "best-rank-r",
        _matrix_case,
        best_rank_r,
        (
            Misconception(
                "That keeps the smallest singular values; they come sorted from large to small. Open hint 2.",
                _svd_variant(lambda u, s, vh, r, m: u[:, -r:] * s[-r:] @ vh[-r:]),
            ),
            Misconception(
                "The singular values are missing: without them all directions count the same. Open hint 2.",
                _svd_variant(lambda u, s, vh, r, m: u[:, :r] @ vh[:r]),
            ),
            Misconception(
                "The singular values are squared. Their squares are the energy; the matrix has them once. Open hint 2.",
                _svd_variant(lambda u, s, vh, r, m: u[:, :r] * s[:r].square() @ vh[:r]),
            ),
            Misconception(
                "torch.linalg.svd returns the third factor transposed already: take its first r rows as they are. "
                "With a square matrix nothing complains. Open hint 2.",
                _svd_variant(lambda u, s, vh, r, m: u[:, :r] * s[:r] @ vh.T[:r]),
            ),
            Misconception(
                "That is one singular value too few. Open hint 2.",
                _svd_variant(lambda u, s, vh, r, m: u[:, : r - 1] * s[: r - 1] @ vh[: r - 1]),
            ),
            Misconception(
                "That cuts off rows or columns. Such a matrix has rank r, but is not the nearest one. Open hint 1.",
                lambda m, r: torch.cat([m[:, :r], torch.zeros_like(m[:, r:])], 1),
            ),
            Misconception(
                "That cuts off rows or columns. Such a matrix has rank r, but is not the nearest one. Open hint 1.",
                lambda m, r: torch.cat([m[:r], torch.zeros_like(m[r:])]),
            ),
        ),
        tolerance=1e-4,
    ),
)
