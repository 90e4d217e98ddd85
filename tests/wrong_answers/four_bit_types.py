"""Wrong answers to the later exercises of notebook 01."""

import math

import torch

from wrong_answers import wrong


def _edge(bits):
    return 1 - (1 / 2 ** (bits + 1) + 1 / (2 * (2**bits - 1))) / 2


def _sides(bits, edge):
    def side(count):
        return torch.special.ndtri(torch.linspace(edge, 0.5, count + 1, dtype=torch.float64))[:-1]

    return side(2 ** (bits - 1)), -side(2 ** (bits - 1) - 1)


@wrong("normal-float", says="no exact zero")
def symmetric(bits):
    levels = torch.special.ndtri(torch.linspace(1 - _edge(bits), _edge(bits), 2**bits))
    return levels / levels.max()


@wrong("normal-float", says="divide by the largest")
def not_divided(bits):
    positive, negative = _sides(bits, _edge(bits))
    return torch.cat((positive, negative, torch.zeros(1))).sort().values.float()


@wrong("normal-float", says="sides are swapped")
def swapped_sides(bits):
    positive, negative = _sides(bits, _edge(bits))
    levels = torch.cat((-positive, -negative, torch.zeros(1))).sort().values
    return (levels / levels.abs().max()).float()


@wrong("normal-float", says="twice or more")
def three_zeros(bits):
    positive, negative = _sides(bits, _edge(bits))
    levels = torch.cat((positive, torch.zeros(3), negative)).sort().values
    return (levels / levels.max()).float()


@wrong("normal-float", says="NaN or an infinity")
def certain(bits):
    positive, negative = _sides(bits, 1.0)
    return torch.cat((positive, torch.zeros(1), negative)).sort().values.float() / positive.max().float()


@wrong("bits-per-weight", says="the codes alone")
def four(block_size, constants, double_quant):
    return 4


@wrong("bits-per-weight", says="there are two")
def one_constant(block_size, constants, double_quant):
    return 4 + (8 / block_size + 1 / 8 / block_size if double_quant else 32 / block_size)


@wrong("bits-per-weight", says="need scales themselves")
def no_second_level(block_size, constants, double_quant):
    return 4 + (8 if double_quant else 32) * constants / block_size


@wrong("bits-per-weight", says="Double quantization is ignored")
def always_32(block_size, constants, double_quant):
    return (4 * block_size + 32 * constants) / block_size


@wrong("predict-and-measure", says="averages the steps")
def mean_of_steps(weight, block_size):
    blocks = weight.reshape(-1, block_size)
    step = blocks.abs().amax(1, keepdim=True) / 7
    error = (blocks / step).round() * step - blocks
    return step.mean().item() / math.sqrt(12), error.square().mean().sqrt().item()


@wrong("predict-and-measure", says="a whole step")
def whole_step(weight, block_size):
    blocks = weight.reshape(-1, block_size)
    step = blocks.abs().amax(1, keepdim=True) / 7
    error = (blocks / step).round() * step - blocks
    return step.square().mean().sqrt().item(), error.square().mean().sqrt().item()


@wrong("predict-and-measure", says="half a step")
def half_a_step(weight, block_size):
    blocks = weight.reshape(-1, block_size)
    step = blocks.abs().amax(1, keepdim=True) / 7
    error = (blocks / step).round() * step - blocks
    return step.square().mean().sqrt().item() / 2, error.square().mean().sqrt().item()


@wrong("predict-and-measure", says="a mean of magnitudes")
def mean_absolute(weight, block_size):
    blocks = weight.reshape(-1, block_size)
    step = blocks.abs().amax(1, keepdim=True) / 7
    error = (blocks / step).round() * step - blocks
    return (step.square().mean() / 12).sqrt().item(), error.abs().mean().item()


@wrong("bits-per-weight", says="you count them for one")
def second_level_shared(block_size, constants, double_quant):
    return 4 + (8 * constants / block_size + 1 / (8 * block_size) if double_quant else 32 * constants / block_size)


@wrong("bits-per-weight", says="divide by both")
def second_level_for_weights(block_size, constants, double_quant):
    return 4 + constants * (8 / block_size + 32 / 256 if double_quant else 32 / block_size)


@wrong("predict-and-measure", says="another number of steps")
def sixteen_levels(weight, block_size):
    blocks = weight.reshape(-1, block_size)
    step = 2 * blocks.abs().amax(1, keepdim=True) / 15
    error = (blocks / step).round() * step - blocks
    return (step.square().mean() / 12).sqrt().item(), error.square().mean().sqrt().item()


@wrong("predict-and-measure", says="one step for the whole tensor")
def one_step(weight, block_size):
    step = weight.abs().max() / 7
    error = (weight / step).round() * step - weight
    return step.item() / math.sqrt(12), error.square().mean().sqrt().item()
