"""What an argument may be, asked in one place, so that the same mistake gets the same answer everywhere.

A count is an `int`, a number a finite `int` or `float`; `True` is neither, though Python has it as an integer.
"""

import sys
from collections.abc import Collection


def is_count(value, least: int = 1) -> bool:
    """Whether it is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value) -> bool:
    """Whether it is a number that is neither infinite nor NaN, nor an integer beyond what a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_count(name: str, value, least: int = 1) -> None:
    """Raise ValueError for what is no whole number of at least `least`."""
    if not is_count(value, least):
        raise ValueError(f"{name} {value!r} is not allowed; give a whole number of at least {least}")


def check_positive(name: str, value) -> None:
    """Raise ValueError for what is no number above 0."""
    if not (is_number(value) and value > 0):
        raise ValueError(f"{name} {value!r} is not allowed; give a positive number")


def check_choice(name: str, value, choices: Collection[str]) -> None:
    """Raise ValueError for what is none of `choices`."""
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
