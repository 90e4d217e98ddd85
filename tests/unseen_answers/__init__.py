"""Answers that were written before their checks: how many are told what they look like, nobody could arrange.

`first` was written before the misconceptions of the exercises were read, `second` before the checks were repaired for
the first, and run after that. `@wrong("exercise")` marks one that is only told to be wrong; with `says`, words of what
it is told. `@right("exercise")` marks one that is right, if in an unusual way.
"""


def wrong(exercise: str, says: str | None = None):
    def mark(function):
        function.exercise, function.says, function.is_right = exercise, says, False
        return function

    return mark


def right(exercise: str):
    def mark(function):
        function.exercise, function.is_right = exercise, True
        return function

    return mark
