"""Answers that students give. `wrong("exercise", says="words of the diagnosis")` marks each."""


def wrong(exercise: str, says: str):
    def mark(function):
        function.exercise, function.says = exercise, says
        return function

    return mark
