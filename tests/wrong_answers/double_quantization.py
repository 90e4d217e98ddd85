"""More wrong answers to the exercises of notebook 02, second half, which nobody had foreseen."""

from wrong_answers import wrong


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


@wrong("flipped-blocks", says="exactly zero")
def zero_is_negative(codes, absmax, offset, levels):
    scales = levels[codes.long()] * absmax.repeat_interleave(256)[: len(codes)] + offset
    return scales, (scales <= 0).nonzero().flatten()


@wrong("flipped-blocks", says="its dtype is torch.int32")
def narrow_places(codes, absmax, offset, levels):
    scales = levels[codes.long()] * absmax.repeat_interleave(256)[: len(codes)] + offset
    return scales, (scales < 0).nonzero().flatten().int()
