"""Exercises of notebook 06 about the task: what guessing costs, labels, and the loss."""

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
    labels = torch.randint(1, v, (b, t), generator=generator)
    labels[:, -1] = 0  # a token like others
    for row in range(b):
        labels[row, : 1 + _number(generator, 0, t - 2)] = -100
    if number in (0, 4):
        labels[:, 0] = 1  # labels that nothing predicts, not even the end of the row before
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
                "Rows are put one after the other before the shift, so that the end of one predicts the beginning of "
                "the next. Shift within each row, then flatten. Open hint 3.",
                lambda logits, labels: torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1)[:-1], labels.flatten()[1:]
                ),
            ),
            Misconception(
                "That is divided by all labels there are, also those of first tokens, which nothing predicts. Count "
                "after the shift. Open hint 2.",
                lambda logits, labels: _token_losses(logits[:, :-1], labels[:, 1:]).sum() / (labels != -100).sum(),
            ),
            Misconception(
                "0 is a token like others; only -100 means that there is no label. Open hint 2.",
                lambda logits, labels: supervised_loss(logits, torch.where(labels > 0, labels, -100)),
            ),
            Misconception(
                "That is the sum; the mean is wanted. Open hint 2.",
                lambda logits, labels: _token_losses(logits[:, :-1], labels[:, 1:]).sum(),
            ),
        ),
        tolerance=1e-5,
    ),
)
