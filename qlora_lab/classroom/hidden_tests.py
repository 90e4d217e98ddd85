"""The hidden tests: an exercise's check again, on many more inputs, drawn with a seed that only the teacher has.

First come the notebook's own inputs. A mistake there is told in full, as `check` tells it to the student. Only an
answer that is right on these is given the hidden inputs. It may act on what it sees there, and what is said of it
reaches its author: so one of a few sentences is said, which are the same for all inputs: the misconception that it
looks like, or one of those below.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qlora_lab.checks import EVER_ASKED
from qlora_lab.checks.differences import describe_arguments
from qlora_lab.checks.exercise import Exercise, Failure, Verdict, diagnose, function_name
from qlora_lab.classroom.inside import values
from qlora_lab.classroom.sandbox import Sandbox, Stopped
from qlora_lab.machine.environment import versions

# Code that a verdict depends on, below the package. What exercises take from elsewhere in it shows in the results that
# they expect.
DECIDING = ("checks/*.py", "classroom/inside/*.py", "classroom/hidden_tests.py")
CHANGED = "Your function changes its arguments in place; compute with copies of them."
MOST_VALUES = 50_000  # in a reply; the largest that an honest answer gives, with lists for tensors, has half as many
# All that is ever said of hidden inputs, besides the exercise's misconceptions. Each sentence more is something that an
# answer could tell its author of them: no numbers, no names, and nothing of what was returned but these kinds.
OTHERWISE = "Right on the notebook's inputs, but on others "
VALUE, KIND = OTHERWISE + "it returns another value.", OTHERWISE + "it returns another type of result."
SHAPE, NUMBERS = OTHERWISE + "the result has another shape or dtype.", OTHERWISE + "the result has other numbers."
NOTHING = OTHERWISE + "it stops with an error, changes its arguments, or returns what cannot be compared."
SLOW = OTHERWISE + "it takes too long."
ROUNDS = 5  # of the notebook's kinds of inputs, each with other numbers


@functools.cache
def fingerprint() -> str:
    """What a verdict depends on besides the answer, the inputs and the limits: a verdict that was kept holds as long.

    Changes with the package's version, its code that decides (`DECIDING`), Python, torch and numpy.
    """
    found = [versions()[name] for name in ("qlora-lab", "python", "torch", "numpy")]
    return hashlib.sha256(repr([*found, _code(Path(__file__).resolve().parents[1])]).encode()).hexdigest()


def _code(package: Path) -> str:
    """A hash of the names and contents of the files that decide."""
    content = hashlib.sha256()
    for path in sorted(path for pattern in DECIDING for path in package.glob(pattern)):
        text = path.read_bytes()
        content.update(f"{path.relative_to(package).as_posix()} {len(text)} ".encode() + text)
    return content.hexdigest()


@dataclass(frozen=True)
class Case:
    """One call: arguments and what of the right result is compared."""

    arguments: tuple
    expected: Any


class HiddenTests:
    """The inputs of one exercise: the notebook's, and the hidden ones of one course.

    Args:
        exercise: what is asked.
        seed: the teacher's, any text.
    """

    def __init__(self, exercise: Exercise, seed: str):
        self.exercise = exercise
        self.shown = [self._case(torch.Generator().manual_seed(n), n, exercise.draw) for n in range(exercise.cases)]
        self.hidden = [
            self._case(self._generator(seed, turn, n), n, exercise.draw)
            for turn in range(ROUNDS)
            for n in range(exercise.cases)
        ]
        if exercise.draw_more is not None:
            count = ROUNDS * exercise.cases
            self.hidden += [self._case(self._generator(seed, ROUNDS, n), n, exercise.draw_more) for n in range(count)]

    def _generator(self, seed: str, turn: int, number: int) -> torch.Generator:
        text = json.dumps([seed, self.exercise.id, turn, number])
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))

    def _case(self, generator: torch.Generator, number: int, draw: Callable) -> Case:
        arguments = draw(generator, number)
        copy = values.unpack(values.pack(arguments))  # a specification may keep what it is given, too
        return Case(arguments, self.exercise.compared(arguments, self.exercise.solution(*copy)))

    @functools.cached_property
    def digest(self) -> str:
        """Changes when anything does that a verdict depends on, but for the answer and the limits.

        The exercise's tolerance and messages stand in the code that `fingerprint` covers, and once more here: a caller
        may have made an exercise of its own.
        """
        words = [fingerprint(), self.exercise.id, str(self.exercise.tolerance)]
        words += [misconception.message for misconception in self.exercise.misconceptions]
        content = hashlib.sha256(json.dumps(words).encode())
        for case in (*self.shown, *self.hidden):
            content.update(values.pack([case.arguments, case.expected]))
        return content.hexdigest()

    @functools.cached_property
    def _packed(self) -> tuple[bytes, bytes]:
        shown, hidden = ([case.arguments for case in cases] for cases in (self.shown, self.hidden))
        return values.pack(shown), values.pack(hidden)

    def judge(self, code: str, sandbox: Sandbox) -> Verdict:
        """Run an answer in the sandbox and judge what it gives.

        Args:
            code: defines the function, as `inside.answers.find_answers` found it.

        Raises:
            Stopped: it gave no result. Its message says why, for the student.
        """
        hidden = False
        try:
            with sandbox.answer(code, function_name(self.exercise.id)) as child:
                verdict = self._judge_shown(Reply.read(child.ask(self._packed[0])))
                if verdict.status == "right":
                    hidden = True
                    verdict = self._judge_hidden(Reply.read(child.ask(self._packed[1])))
        except Stopped as stopped:
            if hidden:
                raise Stopped(SLOW if stopped.slow else NOTHING, stopped.slow) from None
            raise
        except ValueError as error:  # the answer wrote this, not the sandbox
            large = f"Its result is too large: {error}." if isinstance(error, values.TooMany) else ""
            verdict = self._wrong(NOTHING if hidden else large or "What it gave could not be read.")
        return verdict

    def judge_function(self, function: Callable) -> Verdict:
        """As `judge`, in this process: for the teacher's own solutions only."""
        results = []
        for case in (*self.shown, *self.hidden):
            arguments = values.unpack(values.pack(case.arguments))
            results.append(function(*arguments))
            if values.pack(arguments) != values.pack(case.arguments):
                return self._wrong(CHANGED)
        verdict = self._judge_shown(Reply(results[: len(self.shown)]))
        return verdict if verdict.status != "right" else self._judge_hidden(Reply(results[len(self.shown) :]))

    def _wrong(self, message: str) -> Verdict:
        return Verdict(self.exercise.id, "wrong", message)

    def _compared(self, cases: list[Case], results: list) -> list[tuple]:
        return [
            (case.arguments, self.exercise.compared(case.arguments, result), case.expected)
            for case, result in zip(cases, results, strict=False)
        ]

    def _judge_shown(self, reply: "Reply") -> Verdict:
        name = function_name(self.exercise.id)
        if reply.kind == "not attempted":
            return Verdict(self.exercise.id, "not attempted", "Replace `raise NotImplementedError` by your answer.")
        if reply.kind == "masked":
            return self._wrong(reply.message)
        text = failure = None
        if reply.kind == "not callable":
            text = f"`{name}` is no function ({reply.type})."
        elif reply.kind == "changed":
            text = CHANGED
        elif reply.kind == "unsendable":
            text = f"What it returned cannot be sent to be compared: reading it stops with {reply.type}."
        elif reply.kind == "error":
            place = f" in `{reply.line}`" if reply.line else ""
            arguments = self.shown[min(len(reply.results), len(self.shown) - 1)].arguments
            text = f"{reply.type}{place}: {reply.message} (called with {describe_arguments(arguments)})"
            failure = Failure(arguments, reply.type, reply.message)
        elif len(reply.results) != len(self.shown):
            return self._wrong("What it gave could not be read.")
        if text is not None and reply.failure:
            text += f" Before that, {reply.failure}"
        try:
            verdict = diagnose(self.exercise, self._compared(self.shown, reply.results), text, failure)
        except Exception as problem:  # a result unlike any other: the comparison itself fails on it
            return self._wrong(f"What it returned cannot be compared with the right result ({type(problem).__name__}).")
        return Verdict(verdict.exercise, verdict.status, _short(verdict.message, 1000))

    def _judge_hidden(self, reply: "Reply") -> Verdict:
        """Nothing that the answer wrote goes into these messages, no count, and no name: it has seen the inputs."""
        try:
            cases = self._compared(self.hidden, reply.results)
            off = [case for case in cases if not self.exercise.is_right(case[1], case[2])]
            if off:
                found = diagnose(self.exercise, cases, None).message
                known = any(found == misconception.message for misconception in self.exercise.misconceptions)
                return self._wrong(found if known else _manner(off[0][1], off[0][2]))
        except Exception:
            return self._wrong(NOTHING)
        if reply.kind is None and len(cases) == len(self.hidden):
            return Verdict(self.exercise.id, "right", f"Compared on {len(cases)} more inputs of different shapes.")
        return self._wrong(NOTHING)


@dataclass(frozen=True)
class Reply:
    """What came back for a list of cases, as `inside.running` tells it. kind: None where nothing stopped it."""

    results: list
    kind: str | None = None
    type: str = ""
    message: str = ""
    line: str = ""
    failure: str = ""

    @staticmethod
    def read(data: bytes) -> "Reply":
        """From the bytes that a child sent, whoever wrote them.

        Raises:
            ValueError: these are not a reply. Of these, `TooMany` where they hold too many values.
        """
        given = values.unpack(data, MOST_VALUES)
        if not isinstance(given, dict) or not isinstance(given.get("results"), list):
            raise ValueError("no reply")
        error, failures = given.get("error"), given.get("failures")
        failure = failures[0] if isinstance(failures, list) and failures else ""
        if error is None:
            return Reply(given["results"], failure=_short(failure))
        if not isinstance(error, dict) or not isinstance(error.get("kind"), str):
            raise ValueError("no reply")
        words = {name: _short(error.get(name, "")) for name in ("type", "message", "line")}
        return Reply(given["results"], error["kind"], **words, failure=_short(failure))


def _short(text: Any, limit: int = 300) -> str:
    """A text that can be stored and shown, whatever it was: cut, and without halves of surrogates."""
    if not isinstance(text, str):
        return ""
    return text[:limit].replace("\0", " ").encode("utf-8", "replace").decode()


def _manner(result: Any, expected: Any) -> str:
    """In what way two results differ, without a number from either."""
    if not isinstance(expected, torch.Tensor):
        return VALUE if isinstance(result, type(expected)) else KIND
    if not isinstance(result, torch.Tensor):
        return KIND
    return NUMBERS if result.shape == expected.shape and result.dtype == expected.dtype else SHAPE


def hidden_test(exercise: str, function: Callable) -> None:
    """The hidden tests on a solution of the teacher's own, in this process, as the cell in `source/` calls it.

    Raises:
        AssertionError: the answer is not right.
        RuntimeError: called by nbgrader's autograder. Students' code is never run so.
        FileNotFoundError: not within a course.
    """
    from qlora_lab.classroom.course import Course

    if os.environ.get("NBGRADER_EXECUTION") == "autograde":
        raise RuntimeError("students' answers are graded in a sandbox: use the course's own nbgrader_config.py")
    verdict = HiddenTests(EVER_ASKED[exercise], Course.find(Path.cwd()).seed).judge_function(function)
    assert verdict.status == "right", verdict
