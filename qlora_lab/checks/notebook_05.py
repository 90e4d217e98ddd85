"""Exercises of notebook 05: the layer's two passes, the bytes of a 4-bit tensor and of a step, and whether they fit."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, draw_integers, draw_normal, edits


def qlora_forward(x, w, a, b, s):
    return x @ w.T + s * (x @ a.T) @ b.T


def _layer(generator: torch.Generator, number: int):
    """x (n, in), w (out, in), a (r, in), b (out, r), s. The first case is square, where a missing transpose runs."""
    n, n_in, n_out, r = draw_integers(generator, 1, 9 + 4 * number, 4)
    if number == 0:
        n_in = n_out = r = n = 6
    return (*draw_normal(generator, (n, n_in), (n_out, n_in), (r, n_in), (n_out, r)), 0.5 + number)


def qlora_backward(g, x, w, a, b, s):
    dx = g @ w + s * (g @ b) @ a
    da = s * (g @ b).T @ x
    db = s * g.T @ (x @ a.T)
    return dx, da, db


def _with_gradient(generator: torch.Generator, number: int):
    x, w, a, b, s = _layer(generator, number)
    return *draw_normal(generator, (len(x), len(w))), x, w, a, b, s


def full_training_bytes(parameters: int) -> int:
    return 12 * parameters


def stored_bytes(elements: int, block_size: int, double_quant: bool) -> int:
    codes = math.ceil(elements / 2)
    blocks = math.ceil(elements / block_size)
    groups = math.ceil(blocks / 256)
    scales = blocks + 4 * groups + 4 if double_quant else 4 * blocks
    return codes + scales


def _stored_case(generator: torch.Generator, number: int):
    """Any number, and some that leave no remainder: whole blocks, in whole groups of 256 scales."""
    size = (64, 32, 128)[number % 3]
    blocks = (0, 0, 8, 256, 0, 512, 0, 300)[number]  # of the last one, 256 scales and some more
    elements = size * blocks if blocks else draw_integers(generator, 1, 4000 * (number + 1), 1)[0]
    return elements + (draw_integers(generator, 1, 20 * size, 1)[0] if blocks == 300 else 0), size, bool(number % 2)


def qlora_bytes(quantized: int, others: int, adapters: int, tokens: int, hidden: int, layers: int) -> float:
    return 4.127 / 8 * quantized + 2 * others + 12 * adapters + 2 * tokens * hidden * layers


def _step_case(generator: torch.Generator, number: int):
    return *draw_integers(generator, 10, 10 ** (3 + number), 3), *draw_integers(generator, 1, 512, 3)


def fits(peak: int, gib: float, reserve: float) -> bool:
    return peak <= gib * 2**30 - reserve * 10**9


def _fits_case(generator: torch.Generator, number: int):
    """Peaks between any two limits that one may take for the right one: exactly it, one byte more, and further off."""
    gib, reserve = float(draw_integers(generator, 16, 97, 1)[0]), (0.0, 1.5, 2.0, 0.5)[number % 4]
    limit, full = int(gib * 2**30 - reserve * 10**9), int(gib * 2**30)
    below_with_reserve_in_gib = limit - int(reserve * (2**30 - 10**9)) // 2
    above = limit + int(reserve * 10**9) // 2 if reserve else full + 10**8
    in_gb = int((gib - reserve) * 10**9)
    between = (in_gb + limit) // 2
    return (limit, below_with_reserve_in_gib, above, between, limit + 1, above, in_gb // 2, limit)[number], gib, reserve


def _any_card(generator: torch.Generator, number: int):
    """Peaks around what fits, as far from it as a tenth of the card or as a tenth of a GB."""
    gib, reserve = float(draw_integers(generator, 4, 200, 1)[0]), (0.0, 0.5, 1.5)[number % 3]
    limit = gib * 2**30 - reserve * 10**9
    return (
        int(limit + (10**8 if number % 2 else 0.1 * limit) * (2 * torch.rand((), generator=generator).item() - 1)),
        gib,
        reserve,
    )


def _parts_of_forward(x, w, a, b, s):
    base = x @ w.T
    return {"base": base, "adapter": qlora_forward(x, w, a, b, s) - base}


def _parts_of_bytes(elements, block_size, double_quant):
    blocks = math.ceil(elements / block_size)
    return {
        "codes": math.ceil(elements / 2),
        "scales of four bytes": 0 if double_quant else 4 * blocks,
        "scales of one byte": blocks if double_quant else 0,
        "second-level scales": 4 * math.ceil(blocks / 256) if double_quant else 0,
        "offset": 4 if double_quant else 0,
    }


def _parts_of_step(quantized, others, adapters, tokens, hidden, layers):
    return {
        "quantized weights": 4.127 / 8 * quantized,
        "other weights": 2 * others,
        "adapters (weights, gradients and moments)": 12 * adapters,
        "inputs of the layers": 2 * tokens * hidden * layers,
    }


EXERCISES = (
    Exercise(
        "qlora-forward",
        _layer,
        qlora_forward,
        edits("""
            s * (x @ a.T) @ b.T → (x @ a.T) @ b.T
            2: The adapter's share is there without its factor s = alpha / r.

            x @ w.T + s * (x @ a.T) @ b.T → s * (x @ w.T + (x @ a.T) @ b.T)
            2: s multiplies the adapter's share only; you scale the base with it.

            x @ w.T + s * (x @ a.T) @ b.T → x @ w.T
            1: The adapter is missing: this is the base alone.

            x @ w.T → x @ w
            1: The weight is (out, in), so the product needs its transpose. With a square weight no error says so.

            (x @ a.T) @ b.T → (x @ a) @ b
            (x @ a.T) @ b.T → (x @ b.T) @ a.T
            1: A and B are in the wrong order, or not transposed: x goes through A first, then B.

            (x @ a.T) @ b.T → (x @ a) @ b.T
            (x @ a.T) @ b.T → (x @ a.T) @ b
            1: One of A and B is not transposed: x meets the transpose of each. With square matrices no error says so.

            x @ w.T + s * (x @ a.T) @ b.T → x @ w + s * (x @ a) @ b
            1: None of the weights is transposed: each is (out, in), so x needs the transpose. With square matrices no
               error says so.
        """),
        parts=_parts_of_forward,
        any_float=True,
        tolerance=1e-5,
    ),
    Exercise(
        "qlora-backward",
        _with_gradient,
        qlora_backward,
        edits("""
            g @ w + s * (g @ b) @ a → g @ w
            1: dx has only the base's share; x went through the adapter too.

            return dx, da, db → return dx, da / s, db / s
            2: The factor s is missing in dA and dB: it is part of what A and B were multiplied by.

            dx = → s = 1.0; dx =
            2: The factor s is missing everywhere.

            return dx, da, db → return dx, da.T, db.T
            2: dA and dB are transposed: a gradient has the shape of what it belongs to, A (r, in) and B (out, r).

            g @ w → g @ w.T
            1: dx uses the weight transposed: y = x W^T, so dx = g W.

            return dx, da, db → return dx, db, da
            -: dA and dB are swapped: return dx, dA, dB.

            s * (g @ b) @ a → (g @ b) @ a
            2: The factor s is missing in the adapter's share of dx.

            s * (g @ b).T @ x → g.T @ x
            s * (g @ b).T @ x → s * g.T @ x
            1: That is the gradient of the whole weight; A's passes through B.

            s * g.T @ (x @ a.T) → g.T @ x
            s * g.T @ (x @ a.T) → s * g.T @ x
            1: That is the gradient of the whole weight; B's passes through A.

            g @ w + s * (g @ b) @ a → s * (g @ b) @ a
            1: dx has only the adapter's share. The frozen weight has no gradient of its own, but one passes through it.

            s * (g @ b) @ a → s * (g @ b.T) @ a.T
            s * (g @ b) @ a → s * (g @ a.T) @ b.T
            s * (g @ b) @ a → s * (g @ a) @ b
            1: In dx the adapter's share is transposed or in the wrong order: g goes through B first, then A.

            g @ w + s * (g @ b) @ a → s * (g @ w + (g @ b) @ a)
            1: In dx the factor s belongs to the adapter's share only; you scale the base's with it.
        """),
        any_float=True,
        tolerance=1e-5,
    ),
    Exercise(
        "full-training-bytes",
        lambda generator, number: (draw_integers(generator, 1, 10**9, 1)[0],),
        full_training_bytes,
        edits("""
            12 * parameters → 10 * parameters
            1: That is without gradients: each trained weight has one, in 16 bits here.

            12 * parameters → 8 * parameters
            2: AdamW keeps two moments for each weight, with four bytes each: eight, and you count four.

            12 * parameters → 16 * parameters
            1: That is the bill for weights and gradients in 32 bits; here both have 16.

            12 * parameters → 96 * parameters
            1: These are the bits of one number; the answer is in bytes.

            12 * parameters → 14 * parameters
            1: These are two bytes too many: weights and gradients have 16 bits each here, and there is no copy of them.
        """),
    ),
    Exercise(
        "stored-bytes",
        _stored_case,
        stored_bytes,
        edits("""
            codes + scales → codes
            1: These are the codes alone; every block has a scale.

            math.ceil(elements / block_size) → elements // block_size
            1: The last block may be shorter, and it has a scale too: round the number of blocks up.

            blocks + 4 * groups + 4 → blocks
            2: With double quantization the 8-bit scales have scales of their own (one for 256), and one offset.

            4 * groups + 4 → 4 * groups
            2: The offset (the mean of the scales, four bytes for the whole tensor) is missing.

            math.ceil(blocks / 256) → blocks // 256
            2: The last group of 256 scales may be short, and it has a second-level scale too: you round down.

            math.ceil(blocks / 256) → 1
            2: There is a second-level scale for each 256 scales, not one for the whole tensor.

            4 * groups + 4 → 4
            2: The second-level scales, four bytes for each 256 scales or part of 256, are missing.

            math.ceil(elements / block_size) → elements // block_size + 1
            math.ceil(blocks / 256) → blocks // 256 + 1
            scales = → blocks = elements // block_size + 1; groups = blocks // 256 + 1; scales =
            1: One is added where the division leaves no remainder: `n // m + 1` is one too many there; `-(-n // m)`
               rounds up.

            4 * groups + 4 → 4 * groups + 4 * groups
            2: The offset is one for the whole tensor, not one for each 256 scales.

            math.ceil(elements / 2) → elements // 2
            1: Two codes share a byte, and an odd one takes a byte to itself: round up.

            math.ceil(elements / 2) → elements
            1: That counts a whole byte for each code; two share one.

            math.ceil(blocks / 256) → math.ceil(elements / 256)
            2: A second-level scale serves 256 *scales*, not 256 elements.

            scales = → blocks = elements // block_size; groups = blocks // 256; scales =
            1: Blocks and groups are rounded down; the last ones may be a part only, and need a scale too.

            if double_quant else 4 * blocks → if double_quant else 4 * blocks + 4
            2: Only double quantization has an offset.

            4 * groups + 4 → groups + 4
            2: A second-level scale has four bytes.

            blocks + 4 * groups + 4 if double_quant → 4 * blocks + 4 * groups + 4 if double_quant
            2: Under double quantization a scale takes one byte, not four.

            codes + scales → math.ceil(elements * (4 + (8.125 / block_size if double_quant else 32 / block_size)) / 8)
            1: That multiplies bits per weight by weights and rounds once, at the end. Round up each part by itself.

            codes + scales → elements / 2 + elements / block_size * (65 / 64 if double_quant else 4) + 4 * double_quant
            codes + scales → int(elements * (0.5 + (65 / 64 if double_quant else 4) / block_size)) + 4 * double_quant
            codes + scales → elements / 2 + elements / block_size * (65 / 64 if double_quant else 4)
            codes + scales → int(elements / 2 + elements / block_size * (65 / 64 if double_quant else 4))
            1: That is bits per weight times weights, which is right for whole blocks only. Round up each part by
               itself.
        """),
        parts=_parts_of_bytes,
    ),
    Exercise(
        "qlora-bytes",
        _step_case,
        qlora_bytes,
        edits("""
            4.127 / 8 * quantized → (4.127 / 8 + 10) * quantized
            1: Only adapters are trained here: the base has no gradients and no moments.

            4.127 / 8 → 4 / 8
            1: 4 bits are not all a quantized weight takes: its share of the scales makes it 4.127.

            12 * adapters → 2 * adapters
            2: Adapters cost more than their weights: a gradient (2 bytes) and two moments (8).

            12 * adapters → 10 * adapters
            2: Two bytes are missing for each parameter of the adapters: its weight and its gradient have two each, its
               moments eight.

            2 * tokens * hidden * layers → 2 * tokens * hidden
            3: With checkpointing each layer keeps its input, so the activations count once per layer.

            2 * others + 12 * adapters → 12 * adapters
            1: The weights that are not quantized are missing: two bytes each.

            12 * adapters + 2 * tokens * hidden * layers → 12 * adapters
            3: The inputs of the layers are missing: tokens times hidden numbers for each.

            2 * tokens → tokens
            3: The inputs of the layers are counted as numbers; each takes two bytes.

            12 * adapters → 8 * adapters
            2: AdamW keeps two moments, each in 32 bits: eight bytes, and you count four.

            4.127 / 8 → 4.127
            1: These are bits for the quantized weights and bytes for the rest: divide by 8.
        """),
        parts=_parts_of_step,
        tolerance=2e-6,
    ),
    Exercise(
        "fits",
        _fits_case,
        fits,
        edits("""
            gib * 2**30 - reserve * 10**9 → (gib - reserve) * 10**9
            1: A card sold as so many gigabytes has GiB, 2^30 bytes each, which is 7 % more than GB.

            gib * 2**30 - reserve * 10**9 → (gib - reserve) * 2**30
            2: The reserve is given in GB, 10^9 bytes each; you take it for GiB.

            peak <= → peak <
            -: What exactly fills the card fits: at most, so `<=`.

            gib * 2**30 - reserve * 10**9 → gib * 2**30
            gib * 2**30 - reserve * 10**9 → gib * 2**30 - reserve
            2: The reserve is not subtracted, or next to nothing of it: a driver and an allocator take some of the card,
               in GB, 10^9 bytes each.

            peak <= → peak >
            -: The comparison is the wrong way round: it fits if the peak is at most what is left.

            peak <= gib * 2**30 - reserve * 10**9 → peak < gib * 2**30 - reserve
            2: Next to nothing of the reserve is subtracted: it is given in GB, 10^9 bytes each. And what exactly fills
               the card fits: at most, so `<=`.
        """),
        draw_more=_any_card,
    ),
)
