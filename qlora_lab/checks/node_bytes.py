"""Exercises of notebook 08 about bytes: on the wire, on each GPU, and how many cards are enough."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def _numbers(generator: torch.Generator, low: int, high: int, count: int) -> list[int]:
    return torch.randint(low, high, (count,), generator=generator).tolist()


def bytes_on_the_wire(blocks, gradients, processes):
    return (processes - 1) / processes * (2 * blocks + gradients)


def gpu_bytes(sharded, block, own, gpus):
    return sharded + own if gpus == 1 else sharded / gpus + 2 * block + own


def smallest_node(sharded, gathered, own, card):
    if sharded + own <= card:
        return 1
    room = card - gathered - own
    return None if room <= 0 else max(2, math.ceil(sharded / room))


def _node(generator: torch.Generator, number: int):
    """(sharded, gathered, own, card): one card is enough, two and a rest, never, more than divide evenly, ..."""
    a, b, c = _numbers(generator, 2, 9, 3)
    card = 40 + 8 * (number % 3)
    # cases 2 and 6: no number of cards is enough; case 7: very many are
    gathered, own = {2: (card - 3, 9), 6: (card - b, b), 7: (card - b - 4, b)}.get(number, (a, b))
    room = card - gathered - own
    sharded = {
        0: card - own,  # just fits one
        1: card - own - 1,
        2: 200,
        3: 3 * room + 3 * room // 4,
        4: card - own + 1,  # just does not
        5: 4 * room,  # exactly four
        6: 200,
        7: 4 * (120 + c) + 1,
    }[number]
    return sharded, gathered, own, card


EXERCISES = (
    Exercise(
        "bytes-on-the-wire",
        lambda generator, number: (*_numbers(generator, 10**3, 10 ** (4 + number), 2), (2, 4, 8, 3)[number % 4]),
        bytes_on_the_wire,
        (
            Misconception(
                "These are the whole tensors; a process has one n-th of each already. Open hint 1.",
                lambda b, g, n: 2 * b + g,
            ),
            Misconception(
                "Blocks are dropped after the forward pass, so they are gathered again in the backward pass. Open "
                "hint 2.",
                lambda b, g, n: bytes_on_the_wire(b / 2, g, n),
            ),
            Misconception(
                "The gradients are missing: they are added up, each part by the process that keeps it. Open hint 3.",
                lambda b, g, n: bytes_on_the_wire(b, 0, n),
            ),
            Misconception(
                "Gradients cross once: nobody needs all of them, so they are scattered, not gathered again. Twice is "
                "an all-reduce. Open hint 3.",
                lambda b, g, n: bytes_on_the_wire(b, 2 * g, n),
            ),
            Misconception(
                "One n-th is what a process has already; what reaches it is the rest, (n - 1) / n. Open hint 1.",
                lambda b, g, n: (2 * b + g) / n,
            ),
        ),
        tolerance=1e-9,
    ),
    Exercise(
        "gpu-bytes",
        lambda generator, number: (*_numbers(generator, 100, 10 ** (4 + number), 3), (2, 1, 4, 8)[number % 4]),
        gpu_bytes,
        (
            Misconception(
                "Embeddings and head are not cut, and activations belong to a GPU's own rows: neither is divided. Open "
                "hint 1.",
                lambda s, b, own, n: s + own if n == 1 else (s + own) / n + 2 * b,
            ),
            Misconception(
                "What is gathered is missing: two blocks are whole while they are used. Open hint 2.",
                lambda s, b, own, n: s / n + own,
            ),
            Misconception(
                "Two blocks are whole at a time: the one that computes, and the next, on its way. Open hint 2.",
                lambda s, b, own, n: gpu_bytes(s, b, own, n) - (b if n > 1 else 0),
            ),
            Misconception(
                "A single GPU has everything: nothing is gathered there, and nothing is there twice. Open hint 3.",
                lambda s, b, own, n: s / n + 2 * b + own,
            ),
            Misconception(
                "Everything is divided, but what is whole for a moment is whole on each GPU. Open hint 2.",
                lambda s, b, own, n: (s + own) / n,
            ),
        ),
        tolerance=1e-9,
    ),
    Exercise(
        "smallest-node",
        _node,
        smallest_node,
        (
            Misconception(
                "What is gathered, and each GPU's own activations, take room on every card: subtract both from it "
                "before you divide. Open hint 1.",
                lambda s, g, own, card: math.ceil(s / card),
            ),
            Misconception(
                "No number of cards helps where what is not cut fills one: return None there. Open hint 3.",
                lambda s, g, own, card: (
                    1 if s + own <= card else max(2, math.ceil(s / (card - g - own))) if card != g + own else 1
                ),
            ),
            Misconception(
                "On a single card nothing is gathered: try that one first, without it. Open hint 2.",
                lambda s, g, own, card: None if card - g - own <= 0 else math.ceil(s / (card - g - own)),
            ),
            Misconception(
                "What exactly fills a single card fits: `<=`. Open hint 2.",
                lambda s, g, own, card: (
                    1 if s + own < card else None if card - g - own <= 0 else math.ceil(s / (card - g - own))
                ),
            ),
            Misconception(
                "That is the nearest whole number of cards, on which the last piece may have no place: round up. "
                "Open hint 1.",
                lambda s, g, own, card: (
                    1 if s + own <= card else None if card - g - own <= 0 else max(2, round(s / (card - g - own)))
                ),
            ),
            Misconception(
                "Rounded down, the last piece has no place. Open hint 1.",
                lambda s, g, own, card: (
                    1 if s + own <= card else None if card - g - own <= 0 else max(2, s // (card - g - own))
                ),
            ),
        ),
    ),
)
