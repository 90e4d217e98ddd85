"""Answers that were written before their checks: how many are told what they look like, nobody could arrange.

`first` was written before the misconceptions of the exercises were read, `second` before the checks were repaired for
the first, `third` before looking at how the checks of that time tell, and `fourth` by someone who had read them, of
what they did not know. Each was run after that, and the checks were repaired for it. When they were first run, of the
third 34 of 47 were told truly, and of the fourth 18 of 40; `fifth` says its own count.

`@wrong("exercise", says=...)` marks an answer that is told what it looks like: `says` are words of that, and whoever
set them has read that all of it is true of the answer. Without them it is only told to be wrong, and in what the
results differ. `@right("exercise")` marks one that is right, if in an unusual way.
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
