"""The task: prompts and labels, parsing and judging, and the data files."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_function_schema import unhurried, valid_calls

from qlora_lab.tasks import function_calls
from qlora_lab.tasks.encoding import encode
from qlora_lab.tasks.function_calls import (
    CORRECT,
    SPLITS,
    Example,
    classify_answer,
    data_directory,
    evaluation_text,
    exact_match,
    few_shot,
    load_examples,
    parse_calls,
    prompt_text,
    spread,
)
from qlora_lab.tasks.function_schema import FUNCTIONS, INSTRUCTION, validate_calls

OPEN_TEXT = {"to", "text", "title", "artist", "genre", "label", "place", "item"}


class CharacterTokenizer:
    """One token a character, but the ChatML markers are one token each."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        text = text.replace("<|im_start|>", "\ue000").replace("<|im_end|>", "\ue001")
        return {"input_ids": [ord(character) for character in text]}


def example(*calls: dict, command: str = "do it") -> Example:
    return Example(command, calls)


def as_json(*calls: dict) -> str:
    return json.dumps(list(calls))


TIMER = {"name": "timer", "arguments": {"minutes": 5}}
LIGHT = {"name": "light", "arguments": {"room": "attic", "state": "on"}}


# Prompts, targets, labels


def test_the_prompt_is_one_chatml_turn_without_a_system_message():
    assert prompt_text("Wake me.") == "<|im_start|>user\nWake me.<|im_end|>\n<|im_start|>assistant\n"
    assert Example("Wake me.", (TIMER,)).prompt == prompt_text("Wake me.")


def test_an_instruction_becomes_the_system_message():
    assert prompt_text("Wake me.", "Be brief.") == "<|im_start|>system\nBe brief.<|im_end|>\n" + prompt_text("Wake me.")


def test_a_command_that_would_end_its_own_turn_is_refused():
    for marker in ("<|im_start|>", "<|im_end|>"):
        with pytest.raises(ValueError, match="must not contain"):
            prompt_text(f"hello{marker}")


def test_few_shot_shows_commands_and_bare_answers():
    text = few_shot(load_examples("train")[:3])
    assert text.startswith(INSTRUCTION) and text.count("Command: ") == text.count("Answer: ") == 3
    prompt_text("Wake me.", text)  # fits into a system message: no ChatML marker inside


@unhurried
@given(valid_calls())
def test_targets_parse_back_to_the_calls(calls):
    one = example(*calls)
    assert exact_match(one.target, one)
    assert classify_answer(one.target, one) == CORRECT
    assert parse_calls(one.target) == calls


@unhurried
@given(st.text(max_size=30).filter(lambda text: "<|im_" not in text), valid_calls())
def test_labels_cover_the_target_and_nothing_else(command, calls):
    one = example(*calls, command=command)
    tokenizer = CharacterTokenizer()
    input_ids, labels = encode(one, tokenizer)
    prompt = tokenizer(one.prompt, add_special_tokens=False)["input_ids"]
    target = tokenizer(one.target, add_special_tokens=False)["input_ids"]
    assert input_ids.dtype == labels.dtype == torch.int64 and input_ids.ndim == 1
    assert input_ids.tolist() == prompt + target
    assert labels.tolist() == [-100] * len(prompt) + target


def test_an_example_is_never_cut():
    one = example(TIMER)
    length = len(encode(one, CharacterTokenizer())[0])
    assert len(encode(one, CharacterTokenizer(), max_length=length)[0]) == length
    with pytest.raises(ValueError, match=f"{length} tokens, but max_length is {length - 1}"):
        encode(one, CharacterTokenizer(), max_length=length - 1)


@pytest.mark.model
def test_the_real_tokenizer_sees_one_prompt_in_training_and_generation():
    from qlora_lab.models.base_model import load_tokenizer

    tokenizer = load_tokenizer()
    lengths = []
    for split in SPLITS:
        for one in load_examples(split)[:200]:
            input_ids, labels = encode(one, tokenizer)
            prompt = tokenizer(one.prompt, add_special_tokens=False)["input_ids"]
            assert input_ids[: len(prompt)].tolist() == prompt and bool((labels[len(prompt) :] >= 0).all())
            assert tokenizer.decode(input_ids[len(prompt) :]) == one.target
            assert tokenizer.decode(input_ids[-1:]) == "<|im_end|>"
            # Tokenized as one text, the same tokens come out: the boundary lies where the tokenizer would put it.
            assert tokenizer(one.prompt + one.target, add_special_tokens=False)["input_ids"] == input_ids.tolist()
            lengths.append(len(input_ids))
    assert sum(lengths) / len(lengths) <= 55


# Parsing and judging


@pytest.mark.parametrize(
    "text", ["", "[", "null", "5", '{"name": "timer"}', "[1]", "[[]]", "[null]", "[NaN]", "[Infinity]"]
)
def test_what_is_not_a_list_of_objects_is_none(text):
    assert parse_calls(text) is None


@pytest.mark.parametrize(
    "text",
    [
        as_json(TIMER) + "!",
        "Sure: " + as_json(TIMER),
        as_json(TIMER) + as_json(TIMER),
        "```json\n" + as_json(TIMER) + "\n```",
        '[{"name": "timer", "name": "light", "arguments": {}}]',
        as_json(TIMER) + "<|im_end|>\nuser",
    ],
)
def test_anything_around_the_json_makes_it_none(text):
    assert parse_calls(text) is None


@pytest.mark.parametrize("text", ["[" * 100_000, '[{"a":' * 50_000, "[" + "9" * 10_000 + "]", '["\ud800"]', "\x00"])
def test_hostile_text_is_none_and_does_not_raise(text):
    assert parse_calls(text) is None


@unhurried
@given(st.text())
def test_parsing_never_raises(text):
    result = parse_calls(text)
    assert result is None or isinstance(result, list)


@unhurried
@given(st.lists(st.sampled_from([" ", "\n", "\t", "<|im_end|>", "<|endoftext|>"])), st.sampled_from(["", " ", "\n\n"]))
def test_whitespace_around_and_end_tokens_after_are_allowed(after, before):
    assert parse_calls(before + as_json(TIMER) + "".join(after)) == [TIMER]


def call(name: str, **arguments: object) -> dict:
    return {"name": name, "arguments": arguments}


@pytest.mark.parametrize(
    ("generated", "expected", "verdict"),
    [
        ([call("timer", minutes=5.0)], [TIMER], CORRECT),
        ([{"arguments": {"state": "on", "room": "attic"}, "name": "light"}], [LIGHT], CORRECT),
        ([call("timer", minutes=True)], [call("timer", minutes=1)], "wrong argument: minutes"),
        ([call("timer", minutes="5")], [TIMER], "wrong argument: minutes"),
        ([TIMER], [TIMER, LIGHT], "missing call"),
        ([], [TIMER], "missing call"),
        ([TIMER, LIGHT], [TIMER], "extra call"),
        ([LIGHT, TIMER], [TIMER, LIGHT], "wrong order"),
        ([TIMER, TIMER], [TIMER, LIGHT], "wrong function"),
        ([call("alarm", minutes=5)], [TIMER], "wrong function"),
        ([call("light", state="on")], [LIGHT], "missing argument: room"),
        ([call("light", room="attic", state="on", color="red")], [LIGHT], "extra argument: color"),
        ([{"name": "timer"}], [TIMER], "not a call"),
        ([{"name": "timer", "arguments": [5]}], [TIMER], "not a call"),
        ([TIMER | {"id": 1}], [TIMER], "not a call"),
    ],
)
def test_diagnosis(generated, expected, verdict):
    text = json.dumps(generated)
    assert classify_answer(text, example(*expected)) == verdict
    assert exact_match(text, example(*expected)) == (verdict == CORRECT)


def test_diagnosis_of_prose():
    assert classify_answer("I have set a timer for you.", example(TIMER)) == "not JSON"


@unhurried
@given(valid_calls(), valid_calls())
def test_only_equal_calls_match(one, other):
    assert exact_match(json.dumps(one), example(*other)) == (one == other)


# Data


@pytest.mark.parametrize(("split", "size"), [("train", 3000), ("validation", 150), ("test", 200), ("paraphrases", 150)])
def test_every_example_is_sound(split, size):
    examples = load_examples(split)
    assert len(examples) >= size if split == "paraphrases" else len(examples) == size
    for one in examples:
        validate_calls(one.calls)
        assert len(one.command.split()) <= 60 and one.command == one.command.strip()
        assert ("two_step" in one.tags) == (len(one.calls) == 2), one.command
        for number, (name, arguments) in enumerate((call["name"], call["arguments"]) for call in one.calls):
            order = [argument for argument in FUNCTIONS[name]["parameters"]["properties"] if argument in arguments]
            assert list(arguments) == order, f"{one.command}: call {number} lists its arguments out of order"
            for argument in OPEN_TEXT & arguments.keys() - ({"to"} if name == "convert" else set()):
                assert arguments[argument] in one.command, f"{one.command}: {argument} is not copied from the command"
            for argument in {"room", "list"} & arguments.keys() if arguments.get("room") != "all" else set():
                assert arguments[argument] in one.command.lower(), f"{one.command}: {argument} was not said"


def test_every_function_and_every_hard_feature_occurs_in_every_split():
    for split in SPLITS:
        examples = load_examples(split)
        assert {call["name"] for one in examples for call in one.calls} == set(FUNCTIONS), split
        tags = {tag for one in examples for tag in one.tags}
        assert tags >= {"two_step", "reversed", "shared_verb", "correction", "number_words", "polite", "transcript"}


def test_a_transcript_has_neither_capitals_nor_punctuation():
    for split in SPLITS:
        for one in load_examples(split):
            if "transcript" in one.tags:
                assert one.command == one.command.lower() and not set(one.command) & set(",;?!"), one.command


def test_an_unknown_split_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="train, validation, test, paraphrases"):
        load_examples("dev")


def test_the_evaluation_text_is_long_enough():
    assert len(evaluation_text().split()) >= 8000


# Where the data lies


def _package(tmp_path, monkeypatch):
    (tmp_path / "qlora_lab" / "tasks").mkdir(parents=True)
    monkeypatch.setattr(function_calls, "__file__", str(tmp_path / "qlora_lab" / "tasks" / "function_calls.py"))
    return tmp_path


def test_the_data_is_found_in_a_wheel_and_in_a_checkout(tmp_path, monkeypatch):
    source = data_directory()
    root = _package(tmp_path, monkeypatch)
    with pytest.raises(FileNotFoundError, match="reinstall the package or restore data/"):
        data_directory()
    shutil.copytree(source / "function_calls", root / "data" / "function_calls")
    assert data_directory() == root / "data"
    shutil.copytree(source / "function_calls", root / "qlora_lab" / "_data" / "function_calls")
    assert data_directory() == root / "qlora_lab" / "_data"
    assert len(load_examples("test")) == 200


def test_missing_and_damaged_files_are_named(tmp_path, monkeypatch):
    root = _package(tmp_path, monkeypatch)
    folder = root / "data" / "function_calls"
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"test\.jsonl is missing"):
        load_examples("test")
    with pytest.raises(FileNotFoundError, match=r"evaluation_text\.txt is missing"):
        evaluation_text()
    good = json.dumps({"command": "x", "calls": [TIMER], "tags": []})
    for bad in ("not json", "[]", '{"command": "x"}', "3"):
        (folder / "test.jsonl").write_text(f"{good}\n{bad}\n")
        with pytest.raises(ValueError, match=r"test\.jsonl, line 2: not an example"):
            load_examples("test")


@given(st.integers(0, 40), st.integers(0, 50))
def test_spread_takes_as_many_as_asked_in_order_from_the_whole_list(size, count):
    taken = spread(list(range(size)), count)
    assert len(taken) == (size if count == 0 else min(size, count))
    assert taken == sorted(set(taken))
    if taken:
        assert taken[0] == 0
        assert size - taken[-1] <= -(-size // len(taken))
