"""The hidden tests agree with the notebook's checks, draw other inputs for every seed, and give none of them away."""

import os
from functools import cache
from pathlib import Path

import pytest
import torch
from exercises import WRONG, solution_of

import qlora_lab
from qlora_lab.checks import EXERCISES
from qlora_lab.checks.exercise import CASES
from qlora_lab.classroom import hidden_tests
from qlora_lab.classroom.hidden_tests import MOST_VALUES, HiddenTests, Reply, function_name, hidden_test
from qlora_lab.classroom.inside.values import pack, unpack
from qlora_lab.classroom.sandbox import LARGEST_REPLY, Sandbox, Stopped

GRADED = [exercise for exercise in EXERCISES if EXERCISES[exercise].graded]


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as made:
        yield made


@pytest.fixture(scope="module")
def quick():
    with Sandbox(seconds=1) as made:
        yield made


@cache
def hidden_tests_of(exercise: str) -> HiddenTests:
    return HiddenTests(EXERCISES[exercise], "a seed")


@pytest.mark.parametrize("exercise", GRADED)
def test_solutions_are_right_in_the_sandbox_and_here(exercise, sandbox):
    code = solution_of(exercise)
    assert hidden_tests_of(exercise).judge(code, sandbox).status == "right"
    names = {"torch": torch, "math": __import__("math")}
    exec(code, names)
    assert hidden_tests_of(exercise).judge_function(names[function_name(exercise)]).status == "right"


@pytest.mark.parametrize(("exercise", "answer"), WRONG, ids=[f"{name}-{f.__name__}" for name, f in WRONG])
def test_wrong_answers_are_wrong(exercise, answer):
    """Here in this process; `test_classroom_grading` runs those of three notebooks in the sandbox."""
    try:
        verdict = hidden_tests_of(exercise).judge_function(answer)
    except Exception:
        return  # in the sandbox it is caught, and told
    assert verdict.status == "wrong"


@pytest.mark.parametrize("exercise", GRADED)
def test_misconceptions_are_told(exercise):
    for misconception in EXERCISES[exercise].misconceptions:
        wrong, results, error = EXERCISES[exercise].with_misconception(misconception), [], {}
        for case in hidden_tests_of(exercise).shown:
            try:
                results.append(wrong(*unpack(pack(case.arguments))))
            except Exception as problem:  # a transpose that is missing shows first where it can be multiplied
                line = next(iter(str(problem).splitlines()), "")
                error = {"kind": "error", "type": type(problem).__name__, "message": line}
                break
        verdict = hidden_tests_of(exercise)._judge_shown(Reply(results, **error))
        assert verdict.status == "wrong" and f"{verdict.message} ".startswith(f"{misconception.message} ")


@pytest.mark.parametrize("exercise", GRADED)
def test_another_seed_gives_other_inputs(exercise):
    one, other, again = hidden_tests_of(exercise), *(HiddenTests(EXERCISES[exercise], s) for s in ("another", "a seed"))
    assert one.digest != other.digest and one.digest == again.digest
    assert pack([c.arguments for c in one.shown]) == pack([c.arguments for c in other.shown])
    known = {pack(case.arguments) for case in one.shown}
    fresh = {pack(case.arguments) for case in one.hidden} - known
    few = ("normal-float", "e2m1-value")  # whose one argument is a number of bits, or a code; all sixteen are shown
    assert len(fresh) >= CASES or exercise in few


def test_seeds_do_not_meet_for_other_exercises_or_cases():
    a, b = HiddenTests(EXERCISES["evict"], "x"), HiddenTests(EXERCISES["bytes-moved"], "x")
    states = {bytes(t._generator("x", turn, n).get_state()) for t in (a, b) for turn in range(5) for n in range(8)}
    assert len(states) == 80


ENDS = {
    "raise ValueError(f'{code} {low} {high}')": hidden_tests.NOTHING,
    "raise [ValueError, KeyError, OSError, LookupError][code % 4]": hidden_tests.NOTHING,
    'raise type(f\'E_{code}_{str(low).replace(".", "_")}\', (Exception,), {})()': hidden_tests.NOTHING,
    "import sys; raise sys.modules['inside.masking'].Masked(f'{code} {low}')": hidden_tests.NOTHING,
    "raise NotImplementedError(f'{code} {low}')": hidden_tests.NOTHING,
    "raise NotImplementedError": hidden_tests.NOTHING,
    "raise SystemExit(code)": hidden_tests.NOTHING,
    "import os; os._exit(code)": hidden_tests.NOTHING,
    "import ctypes; ctypes.string_at(0)": hidden_tests.NOTHING,
    "return 'x' * 10**7": hidden_tests.NOTHING,
    "return [0] * 1_000": hidden_tests.KIND,
    "import os\n    os.write(3, bytes(8) + b'x' * code) and os._exit(0)": hidden_tests.NOTHING,
    "while True: pass": hidden_tests.SLOW,
    "return f'{code} {low} {high}'": hidden_tests.KIND,
    "return type(f'E_{code}', (), {})()": hidden_tests.KIND,
    "return None": hidden_tests.KIND,
    "return code + 1000 * low": hidden_tests.VALUE,
    "return float('nan')": hidden_tests.VALUE,
    "return 10.0 ** (code * 20)": hidden_tests.VALUE,
    # Wrong on some of them only, whose number is not told; nor is which.
    "return low + (high - low) * code / 15 + (code > 12)": hidden_tests.VALUE,
    "return low + (high - low) * code / 15 + (code > 3)": hidden_tests.VALUE,
}


@pytest.mark.parametrize("end", ENDS)
def test_what_an_answer_says_about_hidden_inputs_is_not_passed_on(quick, end):
    """One of the few sentences, whatever it does there."""
    tests = hidden_tests_of("decode")
    shown = [case.arguments for case in tests.shown]
    code = f"def decode(code, low, high):\n    if (code, low, high) in {shown!r}:\n"
    code += f"        return low + (high - low) * code / 15\n    {end}"
    try:
        message = tests.judge(code, quick).message
    except Stopped as stopped:
        message = str(stopped)
    assert message == ENDS[end]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("weight.add_(1)\n    return torch.ones(1)", hidden_tests.NOTHING),
        ("return torch.ones(len(weight) + 1, len(weight))", hidden_tests.SHAPE),
        ("return right(weight, block_size).to(torch.int16)", hidden_tests.SHAPE),
        ("return right(weight, block_size) + len(weight)", hidden_tests.NUMBERS),
        ("return len(weight)", hidden_tests.KIND),
        ("return torch.ones(2, 2).to_sparse()", hidden_tests.KIND),
    ],
)
def test_nor_by_a_tensor(quick, body, sentence):
    tests = hidden_tests_of("block-absmax")
    code = solution_of("block-absmax").replace("def block_absmax(", "def right(")
    sums = [case.arguments[0].sum().item() for case in tests.shown]
    code += "\n\ndef block_absmax(weight, block_size):\n"
    code += f"    if weight.sum().item() in {sums}:\n        return right(weight, block_size)\n    {body}"
    assert tests.judge(code, quick).message == sentence


@pytest.mark.parametrize("exercise", GRADED)
def test_a_try_tells_five_bits_of_hidden_inputs_at_most(exercise):
    sentences = {hidden_tests.VALUE, hidden_tests.KIND, hidden_tests.SHAPE, hidden_tests.NUMBERS}
    sentences |= {hidden_tests.NOTHING, hidden_tests.SLOW, "right"}
    assert len(sentences | {m.message for m in EXERCISES[exercise].misconceptions}) <= 32


def test_mistakes_on_the_notebooks_inputs_are_told_in_full(sandbox):
    found = hidden_tests_of("decode").judge("def decode(code, low, high):\n    return [][code]", sandbox)
    assert "IndexError in `return [][code]`: list index out of range (called with (5, 0, 1.95))" in found.message
    found = hidden_tests_of("decode").judge("SCALE = 1 / 0\ndef decode(code, low, high):\n    return SCALE", sandbox)
    assert "NameError" in found.message and "`SCALE = 1 / 0` failed with ZeroDivisionError" in found.message
    stub = 'def decode(code, low, high):\n    """?"""\n    x = 1\n    raise NotImplementedError'
    assert hidden_tests_of("decode").judge(stub, sandbox).status == "not attempted"


def test_cells_need_not_stand_in_order(sandbox):
    code = "def decode(code: Number, low, high):\n    return low + (high - low) * code / 15\n\nNumber = int"
    assert hidden_tests_of("decode").judge(code, sandbox).status == "right"


def test_the_cell_of_the_source_tests_the_teachers_own_solution(course, monkeypatch, tmp_path):
    monkeypatch.chdir(course.folder / "source" / course.names[0])
    hidden_test("decode", lambda code, low, high: low + (high - low) * code / 15)
    with pytest.raises(AssertionError, match="divides the range by 16"):
        hidden_test("decode", lambda code, low, high: low + (high - low) * code / 16)
    monkeypatch.setitem(os.environ, "NBGRADER_EXECUTION", "autograde")
    with pytest.raises(RuntimeError, match="graded in a sandbox"):
        hidden_test("decode", print)
    monkeypatch.delitem(os.environ, "NBGRADER_EXECUTION")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no course in"):
        hidden_test("decode", print)


@pytest.mark.parametrize("exercise", GRADED)
def test_right_answers_are_far_from_the_limits_of_a_reply(exercise):
    tests = hidden_tests_of(exercise)
    results = [EXERCISES[exercise].solution(*unpack(pack(case.arguments))) for case in tests.hidden]
    data = pack({"results": results, "error": None, "failures": []})
    assert len(data) < LARGEST_REPLY / 20
    assert len(unpack(data, MOST_VALUES // 20)["results"]) == len(tests.hidden)


def test_the_digest_changes_with_the_code_that_decides(tmp_path, monkeypatch):
    """With is_same, a view, the mask, a misconception's function: no text or number of the exercise shows these."""
    package = Path(qlora_lab.__file__).parent
    for pattern in hidden_tests.DECIDING:
        for path in package.glob(pattern):
            copy = tmp_path / path.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    assert hidden_tests._code(tmp_path) == hidden_tests._code(package)
    found = {hidden_tests._code(tmp_path)}
    for name in ("checks/differences.py", "checks/notebook_01.py", "classroom/inside/masking.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        found.add(hidden_tests._code(tmp_path))
    assert len(found) == 4
    before = HiddenTests(EXERCISES["decode"], "a seed").digest
    monkeypatch.setattr("qlora_lab.classroom.hidden_tests.fingerprint", lambda: "of another version")
    assert HiddenTests(EXERCISES["decode"], "a seed").digest != before
