"""What is said of the data before a step is taken: counts, lengths, what is learned, what is there twice, the mask.

Most runs that go wrong without an error do so here: an answer that was cut off, a prompt that is learned, an end that
is not, a validation example that was trained on. `inspect` encodes everything, as training will, and tells.
"""

import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np

from qlora_lab.tasks import chat
from qlora_lab.tasks.encoding import EncodedExamples, encode_all

SHOWN = 3  # masks
LONGEST = 1200  # characters of a mask that are shown; the middle of a longer one is left out
_DIGITS = re.compile(r"\d+")

Piece = tuple[str, bool]  # a text, and whether it is learned


@dataclass(frozen=True)
class Same:
    """Two examples that are the same, or nearly: where they came from, and in what sense."""

    one: str
    other: str
    sense: str  # "the same", "the same but for digits and case", "the same question"


@dataclass
class Portion:
    """The training or the validation examples, counted.

    Attributes:
        given: how many there were.
        encoded: those that are left, as training takes them; `encoded.dropped` has the others.
        max_length: most tokens, or None.
        repeated: how many say what an earlier one has said, to the letter.
        nearly: how many more do so but for digits, case and white space.
        disputed: how many give another answer to a question that was there before.
        twice: the first few of these.
        ends: how often which token is the last that is learned, as text; "" where the end was cut off.
    """

    given: int
    encoded: EncodedExamples
    max_length: int | None = None
    repeated: int = 0
    nearly: int = 0
    disputed: int = 0
    twice: list[Same] = field(default_factory=list)
    ends: Counter = field(default_factory=Counter)
    origins: list[str] = field(default_factory=list, repr=False)  # of those in `encoded`
    keys: list[tuple[bytes, ...]] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def tokens(self) -> int:
        return len(self.encoded.ids)

    @property
    def learned(self) -> int:
        """Tokens that are learned: with a label, and something before them to predict them from."""
        return int(self.learned_each.sum())

    @property
    def learned_each(self) -> np.ndarray:
        """The same for each example, int64 (n,)."""
        starts = np.concatenate([[0], self.encoded.ends[:-1]]).astype(np.int64)
        if not len(self):
            return np.zeros(0, np.int64)
        sums = np.add.reduceat(self.encoded.learned, starts, dtype=np.int64)
        return sums - self.encoded.learned[starts]

    @property
    def longest(self) -> int:
        """Tokens of the longest, before anything was cut off or left out."""
        return max([int(self.encoded.lengths.max(initial=0)), *(dropped.length for dropped in self.encoded.dropped)])

    @property
    def cut(self) -> int:
        """How many were cut at `max_length`."""
        return int((self.encoded.lengths > self.kept_lengths).sum())

    @property
    def cut_off(self) -> int:
        """Tokens that they lost, learned or not."""
        return int((self.encoded.lengths - self.kept_lengths).clip(min=0).sum())

    @property
    def unfinished(self) -> int:
        """How many of them lost something that is learned."""
        return int((self.encoded.lost > 0).sum())

    @property
    def kept_lengths(self) -> np.ndarray:
        return np.diff(self.encoded.ends, prepend=0)

    @property
    def silent(self) -> int:
        """How many answers are empty: nothing but an end is learned."""
        return int((self.learned_each <= 1).sum())


@dataclass
class Inspection:
    """What `inspect` found. Shows itself in a notebook; `table`, `warnings` and `masks` are the same for others.

    Attributes:
        training, validation: counted; validation None where there is none.
        leaks: the first few examples that stand in both; `leaked` counts them by sense.
        masks: for a few training examples, pieces of text and whether they are learned.
        shown: where these came from.
        warnings: what should be looked at before training, a sentence each.
    """

    training: Portion
    validation: Portion | None
    leaks: list[Same]
    leaked: Counter
    masks: list[list[Piece]]
    shown: list[str]
    warnings: list[str]

    def table(self) -> list[tuple[str, float | str, float | str | None]]:
        """Rows of (what, of training, of validation), as plain numbers and strings."""
        sides = [_column(self.training)] + ([_column(self.validation)] if self.validation is not None else [])
        rows = [(what, value, sides[1][what] if len(sides) > 1 else None) for what, value in sides[0].items()]
        if self.validation is not None:
            rows += [(f"in both: {sense}", "", self.leaked[sense]) for sense in _SENSES]
        return rows

    def __repr__(self) -> str:
        rows = [[what, *(_shown(value) for value in values)] for what, *values in self.table()]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in rows]
        return "\n".join([*lines, *(f"! {warning}" for warning in self.warnings)])

    def _repr_html_(self) -> str:
        return as_html(self)


_SENSES = ("the same", "the same but for digits and case", "the same question")


def inspect(
    records: Sequence,
    tokenizer: Any,
    max_length: int | None = None,
    validation: Sequence | None = None,
    *,
    model: Any = None,
    overlong: str = "cut",
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Encode the examples as training will, and say what is to be known before a step is taken.

    Args:
        records: what `encode_all` takes; validation likewise.
        model: where given, its generation settings are asked whether an answer's end ends generation, too.
        max_length, overlong, progress: see `encode_all`.

    Raises:
        ValueError: an example that is wrong in itself, or none that is left to train on; names it.
    """
    records = list(records) if not isinstance(records, Sequence) else records
    if not records:
        raise ValueError("there are no examples to train on")
    training = _portion(records, tokenizer, max_length, overlong, progress)
    if not len(training):
        first = training.encoded.dropped[0]
        raise ValueError(
            f"none of {len(records)} examples is left to train on; {first.origin}: {first.reason}"
            + ("" if max_length is None else f" (max_length is {max_length})")
        )
    other, leaks, leaked = None, [], Counter()
    if validation is not None:
        validation = list(validation) if not isinstance(validation, Sequence) else validation
        other = _portion(validation, tokenizer, max_length, overlong, progress)
        leaks, leaked = _leaks(training, other)
    shown = _to_show(training)
    return Inspection(
        training,
        other,
        leaks,
        leaked,
        [_pieces(training.encoded, i, tokenizer) for i in shown],
        [training.origins[i] for i in shown],
        _warnings(training, other, leaks, leaked, tokenizer, model)
        + _about_prompts(records, training, shown, tokenizer),
    )


def _portion(records, tokenizer, max_length, overlong, progress) -> Portion:
    encoded = encode_all(records, tokenizer, max_length, overlong, progress)
    places = encoded.places.tolist()
    portion = Portion(
        len(records),
        encoded,
        max_length,
        origins=[_origin(records[place], place) for place in places],
        keys=[_keys(records[place]) for place in places],
    )
    seen = _Seen()
    for origin, keys in zip(portion.origins, portion.keys, strict=True):
        known = seen.find(keys)
        seen.add(keys, origin)
        if known is None:
            continue
        first, sense = known
        portion.repeated += sense == _SENSES[0]
        portion.nearly += sense == _SENSES[1]
        portion.disputed += sense == _SENSES[2]
        if len(portion.twice) < 5 or (sense != _SENSES[2] and all(same.sense == _SENSES[2] for same in portion.twice)):
            portion.twice.append(Same(first, origin, sense))
    last = _last_learned(encoded)
    cut = encoded.lengths > portion.kept_lengths
    stops = chat.stop_tokens(tokenizer)
    for token, count in Counter(encoded.ids[last][~cut | np.isin(encoded.ids[last], list(stops))].tolist()).items():
        portion.ends[tokenizer.decode([token])] = count
    if left := len(encoded) - sum(portion.ends.values()):
        portion.ends[""] = left
    return portion


def _last_learned(encoded: EncodedExamples) -> np.ndarray:
    """Where the last learned token of each example is, int64 (n,)."""
    ends = encoded.ends.tolist()
    backwards = (encoded.learned[start:end][::-1] for start, end in pairwise([0, *ends]))
    return np.array([end - 1 - int(part.argmax()) for end, part in zip(ends, backwards, strict=True)], np.int64)


def _origin(record: Any, place: int) -> str:
    return getattr(record, "origin", None) or f"example {place}"


class _Seen:
    """What was said before, in each of the senses."""

    def __init__(self):
        self.by: list[dict[bytes, str]] = [{} for _ in _SENSES]

    def add(self, keys: tuple[bytes, ...], origin: str) -> None:
        for known, key in zip(self.by, keys, strict=False):
            known.setdefault(key, origin)

    def find(self, keys: tuple[bytes, ...]) -> tuple[str, str] | None:
        """(origin of the first that was added, strictest sense) where it has been said before, else None."""
        for known, key, sense in zip(self.by, keys, _SENSES, strict=False):
            if key in known:
                return known[key], sense
        return None


def _keys(record: Any) -> tuple[bytes, ...]:
    """16 bytes for each of `_SENSES` in which two examples may be the same; a text has no question."""
    question, answer = _said(record)
    whole = f"{question}\0{answer}"
    return tuple(map(_key, (whole, _loosely(whole), question) if question else (whole, _loosely(whole))))


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _loosely(text: str) -> str:
    return " ".join(_DIGITS.sub("0", text.casefold()).split())


def _said(record: Any) -> tuple[str, str]:
    """(question, answer) as texts; a text has no question."""
    messages = getattr(record, "messages", None)
    if messages:
        spoken = [f"{m['role']}: {m['content']}{_calls(m)}" for m in messages]
        about = json.dumps(record.tools, sort_keys=True) if record.tools else ""
        return "\n".join([about, *spoken[:-1]]), spoken[-1]
    if getattr(record, "text", None) is not None:
        return "", record.text
    if getattr(record, "completion", None) is not None:
        return f"{record.prompt}\n\n{record.input or ''}", record.completion
    if isinstance(record, Mapping):
        return str(record.get("prompt", "")), str(record.get("target", ""))
    return str(getattr(record, "prompt", "")), str(getattr(record, "target", ""))


def _calls(message: Mapping) -> str:
    calls = message.get("tool_calls")
    return json.dumps(calls, sort_keys=True, default=str) if calls else ""


def _leaks(training: Portion, validation: Portion) -> tuple[list[Same], Counter]:
    """Validation examples that were trained on, each counted in the strictest sense in which it was."""
    found, counts, seen = [], Counter(), _Seen()
    for origin, keys in zip(training.origins, training.keys, strict=True):
        seen.add(keys, origin)
    for origin, keys in zip(validation.origins, validation.keys, strict=True):
        if (known := seen.find(keys)) is not None:
            first, sense = known
            counts[sense] += 1
            if len(found) < 5:
                found.append(Same(first, origin, sense))
    return found, counts


def _to_show(portion: Portion) -> list[int]:
    """The first, one in the middle and the last; in the last one's place one that was cut, where there is one."""
    shown = sorted({0, len(portion) // 2, len(portion) - 1})[:SHOWN]
    cut = np.flatnonzero(portion.encoded.lengths > portion.kept_lengths)
    if len(cut) and not set(cut.tolist()) & set(shown):
        shown[-1] = int(cut[0])
    return shown


def _pieces(encoded: EncodedExamples, number: int, tokenizer: Any) -> list[Piece]:
    """The example's text in runs of tokens that are learned, or not."""
    tokens = encoded.tokens(number)
    ids, learned = tokens.ids.tolist(), tokens.learned.tolist()
    borders = [0, *(i for i in range(1, len(ids)) if learned[i] != learned[i - 1]), len(ids)]
    pieces, before = [], ""
    for start, stop in pairwise(borders):
        whole = tokenizer.decode(ids[:stop], skip_special_tokens=False)
        # decoded from the beginning: some tokenizers take the first space of any text away
        text = whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids[start:stop])
        pieces.append((text, learned[start]))
        before = whole
    return pieces


def _column(portion: Portion) -> dict[str, float | str]:
    lengths = portion.encoded.lengths
    quantiles = [int(np.quantile(lengths, q, method="higher")) for q in (0.5, 0.95)] if len(portion) else [0, 0]
    rows: dict[str, float | str] = {
        "examples": portion.given,
        "left out": len(portion.encoded.dropped),
        "cut off": portion.cut,
        "tokens cut off": portion.cut_off,
        "tokens": portion.tokens,
        "tokens of an example, median": quantiles[0],
        "95 % have at most": quantiles[1],
        "the longest": portion.longest,
        "tokens learned": portion.learned,
        "share learned, %": round(100 * portion.learned / max(1, portion.tokens), 1),
        "last learned token": ", ".join(json.dumps(end, ensure_ascii=False) for end, _ in portion.ends.most_common(3)),
        "said before, to the letter": portion.repeated,
        "said before, but for digits and case": portion.nearly,
        "another answer to a question before": portion.disputed,
    }
    return rows


def _warnings(training: Portion, validation, leaks, leaked, tokenizer, model) -> list[str]:
    said = []
    for name, portion in (("training", training), ("validation", validation)):
        if portion is not None:
            said += _about(name, portion, tokenizer)
    said += _about_ends(training, tokenizer, model)
    if training.repeated or training.nearly:
        one = next(same for same in training.twice if same.sense != _SENSES[2])
        said.append(
            f"{_count(training.repeated + training.nearly, 'training example')} said before ({one.other} is "
            f"{one.sense} as {one.one})"
        )
    if total := sum(leaked.values()):
        counted = ", ".join(f"{count} {sense}" for sense, count in leaked.items())
        said.append(
            f"{_count(total, 'validation example')} in training too ({counted}; {leaks[0].other} is {leaks[0].sense} "
            f"as {leaks[0].one}): what is measured on them is memory"
        )
    return said


def _about(name: str, portion: Portion, tokenizer) -> list[str]:
    """What is odd in one of the two portions."""
    example = f"{name} example"
    said = [
        f"{_count(count, example)}: {note} (the first: {first})"
        for note, (count, first) in portion.encoded.notes.items()
    ]
    for kind, (count, first) in _reasons(portion).items():
        said.append(f"{_count(count, example)} left out: {kind} (the first: {first})")
    if portion.cut:
        share = 100 * portion.cut_off / int(portion.encoded.lengths.sum())
        said.append(
            f"{_count(portion.cut, example)} cut at {portion.max_length} tokens: {portion.cut_off:,} tokens less, "
            f"{share:.1f} % of all; {portion.unfinished} of them without the end of an answer. max_length "
            f"{portion.longest} would keep all whole"
        )
    if portion.silent:
        said.append(f"{_count(portion.silent, example)} with an empty answer: nothing but its end is learned")
    limit = getattr(tokenizer, "model_max_length", None)
    if isinstance(limit, int) and 0 < limit < 10**9 and (long := int((portion.kept_lengths > limit).sum())):
        said.append(f"{_count(long, example)} longer than the {limit} tokens that the model was made for")
    return said


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _reasons(portion: Portion) -> dict[str, tuple[int, str]]:
    """Why examples were left out: the kind of reason, how often, and the first in full."""
    found: dict[str, tuple[int, str]] = {}
    for dropped in portion.encoded.dropped:
        count, first = found.get(dropped.kind, (0, f"{dropped.origin}, {dropped.reason}"))
        found[dropped.kind] = count + 1, first
    return found


def _about_ends(training: Portion, tokenizer, model) -> list[str]:
    """Whether generation stops where the answers end."""
    said = []
    stops = {tokenizer.decode([token]) for token in chat.stop_tokens(tokenizer, model)}
    missing = sum(count for end, count in training.ends.items() if end and end not in stops)
    if missing:
        said.append(
            f"{_count(missing, 'training example')} with an end that generation does not stop at: a model that has "
            "learned it will not know where to end"
        )
    own = {getattr(tokenizer, "eos_token_id", None)}
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own |= set(configured) if isinstance(configured, list | tuple) else {configured}
    end = chat.turn_end(tokenizer) if chat.has_template(tokenizer) else None
    if end is not None and end not in own and tokenizer.decode([end]) in training.ends:
        said.append(
            f"an answer ends with {tokenizer.decode([end])}, at which neither the tokenizer nor the model's settings "
            "stop; generation here does, and elsewhere it has to be told"
        )
    return said


def _about_prompts(records, training: Portion, shown: list[int], tokenizer) -> list[str]:
    """Whether the examples that are shown begin with the tokens that generation would be given, to the last one."""
    for number in shown:
        record = records[int(training.encoded.places[number])]
        try:
            question, _ = record.question_and_answer(tokenizer)
        except (AttributeError, ValueError):  # of another kind, or without an answer at its end
            continue
        prompt = list(tokenizer(question, add_special_tokens=False)["input_ids"])
        ids = training.encoded.tokens(number).ids.tolist()
        if prompt[: len(ids)] != ids[: len(prompt)]:
            same = next(i for i, (one, other) in enumerate(zip(prompt, ids, strict=False)) if one != other)
            trained, given = (tokenizer.decode(tokens[same : same + 3]) for tokens in (ids, prompt))
            return [
                f"generation is not given the tokens that were trained on: {training.origins[number]} goes on with "
                f"{trained!r} after {same} tokens, and its prompt with {given!r}"
            ]
    return []


# How it is shown


def shorten(pieces: Iterable[Piece], most: int = LONGEST) -> list[Piece]:
    """The pieces with the middle of long ones left out, so that about `most` characters remain."""
    pieces = list(pieces)
    share = max(60, most // max(1, len(pieces)))
    found = []
    for text, learned in pieces:
        if len(text) > share:
            left = len(text) - share
            text = f"{text[: share // 2]} … {left:,} more characters … {text[len(text) - share + share // 2 :]}"
        found.append((text, learned))
    return found


def _shown(value: float | str | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int | float) else value


_LEARNED = "background:rgba(0,158,115,.28);color:inherit;border-bottom:2px solid #009E73;padding:0 1px"
_GIVEN = "opacity:.7"


def as_html(inspection: Inspection) -> str:
    """The table, the warnings and the masks, on light and on dark: learned text is tinted and underlined."""
    both = inspection.validation is not None
    head = "<tr><th></th><th>training</th>" + ("<th>validation</th>" if both else "") + "</tr>"
    body = "".join(
        f"<tr><td style='text-align:left'>{html.escape(what)}</td>{_cell(of)}"
        + (_cell(other) if both else "")
        + "</tr>"
        for what, of, other in inspection.table()
    )
    warnings = "".join(f"<li>{html.escape(warning)}</li>" for warning in inspection.warnings)
    masks = "".join(
        f"<p><small>{html.escape(origin)}</small></p><pre style='white-space:pre-wrap'>{_marked(pieces)}</pre>"
        for origin, pieces in zip(inspection.shown, inspection.masks, strict=True)
    )
    key = f"<p><mark style='{_LEARNED}'>learned</mark> <span style='{_GIVEN}'>given</span></p>"
    return (
        f"<div class='qlora-inspection'><table style='color:inherit'>{head}{body}</table>"
        + (f"<ul>{warnings}</ul>" if warnings else "")
        + f"{key}{masks}</div>"
    )


def _cell(value: float | str | None) -> str:
    return f"<td style='text-align:right'>{html.escape(_shown(value))}</td>"


def _marked(pieces: list[Piece]) -> str:
    return "".join(
        f"<mark style='{_LEARNED}'>{html.escape(text)}</mark>"
        if learned
        else f"<span style='{_GIVEN}'>{html.escape(text)}</span>"
        for text, learned in shorten(pieces)
    )
