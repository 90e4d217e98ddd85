"""What is a label: examples of every kind as token ids, and for each token whether it is learned.

`encode` takes one example. One that has a method `encode` is asked for it, as the records of one's own data are; one
with a prompt and a target has its two texts tokenized, and the target is learned. `encode_all` takes many, as fast as
the tokenizer can, keeps them close together, and leaves out, and counts, those from which nothing could be learned.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from qlora_lab.machine.arguments import check_choice, check_count

IGNORED = -100  # cross-entropy skips labels of this value
OVERLONG = ("cut", "drop")
CHUNK = 1000  # examples that are rendered and tokenized together


class LeftOut(ValueError):
    """An example that cannot be trained on as it is: too long, or nothing in it is learned."""


class Encoded(NamedTuple):
    """One example: token ids, and labels that are the same ids where a token is learned and -100 elsewhere.

    Both int64, of shape (n,).
    """

    input_ids: torch.Tensor
    labels: torch.Tensor


@dataclass
class Tokens:
    """One example on its way: what `encode_all` gets of each before it cuts and packs.

    Attributes:
        ids: int32 (n,).
        learned: bool (n,); whether the token is one to learn.
        notes: what is odd about it, a sentence each, the same for every example of the kind.
    """

    ids: np.ndarray
    learned: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def teaches(self) -> int:
        """Learned tokens that have something before them to predict them from."""
        return int(np.count_nonzero(self.learned[1:]))

    def cut(self, max_length: int | None) -> "Tokens":
        if max_length is None or len(self.ids) <= max_length:
            return self
        return Tokens(self.ids[:max_length], self.learned[:max_length], self.notes)

    def encoded(self) -> Encoded:
        ids = torch.from_numpy(self.ids.astype(np.int64))
        return Encoded(ids, torch.where(torch.from_numpy(self.learned), ids, IGNORED))


def encode(example: Any, tokenizer: Any, max_length: int | None = None) -> Encoded:
    """Token ids and labels of one example, each int64 of shape (n,); unpacks as `ids, labels`.

    Prompt and target are tokenized apart, so that training sees exactly the prompt tokens that generation will see.
    Labels are -100 over the prompt, which cross-entropy ignores.

    Args:
        example: has a method `encode(tokenizer, max_length)`, or the texts `.prompt` and `.target`, or is a mapping
            with these keys.

    Raises:
        ValueError: it has neither, or prompt and target have more than `max_length` tokens (cutting a target would
            teach broken JSON).
    """
    own = getattr(example, "encode", None)
    if callable(own) and not isinstance(example, str | bytes):
        return own(tokenizer, max_length)
    texts = {name: _text(example, name) for name in ("prompt", "target")}
    prompt, target = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts.values())
    length = len(prompt) + len(target)
    if max_length is not None and length > max_length:
        command = getattr(example, "command", texts["prompt"])
        raise LeftOut(f"{length} tokens, but max_length is {max_length}: {command!r}; leave it out or allow more")
    input_ids = torch.tensor([*prompt, *target], dtype=torch.int64)
    labels = input_ids.clone()
    labels[: len(prompt)] = IGNORED
    return Encoded(input_ids, labels)


def _text(example: Any, name: str) -> str:
    found = example.get(name) if isinstance(example, Mapping) else getattr(example, name, None)
    if not isinstance(found, str):
        shown = repr(example)
        rows = "; rows in other formats are read by load_dataset" if isinstance(example, Mapping) else ""
        shown = shown[:120] + "…" * (len(shown) > 120)
        raise ValueError(f"an example needs a `{name}` that is a text, and has {found!r}: {shown}{rows}")
    return found


@dataclass(frozen=True)
class Dropped:
    """An example that is not trained on: its place in what was given, its origin, its tokens, and why."""

    place: int
    origin: str
    length: int
    kind: str  # "nothing in it is learned", "too long", "nothing that is learned is left after the cut"
    reason: str


@dataclass
class EncodedExamples(Sequence):
    """Many examples, their tokens one after another; each comes out as `Encoded`.

    Four bytes a token and one for whether it is learned, where a list of pairs of tensors takes sixteen and more.

    Attributes:
        ids: int32 (tokens,), learned: bool (tokens,), ends: int64 (examples,), where each ends.
        places: int64 (examples,), the place of each in what was given to `encode_all`.
        lengths: int32 (examples,), tokens before anything was cut off; lost: int32 (examples,), learned tokens cut off.
        dropped: those that were left out.
        notes: what is odd, with the number of examples and where the first of them came from.
    """

    ids: np.ndarray
    learned: np.ndarray
    ends: np.ndarray
    places: np.ndarray
    lengths: np.ndarray
    lost: np.ndarray
    dropped: list[Dropped] = field(default_factory=list)
    notes: dict[str, tuple[int, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> Encoded:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        return self.tokens(number).encoded()

    def __iter__(self) -> Iterator[Encoded]:
        return (self[i] for i in range(len(self)))

    def tokens(self, number: int) -> Tokens:
        """Ids and learned of one example, as views."""
        number = range(len(self))[number]
        start, end = (int(self.ends[number - 1]) if number else 0), int(self.ends[number])
        return Tokens(self.ids[start:end], self.learned[start:end])


def encode_all(
    examples: Iterable,
    tokenizer: Any,
    max_length: int | None = None,
    overlong: str = "cut",
    progress: Callable[[int, int], None] | None = None,
) -> EncodedExamples:
    """Encode many examples, in batches where they know how (`encode_many`), and say what was cut and left out.

    Args:
        examples: what `encode` takes.
        max_length: most tokens of an example. A longer one is cut at its end; where nothing that is learned is left, or
            a prompt and a target would be cut, it is left out.
        overlong: "cut", or "drop" to leave out every longer one.
        progress: called with (examples done, examples in all).

    Raises:
        ValueError: an example that is wrong in itself; names it. Nothing else was done.
    """
    check_choice("overlong", overlong, OVERLONG)
    if max_length is not None:
        check_count("max_length", max_length, least=2)
    examples = list(examples) if not isinstance(examples, Sequence) else examples
    ids, learned = array("i"), bytearray()  # grown in place: lists of arrays would be held twice when they are joined
    ends, places, lengths, lost = (array("q") for _ in range(4))
    dropped, counts, first = [], Counter(), {}
    for place, whole in enumerate(_tokens_of(examples, tokenizer, progress)):
        origin = getattr(examples[place], "origin", None) or f"example {place}"
        length = len(whole.ids)
        # what has a target in one piece, such as a call, is not cut: half of it would be wrong
        whole_only = not hasattr(examples[place], "encode_many")
        cut = whole.cut(max_length)
        teaches = whole.teaches
        left = teaches if cut is whole else cut.teaches
        for note in whole.notes:
            counts[note] += 1
            first.setdefault(note, origin)
        if not teaches:
            dropped.append(Dropped(place, origin, length, "nothing in it is learned", f"of its {length} tokens"))
        elif len(cut.ids) < length and (overlong == "drop" or whole_only):
            reason = f"{length} tokens, and max_length is {max_length}"
            dropped.append(Dropped(place, origin, length, "too long", reason))
        elif not left:
            begins = int(np.argmax(whole.learned[1:])) + 1
            reason = (
                f"max_length is {max_length}, and the first of {length} tokens that is learned is number {begins + 1}"
            )
            dropped.append(Dropped(place, origin, length, "nothing that is learned is left after the cut", reason))
        else:
            ids.frombytes(cut.ids.tobytes())
            learned += cut.learned.tobytes()
            for part, value in ((ends, len(ids)), (places, place), (lengths, length), (lost, teaches - left)):
                part.append(value)
    return EncodedExamples(
        np.frombuffer(ids, np.int32) if ids else np.zeros(0, np.int32),
        np.frombuffer(learned, bool) if learned else np.zeros(0, bool),
        np.array(ends, np.int64),
        np.array(places, np.int64),
        np.array(lengths, np.int32),
        np.array(lost, np.int32),
        dropped,
        {note: (count, first[note]) for note, count in counts.items()},
    )


def _tokens_of(examples: Sequence, tokenizer, progress) -> Iterator[Tokens]:
    for start in range(0, len(examples), CHUNK):
        part = examples[start : start + CHUNK]
        kinds = {type(example) for example in part}
        if len(kinds) == 1 and hasattr(part[0], "encode_many"):
            yield from kinds.pop().encode_many(part, tokenizer)
        else:
            for example in part:
                if hasattr(example, "encode_many"):
                    yield from type(example).encode_many([example], tokenizer)
                else:
                    input_ids, labels = encode(example, tokenizer)
                    yield Tokens(input_ids.numpy().astype(np.int32), (labels != IGNORED).numpy())
        if progress is not None:
            progress(start + len(part), len(examples))


def encode_record(record: Any, tokenizer: Any, max_length: int | None = None) -> Encoded:
    """One record that has `encode_many`, cut at `max_length`.

    Raises:
        LeftOut: nothing that is learned is left; names its origin.
    """
    [whole] = type(record).encode_many([record], tokenizer)
    if not whole.teaches:
        raise LeftOut(f"{record.origin}: nothing in it is learned")
    cut = whole.cut(max_length)
    if not cut.teaches:
        raise LeftOut(f"{record.origin}: nothing that is learned is left of {len(whole.ids)} tokens in {max_length}")
    return cut.encoded()


RUN_TOGETHER = "prompt and completion run together, without a space or a new line between them"
JOINED = "prompt and completion would share a token; they are tokenized apart"


def tokenize_continuations(pairs: Sequence[tuple[str, str]], tokenizer: Any) -> list[Tokens]:
    """Prompts and what follows them, as they stand; what follows is learned, and the tokenizer's end token after it.

    The tokens of the prompt are those that generation will see. A prompt that is empty makes a text, which is learned
    from its first token that has one before it.
    """
    found = []
    begin, end = getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    prompts, wholes = (
        tokenizer(texts, **options)["input_ids"]
        for texts in ([prompt for prompt, _ in pairs], [prompt + completion for prompt, completion in pairs])
    )
    for (prompt, completion), before, whole in zip(pairs, prompts, wholes, strict=True):
        before, whole = (_without_specials(ids, begin, end) for ids in (before, whole))
        notes = set()
        if prompt and completion and not (prompt[-1].isspace() or completion[0].isspace()):
            notes.add(RUN_TOGETHER)
        if whole[: len(before)] != before:
            notes.add(JOINED)
            whole = before + _tokens_after(prompt, completion, tokenizer)
        if end is None:
            notes.add("no token ends the answer, and the tokenizer has none to add")
        elif whole[-1:] != [end]:
            whole = [*whole, end]
        learned = np.zeros(len(whole), bool)
        learned[len(before) :] = True
        found.append(Tokens(np.array(whole, np.int32), learned, tuple(sorted(notes))))
    return found


def _without_specials(ids: list[int], begin: int | None, end: int | None) -> list[int]:
    """Without a second token of beginning, where the text brought its own, and without one of the end."""
    ids = list(ids)
    if begin is not None and ids[:2] == [begin, begin]:
        ids = ids[1:]
    if end is not None and end != begin and ids[-1:] == [end]:
        ids = ids[:-1]
    return ids


def _tokens_after(prompt: str, completion: str, tokenizer: Any) -> list[int]:
    """The tokens of a text that follows another: without the space that some tokenizers put before every text."""
    apart = tokenizer(completion, add_special_tokens=False)["input_ids"]
    if not getattr(tokenizer, "is_fast", False) or tokenizer.decode(apart) == completion:
        return list(apart)
    mark = "\n"
    encoding = tokenizer(mark + completion, add_special_tokens=False).encodings[0]
    return [i for i, (_, stop) in zip(encoding.ids, encoding.offsets, strict=True) if stop > len(mark)]
