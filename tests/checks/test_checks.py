"""The checks: a stub is not attempted, the notebook's solution is right, wrong answers are told what they look like.

Wrong answers are written in `wrong_answers/`, in modules as the checks', one function each, named after the exercise.
"""

import re

import pytest
import torch
from exercises import CELLS, WRONG, function_in, run, solution_of

from qlora_lab import checks
from qlora_lab.checks import EXERCISES, verdict
from qlora_lab.checks.differences import describe_difference, is_same
from qlora_lab.checks.exercise import Exercise, judge


@pytest.mark.parametrize("exercise", EXERCISES)
class TestEach:
    def test_it_has_its_four_cells_in_a_row(self, exercise):
        (notebook, task), (_, stub), (_, check), (_, answer) = CELLS[exercise]
        assert [cell.cell_type for cell in (task, stub, check, answer)] == ["markdown", "code", "code", "markdown"]
        assert re.search(r"\*\*Difficulty\*\* \d of 5 · \*\*\d+ minutes?\*\*", task.source), notebook
        assert stub.source.rstrip().endswith("raise NotImplementedError") and '"""' in stub.source
        assert check.source.strip() == f'check("{exercise}", {exercise.replace("-", "_")})'
        assert "solution" in answer.metadata.get("tags", []) and answer.source.count("<details>") >= 2

    def test_the_stub_is_not_attempted(self, exercise):
        assert verdict(exercise, function_in(run(CELLS[exercise][1][1].source), exercise)).status == "not attempted"

    def test_the_solution_is_right(self, exercise):
        for seed in range(5):
            found = verdict(exercise, function_in(run(solution_of(exercise)), exercise), seed)
            assert found.status == "right", found

    def test_misconceptions_are_told_apart(self, exercise):
        """Each is told, and is not taken for one that stands before it (two may say the same in other words)."""
        for misconception in EXERCISES[exercise].misconceptions:
            found = verdict(exercise, EXERCISES[exercise].with_misconception(misconception))
            assert found.status == "wrong"
            assert found.message == misconception.message

    def test_its_edits_are_of_one_place_and_their_hints_exist(self, exercise):
        hints = {int(number) for number in re.findall(r"<summary>Hint (\d)", CELLS[exercise][3][1].source)}
        for misconception in EXERCISES[exercise].misconceptions:
            assert callable(EXERCISES[exercise].with_misconception(misconception))
            assert misconception.hint is None or misconception.hint in hints, misconception.message

    def test_it_has_three_or_more_wrong_answers(self, exercise):
        assert sum(name == exercise for name, _ in WRONG) >= 3


@pytest.mark.parametrize(("exercise", "answer"), WRONG, ids=[f"{name}-{f.__name__}" for name, f in WRONG])
def test_a_wrong_answer_is_told_what_it_looks_like(exercise, answer):
    for seed in range(3):
        found = verdict(exercise, answer, seed)
        assert found.status == "wrong" and answer.says in found.message, found


def test_every_exercise_of_a_notebook_is_known():
    assert set(CELLS) == set(EXERCISES)


def test_what_is_no_function_or_no_exercise():
    assert verdict("evict", 3).status == "wrong"
    with pytest.raises(ValueError, match="unknown exercise 'evct'; there are"):
        checks.check("evct", print)


@pytest.fixture
def double() -> Exercise:
    return Exercise(
        "double", lambda _, number: (torch.arange(1.0, 7.0).view(2, 3) + number,), lambda x: 2 * x, (), 1e-6
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: None, "returned None. Is there"),
        (lambda x: 1, "a tensor of shape"),
        (lambda x: (2 * x).t(), "exactly the transpose"),
        (lambda x: 6 * x, "3 times what it should be"),
        (lambda x: 2 * x + 5, r"off by \+5"),
        (lambda x: (2 * x).flip(1), "in another order"),
        (lambda x: x / 0, "NaN or an infinity"),
        (lambda x: torch.where(x == 2, 0, 2 * x), r"1 of 6 elements differ, the first at \[0, 1\]: 0 instead of 4"),
        (lambda x: x.mul_(2), "changes its arguments"),
        (lambda x: x @ x, "RuntimeError"),
        (lambda x: (2 * x).long(), "dtype is torch.int64"),
    ],
)
def test_a_wrong_answer_nobody_foresaw_gets_something_to_go_on(double, answer, words):
    found = judge(double, answer)
    assert found.status == "wrong" and re.search(words, found.message), found


def test_numbers_lists_and_words():
    assert is_same(0.1 + 0.2, 0.3, 0) and not is_same(0.3001, 0.3, 1e-6) and not is_same(True, 1, 0)
    assert is_same(torch.tensor(3), 3, 0) and not is_same((1, 2), (1, 2, 3), 0)
    assert "12 instead of 6, 2 times" in describe_difference(12, 6, 0)
    assert "[1, 2] instead of [1, 2, 3]" in describe_difference([1, 2], [1, 2, 3], 0)
    assert "value 2 of 2 differs" in describe_difference((1, 5), (1, 2), 0)
