"""Wrong answers to the exercises of notebook 08."""

import math

import torch

from wrong_answers import wrong


def cut(whole, processes):
    """A whole gradient in the parts that processes keep."""
    rows = -(-len(whole) // processes)
    return [whole[k * rows : (k + 1) * rows] for k in range(processes)]


@wrong("reduce-scatter", says="plain average")
def mean_of_means(gradients, tokens):
    return cut(torch.stack(gradients).mean(0), len(tokens))


@wrong("reduce-scatter", says="sum of the processes")
def only_added(gradients, tokens):
    return cut(torch.stack(gradients).sum(0), len(tokens))


@wrong("reduce-scatter", says="nothing is divided")
def not_divided(gradients, tokens):
    return cut(sum(n * g for n, g in zip(tokens, gradients, strict=True)), len(tokens))


@wrong("reduce-scatter", says="once more")
def divided_twice(gradients, tokens):
    whole = sum(n * g for n, g in zip(tokens, gradients, strict=True)) / sum(tokens)
    return cut(whole / len(tokens), len(tokens))


@wrong("part-of", says="belong to nobody")
def rounded_down(tensor, process, processes):
    rows = len(tensor) // processes
    return tensor[process * rows : process * rows + rows]


@wrong("part-of", says="its part is the largest")
def rest_to_the_last(tensor, process, processes):
    rows = len(tensor) // processes
    return tensor[process * rows :] if process == processes - 1 else tensor[process * rows : (process + 1) * rows]


@wrong("part-of", says="differ by one row at most")
def balanced(tensor, process, processes):
    return torch.tensor_split(tensor, processes)[process]


@wrong("part-of", says="every n-th row")
def strided(tensor, process, processes):
    return tensor[range(process, len(tensor), processes)]


@wrong("read-plan", says="rows of the whole tensor")
def whole_rows(rows, before, after, process):
    size, wanted = -(-rows // before), -(-rows // after)
    begin, end = process * wanted, min(rows, process * wanted + wanted)
    found = [(k, max(begin, k * size), min(end, rows, k * size + size)) for k in range(before)]
    return [(k, a, b) for k, a, b in found if a < b]


@wrong("read-plan", says="need not be opened")
def every_file(rows, before, after, process):
    size, wanted = -(-rows // before), -(-rows // after)
    begin, end = process * wanted, min(rows, process * wanted + wanted)
    found = [(k, max(begin, k * size) - k * size, min(end, rows, k * size + size) - k * size) for k in range(before)]
    return [(k, a, b) if a < b else (k, 0, 0) for k, a, b in found]


@wrong("read-plan", says="rounded up, before and after")
def down(rows, before, after, process):
    size, wanted = rows // before, rows // after
    begin, end = process * wanted, process * wanted + wanted
    found = [(k, max(begin, k * size) - k * size, min(end, k * size + size) - k * size) for k in range(before)]
    return [(k, a, b) for k, a, b in found if a < b]


@wrong("reduce-scatter", says="differ")
def tokens_sorted(gradients, tokens):
    return cut(sum(n * g for n, g in zip(sorted(tokens), gradients, strict=True)) / sum(tokens), len(tokens))


@wrong("part-of", says="one row too many")
def one_added(tensor, process, processes):
    rows = len(tensor) // processes + 1
    return tensor[process * rows : process * rows + rows]


@wrong("part-of", says="filled up with zeros")
def padded(tensor, process, processes):
    rows = -(-len(tensor) // processes)
    whole = torch.cat((tensor, tensor.new_zeros(rows * processes - len(tensor), *tensor.shape[1:])))
    return whole[process * rows : (process + 1) * rows]


@wrong("bytes-on-the-wire", says="has one n-th of each already")
def all_of_it(blocks, gradients, processes):
    return 2 * blocks + gradients


@wrong("bytes-on-the-wire", says="gathered again in the backward pass")
def forward_only(blocks, gradients, processes):
    return (blocks + gradients) * (1 - 1 / processes)


@wrong("bytes-on-the-wire", says="gradients are missing")
def no_gradients(blocks, gradients, processes):
    return 2 * blocks * (1 - 1 / processes)


@wrong("bytes-on-the-wire", says="Twice is an all-reduce")
def all_reduced(blocks, gradients, processes):
    return (2 * blocks + 2 * gradients) * (processes - 1) / processes


@wrong("gpu-bytes", says="neither is divided")
def activations_divided(sharded, block, own, gpus):
    return sharded + own if gpus == 1 else (sharded + own) / gpus + 2 * block


@wrong("gpu-bytes", says="What is gathered is missing")
def nothing_gathered(sharded, block, own, gpus):
    return sharded / gpus + own


@wrong("gpu-bytes", says="Two blocks are whole")
def one_block(sharded, block, own, gpus):
    return sharded + own if gpus == 1 else sharded / gpus + block + own


@wrong("gpu-bytes", says="single GPU has everything")
def also_alone(sharded, block, own, gpus):
    return sharded / gpus + 2 * block + own


@wrong("smallest-node", says="subtract both")
def only_divided(sharded, gathered, own, card):
    return math.ceil(sharded / card)


@wrong("smallest-node", says="try that one first")
def never_alone(sharded, gathered, own, card):
    room = card - gathered - own
    return math.ceil(sharded / room) if room > 0 else None


@wrong("smallest-node", says="No number of cards helps")
def always_some(sharded, gathered, own, card):
    return 1 if sharded + own <= card else max(2, math.ceil(sharded / (card - gathered - own)))


@wrong("smallest-node", says="Rounded down")
def too_few(sharded, gathered, own, card):
    if sharded + own <= card:
        return 1
    room = card - gathered - own
    return max(2, sharded // room) if room > 0 else None


@wrong("smallest-node", says="ZeroDivisionError")
def no_room_forgotten(sharded, gathered, own, card):
    if sharded + own <= card:
        return 1
    room = card - gathered - own
    return None if room < 0 else max(2, math.ceil(sharded / room))


@wrong("smallest-node", says="exactly fills a card")
def strictly_less(sharded, gathered, own, card):
    if sharded + own < card:
        return 1
    room = card - gathered - own
    return max(2, math.ceil(sharded / room)) if room > 0 else None


@wrong("smallest-node", says="nearest whole number")
def rounded(sharded, gathered, own, card):
    if sharded + own <= card:
        return 1
    room = card - gathered - own
    return max(2, round(sharded / room)) if room > 0 else None


@wrong("smallest-node", says="You stop at a number of cards")
def eight_at_most(sharded, gathered, own, card):
    fits = [n for n in range(1, 9) if (sharded + own if n == 1 else sharded / n + gathered + own) <= card]
    return min(fits, default=None)


@wrong("reduce-scatter", says="which everyone has after an all-reduce")
def reduced_for_all(gradients, tokens):
    """As the exercise asked for it in earlier versions."""
    return sum(n * g for n, g in zip(tokens, gradients, strict=True)) / sum(tokens)


@wrong("reduce-scatter", says="nothing is added up")
def own_parts(gradients, tokens):
    return [cut(gradient, len(tokens))[k] for k, gradient in enumerate(gradients)]


@wrong("reduce-scatter", says="These parts differ by one row at most")
def evened_out(gradients, tokens):
    whole = sum(n * g for n, g in zip(tokens, gradients, strict=True)) / sum(tokens)
    return list(torch.tensor_split(whole, len(tokens)))
