"""The grammar that generates the task: its spoken numbers and times are read back by parsers written apart from it."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "data"

if not (DATA / "generate_function_calls.py").is_file():
    pytest.skip("the generator is only in a checkout", allow_module_level=True)

_spec = importlib.util.spec_from_file_location("generate_function_calls", DATA / "generate_function_calls.py")
generator = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generator)

from command_grammar import spoken, vocabulary  # noqa: E402  (importing the generator has put data/ on the path)
from command_grammar.speaker import transcript  # noqa: E402

_UP_TO_TWENTY = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty"""
SMALL = {word: value for value, word in enumerate(_UP_TO_TWENTY.split())}
SMALL |= {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}


def read_number(text: str) -> float:
    """A number in digits or in words; "half" and "and a half" are understood."""
    if re.fullmatch(r"[0-9.]+", text):
        return float(text)
    total = 0.0
    for word in text.replace("-", " ").split():
        if word == "hundred":
            total *= 100
        elif word == "half":
            total += 0.5
        elif word == "dozen":
            total = 12 * (total or 1)
        elif word not in ("and", "a", "an", "of"):
            total += SMALL[word]
    return total


def read_duration(text: str) -> float:
    """Minutes."""
    text = text.replace("three quarters of an hour", "45 minutes").replace("a quarter of an hour", "15 minutes")
    text = text.replace("half an hour", "30 minutes").replace("an hour and a half", "90 minutes")
    text = re.sub(r"\ban hour\b", "1 hour", text)
    parts = re.findall(r"(?:^|(?<=hour and )|(?<=hours and ))(.+?) (hours?|minutes?)", text)
    assert parts, text
    return sum(read_number(number) * (60 if unit.startswith("hour") else 1) for number, unit in parts)


def read_time(text: str) -> tuple[int, int]:
    """Hour and minute of a day; the text must say which half of the day it means."""
    if exact := re.fullmatch(r"(\d\d):(\d\d)", text):
        return int(exact[1]), int(exact[2])
    half = None
    for ending, meaning in [
        (r" ?a\.?m\.?", "am"), (r" ?p\.?m\.?", "pm"), (" in the morning", "am"),
        (" in the afternoon", "pm"), (" in the evening", "pm"), (" at night", "pm"),
    ]:  # fmt: skip
        if found := re.search(ending + "$", text):
            half, text = meaning, text[: found.start()]
            break
    if half is None:
        half = "pm" if text in ("noon", "midnight") or "past noon" in text or "to midnight" in text else "am"
        text = text.replace("midnight", "twelve").replace("noon", "twelve")
        if text == "twelve":
            raise AssertionError("noon and midnight have a test of their own")
    hour, minute = read_dial(text)
    return hour % 12 + (12 if half == "pm" else 0), minute


def read_dial(text: str) -> tuple[int, int]:
    """Hour (1 to 12) and minute on the dial."""
    if digits := re.fullmatch(r"(\d+)(?::(\d\d))?", text):
        return int(digits[1]), int(digits[2] or 0)
    if relative := re.fullmatch(r"(quarter|half|[a-z-]+) (past|to) ([a-z]+)", text):
        minutes = {"quarter": 15, "half": 30}.get(relative[1]) or int(read_number(relative[1]))
        hour = SMALL[relative[3]]
        return (hour, minutes) if relative[2] == "past" else ((hour - 2) % 12 + 1, 60 - minutes)
    hour, _, rest = text.removesuffix(" o'clock").partition(" ")
    return SMALL[hour], int(read_number(rest.removeprefix("oh "))) if rest else 0


def test_number_words_read_back():
    assert [read_number(spoken.number_words(number)) for number in range(1000)] == list(range(1000))
    assert len({spoken.number_words(number) for number in range(1000)}) == 1000
    with pytest.raises(ValueError, match="0 to 999"):
        spoken.number_words(1000)


def test_amounts_read_back():
    for amount in [halves / 2 for halves in range(1, 400)]:
        for phrase in spoken.amount_phrases(amount, "mile", "miles"):
            number, unit = re.fullmatch(r"(.+) (miles?)", phrase).groups()
            assert read_number(number) == amount
            assert (unit == "mile") == (amount == 1 or phrase == "half a mile")


def test_durations_read_back():
    for minutes in range(1, 500):
        for phrase in spoken.duration_phrases(minutes):
            assert read_duration(phrase) == minutes, phrase


def test_percentages_and_counts_read_back():
    names = {"a quarter": 25, "half brightness": 50, "full brightness": 100}
    for percent in range(101):
        for phrase in spoken.percent_phrases(percent):
            read = names[phrase] if phrase in names else read_number(re.sub(r"%| percent", "", phrase))
            assert read == percent
    for count in range(1, 100):
        for phrase in spoken.count_phrases(count):
            assert (2 if phrase == "a couple of" else read_number(phrase.replace("half a dozen", "six"))) == count


def test_every_time_of_day_reads_back():
    for hour in range(24):
        for minute in range(60):
            for phrase in spoken.time_phrases(hour, minute):
                if phrase not in ("noon", "midnight"):
                    assert read_time(phrase) == (hour, minute), phrase
            for phrase in spoken.clock_phrases(hour, minute):
                assert read_dial(phrase) == (hour % 12 or 12, minute), phrase


def test_noon_and_midnight_are_said_only_for_themselves():
    for name, time in [("noon", (12, 0)), ("midnight", (0, 0))]:
        said = [(h, m) for h in range(24) for m in range(60) if name in spoken.time_phrases(h, m)]
        assert said == [time]


def test_a_part_of_the_day_leaves_one_reading_of_the_dial():
    for part in ("morning", "afternoon", "evening", "night"):
        hours = [hour for hour in range(24) if part in spoken.parts_of_day(hour)]
        assert hours and len({hour % 12 for hour in hours}) == len(hours)


def test_transcript_keeps_what_carries_meaning():
    assert transcript("Remind Dr. Weber at 7:15 p.m., or 19.5, twenty-five: it's me!") == (
        "remind dr weber at 7:15 pm or 19.5 twenty five it's me"
    )


def test_the_files_are_what_the_generator_makes_byte_for_byte():
    for split, rows in generator.generate().items():
        assert (DATA / "function_calls" / f"{split}.jsonl").read_bytes() == generator.as_jsonl(rows), split


def test_no_command_occurs_twice_in_or_across_splits():
    seen = {}
    for split in ("train", "validation", "test", "paraphrases"):
        for line in (DATA / "function_calls" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            command = json.loads(line)["command"]
            key = generator.fingerprint(command)
            assert key not in seen, f"{command!r} is in {split} and in {seen[key]}"
            seen[key] = split


def test_words_held_out_for_the_test_split_stay_out_of_train_and_validation():
    held_out = [
        word
        for words in vars(vocabulary).values()
        if isinstance(words, vocabulary.Words)
        for word in words.only_in_test
    ]
    assert len(held_out) > 80
    open_arguments = {"room", "to", "title", "artist", "genre", "label", "place", "list", "item", "text"}
    carried = {"test": set(), "elsewhere": set()}
    for split in ("train", "validation", "test"):
        for line in (DATA / "function_calls" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            for call in json.loads(line)["calls"]:
                if call["name"] != "convert":
                    texts = {transcript(call["arguments"][a]) for a in open_arguments & call["arguments"].keys()}
                    carried["test" if split == "test" else "elsewhere"] |= texts
    held_out = {transcript(word) for word in held_out}
    assert not held_out & carried["elsewhere"]
    assert len(held_out & carried["test"]) > 30


def test_the_datasheet_counts_what_is_there():
    splits = ("train", "validation", "test", "paraphrases")
    rows = {
        split: [json.loads(line) for line in (DATA / "function_calls" / f"{split}.jsonl").open(encoding="utf-8")]
        for split in splits
    }
    table = (DATA / "README.md").read_text(encoding="utf-8").partition("<!-- counted:")[2]
    claims = re.findall(r"^\| (commands|`\w+`|calls of `\w+`) \|([ 0-9|]+)\|$", table, flags=re.MULTILINE)
    assert len(claims) == 1 + 9 + 10
    for what, numbers in claims:
        name = what.strip("`").removeprefix("calls of `")

        def count(row: dict, what: str = what, name: str = name) -> int:
            if what == "commands":
                return 1
            if what.startswith("calls of"):
                return sum(call["name"] == name for call in row["calls"])
            return row["tags"].count(name)

        true = [sum(count(row) for row in rows[split]) for split in splits]
        assert [int(number) for number in numbers.split("|")] == true, what


def test_check_reports_a_file_that_differs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generator, "DIRECTORY", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate_function_calls.py", "--check"])
    assert generator.main() == 1
    monkeypatch.setattr(sys, "argv", ["generate_function_calls.py"])
    assert generator.main() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.jsonl", "train.jsonl", "validation.jsonl"]
    (tmp_path / "test.jsonl").write_text("{}\n")
    monkeypatch.setattr(sys, "argv", ["generate_function_calls.py", "--check"])
    assert generator.main() == 1
    assert "test.jsonl" in capsys.readouterr().err
