"""What an exercise is, and how an answer to it is judged.

An exercise is a function to write. Its specification is another function, the plain one; both get the same inputs,
drawn at random in many shapes, and their results are compared. Where they differ, the answer is compared with *wrong*
functions as well, each written after a typical misconception: if it always gives what one of these gives, that is what
it looks like. Else `differences` describes what can be seen.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from qlora_lab.checks.differences import describe_arguments, describe_difference, is_same

CASES = 8


@dataclass(frozen=True)
class Misconception:
    """A typical wrong answer. message: what it looks like, what to think of. answer: gives the same wrong results."""

    message: str
    answer: Callable


@dataclass(frozen=True)
class Exercise:
    """A function to write.

    Attributes:
        id: as in the notebook's cells.
        draw: makes the arguments of a case from (a torch.Generator, the number of the case); cases grow with it.
        solution: the specification.
        misconceptions: what wrong answers are compared with, in this order.
        tolerance: largest difference allowed, relative to the largest number of the result; 0 for exact.
        view: where many answers are right: makes what is compared from the arguments and a result (say, whether a
            counter-example is one). None: the results themselves.
        draw_more: further inputs for a class's hidden tests, where `draw` goes through a table that its seed hardly
            changes.
        describe: what is said of a wrong answer that nobody foresaw, made from (arguments, result, expected) by an
            exercise that knows more of them than `differences` does. It gives None where that is to speak.
        cases: how many inputs; more than usual where there are more ways to be wrong than that.
    """

    id: str
    draw: Callable[[torch.Generator, int], tuple]
    solution: Callable
    misconceptions: tuple[Misconception, ...] = ()
    tolerance: float = 0.0
    view: Callable[[tuple, Any], Any] | None = None
    draw_more: Callable[[torch.Generator, int], tuple] | None = None
    describe: Callable[[tuple, Any, Any], str | None] | None = None
    cases: int = CASES

    def compared(self, arguments: tuple, result: Any) -> Any:
        """What of a result is compared."""
        return result if self.view is None else self.view(arguments, result)


@dataclass(frozen=True)
class Verdict:
    """status: "not attempted", "right" or "wrong". message: for the reader, in full sentences."""

    exercise: str
    status: str
    message: str

    def __str__(self) -> str:
        return f"{self.exercise}: {self.status}. {self.message}".rstrip()


def judge(exercise: Exercise, function: Callable, seed: int = 0) -> Verdict:
    """Compare a function with the exercise's specification on random inputs."""
    if not callable(function):
        return Verdict(exercise.id, "wrong", f"Give the function itself to check, not {type(function).__name__}.")
    cases, error = [], None
    for number in range(exercise.cases):
        arguments = exercise.draw(torch.Generator().manual_seed(1000 * seed + number), number)
        given = _copied(arguments)
        try:
            result = function(*given)
        except NotImplementedError:
            return Verdict(exercise.id, "not attempted", "Replace `raise NotImplementedError` by your answer.")
        except Exception as problem:
            error = _tell_error(problem, arguments, function)
            break
        if not is_same(given, arguments, 0.0):
            error = "Your function changes its arguments in place; compute with copies of them."
            break
        expected = exercise.solution(*_copied(arguments))
        cases.append((arguments, exercise.compared(arguments, result), exercise.compared(arguments, expected)))
    return diagnose(exercise, cases, error)


def diagnose(exercise: Exercise, cases: list[tuple], error: str | None) -> Verdict:
    """The verdict on results.

    Args:
        cases: (arguments, result, expected) of each case, the last two as `Exercise.compared` makes them.
        error: what stopped the function after these cases, if anything did.
    """
    off = [case for case in cases if not is_same(case[1], case[2], exercise.tolerance)]
    if not off and error is None:
        return Verdict(exercise.id, "right", f"Compared on {len(cases)} inputs of different shapes.")
    if not off:
        return Verdict(exercise.id, "wrong", error)
    tolerance = exercise.tolerance or 1e-6
    for misconception in exercise.misconceptions:
        wrong = [exercise.compared(arguments, misconception.answer(*_copied(arguments))) for arguments, _, _ in cases]
        if all(is_same(result, w, tolerance) for (_, result, _), w in zip(cases, wrong, strict=True)):
            return Verdict(exercise.id, "wrong", misconception.message)
    arguments, result, expected = off[0]
    told = exercise.describe(arguments, result, expected) if exercise.describe is not None else None
    if told is None:
        told = f"With {describe_arguments(arguments)}: {describe_difference(result, expected, exercise.tolerance)}"
    return Verdict(exercise.id, "wrong", told)


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, tuple | list):
        return type(value)(_copied(item) for item in value)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return set(value) if isinstance(value, set) else value


def _tell_error(error: Exception, arguments: tuple, function: Callable) -> str:
    """The error, the line of the answer it came from, and the shapes it was called with."""
    place = ""
    code = getattr(function, "__code__", None)
    for frame in traceback.extract_tb(error.__traceback__):
        if code is not None and frame.filename == code.co_filename and frame.line:
            place = f" in `{frame.line.strip()}`"
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}{place}: {first} (called with {describe_arguments(arguments)})"
