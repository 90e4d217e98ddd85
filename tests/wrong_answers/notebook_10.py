"""Wrong answers to the exercises of notebook 10."""

import math

import numpy as np
import torch

from wrong_answers import wrong


@wrong("e2m1-value", says="no 1 in front of the mantissa")
def without_the_exception(code):
    bits = f"{code:04b}"
    value = (1 + int(bits[3]) / 2) * 2 ** (int(bits[1:3], 2) - 1)
    return -value if bits[0] == "1" else value


@wrong("e2m1-value", says="exponent's bias is missing")
def without_the_bias(code):
    e, m = code // 2 % 4, code % 2
    size = m / 2 if e == 0 else (1 + m / 2) * 2.0**e
    return size * (-1) ** (code // 8)


@wrong("e2m1-value", says="sign bit is lost")
def without_the_sign(code):
    return [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][code % 8]


@wrong("e2m1-value", says="divided by the largest")
def from_minus_one_to_one(code):
    sizes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    return sizes[code % 8] / 6 * (1 if code < 8 else -1)


@wrong("e2m1-value", says="counts as an exponent of 1")
def with_an_exponent_of_zero(code):
    s, e, m = code >> 3, (code >> 1) & 3, code & 1
    return (-1) ** s * ((1 + m / 2) * 2 ** (e - 1) if e > 0 else m / 2 * 2 ** (e - 1))


@wrong("power-of-two-scale", says="cuts off towards zero")
def truncated(absmax):
    return 2.0 ** (torch.log2(absmax).long() - 2)


@wrong("power-of-two-scale", says="The 2 is missing")
def to_one(absmax):
    return 2.0 ** torch.floor(torch.log2(absmax))


@wrong("power-of-two-scale", says="to 6 exactly")
def no_power(absmax):
    return absmax / 6.0


@wrong("power-of-two-scale", says="These are the exponents")
def only_the_exponent(absmax):
    return torch.log2(absmax).floor() - 2


@wrong("power-of-two-scale", says="natural logarithm")
def of_another_base(absmax):
    return torch.tensor([2.0 ** (math.floor(math.log(x)) - 2) for x in absmax.tolist()])


@wrong("power-of-two-scale", says="smallest power of two that cuts nothing off")
def large_enough(absmax):
    return 2.0 ** (absmax / 6).log2().ceil()


@wrong("output-error", says="error of the weights")
def of_the_weights(error, moments, weight):
    return (error.norm() / weight.norm()).item()


@wrong("output-error", says="ratio of the squares")
def no_root(error, moments, weight):
    return (torch.trace(error @ moments @ error.T) / torch.trace(weight @ moments @ weight.T)).item()


@wrong("output-error", says="add up all of E M E")
def all_of_it(error, moments, weight):
    return math.sqrt((error @ moments @ error.T).sum() / (weight @ moments @ weight.T).sum())


@wrong("output-error", says="leave out their products")
def by_sizes(error, moments, weight):
    sizes = moments.diagonal()
    return ((error**2 @ sizes).sum() / (weight**2 @ sizes).sum()).sqrt().item()


@wrong("output-error", says="moments count twice")
def as_a_norm(error, moments, weight):
    return ((error @ moments).norm() / (weight @ moments).norm()).item()


@wrong("push-error", says="divided by its first number")
def row_as_it_is(error, moments):
    return torch.outer(error, torch.linalg.inv(moments)[0])[:, 1:]


@wrong("push-error", says="The sign is the other one")
def wrong_way(error, moments):
    return torch.outer(-error, torch.linalg.inv(moments)[0, 1:]) / torch.linalg.inv(moments)[0, 0]


@wrong("push-error", says="make good the whole error by itself")
def each_alone(error, moments):
    return torch.stack([-error * moments[0, k] / moments[k, k] for k in range(1, len(moments))], 1)


@wrong("push-error", says="predicts the other inputs from the first")
def regression_the_other_way(error, moments):
    return -error[:, None] * (moments[0, 1:] / moments[0, 0])


@wrong("push-error", says="one column fewer")
def with_the_first(error, moments):
    row = torch.linalg.inv(moments)[0]
    return error[:, None] * row / row[0]


def _rounded(x, levels):
    return levels[(x[:, None] - levels).abs().argmin(1)]


def _upper(moments):
    damped = moments + 0.01 * moments.diagonal().mean() * torch.eye(len(moments))
    return torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True).float()


@wrong("gptq", says="rounding to the nearest level")
def nearest_level(weight, moments, levels, block_size):
    blocks = weight.reshape(-1, block_size)
    scale = blocks.abs().amax(1, keepdim=True)
    return (_rounded((blocks / scale).view(-1), levels).view_as(blocks) * scale).view_as(weight)


@wrong("gptq", says="rows of one inverse for all columns")
def one_inverse(weight, moments, levels, block_size):
    inverse = torch.linalg.inv(moments + 0.01 * moments.diagonal().mean() * torch.eye(len(moments)))
    w = weight.clone()
    for j in range(w.shape[1]):
        if j % block_size == 0:
            scale = w[:, j : j + block_size].abs().max(1).values
        rounded = _rounded(w[:, j] / scale, levels) * scale
        error = rounded - w[:, j]
        w[:, j] = rounded
        w[:, j + 1 :] += torch.outer(error, inverse[j, j + 1 :] / inverse[j, j])
    return w


@wrong("gptq", says="as it was at the beginning")
def scales_from_the_start(weight, moments, levels, block_size):
    u, w = _upper(moments), weight.clone()
    scales = weight.unflatten(1, (-1, block_size)).abs().amax(2)
    for j in range(w.shape[1]):
        scale = scales[:, j // block_size]
        rounded = _rounded(w[:, j] / scale, levels) * scale
        w[:, j + 1 :] -= torch.outer((w[:, j] - rounded) / u[j, j], u[j, j + 1 :])
        w[:, j] = rounded
    return w


@wrong("gptq", says="The push has the wrong sign")
def pushed_the_wrong_way(weight, moments, levels, block_size):
    u, w = _upper(moments), weight.clone()
    for j in range(w.shape[1]):
        if j % block_size == 0:
            scale = w[:, j : j + block_size].abs().amax(1)
        rounded = _rounded(w[:, j] / scale, levels) * scale
        w[:, j + 1 :] += torch.outer((w[:, j] - rounded) / u[j, j], u[j, j + 1 :])
        w[:, j] = rounded
    return w


@wrong("gptq", says="error is that of the column as it is now")
def error_of_the_original(weight, moments, levels, block_size):
    u, w = _upper(moments), weight.clone()
    for j in range(w.shape[1]):
        if j % block_size == 0:
            scale = w[:, j : j + block_size].abs().amax(1)
        rounded = _rounded(w[:, j] / scale, levels) * scale
        w[:, j + 1 :] -= torch.outer((weight[:, j] - rounded) / u[j, j], u[j, j + 1 :])
        w[:, j] = rounded
    return w


def _search(weight, moments, levels, block_size, exponents, size=None, judge=None):
    """Right where nothing is said."""
    size = moments.diagonal() ** 0.5 if size is None else size
    best = None
    for exponent in exponents:
        s = size**exponent / (size**exponent).aminmax().min.mul((size**exponent).max()).sqrt()
        blocks = (weight * s).reshape(-1, block_size)
        scale = blocks.abs().amax(1, keepdim=True)
        decoded = (_rounded((blocks / scale).view(-1), levels).view_as(blocks) * scale).view_as(weight)
        error = decoded / s - weight
        squares = torch.trace(error @ moments @ error.T).item() if judge is None else judge(error, decoded, s)
        if best is None or squares < best[0]:
            best = squares, s, exponent
    return best[1], best[2]


@wrong("awq-scales", says="The diagonal has mean squares")
def squares_for_sizes(weight, moments, levels, block_size, grid):
    exponents = [k / grid for k in range(grid + 1)]
    return _search(weight, moments, levels, block_size, exponents, moments.diagonal())


@wrong("awq-scales", says="The exponent 1 was not tried")
def up_to_one(weight, moments, levels, block_size, grid):
    return _search(weight, moments, levels, block_size, [k / grid for k in range(grid)])


@wrong("awq-scales", says="You choose by the error of the weights")
def by_the_weights(weight, moments, levels, block_size, grid):
    exponents = [k / grid for k in range(grid + 1)]
    return _search(weight, moments, levels, block_size, exponents, judge=lambda error, *_: error.square().sum().item())


@wrong("awq-scales", says="the error of the scaled weights")
def of_scaled_weights(weight, moments, levels, block_size, grid):
    def judge(error, decoded, s):
        off = decoded - weight * s
        return ((off @ moments) * off).sum().item()

    return _search(weight, moments, levels, block_size, [k / grid for k in range(grid + 1)], judge=judge)


@wrong("awq-scales", says="columns of large inputs smaller")
def the_other_way(weight, moments, levels, block_size, grid):
    exponents = [k / grid for k in range(grid + 1)]
    s, exponent = _search(weight, moments, levels, block_size, [-e for e in exponents])
    return s, -exponent


@wrong("rank-correlation", says="Pearson")
def of_the_values(x, y):
    return float(np.corrcoef(x, y)[0, 1])


@wrong("rank-correlation", says="by the order in which they happen to stand")
def two_argsorts(x, y):
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])


@wrong("rank-correlation", says="right where no two values are equal")
def the_short_formula(x, y):
    def ranks(values):
        return [(sum(v < w for v in values) + sum(v <= w for v in values) + 1) / 2 for w in values]

    n = len(x)
    return 1 - 6 * sum((a - b) ** 2 for a, b in zip(ranks(x), ranks(y), strict=True)) / (n**3 - n)


@wrong("rank-correlation", says="a rank too low")
def dense_ranks(x, y):
    ranks = [torch.tensor(values).unique(return_inverse=True)[1].double() for values in (x, y)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


@wrong("rank-correlation", says="Kendall")
def pairs_in_order(x, y):
    total = 0
    for i in range(len(x)):
        for j in range(i):
            total += np.sign((x[i] - x[j]) * (y[i] - y[j]))
    return float(total / (len(x) * (len(x) - 1) / 2))


@wrong("loftq", says="you round W again")
def always_the_same_weight(weight, rank, scaling, levels, block_size, rounds):
    blocks = weight.reshape(-1, block_size)
    scale = blocks.abs().max(1, keepdim=True).values
    codes = (blocks[..., None] / scale[..., None] - levels).abs().argmin(-1)
    q = (levels[codes] * scale).view_as(weight)
    for _ in range(rounds):
        u, s, v = torch.linalg.svd(weight - q, full_matrices=False)
    root = (s[:rank] / scaling).sqrt()
    return q, root[:, None] * v[:rank], u[:, :rank] * root


@wrong("loftq", says="The factor is missing")
def scaling_forgotten(weight, rank, scaling, levels, block_size, rounds):
    product = torch.zeros_like(weight)
    for _ in range(rounds):
        blocks = (weight - product).reshape(-1, block_size)
        scale = blocks.abs().max(1, keepdim=True).values
        codes = (blocks[..., None] / scale[..., None] - levels).abs().argmin(-1)
        q = (levels[codes] * scale).view_as(weight)
        u, s, v = torch.linalg.svd(weight - q, full_matrices=False)
        b, a = u[:, :rank] @ torch.diag(s[:rank]), v[:rank]
        product = b @ a
    return q, a, b


@wrong("loftq", says="The adapter is made of W itself")
def of_the_weight(weight, rank, scaling, levels, block_size, rounds):
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    a, b = v[:rank], u[:, :rank] * s[:rank] / scaling
    for round_ in range(rounds):
        rest = weight - scaling * b @ a if round_ else weight
        blocks = rest.reshape(-1, block_size)
        scale = blocks.abs().max(1, keepdim=True).values
        codes = (blocks[..., None] / scale[..., None] - levels).abs().argmin(-1)
        q = (levels[codes] * scale).view_as(weight)
    return q, a, b


@wrong("loftq", says="That is PiSSA's start")
def adapter_first(weight, rank, scaling, levels, block_size, rounds):
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    a, b = v[:rank], u[:, :rank] * s[:rank] / scaling
    blocks = (weight - scaling * b @ a).reshape(-1, block_size)
    scale = blocks.abs().max(1, keepdim=True).values
    codes = (blocks[..., None] / scale[..., None] - levels).abs().argmin(-1)
    return (levels[codes] * scale).view_as(weight), a, b
