"""What is said before a step is taken: counts that hold for any data, and what should be looked at."""

import html
import re

import pytest
from chat_families import FAMILIES, HEADINGS, byte_level, chat_tokenizer, pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import commands, pairs, tiny_tokenizer

from qlora_lab.tasks.encoding import IGNORED, encode
from qlora_lab.tasks.inspection import inspect, shorten
from qlora_lab.tasks.own_data import load_dataset

words = st.text("ab1 \n<é", min_size=1, max_size=10)


def asked(*questions_and_answers) -> list:
    rows = [{"prompt": q, "completion": a} for q, a in questions_and_answers]
    return load_dataset(rows)


@pytest.mark.parametrize("backend", [byte_level, lambda: byte_level(merged=True), pieces])
@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.tuples(words, words), min_size=1, max_size=8), max_length=st.none() | st.integers(30, 80))
def test_counts_and_masks_are_those_of_the_labels(backend, rows, max_length):
    tokenizer, records = chat_tokenizer("zephyr", backend()), asked(*rows)
    try:
        found = inspect(records, tokenizer, max_length)
    except ValueError as error:
        assert "is left to train on; row 1: max_length is" in str(error)
        return
    kept = [encode(records[place], tokenizer, max_length) for place in found.training.encoded.places]
    table = {what: value for what, value, _ in found.table()}
    assert table["examples"] == len(rows) == len(kept) + table["left out"]
    assert table["tokens"] == sum(len(ids) for ids, _ in kept)
    assert table["tokens learned"] == sum(int((labels[1:] != IGNORED).sum()) for _, labels in kept)
    assert table["cut off"] == sum(
        len(encode(records[p], tokenizer)[0]) > len(one[0])
        for p, one in zip(found.training.encoded.places, kept, strict=True)
    )
    assert all(value is None for _, _, value in found.table())
    for origin, mask in zip(found.shown, found.masks, strict=True):
        place = int(origin.removeprefix("row ")) - 1
        ids, _ = encode(records[place], tokenizer, max_length)
        assert "".join(text for text, _ in mask) == tokenizer.decode(ids)
        assert [learned for _, learned in mask] == [i % 2 == 1 for i in range(len(mask))]
        if max_length is None:
            assert mask[1][0].strip() == (rows[place][1] + "</s>").strip()


def test_everything_is_encoded_once():
    tokenizer, said = chat_tokenizer("chatml"), []
    records = asked(("a", "b"), ("c", "d"))
    inspect(records, tokenizer, validation=records[:1], progress=lambda done, of: said.append((done, of)))
    assert said == [(2, 2), (1, 1)]


def test_three_are_shown_and_one_that_was_cut_among_them():
    tokenizer = chat_tokenizer("chatml")
    records = asked(*((str(i), "x" * (60 if i == 2 else 5)) for i in range(9)))
    assert inspect(records, tokenizer).shown == ["row 1", "row 5", "row 9"]
    assert inspect(records, tokenizer, 60).shown == ["row 1", "row 5", "row 3"]
    assert inspect(records[:1], tokenizer).shown == ["row 1"]


# The same twice, and in both


def test_what_was_said_before():
    records = asked(
        ("Hi", "yes"), ("Hi", "yes"), ("hi ", "YES"), ("Hi", "no"), ("wait 5 min", "5"), ("wait 17 min", "17")
    )
    found = inspect(records, chat_tokenizer("chatml"))
    table = {what: value for what, value, _ in found.table()}
    assert table["said before, to the letter"] == 1 and table["said before, but for digits and case"] == 2
    assert table["another answer to a question before"] == 1
    assert any("3 training examples said before (row 2 is the same as row 1)" in warning for warning in found.warnings)


LEAKS = [
    (("Hi", "yes"), "the same"),
    (("hi", "Yes"), "the same but for digits and case"),
    (("Hi", "no"), "the same question"),
]


@pytest.mark.parametrize(("held", "sense"), LEAKS)
def test_what_stands_in_training_and_validation_both(held, sense):
    training, validation = asked(("Ho", "so"), ("Hi", "yes")), asked(("new", "one"), held)
    found = inspect(training, chat_tokenizer("chatml"), validation=validation)
    assert found.leaked == {sense: 1} and [(leak.one, leak.other) for leak in found.leaks] == [("row 2", "row 2")]
    assert any(f"1 validation example in training too (1 {sense}; row 2 is" in warning for warning in found.warnings)
    assert (f"in both: {sense}", "", 1) in found.table()


@given(rows=st.lists(st.tuples(words, words), min_size=1, max_size=6))
@settings(deadline=None, max_examples=30)
def test_all_of_validation_in_training_is_all_leaked(rows):
    records = asked(*rows)
    found = inspect(records, chat_tokenizer("chatml"), validation=records)
    assert sum(found.leaked.values()) == len(rows) == len(found.validation)
    strict = {(q, a) for q, a in rows}
    assert found.training.repeated == len(rows) - len(strict)


def test_conversations_and_texts_and_calls_are_compared_too():
    tokenizer = chat_tokenizer("chatml")
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for rows in ([talk, talk], [{"text": "abc"}, {"text": "abc"}]):
        assert inspect(load_dataset(rows), tokenizer).training.repeated == 1
    system = {"messages": [{"role": "system", "content": "s"}, *talk["messages"]]}
    assert inspect(load_dataset([talk, system]), tokenizer).training.repeated == 0
    for examples in (commands(3), pairs(3)):
        found = inspect([*examples, examples[0]], tiny_tokenizer())
        assert found.training.repeated == 1 and found.training.given == 4


# What should be looked at


def warnings(records, tokenizer, *args, **more) -> str:
    return "\n".join(inspect(records, tokenizer, *args, **more).warnings)


def test_sound_data_needs_no_looking_at():
    assert warnings(asked(("a", "b"), ("c", "d")), chat_tokenizer("chatml"), validation=asked(("e", "f"))) == ""


def test_what_max_length_costs_is_told():
    tokenizer = chat_tokenizer("chatml")
    records = asked(("a", "b"), ("a" * 40, "b"), ("c", "d" * 60))
    lengths = [len(encode(record, tokenizer).input_ids) for record in records]
    said = warnings(records, tokenizer, 40)
    assert "1 training example left out: nothing that is learned is left after the cut (the first: row 2, " in said
    assert f"max_length is 40, and the first of {lengths[1]} tokens that is learned is number {lengths[1] - 2})" in said
    assert f"1 training example cut at 40 tokens: {lengths[2] - 40} tokens less" in said
    assert f"1 of them without the end of an answer. max_length {lengths[2]} would keep all whole" in said
    assert "2 training examples left out: too long (the first: row 2" in warnings(
        records, tokenizer, 40, overlong="drop"
    )


def test_empty_answers_are_told():
    assert "1 training example with an empty answer" in warnings(asked(("a", "b"), ("c", "")), chat_tokenizer("chatml"))


def test_longer_than_the_model_was_made_for_is_told():
    tokenizer = chat_tokenizer("chatml")
    tokenizer.model_max_length = 40
    assert "1 training example longer than the 40 tokens" in warnings(asked(("a", "b"), ("c" * 30, "d")), tokenizer)


class Configured:
    class generation_config:
        eos_token_id = None


def test_whether_generation_stops_where_answers_end_is_told():
    records = asked(("a", "b"))
    assert "ends with" not in warnings(records, chat_tokenizer("chatml"))
    late = chat_tokenizer("chatml-late")
    assert "an answer ends with <|im_end|>, at which neither the tokenizer nor the model's" in warnings(records, late)
    model = Configured()
    model.generation_config.eos_token_id = [late.eos_token_id, late.convert_tokens_to_ids("<|im_end|>")]
    assert "ends with" not in warnings(records, late, model=model)
    # a target that ends with nothing: only generation's limit will stop it
    target = [{"prompt": "a=", "target": "b"}]
    assert "1 training example with an end that generation does not stop at" in warnings(target, tiny_tokenizer())


def test_a_prompt_that_has_other_tokens_in_training_is_told():
    """Two line breaks are one token at the end of a prompt, and two before a word."""
    said = warnings(asked(("a", "hello")), chat_tokenizer("llama3", byte_level(merged=True)))
    assert "generation is not given the tokens that were trained on: row 1 goes on with" in said
    assert "generation" not in warnings(asked(("a", "hello")), chat_tokenizer("llama3"))
    assert "generation is not given" in warnings(asked(("a", "hello")), chat_tokenizer("opened"))


def test_notes_are_told_with_their_number_and_the_first():
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = HEADINGS
    said = warnings(asked(("a", "b"), ("c", "d")), tokenizer)
    assert "2 training examples: nothing ended the answer, so <|im_end|> was added after it" in said
    assert "(the first: row 1)" in said


def test_nothing_to_train_on_is_an_error_that_says_why():
    with pytest.raises(ValueError, match="no examples to train on"):
        inspect([], chat_tokenizer("chatml"))
    with pytest.raises(
        ValueError, match=r"none of 2 examples is left to train on; row 1: max_length is 10, and the first"
    ):
        inspect(asked(("a", "b"), ("c", "d")), chat_tokenizer("chatml"), 10)


# How it is shown


def test_the_notebook_shows_the_same_words_escaped_and_marked():
    tokenizer = chat_tokenizer("chatml")
    found = inspect(asked(("<b>&amp;", "<i>")), tokenizer, validation=asked(("x", "y")))
    page = found._repr_html_()
    assert "<b>" not in page and "<i>" not in page
    [mask] = re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)
    assert html.unescape(re.sub(r"<[^>]+>", "", mask)) == tokenizer.decode(
        encode(asked(("<b>&amp;", "<i>"))[0], tokenizer)[0]
    )
    assert html.unescape(re.search(r"<mark[^>]*>(.*?)</mark>", mask).group(1)) == "<i><|im_end|>"
    assert "color:inherit" in page and "#000" not in page and "#fff" not in page  # on light and on dark
    assert page.count("<th>") == 3 and all(what in html.unescape(page) for what, *_ in found.table())


def test_its_text_has_all_rows_and_warnings():
    found = inspect(asked(("a", "b"), ("c", "")), chat_tokenizer("chatml"))
    lines = repr(found).splitlines()
    assert len(lines) == len(found.table()) + len(found.warnings) and lines[-1].startswith("! ")


@given(st.lists(st.tuples(st.text(max_size=400), st.booleans()), max_size=5), st.integers(100, 500))
def test_long_masks_lose_their_middles_only(mask, most):
    short = shorten(mask, most)
    assert [learned for _, learned in short] == [learned for _, learned in mask]
    for (text, _), (whole, _) in zip(short, mask, strict=True):
        head, _, tail = text.partition(" … ")
        assert text == whole or (whole.startswith(head) and whole.endswith(tail.rpartition(" … ")[2]))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_inspected_without_a_warning_about_its_ends(name):
    found = inspect(asked(("a", "b"), ("c", "d")), chat_tokenizer(name))
    assert found.training.ends == {FAMILIES[name].end: 2}
    assert not any("without the end" in warning or "does not stop" in warning for warning in found.warnings)
