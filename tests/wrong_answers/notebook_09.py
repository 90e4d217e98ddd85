"""Wrong answers to the exercises of notebook 09."""

import torch

from wrong_answers import wrong


@wrong("chat-labels", says="header of the answer is learned")
def whole_turns(turns, header):
    found = [list(ids) if role == "assistant" else [-100] * len(ids) for role, ids in turns]
    return [label for turn in found for label in turn]


@wrong("chat-labels", says="never learns to stop")
def without_the_end(turns, header):
    labels = []
    for role, ids in turns:
        words = ids[header:-1] if role == "assistant" else []
        labels += [-100] * header + words + [-100] * (len(ids) - header - len(words))
    return labels


@wrong("chat-labels", says="What the user says")
def everybody_but_the_system(turns, header):
    return [
        token if role != "system" and place >= header else -100
        for role, ids in turns
        for place, token in enumerate(ids)
    ]


@wrong("chat-labels", says="shifted by one")
def shifted(turns, header):
    flat = [(t if r == "assistant" and n >= header else -100) for r, ids in turns for n, t in enumerate(ids)]
    return [*flat[1:], -100]


@wrong("early-stop", says="one measurement too late")
def one_too_late(losses, patience):
    best, waited = 0, 0
    for number in range(1, len(losses)):
        if losses[number] < losses[best]:
            best, waited = number, 0
            continue
        waited += 1
        if waited > patience:
            return best, number
    return best, len(losses) - 1


@wrong("early-stop", says="never stops early")
def lowest_of_all(losses, patience):
    return losses.index(min(losses)), len(losses) - 1


@wrong("early-stop", says="weights of the last")
def weights_of_the_last(losses, patience):
    best = 0
    for number, loss in enumerate(losses):
        best = number if loss < losses[best] else best
        if number - best == patience:
            return number, number
    return best, len(losses) - 1


@wrong("permute-rows", says="the way back")
def back(weight, heads):
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


@wrong("permute-rows", says="half of *all* rows")
def without_heads(weight, heads):
    half = len(weight) // 2
    return torch.stack((weight[:half], weight[half:]), 1).flatten(0, 1)


@wrong("permute-rows", says="wrong way round")
def second_half_first(weight, heads):
    parts = []
    for head in weight.chunk(heads):
        first, second = head.chunk(2)
        parts.append(torch.stack((second, first), 1).flatten(0, 1))
    return torch.cat(parts)
