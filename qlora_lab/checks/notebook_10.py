"""Exercises of notebook 10: E2M1 and its scales, errors of outputs, GPTQ, AWQ, orders compared, LoftQ's start."""

import itertools

import torch

from qlora_lab.checks.differences import a_value_each, is_same, pattern, with_arguments
from qlora_lab.checks.exercise import Exercise, Misconception, draw_integers, draw_normal, edits
from qlora_lab.quantization.datatypes import get_datatype


def e2m1_value(code: int) -> float:
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    size = (1 + mantissa / 2) * 2.0 ** (exponent - 1) if exponent else mantissa / 2
    return -size if sign else size


def power_of_two_scale(absmax):
    exponent = torch.frexp(absmax).exponent - 1
    return torch.exp2(exponent - 2.0)


def _extremes(generator: torch.Generator, number: int):
    """Magnitudes of blocks: some are powers of two, none lies so close below one that a logarithm would round up."""
    n = 5 + 6 * number
    mantissas = 1 + 0.999 * torch.rand(n, generator=generator)
    exponents = torch.randint(-9, 6, (n,), generator=generator)
    mantissas[number % 3 :: 4] = 1.0
    return (mantissas * torch.exp2(exponents.float()),)


def _moments(generator: torch.Generator, n: int) -> torch.Tensor:
    """Second moments of n inputs that go together and are not all alike; (n, n), with an inverse."""
    x, mixed = draw_normal(generator, (4 * n, n), (n, n))
    x = (x + 0.8 * x @ mixed / n**0.5 + 0.5) * (0.5 + 1.5 * torch.rand(n, generator=generator))
    return x.T @ x / len(x)


def output_error(error, moments, weight) -> float:
    def power(matrix):
        return ((matrix @ moments) * matrix).sum()

    return (power(error) / power(weight)).sqrt().item()


def _layer(generator: torch.Generator, number: int):
    """The first is square."""
    n_out, n_in = draw_integers(generator, 2, 8 + 3 * number, 2) if number else (6, 6)
    weight, error = draw_normal(generator, (n_out, n_in), (n_out, n_in))
    return error / (5 + number), _moments(generator, n_in), weight


def push_error(error, moments):
    inverse = torch.linalg.inv(moments)
    return error[:, None] * inverse[0, 1:] / inverse[0, 0]


def _first_column(generator: torch.Generator, number: int):
    """The first has as many outputs as columns that are left."""
    n_out, n_in = draw_integers(generator, 2, 8 + 2 * number, 2) if number else (5, 6)
    return draw_normal(generator, (n_out,))[0], _moments(generator, n_in)


def gptq(weight, moments, levels, block_size):
    n = weight.shape[1]
    damping = 0.01 * moments.diagonal().mean()
    damped = (moments + damping * torch.eye(n, device=moments.device)).double()
    push = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True).float()
    thresholds = (levels[1:] + levels[:-1]) / 2
    rest, decoded = weight.clone(), torch.empty_like(weight)
    for j in range(n):
        if j % block_size == 0:
            scale = rest[:, j : j + block_size].abs().amax(1)
        codes = torch.bucketize(rest[:, j] / scale, thresholds)
        decoded[:, j] = levels[codes] * scale
        error = decoded[:, j] - rest[:, j]
        rest[:, j + 1 :] += error[:, None] * push[j, j + 1 :] / push[j, j]
    return decoded


def _margin(weight, moments, levels, block_size) -> float:
    """How far from a threshold the nearest decision of `gptq` is: had it another outcome, all after it would."""
    decoded = gptq(weight, moments, levels, block_size)
    thresholds = (levels[1:] + levels[:-1]) / 2
    damped = moments + 0.01 * moments.diagonal().mean() * torch.eye(len(moments))
    push = torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True).float()
    push /= push.diagonal()[:, None]
    rest, least = weight.clone(), 1.0
    for j in range(weight.shape[1]):
        if j % block_size == 0:
            scale = rest[:, j : j + block_size].abs().amax(1)
        least = min(least, ((rest[:, j] / scale)[:, None] - thresholds).abs().min().item())
        rest[:, j:] += (decoded[:, j] - rest[:, j])[:, None] * push[j, j:]
    return least


def _table(generator: torch.Generator) -> torch.Tensor:
    """Sixteen levels of no data type, from -1 to 1."""
    gaps = 0.5 + torch.rand(15, generator=generator)
    return torch.cat((torch.zeros(1), gaps.cumsum(0) / gaps.sum())) * 2 - 1


def _matrix(generator: torch.Generator, number: int):
    """Blocks of 8 or 16, no decision so close that the order of operations would make it."""
    block_size = 8 * (1 + number % 2)
    n_out, blocks = draw_integers(generator, 2, 5, 2)
    while True:
        (weight,) = draw_normal(generator, (n_out, blocks * block_size))
        case = weight, _moments(generator, weight.shape[1]), _table(generator), block_size
        if _margin(*case) > 3e-5:
            return case


def _describe_columns(arguments: tuple, one, other) -> str | None:
    """The first column that is off: what came before it is right."""
    if not isinstance(one, torch.Tensor) or one.shape != other.shape or is_same(one, other, 1e-4, any_float=True):
        return None
    if not one.dtype.is_floating_point or not one.isfinite().all():
        return None
    off = (one.detach().double() - other.double()).abs() > 1e-4 * other.abs().max().item()
    columns = off.any(0).nonzero().flatten()
    first, size = int(columns[0]), arguments[3]
    told = f"{len(columns)} of {other.shape[1]} columns differ, the first is column {first}"
    if first == 0:
        return f"{told}: it is rounded before anything is pushed, so its scale or its level is off."
    if first == 1:
        return f"{told}: what column 0 pushed into it is off."
    if first % size == 0:
        return f"{told}, where a block begins: its scale is off."
    return f"{told}; all before it are right.{pattern(one, other, 1e-4)}"


def awq_scales(weight, moments, levels, block_size, grid):
    size = moments.diagonal().sqrt()
    thresholds = (levels[1:] + levels[:-1]) / 2
    found = []
    for k in range(grid + 1):
        s = size ** (k / grid)
        s = s / (s.min() * s.max()).sqrt()
        blocks = (weight * s).reshape(-1, block_size)
        absmax = blocks.abs().amax(1, keepdim=True)
        decoded = levels[torch.bucketize(blocks / absmax, thresholds)] * absmax
        error = decoded.reshape(weight.shape) / s - weight
        found.append((((error @ moments) * error).sum().item(), k / grid, s))
    _, exponent, s = min(found, key=lambda each: each[0])
    return s, exponent


def _shared_input(generator: torch.Generator, number: int):
    """Inputs of which a few are large. The best exponent is so by a margin, mostly between 0 and 1.

    Once it is 1, where large inputs meet small weights, and once 0, where they meet large ones.
    """
    grid = (2, 4, 5, 3, 10, 8, 4, 6)[number]
    while True:
        block_size = 8 * (1 + number % 2)
        n_out, blocks = draw_integers(generator, 3, 7, 2)
        (weight,) = draw_normal(generator, (n_out, blocks * block_size))
        spread = torch.exp(torch.randn(weight.shape[1], generator=generator))
        moments = spread[:, None] * _moments(generator, len(spread)) * spread
        weight = weight * moments.diagonal() ** {3: -0.5, 5: 0.5}.get(number, 0)
        case = weight, moments, _table(generator), block_size, grid
        errors, of_weights, not_divided = _errors_of_exponents(*case)
        first, second = sorted(errors)[:2]
        best = errors.index(first) / grid
        told_apart = of_weights.index(min(of_weights)) != not_divided.index(min(not_divided))
        wanted = {3: best == 1 and told_apart, 5: best == 0}
        if second > 1.02 * first and wanted.get(number, 0 < best < 1):
            return case


def _errors_of_exponents(weight, moments, levels, block_size, grid) -> tuple[list[float], ...]:
    """Squares with each exponent: of outputs, of weights, and of outputs where nobody divides by s again."""
    found = []
    for k in range(grid + 1):
        s = moments.diagonal().sqrt() ** (k / grid)
        s = s / (s.min() * s.max()).sqrt()
        blocks = (weight * s).reshape(-1, block_size)
        absmax = blocks.abs().amax(1, keepdim=True)
        nearest = (blocks[..., None] / absmax[..., None] - levels).abs().argmin(-1)
        decoded = (levels[nearest] * absmax).reshape(weight.shape)
        error, undivided = decoded / s - weight, decoded - weight
        outputs, as_they_are = (((e @ moments) * e).sum().item() for e in (error, undivided))
        found.append((outputs, error.square().sum().item(), as_they_are))
    return tuple(map(list, zip(*found, strict=True)))


def rank_correlation(x: list[float], y: list[float]) -> float:
    def ranks(values):
        ordered = sorted(values)
        return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]

    a, b = torch.tensor([ranks(x), ranks(y)], dtype=torch.float64)
    a, b = a - a.mean(), b - b.mean()
    return (a @ b / (a.norm() * b.norm())).item()


def _lists_case(generator: torch.Generator, number: int):
    """y follows x up or down, not in a line, with noise. From the third case on, equal values in both, now and then."""
    count = 5 + number
    x = (torch.randn(count, generator=generator) * 10).tolist()
    noise = torch.randn(count, generator=generator).tolist()
    down = -1 if number % 3 == 1 else 1
    y = [down * 2.0 ** (value / 8) + 0.7 * n for value, n in zip(x, noise, strict=True)]
    x, y = [round(value, 2) for value in x], [round(value, 3) for value in y]
    if number >= 2:
        places = torch.randperm(count, generator=generator).tolist()
        x[places[1]] = x[places[0]]
        y[places[3]] = y[places[2]]
        if number >= 5:
            x[places[4]] = x[places[0]]
    return x, y


def _kendall(x: list[float], y: list[float]) -> float:
    pairs = list(itertools.combinations(zip(x, y, strict=True), 2))
    agree = [(a - c) * (b - d) for (a, b), (c, d) in pairs]
    return (sum(one > 0 for one in agree) - sum(one < 0 for one in agree)) / len(pairs)


def loftq(
    weight: torch.Tensor, rank: int, scaling: float, levels: torch.Tensor, block_size: int, rounds: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    low_rank = torch.zeros_like(weight)
    for _ in range(rounds):
        blocks = (weight - low_rank).reshape(-1, block_size)
        absmax = blocks.abs().amax(1, keepdim=True)
        codes = torch.bucketize(blocks / absmax, (levels[1:] + levels[:-1]) / 2)
        rounded = (levels[codes] * absmax).reshape(weight.shape)
        u, s, v = torch.linalg.svd(weight - rounded, full_matrices=False)
        a, b = v[:rank], u[:, :rank] * s[:rank] / scaling
        low_rank = scaling * b @ a
    return rounded, a, b


def _start_case(generator: torch.Generator, number: int):
    """Gaussian weights; NF4, or other levels over an exact zero. One round first, then more of them."""
    rows, columns = draw_integers(generator, 2, 6, 2)
    (weight,) = draw_normal(generator, (4 * rows, 16 * columns))
    levels = get_datatype(("nf4", "bof4")[number % 2]).table()
    rounds, scaling = (1, 2, 3, 5)[number % 4], (2.0, 0.5, 4.0)[number % 3]
    return weight / 10, 1 + number % 3, scaling, levels, (16, 32)[number % 2 if columns % 2 == 0 else 0], rounds


def _what_a_layer_has(arguments: tuple, result):
    """The rounded weight, the shapes of A and B, and what they add, since one product is that of many A and B."""
    weight, rank, scaling, *_ = arguments
    if not isinstance(result, tuple | list) or len(result) != 3:
        return result
    if not all(isinstance(part, torch.Tensor) for part in result):
        return result
    rounded, a, b = result
    fit = a.shape == (rank, weight.shape[1]) and b.shape == (weight.shape[0], rank)
    return rounded, [tuple(a.shape), tuple(b.shape)], scaling * b.float() @ a.float() if fit else None


def _factor_forgotten(weight, rank, scaling, levels, block_size, rounds):
    return loftq(weight, rank, 1.0, levels, block_size, rounds)


def _adapter_first(weight, rank, scaling, levels, block_size, rounds):
    _, a, b = loftq(weight, rank, scaling, 0 * levels, block_size, 1)
    return loftq(weight - scaling * b @ a, rank, scaling, levels, block_size, 1)[0], a, b


def _rounded_once_more(weight, rank, scaling, levels, block_size, rounds):
    _, a, b = loftq(weight, rank, scaling, levels, block_size, rounds)
    return loftq(weight - scaling * b @ a, rank, scaling, levels, block_size, 1)[0], a, b


EXERCISES = (
    Exercise(
        "e2m1-value",
        lambda _, number: ((6 + 5 * number) % 16,),
        e2m1_value,
        edits("""
            if exponent else mantissa / 2 → if True else 0
            2: Where both exponent bits are 0 there is no 1 in front of the mantissa. Else there would be no zero.

            if exponent else mantissa / 2 → if exponent else mantissa / 4
            2: An exponent of 0 counts as an exponent of 1, only without the 1 in front: the mantissa bit is worth a
               half, as there.

            if exponent else mantissa / 2 → if exponent else mantissa
            2: Where both exponent bits are 0, the mantissa bit is worth a half, as where they are 01.

            if exponent else mantissa / 2 → if exponent else 0.0
            2: With both exponent bits 0, the mantissa bit still counts: 0 and a half.

            2.0 ** (exponent - 1) → 2.0 ** exponent
            1: The exponent's bias is missing: 1 is subtracted from it.

            (1 + mantissa / 2) → (1 + mantissa)
            1: The mantissa bit is worth a half of what stands before it: 1 or 1½, not 1 or 2.

            -size if sign else size → size
            1: The sign bit is lost: codes from 8 on are negative.

            -size if sign else size → size - 8 if sign else size
            1: A float has a sign and a magnitude. Code 8 + k is minus what code k is.

            code >> 1 & 3 → code >> 1
            3: The sign bit has got into the exponent: mask it off.

            code >> 1 & 3, code & 1 → code & 3, code >> 2 & 1
            3: After the sign come two bits of exponent, and the mantissa is the last.

            -size if sign else size → (-size if sign else size) / 6
            -: These are divided by the largest. The format's own numbers go up to 6.
        """),
        cases=16,
        tolerance=1e-6,
        draw_more=lambda generator, number: tuple(draw_integers(generator, 0, 16, 1)),
    ),
    Exercise(
        "power-of-two-scale",
        _extremes,
        power_of_two_scale,
        edits("""
            torch.frexp(absmax).exponent - 1 → absmax.log2().round()
            1: You round the logarithm; round it down.

            torch.frexp(absmax).exponent - 1 → absmax.log2().ceil()
            1: You round the logarithm up; round it down.

            torch.frexp(absmax).exponent - 1 → torch.frexp(absmax).exponent
            1: That is one too many: `frexp` has mantissas from a half to 1, and so an exponent one above the
               logarithm rounded down.

            torch.frexp(absmax).exponent - 1 → absmax.log2().int()
            1: That cuts off towards zero, and logarithms of small magnitudes are negative: round down.

            torch.frexp(absmax).exponent - 1 → absmax.log().floor()
            1: That is the natural logarithm.

            torch.exp2(exponent - 2.0) → torch.exp2(exponent - 0.0)
            2: The 2 is missing. Divided by the scale, the largest weight is to come to 4 or more, not to 1 or more.

            torch.exp2(exponent - 2.0) → torch.exp2(exponent - 3.0)
            2: That is half of it: the largest weight would come to 8 or more, where no level is.

            torch.exp2(exponent - 2.0) → exponent - 2.0
            2: These are the exponents, as they are stored. The scales are wanted, two to their power.

            torch.exp2(exponent - 2.0) → absmax / 6
            2: That takes the largest weight to 6 exactly. A scale has to be a power of two.

            torch.exp2(exponent - 2.0) → torch.exp2((absmax / 6).log2().ceil())
            2: You choose the smallest power of two that cuts nothing off. The standard rounds down, and lets the
               largest weight lie between 6 and 8.

            torch.exp2(exponent - 2.0) → torch.exp2((absmax / 6).log2().floor())
            2: That takes the largest weight to between 6 and 12; subtract 2 from the exponent, whatever the weight.

            torch.exp2(exponent - 2.0) → torch.exp2((absmax / 6).log2().round())
            2: You choose the power of two that is nearest to absmax / 6. The standard has another rule: the exponent
               of absmax, minus 2.
        """),
        tolerance=1e-6,
        any_float=True,
        describe=with_arguments(a_value_each(1e-6)),
    ),
    Exercise(
        "output-error",
        _layer,
        output_error,
        edits("""
            (matrix @ moments) * matrix → matrix * matrix
            1: That is the error of the weights. The moments say how much of it the outputs see.

            ((matrix @ moments) * matrix).sum() → (matrix @ moments @ matrix.T).sum()
            2: You add up all of E M Eᵀ. Each output's own square stands on its diagonal; add only these.

            (matrix @ moments) * matrix → (matrix @ moments) * (matrix @ moments)
            1: The moments count twice. They are squares of inputs already: E M Eᵀ.

            (matrix @ moments) * matrix → (matrix * moments.diagonal()) * matrix
            1: You take the squares of the inputs and leave out their products. Inputs go together, and errors of two
               columns add up or cancel.

            (matrix @ moments) * matrix → (moments @ matrix) * matrix
            1: The moments stand on the wrong side: they belong to the columns, the inputs.

            (power(error) / power(weight)).sqrt() → (power(error) / power(weight))
            3: That is the ratio of the squares. Take the root.

            (power(error) / power(weight)).sqrt() → power(error).sqrt()
            3: It is to be relative: divide by the same of the outputs themselves.

            (power(error) / power(weight)).sqrt() → (power(error) / weight.square().sum()).sqrt()
            3: Above is a square of outputs, below one of weights. Divide by the square of the outputs.

            (power(error) / power(weight)).sqrt() → (power(weight) / power(error)).sqrt()
            3: It is the wrong way round: the error comes above, the outputs below.

            (power(error) / power(weight)).sqrt() → (power(error).sqrt() / power(weight))
            3: The root is of both.

            (power(error) / power(weight)).sqrt() → (power(error) / power(weight + error)).sqrt()
            3: You divide by the outputs of the rounded weights; divide by those of the weights as they were.
        """),
        tolerance=1e-4,
        any_float=True,
    ),
    Exercise(
        "push-error",
        _first_column,
        push_error,
        edits("""
            / inverse[0, 0] → / 1
            2: The row of the inverse has to be divided by its first number, or the change is of another size.

            / inverse[0, 0] → / inverse[0, 0].sqrt()
            2: The row of the inverse has to be divided by its first number, not by the root of it.

            inverse[0, 1:] → inverse[0]
            3: Column 0 is rounded already. The changes of the others are wanted, one column fewer.

            error[:, None] * → -error[:, None] *
            2: The sign is the other one. With it the others make the error of the outputs larger. (The inverse has
               its own signs: where two inputs go together, its number is negative.)

            torch.linalg.inv(moments) → moments
            1: You use the moments themselves. With a minus before it, that would be right if each input could be
               predicted from the first; here it is the others that have to stand in for the first.

            error[:, None] * inverse[0, 1:] / inverse[0, 0] → -error[:, None] * moments[0, 1:] / moments.diagonal()[1:]
            1: You let every column make good the whole error by itself. Together they do too much: what one has taken
               over, the others need not.

            error[:, None] * inverse[0, 1:] / inverse[0, 0] → -error[:, None] * moments[0, 1:] / moments[0, 0]
            1: That predicts the other inputs from the first. It is the first that they have to stand in for.

            inverse[0, 1:] / inverse[0, 0] → inverse[-1, :-1] / inverse[-1, -1]
            2: You push the error of the last column; the first is the one that was rounded.

            inverse[0, 1:] / inverse[0, 0] → inverse[0, 1:] / inverse.diagonal()[1:]
            2: Divide the row by its first number, the one of the column that was rounded.

        """),
        tolerance=1e-4,
        any_float=True,
    ),
    Exercise(
        "gptq",
        _matrix,
        gptq,
        edits("""
            error[:, None] * push → 0 * error[:, None] * push
            1: That is rounding to the nearest level, every column by itself. Nothing reaches the columns not yet
               rounded: there is no push, or it takes what a triangular factor has only zeros for (take the upper one).

            torch.linalg.cholesky(torch.linalg.inv(damped), upper=True) → torch.linalg.inv(damped)
            3: You take rows of one inverse for all columns. Columns that are rounded already cannot change any more,
               so each step needs the inverse of the moments without them; the Cholesky factor has their rows.

            torch.linalg.cholesky(torch.linalg.inv(damped), upper=True) → torch.linalg.cholesky(damped).T
            3: That is the factor of the moments; the one of their inverse is wanted.

            cholesky(torch.linalg.inv(damped), upper=True) → inv(torch.linalg.cholesky(damped)).T
            3: The inverse of a Cholesky factor is a factor of the inverse too, but another one. Invert first, then
               factor, and take the upper triangle.

            rest[:, j : j + block_size].abs() → weight[:, j : j + block_size].abs()
            2: The scale is that of the block as it was at the beginning. By the time its turn comes, errors have been
               pushed into it: take the largest magnitude as it is then.

            if j % block_size == 0 → if j == 0
            2: The first block's scale serves all. Each block has one of its own, found where it begins.

            j % block_size == 0: → True:
            2: The scale is found anew in every column. It is stored once for a block, so it is found where the block
               begins.

            rest[:, j : j + block_size].abs() → rest[:, j : j + block_size]
            2: The largest weight is not the largest magnitude.

            rest[:, j : j + block_size].abs().amax(1) → rest[:, j : j + block_size].abs().max()
            2: That is one scale for all rows. Each row has one of its own in each block.

            decoded[:, j] - rest[:, j] → decoded[:, j] - weight[:, j]
            1: The error is that of the column as it is now, with what was pushed into it, not as it was.

            rest[:, j + 1 :] += error → rest[:, j + 1 :] -= error
            1: The push has the wrong sign: it makes the error of the outputs larger.

            / push[j, j] → / 1
            3: The row of the factor has to be divided by its diagonal, or the push is of another size.

            torch.bucketize(rest[:, j] / scale → torch.bucketize(weight[:, j] / scale
            1: You round the weights as they were. Round them as they are now, with what was pushed into them.

            0.01 * moments.diagonal().mean() → 0.0 * moments.diagonal().mean()
            4: The damping is missing: a hundredth of the mean of the diagonal, added to the diagonal.

            0.01 * moments.diagonal().mean() → 0.01
            4: The damping is a hundredth *of the mean of the diagonal*.

            0.01 * moments.diagonal().mean() → 0.01 * moments.mean()
            4: The damping is a hundredth of the mean of the *diagonal*; that is the mean of all moments.

            damping * torch.eye(n, device=moments.device) → damping
            4: The damping is added to the diagonal only.

            return decoded → return rest
            -: These are the weights before they were rounded, with what was pushed into them. Give the rounded ones.
        """),
        tolerance=1e-4,
        any_float=True,
        describe=with_arguments(_describe_columns),
    ),
    Exercise(
        "awq-scales",
        _shared_input,
        awq_scales,
        edits("""
            moments.diagonal().sqrt() → moments.diagonal()
            1: The diagonal has mean squares. The size of an input is the root of one.

            moments.diagonal().sqrt() → moments.abs().mean(0)
            1: The size of an input is the root of its mean square, and that stands on the diagonal.

            moments.diagonal().sqrt() → weight.abs().amax(0)
            moments.diagonal().sqrt() → weight.square().mean(0).sqrt()
            1: That goes by the sizes of the weights. AWQ goes by those of the inputs.

            size ** (k / grid) → size ** -(k / grid)
            2: You make the columns of large inputs smaller. They are to be larger, so that their steps are finer.

            range(grid + 1) → range(grid)
            2: The exponent 1 was not tried: from 0 to 1 in `grid` steps there are `grid + 1` exponents.

            range(grid + 1) → range(1, grid + 1)
            2: The exponent 0, which leaves everything as it is, was not tried.

            s = s / (s.min() * s.max()).sqrt() → s = s / 1
            2: The exponent is right, but s is not divided by the middle of its extremes, √(min · max).

            s = s / (s.min() * s.max()).sqrt() → s = s / s.mean()
            s = s / (s.min() * s.max()).sqrt() → s = s / s.max()
            s = s / (s.min() * s.max()).sqrt() → s = s / (s.min() * s.max())
            2: The exponent is right, but s is divided by something else. It is to be √(min · max).

            decoded.reshape(weight.shape) / s - weight → decoded.reshape(weight.shape) - weight * s
            3: That is the error of the scaled weights. The inputs are divided by s, so the decoded weights have to be,
               before you compare.

            decoded.reshape(weight.shape) / s - weight → decoded.reshape(weight.shape) - weight
            3: The decoded weights are s times as large as the weights. Divide by s before you compare.

            ((error @ moments) * error) → (error * error)
            3: You choose by the error of the weights. Choose by that of the outputs.

            min(found, key → max(found, key
            3: That is the worst of the exponents.

            return s, exponent → return exponent, s
            -: Right, but the wrong way round: first s, then the exponent.

            return s, exponent → return s, round(exponent * grid)
            -: s is right, but that is the number of the step; the exponent is it divided by `grid`.

            return s, exponent → return 1 / s, exponent
            -: That is what the inputs are multiplied by. Give what the weights are.
        """),
        tolerance=1e-4,
        any_float=True,
    ),
    Exercise(
        "rank-correlation",
        _lists_case,
        rank_correlation,
        (
            *edits("""
            ordered = sorted(values) → return list(values)
            1: That is the correlation of the values themselves (Pearson's). Put a rank in the place of each value
               first.

            ordered.index(value) + (ordered.count(value) + 1) / 2 → ordered.index(value) + 1
            ordered.index(value) + (ordered.count(value) + 1) / 2 → ordered.index(value) + ordered.count(value)
            2: Where values are equal, all of them got the first or the last of their places; they share the mean.

            ordered = sorted(values) → return torch.tensor(values).argsort(stable=True).argsort(stable=True).tolist()
            2: Equal values got different ranks, by the order in which they happen to stand; they share the mean of
               their places.

            ordered.index(value) + (ordered.count(value) + 1) / 2 → sorted(set(values)).index(value)
            2: Where two values are equal, the next one is a rank too low: the two take up two places, and share the
               mean of these.

            ordered = sorted(values) → return torch.tensor(values).argsort(stable=True).tolist()
            1: `argsort` does not give ranks. It tells where the smallest stands, where the next, and so on; the rank
               is the place of each value in the sorted list.

            a @ b / (a.norm() * b.norm()) → 1 - 6 * (a - b).square().sum() / (len(x) ** 3 - len(x))
            3: That formula with the squares of the differences is right where no two values are equal. Take the
               correlation of the ranks.

            a - a.mean(), b - b.mean() → a, b
            3: The ranks' mean is not taken off: a correlation is of what lies above and below the mean.

            (a @ b / (a.norm() * b.norm())).item() → (a @ b / (a.norm() * b.norm())).item() ** 2
            3: That is its square, which has no sign.

            (a @ b / (a.norm() * b.norm())).item() → abs((a @ b / (a.norm() * b.norm())).item())
            3: It has lost its sign: where one goes up as the other goes down, it is negative.

            (a @ b / (a.norm() * b.norm())).item() → (a @ b / len(x)).item()
            3: That is the covariance of the ranks. Divided by both deviations it lies between -1 and 1.

            ranks(x), ranks(y) → ranks(x), ranks([-value for value in y])
            -: The sign is the other way round: one list is ranked from the smallest, the other from the largest.
            """),
            Misconception(
                "That counts pairs in the same order and pairs in the other (Kendall's correlation). Wanted is the "
                "correlation of the ranks.",
                1,
                function=_kendall,
            ),
        ),
        tolerance=1e-5,
    ),
    Exercise(
        "loftq",
        _start_case,
        loftq,
        (
            *edits("""
            for _ in range(rounds) → for _ in range(1)
            (weight - low_rank).reshape → weight.reshape
            1: From the second round on nothing changes: you round W again. Round what is left of W when the adapter's
               product is taken out.

            range(rounds) → range(rounds + 1)
            1: That is a round too many. One round is: round, then take the remainder apart.

            svd(weight - rounded, → svd(weight,
            2: The adapter is made of W itself. It is there for what rounding has lost: take W minus the rounded weight
               apart.

            svd(weight - rounded, → svd(rounded - weight,
            2: The adapter has the wrong sign: it is added, so it has to be what is missing, W minus the rounded weight.

            svd(weight - rounded, → svd(weight - low_rank - rounded,
            2: The adapter of a round is made anew, of all that the rounded weight lacks, with nothing of the round
               before.

            u[:, :rank] * s[:rank] / scaling → u[:, :rank] / scaling
            2: The singular values are missing: B A is U S V with the first `rank` of each.

            u[:, :rank] * s[:rank] / scaling → u[:, :rank] * s[:rank].sqrt() / scaling
            2: Only the root of the singular values is there. Its other half belongs to A, or put all of them into B.

            u[:, :rank] * s[:rank] / scaling → u[:, :rank] * s[:rank] * scaling
            3: The layer multiplies B A by `scaling`, so it has to be divided by it here, not multiplied.

            scaling * b @ a → b @ a
            3: The layer adds `scaling` times B A. What is taken out of W before it is rounded again has that factor
               too.

            return rounded, a, b → return rounded, b, a
            -: A and B have changed places: A is (rank, in), and comes first.

            return rounded, a, b → return rounded + low_rank, a, b
            -: The first result is the rounded weight alone, without the adapter's product.

            blocks.abs().amax(1, keepdim=True) → blocks.abs().amax()
            -: All blocks have one scale. Each run of `block_size` weights has its own absmax.
            """),
            Misconception(
                "The factor is missing. The layer adds `scaling` times B A: divide by it, so that the product comes "
                "out as it should be.",
                3,
                function=_factor_forgotten,
            ),
            Misconception(
                "The adapter is taken out of W first, and the rest is rounded. That is PiSSA's start. Here rounding "
                "comes first, and the adapter is made of what it has lost.",
                1,
                function=_adapter_first,
            ),
            Misconception(
                "After the last round the weight is rounded once more. A round ends with the adapter.",
                1,
                function=_rounded_once_more,
            ),
        ),
        tolerance=1e-4,
        view=_what_a_layer_has,
        any_float=True,
    ),
)
