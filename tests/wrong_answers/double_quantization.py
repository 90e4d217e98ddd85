"""More wrong answers to the exercises of notebook 02 about scales in 8 bits."""

import torch

from wrong_answers import wrong


@wrong("flipped-blocks", says="exactly zero")
def zero_is_negative(codes, absmax, offset, levels):
    scales = levels[codes.long()] * absmax.repeat_interleave(256)[: len(codes)] + offset
    return scales, (scales <= 0).nonzero().flatten()


@wrong("flipped-blocks", says="its dtype is torch.int32")
def narrow_places(codes, absmax, offset, levels):
    scales = levels[codes.long()] * absmax.repeat_interleave(256)[: len(codes)] + offset
    return scales, (scales < 0).nonzero().flatten().int()


@wrong("flipped-blocks", says="block 0 is below zero and missing")
def counted_from_one(codes, absmax, offset, levels):
    scales = levels[codes.long()] * absmax.repeat_interleave(256)[: len(codes)] + offset
    return scales, (scales < 0).nonzero().flatten() + 1


@wrong("double-quantize", says="1 of 1 groups differ, the first is group 0 (elements 0 to 255)")
def median_for_mean(scales, levels):
    offset = scales.median()
    groups = (scales - offset).split(256)
    absmax = torch.stack([group.abs().max() for group in groups])
    x = torch.cat([group / group.abs().max().clamp(min=1e-38) for group in groups])
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).to(torch.uint8), absmax, offset


@wrong("double-quantize", says="value 2 of 3 differs: 1 of 1 groups differ, the first is group 0 (elements from 0)")
def absmax_doubled(scales, levels):
    offset = scales.mean()
    groups = (scales - offset).split(256)
    absmax = torch.stack([group.abs().max() for group in groups])
    x = torch.cat([group / group.abs().max().clamp(min=1e-38) for group in groups])
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).to(torch.uint8), 2 * absmax, offset
