"""Exercises of notebook 06: what guessing costs, labels, loss, accumulation, learning rate, the loop, and the score."""

import math
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from qlora_lab.checks.differences import is_same, plain_number, written
from qlora_lab.checks.exercise import Exercise, Misconception, draw_integers, draw_normal, edited, edits
from qlora_lab.checks.notebook_04 import adamw_step

END = 2  # the end-of-turn token, which fills up as well


def guessing_loss(vocabulary: int) -> float:
    return math.log(vocabulary)


def _vocabulary_case(generator: torch.Generator, number: int):
    return ((2, 256, 32000, 49152)[number % 4] + draw_integers(generator, 0, 50, 1)[0],)


def build_labels(input_ids, prompt_lengths, lengths):
    at, begin, end = torch.arange(input_ids.shape[1]), prompt_lengths[:, None], lengths[:, None]
    learned = (at >= begin) & (at < end)
    return torch.where(learned, input_ids, -100)


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


def supervised_loss(logits, labels):
    said, wanted = logits[:, :-1], labels[:, 1:]
    return cross_entropy(said.flatten(0, 1), wanted.flatten())


def _looks_up_all(logits, labels):
    return -logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:, None]).mean()


def _logits(generator: torch.Generator, number: int):
    """logits (b, t, v) and labels (b, t); rows have different numbers of labels, and the first label may be one too."""
    b, t, v = 1 + number % 3, 5 + number, 6 + 2 * number
    labels = torch.randint(1, v, (b, t), generator=generator)
    labels[:, -1] = 0  # a token like others
    for row in range(b):
        labels[row, : 1 + draw_integers(generator, 0, t - 2, 1)[0]] = -100
    if number in (0, 4):
        labels[:, 0] = 1  # labels that nothing predicts, not even the end of the row before
    return 3 * torch.randn(b, t, v, generator=generator), labels


def accumulate(gradients, tokens):
    weighted = [g * n for g, n in zip(gradients, tokens, strict=True)]
    return sum(weighted) / sum(tokens)


def _micro_batches(generator: torch.Generator, number: int):
    """Gradients of mean losses, and the numbers of supervised tokens they are means over."""
    shape = ((3,), (4, 4), (2, 5))[number % 3]
    count = 2 + number % 4
    gradients = draw_normal(generator, *[shape] * count)
    return gradients, [draw_integers(generator, 1, 40, 1)[0] * (1 + i) for i in range(count)]


def learning_rate(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / (steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (0.1 + 0.9 * cosine)


def _schedule(generator: torch.Generator, number: int):
    steps = 20 + draw_integers(generator, 0, 200, 1)[0]
    warmup = 2 + draw_integers(generator, 0, 8, 1)[0]
    step = (1, warmup, warmup + 1, steps, warmup - 1, steps - 1, (steps + warmup) // 2, steps // 3 + warmup)[number % 8]
    return step, steps, 10.0 ** -(1 + number % 4), warmup


def train(values, batches, gradients_of, rate_at, combine, update):
    values, losses = list(values), []
    m = [torch.zeros_like(value) for value in values]
    v = [torch.zeros_like(value) for value in values]
    for step, parts in enumerate(batches, 1):
        run = [gradients_of(values, part) for part in parts]
        tokens = [count for _, count, _ in run]
        losses.append(sum(loss * count for loss, count, _ in run) / sum(tokens))
        for i in range(len(values)):
            gradient = combine([gradients[i] for _, _, gradients in run], tokens)
            p, g, rate = values[i], gradient, rate_at(step)
            values[i], m[i], v[i] = update(p, g, m[i], v[i], step, rate)
    return values, losses


def _a_step_for_each_part(values, batches, *pieces):
    return train(values, [[part] for parts in batches for part in parts], *pieces)


def _gradients_of(values, part):
    """Of half the mean squared error: of x @ w + c for a part (x (n, d), y (n,)), or of two points (2, n, d)."""
    if isinstance(part, tuple):
        (w, c), (x, y) = values, part
        off = x @ w + c - y
        return off.square().mean().item() / 2, len(y), [x.t() @ off / len(y), off.mean().expand(len(c))]
    off = [value - targets for value, targets in zip(values, part, strict=True)]
    loss = sum(each.square().sum(1).mean().item() for each in off) / 2
    return loss, part.shape[1], [each.mean(0) for each in off]


def _by_momentum(p, g, m, v, step, lr):
    """A rule in which steps may count from anywhere: AdamW divides by zero at a step 0."""
    m = 0.9 * m + g
    v = v + g.square()
    return p - lr / (1 + 0.3 * step) * m / (1 + v).sqrt(), m, v


def _by_adamw(p, g, m, v, step, lr):
    return adamw_step(p, g, m, v, step, lr, 0.9, 0.99, 1e-8, 0.01)


def _problem(generator: torch.Generator, number: int):
    """A small quadratic problem: values, batches, the peak rate, and whether AdamW updates.

    Parts have different numbers of tokens, and rates differ from step to step.
    """
    steps, d = 2 + number % 5, 3
    tokens = [2 + draw_integers(generator, 0, 9, 1)[0] + 5 * i for i in range(1 + (number + 1) % 3)]
    if number % 2 == 0:
        values = draw_normal(generator, (d,), (d,))
        batches = [[torch.randn(2, n, d, generator=generator) for n in tokens] for _ in range(steps)]
    else:
        values = draw_normal(generator, (d,), (1,))
        batches = [[tuple(draw_normal(generator, (n, d), (n,))) for n in tokens] for _ in range(steps)]
    return values, batches, 0.1 + 0.1 * number, number >= 3


def _run(function: Callable, arguments: tuple):
    """Train by `function`: values at the end, and losses."""
    values, batches, peak, adamw = arguments
    rule = _by_adamw if adamw else _by_momentum
    return function(values, batches, _gradients_of, lambda step: peak / (1 + 0.5 * abs(step - 2)), accumulate, rule)


def _which_run(arguments: tuple) -> str:
    values, batches = arguments[:2]
    return f"{len(values)} values, {len(batches)} steps and {len(batches[0])} part{'s' * (len(batches[0]) > 1)} in each"


def _where_it_goes_wrong(arguments: tuple, result, expected) -> str | None:
    """Which step's loss is the first to differ, and whether the values do."""
    if isinstance(result, list) and is_same(result, expected[1], 1e-5, any_float=True):
        return "Only the losses came back; the values are wanted as well, before them."
    if not isinstance(result, tuple | list) or len(result) != 2:
        return None
    (found, losses), (values, right) = result, expected
    if is_same((losses, found), expected, 1e-5, any_float=True):
        return "The two results are in the other order: first the values, then the losses."
    if not isinstance(losses, tuple | list):
        return f"The second result has to be a list of the {len(right)} losses, and is {written(losses)}."
    if len(losses) != len(right):
        return f"It gives {len(losses)} losses for {len(right)} steps."
    off = [step for step, pair in enumerate(zip(losses, right, strict=True), 1) if not is_same(*pair, 1e-5)]
    if not off:
        return "All losses are right, and the values at the end are not: look at the last step."
    loss = plain_number(losses[off[0] - 1])
    shown = f"{loss:.6g}" if isinstance(loss, float) else written(loss)
    told = f"the loss of step {off[0]} of {len(right)} is {shown} instead of {right[off[0] - 1]:.6g}"
    if is_same(found, values, 1e-5, any_float=True):
        return f"The values are right, the losses are not: {told}."
    before = "" if off[0] == 1 else f" Step {off[0] - 1} leaves other values than it should."
    return f"The first that differs: {told}.{before}"


def calls_match(said, wanted):
    if said is None or len(said) != len(wanted):
        return False
    for one, other in zip(said, wanted, strict=False):  # not strict, and & below: edits take these checks away
        given, right = one["arguments"], other["arguments"]
        if one["name"] != other["name"] or given.keys() != right.keys():
            return False
        for name in given.keys() & right.keys():
            x, y = given[name], right[name]
            if isinstance(x, bool) != isinstance(y, bool) or x != y:
                return False
    return True


def _changed(call: dict, **arguments) -> dict:
    return {"name": call["name"], "arguments": {**call["arguments"], **arguments}}


def _without(call: dict, name: str) -> dict:
    return {"name": call["name"], "arguments": {k: v for k, v in call["arguments"].items() if k != name}}


# What a model said, given the two calls that were wanted. Each differs in one thing, or in nothing that counts.
KINDS: tuple[Callable[[dict, dict], list | None], ...] = (
    lambda timer, add: [timer, add],
    lambda timer, add: None,
    lambda timer, add: [timer, _changed(add, count=True)],  # true is not 1
    lambda timer, add: [add, timer],
    lambda timer, add: [_changed(timer, minutes=float(timer["arguments"]["minutes"])), add],  # 5.0 is 5
    lambda timer, add: [timer, _changed(add, room="kitchen")],
    lambda timer, add: [timer],
    lambda timer, add: [{"arguments": dict(reversed(timer["arguments"].items())), "name": "timer"}, add],
    lambda timer, add: [_changed(timer, minutes=timer["arguments"]["minutes"] + 1), add],
    lambda timer, add: [{**timer, "name": "alarm"}, add],
    lambda timer, add: [_without(timer, "label"), add],
    lambda timer, add: [timer, add, add],
    lambda timer, add: [_changed(timer, label="coffee"), add],
    lambda timer, add: [timer, _changed(add, shelf=False)],  # nor is false 0 ...
    lambda timer, add: [_changed(timer, repeat=1), add],  # ... or 1 true
    lambda timer, add: [_changed(timer, minutes=timer["arguments"]["minutes"] + 0.5), add],
    lambda timer, add: [timer, _changed(add, count="1")],
    lambda timer, add: [_changed(timer, label="Tea"), add],
)


def _calls(generator: torch.Generator, number: int):
    """What a model said (calls, or None), and what was wanted."""
    minutes = draw_integers(generator, 2, 90, 1)[0]
    timer = {"name": "timer", "arguments": {"minutes": minutes, "label": "tea", "repeat": True}}
    add = {"name": "add", "arguments": {"item": "eggs", "count": 1, "shelf": 0}}
    if number == len(KINDS):
        return None, []  # that nothing was wanted does not make it right
    return KINDS[number](timer, add), [timer, add]


def _what_differs(said, wanted) -> str:
    if said is None:
        return f"The answer is None, and {wanted!r} is wanted" if not wanted else "The answer is None"
    if len(said) != len(wanted):
        return (
            f"The answer has {len(said)} of {len(wanted)} calls"
            if len(said) < len(wanted)
            else "The answer has a call too many"
        )
    for number, (one, other) in enumerate(zip(said, wanted, strict=True), 1):
        if one["name"] != other["name"]:
            return f"Call {number} is to {one['name']!r} where {other['name']!r} is wanted"
        given, right = one["arguments"], other["arguments"]
        for name in (*right, *given):
            if name not in given or name not in right:
                return f"Call {number} {'lacks' if name in right else 'has a further'} argument {name!r}"
            if repr(given[name]) != repr(right[name]):  # 5.0 and 5 are shown, equal as they are
                return f"Call {number} has {name} = {given[name]!r} where {right[name]!r} is wanted"
    return "Calls are as wanted" + (", with keys in another order" if repr(said) != repr(wanted) else "")


def _describe(arguments: tuple, result, expected) -> str:
    return (
        f"{_what_differs(*arguments)}: your function returned {written(plain_number(result))} instead of {expected!r}."
    )


def _in_any_order(said, wanted):
    return said is not None and len(said) == len(wanted) and all(call in said for call in wanted)


def _as_far_as_both_go(said, wanted):
    """Neither calls nor arguments are counted; each argument that is wanted has to be there."""
    if said is None:
        return False
    pairs = list(zip(said, wanted, strict=False))
    asked = [
        {**one, "arguments": {k: v for k, v in one["arguments"].items() if k in other["arguments"]}}
        for one, other in pairs
    ]
    return calls_match(asked, [other for _, other in pairs])


def _numbers_for_bools(calls):
    """Calls with 1 and 0 for True and False, as `==` takes them."""
    return calls and [
        _changed(call, **{k: int(v) for k, v in call["arguments"].items() if isinstance(v, bool)}) for call in calls
    ]


def _and_by_equality(found: Misconception) -> tuple[Misconception, Misconception]:
    """A misconception, and the same with values compared by `==` alone."""

    def by_equality(said, wanted):
        wrong = found.function or edited(calls_match, *found.edit)
        return wrong(_numbers_for_bools(said), _numbers_for_bools(wanted))

    return found, Misconception(found.meaning, found.hint, function=by_equality)


# Answers that let something pass
_LENIENT = (
    *edits("""
        given.keys() != right.keys() → right.keys() - given.keys()
        3: An answer with further arguments passes. Names, arguments and values must be exactly those wanted.
    """),
    Misconception(
        "An answer passes that lacks a call or has further arguments: `zip` stops at the shorter one.",
        3,
        function=_as_far_as_both_go,
    ),
    *edits("""
        said is None or len(said) != len(wanted) → said is None
        3: An answer with a call too few or too many passes: `zip` stops at the shorter one. Compare the number of
           calls first.

        len(said) != len(wanted) → len(said) < len(wanted)
        3: An answer with a call too many passes. Compare the number of calls.

        len(said) != len(wanted) → len(said) > len(wanted)
        3: An answer with a call too few passes. Compare the number of calls.

        given.keys() != right.keys() → given.keys() - right.keys()
        3: An answer that lacks an argument passes. Compare the keys before you go through them.

        one["name"] != other["name"] or given.keys() != right.keys() → given.keys() != right.keys()
        3: The names of the functions are not compared: an alarm passes for a timer.
    """),
)

EXERCISES = (
    Exercise(
        "guessing-loss",
        _vocabulary_case,
        guessing_loss,
        edits("""
            math.log(vocabulary) → math.log2(vocabulary)
            2: These are bits; losses are in nats, with the natural logarithm.

            math.log(vocabulary) → math.log10(vocabulary)
            2: That is the logarithm to base 10; losses are in nats, with the natural one.

            math.log(vocabulary) → 1 / vocabulary
            1: That is the probability of the right token; the loss is minus its logarithm.

            math.log(vocabulary) → -math.log(vocabulary)
            1: The sign is wrong: a loss is positive.

            math.log(vocabulary) → float(vocabulary)
            1: That is the perplexity, e to the power of the loss; the loss is its logarithm.

            math.log(vocabulary) → 1 - 1 / vocabulary
            1: That is how often a guess is wrong; the loss is minus the logarithm of the probability of the right
               token.

            math.log(vocabulary) → math.log(vocabulary) / vocabulary
            1: That is the share of one token of the vocabulary. The loss is minus the logarithm of the right token's
               probability.
        """),
        tolerance=2e-6,
    ),
    Exercise(
        "build-labels",
        _batch,
        build_labels,
        edits("""
            (at >= begin) & (at < end) → at < end
            1: The prompt has labels too: the model would be trained to say what people say to it.

            (at >= begin) & (at < end) → at >= begin
            1: The padding has labels: the model would be trained to go on after the end.

            at < end → input_ids != END
            2: The end of the answer has no label: a model trained like this never learns to stop. (Do not tell padding
               by its id, which is that of the end of the turn here.)

            at >= begin → at > begin
            1: The first token of the answer has no label: positions count from 0, so the answer begins at the prompt's
               length.

            at >= begin → at >= begin - 1
            1: The last token of the prompt has a label: positions count from 0, so the answer begins at the prompt's
               length.

            torch.where(learned, input_ids, -100) → torch.where(learned, input_ids, -100).roll(-1, 1)
            3: These are shifted by one already. A label stands where its token is; the loss shifts.

            -100 → 0
            3: What has no label is 0 instead of -100. 0 is a token like others, and would be learned.

            torch.where(learned, input_ids, -100) → torch.where(learned, 1, -100)
            torch.where(learned, input_ids, -100) → learned.long()
            3: That is a mask. The label of a token is the token itself.

            at < end → at < begin + end
            1: `lengths` counts prompt and answer together; you add the prompt's length once more.

            prompt_lengths[:, None], lengths[:, None] → prompt_lengths, lengths
            2: Positions are compared with the lengths of their row: make columns of the lengths, `lengths[:, None]`.

            torch.where(learned, input_ids, -100) → torch.where(learned, -100, input_ids)
            1: It is the other way round: the answer has -100, and everything else its label.

            at < end → at <= end
            1: One token of the padding has a label: positions count from 0, so the answer ends before position
               `lengths`.
        """),
    ),
    Exercise(
        "supervised-loss",
        _logits,
        supervised_loss,
        (
            *edits("""
            logits[:, :-1], labels[:, 1:] → logits, labels
            1: Logits are compared with the token at their own position, which the model has seen already. Those at t
               predict the token at t + 1.

            logits[:, :-1], labels[:, 1:] → logits[:, 1:], labels[:, :-1]
            1: The shift goes the wrong way: logits at t predict the token at t + 1, not at t - 1.

            wanted.flatten()) → wanted.flatten(), reduction="sum") / wanted.numel()
            2: The sum is divided by all positions instead of those with a label. The loss would depend on the length
               of the prompts.

            cross_entropy(said.flatten(0, 1), wanted.flatten()) → sum(map(cross_entropy, said, wanted)) / len(said)
            2: That is the mean of the examples' means, in which a token of a short answer counts more than one of a
               long answer.

            said.flatten(0, 1), wanted.flatten() → logits.flatten(0, 1)[:-1], labels.flatten()[1:]
            3: Rows are put one after the other before the shift, so that the end of one predicts the beginning of the
               next. Shift within each row, then flatten.

            wanted.flatten()) → wanted.flatten(), reduction="sum") / (labels != -100).sum()
            2: That is divided by all labels there are, also those of first tokens, which nothing predicts. Count after
               the shift.

            wanted.flatten() → wanted.where(wanted > 0, -100).flatten()
            2: 0 is a token like others; only -100 means that there is no label.

            wanted.flatten()) → wanted.flatten(), reduction="sum")
            2: That is the sum; the mean is wanted.

            wanted.flatten()) → wanted.flatten()) / math.log(2)
            3: These are bits; nats are wanted, with the natural logarithm.

            logits[:, :-1], labels[:, 1:] → logits[:, :-2], labels[:, 2:]
            1: That is shifted by two; logits at t predict the token at t + 1.

            wanted.flatten()) → wanted.clamp(min=0).flatten())
            2: Tokens without a label (-100) count as well, as if token 0 were wanted there. Leave them out of the mean.

            said.flatten(0, 1), wanted.flatten() → said, wanted
            3: cross_entropy takes dimension 1 for the vocabulary, and here that is the position: put all positions one
               after the other.

            said.flatten(0, 1), wanted → said.softmax(-1).flatten(0, 1), wanted
            2: cross_entropy takes logits, and makes probabilities of them itself: no softmax before it.

            cross_entropy(said → torch.nn.functional.nll_loss(said
            2: nll_loss takes logarithms of probabilities; for logits there is cross_entropy.
        """),
            Misconception(
                "-100 is no token: leave out the positions without a label before you look anything up.",
                2,
                function=_looks_up_all,
            ),
        ),
        any_float=True,
        tolerance=1e-5,
    ),
    Exercise(
        "accumulate",
        _micro_batches,
        accumulate,
        edits("""
            sum(weighted) / sum(tokens) → sum(gradients) / len(gradients)
            1: That is the mean of the means. A token of a part with few labels then counts more than others.

            sum(weighted) / sum(tokens) → sum(gradients)
            1: That is the sum of the means, too large by about the number of parts.

            / sum(tokens) → / len(tokens)
            2: The weights are right, but they must be divided by the tokens of the whole step, not by the number of
               parts.

            sum(weighted) / sum(tokens) → sum(weighted)
            2: That is the gradient of the summed loss: divide by the tokens of the whole step.

            weighted = → tokens = [1 / n for n in tokens]; weighted =
            1: The weights are the wrong way round: a mean over few tokens should count little.

            sum(weighted) / sum(tokens) → sum(g / n for g, n in zip(gradients, tokens))
            1: Each gradient is divided by its tokens. It is a mean already; multiply by them.

            sum(weighted) / sum(tokens) → weighted[-1] / sum(tokens)
            sum(weighted) / sum(tokens) → weighted[-1] / tokens[-1]
            2: Only the last part is left: each one has to be added to those before.

            / sum(tokens) → / max(tokens)
            2: Divide by the tokens of all parts together, not of the largest.

            sum(weighted) / sum(tokens) → sum(gradients) / sum(tokens)
            1: The gradients are those of means, and you add them as if they were those of sums. Multiply each with its
               tokens first.
        """),
        any_float=True,
        tolerance=1e-5,
    ),
    Exercise(
        "learning-rate",
        _schedule,
        learning_rate,
        (
            *edits("""
            0.1 + 0.9 * cosine → cosine
            3: It falls to zero; a tenth of the peak is what should be left.

            peak * step / warmup → peak
            1: There is no warm-up: the first steps, when the optimizer knows no moments yet, take the full rate.

            0.5 * (1 + math.cos(math.pi * progress)) → 1 - progress
            2: It falls along a straight line; a cosine is wanted.

            (step - warmup) / (steps - warmup) → step / steps
            2: After the warm-up the cosine must begin at its start: progress counts from the end of the warm-up. As it
               is the rate jumps there.

            0.9 * cosine → cosine
            3: A tenth of the peak is added to a cosine that falls by the whole of it: the rate jumps above the peak
               after the warm-up. Let the cosine fall by 0.9 of it.

            0.1 + 0.9 * cosine → max(0.1, cosine)
            3: The cosine falls to zero and is cut off at a tenth of the peak; it has to fall *to* a tenth, without a
               kink.

            (steps - warmup) → steps
            2: The cosine is spread over all steps, and only those after the warm-up are left: at the last step it has
               not reached its end. Divide by steps - warmup.

            peak * step / warmup → peak * (step - 1) / warmup
            peak * step / warmup → (peak * (step - 1) / warmup if step < warmup else peak)
            1: Steps count from 1: the first one would have rate zero and teach nothing.

            0.5 * (1 + math.cos(math.pi * progress)) → math.cos(math.pi * progress)
            2: The cosine is used as it is, from 1 to -1: the rate would become negative.

            0.5 * (1 + math.cos(math.pi * progress)) → math.cos(math.pi / 2 * progress)
            2: That is a quarter of a cosine, which falls most steeply at its end; half a period is wanted.

            math.cos(math.pi * progress) → math.cos(2 * math.pi * progress)
            2: That is a whole period: the rate falls and rises again. Half a period ends at the bottom.

            0.1 + 0.9 * cosine → 0.9 + 0.1 * cosine
            3: It falls by a tenth, to 0.9 of the peak; it should fall to a tenth.

            0.1 + 0.9 * cosine → 1.0
            2: After the warm-up the rate stays at the peak; it should fall along a cosine.

            0.5 * (1 + math.cos(math.pi * progress)) → 0.5 * (1 - math.cos(math.pi * progress))
            2: After the warm-up it rises from a tenth to the peak; the cosine is upside down.

            0.5 * (1 + math.cos(math.pi * progress)) → (1 + math.cos(math.pi * progress))
            2: One plus a cosine begins at 2: halve it.

            peak * step / warmup → min(peak, peak * (step + 1) / warmup)
            peak * step / warmup → peak * (step + 1) / (warmup + 1)
            1: The warm-up is a step ahead: steps count from 1, and the peak is reached at step `warmup`.

            math.cos(math.pi * progress) → math.cos(180 * progress)
            2: `math.cos` takes radians: half a period is math.pi, not 180.

            peak * step / warmup → peak * (0.1 + 0.9 * step / warmup)
            1: The warm-up begins at a tenth of the peak; it rises from 0 before the first step.

            peak * (0.1 + 0.9 * cosine) → 0.1 + (peak - 0.1) * cosine
            3: It falls to 0.1; a tenth of the peak is meant.
        """),
            Misconception(
                "After the warm-up the cosine must begin at its start: progress counts from the end of the warm-up. As "
                "it is the rate jumps there.",
                2,
                function=edited(
                    learning_rate,
                    "step <= warmup",
                    "step < warmup",
                    "(step - warmup) / (steps - warmup)",
                    "step / steps",
                ),
            ),
        ),
        tolerance=2e-6,
    ),
    Exercise(
        "train",
        _problem,
        train,
        (
            *edits("""
                enumerate(batches, 1) → enumerate(batches, 0)
                2: Steps count from 1, for the rate as for the update: AdamW's corrections divide by 1 - beta**step,
                   which is zero at a step 0.

                update(p, g, m[i], v[i], step, rate) → update(p, g, m[i], v[i], step - 1, rate)
                2: `update` is told the step before: it counts from 1 too.

                rate_at(step) → rate_at(step + 1)
                2: That is the rate of the next step.

                rate_at(step) → rate_at(step - 1)
                2: That is the rate of the step before. The first step is number 1.

                rate_at(step) → rate_at(1)
                2: All steps have the rate of the first one. Ask for each step's own.

                sum(loss * count for loss, count, _ in run) / sum(tokens) → sum(each[0] for each in run) / len(run)
                1: The losses are means of the parts' means: a part with few tokens counts as much as one with many.
                   (The values are right.)

                sum(loss * count for loss, count, _ in run) / sum(tokens) → sum(loss * count for loss, count, _ in run)
                1: The losses are sums over all tokens; divide them by the tokens of the step. (The values are right.)

                sum(loss * count for loss, count, _ in run) / sum(tokens) → sum(loss for loss, _, _ in run)
                1: The losses are sums of the parts' means. (The values are right.)

                losses.append(sum(loss * count for loss, count, _ in run) / sum(tokens)) → losses.append(run[-1][0])
                1: The losses are those of each step's last part only. (The values are right.)

                values[i], m[i], v[i] = update( → _, m[i], v[i] = update(
                3: The values are not taken back: `update` returns new ones and changes nothing in place, so every step
                   begins at the values of the first.

                values[i], m[i], v[i] = update( → values[i], _, _ = update(
                update(p, g, m[i], v[i], step, rate) → update(p, g, 0 * m[i], 0 * v[i], step, rate)
                3: The moments begin anew at every step. Make them once, before the first step, and keep what `update`
                   returns of them for the next.

                values[i], m[i], v[i] = update( → values[i], m[i], _ = update(
                3: The second moment is not taken back; it stays at zero.

                m[i], v[i] = update(p, g, m[i], v[i] → m[0], v[0] = update(p, g, m[0], v[0]
                3: All values share one pair of moments. Each has its own.

                combine([gradients[i] for _, _, gradients in run], tokens) → run[-1][2][i]
                1: Only the last part's gradient is used. Put those of all parts together with `combine`.

                combine([gradients[i] for _, _, gradients in run], tokens) → run[0][2][i]
                1: Only the first part's gradient is used. Put those of all parts together with `combine`.

                gradients in run], tokens) → gradients in run], [1] * len(run))
                1: The parts' gradients are put together as if each had as many tokens as any other. `combine` wants the
                   counts that `gradients_of` gave.

                return values, losses → return values, losses[::-1]
                -: The losses come in the order of the steps, the first one first.

                enumerate(batches, 1) → enumerate(batches[:-1], 1)
                -: The last step is missing.

                [gradients[i] for _, _, gradients in run], tokens) → [gradients for _, _, gradients in run], tokens)
                1: `combine` takes the gradients of one value: of each part the gradient with this value's number.
            """),
            Misconception(
                "Each part makes a step of its own. A step is one update, with the gradients of all its parts put "
                "together.",
                1,
                function=_a_step_for_each_part,
            ),
        ),
        any_float=True,
        tolerance=1e-5,
        call=_run,
        situation=_which_run,
        describe=_where_it_goes_wrong,
    ),
    Exercise(
        "calls-match",
        _calls,
        calls_match,
        (
            *edits("""
                isinstance(x, bool) != isinstance(y, bool) or x != y → x != y
                2: In Python `True == 1`, so the answer `true` passes for 1, and someone buys `true` eggs.

                said is None or len(said) != len(wanted) → str(said) != str(wanted)
                1: Compared as texts, the order of keys and 5.0 instead of 5 count as errors.

                said is None or len(said) != len(wanted) → len(said) != len(wanted)
                -: An answer that was no JSON is None. It has no length, and it is never right.
            """),
            Misconception(
                "The order of calls is ignored; they are carried out one after the other.", 1, function=_in_any_order
            ),
            *(each for found in _LENIENT for each in _and_by_equality(found)),
            *edits("""
                one["arguments"], other["arguments"] → {}, {}
                3: Only the names of the functions are compared.

                x != y → x != y and not isinstance(y, str)
                x != y → x != y and not isinstance(x, str)
                x != y → x != y and not (isinstance(x, str) and isinstance(y, str))
                2: Texts are not compared: any label passes for any other.

                isinstance(x, bool) != isinstance(y, bool) → (x is True and y is not True)
                isinstance(x, bool) != isinstance(y, bool) → isinstance(x, bool) > isinstance(y, bool)
                isinstance(x, bool) != isinstance(y, bool) → isinstance(x, bool) < isinstance(y, bool)
                2: You ask for a bool in one direction only: `true` for 1, 1 for `true` and `false` for 0 are all
                   wrong. Ask on both sides, and compare.

                isinstance(x, bool) != isinstance(y, bool) → type(x) is not type(y)
                2: 5 and 5.0 are the same number, of two types. Ask whether values are bool, not whether their types
                   are equal.

                isinstance(x, bool) != isinstance(y, bool) → isinstance(x, bool)
                2: A `true` is always wrong in your answer, also where `true` is wanted.

                given[name], right[name] → (int(v) if isinstance(v, float) else v for v in (given[name], right[name]))
                -: Numbers are cut to whole ones: 5.5 passes for 5.

                x != y → x != y and str(x) != str(y)
                -: A text is no number: "1" must not pass for 1.

                given[name], right[name] → (v.lower() if isinstance(v, str) else v for v in (given[name], right[name]))
                -: Upper and lower case are different texts; compare them as they are.

                said is None or len(said) != len(wanted) → len(said := said or []) != len(wanted)
                -: An answer that was no JSON, None, passes where no call is wanted. It is never right.
            """),
        ),
        describe=_describe,
        cases=len(KINDS) + 1,
    ),
)
