"""Exercises of notebook 02, second half: scales in 8 bits, and what they decode to."""

import torch

from qlora_lab.checks.differences import a_value_each, each, in_blocks, with_arguments
from qlora_lab.checks.exercise import Exercise, Misconception
from qlora_lab.quantization.datatypes import dynamic_map

SCALE_LEVELS = torch.tensor(dynamic_map(), dtype=torch.float32)
THRESHOLDS = (SCALE_LEVELS[1:] + SCALE_LEVELS[:-1]) / 2


def _randn(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def double_quantize(scales, levels):
    offset = scales.mean()
    blocks = torch.nn.functional.pad(scales - offset, (0, -len(scales) % 256)).view(-1, 256)
    absmax = blocks.abs().amax(1)
    x = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)
    return codes.view(-1)[: len(scales)].to(torch.uint8), absmax, offset


def flipped_blocks(codes, absmax, offset, levels):
    scales = levels[codes.int()] * absmax.repeat_interleave(256)[: len(codes)] + offset
    return scales, (scales < 0).nonzero().flatten()


def _scales(generator: torch.Generator, number: int):
    """Scales none of which lies so close to a threshold that the order of operations would decide its code."""
    n = (256, 40, 300, 512, 700, 1, 257, 600)[number]
    while True:
        scales = _randn(generator, n).abs() + 2.0 + number
        if n > 300:
            scales[256:] *= 3
        if n == 1:
            return scales, SCALE_LEVELS.clone()
        centred = torch.nn.functional.pad(scales - scales.mean(), (0, -n % 256)).view(-1, 256)
        absmax = centred.abs().amax(1, keepdim=True)
        x = (centred / absmax).view(-1)[:n]
        if (absmax > 1e-3).all() and (x[:, None] - THRESHOLDS).abs().amin() > 1e-6:
            return scales, SCALE_LEVELS.clone()


def _stored_scales(generator: torch.Generator, number: int):
    n = (300, 256, 40, 512, 700, 257, 30, 600)[number]
    codes = torch.randint(0, 256, (n,), generator=generator, dtype=torch.uint8)
    codes[number], codes[-1] = 0, 255
    absmax = 2.0 + _randn(generator, -(-n // 256)).abs()
    zero = int(torch.bucketize(-0.5 - number / 20, THRESHOLDS))  # decodes to exactly 0, which is not below zero
    codes[10 + number], absmax[0] = zero, 2.0
    return codes, absmax, -2 * SCALE_LEVELS[zero], SCALE_LEVELS.clone()


def _describe_places(_, one, other) -> str | None:
    """Of the blocks whose scale is negative: which are missing, and which are none."""
    if not isinstance(one, torch.Tensor) or one.ndim != 1 or one.dtype != other.dtype:
        return None
    missing, none = (sorted(set(a.tolist()) - set(b.tolist())) for a, b in ((other, one), (one, other)))
    words = [f"block {missing[0]} is below zero and missing ({len(missing)} are)"] if missing else []
    words += [f"block {none[0]} is not below zero ({len(none)} are not)"] if none else []
    return "; ".join(words) + "." if words else None


def _decoded(scales):
    return scales, (scales < 0).nonzero().flatten()


def _normalized(s):
    blocks = torch.nn.functional.pad(s - s.mean(), (0, -len(s) % 256)).view(-1, 256)
    return (blocks / blocks.abs().amax(1).clamp(min=1e-38)[:, None]).view(-1)[: len(s)]


def _encoded(blocks, count, levels):
    absmax = blocks.abs().amax(1)
    x = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).view(-1)[:count]
    return codes.to(torch.uint8), absmax


def _without_mean(s, levels, offset):
    return *_encoded(torch.nn.functional.pad(s, (0, -len(s) % 256)).view(-1, 256), len(s), levels), offset


def _in_one_block(s, levels):
    return *_encoded((s - s.mean())[None], len(s), levels), s.mean()


def _own_means(s, levels):
    parts = [part - part.mean() for part in s.split(256)]
    coded = [_encoded(part[None], len(part), levels) for part in parts]
    means = torch.stack([part.mean() for part in s.split(256)])
    return torch.cat([codes for codes, _ in coded]), torch.cat([absmax for _, absmax in coded]), means


EXERCISES = (
    Exercise(
        "double-quantize",
        _scales,
        double_quantize,
        (
            Misconception(
                "The mean is returned but was not subtracted first: scales are all positive, so half of the 256 codes "
                "would never occur. Open hint 1.",
                lambda s, levels: _without_mean(s, levels, s.mean()),
            ),
            Misconception(
                "There is no offset: subtract the mean before anything else, and return it. Open hint 1.",
                lambda s, levels: _without_mean(s, levels, torch.zeros(())),
            ),
            Misconception(
                "One absmax for all scales; each 256 of them have their own. Open hint 2.",
                lambda s, levels: _in_one_block(s, levels),
            ),
            Misconception(
                "Each block has a mean of its own here; the offset is one number for the whole tensor. Open hint 1.",
                lambda s, levels: _own_means(s, levels),
            ),
            Misconception(
                "You count the levels below a value; the nearest level is found by counting the midpoints below it. "
                "Open hint 3.",
                lambda s, levels: (
                    torch.bucketize(_normalized(s), levels).clamp(max=255).to(torch.uint8),
                    *double_quantize(s, levels)[1:],
                ),
            ),
            Misconception(
                "These are 255 equal steps; the code is that of the nearest of the given levels. Open hint 3.",
                lambda s, levels: (
                    ((_normalized(s) + 1) * 127.5).round().to(torch.uint8),
                    *double_quantize(s, levels)[1:],
                ),
            ),
        ),
        tolerance=1e-5,
        describe=with_arguments(
            each(1e-5, in_blocks(0.0, lambda _: 256, "group"), a_value_each(1e-5, "group", lambda _: 256), None)
        ),
    ),
    Exercise(
        "flipped-blocks",
        _stored_scales,
        flipped_blocks,
        (
            Misconception(
                "The offset is missing, so about half of the scales seem negative. Open hint 1.",
                lambda c, a, o, levels: flipped_blocks(c, a, 0 * o, levels),
            ),
            Misconception(
                "The offset was multiplied with absmax too; it is added last. Open hint 1.",
                lambda c, a, o, levels: _decoded(
                    (levels[c.int()] + o) * a.repeat_interleave(256)[: len(c)],
                ),
            ),
            Misconception(
                "The second-level scales are dealt out in turn; the first 256 scales share the first. Open hint 2.",
                lambda c, a, o, levels: _decoded(levels[c.int()] * a.repeat(256)[: len(c)] + o),
            ),
            Misconception(
                "The codes are taken as equal steps, (code - 128) / 127; look them up in `levels`. Open hint 1.",
                lambda c, a, o, levels: _decoded((c.float() - 128) / 127 * a.repeat_interleave(256)[: len(c)] + o),
            ),
            Misconception(
                "The scales are right, but a mask came back; the places are wanted. Open hint 3.",
                lambda c, a, o, levels: (flipped_blocks(c, a, o, levels)[0], flipped_blocks(c, a, o, levels)[0] < 0),
            ),
            Misconception(
                "A scale of exactly zero is not below it: `<`, not `<=`. Open hint 3.",
                lambda c, a, o, levels: (
                    flipped_blocks(c, a, o, levels)[0],
                    (flipped_blocks(c, a, o, levels)[0] <= 0).nonzero().flatten(),
                ),
            ),
            Misconception(
                "The scales are right, but these are the blocks whose *level* is negative; the offset lifts most of "
                "them above zero. Open hint 3.",
                lambda c, a, o, levels: (
                    flipped_blocks(c, a, o, levels)[0],
                    (levels[c.int()] < 0).nonzero().flatten(),
                ),
            ),
        ),
        tolerance=1e-6,
        describe=with_arguments(each(1e-6, in_blocks(1e-6, lambda _: 256, "group"), _describe_places)),
    ),
)
