"""Exercises of notebook 06 about the task: labels, loss, and when an answer is right."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, Misconception

END = 2  # the end-of-turn token, which fills up as well


def _number(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=generator))


# What guessing costs


def guessing_loss(vocabulary: int) -> float:
    return math.log(vocabulary)


# Labels


def _batch(generator: torch.Generator, number: int):
    """input_ids (b, t), padded with END; prompt_lengths and lengths (b,). Answers end with END, and so do prompts."""
    count = 1 + number % 4
    prompts = torch.randint(2, 6 + number, (count,), generator=generator)
    answers = torch.randint(2, 6 + number, (count,), generator=generator)
    lengths = prompts + answers
    ids = torch.full((count, int(lengths.max())), END)
    for row, (prompt, length) in enumerate(zip(prompts.tolist(), lengths.tolist(), strict=True)):
        ids[row, :length] = torch.randint(3, 50, (length,), generator=generator)
        ids[row, prompt - 1] = ids[row, length - 1] = END
    return ids, prompts, lengths


def _positions(input_ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(input_ids.shape[1])


def build_labels(input_ids, prompt_lengths, lengths):
    at = _positions(input_ids)
    learned = (at >= prompt_lengths[:, None]) & (at < lengths[:, None])
    return torch.where(learned, input_ids, -100)


def _labels_where(learned):
    """The answer that labels where `learned(positions, prompt lengths, lengths, ids)` is true."""
    return lambda ids, prompts, lengths: torch.where(
        learned(_positions(ids), prompts[:, None], lengths[:, None], ids), ids, -100
    )


def _shifted_labels(ids, prompts, lengths):
    labels = build_labels(ids, prompts, lengths)
    return torch.cat((labels[:, 1:], torch.full((len(ids), 1), -100)), 1)


# Loss


def _logits(generator: torch.Generator, number: int):
    """logits (b, t, v) and labels (b, t); rows have different numbers of labels, and the first label may be one too."""
    b, t, v = 1 + number % 3, 5 + number, 6 + 2 * number
    labels = torch.randint(0, v, (b, t), generator=generator)
    for row in range(b):
        labels[row, : 1 + _number(generator, 0, t - 2)] = -100
    if number == 0:
        labels[0, 0] = 1  # a label that nothing predicts
    return 3 * torch.randn(b, t, v, generator=generator), labels


def supervised_loss(logits, labels):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def _token_losses(logits, labels):
    """Losses (b, t), zero where there is no label, of logits and labels at the same positions."""
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")


def _mean_of_examples(logits, labels):
    losses, counted = _token_losses(logits[:, :-1], labels[:, 1:]), labels[:, 1:] != -100
    return (losses.sum(1) / counted.sum(1)).mean()


def _loss_where(logits, labels):
    return _token_losses(logits, labels).sum() / (labels != -100).sum()


# Right answers


def _calls(generator: torch.Generator, number: int):
    """What a model said (calls, or None) and what was wanted: equal twice in eight, and six ways to differ."""
    minutes, kind = 1 + _number(generator, 1, 90), number % 8
    timer = {"name": "timer", "arguments": {"minutes": minutes, "label": "tea"}}
    add = {"name": "add", "arguments": {"list": "shopping", "item": "eggs", "count": 1}}
    wanted = [timer, add]
    if kind == 0:
        return None, wanted
    if kind == 1:  # true is not 1
        return [timer, {"name": "add", "arguments": {**add["arguments"], "count": True}}], wanted
    if kind == 2:
        return [add, timer], wanted
    if kind == 3:  # 5.0 is 5
        return [{"name": "timer", "arguments": {"minutes": float(minutes), "label": "tea"}}, add], wanted
    if kind == 4:  # an argument too many
        return [timer, {"name": "add", "arguments": {**add["arguments"], "room": "kitchen"}}], wanted
    if kind == 5:
        return [timer], wanted
    if kind == 6:  # other key order: the same
        return [{"arguments": {"label": "tea", "minutes": minutes}, "name": "timer"}, add], wanted
    return [{"name": "timer", "arguments": {"minutes": minutes + 1, "label": "tea"}}, add], wanted


def calls_match(said, wanted):
    def equal(one, other):
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in other)
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
        return isinstance(one, bool) == isinstance(other, bool) and one == other

    return equal(said, wanted)


def _in_any_order(said, wanted):
    return said is not None and len(said) == len(wanted) and all(call in said for call in wanted)


def _at_least(said, wanted):
    return said is not None and all(
        one["name"] == other["name"] and other["arguments"].items() <= one["arguments"].items()
        for one, other in zip(said, wanted, strict=False)
    )


def _at_least_as_many(said, wanted):
    return _at_least(said, wanted) and len(said) == len(wanted)


EXERCISES = (
    Exercise(
        "guessing-loss",
        lambda generator, number: ((2, 256, 32000, 49152)[number % 4] + _number(generator, 0, 50),),
        guessing_loss,
        (
            Misconception("These are bits; losses are in nats, with the natural logarithm. Open hint 2.", math.log2),
            Misconception(
                "That is the logarithm to base 10; losses are in nats, with the natural one. Open hint 2.", math.log10
            ),
            Misconception(
                "That is the probability of the right token; the loss is minus its logarithm. Open hint 1.",
                lambda v: 1 / v,
            ),
            Misconception("The sign is turned: a loss is positive. Open hint 1.", lambda v: -math.log(v)),
            Misconception(
                "That is the perplexity, e to the power of the loss; the loss is its logarithm. Open hint 1.",
                lambda v: float(v),
            ),
        ),
        tolerance=1e-9,
    ),
    Exercise(
        "build-labels",
        _batch,
        build_labels,
        (
            Misconception(
                "The prompt has labels too: the model would be trained to say what people say to it. Open hint 1.",
                _labels_where(lambda at, prompts, lengths, ids: at < lengths),
            ),
            Misconception(
                "The padding has labels: the model would be trained to go on after the end. Open hint 1.",
                _labels_where(lambda at, prompts, lengths, ids: at >= prompts),
            ),
            Misconception(
                "The end of the answer has no label: a model trained so never learns to stop. If padding is told by "
                "its id: it is the same token here. Open hint 2.",
                _labels_where(lambda at, prompts, lengths, ids: (at >= prompts) & (ids != END)),
            ),
            Misconception(
                "The first token of the answer has no label: positions count from 0, so the answer begins at the "
                "prompt's length. Open hint 1.",
                _labels_where(lambda at, prompts, lengths, ids: (at > prompts) & (at < lengths)),
            ),
            Misconception(
                "The last token of the prompt has a label: positions count from 0, so the answer begins at the "
                "prompt's length. Open hint 1.",
                _labels_where(lambda at, prompts, lengths, ids: (at >= prompts - 1) & (at < lengths)),
            ),
            Misconception(
                "These are shifted by one already. A label stands where its token is; the loss shifts. Open hint 3.",
                _shifted_labels,
            ),
            Misconception(
                "What has no label is 0 instead of -100. 0 is a token like others, and would be learned. Open hint 3.",
                lambda ids, prompts, lengths: build_labels(ids, prompts, lengths).clamp(min=0),
            ),
        ),
    ),
    Exercise(
        "supervised-loss",
        _logits,
        supervised_loss,
        (
            Misconception(
                "Logits are compared with the token at their own position, which the model has seen already. Those at "
                "t predict the token at t + 1. Open hint 1.",
                _loss_where,
            ),
            Misconception(
                "The shift goes the wrong way: logits at t predict the token at t + 1, not at t - 1. Open hint 1.",
                lambda logits, labels: _loss_where(logits[:, 1:], labels[:, :-1]),
            ),
            Misconception(
                "The sum is divided by all positions instead of those with a label. The loss would depend on the "
                "length of the prompts. Open hint 2.",
                lambda logits, labels: _token_losses(logits[:, :-1], labels[:, 1:]).mean(),
            ),
            Misconception(
                "That is the mean of the examples' means, in which a token of a short answer counts more than one of a "
                "long answer. Open hint 2.",
                _mean_of_examples,
            ),
            Misconception(
                "That is the sum; the mean is wanted. Open hint 2.",
                lambda logits, labels: _token_losses(logits[:, :-1], labels[:, 1:]).sum(),
            ),
        ),
        tolerance=1e-5,
    ),
    Exercise(
        "calls-match",
        _calls,
        calls_match,
        (
            Misconception(
                "In Python `True == 1`, so the answer `true` passes for 1, and someone buys `true` eggs. Open hint 2.",
                lambda said, wanted: said == wanted,
            ),
            Misconception(
                "Compared as texts, the order of keys and 5.0 instead of 5 count as errors. Open hint 1.",
                lambda said, wanted: str(said) == str(wanted),
            ),
            Misconception(
                "The order of calls is ignored; they are carried out one after the other. Open hint 1.", _in_any_order
            ),
            Misconception(
                "An answer with further arguments passes. Names, arguments and values must be exactly those wanted. "
                "Open hint 3.",
                _at_least_as_many,
            ),
            Misconception(
                "An answer passes that lacks a call or has further arguments: `zip` stops at the shorter one. "
                "Open hint 3.",
                _at_least,
            ),
            Misconception(
                "Only the names of the functions are compared. Open hint 3.",
                lambda said, wanted: (
                    said is not None and [call["name"] for call in said] == [call["name"] for call in wanted]
                ),
            ),
        ),
    ),
)
