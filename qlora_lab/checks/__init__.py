"""Checks for the workbook's exercises: `check("id", function)` says not attempted, right, or what looks wrong.

One module a notebook holds its exercises; `exercise` judges, `differences` describes.
"""

from collections.abc import Callable

from qlora_lab.checks import adapter_counts, low_rank, paged_optimizers, qlora_layer
from qlora_lab.checks.exercise import Exercise, Misconception, Verdict, judge

EXERCISES: dict[str, Exercise] = {
    exercise.id: exercise
    for module in (adapter_counts, low_rank, paged_optimizers, qlora_layer)
    for exercise in module.EXERCISES
}


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
        raise ValueError(f"unknown exercise {exercise!r}; there are {', '.join(EXERCISES)}")
    return judge(EXERCISES[exercise], function, seed)


__all__ = ["EXERCISES", "Exercise", "Misconception", "Verdict", "check", "judge", "verdict"]
