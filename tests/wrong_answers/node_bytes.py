"""Wrong answers to the exercises of notebook 08 about bytes."""

import math

from wrong_answers import wrong


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


@wrong("smallest-node", says="exactly fills a single card")
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


@wrong("smallest-node", says="returned None instead of")
def eight_at_most(sharded, gathered, own, card):
    fits = [n for n in range(1, 9) if (sharded + own if n == 1 else sharded / n + gathered + own) <= card]
    return min(fits, default=None)
