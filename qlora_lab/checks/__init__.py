"""Checks for the workbook's exercises: `check("id", function)` says not attempted, right, or what looks wrong.

A module a notebook holds its exercises; `exercise` judges, `differences` describes.
"""

import difflib
from collections.abc import Callable

from qlora_lab.checks import (
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
)
from qlora_lab.checks.exercise import Exercise, Misconception, Verdict, judge

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
)
EXERCISES: dict[str, Exercise] = {exercise.id: exercise for module in MODULES for exercise in module.EXERCISES}


def check(exercise: str, function: Callable) -> None:
    """Judge an answer and print the verdict.

    Args:
        exercise: its id, as in the notebook.
        function: the answer.

    Raises:
        ValueError: no exercise of that id.
    """
    print(verdict(exercise, function))


def verdict(exercise: str, function: Callable, seed: int = 0) -> Verdict:
    """As `check`, returned instead of printed; another seed gives other inputs."""
    if exercise not in EXERCISES:
        near = difflib.get_close_matches(str(exercise).replace("_", "-"), EXERCISES, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(map(repr, near))}?" if near else "ids stand in the notebooks' check cells"
        raise ValueError(f"unknown exercise {exercise!r}; {meant}")
    return judge(EXERCISES[exercise], function, seed)


__all__ = ["EXERCISES", "Exercise", "Misconception", "Verdict", "check", "judge", "verdict"]
