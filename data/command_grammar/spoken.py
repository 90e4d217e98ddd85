"""How numbers, durations, percentages and times of day are said in English.

Each function returns every phrase the grammar knows for one value, written form first, so that a test can read all of
them back with a parser of its own.
"""

_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_ONES += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def number_words(number: int) -> str:
    """`number` (0 to 999) in words: 45 -> "forty-five", 120 -> "one hundred and twenty"."""
    if not 0 <= number <= 999:
        raise ValueError(f"number_words knows 0 to 999, got {number}")
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{_ONES[number % 10]}" if number % 10 else "")
    rest = f" and {number_words(number % 100)}" if number % 100 else ""
    return f"{_ONES[number // 100]} hundred{rest}"


def amount_phrases(amount: int | float, one: str, many: str) -> list[str]:
    """An amount with its unit, in digits and in words; halves are allowed: 1.5 -> "one and a half miles"."""
    whole, fraction = int(amount), amount - int(amount)
    if fraction == 0:
        unit = one if whole == 1 else many
        return [f"{whole} {unit}", f"{number_words(whole)} {unit}"]
    if fraction != 0.5:
        raise ValueError(f"amounts go in halves, got {amount}")
    if whole == 0:
        return [f"0.5 {many}", f"half {'an' if one[0] in 'aeiou' else 'a'} {one}"]
    return [f"{amount} {many}", f"{number_words(whole)} and a half {many}"]


def duration_phrases(minutes: int) -> list[str]:
    """A duration of 1 to 999 whole minutes: 90 -> "90 minutes", "an hour and a half", ..."""
    phrases = amount_phrases(minutes, "minute", "minutes")
    hours, rest = divmod(minutes, 60)
    phrases += {15: ["a quarter of an hour"], 30: ["half an hour"], 45: ["three quarters of an hour"]}.get(minutes, [])
    if hours == 1:
        base = ["1 hour", "one hour", "an hour"]
    elif hours:
        base = [f"{hours} hours", f"{number_words(hours)} hours"]
    else:
        return phrases
    if rest == 0:
        return phrases + base
    if rest == 30:
        phrases += ["an hour and a half" if hours == 1 else f"{number_words(hours)} and a half hours"]
    unit = "minute" if rest == 1 else "minutes"
    return (
        phrases + [f"{base[0]} and {rest} {unit}"] + [f"{words} and {number_words(rest)} {unit}" for words in base[1:]]
    )


def percent_phrases(percent: int) -> list[str]:
    """0 to 100 percent: 50 -> "50%", "50 percent", "fifty percent", "half brightness"."""
    names = {25: ["a quarter"], 50: ["half brightness"], 100: ["full brightness"]}
    return [f"{percent}%", f"{percent} percent", f"{number_words(percent)} percent", *names.get(percent, [])]


def count_phrases(count: int) -> list[str]:
    """How many of a thing: 12 -> "12", "twelve", "a dozen"."""
    return [
        str(count),
        number_words(count),
        *{2: ["a couple of"], 6: ["half a dozen"], 12: ["a dozen"], 24: ["two dozen"]}.get(count, []),
    ]


def clock_phrases(hour: int, minute: int) -> list[str]:
    """A time on the 12-hour dial, morning or evening left open: (19, 15) -> "7:15", "quarter past seven", ..."""
    on_dial = hour % 12 or 12
    this, following = number_words(on_dial), number_words(on_dial % 12 + 1)
    if minute == 0:
        return [str(on_dial), this, f"{this} o'clock"]
    spoken = f"oh {number_words(minute)}" if minute < 10 else number_words(minute)
    phrases = [f"{on_dial}:{minute:02d}", f"{this} {spoken}"]
    if minute == 15:
        phrases.append(f"quarter past {this}")
    elif minute == 30:
        phrases.append(f"half past {this}")
    elif minute == 45 and hour % 12 != 11:
        phrases.append(f"quarter to {following}")
    elif minute in (5, 10, 20, 25):
        phrases.append(f"{number_words(minute)} past {this}")
    elif minute in (35, 40, 50, 55) and hour % 12 != 11:
        phrases.append(f"{number_words(60 - minute)} to {following}")
    return phrases


def parts_of_day(hour: int) -> list[str]:
    """The parts of the day that `hour` (0 to 23) belongs to without doubt."""
    parts = [("morning", 1, 11), ("afternoon", 12, 17), ("evening", 17, 22), ("night", 20, 23)]
    return [part for part, first, last in parts if first <= hour <= last]


def time_phrases(hour: int, minute: int) -> list[str]:
    """Every full phrase for a time of day; each one alone decides between morning and evening."""
    phrases = []
    if hour < 10 or hour > 12:
        phrases.append(f"{hour:02d}:{minute:02d}")
    half, dotted = ("am", "a.m.") if hour < 12 else ("pm", "p.m.")
    clock = clock_phrases(hour, minute)
    for phrase in clock:
        if "o'clock" not in phrase:
            phrases += [f"{phrase} {half}", f"{phrase} {dotted}"]
    phrases.append(f"{clock[0]}{half}")
    for part in parts_of_day(hour):
        joint = "at night" if part == "night" else f"in the {part}"
        phrases += [f"{phrase} {joint}" for phrase in clock]
    anchor = {0: "midnight", 12: "noon"}.get(hour)
    following = {23: "midnight", 11: "noon"}.get(hour)
    if minute == 0:
        phrases += [anchor] * 4 if anchor else []
    elif anchor and minute in (5, 10, 15, 20, 25, 30):
        phrases.append(f"{ {15: 'quarter', 30: 'half'}.get(minute) or number_words(minute) } past {anchor}")
    elif following and minute in (35, 40, 45, 50, 55):
        phrases.append(f"{'quarter' if minute == 45 else number_words(60 - minute)} to {following}")
    return phrases
