"""Files as people have them become the same records; what is wrong is told by file and line."""

import csv
import gzip
import io
import json
import sys
import types

import pytest
from chat_families import CHATML, HEADINGS, byte_level, chat_tokenizer, pieces
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_lab.tasks.encoding import IGNORED, LeftOut, encode
from qlora_lab.tasks.function_calls import Example, data_directory, load_examples
from qlora_lab.tasks.own_data import FORMATS, Record, load_dataset

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
PAIR = {"prompt": "Hi", "completion": "Hello."}
INSTRUCTION = {"instruction": "Greet.", "input": "Ann", "output": "Hello, Ann."}
TEXT = {"text": "Once upon a time."}
CALL = {"command": "a timer", "calls": [{"name": "timer", "arguments": {"minutes": 5}}], "tags": []}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
GUESSES = {
    "chat": [
        CHAT,
        SHAREGPT,
        CHAT | {"prompt": "Hi", "id": 3},
        {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]},
        {"messages": json.dumps(CHAT["messages"])},
    ],
    "prompt-completion": [PAIR, {"question": "Hi", "answer": "Hello."}, {"prompt": "Hi", "response": "Hello."}],
    "instruction": [INSTRUCTION, {"instruction": "Greet.", "context": "", "response": "Hello."}],
    "text": [TEXT, TEXT | {"label": 3}],
    "function-calls": [CALL],
}


def lines(*rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows: list[dict], delimiter: str = ",") -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def write(folder, name: str, content: str | bytes):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def without_origin(records) -> list[tuple]:
    return [(r.messages, r.prompt, r.completion, r.text, r.tools, r.learned, r.input, r.plain) for r in records]


# Formats


@pytest.mark.parametrize(("format", "row"), [(name, row) for name, rows in GUESSES.items() for row in rows])
def test_the_first_row_says_what_it_is(tmp_path, format, row):
    found = load_dataset(write(tmp_path, "a.jsonl", lines(row)))
    assert found.format == format and found.guess.startswith("a.jsonl: read as ") and len(found) == 1
    assert without_origin(found) == without_origin(load_dataset([row])) if format != "function-calls" else True
    told = load_dataset(tmp_path / "a.jsonl", format=format)
    assert list(told) == list(found) and told.guess.startswith("a.jsonl: taken as ")


def test_what_is_not_used_is_said(tmp_path):
    assert load_dataset([TEXT | {"label": 3, "id": "x"}]).columns == ("label", "id")
    assert "not used: prompt, id" in load_dataset([CHAT | {"prompt": "Hi", "id": 3}]).guess


def test_records_say_where_they_came_from(tmp_path):
    path = write(tmp_path, "a.jsonl", "\n" + lines(CHAT) + "\n\n" + lines(CHAT))
    assert [record.origin for record in load_dataset(path)] == ["a.jsonl, line 2", "a.jsonl, line 5"]
    path = write(tmp_path, "a.csv", 'prompt,completion\na,"b\nc"\n\nd,e\n')
    assert [record.origin for record in load_dataset(path)] == ["a.csv, line 2", "a.csv, line 5"]
    path = write(tmp_path, "a.json", json.dumps([CHAT, CHAT], indent=1))
    assert [record.origin for record in load_dataset(path)] == ["a.json, line 2", "a.json, line 14"]
    assert [record.origin for record in load_dataset([CHAT, CHAT])] == ["row 1", "row 2"]


def test_the_task_of_function_calls_is_one_data_set_among_others():
    found = load_dataset(data_directory() / "function_calls" / "test.jsonl")
    assert list(found) == load_examples("test") and isinstance(found[0], Example)


def test_messages_as_others_write_them():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    [record] = load_dataset(
        [
            {
                "messages": [
                    {"role": "user", "content": "Hi", "name": None},
                    {"role": "assistant", "content": parts, "weight": 0},
                    {"role": "user", "content": "And?"},
                    {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "content": "1", "tool_call_id": "1"},
                    {"role": "assistant", "content": "One.", "tool_calls": None},
                ],
                "tools": json.dumps([{"type": "function", "function": {"name": "f"}}]),
            }
        ]
    )
    assert record.messages[1] == {"role": "assistant", "content": "Hello."} and record.learned == (3, 5)
    assert record.messages[3]["content"] == "" and record.tools == [{"type": "function", "function": {"name": "f"}}]
    assert record.messages[3]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert record.messages[5] == {"role": "assistant", "content": "One."}


def test_answers_inside_a_prompt_are_not_learned():
    talk = [*CHAT["messages"], {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So."}]
    [record] = load_dataset([{"prompt": talk[:3], "completion": talk[3:]}])
    assert record.messages == talk and record.learned == (3,)


# Files

small = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
pairs = st.lists(st.fixed_dictionaries({"prompt": small, "completion": small}), min_size=1, max_size=5)


@settings(deadline=None, max_examples=60)
@given(
    rows=pairs,
    ascii=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\r\n \r\n"]),
    bom=st.booleans(),
)
def test_every_way_of_writing_lines_gives_the_same_records(tmp_path_factory, rows, ascii, newline, bom):
    folder = tmp_path_factory.mktemp("data")
    text = newline.join(json.dumps(row, ensure_ascii=ascii) for row in rows)
    wanted = [(row["prompt"], row["completion"]) for row in rows]
    for name in ("a.jsonl", "a.ndjson", "a.json"):
        path = write(folder, name, text.encode("utf-8-sig" if bom else "utf-8"))
        assert [(r.prompt, r.completion) for r in load_dataset(path)] == wanted
    write(folder, "u.jsonl", text.encode("utf-16"))
    write(folder, "z.jsonl.gz", gzip.compress(text.encode()))
    for name in ("u.jsonl", "z.jsonl.gz"):
        assert [(r.prompt, r.completion) for r in load_dataset(folder / name)] == wanted


@settings(deadline=None, max_examples=60)
@given(
    rows=pairs,
    indent=st.sampled_from([None, 0, 2]),
    named=st.sampled_from([None, "data", "d\u00e4ta"]),
    bom=st.booleans(),
)
def test_every_way_of_writing_a_document_gives_the_same_records(tmp_path_factory, rows, indent, named, bom):
    folder = tmp_path_factory.mktemp("data")
    document = rows if named is None else {"version": 1, named: rows}
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    wanted = [(row["prompt"], row["completion"]) for row in rows]
    for name in ("a.json", "a.jsonl"):
        path = write(folder, name, text.encode("utf-8-sig" if bom else "utf-8"))
        if name == "a.json" or named is None or indent is not None:  # an object on one line is one line of JSONL
            assert [(r.prompt, r.completion) for r in load_dataset(path)] == wanted


@settings(deadline=None, max_examples=60)
@given(rows=pairs, delimiter=st.sampled_from(",;\t"), bom=st.booleans())
def test_every_delimiter_gives_the_same_records(tmp_path_factory, rows, delimiter, bom):
    folder = tmp_path_factory.mktemp("data")
    path = write(folder, "a.csv", as_csv(rows, delimiter).encode("utf-8-sig" if bom else "utf-8"))
    wanted = [(row["prompt"], row["completion"]) for row in rows if row["prompt"].strip() or row["completion"].strip()]
    if not wanted:
        with pytest.raises(ValueError, match="holds no examples"):
            load_dataset(path)
        return
    assert [(r.prompt, r.completion) for r in load_dataset(path)] == wanted


def test_a_folder_of_files(tmp_path):
    write(tmp_path, "a.jsonl", lines(CHAT, CHAT))
    write(tmp_path, "b.csv", as_csv([PAIR]))
    write(tmp_path, "c.json", json.dumps([TEXT]))
    write(tmp_path, "README.md", "not data")
    write(tmp_path, ".hidden.jsonl", "not data")
    found = load_dataset(tmp_path)
    assert found.format == "chat, prompt-completion, text" and len(found) == 4
    assert [record.origin for record in found] == [
        "a.jsonl, line 1",
        "a.jsonl, line 2",
        "b.csv, line 2",
        "c.json, line 1",
    ]


def test_one_example_in_an_object_is_an_example(tmp_path):
    assert len(load_dataset(write(tmp_path, "a.json", json.dumps(CHAT, indent=2)))) == 1


def test_another_encoding_is_said(tmp_path):
    path = write(tmp_path, "a.jsonl", lines(TEXT, {"text": "Zürich für €"}).encode("cp1252"))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: byte 0xfc is not UTF-8; save .*--encoding cp1252"):
        load_dataset(path)
    assert load_dataset(path, encoding="cp1252")[1].text == "Zürich für €"
    with pytest.raises(ValueError, match="unknown encoding 'none'"):
        load_dataset(path, encoding="none")


def test_parquet_asks_the_library_for_it(tmp_path, monkeypatch):
    path = write(tmp_path, "train-00000.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("qlora_lab.tasks.own_data.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install datasets, or save it as JSONL"):
        load_dataset(path)
    stand_in = types.SimpleNamespace(
        load_dataset=lambda kind, data_files, split: [PAIR, PAIR] if (kind, split) == ("parquet", "train") else None,
        load_from_disk=lambda folder: {"train": [PAIR], "test": [PAIR]},
    )
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    monkeypatch.setattr("qlora_lab.tasks.own_data.find_spec", lambda name: stand_in)
    assert [record.origin for record in load_dataset(path)] == [f"{path.name}, row 1", f"{path.name}, row 2"]
    write(tmp_path, "dataset_dict.json", "{}")
    with pytest.raises(ValueError, match="holds the splits train, test; give the folder of one"):
        load_dataset(tmp_path)


# Broken files: file, line, what is wrong, what would be right

GOOD = lines(CHAT)
MESSAGE = {"role": "user", "content": "Hi"}
BROKEN = [
    ("a.jsonl", "", "a.jsonl holds no examples; each line should be one, such as"),
    ("a.jsonl", "\n \n", "a.jsonl holds no examples"),
    ("a.jsonl", GOOD + '{"messages": [', "a.jsonl, line 2: not JSON (Expecting value at column 15); write one whole"),
    ("a.jsonl", GOOD + "{'messages': []}", "a.jsonl, line 2: not JSON (Expecting property name"),
    ("a.jsonl", GOOD + GOOD.strip() + GOOD, "line 2: more than one JSON value"),
    ("a.jsonl", GOOD + '{"messages": 1, "messages": 2}', 'line 2: not usable JSON ("messages" stands in it twice)'),
    ("a.jsonl", GOOD + '{"messages": NaN}', "line 2: not usable JSON (NaN is no JSON)"),
    ("a.jsonl", GOOD + "[" * 100_000, "line 2: not "),
    ("a.jsonl", GOOD + "3", "a.jsonl, line 2: a number, where an object {…} should be"),
    ("a.jsonl", GOOD + '["a"]', "a.jsonl, line 2: a list, where an object"),
    ("a.jsonl", GOOD + "{}", "a.jsonl, line 2: no messages; write"),
    ("a.jsonl", '{"a": 1, "b": 2}', "a.jsonl, line 1: it has a, b, which is no format known here; write"),
    ("a.jsonl", "{}", "a.jsonl, line 1: it has nothing, which is no format"),
    ("a.jsonl", lines({"prompt": "a", "chosen": "b", "rejected": "c"}), "line 1: pairs of a better and a worse answer"),
    ("a.jsonl", lines({"messages": []}), "line 1: messages is an empty list"),
    ("a.jsonl", lines({"messages": "Hi"}), "line 1: messages is a text that is not JSON"),
    ("a.jsonl", lines({"messages": {"role": "user"}}), "line 1: messages is an object, where a list of messages"),
    ("a.jsonl", lines({"messages": ["Hi"]}), 'message 1 is a text; write {"role": "user", "content": "…"}'),
    ("a.jsonl", lines({"messages": [MESSAGE]}), "none of its 1 messages is the assistant's"),
    (
        "a.jsonl",
        lines({"messages": [MESSAGE, {"role": "bot", "content": ""}]}),
        "message 2 has the role 'bot'; the roles",
    ),
    ("a.jsonl", lines({"messages": [{"content": "Hi"}]}), "message 1 has no role; the roles are system, developer"),
    ("a.jsonl", lines({"messages": [{"role": "user"}]}), "message 1, the user's, has no content; write"),
    ("a.jsonl", lines({"messages": [{"role": "user", "content": 5}]}), "has content that is a number; write"),
    (
        "a.jsonl",
        lines({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}),
        "message 1 holds a part of type 'image_url'; only text",
    ),
    (
        "a.jsonl",
        lines({"messages": [{"role": "assistant", "tool_calls": "f(x)"}]}),
        "tool_calls, is a text that is not",
    ),
    ("a.jsonl", lines({"messages": [{"role": "assistant", "tool_calls": ["f"]}]}), "tool_calls that are no list of"),
    (
        "a.jsonl",
        lines({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]}),
        "a call whose arguments are no JSON object: 'x'",
    ),
    ("a.jsonl", lines(CHAT | {"tools": {"name": "f"}}), "tools is no list of objects"),
    (
        "a.jsonl",
        lines({"messages": [MESSAGE, {"role": "assistant", "content": "x", "weight": 0}]}),
        "all of the assistant's messages have weight 0",
    ),
    ("a.jsonl", lines(PAIR, {"prompt": "a"}), "a.jsonl, line 2: no completion; write"),
    ("a.jsonl", lines(PAIR, {"prompt": "a", "completion": None}), "line 2: completion is nothing (null), where a text"),
    (
        "a.jsonl",
        lines(PAIR, {"prompt": "a", "completion": 5}),
        "line 2: completion is a number, where a text should be",
    ),
    ("a.jsonl", lines(PAIR, CHAT), "line 2: no prompt; write"),
    ("a.jsonl", lines(PAIR, {"prompt": 1}, {"prompt": 2}), "line 2: prompt is a number, where a text should be: "),
    ("a.jsonl", lines(INSTRUCTION, {"instruction": "x", "input": 3, "output": "y"}), "line 2: input is a number"),
    (
        "a.jsonl",
        GOOD + '{"messages": [{"role": "assistant", "content": "\\ud83d"}]}',
        "line 2: message 1, content holds half",
    ),
    ("a.jsonl", lines(TEXT) + '{"text": "\\udc00"}', "line 2: text holds half a character (\\udc00, a lone surrogate)"),
    ("a.jsonl", lines(CALL, {"command": "x", "calls": "f"}), "line 2: calls is a text, where a list of objects"),
    ("a.jsonl", GOOD.encode() + b'{"text": "\xff"}', "a.jsonl, line 2: byte 0xff is not UTF-8"),
    ("a.jsonl", GOOD.encode("utf-16-le"), "line 1: a zero byte, so this is no text in UTF-8; is it UTF-16?"),
    ("a.jsonl", b"\x1f\x8b\x00broken", "a.jsonl cannot be read ("),
    ("a.jsonl.gz", gzip.compress(GOOD.encode() * 9)[:-12], "a.jsonl.gz cannot be read ("),
    ("a.jsonl.gz", gzip.compress(GOOD.encode() * 9)[:12] + b"\xff" * 30, "a.jsonl.gz cannot be read ("),
    ("a.json", "[" + GOOD + "," + '{"messages": }]', "a.json, line 2: not JSON (Expecting value); a .json file is one"),
    ("a.json", "[" + GOOD, "a.json, line 2: not JSON"),
    ("a.json", "[" + GOOD + GOOD + "]", "a.json, line 2: not JSON (Expecting ',' or ']'); a .json file is one list"),
    ("a.json", "[" + GOOD + "]\n[" + GOOD + "]", "a.json, line 3: not JSON (something after the list); a .json file"),
    ("a.json", "[" + GOOD + ",]", "a.json, line 2: not JSON (Expecting value)"),
    ("a.json", "[]", "a.json holds no examples"),
    ("a.json", "[,]", "a.json, line 1: not JSON (Expecting value)"),
    ("a.json", json.dumps({"train": [CHAT], "test": [CHAT]}), "holds the lists train, test; it should be one list"),
    ("a.json", json.dumps({"version": 1}), "a.json is an object that holds no list, but version"),
    ("a.json", "5", "a.json, line 1: a number, where an object"),
    ("a.csv", "prompt,completion\na\n", "a.csv, line 2: 1 fields, where the first line names 2 (prompt, completion)"),
    ("a.csv", "prompt,completion\na,b,c\n", "line 2: 3 fields, where the first line names 2 (prompt, completion); put"),
    ("a.csv", 'prompt,completion\na,"b\n', "a.csv, line 2: not CSV (unexpected end of data); a text with quotes"),
    ("a.csv", 'prompt,completion\na,"b"c\n', "a.csv, line 2: not CSV"),
    ("a.csv", "prompt,prompt\na,b\n", "a.csv, line 1: two columns are named 'prompt'"),
    ("a.csv", "a,b\n1,2\n", "a.csv, line 2: it has a, b, which is no format known"),
    ("a.csv", "prompt,completion\n", "a.csv holds no examples"),
    ("a.txt", "hello", "a.txt ends in none of .jsonl, .ndjson, .json, .csv, .tsv, .parquet; rename"),
]


@pytest.mark.parametrize(("name", "content", "said"), BROKEN)
def test_what_is_wrong_is_told_by_file_and_line(tmp_path, name, content, said):
    with pytest.raises(ValueError) as caught:
        load_dataset(write(tmp_path, name, content))
    assert said in str(caught.value)


def test_how_many_more_lines_are_wrong_is_told():
    with pytest.raises(ValueError, match=r"^row 2: no completion; .* \(2 more after it\)$"):
        load_dataset([PAIR, {"prompt": "a"}, PAIR, {"prompt": "a"}, 3])


def test_places_without_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_dataset(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"holds no file that ends in \.jsonl"):
        load_dataset(tmp_path)
    with pytest.raises(ValueError, match="unknown format 'xml'; choose one of auto, chat"):
        load_dataset([TEXT], format="xml")


@pytest.mark.parametrize(
    "other", ["validation.jsonl", "data-test.jsonl", "my_eval.jsonl", "dev.csv", "test-00000.jsonl"]
)
def test_a_folder_of_training_and_validation_files_is_not_mixed(tmp_path, other):
    write(tmp_path, "train.jsonl", lines(PAIR))
    write(tmp_path, other, lines(PAIR))
    with pytest.raises(ValueError, match="which are not to be mixed; give the file to train on"):
        load_dataset(tmp_path)


def test_names_that_only_look_like_validation_are_read(tmp_path):
    write(tmp_path, "contest.jsonl", lines(PAIR))
    write(tmp_path, "devices.jsonl", lines(PAIR))
    assert len(load_dataset(tmp_path)) == 2
    (tmp_path / "only").mkdir()
    write(tmp_path / "only", "test.jsonl", lines(PAIR))
    assert len(load_dataset(tmp_path / "only")) == 1


# Records as tokens


def learned(record, tokenizer) -> str:
    ids, labels = encode(record, tokenizer)
    assert ids[labels != IGNORED].tolist() == labels[labels != IGNORED].tolist()
    return tokenizer.decode(labels[labels != IGNORED])


def whole(record, tokenizer) -> str:
    return tokenizer.decode(encode(record, tokenizer).input_ids)


def test_questions_and_instructions_are_written_in_the_template():
    tokenizer = chat_tokenizer("chatml")
    for row in (PAIR, INSTRUCTION):
        [record] = load_dataset([row])
        assert learned(record, tokenizer) == (row.get("completion") or row["output"]) + "<|im_end|>"
        assert whole(record, tokenizer).startswith("<|im_start|>user\n")
    assert "Greet.\n\nAnn<|im_end|>" in whole(record, tokenizer)


def test_or_as_they_stand_where_that_is_said_or_there_is_no_template():
    tokenizer = chat_tokenizer("chatml")
    [plain] = load_dataset([PAIR], format="completion")
    assert whole(plain, tokenizer) == "HiHello.<|im_end|>" and learned(plain, tokenizer) == "Hello.<|im_end|>"
    tokenizer.chat_template = None
    [record], [instruction] = load_dataset([PAIR]), load_dataset([INSTRUCTION])
    assert whole(record, tokenizer) == "HiHello.<|im_end|>" and learned(record, tokenizer) == "Hello.<|im_end|>"
    wanted = "### Instruction:\nGreet.\n\n### Input:\nAnn\n\n### Response:\nHello, Ann.<|im_end|>"
    assert whole(instruction, tokenizer) == wanted and learned(instruction, tokenizer) == "Hello, Ann.<|im_end|>"
    [brief] = load_dataset([INSTRUCTION | {"input": None}])
    assert whole(brief, tokenizer) == "### Instruction:\nGreet.\n\n### Response:\nHello, Ann.<|im_end|>"


def test_of_a_text_all_is_learned():
    tokenizer = chat_tokenizer("chatml")
    assert learned(load_dataset([TEXT])[0], tokenizer) == TEXT["text"] + "<|im_end|>"
    [ended] = load_dataset([{"text": "It ends.<|im_end|>"}])
    assert whole(ended, tokenizer) == "It ends.<|im_end|>"
    with pytest.raises(LeftOut, match="row 1: nothing in it is learned"):
        encode(load_dataset([{"text": ""}])[0], tokenizer)


@pytest.mark.parametrize("backend", [byte_level, lambda: byte_level(merged=True), pieces])
@settings(deadline=None, max_examples=30)
@given(prompt=small, completion=small)
def test_a_prompt_has_in_training_the_tokens_that_generation_gives_it(backend, prompt, completion):
    tokenizer = chat_tokenizer("inst", backend())
    tokenizer.chat_template = None
    record = Record(prompt=prompt, completion=completion, origin="x")
    [tokens] = Record.encode_many([record], tokenizer)
    question, answer = record.question_and_answer(tokenizer)
    before = tokenizer(question, add_special_tokens=False)["input_ids"]
    assert tokens.ids[: len(before)].tolist() == before and not tokens.learned[: len(before)].any()
    assert tokens.learned[len(before) :].all() and tokens.ids[-1] == tokenizer.eos_token_id and answer == completion
    both = tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokens.ids[:-1]) == tokenizer.decode(both)


def test_a_text_that_begins_with_its_own_mark_gets_no_second_one():
    tokenizer = chat_tokenizer("inst", byte_level())
    tokenizer.chat_template = None
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    for text in ("a", "<s>a"):
        assert whole(Record(text=text), tokenizer) == "<s>a</s>"
        assert whole(Record(prompt=text, completion="b"), tokenizer) == "<s>ab</s>"
        assert Record(prompt=text, completion="b").question_and_answer(tokenizer) == ("<s>a", "b")
    assert learned(Record(text="a"), tokenizer) == "a</s>"


def test_data_that_brings_a_template_of_its_own_is_not_put_into_another():
    tokenizer = chat_tokenizer("chatml")
    row = {"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "completion": "Hello.<|im_end|>"}
    with pytest.raises(ValueError, match=r"^row 1: message 1 holds <\|im_start\|>.*--format completion"):
        encode(load_dataset([row])[0], tokenizer)
    [plain] = load_dataset([row], format="completion")
    assert whole(plain, tokenizer) == row["prompt"] + row["completion"]


@pytest.mark.parametrize("template", [CHATML, HEADINGS, None])
@pytest.mark.parametrize("row", [CHAT, PAIR, INSTRUCTION])
def test_the_question_is_what_stands_before_what_is_learned(template, row):
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = template
    [record] = load_dataset([row])
    if template is None and row is CHAT:
        with pytest.raises(ValueError, match="no chat template"):
            record.question_and_answer(tokenizer)
        return
    question, answer = record.question_and_answer(tokenizer)
    assert (
        whole(record, tokenizer).startswith(question + answer) and learned(record, tokenizer) == answer + "<|im_end|>"
    )


def test_a_conversation_that_ends_with_a_question_has_no_answer():
    [record] = load_dataset([{"messages": [*CHAT["messages"], MESSAGE]}])
    with pytest.raises(ValueError, match="row 1: the last message is not the assistant's"):
        record.question_and_answer(chat_tokenizer("chatml"))


def test_every_format_has_a_line_in_the_documentation():
    assert all(f'"{name}"' in load_dataset.__doc__ for name in FORMATS)
