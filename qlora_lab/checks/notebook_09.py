"""Exercises of notebook 09: labels of a conversation, the end of a run, rows of q and k on their way to GGUF."""

import torch

from qlora_lab.checks.exercise import Exercise, draw_integers, edits


def chat_labels(turns, header):
    labels = []
    for role, ids in turns:
        for place, token in enumerate(ids):
            learned = role == "assistant" and place >= header
            labels.append(token if learned else -100)
    return labels


ROLES = (
    ("user", "assistant"),
    ("system", "user", "assistant"),
    ("user", "assistant", "user", "assistant"),
    ("system", "user", "assistant", "user"),  # the last word is not the assistant's
    ("user", "assistant", "tool", "assistant"),
)


def _conversation(generator: torch.Generator, number: int):
    header = 2 + number % 2
    turns = []
    for role in ROLES[number % len(ROLES)]:
        words = draw_integers(generator, 10, 500, draw_integers(generator, 1, 5, 1)[0])
        turns.append((role, [1, *draw_integers(generator, 3, 9, header - 1), *words, 2]))
    return turns, header


def early_stop(losses, patience):
    kept = 0
    for number, loss in enumerate(losses):
        if loss < losses[kept]:
            kept = number
        if number - kept >= patience:
            return kept, number
    return kept, len(losses) - 1


def _losses(generator: torch.Generator, number: int):
    """In tenths, so that some are equal: a fall, a turn at some place, in half of the cases a lower one long after."""
    turn, patience = 2 + number % 4, 1 + number % 3
    noise = draw_integers(generator, 0, 3, turn + 6)
    values = [30 - 4 * min(n, turn) + 2 * max(0, n - turn) + one for n, one in enumerate(noise)]
    values[turn + 1] = min(values[: turn + 1]) + 6 * (number % 2 == 0)  # as low once more, or a peak
    if number in (1, 6):
        values = values[: turn + 1]  # still falling where the steps are over
    elif number % 2 == 0:
        values.append(min(values) - 5)
    return [value / 10 for value in values], patience


def permute_rows(weight, heads):
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def _rotated(generator: torch.Generator, number: int):
    heads, half, columns = ((2, 3, 2), (3, 4, 5), (1, 4, 3), (4, 3, 4), (2, 8, 3), (3, 5, 1), (9, 4, 4), (3, 32, 8))[
        number
    ]
    return torch.randn(heads * 2 * half, columns, generator=generator), heads


EXERCISES = (
    Exercise(
        "chat-labels",
        _conversation,
        chat_labels,
        edits("""
            place >= header → place >= 0
            2: The header of the answer is learned too. It is given when the model is asked, so there is nothing to
               learn in it.

            place >= header → header <= place < len(ids) - 1
            3: The last token of an answer has no label. It is the end of the turn: without it the model never learns
               to stop.

            role == "assistant" → role != "assistant"
            1: It is the wrong way round: the assistant's tokens are given, and the others are learned.

            role == "assistant" → role != "system"
            1: What the user says is learned as well. Only the assistant's words are.

            learned = role → learned = ids is turns[-1][1] and role
            1: Only the last turn is learned. Every answer in the conversation is one to learn from.

            return labels → return [*labels[1:], -100]
            -: The labels are shifted by one place. The loss does that itself: a label stands where its token stands.

            else -100 → else 0
            1: Where nothing is to be learned the label is -100. 0 is a token like any other, and would be learned.
        """),
    ),
    Exercise(
        "early-stop",
        _losses,
        early_stop,
        edits("""
            loss < losses[kept] → loss <= losses[kept]
            1: An equal loss is no new lowest one: the earlier weights are kept, and patience goes on.

            loss < losses[kept] → number and loss < losses[number - 1]
            1: You compare with the measurement before. What counts is the lowest so far.

            number - kept >= patience → number - kept > patience
            2: That is one measurement too late: after `patience` of them in a row without a new lowest one, it is over.

            return kept, number → return number, number
            3: The weights of the last measurement are kept. It is the lowest one's that are wanted.

            if number - kept >= patience → if False
            2: The run never stops early, so it sees losses that it would not have lived to see.

            return kept, len(losses) - 1 → return kept, len(losses)
            3: A run that is not stopped ends with its last measurement, and these count from 0.
        """),
    ),
    Exercise(
        "permute-rows",
        _rotated,
        permute_rows,
        edits("""
            halves.transpose(1, 2) → halves
            1: The rows are where they were. The two of a pair should be side by side.

            heads, 2, rows // heads // 2, columns → heads, rows // heads // 2, 2, columns
            2: That is the way back: it takes rows that are side by side half a head apart.

            heads, 2, rows // heads // 2, columns → 1, 2, rows // 2, columns
            1: You take pairs half of *all* rows apart. Each head turns on its own: they are half a head apart.

            halves.transpose(1, 2) → halves.flip(1).transpose(1, 2)
            2: Each pair is the wrong way round: the row of the first half comes first.

            halves.transpose(1, 2) → halves.transpose(0, 2)
            3: The heads are mixed. Only the two inner axes of (heads, 2, half, columns) change places.
        """),
        any_float=True,
        tolerance=1e-6,
    ),
)
