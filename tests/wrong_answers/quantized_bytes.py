"""Wrong answers to the exercises of notebook 02 about sizes."""

import math

from wrong_answers import wrong


@wrong("double-quantized-bits", says="not 32")
def single(block_size, scale_block):
    return 4 + 32 / block_size


@wrong("double-quantized-bits", says="scales of the scales")
def first_level_only(block_size, scale_block):
    return 4 + 8 / block_size


@wrong("double-quantized-bits", says="divide by both")
def second_level_for_weights(block_size, scale_block):
    return 4 + 8 / block_size + 32 / scale_block


@wrong("double-quantized-bits", says="price of the scales alone")
def scales_alone(block_size, scale_block):
    return (8 + 32 / scale_block) / block_size


def parts(n, size):
    blocks = -(-n // size)
    return -(-n // 2), blocks, 4 * -(-blocks // 256)


@wrong("model-bytes", says="for all tensors together")
def all_together(shapes, block_size):
    return sum(parts(sum(math.prod(shape) for shape in shapes), block_size)) + 4


@wrong("model-bytes", says="The offset")
def offset_forgotten(shapes, block_size):
    return sum(sum(parts(math.prod(shape), block_size)) for shape in shapes)


@wrong("model-bytes", says="second-level scales")
def second_level_forgotten(shapes, block_size):
    return sum(sum(parts(math.prod(shape), block_size)[:2]) + 4 for shape in shapes)


@wrong("model-bytes", says="the formula's bits per weight")
def rounded_at_the_end(shapes, block_size):
    bits = 4 + 8 / block_size + 32 / (256 * block_size)
    return int(bits / 8 * sum(math.prod(shape) for shape in shapes))


def rounded_up(n, size=256):
    return -(-n // size)


def stored(shapes, block_size, blocks=rounded_up, groups=rounded_up, codes=lambda n: (n + 1) // 2):
    total = 0
    for rows, columns in shapes:
        count = blocks(rows * columns, block_size)
        total += codes(rows * columns) + count + 4 * groups(count) + 4
    return total


@wrong("model-bytes", says="second-level scales are rounded down")
def groups_rounded_down(shapes, block_size):
    return stored(shapes, block_size, groups=lambda blocks: blocks // 256)


@wrong("model-bytes", says="one too many where 256 divides")
def a_group_more(shapes, block_size):
    return stored(shapes, block_size, groups=lambda blocks: blocks // 256 + 1)


@wrong("model-bytes", says="not one for each tensor")
def one_group(shapes, block_size):
    return stored(shapes, block_size, groups=lambda blocks: 1)


@wrong("model-bytes", says="round the number of blocks up")
def whole_blocks(shapes, block_size):
    return stored(shapes, block_size, blocks=lambda n, size: n // size)


@wrong("model-bytes", says="round the bytes of the codes up")
def whole_bytes_of_codes(shapes, block_size):
    return stored(shapes, block_size, codes=lambda n: n // 2)


@wrong("model-bytes", says="instead of")
def blocks_of_rows(shapes, block_size):
    return sum(rows * stored([(1, columns)], block_size) for rows, columns in shapes)
