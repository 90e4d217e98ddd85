"""Answers by someone who had read the tasks and nothing else: what students write first, and right ones in odd ways.

When they were first run, with many more whose kind stands in `wrong_answers` now, 282 of 376 wrong ones were told what
is true of them and helps, and of 78 right ones five were refused.
"""

import math
import mmap
import re
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist

import numpy as np
import torch

from qlora_lab.checks.notebook_01 import block_absmax, nearest_code
from qlora_lab.checks.notebook_02 import decode_scales
from unseen_answers import right, wrong


@right("decode")
def from_numpys_line(code, low, high):
    table = np.linspace(low, high, 16)
    return table[code]


@right("block-absmax")
def one_block_after_the_other(weight, block_size):
    v = weight.reshape(-1)
    if len(v) <= block_size:
        return v.abs().max().reshape(1)
    return torch.cat([v[:block_size].abs().max()[None], one_block_after_the_other(v[block_size:], block_size)])


@right("block-absmax")
def largest_of_stretches(weight, block_size):
    flat = np.abs(weight.numpy().ravel())
    return torch.from_numpy(np.maximum.reduceat(flat, np.arange(0, flat.size, block_size)))


@right("predict-and-measure")
def in_python_and_numpy(weight, block_size=64):
    w = np.array(weight.tolist())
    steps = np.abs(w).max(1) / 7
    pred = math.sqrt(sum(s * s for s in steps) / 12 / len(steps))
    err = w - np.rint(w / steps[:, None]) * steps[:, None]
    return [pred, np.sqrt(np.mean(err**2))]


@right("nearest-code")
def passing_one_midpoint_after_the_other(x, levels):
    code = torch.zeros(len(x), dtype=torch.uint8)
    for k in range(1, len(levels)):
        middle = (levels[k - 1] + levels[k]) / 2
        code = torch.where(x > middle, torch.tensor(k, dtype=torch.uint8), code)
    return code


@right("nearest-code")
def smallest_distance(x, levels):
    return (x[:, None] - levels).abs().argmin(1).to(torch.uint8)


@right("pack-nibbles")
def by_hexadecimal_digits(codes):
    digits = "".join("0123456789abcdef"[c] for c in codes.tolist())
    digits += "7" * (len(digits) % 2)
    return torch.tensor(list(bytes.fromhex(digits)), dtype=torch.uint8)


@right("one-side")
def by_the_standard_library(count, edge):
    step = (edge - 0.5) / count
    return torch.tensor([NormalDist().inv_cdf(edge - k * step) for k in range(count)])


@right("counterexamples")
def a_tuple_of_three(levels):
    a = torch.from_numpy(np.linspace(-1, 0.5, 16, dtype=np.float32))
    m = float(levels[9] + levels[10]) / 2
    b = torch.tensor([1.0] + [m] * 15)
    return a, b, torch.zeros(16)


@right("signed-absmax")
def of_python_lists(weight, block_size):
    line = weight.flatten().tolist()
    blocks = [line[i : i + block_size] for i in range(0, len(line), block_size)]
    return torch.tensor([-max(b, key=abs) for b in blocks])


@right("weights-of-a-code")
def with_neighbours_at_the_ends(code, absmax, levels):
    padded = [levels[0], *levels, levels[-1]]
    scaled = [absmax * v for v in padded]
    return tuple((scaled[code + i] + scaled[code + 1 + i]) / 2 for i in (0, 1))


@right("split-byte")
def two_hexadecimal_digits(byte):
    return tuple(int(d, 16) for d in f"{byte:02x}")


@right("least-error-scale")
def nan_becomes_zero(w, q):
    return torch.nan_to_num(torch.einsum("bi,bi->b", w, q) / torch.einsum("bi,bi->b", q, q), nan=0.0)


@right("double-quantize")
def group_by_group(scales, levels):
    offset = scales.mean()
    codes, tops = [], []
    for group in (scales - offset).split(256):
        top = group.abs().max()
        tops.append(top)
        x = group / top if top != 0 else group
        codes.append((x[:, None] - levels).abs().argmin(1).to(torch.uint8))
    return torch.cat(codes), torch.stack(tops), offset


@right("decode-scales")
def number_of_the_group(codes, absmax2, offset, levels):
    where = torch.arange(codes.numel()).div(256, rounding_mode="floor")
    return torch.addcmul(offset, levels.take(codes.long()), absmax2[where])


@right("double-quantized-bits")
def from_the_inside_out(block_size, scale_block):
    def shared(bits, by, rest=0.0):
        return (bits + rest) / by

    return shared(4, 1, shared(8, block_size, shared(32, scale_block)))


@right("model-bytes")
def parts_of_parts(shapes, block_size):
    def parts(n, size):
        return -(-n // size)

    def one(shape):
        n = int(np.prod(shape))
        return parts(n, 2) + parts(n, block_size) + 4 * parts(parts(n, block_size), 256) + 4

    return sum(map(one, shapes))


@right("best-rank-r")
def by_eigenvectors(matrix, rank):
    values, vectors = torch.linalg.eigh((matrix.T @ matrix).double())
    top = vectors[:, values.argsort(descending=True)[:rank]]
    return (matrix.double() @ top @ top.T).float()


@right("best-rank-r")
def a_sum_of_outer_products(matrix, rank):
    u, s, vh = np.linalg.svd(matrix.numpy())
    return torch.from_numpy(sum(s[k] * np.outer(u[:, k], vh[k]) for k in range(min(rank, len(s)))))


@right("find-targets")
def by_a_regular_expression(paths, targets):
    if not targets:
        return []
    rule = re.compile(rf"(?:.*\.)?(?:{'|'.join(map(re.escape, targets))})", re.S)
    return list(filter(rule.fullmatch, paths))


@right("find-targets")
def a_dot_before_all(paths, targets):
    ends = tuple("." + t for t in targets)
    return [p for p in paths if f".{p}".endswith(ends)]


@right("replace-module")
def from_name_to_name(model, path, module):
    head, _, rest = path.partition(".")
    if rest:
        from_name_to_name(getattr(model, head), rest, module)
    else:
        model._modules[head] = module


@right("replace-module")
def torchs_own(model, path, module):
    model.set_submodule(path, module)


@right("replace-module")
def containers_by_number(model, path, module):
    parts = path.split(".")
    parent = model
    for p in parts[:-1]:
        parent = parent[int(p)] if p.isdigit() else getattr(parent, p)
    setattr(parent, parts[-1], module)


@right("adapter-gradients")
def by_autograd(gradient, a, b, s):
    a2, b2 = a.clone().requires_grad_(), b.clone().requires_grad_()
    (s * b2 @ a2).backward(gradient)
    return a2.grad, b2.grad


@right("merge-adapter")
def added_in_double(w, a, b, alpha):
    return torch.addmm(w.double(), b.double(), a.double(), alpha=alpha / len(a)).to(w)


@right("state-bytes")
def a_function_for_each_width(parameters, bits):
    per = {32: lambda n: 4 * n, 16: lambda n: n + n, 8: lambda n: n + 4 * -(-n // 256)}
    return sum(per[bits](parameters) for moment in "mv")


@right("adamw-step")
def roots_corrected_apart(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m2 = torch.lerp(m, gradient, 1 - beta1)
    v2 = torch.lerp(v, gradient.square(), 1 - beta2)
    c = math.sqrt(1 - beta2**step)
    p2 = p - lr * weight_decay * p - lr / (1 - beta1**step) * m2 / (v2.sqrt() / c + eps)
    return [p2, m2, v2]


@right("adamw-step")
def torchs_own_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    q = torch.nn.Parameter(p.clone())
    q.grad = gradient.clone()
    o = torch.optim.AdamW([q], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
    o.state[q] = {"step": torch.tensor(float(step - 1)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    o.step()
    return q.detach(), o.state[q]["exp_avg"], o.state[q]["exp_avg_sq"]


@right("pages-of")
def of_all_elements(first, count, per_page):
    return sorted({element // per_page for element in range(first, first + count)})


@right("read-page")
def by_numpy(path, number, page_bytes):
    return bytearray(np.fromfile(path, dtype=np.uint8, count=page_bytes, offset=number * page_bytes))


@right("write-page")
def mapped_into_memory(path, number, page):
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        m[number * len(page) : (number + 1) * len(page)] = bytes(page)


@right("evict")
def first_of_the_sorted(last_used, due):
    return next(page for time, page in sorted((t, p) for p, t in last_used.items()) if page not in due)


@right("paged-sweep")
def a_queue_of_the_rest(pages, order, change, evict):
    rest = deque(order)

    def fetch(number):
        while len(pages.ram) >= pages.slots:
            leaving = evict(pages.last_used, set(rest) - {number} | {number})
            pages.write(leaving, pages.ram[leaving])
            pages.ram.pop(leaving)
        pages.ram.setdefault(number, pages.read(number))

    while rest:
        number = rest[0]
        if pages.ram.get(number) is None:
            fetch(number)
        pages.touch(number)
        change(number, pages.ram[number])
        rest.popleft()


@right("sweep-order")
def step_of_minus_one(step, pages):
    return [*range(pages)][:: -((-1) ** step)]


@right("prefetch-sweep")
def two_pages_at_work(pages, order, change, evict):
    def bring(number, due):
        if number not in pages.ram:
            if len(pages.ram) >= pages.slots:
                out = evict(pages.last_used, due)
                pages.write(out, pages.ram[out])
                del pages.ram[out]
            pages.ram[number] = pages.read(number)

    with ThreadPoolExecutor(1) as pool:
        coming = None
        for i, number in enumerate(order):
            if coming is not None:
                coming.result()
            else:
                bring(number, set(order[i:]))
            pages.touch(number)
            coming = pool.submit(bring, order[i + 1], set(order[i:])) if i + 1 < len(order) else None
            change(number, pages.ram[number])


@right("evict-best")
def crossed_off(there, coming):
    left = set(there)
    for page in coming:
        if len(left) == 1:
            break
        left.discard(page)
    return left.pop()


@right("qlora-forward")
def row_by_row(x, w, a, b, s):
    return torch.stack([w @ row + s * (b @ (a @ row)) for row in x])


@right("qlora-backward")
def by_autograd_backwards(g, x, w, a, b, s):
    x, a, b = (t.detach().clone().requires_grad_(True) for t in (x, a, b))
    y = x @ w.t() + s * (x @ a.t() @ b.t())
    return torch.autograd.grad(y, (x, a, b), grad_outputs=g)


@right("stored-bytes")
def lengths_of_ranges(elements, block_size, double_quant):
    scales = len(range(0, elements, block_size))
    return len(range(0, elements, 2)) + (scales + 4 * len(range(0, scales, 256)) + 4 if double_quant else 4 * scales)


@right("qlora-bytes")
def a_dot_product(quantized, others, adapters, tokens, hidden, layers):
    counts = [quantized, others, adapters, adapters, adapters, adapters, tokens * hidden * layers]
    bits = [4.127, 16, 16, 16, 32, 32, 16]
    return np.dot(np.array(counts, dtype=float), bits) / 8


@right("calls-match")
def bools_are_marked(said, wanted):
    def tag(value):
        return (isinstance(value, bool), value)

    def flat(calls):
        return [(c["name"], {k: tag(v) for k, v in c["arguments"].items()}) for c in calls]

    return said is not None and flat(said) == flat(wanted)


@right("build-labels")
def of_three_lists(input_ids, prompt_lengths, lengths):
    rows = []
    for ids, p, n in zip(input_ids.tolist(), prompt_lengths.tolist(), lengths.tolist(), strict=True):
        rows.append([-100] * p + ids[p:n] + [-100] * (len(ids) - n))
    return torch.tensor(rows, device=input_ids.device)


@right("supervised-loss")
def token_by_token(logits, labels):
    total, count = torch.zeros(()), 0
    for b in range(len(labels)):
        for t in range(1, labels.shape[1]):
            y = int(labels[b, t])
            if y >= 0:
                row = logits[b, t - 1].float()
                total = total + row.logsumexp(0) - row[y]
                count += 1
    return total / count


@right("accumulate")
def a_tensor_product(gradients, tokens):
    return torch.tensordot(torch.tensor(tokens, dtype=torch.float32) / sum(tokens), torch.stack(gradients), dims=1)


@right("learning-rate")
def sine_of_half_the_phase(step, steps, peak, warmup):
    phase = np.interp(step, [0, warmup, steps], [-1.0, 0.0, 1.0])
    if phase <= 0:
        return peak * (1 + phase)
    return peak * (1 - 0.9 * np.sin(np.pi * phase / 2) ** 2)


@right("train")
def state_of_each_value(values, batches, gradients_of, rate_at, combine, update):
    state = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in values]
    losses = []
    for step in range(1, len(batches) + 1):
        run = [gradients_of([s[0] for s in state], part) for part in batches[step - 1]]
        means, tokens, grads = zip(*run, strict=True)
        losses.append(float(np.average(means, weights=tokens)))
        state = [
            update(p, combine(list(gs), list(tokens)), m, v, step, rate_at(step))
            for (p, m, v), gs in zip(state, zip(*grads, strict=True), strict=True)
        ]
    return [p for p, _, _ in state], losses


@wrong("weights-in-gb", says="It is rounded down to a whole number")
def whole_gigabytes(parameters, bits):
    return parameters * bits // 8 // 10**9


@wrong("weights-in-gb", says="It is rounded to 2 places")
def two_places(parameters, bits):
    return round(parameters * bits / 8 / 1e9, 2)


@wrong("bits-per-weight", says="what it should be, times `block_size`")
def bits_of_a_block(block_size, constants, double_quant):
    bits = 4 * block_size + constants * (8 + 32 / 256 if double_quant else 32)
    return bits


@wrong("block-absmax", says="value 1 is the right one: give it alone")
def values_and_places_of_rows(weight, block_size):
    n = weight.numel()
    pad = (-n) % block_size
    w = torch.cat([weight.flatten(), torch.zeros(pad)]).view(-1, block_size)
    return w.abs().max(dim=1)


@wrong("block-absmax", says="its dtype is torch.float64 instead of torch.float32; its numbers are right")
def in_double(weight, block_size):
    w = weight.flatten().double()
    return torch.stack([w[i : i + block_size].abs().max() for i in range(0, len(w), block_size)])


@wrong("double-quantize", says="where 1 to 3 should be, there is 1, 3, 2")
def offset_before_absmax2(scales, levels):
    offset = scales.mean()
    c = scales - offset
    a = block_absmax(c, 256)
    x = c / a.clamp(min=1e-12).repeat_interleave(256)[: len(c)]
    return nearest_code(x, levels), offset, a


@wrong("flipped-blocks", says="value 1 is the right one: give it alone")
def a_tuple_of_places(codes, absmax2, offset, levels):
    s = decode_scales(codes, absmax2, offset, levels)
    return s, (s < 0).nonzero(as_tuple=True)


@wrong("best-rank-r", says="It would be right with `rank + 1` for `rank`")
def a_term_too_many(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s[rank + 1 :] = 0
    return u @ torch.diag(s) @ vh


@wrong("adapter-parameters", says="too large by `n_out` in each case")
def with_a_bias(n_in, n_out, rank):
    return rank * n_in + rank * n_out + n_out


@wrong("adapter-gradients", says="what it should be, times `s`")
def s_twice(gradient, a, b, s):
    g = s * gradient
    return s * (b.T @ g), s * (g @ a.T)


@wrong("pages-of", says="some are there more than once")
def a_page_for_each_element(first, count, per_page):
    return [e // per_page for e in range(first, first + count)]


@wrong("qlora-forward", says="this part is what it should be, times `s`")
def s_before_and_after(x, w, a, b, s):
    h = s * (x @ a.T)
    return x @ w.T + s * (h @ b.T)


@wrong("qlora-bytes", says="inputs of the layers 2 times what it should be")
def inputs_in_four_bytes(quantized, others, adapters, tokens, hidden, layers):
    return quantized * 4.127 / 8 + others * 2 + adapters * 12 + tokens * hidden * layers * 4


@wrong("full-training-bytes", says="in GB, where bytes are wanted?")
def in_gb(parameters):
    return 12 * parameters / 1e9


@wrong("accumulate", says="It is all zeros")
def whole_shares(gradients, tokens):
    return sum(g * (n // sum(tokens)) for g, n in zip(gradients, tokens, strict=True))
