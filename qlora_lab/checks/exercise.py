"""What an exercise is, and how an answer to it is judged.

An exercise is a function to write. Its specification is another function, the plain one; both get the same inputs,
drawn at random in many shapes, and their results are compared. Where they differ, the answer is compared with *wrong*
functions as well, each the specification with one typical misconception in it: if it always gives what one of these
gives, that is what it looks like. Else `resemblances` looks for what the results have to do with the right ones, and
`differences` describes what can be seen.
"""

import copy
import functools
import inspect
import itertools
import math
import re
import textwrap
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from qlora_lab.checks.differences import describe_arguments, describe_difference, is_same
from qlora_lab.checks.resemblances import changed_result, evidence, other_arguments, other_parts
from qlora_lab.checks.time_limit import TimeLimit, TimeUp

CASES = 8
SECONDS = 20  # for all calls of a check together
ENOUGH = 30  # bits of results, above which it is no chance that another function gives them all


def function_name(exercise: str) -> str:
    """The name of the function that an exercise asks for, from the exercise's id."""
    return exercise.replace("-", "_")


@dataclass(frozen=True)
class Misconception:
    """A typical wrong answer.

    Attributes:
        meaning: what it looks like and what to think of, in full sentences.
        hint: number of the hint to open, if there is one for it.
        edit: (old, new): the solution gives the same wrong results when the one `old` in its source is `new`, or stops
            with the same error where the answer does.
        function: does so, where no edit of one place does.
    """

    meaning: str
    hint: int | None
    edit: tuple[str, str] | None = None
    function: Callable | None = None

    @property
    def message(self) -> str:
        return self.meaning if self.hint is None else f"{self.meaning} Open hint {self.hint}."


def edits(text: str) -> tuple[Misconception, ...]:
    """Misconceptions as paragraphs: an edit of the solution, the hint's number (or -), and what it means.

        x @ a.T @ b.T → x @ b.T @ a.T
        1: A and B are multiplied in the wrong order.

    Several edits above one meaning are as many misconceptions.

    Raises:
        ValueError: a paragraph of another form.
    """
    found = []
    for paragraph in textwrap.dedent(text).strip().split("\n\n"):
        changes, hint, meaning = re.fullmatch(r"((?:.*→.*\n)+)(\d|-): ((?:.|\n)+)", paragraph).groups()
        meaning = " ".join(meaning.split())
        for change in changes.splitlines():
            old, new = (part.strip() for part in change.split("→"))
            found.append(Misconception(meaning, None if hint == "-" else int(hint), (old, new)))
    return tuple(found)


def edited_line(solution: Callable, old: str, new: str) -> str:
    """The line of `solution` in which `old` stands, with `new` instead."""
    (line,) = (line.strip() for line in inspect.getsource(solution).splitlines() if old in line)
    return line.replace(old, new)


@functools.cache
def edited(solution: Callable, *changes: str) -> Callable:
    """`solution` as it would be with each new in the place of the old before it in its source.

    Args:
        changes: old, new, and so on. New ones may use math, re and torch.

    Raises:
        ValueError: an old one does not stand there exactly once.
    """
    source = textwrap.dedent(inspect.getsource(solution))
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        if (count := source.count(old)) != 1:
            raise ValueError(f"{old!r} stands {count} times in {solution.__name__}; an edit is of one place")
        source = source.replace(old, new)
    names, defined = {"math": math, "re": re, "torch": torch} | solution.__globals__, {}
    exec(compile(source, f"<{solution.__name__}, edited>", "exec"), names, defined)
    return defined[solution.__name__]


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
        any_float: float64 is as good as float32, since the task names no dtype.
        parts: where the result is a sum: its parts by name, from the arguments, so that one can tell which is missing
            or counted too often.
        call: where an answer does not map plain values to plain values (it changes a model, moves pages of a file, is
            given functions): calls it, from (the function, the arguments drawn), and returns what is compared. Such an
            exercise cannot go through a class's sandbox, so it gives no points there.
        situation: words for what was drawn, where `call` makes other arguments of it.
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
    any_float: bool = False
    parts: Callable[..., dict[str, Any]] | None = None
    call: Callable[[Callable, tuple], Any] | None = None
    situation: Callable[[tuple], str] | None = None

    @property
    def graded(self) -> bool:
        """Whether a class's answers to it can be judged in the sandbox."""
        return self.call is None

    def result_of(self, function: Callable, arguments: tuple) -> Any:
        """What an answer gives for these arguments, which are its own to change."""
        return function(*arguments) if self.call is None else self.call(function, arguments)

    def called_with(self, arguments: tuple) -> str:
        """Short words for what an answer was called with."""
        return f"called with {describe_arguments(arguments)}" if self.situation is None else self.situation(arguments)

    def is_right(self, result: Any, expected: Any) -> bool:
        """Whether what is compared of a result is what is expected."""
        return is_same(result, expected, self.tolerance, self.any_float)

    def compared(self, arguments: tuple, result: Any) -> Any:
        """What of a result is compared."""
        return result if self.view is None else self.view(arguments, result)

    def with_misconception(self, misconception: Misconception) -> Callable:
        """The function that someone with this misconception writes."""
        return misconception.function or edited(self.solution, *misconception.edit)


@dataclass(frozen=True)
class Failure:
    """What stopped an answer: the arguments of that call, the error's type by its name, and its first line."""

    arguments: tuple
    kind: str
    line: str

    @classmethod
    def of(cls, error: Exception, arguments: tuple) -> "Failure":
        return cls(arguments, type(error).__name__, next(iter(str(error).splitlines()), ""))


@dataclass(frozen=True)
class Verdict:
    """status: "not attempted", "right" or "wrong". message: for the reader, in full sentences."""

    exercise: str
    status: str
    message: str

    def __str__(self) -> str:
        return f"{self.exercise}: {self.status}. {self.message}".rstrip()


def draw_integers(generator: torch.Generator, low: int, high: int, count: int) -> list[int]:
    """`count` whole numbers from `low` to below `high`."""
    return torch.randint(low, high, (count,), generator=generator).tolist()


def draw_normal(generator: torch.Generator, *shapes: tuple) -> list[torch.Tensor]:
    """A float32 tensor of normally distributed numbers for each shape."""
    return [torch.randn(shape, generator=generator) for shape in shapes]


def judge(exercise: Exercise, function: Callable, seed: int = 0) -> Verdict:
    """Compare a function with the exercise's specification on random inputs."""
    if not callable(function):
        return Verdict(exercise.id, "wrong", f"Give the function itself to check, not {type(function).__name__}.")
    cases, error, failure, untouched = [], None, None, []
    clock = TimeLimit(SECONDS)
    for number in range(exercise.cases):
        arguments = exercise.draw(torch.Generator().manual_seed(1000 * seed + number), number)
        given = _copied(arguments)
        try:
            result = clock.call(exercise.result_of, function, given)
        except TimeUp:
            error = (
                f"It did not come to an end within {SECONDS} seconds ({exercise.called_with(arguments)}). "
                "Is there a loop without an end?"
            )
            break
        except NotImplementedError as problem:
            if str(problem):  # PyTorch's own
                error = _tell_error(exercise, problem, arguments, function)
                break
            untouched.append(arguments)
            continue
        except Exception as problem:
            error = _tell_error(exercise, problem, arguments, function)
            failure = Failure.of(problem, arguments)
            break
        if exercise.call is None and not is_same(given, arguments, 0.0):
            names = inspect.signature(exercise.solution).parameters
            changed = (name for name, a, b in zip(names, given, arguments, strict=True) if not is_same(a, b, 0.0))
            which = ", ".join(f"`{name}`" for name in changed)
            error = f"Your function changes its arguments in place ({which}); compute with copies of them."
            break
        expected = exercise.result_of(exercise.solution, _copied(arguments))
        cases.append((arguments, exercise.compared(arguments, result), exercise.compared(arguments, expected)))
    if untouched and not cases and error is None:
        return Verdict(exercise.id, "not attempted", "Replace `raise NotImplementedError` by your answer.")
    if untouched and error is None:
        error = f"One branch still says `raise NotImplementedError` ({exercise.called_with(untouched[0])})."
    return diagnose(exercise, cases, error, failure)


def diagnose(exercise: Exercise, cases: list[tuple], error: str | None, failure: Failure | None = None) -> Verdict:
    """The verdict on results.

    Args:
        cases: (arguments, result, expected) of each case, the last two as `Exercise.compared` makes them.
        error: what stopped the function after these cases, if anything did.
        failure: that as an error of Python's, if it was one.
    """
    off = [case for case in cases if not exercise.is_right(case[1], case[2])]
    if not off and error is None:
        return Verdict(exercise.id, "right", f"Compared on {len(cases)} inputs of different shapes.")
    if not off:
        meant = None if failure is None else _stops_alike(exercise, cases, failure)
        return Verdict(exercise.id, "wrong", error if meant is None else f"{meant} {error}")
    for misconception in exercise.misconceptions:
        if _gives(exercise, exercise.with_misconception(misconception), cases):
            return Verdict(exercise.id, "wrong", misconception.message)
    if (both := _two_at_once(exercise, cases)) is not None:
        return Verdict(exercise.id, "wrong", both)
    resembles, told = _resembles(exercise, cases), _describe(exercise, cases, *off[0])
    return Verdict(exercise.id, "wrong", told if resembles is None else f"{resembles} {told}")


def _describe(exercise: Exercise, cases: list[tuple], arguments: tuple, result: Any, expected: Any) -> str:
    """In what a result differs from the right one."""
    told = exercise.describe(arguments, result, expected) if exercise.describe is not None else None
    if told is not None:
        return told
    none_is_right = any(case[2] is None for case in cases)
    words = describe_difference(result, expected, exercise.tolerance, ask_for_return=not none_is_right)
    if exercise.situation is not None:
        return f"With {exercise.situation(arguments)}: {words}"
    return f"With {describe_arguments(arguments)}: {words}"


def _resembles(exercise: Exercise, cases: list[tuple]) -> str | None:
    """A sentence on what the results have to do with the right ones, as far as that can be said of any exercise."""
    if exercise.view is not None or exercise.call is not None:
        return None
    names = list(inspect.signature(exercise.solution).parameters)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told = None if exercise.parts is None else other_parts(names, exercise.parts, cases, exercise.tolerance)
            told = told or changed_result(names, cases, exercise.tolerance)
            tells = sum(evidence(result) for _, result, _ in cases) >= ENOUGH
            for words, change in other_arguments(names, cases[0][0]) if told is None and tells else ():
                if _gives(exercise, lambda *given, change=change: exercise.solution(*change(given)), cases):
                    return f"It would be right with {words}."
            return told or changed_result(names, cases, exercise.tolerance, all_values=False)
    except Exception:  # a result unlike any number, tensor or list
        return None


def _two_at_once(exercise: Exercise, cases: list[tuple]) -> str | None:
    """What is told of an answer with two misconceptions at once, each an edit of another place."""
    if exercise.view is not None or sum(evidence(result) for _, result, _ in cases) < ENOUGH:
        return None
    for one, other in itertools.combinations((each for each in exercise.misconceptions if each.edit is not None), 2):
        if one.meaning != other.meaning and one.edit[0] not in other.edit[0] and other.edit[0] not in one.edit[0]:
            try:
                wrong = edited(exercise.solution, *one.edit, *other.edit)
            except (ValueError, SyntaxError):  # both change the same place
                continue
            if _gives(exercise, wrong, cases):
                return f"Two things at once. {one.message} And: {other.message}"
    return None


def _gives(exercise: Exercise, wrong: Callable, cases: list[tuple]) -> bool:
    """Whether a wrong function leads to all of these results; where it leads to an error, it does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return all(
                is_same(
                    result,
                    exercise.compared(arguments, exercise.result_of(wrong, _copied(arguments))),
                    exercise.tolerance or 1e-6,
                    exercise.any_float,
                )
                for arguments, result, _ in cases
            )
    except Exception:
        return False


def _stops_alike(exercise: Exercise, cases: list[tuple], failure: Failure) -> str | None:
    """What is told of the misconception that is right as far as the answer was, and stops with the same error."""
    for misconception in exercise.misconceptions:
        wrong = exercise.with_misconception(misconception)
        if not _gives(exercise, wrong, cases):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exercise.result_of(wrong, _copied(failure.arguments))
        except Exception as problem:
            found = Failure.of(problem, failure.arguments)
            if (found.kind, found.line) == (failure.kind, failure.line):
                return misconception.message
    return None


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, tuple | list):
        return type(value)(_copied(item) for item in value)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return copy.deepcopy(value) if isinstance(value, set | torch.nn.Module) else value


def _tell_error(exercise: Exercise, error: Exception, arguments: tuple, function: Callable) -> str:
    """The error, the line of the answer it came from, and the shapes it was called with."""
    place = ""
    code = getattr(function, "__code__", None)
    for frame in traceback.extract_tb(error.__traceback__):
        if code is not None and frame.filename == code.co_filename and frame.line:
            place = f" in `{frame.line.strip()}`"
    told = Failure.of(error, arguments)
    return f"{told.kind}{place}: {told.line} ({exercise.called_with(arguments)})"
