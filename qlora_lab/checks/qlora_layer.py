"""Exercises of notebook 05: the layer's forward and backward pass, and the bytes of a step."""

import math

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


def full_training_bytes(parameters: int) -> int:
    return 12 * parameters


def qlora_forward(x, w, a, b, s):
    return x @ w.T + s * (x @ a.T) @ b.T


def qlora_backward(g, x, w, a, b, s):
    return g @ w + s * (g @ b) @ a, s * (g @ b).T @ x, s * g.T @ (x @ a.T)


def stored_bytes(elements: int, block_size: int, double_quant: bool) -> int:
    blocks = math.ceil(elements / block_size)
    scales = blocks + 4 * math.ceil(blocks / 256) + 4 if double_quant else 4 * blocks
    return math.ceil(elements / 2) + scales


def qlora_bytes(quantized: int, others: int, adapters: int, tokens: int, hidden: int, layers: int) -> float:
    return 4.127 / 8 * quantized + 2 * others + 12 * adapters + 2 * tokens * hidden * layers


def fits(peak: int, gib: float, reserve: float) -> bool:
    return peak <= gib * 2**30 - reserve * 10**9


def _fits_case(generator: torch.Generator, number: int):
    gib = (16.0, 24.0, 48.0, 80.0)[number % 4]
    peak = (gib * 1.02e9, gib * 1.073e9, gib * 1.01e9 - 1.5e9, gib * 2**30 + 1, gib * 1.05e9)[number % 5]
    return int(peak), gib, (0.0, 1.5)[number % 2]


def _any_card(generator: torch.Generator, number: int):
    """Peaks around what fits, as far from it as a tenth of the card."""
    gib, reserve = float(_numbers(generator, 4, 200, 1)[0]), (0.0, 0.5, 1.5)[number % 3]
    share = 0.1 * (2 * torch.rand((), generator=generator).item() - 1)
    return int((gib * 2**30 - reserve * 10**9) * (1 + share)), gib, reserve


EXERCISES = (
    Exercise(
        "full-training-bytes",
        lambda generator, number: (_numbers(generator, 1, 10**9, 1)[0],),
        full_training_bytes,
        (
            Misconception(
                "That is without gradients: each trained weight has one, in 16 bits here. Open hint 1.",
                lambda n: 10 * n,
            ),
            Misconception("AdamW keeps two moments for each weight, not one. Open hint 2.", lambda n: 8 * n),
            Misconception(
                "That is the bill for weights and gradients in 32 bits; here both have 16. Open hint 1.",
                lambda n: 16 * n,
            ),
            Misconception("These are the bits of one number; the answer is in bytes. Open hint 1.", lambda n: 96 * n),
        ),
    ),
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
    Exercise(
        "stored-bytes",
        lambda generator, number: (
            _numbers(generator, 1, 4000 * (number + 1), 1)[0],
            (64, 32, 128)[number % 3],
            bool(number % 2),
        ),
        stored_bytes,
        (
            Misconception(
                "These are the codes alone; every block has a scale. Open hint 1.", lambda n, size, double: -(-n // 2)
            ),
            Misconception(
                "The last block may be shorter, and it has a scale too: round the number of blocks up. Open hint 1.",
                lambda n, size, double: (
                    -(-n // 2) + ((n // size) + 4 * -(-(n // size) // 256) + 4 if double else 4 * (n // size))
                ),
            ),
            Misconception(
                "With double quantization the 8-bit scales have scales of their own (one for 256), and one offset. "
                "Open hint 2.",
                lambda n, size, double: -(-n // 2) + (1 if double else 4) * -(-n // size),
            ),
            Misconception(
                "The offset (the mean of the scales, four bytes for the whole tensor) is missing. Open hint 2.",
                lambda n, size, double: stored_bytes(n, size, double) - 4 * double,
            ),
            Misconception(
                "Two codes share a byte, and an odd one takes a byte to itself: round up. Open hint 1.",
                lambda n, size, double: stored_bytes(n, size, double) - n % 2,
            ),
            Misconception(
                "That counts a whole byte for each code; two share one. Open hint 1.",
                lambda n, size, double: stored_bytes(n, size, double) + n - -(-n // 2),
            ),
        ),
    ),
    Exercise(
        "qlora-bytes",
        lambda generator, number: tuple(
            _numbers(generator, 10, 10 ** (3 + number), 3) + _numbers(generator, 1, 512, 3)
        ),
        qlora_bytes,
        (
            Misconception(
                "Only adapters are trained here: the base has no gradients and no moments. Open hint 1.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, n) + 10 * q,
            ),
            Misconception(
                "4 bits are not all a quantized weight takes: its share of the scales makes it 4.127. Open hint 1.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, n) - 0.127 / 8 * q,
            ),
            Misconception(
                "Adapters cost more than their weights: a gradient (2 bytes) and two moments (8). Open hint 2.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, n) - 10 * p,
            ),
            Misconception(
                "The gradients of the adapters are missing. Open hint 2.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, n) - 2 * p,
            ),
            Misconception(
                "With checkpointing each layer keeps its input, so the activations count once per layer. Open hint 3.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, 1),
            ),
            Misconception(
                "These are bits for the quantized weights and bytes for the rest: divide by 8. Open hint 1.",
                lambda q, o, p, t, d, n: qlora_bytes(q, o, p, t, d, n) + (4.127 - 4.127 / 8) * q,
            ),
        ),
        tolerance=1e-9,
    ),
    Exercise(
        "fits",
        _fits_case,
        fits,
        (
            Misconception(
                "A card sold as so many gigabytes has GiB, 2^30 bytes each, which is 7 % more than GB. Open hint 1.",
                lambda peak, gib, reserve: peak <= (gib - reserve) * 10**9,
            ),
            Misconception(
                "The reserve is not subtracted: a driver and an allocator take some of the card. Open hint 2.",
                lambda peak, gib, reserve: peak <= gib * 2**30,
            ),
            Misconception(
                "The comparison is the wrong way round: it fits if the peak is at most what is left.",
                lambda peak, gib, reserve: not fits(peak, gib, reserve),
            ),
        ),
        draw_more=_any_card,
    ),
)
