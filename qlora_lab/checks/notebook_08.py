"""Exercises of notebook 08 about gradients and parts: adding gradients up, cutting tensors, and resharding."""

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def _numbers(generator: torch.Generator, low: int, high: int, count: int) -> list[int]:
    return torch.randint(low, high, (count,), generator=generator).tolist()


def combine_gradients(gradients, tokens):
    return sum(n * g for n, g in zip(tokens, gradients, strict=True)) / sum(tokens)


def _gradients(generator: torch.Generator, number: int):
    processes = (2, 3, 4)[number % 3]
    shape = _numbers(generator, 2, 4 + number, 2)
    tokens = [3 + 5 * i + n for i, n in enumerate(_numbers(generator, 0, 4, processes))][::-1]  # never all alike
    if number % 2:
        tokens = [tokens[-1], *tokens[:-1]]
    return [torch.randn(shape, generator=generator) for _ in range(processes)], tokens


def part_of(tensor, process, processes):
    rows = -(-len(tensor) // processes)
    return tensor[process * rows : (process + 1) * rows]


def _cut(generator: torch.Generator, number: int):
    rows, processes = ((7, 3), (10, 4), (1, 2), (9, 4), (13, 5), (6, 4), (12, 3), (16, 3))[number]
    process = (2, 1, 1, 3, 4, 2, 1, 2)[number]
    if number % 2:
        return torch.randint(0, 256, (rows,), generator=generator).to(torch.uint8), process, processes
    return torch.randn(rows, 3, generator=generator), process, processes


def _any_cut(generator: torch.Generator, number: int):
    rows, processes = _numbers(generator, 1, 60, 1)[0], _numbers(generator, 1, 10, 1)[0]
    return torch.randn(rows, 2, generator=generator), _numbers(generator, 0, processes, 1)[0], processes


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
    rows, (before, after) = _numbers(generator, 1, 200, 1)[0], _numbers(generator, 1, 10, 2)
    return rows, before, after, _numbers(generator, 0, after, 1)[0]


def _global_rows(rows, before, after, process):
    size = -(-rows // before)
    return [(part, part * size + a, part * size + b) for part, a, b in read_plan(rows, before, after, process)]


def _all_parts(rows, before, after, process):
    found = {part: (part, a, b) for part, a, b in read_plan(rows, before, after, process)}
    return [found.get(part, (part, 0, 0)) for part in range(before)]


def _rounded_down(rows, before, after, process):
    size, wanted = rows // before, rows // after
    begin, end = process * wanted, (process + 1) * wanted
    plan = []
    for part in range(before):
        low, high = max(begin, part * size), min(end, (part + 1) * size)
        if low < high:
            plan.append((part, low - part * size, high - part * size))
    return plan


EXERCISES = (
    Exercise(
        "combine-gradients",
        _gradients,
        combine_gradients,
        (
            Misconception(
                "That is the plain average over processes, in which a token counts more where there are few of them. "
                "Weigh each gradient by its tokens. Open hint 1.",
                lambda g, n: sum(g) / len(g),
            ),
            Misconception(
                "That is the sum of the processes' gradients: each belongs to a mean over its own tokens, and the mean "
                "over all of them is wanted. Open hint 1.",
                lambda g, n: sum(g),
            ),
            Misconception(
                "Each gradient is weighed by its tokens, but nothing is divided by the tokens of all. Open hint 2.",
                lambda g, n: sum(t * x for t, x in zip(n, g, strict=True)),
            ),
            Misconception(
                "It is divided by the tokens of all, and by the number of processes once more. Open hint 2.",
                lambda g, n: combine_gradients(g, n) / len(g),
            ),
            Misconception(
                "The weights are the wrong way round: many tokens must count more, not less. Open hint 1.",
                lambda g, n: sum(x / t for t, x in zip(n, g, strict=True)) / sum(1 / t for t in n),
            ),
        ),
        tolerance=1e-5,
    ),
    Exercise(
        "part-of",
        _cut,
        part_of,
        (
            Misconception(
                "Rounded down, the rows that are left over belong to nobody. Round the size of a part up. Open hint 1.",
                lambda t, k, n: t[k * (len(t) // n) : (k + 1) * (len(t) // n)],
            ),
            Misconception(
                "`len // n + 1` is one row too many where the division leaves no rest; `-(-len // n)` rounds up. "
                "Open hint 1.",
                lambda t, k, n: t[k * (len(t) // n + 1) : (k + 1) * (len(t) // n + 1)],
            ),
            Misconception(
                "The last part is filled up with zeros. That is done for the all-gather; what is kept are the rows "
                "there are. Open hint 2.",
                lambda t, k, n: part_of(torch.cat((t, t.new_zeros(-len(t) % n, *t.shape[1:]))), k, n),
            ),
            Misconception(
                "The last process takes all that is left over, so its part is the largest, and buffers of one size no "
                "longer do. Round the size of a part up instead. Open hint 1.",
                lambda t, k, n: t[k * (len(t) // n) : len(t) if k == n - 1 else (k + 1) * (len(t) // n)],
            ),
            Misconception(
                "These parts differ by one row at most, which is fair, but FSDP's are not so: all but the last are "
                "equally large, rounded up, and the last ones may be short or empty. Open hint 2.",
                lambda t, k, n: t.tensor_split(n)[k],
            ),
            Misconception(
                "That is every n-th row, which is how a batch is split. A part of a parameter is one piece, so that "
                "the parts one after the other are the whole. Open hint 1.",
                lambda t, k, n: t[k::n],
            ),
        ),
        draw_more=_any_cut,
    ),
    Exercise(
        "read-plan",
        _resumed,
        read_plan,
        (
            Misconception(
                "These are rows of the whole tensor; each file begins with row 0 of its own part. Open hint 3.",
                _global_rows,
            ),
            Misconception(
                "Files that hold none of the rows need not be opened: leave them out. Open hint 2.", _all_parts
            ),
            Misconception(
                "Parts are rounded up, before and after; rounded down, some rows are in none. Open hint 1.",
                _rounded_down,
            ),
        ),
        draw_more=_resumed_anyhow,
    ),
)
