"""More exercises of notebook 01: NF4 from quantiles, and bits and errors predicted."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def normal_float(bits: int) -> torch.Tensor:
    count = 2**bits
    edge = 1 - (1 / (2 * count) + 1 / (2 * (count - 1))) / 2
    return _cut(edge, count // 2, count // 2 - 1)


def _cut(edge: float, positive: int, negative: int, zero: bool = True, divide: bool = True) -> torch.Tensor:
    def quantiles(n):
        return torch.special.ndtri(torch.linspace(edge, 0.5, n + 1, dtype=torch.float64)[:-1])

    parts = [-quantiles(negative), quantiles(positive)] + ([torch.zeros(1, dtype=torch.float64)] if zero else [])
    levels = torch.cat(parts).sort().values
    return (levels / levels.max() if divide else levels).float()


def _edge(bits: int) -> float:
    return 1 - (1 / 2 ** (bits + 1) + 1 / (2 * (2**bits - 1))) / 2


def _symmetric(bits: int) -> torch.Tensor:
    levels = torch.special.ndtri(torch.linspace(1 - _edge(bits), _edge(bits), 2**bits, dtype=torch.float64))
    return (levels / levels.max()).float()


def bits_per_weight(block_size: int, constants: int, double_quant: bool) -> float:
    if double_quant:
        return 4 + constants * (8 / block_size + 32 / (256 * block_size))
    return 4 + constants * 32 / block_size


def predict_and_measure(weight: torch.Tensor, block_size: int) -> tuple[float, float]:
    return _with_steps(weight, block_size, lambda blocks: blocks.abs().amax(1, keepdim=True) / 7)


def _with_steps(weight: torch.Tensor, block_size: int, steps_of) -> tuple[float, float]:
    blocks = weight.reshape(-1, block_size).double()
    steps = steps_of(blocks)
    predicted = (steps.square().mean() / 12).sqrt().item()
    decoded = (blocks / steps).round() * steps
    return predicted, (decoded - blocks).square().mean().sqrt().item()


def _mean_of_steps(weight: torch.Tensor, block_size: int) -> tuple[float, float]:
    steps = weight.reshape(-1, block_size).double().abs().amax(1) / 7
    return (steps.mean() / math.sqrt(12)).item(), predict_and_measure(weight, block_size)[1]


def _scaled(first: float, second: float):
    def answer(weight, block_size):
        predicted, measured = predict_and_measure(weight, block_size)
        return predicted * first, measured * second

    return answer


def _mean_absolute(weight: torch.Tensor, block_size: int) -> tuple[float, float]:
    blocks = weight.reshape(-1, block_size).double()
    steps = blocks.abs().amax(1, keepdim=True) / 7
    return predict_and_measure(weight, block_size)[0], ((blocks / steps).round() * steps - blocks).abs().mean().item()


def _blocks_case(generator: torch.Generator, number: int):
    size = (16, 64, 32, 128)[number % 4]
    return torch.randn(40 + 10 * number, size, generator=generator) * 10.0 ** (number % 3 - 1), size


EXERCISES = (
    Exercise(
        "normal-float",
        lambda generator, number: ((4, 3, 2, 5, 6, 4, 3, 8)[number],),
        normal_float,
        (
            Misconception(
                "There is no exact zero: you cut the bell curve symmetrically into an even number of levels. The two "
                "sides are built apart, with a zero between. Open hint 1.",
                _symmetric,
            ),
            Misconception(
                "These are quantiles in standard deviations; divide by the largest, so that the levels end at 1. "
                "Open hint 3.",
                lambda bits: _cut(_edge(bits), 2 ** (bits - 1), 2 ** (bits - 1) - 1, divide=False),
            ),
            Misconception(
                "The sides are swapped: the positive side has the level more. Open hint 2.",
                lambda bits: -_cut(_edge(bits), 2 ** (bits - 1), 2 ** (bits - 1) - 1).flip(0),
            ),
            Misconception(
                "Zero is in there twice or more: each side's probabilities end at 0.5, whose quantile is zero; leave "
                "these out and add one zero. Open hint 2.",
                lambda bits: (
                    torch.cat((torch.zeros(2), _cut(_edge(bits), 2 ** (bits - 1), 2 ** (bits - 1) - 1))).sort().values
                ),
            ),
            Misconception(
                "These levels are equally spaced; the probabilities are, and the levels are their quantiles. "
                "Open hint 1.",
                lambda bits: torch.cat(
                    (
                        torch.linspace(-1, 0, 2 ** (bits - 1))[:-1],
                        torch.linspace(0, 1, 2 ** (bits - 1) + 1),
                    )
                ),
            ),
            Misconception(
                "The outermost probability is half a step short of 1, on average over 2^bits and 2^bits - 1 levels; "
                "you took one of the two. Open hint 2.",
                lambda bits: _cut(1 - 1 / 2 ** (bits + 1), 2 ** (bits - 1), 2 ** (bits - 1) - 1),
            ),
        ),
        tolerance=1e-5,
        draw_more=lambda generator, number: (int(torch.randint(2, 11, (), generator=generator)),),
    ),
    Exercise(
        "bits-per-weight",
        lambda generator, number: ((64, 32, 128, 64, 16, 256, 64, 4096)[number], 1 + number // 2 % 2, number % 2 == 1),
        bits_per_weight,
        (
            Misconception(
                "4 bits are the codes alone; a block's constants are shared by its weights. Open hint 1.",
                lambda size, constants, double: 4.0,
            ),
            Misconception(
                "That counts one constant for each block. With a zero point there are two. Open hint 1.",
                lambda size, constants, double: bits_per_weight(size, 1, double),
            ),
            Misconception(
                "8-bit constants need scales themselves: one of 32 bits for 256 of them. Open hint 2.",
                lambda size, constants, double: 4 + constants * (8 if double else 32) / size,
            ),
            Misconception(
                "These are bytes of constants added to bits of codes: a float32 has 32 bits. Open hint 1.",
                lambda size, constants, double: 4 + (bits_per_weight(size, constants, double) - 4) / 8,
            ),
            Misconception(
                "Each sort of constants has second-level scales of its own; you count them for one. Open hint 2.",
                lambda size, constants, double: (
                    bits_per_weight(size, constants, double) - (constants - 1) * double * 32 / (256 * size)
                ),
            ),
            Misconception(
                "A second-level scale serves 256 constants, and each of these `block_size` weights: divide by both. "
                "Open hint 2.",
                lambda size, constants, double: 4 + constants * (8 / size + 32 / 256 if double else 32 / size),
            ),
            Misconception(
                "The four bits of the code are missing: this is the price of the constants alone. Open hint 1.",
                lambda size, constants, double: bits_per_weight(size, constants, double) - 4,
            ),
            Misconception(
                "Double quantization is ignored: constants then have 8 bits instead of 32. Open hint 2.",
                lambda size, constants, double: bits_per_weight(size, constants, False),
            ),
        ),
        tolerance=1e-9,
        draw_more=lambda generator, number: (
            int(torch.randint(8, 5000, (), generator=generator)),
            1 + number % 2,
            number % 4 > 1,
        ),
    ),
    Exercise(
        "predict-and-measure",
        _blocks_case,
        predict_and_measure,
        (
            Misconception(
                "The prediction averages the steps; it is their squares that have to be averaged, as in the error. "
                "Open hint 2.",
                _mean_of_steps,
            ),
            Misconception(
                "The prediction is a whole step; the error within a step is spread evenly, with a root mean square of "
                "step / sqrt(12). Open hint 1.",
                _scaled(math.sqrt(12), 1),
            ),
            Misconception(
                "The prediction is half a step, which is the largest error and not the root mean square. Open hint 1.",
                _scaled(math.sqrt(3), 1),
            ),
            Misconception(
                "The step is absmax / 7: fourteen steps from -7 to 7. You took another number of steps. Open hint 1.",
                _scaled(7 / 7.5, 1),
            ),
            *(
                Misconception(
                    "The step is absmax / 7: fourteen steps from -7 to 7. You took another number of steps. "
                    "Open hint 1.",
                    lambda weight, size, parts=parts: _with_steps(
                        weight, size, lambda b: b.abs().amax(1, True) / parts
                    ),
                )
                for parts in (7.5, 8)
            ),
            Misconception(
                "That is one step for the whole tensor; each block has the step of its own absmax. Open hint 1.",
                lambda weight, size: _with_steps(weight, size, lambda b: (b.abs().max() / 7).expand(len(b), 1)),
            ),
            Misconception(
                "The measured number is a mean of magnitudes; take the root of the mean of squares. Open hint 3.",
                _mean_absolute,
            ),
            Misconception(
                "The two are swapped: predicted first, then measured.",
                lambda w, size: predict_and_measure(w, size)[::-1],
            ),
        ),
        tolerance=1e-4,
    ),
)
