"""Exercises of notebook 08: tensors and gradients in parts, a resume on other GPUs, bytes, and how many are enough."""

import torch

from qlora_lab.checks.exercise import Exercise, draw_integers, draw_normal, edits


def combine_gradients(gradients, tokens):
    weighted = [n * g for n, g in zip(tokens, gradients, strict=True)]
    return sum(weighted) / sum(tokens)


def reduce_scatter(gradients, tokens):
    weighted = [n * g for n, g in zip(tokens, gradients, strict=True)]
    whole = sum(weighted) / sum(tokens)
    rows = -(-len(whole) // len(tokens))
    return [whole[k * rows : (k + 1) * rows] for k in range(len(tokens))]


def _gradients(generator: torch.Generator, number: int):
    processes, rows = (2, 3, 4)[number % 3], (5, 7, 6, 9, 10, 13, 11, 8)[number]
    shape = rows, draw_integers(generator, 2, 5, 1)[0]
    tokens = [3 + 5 * i + n for i, n in enumerate(draw_integers(generator, 0, 4, processes))][::-1]  # never all alike
    if number % 2:
        tokens = [tokens[-1], *tokens[:-1]]
    return draw_normal(generator, *[shape] * processes), tokens


def part_of(tensor, process, processes):
    rows = -(-len(tensor) // processes)
    begin, end = process * rows, (process + 1) * rows
    return tensor[begin:end]


def _cut(generator: torch.Generator, number: int):
    rows, processes = ((7, 3), (10, 4), (1, 2), (9, 4), (13, 5), (6, 4), (12, 3), (16, 3))[number]
    process = (2, 1, 1, 3, 4, 2, 1, 2)[number]
    if number % 2:
        return torch.randint(0, 256, (rows,), generator=generator).to(torch.uint8), process, processes
    return torch.randn(rows, 3, generator=generator), process, processes


def _any_cut(generator: torch.Generator, number: int):
    rows, processes = draw_integers(generator, 1, 60, 1)[0], draw_integers(generator, 1, 10, 1)[0]
    return torch.randn(rows, 2, generator=generator), draw_integers(generator, 0, processes, 1)[0], processes


def read_plan(rows, before, after, process):
    size, wanted = -(-rows // before), -(-rows // after)
    begin, end = process * wanted, min((process + 1) * wanted, rows)
    plan = []
    for part in range(before):
        first, last = part * size, min((part + 1) * size, rows)
        low, high = max(begin, first), min(end, last)
        if low < high:
            plan.append((part, low - first, high - first))
    return plan


def _resumed(generator: torch.Generator, number: int):
    return ((12, 2, 4, 3), (12, 4, 2, 1), (10, 4, 3, 2), (7, 2, 3, 1), (9, 3, 1, 0), (11, 4, 4, 3), (5, 2, 4, 2),
            (100, 8, 3, 2))[number]  # fmt: skip


def _resumed_anyhow(generator: torch.Generator, number: int):
    rows, (before, after) = draw_integers(generator, 1, 200, 1)[0], draw_integers(generator, 1, 10, 2)
    return rows, before, after, draw_integers(generator, 0, after, 1)[0]


def bytes_on_the_wire(blocks, gradients, processes):
    return (processes - 1) / processes * (2 * blocks + gradients)


def gpu_bytes(sharded, block, own, gpus):
    return sharded + own if gpus == 1 else sharded / gpus + 2 * block + own


def smallest_node(sharded, gathered, own, card):
    if sharded + own <= card:
        return 1
    room = card - gathered - own
    return None if room <= 0 else max(2, -(-sharded // room))


def _node(generator: torch.Generator, number: int):
    """(sharded, gathered, own, card): one card is enough, two and a rest, never, more than divide evenly, ..."""
    a, b, c = draw_integers(generator, 2, 9, 3)
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


def _parts_of_traffic(blocks, gradients, processes):
    rest = (processes - 1) / processes
    return {"blocks": rest * 2 * blocks, "gradients": rest * gradients}


def _parts_of_bill(sharded, block, own, gpus):
    return {"what is cut": sharded / gpus, "whole blocks": 2 * block if gpus > 1 else 0, "each GPU's own": own}


WEIGHTS = """
            sum(weighted) / sum(tokens) → sum(gradients) / len(gradients)
            1: That is the plain average over processes, in which a token counts more where there are few of them.
               Weight each gradient by its tokens.

            sum(weighted) / sum(tokens) → sum(gradients)
            1: That is the sum of the processes' gradients: each belongs to a mean over its own tokens, and the mean
               over all of them is wanted.

            sum(weighted) / sum(tokens) → sum(weighted)
            2: Each gradient is weighted by its tokens, but nothing is divided by the tokens of all.

            sum(weighted) / sum(tokens) → sum(weighted) / sum(tokens) / len(tokens)
            2: It is divided by the tokens of all, and by the number of processes once more.

            weighted = → tokens = [1 / n for n in tokens]; weighted =
            1: The weights are the wrong way round: many tokens must count more, not less.

            sum(weighted) / sum(tokens) → sum(weighted) / len(tokens)
            2: The weights are right, but they must be divided by the tokens of all, not by the number of processes.

            sum(weighted) / sum(tokens) → sum(gradients) / sum(tokens)
            1: Each gradient is a mean over its own tokens: multiply it by them before you add and divide.

            sum(weighted) / sum(tokens) → sum(weighted) / max(tokens)
            2: Divide by the tokens of all processes together, not by the most there are.
"""
EXERCISES = (
    Exercise(
        "reduce-scatter",
        _gradients,
        reduce_scatter,
        edits(
            WEIGHTS
            + """
            return [whole[k * rows : (k + 1) * rows] for k in range(len(tokens))] → return whole
            return [whole[k * rows : (k + 1) * rows] for k in range(len(tokens))] → return [whole] * len(tokens)
            3: That is the whole gradient, which everyone has after an all-reduce. Here each process keeps its part
               only: give a list with a part for each.

            return [whole[k * rows : (k + 1) * rows] → return [gradients[k][k * rows : (k + 1) * rows]
            1: Each process keeps a part of its own gradient, and nothing is added up. The part of everyone's belongs
               there.

            return [whole[k * rows : (k + 1) * rows] → return [whole[k :: len(tokens)]
            3: That is every n-th row, which is how a batch is split. A part is one piece, as in `part_of`.

            return [whole[k * rows : (k + 1) * rows] → return [whole.tensor_split(len(tokens))[k]
            3: These parts differ by one row at most; FSDP's are of one size, rounded up, but for the last ones.

            -(-len(whole) // len(tokens)) → len(whole) // len(tokens)
            3: Rounded down, the rows that are left over belong to nobody. Round the size of a part up.
        """
        ),
        any_float=True,
        tolerance=1e-5,
    ),
    Exercise(
        "part-of",
        _cut,
        part_of,
        edits("""
            -(-len(tensor) // processes) → len(tensor) // processes
            1: Rounded down, the rows that are left over belong to nobody. Round the size of a part up.

            -(-len(tensor) // processes) → len(tensor) // processes + 1
            1: `len // n + 1` is one row too many where the division leaves no remainder; `-(-len // n)` rounds up.

            rows = → tensor = torch.cat((tensor, tensor.new_zeros(-len(tensor) % processes, *tensor.shape[1:]))); rows =
            2: The last part is filled up with zeros. That is done for the all-gather; what is kept are the rows there
               are.

            [begin:end] → .tensor_split([i * (len(tensor) // processes) for i in range(1, processes)])[process]
            1: The last process takes all that is left over, so its part is the largest, and buffers of one size no
               longer do. Round the size of a part up instead.

            tensor[begin:end] → tensor.tensor_split(processes)[process]
            2: These parts differ by one row at most, which is fair, but FSDP's are not so: all but the last are
               equally large, rounded up, and the last ones may be short or empty.

            tensor[begin:end] → tensor[process::processes]
            1: That is every n-th row, which is how a batch is split. A part of a parameter is one piece, so that the
               parts one after the other are the whole.

            -(-len(tensor) // processes) → -(-tensor.numel() // processes)
            1: A part is counted in rows; you count elements.

            begin, end = process * rows, (process + 1) * rows → begin, end = process * rows, process * rows + processes
            1: A part has as many rows as one process keeps, not as many as there are processes.
        """),
        draw_more=_any_cut,
    ),
    Exercise(
        "read-plan",
        _resumed,
        read_plan,
        edits("""
            (part, low - first, high - first) → (part, low, high)
            3: These are rows of the whole tensor; each file begins with row 0 of its own part.

            if low < high → if low < high or plan.append((part, 0, 0))
            2: Files that hold none of the rows need not be opened: leave them out.

            -(-rows // before), -(-rows // after) → rows // before, rows // after
            1: Parts are rounded up, before and after; rounded down, some rows are in none.

            (part, low - first, high - first) → (part, 0, last - first)
            3: Whole files are read; read only the rows that this process keeps.

            (part, low - first, high - first) → (part, low - first, high - low)
            3: The last number is the row after the last one; you give how many there are.

            (part, low - first, high - first) → (part, low - first, high - first - 1)
            3: The last number is the row *after* the last one, as in a slice.

            (part, low - first, high - first) → (part, low - begin, high - begin)
            3: Rows are counted from the beginning of each file, not of this process's part.
        """),
        draw_more=_resumed_anyhow,
    ),
    Exercise(
        "bytes-on-the-wire",
        lambda generator, number: (*draw_integers(generator, 10**3, 10 ** (4 + number), 2), (2, 4, 8, 3)[number % 4]),
        bytes_on_the_wire,
        edits("""
            (processes - 1) / processes * (2 * blocks + gradients) → 2 * blocks + gradients
            1: These are the whole tensors; a process has one n-th of each already.

            2 * blocks → blocks
            2: Blocks are dropped after the forward pass, so they are gathered again in the backward pass.

            2 * blocks + gradients → 2 * blocks
            3: The gradients are missing: they are added up, each part by the process that keeps it.

            2 * blocks + gradients → 2 * blocks + 2 * gradients
            3: Gradients cross once: nobody needs all of them, so they are scattered, not gathered again. Twice is an
               all-reduce.

            (processes - 1) / processes → 1 / processes
            1: One n-th is what a process has already; what reaches it is the rest, (n - 1) / n.

            2 * blocks + gradients → 3 * blocks + gradients
            2: Blocks are gathered twice, for the forward and for the backward pass.

            (processes - 1) / processes * → (processes - 1) *
            1: These are the bytes to all processes together; a process gets what it has not: (n - 1) / n.

            (processes - 1) / processes * → processes *
            1: These are the bytes of all processes together; a process gets what it has not: (n - 1) / n.
        """),
        parts=_parts_of_traffic,
        tolerance=2e-6,
    ),
    Exercise(
        "gpu-bytes",
        lambda generator, number: (*draw_integers(generator, 100, 10 ** (4 + number), 3), (2, 1, 4, 8)[number % 4]),
        gpu_bytes,
        edits("""
            sharded / gpus + 2 * block + own → (sharded + own) / gpus + 2 * block
            1: Embeddings and head are not cut, and activations belong to a GPU's own rows: neither is divided.

            sharded / gpus + 2 * block + own → sharded / gpus + own
            2: What is gathered is missing: two blocks are whole while they are used.

            2 * block → block
            2: Two blocks are whole at a time: the one that computes, and the next, on its way.

            sharded + own if gpus == 1 else sharded / gpus → sharded / gpus
            3: A single GPU has everything: nothing is gathered there, and nothing is there twice.

            sharded / gpus + 2 * block + own → (sharded + own) / gpus
            2: Everything is divided, but what is whole for a moment is whole on each GPU.

            sharded / gpus + 2 * block + own → sharded + 2 * block + own
            1: Nothing is divided here: of what is cut, each GPU has one part.

            sharded / gpus + 2 * block + own → (sharded + 2 * block) / gpus + own
            2: The gathered blocks are divided; each GPU has them whole while it uses them.
        """),
        parts=_parts_of_bill,
        tolerance=2e-6,
    ),
    Exercise(
        "smallest-node",
        _node,
        smallest_node,
        edits("""
            None if room <= 0 else max(2, -(-sharded // room)) → -(-sharded // card)
            1: What is gathered, and each GPU's own activations, take room on every card: subtract both from it before
               you divide.

            None if room <= 0 else → 1 if room == 0 else
            3: No number of cards helps where what is not cut fills one: return None there.

            if sharded + own <= card → if sharded + gathered + own <= card
            2: On a single card nothing is gathered: try that one first, without it.

            if sharded + own <= card → if sharded + own < card
            if sharded + own <= card → if (sharded := sharded + 1) + own <= card
            2: What exactly fills a card fits: `<=`.

            -(-sharded // room) → round(sharded / room)
            1: That is the nearest whole number of cards, on which the last piece may have no place: round up.

            -(-sharded // room) → sharded // room
            1: Rounded down, the last piece has no place.

            card - gathered - own → card - gathered
            1: Each GPU's own activations take room on every card: subtract them as well.

            card - gathered - own → card - own
            1: What is gathered takes room on every card, if there are several: subtract it as well.

            -(-sharded // room) → sharded // room + 1
            -(-sharded // room) → -(-sharded // room) + 1
            1: That is one card more than needed, at least where the division leaves no remainder: `-(-a // b)` alone
               rounds up.

            None if room <= 0 else → None if room <= 0 or sharded > 100 * room else
            3: You stop at a number of cards; more than that may be needed.

            None if room <= 0 else → 0 if room <= 0 else
            None if room <= 0 else → -1 if room <= 0 else
            3: If no number is enough, return None.
        """),
    ),
)

# What no notebook asks any more. Courses that were begun while one did go on grading it.
EARLIER = (
    Exercise("combine-gradients", _gradients, combine_gradients, edits(WEIGHTS), any_float=True, tolerance=1e-5),
)
