"""Clauses about the house and its clock: lights, heating, timers, alarms."""

from .speaker import Clause, Speaker
from .spoken import (
    amount_phrases,
    clock_phrases,
    duration_phrases,
    parts_of_day,
    percent_phrases,
    time_phrases,
)
from .vocabulary import COLORS, REPEATS, ROOMS, TIMER_LABELS, WEEKDAYS


def call(name: str, **arguments: object) -> dict:
    """One call; arguments that are None were not said and are left out."""
    return {"name": name, "arguments": {key: value for key, value in arguments.items() if value is not None}}


def room(speaker: Speaker) -> tuple[str, str]:
    """A room as a call names it, and as the speaker says it (perhaps after a wrong one)."""
    name = speaker.word(ROOMS)
    return name, speaker.slot(name, lambda: speaker.other(lambda: speaker.word(ROOMS), name), article="the")


def light(speaker: Speaker) -> Clause:
    """Exactly one of state, brightness and color, in a room, in all rooms, or with no room said."""
    kind = speaker.pick(["state", "state", "brightness", "color"])
    noun = speaker.pick(["lights", "light", "lights", "lamp"])
    where = speaker.pick(["room", "room", "room", "room", "all", "none"])
    name, said = {"all": ("all", ""), "none": (None, "")}.get(where) or room(speaker)
    if where == "all":
        subject = speaker.pick(["all the lights", "every light in the house", "the lights everywhere", "all lights"])
    elif where == "none":
        subject = f"the {noun}"
    else:
        subject = speaker.pick([f"the {said} {noun}", f"the {noun} in the {said}", f"the {said} {noun}"])
    front = f"in the {said}" if where == "room" and speaker.chance(0.12) else ""
    if front:
        subject = f"the {noun}"

    if kind == "state":
        state = speaker.pick(["on", "off"])
        if not front and speaker.chance(0.12):
            return Clause(f"I want {subject} {state}", (call("light", room=name, state=state),), "statement")
        if speaker.chance(0.5):
            verbs = ["turn on", "switch on"] if state == "on" else ["turn off", "switch off", "shut off"]
            return Clause(f"{speaker.pick(verbs)} {subject}", (call("light", room=name, state=state),), front=front)
        spoken = speaker.slot(state, lambda: "off" if state == "on" else "on")
        verb = speaker.pick(["turn", "switch"])
        return Clause(f"{verb} {subject} {spoken}", (call("light", room=name, state=state),), front=front)
    if kind == "color":
        color = speaker.pick(COLORS)
        spoken = speaker.slot(color, lambda: speaker.other(lambda: speaker.pick(COLORS), color))
        texts = [f"make {subject} {spoken}", f"turn {subject} {spoken}", f"change {subject} to {spoken}"]
        texts += [f"set {subject} to {spoken}"]
        return Clause(speaker.pick(texts), (call("light", room=name, color=color),), front=front)
    percent = 5 * speaker.integer(1, 20) if speaker.chance(0.85) else speaker.integer(1, 99)
    spoken = speaker.slot(
        speaker.phrase(percent_phrases(percent)),
        lambda: speaker.phrase(percent_phrases(speaker.other(lambda: 5 * speaker.integer(1, 20), percent))),
    )
    texts = [f"dim {subject} to {spoken}", f"set {subject} to {spoken}", f"turn {subject} down to {spoken}"]
    texts += [f"bring {subject} up to {spoken}", f"set the brightness of {subject} to {spoken}"]
    return Clause(speaker.pick(texts), (call("light", room=name, brightness=percent),), front=front)


def two_lights(speaker: Speaker) -> Clause:
    """One verb, two rooms, two calls."""
    first = speaker.word(ROOMS)
    second = speaker.other(lambda: speaker.word(ROOMS), first)
    state = speaker.pick(["on", "off"])
    speaker.tags.update(["two_step", "shared_verb"])
    texts = [
        f"turn {state} the {first} and {second} lights",
        f"turn the lights {state} in the {first} and the {second}",
    ]
    texts += [f"switch the {first} lights and the {second} lights {state}"]
    return Clause(speaker.pick(texts), tuple(call("light", room=r, state=state) for r in (first, second)))


def heat(speaker: Speaker) -> Clause:
    """A target in degrees, or a change by some degrees (negative when it gets colder)."""
    name, said = room(speaker) if speaker.chance(0.65) else (None, "")
    place = f" in the {said}" if name else ""
    device = speaker.pick(["heating", "temperature", "thermostat"])
    if speaker.chance(0.6):
        degrees = speaker.integer(12, 28) + speaker.pick([0, 0, 0, 0.5])
        spoken = speaker.slot(
            speaker.phrase(amount_phrases(degrees, "degree", "degrees")),
            lambda: speaker.number(speaker.other(lambda: speaker.integer(12, 28), degrees)),
        )
        calls = (call("heat", room=name, degrees=degrees),)
        if name and speaker.chance(0.45):
            up = speaker.pick([("heat", "to"), ("bring", "up to"), ("cool", "down to"), ("keep", "at"), ("warm", "to")])
            return Clause(f"{up[0]} the {said} {up[1]} {spoken}", calls)
        if speaker.chance(0.2):
            wish = speaker.pick(["I'd like it to be", "it should be", "I want it to be"])
            return Clause(f"{wish} {spoken}{place}", calls, "statement")
        texts = [f"set the {device}{place} to {spoken}", f"set the {device} to {spoken}{place}"]
        texts += [f"turn the {device} {speaker.pick(['up', 'down'])} to {spoken}{place}"]
        return Clause(speaker.pick(texts), calls)
    size = speaker.pick([0.5, 1, 1, 1.5, 2, 2, 3, 3, 4, 5])
    warmer = speaker.chance(0.5)
    spoken = speaker.slot(
        speaker.phrase(amount_phrases(size, "degree", "degrees")),
        lambda: speaker.phrase(amount_phrases(speaker.other(lambda: speaker.integer(1, 5), size), "degree", "degrees")),
    )
    calls = (call("heat", room=name, change=size if warmer else -size),)
    comparative = "warmer" if warmer else speaker.pick(["cooler", "colder"])
    verb = speaker.pick(["raise", "increase"] if warmer else ["lower", "reduce"])
    if name and speaker.chance(0.3):
        return Clause(f"make the {said} {spoken} {comparative}", calls)
    if name and speaker.chance(0.2):
        return Clause(f"the {said} should be {spoken} {comparative}", calls, "statement")
    texts = [f"{verb} the temperature{place} by {spoken}", f"make it {spoken} {comparative}{place}"]
    texts += [f"turn the {device}{place} {'up' if warmer else 'down'} by {spoken}"]
    return Clause(speaker.pick(texts), calls)


def _minutes(speaker: Speaker) -> int:
    if speaker.chance(0.75):
        return speaker.pick([5, 5, 10, 10, 15, 15, 20, 20, 25, 30, 30, 40, 45, 60, 90, 120])
    return speaker.integer(1, 59)


def duration(speaker: Speaker) -> tuple[int, str]:
    """Minutes, and how they are said."""
    minutes = _minutes(speaker)
    spoken = speaker.slot(
        speaker.phrase(duration_phrases(minutes)),
        # Under an hour: "an hour and thirty minutes, no, twenty minutes" would leave open what became of the hour.
        lambda: speaker.phrase(duration_phrases(speaker.other(lambda: speaker.integer(2, 59), minutes))),
    )
    return minutes, spoken


def timer(speaker: Speaker) -> Clause:
    """Minutes, and perhaps what is being timed."""
    minutes, spoken = duration(speaker)
    label = speaker.word(TIMER_LABELS) if speaker.chance(0.45) else None
    calls = (call("timer", minutes=minutes, label=label),)
    verb = speaker.pick(["set", "start"])
    if label:
        texts = [f"{verb} a timer called {label} for {spoken}", f"{verb} a {label} timer for {spoken}"]
        texts += [f"time the {label} for {spoken}"]
        if speaker.chance(0.08):
            return Clause(f"the {label} will take {spoken}, so {verb} a timer", calls, "statement")
    else:
        texts = [f"{verb} a timer for {spoken}", f"{verb} a timer for {spoken}", f"count down {spoken}"]
        if speaker.chance(0.12):
            return Clause(f"I need a timer for {spoken}", calls, "statement")
    return Clause(speaker.pick(texts), calls)


def two_timers(speaker: Speaker) -> Clause:
    """Two timers in one breath."""
    first = speaker.integer(2, 60)
    second = speaker.other(lambda: speaker.integer(2, 60), first)
    speaker.tags.update(["two_step", "shared_verb"])
    say = speaker.number
    texts = [f"set timers for {say(first)} and {say(second)} minutes"]
    texts += [f"start two timers, one for {say(first)} and one for {say(second)} minutes"]
    return Clause(speaker.pick(texts), (call("timer", minutes=first), call("timer", minutes=second)))


def _time(speaker: Speaker) -> tuple[int, int]:
    hour = speaker.pick([6, 6, 6, 7, 7, 7, 7, 7, 8, 8, 8, 8, 9, 9, 10, 10, 11, 12, 15, 18, 20])
    if speaker.chance(0.02):
        hour = 0
    return hour, speaker.pick([0, 0, 0, 15, 30, 30, 45]) if speaker.chance(0.9) else 5 * speaker.integer(0, 11)


def when(speaker: Speaker, with_day: bool) -> tuple[str, str | None, str]:
    """A time "HH:MM", a day or None, and the words that say both."""
    hour, minute = _time(speaker)
    clock = f"{hour:02d}:{minute:02d}"
    if not with_day:
        return clock, None, f"at {_spoken_time(speaker, hour, minute)}"
    if hour == 0:  # which day is "Friday at midnight"? Nobody agrees, so nobody says it here.
        hour, clock = 7, f"07:{minute:02d}"
    weekday = speaker.pick(WEEKDAYS)
    day, said = speaker.pick([("tomorrow", "tomorrow"), (weekday.lower(), f"on {weekday}"), ("today", "today")])
    parts = [part for part in parts_of_day(hour) if part != "night"]
    if parts and speaker.chance(0.4):
        part = speaker.pick(parts)
        said = f"this {part}" if day == "today" else f"{said} {part}"
        if day == "today" and hour >= 18 and speaker.chance(0.5):
            said = "tonight"
        spoken = speaker.phrase(clock_phrases(hour, minute))
    else:
        spoken = _spoken_time(speaker, hour, minute)
    return clock, day, speaker.pick([f"at {spoken} {said}", f"{said} at {spoken}"])


def _spoken_time(speaker: Speaker, hour: int, minute: int) -> str:
    def wrong() -> str:
        return speaker.phrase(time_phrases(*speaker.other(lambda: _time(speaker), (hour, minute))))

    return speaker.slot(speaker.phrase(time_phrases(hour, minute)), wrong)


def alarm(speaker: Speaker) -> Clause:
    """A time, and perhaps a day or a repetition."""
    time, day, spoken = when(speaker, with_day=speaker.chance(0.4))
    if day is None and time != "00:00" and speaker.chance(0.2):
        repeat = speaker.pick(list(REPEATS))
        day, spoken = REPEATS[repeat], f"{spoken} {repeat}"
    calls = (call("alarm", time=time, day=day),)
    target = "for" + spoken.removeprefix("at") if spoken.startswith("at ") else f"for {spoken.removeprefix('on ')}"
    texts = [f"set an alarm {target}", f"set the alarm {target}", f"wake me up {spoken}", f"wake me {spoken}"]
    if speaker.chance(0.15):
        return Clause(f"I {speaker.pick(['need', 'have'])} to get up {spoken}, so set an alarm", calls, "statement")
    if spoken.startswith("at ") and speaker.chance(0.12):
        return Clause("wake me up", calls, front=spoken)
    return Clause(speaker.pick(texts), calls)
