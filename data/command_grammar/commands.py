"""Whole commands: one or two clauses, joined, wrapped in courtesies, and written or transcribed."""

import random
from typing import Any

from .errands import add, convert, message, play, remind, weather
from .home import alarm, heat, light, timer, two_lights, two_timers
from .speaker import Clause, Speaker, transcript

SINGLE = (timer, alarm, light, heat, play, message, add, remind, weather, convert)
SHARED = (two_lights, two_timers)
# Numbers, times and second calls are hardest to learn: train has twice as many of them.
PRACTISED = (timer, alarm, remind)
WRITTEN_ORDER = [
    "two_step",
    "reversed",
    "shared_verb",
    "correction",
    "number_words",
    "unseen_words",
    "polite",
    "filler",
]


def command(source: random.Random, unseen_words: bool, practise: bool = False) -> dict[str, Any]:
    """One row of a data file: the command, its calls in the order in which they are to be carried out, and its tags."""
    speaker = Speaker(source, unseen_words)
    kind = source.random()
    single, shared = (0.74, 0.06) if practise else (0.86, 0.04)
    if kind < single:
        clause = speaker.draw(speaker.pick(SINGLE + PRACTISED if practise else SINGLE), lambda clause: True)
    elif kind < single + shared:
        clause = speaker.draw(speaker.pick(SHARED), lambda clause: True)
    else:
        clause = _joined(speaker)
    text = _punctuated(_with_courtesies(speaker, clause), clause.form)
    if speaker.as_transcript:
        text = transcript(text)
    order = {tag: place for place, tag in enumerate([*WRITTEN_ORDER, "transcript"])}
    return {"command": text, "calls": list(clause.calls), "tags": sorted(speaker.tags, key=order.__getitem__)}


def _joined(speaker: Speaker) -> Clause:
    """Two clauses of different kinds, in one sentence or two."""

    def single(clause: Clause) -> bool:
        return clause.form == "imperative" and not clause.front and len(clause.calls) == 1

    kinds = [kind for kind in SINGLE if kind not in (weather, convert)]
    first_kind = speaker.pick(kinds)
    first = speaker.draw(first_kind, single)
    # Without punctuation, two clauses that both end in free words could not be told apart.
    only_one_open_end = speaker.as_transcript and first.open_end
    kinds = [kind for kind in kinds if kind is not first_kind and not (only_one_open_end and kind is message)]
    second = speaker.draw(
        speaker.pick(kinds), lambda clause: single(clause) and not (only_one_open_end and clause.open_end)
    )
    speaker.tags.add("two_step")
    if first.open_end:
        first, second = second, first
    calls = first.calls + second.calls
    if first.open_end:  # both end in free words: only a full stop keeps them apart
        link = speaker.pick([". Then ", ". After that, ", ". Also, "])
        return Clause(f"{first.text}{link}{second.text}", calls, open_end=True)
    if speaker.chance(0.16):
        speaker.tags.add("reversed")
        return Clause(f"{first.text}, but first {second.text}", second.calls + first.calls, open_end=True)
    if speaker.chance(0.12) and not second.open_end:
        speaker.tags.add("reversed")
        return Clause(f"before you {first.text}, {second.text}", second.calls + first.calls, "statement", open_end=True)
    links = [" and ", " and then ", ", then ", " and after that ", ", and also ", " and "]
    text = f"{first.text}{speaker.pick(links)}{second.text}"
    if speaker.chance(0.08):
        return Clause(f"first {first.text}, then {second.text}", calls, "statement", open_end=True)
    return Clause(text, calls, open_end=second.open_end)


def _with_courtesies(speaker: Speaker, clause: Clause) -> str:
    """The clause inside whatever the speaker says around it."""
    text = clause.text
    before = after = ""
    if speaker.chance(0.12):
        before += speaker.pick(["hey, ", "OK, ", "um, ", "hi, ", "hello, ", "right, ", "so, "])
    if clause.front:
        before += f"{clause.front}, "
    polite = ""
    if clause.form == "imperative" and speaker.chance(0.38):
        polite = speaker.pick(
            [
                "please ",
                "could you ",
                "can you ",
                "could you please ",
                "would you ",
                "I'd like you to ",
                "I need you to ",
            ]
            + (["when you get a chance, ", "if you don't mind, ", "be so kind and "] if not clause.front else [])
        )
    elif not clause.open_end and clause.form != "question" and speaker.chance(0.15):
        after = speaker.pick([", please", ", thanks", ", thank you"])
    elif clause.open_end and not speaker.as_transcript and clause.form == "imperative" and speaker.chance(0.06):
        after = speaker.pick([", please", ", thanks"])
    if polite or after:
        speaker.tags.add("polite")
    asks = polite.startswith(("could", "can", "would"))
    if asks and ". " not in text:
        after += "?"
    return f"{before}{polite}{text}{after}"


def _punctuated(text: str, form: str) -> str:
    text = text[0].upper() + text[1:]
    if text[-1] in ".?":
        return text
    return text + ("?" if form == "question" else ".")
