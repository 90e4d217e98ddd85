"""Wrong answers to the exercises of notebook 06."""

import math

import torch
from torch.nn.functional import cross_entropy

from wrong_answers import wrong


@wrong("guessing-loss", says="These are bits")
def in_bits(vocabulary):
    return math.log(vocabulary) / math.log(2)


@wrong("guessing-loss", says="minus its logarithm")
def probability(vocabulary):
    return 1.0 / vocabulary


@wrong("guessing-loss", says="sign is wrong")
def negative(vocabulary):
    return math.log(1 / vocabulary)


@wrong("guessing-loss", says="perplexity")
def perplexity(vocabulary):
    return math.exp(math.log(vocabulary))


@wrong("build-labels", says="The prompt has labels too")
def everything(input_ids, prompt_lengths, lengths):
    labels = input_ids.clone()
    for row, length in enumerate(lengths.tolist()):
        labels[row, length:] = -100
    return labels


@wrong("build-labels", says="padding has labels")
def with_padding(input_ids, prompt_lengths, lengths):
    labels = input_ids.clone()
    for row, length in enumerate(prompt_lengths.tolist()):
        labels[row, :length] = -100
    return labels


@wrong("build-labels", says="never learns to stop")
def padding_by_its_id(input_ids, prompt_lengths, lengths):
    labels = with_padding(input_ids, prompt_lengths, lengths)
    labels[labels == 2] = -100
    return labels


@wrong("build-labels", says="shifted by one already")
def shifted(input_ids, prompt_lengths, lengths):
    labels = torch.full_like(input_ids, -100)
    for row, (prompt, length) in enumerate(zip(prompt_lengths.tolist(), lengths.tolist(), strict=True)):
        labels[row, prompt - 1 : length - 1] = input_ids[row, prompt:length]
    return labels


@wrong("build-labels", says="0 instead of -100")
def zeros(input_ids, prompt_lengths, lengths):
    labels = torch.zeros_like(input_ids)
    for row, (prompt, length) in enumerate(zip(prompt_lengths.tolist(), lengths.tolist(), strict=True)):
        labels[row, prompt:length] = input_ids[row, prompt:length]
    return labels


@wrong("supervised-loss", says="their own position")
def not_shifted(logits, labels):
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


@wrong("supervised-loss", says="wrong way")
def shifted_back(logits, labels):
    return cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, :-1].flatten())


@wrong("supervised-loss", says="divided by all positions")
def mean_over_all(logits, labels):
    wanted = labels[:, 1:]
    return cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten(), reduction="sum") / wanted.numel()


@wrong("supervised-loss", says="mean of the examples' means")
def mean_of_means(logits, labels):
    return sum(cross_entropy(z[:-1], y[1:]) for z, y in zip(logits, labels, strict=True)) / len(logits)


@wrong("supervised-loss", says="RuntimeError")
def picks_with_minus_100(logits, labels):
    chosen = logits.log_softmax(-1)[:, :-1].gather(-1, labels[:, 1:, None])
    return -chosen.mean()


@wrong("accumulate", says="mean of the means")
def averages_means(gradients, tokens):
    return torch.stack(gradients).mean(0)


@wrong("accumulate", says="sum of the means")
def sums_means(gradients, tokens):
    return torch.stack(gradients).sum(0)


@wrong("accumulate", says="divided by the tokens of the whole step")
def divides_by_batches(gradients, tokens):
    return sum(g * n for g, n in zip(gradients, tokens, strict=True)) / len(gradients)


@wrong("accumulate", says="summed loss")
def does_not_divide(gradients, tokens):
    return sum(n * g for g, n in zip(gradients, tokens, strict=True))


@wrong("learning-rate", says="falls to zero")
def to_zero(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@wrong("learning-rate", says="no warm-up")
def no_warmup(step, steps, peak, warmup):
    progress = max(0.0, (step - warmup) / (steps - warmup))
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


@wrong("learning-rate", says="straight line")
def linear(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    return peak * (1 - 0.9 * (step - warmup) / (steps - warmup))


@wrong("learning-rate", says="jumps")
def cosine_from_the_first_step(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))


@wrong("learning-rate", says="Steps count from 1")
def counts_from_zero(step, steps, peak, warmup):
    if step <= warmup:
        return peak * (step - 1) / warmup
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


@wrong("supervised-loss", says="Shift within each row")
def shifted_across_rows(logits, labels):
    return cross_entropy(logits.flatten(0, 1)[:-1], labels.flatten()[1:])


@wrong("supervised-loss", says="Count after the shift")
def counted_before_the_shift(logits, labels):
    total = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return total / (labels != -100).sum()


@wrong("supervised-loss", says="0 is a token like others")
def zero_is_no_label(logits, labels):
    losses = cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    counted = labels[:, 1:] > 0
    return (losses * counted).sum() / counted.sum()


@wrong("learning-rate", says="jumps above the peak")
def floor_on_top(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    return peak * (0.1 + 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


@wrong("learning-rate", says="cut off at a tenth")
def cut_off(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    return max(0.1 * peak, peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


@wrong("learning-rate", says="Divide by steps - warmup")
def over_all_steps(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / steps)))


@wrong("calls-match", says="`True == 1`")
def plain_equality(said, wanted):
    return wanted == said


@wrong("calls-match", says="Compared as texts")
def as_texts(said, wanted):
    return repr(said) == repr(wanted)


@wrong("calls-match", says="order of calls is ignored")
def any_order(said, wanted):
    return said is not None and len(said) == len(wanted) and all(call in wanted for call in said)


@wrong("calls-match", says="`zip` stops")
def wanted_is_there(said, wanted):
    if said is None:
        return False
    for one, other in zip(said, wanted, strict=False):
        if one["name"] != other["name"]:
            return False
        for key, value in other["arguments"].items():
            if one["arguments"].get(key) != value:
                return False
    return True


@wrong("calls-match", says="TypeError")
def forgets_none(said, wanted):
    return len(said) == len(wanted) and all(a == b for a, b in zip(said, wanted, strict=True))


def compare(said, wanted, names=True, number=True, keys=lambda given, right: given.keys() == right.keys(), same=None):
    """The right comparison, of which each of the following leaves something out."""
    if said is None or (number and len(said) != len(wanted)):
        return False
    for call, other in zip(said, wanted, strict=False):
        given, right = call["arguments"], other["arguments"]
        if (names and call["name"] != other["name"]) or not keys(given, right):
            return False
        for name in given.keys() & right.keys():
            if not (same or equal)(given[name], right[name]):
                return False
    return True


def equal(one, other):
    return isinstance(one, bool) == isinstance(other, bool) and one == other


@wrong("calls-match", says="names of the functions are not compared")
def any_function(said, wanted):
    return compare(said, wanted, names=False)


@wrong("calls-match", says="lacks an argument")
def goes_through_what_was_said(said, wanted):
    return compare(said, wanted, keys=lambda given, right: given.keys() <= right.keys())


@wrong("calls-match", says="too few or too many")
def number_forgotten(said, wanted):
    return compare(said, wanted, number=False)


@wrong("calls-match", says="call too many")
def enough_calls(said, wanted):
    return said is not None and len(said) >= len(wanted) and compare(said, wanted, number=False)


@wrong("calls-match", says="Texts are not compared")
def numbers_only(said, wanted):
    return compare(said, wanted, same=lambda one, other: isinstance(one, str) or equal(one, other))


@wrong("calls-match", says="in one direction only")
def true_for_one_only(said, wanted):
    return compare(said, wanted, same=lambda one, other: one == other and not (one is True and type(other) is int))


@wrong("calls-match", says="in one direction only")
def bool_where_bool_is_wanted(said, wanted):
    return compare(
        said, wanted, same=lambda one, other: one == other and (isinstance(one, bool) or not isinstance(other, bool))
    )


@wrong("calls-match", says="of two types")
def equal_types(said, wanted):
    return compare(said, wanted, same=lambda one, other: (type(one), one) == (type(other), other))


@wrong("calls-match", says="also where `true` is wanted")
def no_bools(said, wanted):
    return compare(said, wanted, same=lambda one, other: one == other and type(one) is not bool)


@wrong("calls-match", says="5.5 passes for 5")
def whole_numbers(said, wanted):
    def same(one, other):
        return equal(int(one) if type(one) is float else one, int(other) if type(other) is float else other)

    return compare(said, wanted, same=same)


@wrong("calls-match", says="Upper and lower case")
def any_case(said, wanted):
    return compare(
        said, wanted, same=lambda one, other: equal(*(str(v).lower() if type(v) is str else v for v in (one, other)))
    )


@wrong("calls-match", says="no JSON, None, passes")
def none_is_nothing(said, wanted):
    return compare(said or [], wanted)


@wrong("calls-match", says="Calls are as wanted: your function returned False")
def never(said, wanted):
    return False


@wrong("calls-match", says="Call 2 has count = True where 1 is wanted: your function returned True")
def first_call_only(said, wanted):
    return bool(said) and compare(said[:1], wanted[:1])


def loop(values, batches, gradients_of, rate_at, combine, update, first=1, later=0, keep=True, anew=False, mean=None):
    """The right loop, in which each of the following changes one thing."""
    values, losses = [*values], []
    moments = [(torch.zeros(value.shape), torch.zeros(value.shape)) for value in values]
    for step, parts in enumerate(batches, first):
        results = [gradients_of(values, part) for part in parts]
        counts = [result[1] for result in results]
        losses.append((mean or weighted_mean)([result[0] for result in results], counts))
        for place, value in enumerate(list(values)):
            together = combine([result[2][place] for result in results], counts)
            m, v = (torch.zeros(value.shape), torch.zeros(value.shape)) if anew else moments[place]
            new, *moments[place] = update(value, together, m, v, step, rate_at(step + later))
            if keep:
                values[place] = new
    return values, losses


def weighted_mean(losses, counts):
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


@wrong("train", says="Steps count from 1")
def steps_from_zero(*arguments):
    return loop(*arguments, first=0)


@wrong("train", says="the rate of the next step")
def rate_of_the_next_step(*arguments):
    return loop(*arguments, later=1)


@wrong("train", says="not taken back")
def values_left_where_they_were(*arguments):
    return loop(*arguments, keep=False)


@wrong("train", says="begin anew at every step")
def moments_made_in_the_loop(*arguments):
    return loop(*arguments, anew=True)


@wrong("train", says="means of the parts' means")
def loss_of_means(*arguments):
    return loop(*arguments, mean=lambda losses, counts: sum(losses) / len(losses))


@wrong("train", says="Each has its own")
def one_pair_of_moments(values, batches, gradients_of, rate_at, combine, update):
    values, losses, m, v = [*values], [], torch.zeros_like(values[0]), torch.zeros_like(values[0])
    for step, parts in enumerate(batches, 1):
        results = [gradients_of(values, part) for part in parts]
        counts = [result[1] for result in results]
        losses.append(weighted_mean([result[0] for result in results], counts))
        for place in range(len(values)):
            together = combine([result[2][place] for result in results], counts)
            values[place], m, v = update(values[place], together, m, v, step, rate_at(step))
    return values, losses


@wrong("train", says="Each part makes a step of its own")
def a_step_a_part(values, batches, gradients_of, rate_at, combine, update):
    values, losses, step = [*values], [], 0
    moments = [(torch.zeros(value.shape), torch.zeros(value.shape)) for value in values]
    for parts in batches:
        for part in parts:
            step += 1
            loss, count, gradients = gradients_of(values, part)
            losses.append(loss)
            for place, gradient in enumerate(gradients):
                m, v = moments[place]
                one = combine([gradient], [count])
                values[place], *moments[place] = update(values[place], one, m, v, step, rate_at(step))
    return values, losses


@wrong("calls-match", says="It has no length")
def none_has_no_length(said, wanted):
    if len(said) != len(wanted):
        return False
    return all(s == w for s, w in zip(said, wanted, strict=True))


@wrong("build-labels", says="make columns of the lengths")
def lengths_no_columns(input_ids, prompt_lengths, lengths):
    at = torch.arange(input_ids.shape[1])
    mask = (at >= prompt_lengths) & (at < lengths)
    return input_ids.masked_fill(~mask, -100)


@wrong("build-labels", says="It is the other way round")
def labels_the_other_way_round(input_ids, prompt_lengths, lengths):
    at = torch.arange(input_ids.shape[1])[None]
    mask = (at >= prompt_lengths[:, None]) & (at < lengths[:, None])
    return input_ids.masked_fill(mask, -100)


@wrong("build-labels", says="One token of the padding has a label")
def one_of_the_padding(input_ids, prompt_lengths, lengths):
    at = torch.arange(input_ids.shape[1])[None]
    mask = (at >= prompt_lengths[:, None]) & (at <= lengths[:, None])
    return torch.where(mask, input_ids, -100)


@wrong("guessing-loss", says="how often a guess is wrong")
def how_often_wrong(vocabulary):
    return 1 - 1 / vocabulary


@wrong("guessing-loss", says="the share of one token")
def share_of_one_token(vocabulary):
    p = 1 / vocabulary
    return -p * math.log(p)


@wrong("supervised-loss", says="takes dimension 1 for the vocabulary")
def not_flattened(logits, labels):
    return cross_entropy(logits[:, :-1], labels[:, 1:])


@wrong("supervised-loss", says="-100 is no token")
def minus_hundred_looked_up(logits, labels):
    lp = torch.log_softmax(logits[:, :-1], -1)
    y = labels[:, 1:]
    return -lp.gather(-1, y.unsqueeze(-1)).mean()


@wrong("supervised-loss", says="no softmax before it")
def softmax_twice(logits, labels):
    p = torch.softmax(logits[:, :-1], -1)
    return cross_entropy(p.flatten(0, 1), labels[:, 1:].flatten())


@wrong("supervised-loss", says="nll_loss takes logarithms")
def nll_of_logits(logits, labels):
    return torch.nn.functional.nll_loss(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


@wrong("accumulate", says="as if they were those of sums")
def sum_of_means_over_tokens(gradients, tokens):
    return sum(gradients) / sum(tokens)


@wrong("learning-rate", says="the first one would have rate zero")
def from_zero_below_the_peak(step, steps, peak, warmup):
    if step < warmup:
        return peak * (step - 1) / warmup
    t = (step - warmup) / (steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * t)))


@wrong("learning-rate", says="progress counts from the end of the warm-up")
def progress_from_the_start(step, steps, peak, warmup):
    if step < warmup:
        return peak * step / warmup
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))


@wrong("learning-rate", says="takes radians")
def degrees(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    t = (step - warmup) / (steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(180 * t)))


@wrong("learning-rate", says="The warm-up begins at a tenth")
def warms_up_from_a_tenth(step, steps, peak, warmup):
    if step <= warmup:
        return peak * (0.1 + 0.9 * step / warmup)
    t = (step - warmup) / (steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * t)))


@wrong("learning-rate", says="It falls to 0.1")
def a_tenth_of_one(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    t = (step - warmup) / (steps - warmup)
    return 0.1 + (peak - 0.1) * 0.5 * (1 + math.cos(math.pi * t))


@wrong("train", says="takes the gradients of one value")
def combines_all_values(values, batches, gradients_of, rate_at, combine, update):
    m = [torch.zeros_like(p) for p in values]
    v = [torch.zeros_like(p) for p in values]
    losses = []
    for step, parts in enumerate(batches, 1):
        lr = rate_at(step)
        grads, tokens, loss = [], [], 0.0
        for part in parts:
            mean, n, g = gradients_of(values, part)
            grads.append(g)
            tokens.append(n)
            loss += mean * n
        g = combine(grads, tokens)
        for i in range(len(values)):
            values[i], m[i], v[i] = update(values[i], g[i], m[i], v[i], step, lr)
        losses.append(loss / sum(tokens))
    return values, losses


@wrong("train", says="Only the losses came back")
def losses_alone(values, batches, gradients_of, rate_at, combine, update):
    values = list(values)
    m = [torch.zeros_like(p) for p in values]
    v = [torch.zeros_like(p) for p in values]
    losses = []
    for step, parts in enumerate(batches, 1):
        r = [gradients_of(values, part) for part in parts]
        tokens = [x[1] for x in r]
        for i in range(len(values)):
            values[i], m[i], v[i] = update(
                values[i], combine([x[2][i] for x in r], tokens), m[i], v[i], step, rate_at(step)
            )
        losses.append(sum(x[0] * x[1] for x in r) / sum(tokens))
    return losses
