"""The checks: a stub is not attempted, the notebook's solution is right, wrong answers are told what they look like.

Wrong answers are written in `wrong_answers/`, in modules as the checks', one function each, named after the exercise.
"""

import dataclasses
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from exercises import CELLS, RIGHT, SETS, UNSEEN_WRONG, WRONG, function_in, run, solution_of

from qlora_lab import checks
from qlora_lab.checks import EVER_ASKED, EXERCISES, verdict
from qlora_lab.checks.differences import describe_difference, is_same
from qlora_lab.checks.exercise import Exercise, Misconception, judge
from qlora_lab.checks.notebook_04 import pages_of
from qlora_lab.quantization import set_compile


@pytest.fixture(autouse=True)
def _nothing_is_compiled():
    """An answer may call `quantize`, whose kernels take their seconds to compile, and a check's clock would run."""
    before = set_compile("never")
    yield
    set_compile(before)


@pytest.mark.parametrize("exercise", sorted(EVER_ASKED.keys() - EXERCISES.keys()))
def test_what_an_earlier_notebook_asked_is_judged_as_it_was(exercise):
    earlier = EVER_ASKED[exercise]
    assert verdict(exercise, earlier.solution).status == "right"
    for misconception in earlier.misconceptions:
        assert misconception.meaning in verdict(exercise, earlier.with_misconception(misconception)).message


@pytest.mark.parametrize("exercise", EXERCISES)
class TestEach:
    def test_it_has_its_four_cells_in_a_row(self, exercise):
        (notebook, task), (_, stub), (_, check), (_, answer) = CELLS[exercise]
        assert [cell.cell_type for cell in (task, stub, check, answer)] == ["markdown", "code", "code", "markdown"]
        assert re.search(r"\*\*Difficulty\*\* \d of 5 · \*\*\d+ minutes?\*\*", task.source), notebook
        assert stub.source.rstrip().endswith("raise NotImplementedError") and '"""' in stub.source
        name = exercise.replace("-", "_")
        assert check.source.strip() == f'{name} = check("{exercise}", {name})'
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
            assert f"{found.message} ".startswith(f"{misconception.message} ")

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


@pytest.mark.parametrize(("exercise", "answer"), RIGHT, ids=[f"{name}-{f.__name__}" for name, f in RIGHT])
def test_a_right_answer_is_right_however_it_is_written(exercise, answer):
    """Other implementations, numpy's numbers, tensors for numbers, float32."""
    for seed in range(3):
        found = verdict(exercise, answer, seed)
        assert found.status == "right", found


@pytest.mark.parametrize(("exercise", "answer"), UNSEEN_WRONG, ids=[f"{name}-{f.__name__}" for name, f in UNSEEN_WRONG])
def test_a_wrong_answer_that_nobody_foresaw_is_wrong(exercise, answer):
    found = verdict(exercise, answer)
    assert found.status == "wrong" and (answer.says or "") in found.message, found


@pytest.mark.parametrize("name", SETS)
def test_four_of_five_are_told_truly(name):
    """`says` is set where someone has read that what is told is true, and the test before this one holds it."""
    answers = [answer for _, answer in UNSEEN_WRONG if answer.__module__ == f"unseen_answers.{name}"]
    assert sum(answer.says is not None for answer in answers) >= 0.8 * len(answers) > 0


def test_a_border_that_is_off_by_a_few_is_seen():
    assert verdict("break-even-rank", lambda n_in, n_out: n_in * n_out // (n_in + n_out + 1)).status == "wrong"


def test_two_misconceptions_at_once_are_told_both():
    def no_alpha_over_r_and_w_not_transposed(x, w, a, b, alpha, use_rslora):
        return x @ w + alpha * (x @ a.T @ b.T)

    found = verdict("lora-forward", no_alpha_over_r_and_w_not_transposed).message
    assert found.startswith("Two things at once. ")
    assert "the factor is alpha / r" in found and "so x needs its transpose" in found


def _of_numpy(value):
    """Numbers as numpy's, within tuples and lists as well."""
    if isinstance(value, bool | int | float):
        return np.array(value)[()]
    return type(value)(map(_of_numpy, value)) if isinstance(value, tuple | list) else value


def _of_torch(value):
    """Numbers as tensors, of float64 for floats, within tuples and lists as well."""
    if isinstance(value, bool | int | float):
        return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    return type(value)(map(_of_torch, value)) if isinstance(value, tuple | list) else value


def _of_single_precision(value):
    if isinstance(value, float):
        return np.float32(value)
    return type(value)(map(_of_single_precision, value)) if isinstance(value, tuple | list) else value


@pytest.mark.parametrize("kind", [_of_numpy, _of_torch, _of_single_precision])
@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_number_is_right_in_any_type(exercise, kind):
    assert verdict(exercise, lambda *arguments: kind(EXERCISES[exercise].solution(*arguments))).status == "right"


def _contiguous_no_more(value):
    if isinstance(value, torch.Tensor) and value.ndim:
        return torch.stack((value, value), -1)[..., 0]
    return type(value)(map(_contiguous_no_more, value)) if isinstance(value, tuple | list) else value


@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_view_is_right(exercise):
    answer = EXERCISES[exercise].solution
    assert verdict(exercise, lambda *arguments: _contiguous_no_more(answer(*arguments))).status == "right"


NAMES_A_DTYPE = ("block-absmax", "normal-float", "signed-absmax", "dequantize-packed", "least-error-scale",
                 "double-quantize", "decode-scales", "flipped-blocks")  # fmt: skip


@pytest.mark.parametrize("exercise", EXERCISES)
def test_float64_is_wrong_where_the_task_names_float32(exercise):
    def wider(value):
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
            return value.double()
        return type(value)(map(wider, value)) if isinstance(value, tuple | list) else value

    answer = EXERCISES[exercise].solution
    found = verdict(exercise, lambda *arguments: wider(answer(*arguments)))
    if exercise in NAMES_A_DTYPE:
        assert found.status == "wrong" and "dtype is torch.float64 instead of torch.float32" in found.message
        assert "its numbers are right" in found.message
    elif exercise not in ("counterexamples", "merge-adapter", "part-of"):  # a view, dtypes of the arguments
        assert found.status == "right", found


LISTS = ("pages-of", "sweep-order", "paired", "find-targets", "not-dominated", "read-plan")
KINDS = {
    "tuple": tuple,
    "set": set,
    "generator": lambda values: (value for value in values),
    "dict_keys": lambda values: dict.fromkeys(values).keys(),
    "ndarray": lambda values: np.array(values, dtype=object),
    "dict": dict.fromkeys,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exercise", LISTS)
def test_what_is_no_list_is_told_so(exercise, kind):
    """But a tuple is as good."""
    found = verdict(exercise, lambda *arguments: KINDS[kind](EXERCISES[exercise].solution(*arguments)))
    if kind == "tuple":
        assert found.status == "right"
    else:
        assert found.status == "wrong" and f"{kind} where a list" in found.message, found


def test_a_range_is_no_list():
    found = verdict("pages-of", lambda *span: range(*(lambda pages: (pages[0], pages[-1] + 1))(pages_of(*span))))
    assert (
        found.status == "wrong" and "a range where a list of 2 is wanted; the values in it are right" in found.message
    )


def test_one_branch_that_is_not_written_is_not_all_of_it():
    def half(step, pages):
        if step % 2 == 0:
            raise NotImplementedError
        return list(range(pages))

    def of_pytorch(x, w, a, b, s):
        raise NotImplementedError("Could not run 'aten::mm' with arguments from the 'X' backend.")

    found = verdict("sweep-order", half)
    assert found.status == "wrong" and "One branch still says `raise NotImplementedError`" in found.message
    assert verdict("qlora-forward", of_pytorch).status == "wrong"


def test_none_where_it_may_be_right_is_no_missing_return():
    found = verdict("smallest-node", lambda *sizes: None)
    assert found.status == "wrong" and "Is there a `return`" not in found.message
    assert "Is there a `return`?" in verdict("evict", lambda *_: None).message


def test_every_exercise_of_a_notebook_is_known():
    assert set(CELLS) == set(EXERCISES)


def test_what_is_no_function_or_no_exercise():
    assert verdict("evict", 3).status == "wrong"
    for typed, meant in (("evct", "'evict'"), ("weights_in_gb", "'weights-in-gb'"), ("lora_foward", "'lora-forward'")):
        with pytest.raises(ValueError, match=f"unknown exercise '{typed}'; did you mean {meant}"):
            checks.check(typed, print)
    with pytest.raises(ValueError, match=r"^unknown exercise 'zzz'; ids stand in the notebooks' check cells$"):
        checks.check("zzz", print)


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


def test_an_error_is_told_as_the_misconception_that_stops_with_it(double):
    in_rows = Misconception("Rows want whole blocks.", 2, function=lambda x: 2 * x.view(-1, 4))
    exercise = dataclasses.replace(double, misconceptions=(in_rows,))
    told = judge(exercise, lambda x: x.reshape(-1, 4) * 2).message
    assert told.startswith("Rows want whole blocks. Open hint 2. RuntimeError") and "input of size 6" in told
    assert judge(exercise, lambda x: x.view(-1, 5)).message.startswith("RuntimeError")  # another error
    late = judge(exercise, lambda x: 3 * x if x[0, 0] == 1 else x.view(-1, 4))  # what came before it was wrong
    assert "Rows want" not in late.message


def test_what_is_changed_in_place_is_named():
    def step(p, gradient, m, v, *rest):
        m *= 0.9
        v *= 0.9
        return p, m, v

    assert "changes its arguments in place (`m`, `v`)" in verdict("adamw-step", step).message


def test_a_call_is_told_in_the_words_of_its_task():
    for exercise, words in (
        ("read-page", "page 0 of a file of 7, 7 bytes each"),
        ("paged-sweep", "7 pages, 3 slots, [4, 5, 6] in RAM before"),
        ("replace-module", "called with the path 'up_proj', in a model with linear layers at up_proj, down_proj"),
        ("train", "2 values, 2 steps and 2 parts in each"),
    ):
        assert words in verdict(exercise, lambda *_: 1 / 0).message


def test_nan_is_nan_and_what_is_infinite_is_equal():
    nan, infinity = float("nan"), float("inf")
    one = torch.tensor([nan, infinity, 1.0])
    assert is_same(one, one.clone(), 1e-6)
    for other in ([nan, infinity, 2.0], [1.0, infinity, 1.0], [nan, -infinity, 1.0], [nan, 5.0, 1.0]):
        assert not is_same(torch.tensor(other), one, 1e-6) and not is_same(one, torch.tensor(other), 1e-6)


def test_numbers_lists_and_words():
    assert "a Fraction; a float is wanted; its value is right." in describe_difference(Fraction(1, 2), 0.5, 1e-6)
    assert "dtype is torch.int64 instead of torch.uint8; its numbers are right." in describe_difference(
        torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.uint8), 0
    )
    assert "value 1 of 2 differs: [2, 1] instead of [1, 2]." in describe_difference([2, 1], [1, 2], 0)
    assert "`reverse`" in describe_difference(None, [1], 0)
    assert is_same(0.1 + 0.2, 0.3, 0) and not is_same(0.3001, 0.3, 1e-6) and not is_same(True, 1, 0)
    assert is_same(torch.tensor(3), 3, 0) and not is_same((1, 2), (1, 2, 3), 0)
    many = torch.zeros((2,) * 20)  # printed in full, these are a million numbers
    assert describe_difference({"a": [many]}, {"a": 1}, 0) == (
        f"it returned {{'a': [float32 of shape {(2,) * 20}]}} instead of {{'a': 1}}."
    )
    endless: dict = {}
    endless["a"] = endless
    assert "{'a': {...}}" in describe_difference(endless, {}, 0)
    assert "12000 instead of 6000, 2 times" in describe_difference(12000, 6000, 0)
    assert "12 instead of 10, 2 too many" in describe_difference(12, 10, 0)
    assert "[1, 2] instead of [1, 2, 3]" in describe_difference([1, 2], [1, 2, 3], 0)
    assert "value 2 of 2 differs" in describe_difference((1, 5), (1, 2), 0)
