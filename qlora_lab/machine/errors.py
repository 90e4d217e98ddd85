"""Errors that a person can do something about."""


class UserFacingError(Exception):
    """The message says what is wrong and what would help, so the command line shows it in one line, untraced.

    A class derives from it beside the built-in one that it is: `class ModelUnavailable(UserFacingError, RuntimeError)`.
    """
