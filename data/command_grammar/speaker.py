"""A speaker: one source of chance, one manner of speaking, and the tags collected while a command is put together."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from .spoken import number_words
from .vocabulary import Words

T = TypeVar("T")


def transcript(text: str) -> str:
    """`text` as a plain speech recogniser would write it: lower case, no punctuation but inside words and numbers."""
    text = re.sub(r"\b([ap])\.m\.", r"\1m", text.lower())
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text)  # twenty-five -> twenty five
    return " ".join(re.sub(r"[,;?!]|\.(?!\d)|:(?!\d)", " ", text).split())


def _has_digit(phrase: str) -> bool:
    return any(character.isdigit() for character in phrase)


@dataclass(frozen=True)
class Clause:
    """A piece of a command that asks for something, not yet wrapped in courtesies.

    `form` is "imperative", "statement" or "question"; `front` is an adjunct put before it ("in the kitchen");
    `open_end` says that the text ends with free words, so nothing may follow that could be read as part of them.
    """

    text: str
    calls: tuple[dict[str, Any], ...]
    form: str = "imperative"
    front: str = ""
    open_end: bool = False


class Speaker:
    """Makes every choice of one command.

    Only `random.random()` is drawn from, whose sequence Python guarantees for a seed; so the files come out equal on
    every version.
    """

    def __init__(self, source: random.Random, unseen_words: bool):
        self._source = source
        self._unseen_words = unseen_words
        self.as_transcript = self.chance(0.12)
        self.tags: set[str] = {"transcript"} if self.as_transcript else set()
        self._in_words = self.chance(0.3)
        self._may_correct = self.chance(0.07)
        self._afterthought = ""

    def chance(self, probability: float) -> bool:
        return self._source.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self._source.random() * len(options))]

    def integer(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self._source.random() * (high - low + 1))

    def phrase(self, phrases: Sequence[str]) -> str:
        """One way to say a number, in this speaker's manner: digits or words."""
        manner = [phrase for phrase in phrases if _has_digit(phrase) != self._in_words]
        chosen = self.pick(manner or phrases)
        if not _has_digit(chosen):
            self.tags.add("number_words")
        return chosen

    def number(self, number: int) -> str:
        """A bare whole number, in digits or in words."""
        return self.phrase([str(number), number_words(number)])

    def word(self, words: Words) -> str:
        """A word of an open list, in this speaker's spelling: what a call must carry letter for letter."""
        if self._unseen_words and words.only_in_test and self.chance(0.2):
            self.tags.add("unseen_words")
            chosen = self.pick(words.only_in_test)
        else:
            chosen = self.pick(words.everywhere)
        return transcript(chosen) if self.as_transcript else chosen

    def other(self, draw: Callable[[], T], than: T) -> T:
        """A value of `draw` that differs from `than`, for the wrong half of a correction."""
        while (value := draw()) == than:
            pass
        return value

    def slot(
        self, right: str, wrong: Callable[[], str], unit: str = "", article: str = "", may_come_late: bool = True
    ) -> str:
        """The words of one slot, followed by `unit`; now and then the speaker says something wrong first.

        `article` is the word that stands before the slot and is said again with the right value: "the study, no, the
        kitchen". A correction may also come at the end of the clause, unless it could then be taken for something else.
        """
        spoken = f"{right} {unit}".strip()
        if self.chance(0.04):
            self.tags.add("filler")
            spoken = f"{self.pick(['uh', 'um', 'er'])} {spoken}"
        if not self._may_correct or self.chance(0.4):
            return spoken
        self._may_correct = False
        self.tags.add("correction")
        if may_come_late and self.chance(0.35):
            self._afterthought = self.pick(
                [", actually make it {}", ", no wait, make that {}", ", sorry, I meant {}", ", or rather {}"]
            ).format(f"{article} {right} {unit}".strip())
            return f"{wrong()} {unit}".strip()
        marker = self.pick(
            [", no, ", ", sorry, ", ", I mean ", ", no wait, ", ", or rather ", ", make that ", ", er, no, "]
        )
        article = f"{article} " if article and self.chance(0.7) else ""
        return f"{wrong()}{' ' + unit if unit and self.chance(0.3) else ''}{marker}{article}{right} {unit}".strip()

    def draw(self, clause: Callable[["Speaker"], Clause], accept: Callable[[Clause], bool]) -> Clause:
        """A clause that `accept` takes, with the correction it owes; a clause turned down leaves no trace."""
        before = set(self.tags), self._may_correct
        while True:
            drawn = self._finished(clause(self))
            if accept(drawn):
                return drawn
            self.tags, self._may_correct = set(before[0]), before[1]

    def _finished(self, clause: Clause) -> Clause:
        owed, self._afterthought = self._afterthought, ""
        return replace(clause, text=clause.text + owed, open_end=True) if owed else clause
