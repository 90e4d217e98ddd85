"""Answers that students give. `wrong("exercise", says="words of the diagnosis")` marks each."""

from collections.abc import Callable

from qlora_lab.checks.exercise import edited


def wrong(exercise: str, says: str):
    def mark(function):
        function.exercise, function.says = exercise, says
        return function

    return mark


def edit(exercise: str, right: Callable, *changes: str, says: str) -> Callable:
    """A wrong answer that is a right one with a few words changed: old, new, and so on, as in `edited`.

    For exercises whose answers stay in this process: the sandbox is given source, and of an edited function there is
    none. It is named after what is said of it.
    """
    function = edited(right, *changes)
    function.__name__ = "_".join(says.split())
    return wrong(exercise, says)(function)
