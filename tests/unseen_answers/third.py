"""Answers written before looking at how the checks tell what an answer looks like, which had learnt from the others."""

import itertools
import math
import statistics

import numpy as np
import torch

from unseen_answers import right, wrong

# ---- 00


@wrong("weights-in-gb", says="The bits of a parameter are divided by 8 and rounded down:")
def whole_bytes_per_weight(parameters, bits):
    return parameters * (bits // 8) / 10**9


# ---- 01


@wrong("decode", says="The step is the length of the range, high - low, over 15;")
def low_is_not_taken_off(code, low, high):
    return low + code / 15 * high


@wrong("block-absmax", says="The largest weight is taken first and its magnitude after")
def magnitude_of_the_largest(weight, block_size):
    flat = weight.reshape(-1)
    return torch.stack([flat[i : i + block_size].max().abs() for i in range(0, len(flat), block_size)])


@right("block-absmax")
def reduced_at_the_beginnings(weight, block_size):
    flat = np.abs(weight.numpy().ravel())
    return torch.from_numpy(np.maximum.reduceat(flat, range(0, flat.size, block_size)))


@wrong("nearest-code", says="That rounds as if the levels were equally spaced. Compare")
def steps_are_equal(x, levels):
    return ((x + 1) / 2 * 15).round().to(torch.uint8)


@wrong("nearest-code", says="That takes the highest level not above the number. The")
def the_level_below(x, levels):
    codes = []
    for number in x:
        code = 0
        while code < 15 and levels[code + 1] <= number:
            code += 1
        codes.append(code)
    return torch.tensor(codes, dtype=torch.uint8)


@right("nearest-code")
def the_least_of_pairs(x, levels):
    codes = [min((abs(level - number), code) for code, level in enumerate(levels.tolist()))[1] for number in x.tolist()]
    return torch.tensor(codes, dtype=torch.uint8)


@wrong("pack-nibbles", says="That pairs the first half with the second half; neighbours")
def halves_are_partners(codes):
    if len(codes) % 2:
        codes = torch.cat([codes, torch.tensor([7], dtype=torch.uint8)])
    first, second = codes.chunk(2)
    return first * 16 + second


@right("pack-nibbles")
def bit_by_bit(codes):
    numbers = [*codes.tolist(), 7][: len(codes) + len(codes) % 2]
    bits = [int(bit) for number in numbers for bit in format(number, "04b")]
    return torch.from_numpy(np.packbits(np.array(bits, dtype=np.uint8)))


@wrong("normal-float", says="The outermost probability is half a step short of 1, on")
def one_probability_for_both_sides(bits):
    n = 2**bits
    p = 1 - 1 / (2 * n)
    above = torch.special.ndtri(torch.linspace(0.5, p, n // 2 + 1))[1:]
    below = -torch.special.ndtri(torch.linspace(0.5, p, n // 2))[1:]
    levels = torch.cat([below, torch.zeros(1), above])
    return levels.sort().values / levels.max()


@wrong("bits-per-weight", says="A second-level scale serves 256 constants, and each of")
def floats_of_groups_for_every_weight(block_size, constants, double_quant):
    if double_quant:
        return 4 + constants * 8 / block_size + 32 / 256
    return 4 + constants * 32 / block_size


@wrong("predict-and-measure")
def steps_of_sixteen_levels(weight, block_size):
    scale = weight.abs().amax(1, keepdim=True) / 8
    rounded = (weight / scale).round().clamp(-8, 7) * scale
    return (scale / 12**0.5).square().mean().sqrt().item(), (weight - rounded).square().mean().sqrt().item()


@right("predict-and-measure")
def block_by_block(weight, block_size):
    predicted = measured = 0.0
    for block in weight.numpy().astype(np.float64):
        step = np.abs(block).max() / 7
        predicted += step**2 / 12 * len(block)
        measured += sum((number - step * np.rint(number / step)) ** 2 for number in block) if step else 0.0
    return math.sqrt(predicted / weight.numel()), math.sqrt(measured / weight.numel())


@wrong("counterexamples", says="Your second block does not expose the tie. Random numbers")
def zeros_for_the_last_two(levels):
    return [-torch.arange(16).float() - 1, torch.zeros(16), torch.zeros(16)]


# ---- 02


@wrong("weights-of-a-code", says="Half a step each way is right for equal steps; NF4's levels")
def half_a_step_each_way(code, absmax, levels):
    half = absmax / 15
    return (max(levels[code] * absmax - half, -absmax), min(levels[code] * absmax + half, absmax))


@wrong("dequantize-packed", says="A scale is used for `block_size` bytes; it belongs to")
def scale_for_bytes(packed, scales, table, block_size, n):
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:n].long()
    return table[codes] * scales[torch.arange(n) // 2 // block_size]


@right("dequantize-packed")
def weight_by_weight(packed, scales, table, block_size, n):
    out = np.empty(n, dtype=np.float32)
    for i in range(n):
        code = packed[i // 2].item() // 16 if i % 2 == 0 else packed[i // 2].item() % 16
        out[i] = table[code].item() * scales[i // block_size].item()
    return torch.tensor(out)


@wrong("least-error-scale", says="That is the mean of the quotients: a level near zero then")
def mean_of_the_ratios(w, q):
    ratio = torch.where(q == 0, torch.zeros_like(w), w / q)
    return ratio.sum(1) / (q != 0).sum(1).clamp(min=1)


@right("least-error-scale")
def by_einsum(w, q):
    return torch.einsum("bi,bi->b", w, q).div(torch.einsum("bi,bi->b", q, q)).nan_to_num(0.0)


@wrong("double-quantize")
def greatest_of_a_group_not_its_magnitude(scales, levels):
    offset = scales.mean()
    centered = scales - offset
    codes, absmax2 = [], []
    for group in centered.split(256):
        top = group.max()
        absmax2.append(top)
        x = group / top if top > 0 else group
        codes.append((x[:, None] - levels).abs().argmin(1))
    return torch.cat(codes).to(torch.uint8), torch.stack(absmax2), offset


@wrong("flipped-blocks", says="The scales are right, but these are the blocks whose")
def without_the_offset(codes, absmax2, offset, levels):
    scales = levels[codes.long()] * absmax2.repeat_interleave(256)[: len(codes)]
    return scales + offset, (scales < 0).nonzero().flatten()


@right("flipped-blocks")
def as_lists(codes, absmax2, offset, levels):
    scales = [levels[c].item() * absmax2[i // 256].item() + offset.item() for i, c in enumerate(codes.tolist())]
    return torch.tensor(scales), torch.tensor([i for i, s in enumerate(scales) if s < 0], dtype=torch.int64)


@wrong("model-bytes", says="You rounded once, for all tensors together. Each is stored")
def all_tensors_as_one(shapes, block_size):
    n = sum(rows * columns for rows, columns in shapes)
    blocks = math.ceil(n / block_size)
    return math.ceil(n / 2) + blocks + 4 * math.ceil(blocks / 256) + 4


# ---- 03


@wrong("adapter-parameters", says="That takes one of the two sides twice, as for a square")
def as_if_square(n_in, n_out, rank):
    return 2 * rank * max(n_in, n_out)


@wrong("break-even-rank", says="One is always subtracted. Only at an exact tie is that")
def one_less_in_any_case(n_in, n_out):
    return max(0, n_in * n_out // (n_in + n_out) - 1)


@wrong("lora-forward", says="Without rsLoRA the factor is alpha / r; you take alpha")
def alpha_is_not_divided(x, w, a, b, alpha, use_rslora):
    r = a.shape[0]
    scaling = alpha / r**0.5 if use_rslora else alpha
    return x @ w.T + scaling * (x @ a.T @ b.T)


@right("lora-forward")
def named_dimensions(x, w, a, b, alpha, use_rslora):
    r = b.shape[1]
    s = alpha * r ** (-0.5 if use_rslora else -1)
    return torch.einsum("bni,oi->bno", x, w + torch.einsum("or,ri->oi", b, a) * s)


@wrong("adapter-gradients", says="The values are right, but where 1 to 2 should be, there is")
def of_the_product_not_the_halves(gradient, a, b, s):
    return s * a @ gradient.T, s * gradient.T @ b


@right("adapter-gradients")
def by_autograd(gradient, a, b, s):
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    (s * (b @ a) * gradient).sum().backward()
    return a.grad, b.grad


@wrong("merge-adapter", says="r is the number of rows of A, (r, in); you divide by its")
def scaled_by_alpha_over_columns(w, a, b, alpha):
    return (w.float() + alpha / a.shape[1] * (b @ a)).to(w.dtype)


@right("merge-adapter")
def one_rank_after_the_other(w, a, b, alpha):
    merged = w.double()
    for column, row in zip(b.double().T, a.double(), strict=True):
        merged = merged + torch.outer(column, row) * (alpha / len(a))
    return merged.to(w.dtype)


@wrong("find-targets", says="You compare the last name only; a target may be several")
def only_the_last_name(paths, targets):
    return [path for path in paths if path.split(".")[-1] in targets]


@wrong("best-rank-r", says="torch.linalg.svd returns the third factor transposed")
def v_taken_for_its_transpose(matrix, rank):
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ torch.diag(s[:rank]) @ v[:, :rank].T


@right("best-rank-r")
def projected(matrix, rank):
    values, vectors = torch.linalg.eigh(matrix.double().T @ matrix.double())
    top = vectors[:, values.argsort(descending=True)[:rank]]
    return (matrix.double() @ top @ top.T).float()


@wrong("predict-trainable", says="k and v read `hidden` numbers; only what they put out is")
def queries_and_keys_have_their_heads(hidden, mlp, layers, heads, kv_heads, rank):
    kv = kv_heads * hidden // heads
    attention = 2 * (hidden + hidden) + 2 * (kv + kv)
    return layers * rank * (attention + 3 * (hidden + mlp))


# ---- 04


@wrong("state-bytes", says="There are scales for both moments; you count them for one.")
def one_scale_for_both(parameters, bits):
    if bits == 8:
        return 2 * parameters + 4 * math.ceil(parameters / 256)
    return 2 * parameters * bits // 8


@wrong("adamw-step", says="eps is added after the square root, not inside it. Open")
def epsilon_under_the_root(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient**2
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return p - lr * (m_hat / (v_hat + eps).sqrt() + weight_decay * p), m, v


@right("adamw-step")
def by_the_optimizer(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    new = torch.nn.Parameter(p.clone())
    new.grad = gradient.clone()
    optimizer = torch.optim.AdamW([new], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
    optimizer.state[new] = {"step": torch.tensor(step - 1.0), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    optimizer.step()
    return new.detach(), optimizer.state[new]["exp_avg"], optimizer.state[new]["exp_avg_sq"]


@wrong("pages-of", says="The number of pages is not ceil(count / per_page): a")
def from_the_count_alone(first, count, per_page):
    start = first // per_page
    return list(range(start, start + math.ceil(count / per_page)))


@right("pages-of")
def element_by_element(first, count, per_page):
    return np.unique(np.arange(first, first + count) // per_page).tolist()


@wrong("evict", says="That is the page of `due` used longest ago; these have to")
def due_first(last_used, due):
    return min(
        (page for page in last_used if page in due), key=last_used.get, default=min(last_used, key=last_used.get)
    )


@wrong("bytes-moved", says="What comes in has to go out again: each page that is not")
def one_way(pages, resident, page_bytes):
    return max(0, pages - resident) * page_bytes


# ---- 05


@wrong("full-training-bytes", says="AdamW keeps two moments for each weight, with four bytes")
def moments_in_16_bits(parameters):
    return parameters * (2 + 2 + 2 + 2)


@wrong("qlora-backward", says="dx has only the adapter's share. The frozen weight has no")
def frozen_weight_passes_nothing_on(g, x, w, a, b, s):
    return s * g @ b @ a, s * b.T @ g.T @ x, s * g.T @ x @ a.T


@right("qlora-backward")
def summed_over_names(g, x, w, a, b, s):
    da = torch.einsum("no,or,ni->ri", g, b, x) * s
    db = torch.einsum("no,ni,ri->or", g, x, a) * s
    return torch.einsum("no,oi->ni", g, w + s * torch.einsum("or,ri->oi", b, a)), da, db


@wrong("stored-bytes", says="A second-level scale serves 256 *scales*, not 256 elements.")
def groups_of_elements(elements, block_size, double_quant):
    codes, blocks = math.ceil(elements / 2), math.ceil(elements / block_size)
    if not double_quant:
        return codes + 4 * blocks
    return codes + blocks + 4 * math.ceil(elements / 256) + 4


@wrong("qlora-bytes", says="With checkpointing each layer keeps its input, so the")
def inputs_of_one_layer(quantized, others, adapters, tokens, hidden, layers):
    return quantized * 4.127 / 8 + others * 2 + adapters * (2 + 2 + 4 + 4) + tokens * hidden * 2


@wrong("fits", says="The reserve is given in GB, 10^9 bytes each; you take it")
def reserve_in_gib(peak, gib, reserve):
    return peak <= (gib - reserve) * 2**30


# ---- 06


@right("guessing-loss")
def entropy_of_equals(vocabulary):
    p = np.full(vocabulary, 1 / vocabulary, dtype=np.float32)
    return -(p * np.log(p)).sum(dtype=np.float64)


@wrong("build-labels", says="The end of the answer has no label: a model trained like this")
def ends_are_padding(input_ids, prompt_lengths, lengths):
    labels = input_ids.clone()
    labels[input_ids == 2] = -100
    for row, n in enumerate(prompt_lengths):
        labels[row, :n] = -100
    return labels


@right("build-labels")
def token_by_token(input_ids, prompt_lengths, lengths):
    rows = [
        [t if p <= k < n else -100 for k, t in enumerate(row)]
        for row, p, n in zip(input_ids.tolist(), prompt_lengths.tolist(), lengths.tolist(), strict=True)
    ]
    return torch.tensor(rows)


@wrong("supervised-loss", says="The sum is divided by all positions instead of those with a")
def divided_by_all_places(logits, labels):
    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    losses = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return losses / labels.numel()


@wrong("accumulate", says="That is the gradient of the summed loss: divide by the")
def summed_with_weights(gradients, tokens):
    return sum(gradient * n for gradient, n in zip(gradients, tokens, strict=True))


@wrong("learning-rate", says="That is a whole period: the rate falls and rises again.")
def a_whole_period(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / (steps - warmup)
    return peak * (0.1 + 0.9 * (1 + math.cos(2 * math.pi * progress)) / 2)


@wrong("calls-match", says="Compared as texts, the order of keys and 5.0 instead of 5")
def as_texts(said, wanted):
    return said is not None and str(said) == str(wanted)


@right("calls-match")
def flattened(said, wanted):
    def flat(calls):
        return [(c["name"], {k: (isinstance(v, bool), v) for k, v in c["arguments"].items()}) for c in calls]

    return said is not None and flat(said) == flat(wanted)


# ---- 07


@wrong("seed-interval", says="That is where single runs fall, not their mean: the mean of")
def spread_of_the_results(results, t):
    mean, deviation = statistics.mean(results), statistics.stdev(results)
    return mean - t * deviation, mean + t * deviation


@wrong("paired", says="These are the right differences, but not in the order of")
def in_the_order_of_ours(ours, theirs):
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


@wrong("smallest-rank", says="You ask whether the middle or the upper end lies above")
def whole_interval_at_zero_or_below(differences):
    return min(rank for rank, (low, high) in differences.items() if high <= 0)


@wrong("not-dominated", says="That wants both to be strictly less. One of equal bytes and")
def must_be_less_in_both(conditions):
    return sorted(
        name
        for name, (size, loss) in conditions.items()
        if not any(s < size and other < loss for s, other in conditions.values())
    )


@right("tokens-for-share")
def solved_for(decoding, fixed, per_token, share):
    tokens = math.ceil((decoding / share - fixed) / per_token)
    while tokens > 1 and decoding <= share * (fixed + per_token * (tokens - 1)):
        tokens -= 1
    return max(1, tokens)


# ---- 08


@wrong("part-of", says="The last process takes all that is left over, so its part")
def the_last_takes_the_rest(tensor, process, processes):
    rows = len(tensor) // processes
    return tensor[process * rows :] if process == processes - 1 else tensor[process * rows : (process + 1) * rows]


@wrong("bytes-on-the-wire", says="These are the whole tensors; a process has one n-th of each")
def its_own_part_as_well(blocks, gradients, processes):
    return 2 * blocks + gradients


@wrong("smallest-node", says="On a single card nothing is gathered: try that one first,")
def whole_blocks_on_one_as_well(sharded, gathered, own, card):
    room = card - own - gathered
    return math.ceil(sharded / room) if room > 0 else None


@wrong("read-plan", says="These are rows of the whole tensor; each file begins with")
def rows_of_the_whole(rows, before, after, process):
    size_before, size_after = math.ceil(rows / before), math.ceil(rows / after)
    start, stop = min(rows, process * size_after), min(rows, (process + 1) * size_after)
    plan = []
    for file in range(before):
        low, high = max(start, file * size_before), min(stop, (file + 1) * size_before)
        if low < high:
            plan.append((file, low, high))
    return plan


@right("read-plan")
def row_by_row(rows, before, after, process):
    kept = torch.arange(rows)[process * -(-rows // after) : (process + 1) * -(-rows // after)].tolist()
    size = -(-rows // before)
    places = [(row // size, row % size) for row in kept]
    groups = {file: [row for _, row in group] for file, group in itertools.groupby(places, key=lambda place: place[0])}
    return [(file, group[0], group[-1] + 1) for file, group in groups.items()]


@right("gpu-bytes")
def with_numpy_numbers(sharded, block, own, gpus):
    return np.float64(sharded) / gpus + own + (gpus > 1) * 2 * np.float64(block)
