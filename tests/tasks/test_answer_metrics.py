"""Metrics: the same text, the same JSON, or what a function of one's own says; mistakes in it are told by name."""

import pytest

from qlora_lab.tasks.answer_metrics import OwnQuestion, metric_of, question_of
from qlora_lab.tasks.function_calls import Example
from qlora_lab.tasks.own_data import load_dataset


def verdict(metric: str, answer: str, expected: str) -> str:
    return metric_of(metric)(answer, OwnQuestion("?", expected, "?", "line 1"))


@pytest.mark.parametrize(
    ("metric", "answer", "expected", "said"),
    [
        ("exact", " yes\n", "yes", "correct"),
        ("exact", "Yes", "yes", "another text"),
        ("json", '{"b": 1.0, "a": [2]}', '{"a": [2], "b": 1}', "correct"),
        ("json", '{"a": true}', '{"a": 1}', "another value"),
        ("json", '{"a": ', '{"a": 1}', "not JSON"),
        ("json", "[" * 100_000, '{"a": 1}', "not JSON"),
    ],
)
def test_verdicts(metric, answer, expected, said):
    assert verdict(metric, answer, expected) == said


def test_a_function_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_metric.py").write_text(
        "def same_length(answer, expected): return len(answer) == len(expected)\n"
        "def half(answer, expected): return 0.5\n"
        "def fails(answer, expected): return answer[99]\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert verdict("own_metric:same_length", "abc", "xyz") == "correct"
    assert verdict("own_metric:same_length", "ab", "xyz") == "wrong"
    with pytest.raises(ValueError, match=r"returned 0.5; it should say True or False"):
        verdict("own_metric:half", "a", "b")
    with pytest.raises(ValueError, match=r"failed on the answer to line 1 \(IndexError"):
        verdict("own_metric:fails", "a", "b")
    for name, words in [
        ("own_metric:none", "there is no none in own_metric"),
        ("own_metric:number", "number is no function"),
        ("no_such_module_here:f", "cannot be imported"),
        ("f1", "unknown metric 'f1'; choose one of exact, json, or give module:function"),
        (":f", "unknown metric"),
    ]:
        with pytest.raises(ValueError, match=words):
            metric_of(name)


def test_an_answer_of_the_data_that_is_no_json_is_named():
    with pytest.raises(ValueError, match=r"line 1: the answer is no JSON"):
        verdict("json", "{}", "yes")


def test_questions_of_records():
    from tiny import tiny_tokenizer

    rows = [
        {"prompt": "one", "completion": "two"},
        {"text": "all"},
        {"instruction": "add", "input": "1", "output": "2"},
    ]
    found = [question_of(load_dataset([row])[0], tiny_tokenizer()) for row in rows]
    assert (found[0].prompt, found[0].expected, found[0].command) == ("one", "two", "one") and found[1] is None
    assert found[2].command == "add\n1" and found[2].prompt.endswith("### Response:\n") and found[2].expected == "2"
    call = question_of(Example("timer 5", ({"name": "t", "arguments": {}},)), tiny_tokenizer())
    assert call.expected == '[{"name":"t","arguments":{}}]' and call.prompt.endswith("assistant\n")


def test_a_conversation_that_does_not_end_with_an_answer_is_no_question():
    from tiny import tiny_tokenizer

    messages = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "thanks"))]
    (record,) = load_dataset([{"messages": messages}])
    assert question_of(record, tiny_tokenizer()) is None
