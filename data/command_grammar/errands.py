"""Clauses about people and things to do: messages, reminders, lists, music, weather, conversions."""

from typing import Any

from .home import call, duration, room, when
from .speaker import Clause, Speaker
from .spoken import amount_phrases, count_phrases
from .vocabulary import (
    ARTISTS,
    CITIES,
    COUNTED_ITEMS,
    EVENTS,
    FAVOURS,
    GENRES,
    GREETINGS,
    ITEMS,
    LISTS,
    MESSAGES,
    NAMES,
    SONGS,
    TASKS,
    UNITS,
    WEEKDAYS,
    Words,
)


def _copied(speaker: Speaker, words: Words, **how: Any) -> tuple[str, str]:
    """A word of an open list, and the words that say it (perhaps after a wrong one)."""
    value = speaker.word(words)
    return value, speaker.slot(value, lambda: speaker.other(lambda: speaker.word(words), value), **how)


def message(speaker: Speaker) -> Clause:
    """To whom, and the words to pass on without the "that" or "to" before them."""
    to, said = _copied(speaker, NAMES, may_come_late=False)
    if speaker.chance(0.3):
        text = speaker.word(FAVOURS)
        verb = speaker.pick(["ask", "tell"])
        return Clause(f"{verb} {said} to {text}", (call("message", to=to, text=text),), open_end=True)
    texts = [f"send {said} a message saying {{}}", f"write to {said}: {{}}", f"text {said}: {{}}"]
    texts += [f"message {said}: {{}}", f"send a message to {said} that says {{}}"]
    if speaker.chance(0.15):
        text = speaker.word(GREETINGS)
    else:
        text = speaker.word(MESSAGES)
        texts += [f"tell {said} {{}}", f"tell {said} that {{}}", f"text {said} that {{}}", f"let {said} know that {{}}"]
    return Clause(speaker.pick(texts).format(text), (call("message", to=to, text=text),), open_end=True)


def remind(speaker: Speaker) -> Clause:
    """What, and either a time (with or without a day) or minutes from now."""
    if speaker.chance(0.3):
        text = speaker.word(EVENTS)
        link = "about"
    else:
        text = speaker.word(TASKS)
        link = "to"
    if speaker.chance(0.35):
        minutes, spoken = duration(speaker)
        spoken = f"in {spoken}"
        calls = (call("remind", text=text, minutes=minutes),)
    else:
        time, day, spoken = when(speaker, with_day=speaker.chance(0.45))
        calls = (call("remind", text=text, time=time, day=day),)
    last_words = [f"remind me {spoken} {link} {text}", f"set a reminder {spoken} {link} {text}"]
    if speaker.chance(0.35):
        return Clause(speaker.pick(last_words), calls, open_end=True)
    if link == "to" and speaker.chance(0.2):
        return Clause(f"don't let me forget to {text} {spoken}", calls)
    if speaker.chance(0.15):
        return Clause(f"remind me {link} {text}", calls, front=spoken, open_end=True)
    if link == "to" and speaker.chance(0.15):
        return Clause(f"I have to {text} {spoken}, so remind me", calls, "statement")
    return Clause(speaker.pick([f"remind me {link} {text} {spoken}", f"set a reminder {link} {text} {spoken}"]), calls)


def add(speaker: Speaker) -> Clause:
    """A thing for a list, with a count where a number was said; two things are two calls."""
    owner = speaker.pick(["the", "my"])
    list_name, said = _copied(speaker, LISTS, unit="list", article=owner)
    named = f"{owner} {said}"
    if speaker.chance(0.4):
        count = speaker.pick([2, 3, 4, 5, 6, 8, 10, 12, 24]) if speaker.chance(0.8) else speaker.integer(2, 40)
        item = speaker.word(COUNTED_ITEMS)
        number = speaker.slot(
            speaker.phrase(count_phrases(count)),
            lambda: speaker.phrase(count_phrases(speaker.other(lambda: speaker.integer(2, 12), count))),
            item,
        )
        calls = (call("add", list=list_name, item=item, count=count),)
        what = number
    elif speaker.chance(0.25):
        first = speaker.word(ITEMS)
        second = speaker.other(lambda: speaker.word(ITEMS), first)
        speaker.tags.update(["two_step", "shared_verb"])
        calls = (call("add", list=list_name, item=first), call("add", list=list_name, item=second))
        what = f"{first} and {second}"
    else:
        item, what = _copied(speaker, ITEMS)
        calls = (call("add", list=list_name, item=item),)
    if speaker.chance(0.15):
        return Clause(f"we need {what} on {named}", calls, "statement")
    if speaker.chance(0.12):
        return Clause(f"put {what}", calls, front=f"on {named}")
    return Clause(speaker.pick([f"add {what} to {named}", f"put {what} on {named}"]), calls)


def play(speaker: Speaker) -> Clause:
    """A title, an artist, both, or a genre; perhaps in a room."""
    name, said = room(speaker) if speaker.chance(0.4) else (None, "")
    place = speaker.pick([f" in the {said}", f" on the {said} speaker"]) if name else ""
    front = place.strip() if name and speaker.chance(0.15) else ""
    place = "" if front else place
    kind = speaker.pick(["title", "title and artist", "artist", "genre"])
    if kind == "genre":
        genre, what = _copied(speaker, GENRES)
        calls = (call("play", genre=genre, room=name),)
        texts = [f"play some {what}{place}", f"put on some {what} music{place}", f"play {what} music{place}"]
        if not front and speaker.chance(0.15):
            return Clause(f"I'm in the mood for some {what}{place}", calls, "statement")
        return Clause(speaker.pick(texts), calls, front=front)
    if kind == "artist":
        artist, what = _copied(speaker, ARTISTS)
        calls = (call("play", artist=artist, room=name),)
        texts = [
            f"play something by {what}{place}",
            f"put on some music by {what}{place}",
            f"play songs by {what}{place}",
        ]
        return Clause(speaker.pick(texts), calls, front=front)
    title, what = _copied(speaker, SONGS, may_come_late=kind == "title")
    artist = None
    if kind == "title and artist":
        artist, by = _copied(speaker, ARTISTS, may_come_late=False)
        what = f"{what} by {by}"
    calls = (call("play", title=title, artist=artist, room=name),)
    texts = [f"play {what}{place}", f"play the song {what}{place}", f"let me hear {what}{place}"]
    if not front and speaker.chance(0.12):
        return Clause(f"I want to hear {what}{place}", calls, "statement")
    return Clause(speaker.pick(texts), calls, front=front)


def weather(speaker: Speaker) -> Clause:
    """A place, a day, both, or neither."""
    place, said = _copied(speaker, CITIES) if speaker.chance(0.7) else (None, "")
    there = f" in {said}" if place else ""
    weekday = speaker.pick(WEEKDAYS)
    day, spoken_day = speaker.pick(
        [(None, ""), ("today", "today"), ("tomorrow", "tomorrow"), (weekday.lower(), weekday)]
    )
    if spoken_day:
        spoken_day = speaker.slot(spoken_day, lambda: speaker.other(lambda: speaker.pick(WEEKDAYS), spoken_day))
        spoken_day = f" on {spoken_day}" if day == weekday.lower() else f" {spoken_day}"
    rest = speaker.pick([f"{there}{spoken_day}", f"{spoken_day}{there}"])
    calls = (call("weather", place=place, day=day),)
    if speaker.chance(0.25):
        return Clause(speaker.pick(["check the weather", "look up the forecast", "give me the forecast"]) + rest, calls)
    texts = [
        "what's the weather like",
        "how is the weather",
        "will it rain",
        "how warm will it be",
        "is it going to snow",
    ]
    texts += ["do I need an umbrella", "what's the forecast", "will it be sunny"]
    return Clause(speaker.pick(texts) + rest, calls, "question")


def convert(speaker: Speaker) -> Clause:
    """A value and two units of the same kind."""
    kind = UNITS[speaker.pick(list(UNITS))]
    source = speaker.pick(list(kind))
    target = speaker.other(lambda: speaker.pick(list(kind)), source)
    value = speaker.integer(1, 12) if speaker.chance(0.5) else speaker.integer(2, 99)
    value += speaker.pick([0, 0, 0, 0.5])
    form = speaker.pick([0, 0, 2]) if len(kind[source]) == 4 else 0  # kilogram(s) or kilo(s)
    one, many = kind[source][form : form + 2]
    number, _, unit = speaker.phrase(amount_phrases(value, one, many)).rpartition(" ")
    spoken = speaker.slot(number, lambda: speaker.number(speaker.other(lambda: speaker.integer(2, 40), value)), unit)
    into = kind[target][speaker.pick([1, 1, -1])]
    calls = (call("convert", value=value, **{"from": source, "to": target}),)
    if speaker.chance(0.5):
        return Clause(speaker.pick([f"convert {spoken} to {into}", f"convert {spoken} into {into}"]), calls)
    texts = [f"how many {into} are in {spoken}", f"what's {spoken} in {into}", f"how much is {spoken} in {into}"]
    texts += [f"how many {into} is {spoken}"]
    return Clause(speaker.pick(texts), calls, "question")
