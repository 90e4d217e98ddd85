"""Wrong answers to the exercises of notebook 05."""

from wrong_answers import wrong


@wrong("qlora-forward", says="without its factor")
def no_scaling(x, w, a, b, s):
    return x @ w.T + x @ a.T @ b.T


@wrong("qlora-forward", says="the adapter's share only")
def all_scaled(x, w, a, b, s):
    return s * (x @ (w + b @ a).T)


@wrong("qlora-forward", says="base alone")
def no_adapter(x, w, a, b, s):
    return x @ w.transpose(0, 1)


@wrong("qlora-forward", says="no error says so")
def not_transposed(x, w, a, b, s):
    return x @ w + s * (x @ a.T) @ b.T


@wrong("qlora-forward", says="x goes through A first")
def wrong_order(x, w, a, b, s):
    return x @ w.T + s * x @ (a @ b)


@wrong("qlora-backward", says="only the base's share")
def base_only(g, x, w, a, b, s):
    return g @ w, s * (g @ b).T @ x, s * g.T @ (x @ a.T)


@wrong("qlora-backward", says="missing in dA and dB")
def unscaled(g, x, w, a, b, s):
    return g @ w + s * g @ b @ a, (g @ b).T @ x, g.T @ (x @ a.T)


@wrong("qlora-backward", says="are transposed")
def transposed(g, x, w, a, b, s):
    return g @ w + s * g @ b @ a, (s * (g @ b).T @ x).T, (s * g.T @ (x @ a.T)).T


@wrong("qlora-backward", says="y = x W^T, so dx = g W")
def weight_turned(g, x, w, a, b, s):
    return g @ w.T + s * g @ b @ a, s * (g @ b).T @ x, s * g.T @ (x @ a.T)


@wrong("qlora-backward", says="2 values instead of 3")
def forgets_dx(g, x, w, a, b, s):
    return s * (g @ b).T @ x, s * g.T @ (x @ a.T)


@wrong("qlora-forward", says="One of A and B is not transposed")
def a_as_it_is(x, w, a, b, s):
    return x @ w.T + s * (x @ a) @ b.T


@wrong("qlora-forward", says="One of A and B is not transposed")
def b_as_it_is(x, w, a, b, s):
    return x @ w.T + s * (x @ a.T) @ b


@wrong("full-training-bytes", says="without gradients")
def no_gradients(parameters):
    return 2 * parameters + 8 * parameters


@wrong("full-training-bytes", says="two moments")
def one_moment(parameters):
    return (2 + 2 + 4) * parameters


@wrong("full-training-bytes", says="in 32 bits")
def all_in_32_bits(parameters):
    return 4 * 4 * parameters


@wrong("full-training-bytes", says="two bytes too many")
def and_a_copy_in_16_bits(parameters):
    return 14 * parameters


@wrong("stored-bytes", says="codes alone")
def codes_only(elements, block_size, double_quant):
    return (elements + 1) // 2


@wrong("stored-bytes", says="last block may be shorter")
def whole_blocks_only(elements, block_size, double_quant):
    blocks = elements // block_size
    return (elements + 1) // 2 + (blocks + 4 * -(-blocks // 256) + 4 if double_quant else 4 * blocks)


@wrong("stored-bytes", says="scales of their own")
def no_second_level(elements, block_size, double_quant):
    blocks = -(-elements // block_size)
    return (elements + 1) // 2 + (blocks if double_quant else 4 * blocks)


@wrong("stored-bytes", says="offset")
def no_offset(elements, block_size, double_quant):
    blocks = -(-elements // block_size)
    return (elements + 1) // 2 + (blocks + 4 * -(-blocks // 256) if double_quant else 4 * blocks)


@wrong("qlora-bytes", says="Only adapters are trained")
def trains_the_base(quantized, others, adapters, tokens, hidden, layers):
    return (4.127 / 8 + 10) * quantized + 2 * others + 12 * adapters + 2 * tokens * hidden * layers


@wrong("qlora-bytes", says="4.127")
def exactly_four_bits(quantized, others, adapters, tokens, hidden, layers):
    return quantized / 2 + 2 * others + 12 * adapters + 2 * tokens * hidden * layers


@wrong("qlora-bytes", says="cost more than their weights")
def adapters_for_free(quantized, others, adapters, tokens, hidden, layers):
    return 4.127 / 8 * quantized + 2 * others + 2 * adapters + 2 * tokens * hidden * layers


@wrong("qlora-bytes", says="once per layer")
def one_layer(quantized, others, adapters, tokens, hidden, layers):
    return 4.127 / 8 * quantized + 2 * others + 12 * adapters + 2 * tokens * hidden


@wrong("fits", says="2^30 bytes each")
def gigabytes(peak, gib, reserve):
    return peak <= gib * 1e9 - reserve * 1e9


@wrong("fits", says="reserve is not subtracted")
def no_reserve(peak, gib, reserve):
    return peak <= gib * 1024**3


@wrong("fits", says="wrong way round")
def turned(peak, gib, reserve):
    return peak > gib * 2**30 - reserve * 1e9


def counted(elements, block_size, double_quant, blocks=None, groups=lambda blocks: -(-blocks // 256)):
    blocks = -(-elements // block_size) if blocks is None else blocks
    return -(-elements // 2) + (blocks + 4 * groups(blocks) + 4 if double_quant else 4 * blocks)


@wrong("stored-bytes", says="you round down")
def groups_rounded_down(elements, block_size, double_quant):
    return counted(elements, block_size, double_quant, groups=lambda blocks: blocks // 256)


@wrong("stored-bytes", says="not one for the whole tensor")
def one_group(elements, block_size, double_quant):
    return counted(elements, block_size, double_quant, groups=lambda blocks: 1)


@wrong("stored-bytes", says="second-level scales, four bytes for each 256 scales or part of 256, are missing")
def no_groups(elements, block_size, double_quant):
    return counted(elements, block_size, double_quant, groups=lambda blocks: 0)


@wrong("stored-bytes", says="one too many")
def a_group_more(elements, block_size, double_quant):
    return counted(elements, block_size, double_quant, groups=lambda blocks: blocks // 256 + 1)


@wrong("stored-bytes", says="one too many")
def a_block_more(elements, block_size, double_quant):
    return counted(elements, block_size, double_quant, blocks=elements // block_size + 1)


@wrong("stored-bytes", says="not one for each 256 scales")
def an_offset_for_each_group(elements, block_size, double_quant):
    return counted(elements, block_size, double_quant, groups=lambda blocks: 2 * -(-blocks // 256) - 1)


@wrong("stored-bytes", says="instead of")
def block_size_ignored(elements, block_size, double_quant):
    return counted(elements, 64, double_quant)


@wrong("fits", says="you take it for GiB")
def reserve_in_gib(peak, gib, reserve):
    return peak <= gib * 2**30 - reserve * 2**30


@wrong("fits", says="exactly fills the card")
def strictly_less(peak, gib, reserve):
    return peak < gib * 2**30 - reserve * 10**9


@wrong("fits", says="True instead of False")
def whole_gib(peak, gib, reserve):
    return peak // 2**30 <= gib - reserve


@wrong("fits", says="bool is wanted")
def one_or_zero(peak, gib, reserve):
    return int(peak <= gib * 2**30 - reserve * 10**9)


@wrong("qlora-bytes", says="not quantized are missing")
def others_forgotten(quantized, others, adapters, tokens, hidden, layers):
    return 4.127 / 8 * quantized + 12 * adapters + 2 * tokens * hidden * layers


@wrong("qlora-bytes", says="counted as numbers")
def inputs_as_numbers(quantized, others, adapters, tokens, hidden, layers):
    return 4.127 / 8 * quantized + 2 * others + 12 * adapters + tokens * hidden * layers


@wrong("qlora-bytes", says="eight bytes, and you count four")
def moments_in_16_bits(quantized, others, adapters, tokens, hidden, layers):
    return 4.127 / 8 * quantized + 2 * others + (2 + 2 + 2 + 2) * adapters + 2 * tokens * hidden * layers


@wrong("qlora-backward", says="leave out value 2 of 4")
def a_value_too_many(g, x, w, a, b, s):
    dw = g.T @ x
    dx = g @ (w + s * b @ a)
    return dx, dw, s * b.T @ dw, s * dw @ a.T


@wrong("qlora-backward", says="you scale the base's with it")
def base_scaled_backwards(g, x, w, a, b, s):
    dx = s * (g @ w + g @ b @ a)
    da = s * (g @ b).T @ x
    db = s * g.T @ (x @ a.T)
    return dx, da, db


@wrong("stored-bytes", says="which is right for whole blocks only")
def not_rounded(elements, block_size, double_quant):
    codes = elements / 2
    blocks = elements / block_size
    return codes + (blocks + blocks / 256 * 4 + 4 if double_quant else blocks * 4)


@wrong("stored-bytes", says="which is right for whole blocks only")
def cut_in_the_end(elements, block_size, double_quant):
    bits = 4 + (8 / block_size + 32 / (256 * block_size) if double_quant else 32 / block_size)
    return int(elements * bits / 8) + (4 if double_quant else 0)


@wrong("qlora-bytes", says="in GB, where bytes are wanted?")
def in_gb(quantized, others, adapters, tokens, hidden, layers):
    return (quantized * 4.127 / 8 + others * 2 + adapters * 12 + tokens * hidden * layers * 2) / 1e9


@wrong("fits", says="Next to nothing of the reserve is subtracted")
def reserve_in_bytes(peak, gib, reserve):
    return peak < gib * 2**30 - reserve
