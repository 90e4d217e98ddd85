"""Checks for the workbook's exercises: `check("id", function)` says not attempted, right, or what looks wrong.

It gives back the function to go on with. A module a notebook holds its exercises; `exercise` judges, `differences`
describes, `kept` keeps right answers, `verdict_card` shows.
"""

import difflib
import functools
from collections.abc import Callable
from typing import Any

from qlora_lab.checks import (
    kept,
    notebook_00,
    notebook_01,
    notebook_02,
    notebook_03,
    notebook_04,
    notebook_05,
    notebook_06,
    notebook_07,
    notebook_08,
    notebook_09,
    notebook_10,
    verdict_card,
)
from qlora_lab.checks.exercise import Exercise, Misconception, Verdict, function_name, judge

MODULES = (  # in the order of the notebooks
    notebook_00,
    notebook_01,
    notebook_02,
    notebook_03,
    notebook_04,
    notebook_05,
    notebook_06,
    notebook_07,
    notebook_08,
    notebook_09,
    notebook_10,
)
EXERCISES: dict[str, Exercise] = {exercise.id: exercise for module in MODULES for exercise in module.EXERCISES}
EVER_ASKED = EXERCISES | {each.id: each for each in notebook_08.EARLIER}  # courses begun earlier go on grading these
PIECES = frozenset(map(function_name, EXERCISES))  # the functions that a reader writes


def check(exercise: str, function: Callable) -> Callable:
    """Judge an answer, show the verdict, and give back the function to go on with.

    Args:
        exercise: its id, as in the notebook.
        function: the answer.

    Returns:
        the answer if it is right; it is then also kept in `my_qlora`, see `kept`. Else the finished version, so that
        the cells below work all the same. Checked again, the finished version counts as the answer it stands for.

    Raises:
        ValueError: no exercise of that id.
    """
    function = getattr(function, "stands_for", function)
    found = verdict(exercise, function)
    if found.status == "right":
        verdict_card.show_verdict(found, f"The notebook goes on with yours. {_keep(EVER_ASKED[exercise], function)}")
        return function
    verdict_card.show_verdict(found, "The notebook goes on with the finished version until yours is right.")
    return _finished(EVER_ASKED[exercise], function)


def _finished(exercise: Exercise, answer: Any) -> Callable:
    """The finished version, marked as standing for an answer."""

    @functools.wraps(exercise.solution)
    def finished(*arguments, **named):
        return exercise.solution(*arguments, **named)

    finished.stands_for = answer
    return finished


def _keep(exercise: Exercise, function: Callable) -> str:
    """Keep a right answer; a sentence on where, or on why not."""
    name = function_name(exercise.id)
    path = kept.path_of(name)
    try:
        text = kept.file_text(function, name, PIECES, f"{exercise.id}: my answer, kept by `check`.")
        alone = judge(exercise, kept.function_of(text, name, str(path)))
        if alone.status != "right":
            raise kept.NotKept(f"alone in a file it is not right: {alone.message}")
        kept.keep(text, name)
    except (kept.NotKept, ImportError, OSError) as problem:
        return f"Not kept in {kept.FOLDER}: {problem}."
    return f"Kept as {kept.FOLDER}/{path.name}."


def verdict(exercise: str, function: Callable, seed: int = 0) -> Verdict:
    """The verdict on an answer; another seed gives other inputs."""
    function = getattr(function, "stands_for", function)
    if exercise not in EVER_ASKED:
        near = difflib.get_close_matches(str(exercise).replace("_", "-"), EXERCISES, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(map(repr, near))}?" if near else "ids stand in the notebooks' check cells"
        raise ValueError(f"unknown exercise {exercise!r}; {meant}")
    return judge(EVER_ASKED[exercise], function, seed)


__all__ = [
    "EVER_ASKED",
    "EXERCISES",
    "PIECES",
    "Exercise",
    "Misconception",
    "Verdict",
    "check",
    "function_name",
    "judge",
    "verdict",
]
