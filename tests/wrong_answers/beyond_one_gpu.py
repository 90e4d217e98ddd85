"""Wrong answers to the exercises of notebook 08 about gradients and parts."""

import torch

from wrong_answers import wrong


@wrong("combine-gradients", says="plain average")
def mean_of_means(gradients, tokens):
    return torch.stack(gradients).mean(0)


@wrong("combine-gradients", says="sum of the processes")
def only_added(gradients, tokens):
    return torch.stack(gradients).sum(0)


@wrong("combine-gradients", says="nothing is divided")
def not_divided(gradients, tokens):
    return sum(n * g for n, g in zip(tokens, gradients, strict=True))


@wrong("combine-gradients", says="once more")
def divided_twice(gradients, tokens):
    return sum(n * g for n, g in zip(tokens, gradients, strict=True)) / sum(tokens) / len(tokens)


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


@wrong("combine-gradients", says="differ")
def tokens_sorted(gradients, tokens):
    return sum(n * g for n, g in zip(sorted(tokens), gradients, strict=True)) / sum(tokens)


@wrong("part-of", says="one row too many")
def one_added(tensor, process, processes):
    rows = len(tensor) // processes + 1
    return tensor[process * rows : process * rows + rows]


@wrong("part-of", says="filled up with zeros")
def padded(tensor, process, processes):
    rows = -(-len(tensor) // processes)
    whole = torch.cat((tensor, tensor.new_zeros(rows * processes - len(tensor), *tensor.shape[1:])))
    return whole[process * rows : (process + 1) * rows]
