"""Wrong answers written after the checks were repaired for the others, by someone who had read them, and then run."""

import math
import statistics

import torch

from unseen_answers import wrong


@wrong("decode", says="Part by part: steps 15 times what it should be, the rest")
def never_divided(code, low, high):
    return low + code * (high - low)


@wrong("block-absmax", says="Of the 2 values that came back, value 1 is the right one:")
def values_and_places(weight, block_size):
    flat = weight.flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % block_size))
    return padded.view(-1, block_size).abs().max(1)


@wrong("nearest-code", says="That is the nearest number of each level; the nearest level")
def number_of_each_level(x, levels):
    return (x[:, None] - levels).abs().argmin(0).to(torch.uint8)


@wrong("pack-nibbles", says="RuntimeError in `return codes[::2] <<")
def even_numbers_only(codes):
    return codes[::2] << 4 | codes[1::2]


@wrong("normal-float", says="Both sides have as many levels: with the zero that is one")
def as_many_on_both_sides(bits):
    n = 2**bits
    edge = 1 - (1 / (2 * n) + 1 / (2 * (n - 1))) / 2
    side = torch.special.ndtri(torch.linspace(0.5, edge, n // 2 + 1))[1:]
    return torch.cat((-side, torch.zeros(1), side)).sort().values / side.max()


@wrong("bits-per-weight", says="You multiply by 256: 256 constants *share* a second-level")
def groups_the_wrong_way(block_size, constants, double_quant):
    if not double_quant:
        return 4 + 32 * constants / block_size
    return 4 + constants * (8 / block_size + 32 * 256 / block_size)


@wrong("predict-and-measure")
def from_the_deviation(weight, block_size):
    absmax = weight.abs().amax(1, keepdim=True)
    decoded = (weight / absmax * 7).round() / 7 * absmax
    return (weight.std() / 7 / math.sqrt(12)).item(), (weight - decoded).square().mean().sqrt().item()


@wrong("weights-of-a-code", says="Value 1 of 2 is wrong; the rest is right: all of it is what it should be")
def one_border_scaled(code, absmax, levels):
    low = levels[0] if code == 0 else (levels[code - 1] + levels[code]) / 2
    high = levels[15] if code == 15 else (levels[code + 1] + levels[code]) / 2
    return low, high * absmax


@wrong("dequantize-packed", says="The scales are dealt out in turn; neighbours share one: the")
def scales_in_numbers_of_blocks(packed, scales, table, block_size, n):
    codes = torch.stack((packed >> 4, packed & 15), 1).flatten()[:n]
    return table[codes.long()] * scales[torch.arange(n) % len(scales)]


@wrong("least-error-scale", says="All of it is what it should be, divided by `w.shape[1]`. With")
def mean_above_sum_below(w, q):
    return (w * q).mean(1) / (q * q).sum(1).clamp(min=1e-12)


@wrong("double-quantize", says="That is the mean magnitude of a group; the largest is")
def mean_magnitude_of_a_group(scales, levels):
    offset = scales.mean()
    codes, absmax2 = [], []
    for group in (scales - offset).split(256):
        absmax2.append(group.abs().mean())
        x = group / absmax2[-1].clamp(min=1e-30)
        codes.append((x[:, None] - levels).abs().argmin(1).to(torch.uint8))
    return torch.cat(codes), torch.stack(absmax2), offset


@wrong("flipped-blocks", says="Value 2 of 2 is wrong; the rest is right: of the 1 values")
def places_in_a_tuple(codes, absmax2, offset, levels):
    scales = levels[codes.int()] * absmax2.repeat_interleave(256)[: len(codes)] + offset
    return scales, torch.where(scales < 0)


@wrong("adapter-parameters", says="Only one of A and B is counted with the rank; both have r")
def without_parentheses(n_in, n_out, rank):
    return rank * n_in + n_out


@wrong("break-even-rank", says="It is right for 7 of 8 inputs, and 1 too few for the")
def one_below_the_line(n_in, n_out):
    return n_in * n_out // (n_in + n_out + 1)


@wrong("lora-forward", says="The merged weight is (out, in) as well, so x needs its")
def merged_and_not_transposed(x, w, a, b, alpha, use_rslora):
    r = len(a)
    return x @ (w + alpha / (r**0.5 if use_rslora else r) * b @ a)


@wrong("adapter-gradients", says="Value 2 of 2 is wrong; the rest is right: it is the")
def second_transposed(gradient, a, b, s):
    return s * b.T @ gradient, s * a @ gradient.T


@wrong("merge-adapter", says="The factor belongs to the update only; you scale the base")
def base_scaled(w, a, b, alpha):
    return (alpha / len(a) * (w.float() + b @ a)).to(w.dtype)


@wrong("find-targets", says="They are the right ones, but some are there more than once.")
def once_for_each_target(paths, targets):
    return [p for p in paths for t in targets if p == t or p.endswith("." + t)]


@wrong("best-rank-r", says="That is what is left over, the part that a matrix of this")
def all_but_the_first(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s[:rank] = 0
    return u @ torch.diag(s) @ vh


@wrong("predict-trainable", says="A layer's two sizes are multiplied; an adapter has r")
def product_of_both_sides(hidden, mlp, layers, heads, kv_heads, rank):
    kv = hidden // heads * kv_heads
    return layers * rank * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * mlp)


@wrong("state-bytes", says="The last block of 256 may be shorter and has a whole scale")
def parts_of_scales(parameters, bits):
    return 2 * parameters * bits // 8 + (2 * 4 * parameters / 256 if bits == 8 else 0)


@wrong("adamw-step", says="The weight is moved by the old moments. The new gradient")
def old_moments_move(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    p = p - lr * weight_decay * p
    p = p - lr * (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps)
    return p, beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2


@wrong("pages-of", says="The number of pages is not count // per_page + 1: that is")
def one_more_than_whole_pages(first, count, per_page):
    page = first // per_page
    return list(range(page, page + count // per_page + 1))


@wrong("evict", says="That is the time of the page used last; the page used")
def time_of_the_newest(last_used, due):
    return max(time for page, time in last_used.items() if page not in due)


@wrong("bytes-moved", says="A resident page is spared both ways, in and out. Open hint")
def residents_once(pages, resident, page_bytes):
    return max(0, 2 * pages - resident) * page_bytes


@wrong("qlora-backward", says="Value 2 of 3 is wrong; the rest is right: all of it is what it should be")
def s_forgotten_for_a(g, x, w, a, b, s):
    return g @ w + s * g @ b @ a, b.T @ g.T @ x, s * g.T @ x @ a.T


@wrong("stored-bytes", says="That multiplies bits per weight by weights and rounds once")
def rounded_in_the_end(elements, block_size, double_quant):
    bits = 4 + (8 / block_size + 32 / 256 / block_size if double_quant else 32 / block_size)
    return math.ceil(elements * bits / 8)


@wrong("qlora-bytes", says="other weights 5 times what it should be")
def moments_of_all(quantized, others, adapters, tokens, hidden, layers):
    return 4.127 / 8 * quantized + 10 * others + 12 * adapters + 2 * tokens * hidden * layers


@wrong("fits", says="A card sold as so many gigabytes has GiB, 2^30 bytes each,")
def smaller_units(peak, gib, reserve):
    return peak / 1e9 <= gib - reserve


@wrong("build-labels", says="One token of the padding has a label: positions count from 0")
def one_token_too_many(input_ids, prompt_lengths, lengths):
    at = torch.arange(input_ids.shape[1])
    return torch.where((at >= prompt_lengths[:, None]) & (at <= lengths[:, None]), input_ids, -100)


@wrong("supervised-loss", says="Tokens without a label (-100) count as well, as if token 0")
def nothing_is_ignored(logits, labels):
    said, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    log = said.log_softmax(-1)
    return -log[torch.arange(len(wanted)), wanted.clamp(min=0)].mean()


@wrong("accumulate", says="The weights are right, but they must be divided by the")
def weighed_by_their_share_of_parts(gradients, tokens):
    return sum(g * n / len(tokens) for g, n in zip(gradients, tokens, strict=True))


@wrong("learning-rate", says="The warm-up is a step ahead: steps count from 1, and the")
def warm_up_a_step_early(step, steps, peak, warmup):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


@wrong("calls-match", says="Call 1 is to 'add' where 'timer' is wanted: your function")
def sorted_by_name(said, wanted):
    return said is not None and sorted(map(str, said)) == sorted(map(str, wanted))


@wrong("seed-interval", says="The root is taken of the deviation as well; it is of n")
def root_of_the_quotient(results, t):
    half = t * math.sqrt(statistics.stdev(results) / len(results))
    return statistics.mean(results) - half, statistics.mean(results) + half


@wrong("paired", says="KeyError in `return [ours[seed] -")
def seeds_of_ours(ours, theirs):
    return [ours[seed] - theirs[seed] for seed in sorted(ours)]


@wrong("tokens-for-share", says="That divides as if `fixed` came with every token. It comes")
def share_per_token(decoding, fixed, per_token, share):
    return max(1, math.ceil(decoding / share / (fixed + per_token)))


@wrong("not-dominated", says="That keeps the best at one thing alone. A condition with")
def only_the_smallest_loss(conditions):
    best = min(loss for _, loss in conditions.values())
    return sorted(name for name, (_, loss) in conditions.items() if loss == best)


@wrong("smallest-node", says="What exactly fills a card fits: `<=`. Open hint 2.")
def loses_what_just_fits(sharded, gathered, own, card):
    for cards in range(1, 10_000):
        if sharded / cards + (gathered if cards > 1 else 0) + own < card:
            return cards
    return None


@wrong("read-plan", says="Only the first came back")
def first_file_only(rows, before, after, process):
    size, wanted = math.ceil(rows / before), math.ceil(rows / after)
    begin, end = process * wanted, min(rows, (process + 1) * wanted)
    file = begin // size
    return [(file, begin - file * size, min(end, (file + 1) * size) - file * size)] if begin < end else []
