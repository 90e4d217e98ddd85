"""Call an answer and note what it gives. Only ever inside a sealed child."""

import __future__

import ast
import linecache
import math
import traceback

import torch

from . import values
from .masking import Masked

NAME = "<answer>"


class DefinedAnswer:
    """An answer's code, defined. What fails while it is defined is kept, and told when a call fails."""

    def __init__(self, code: str, name: str):
        self.lines = code.split("\n")
        linecache.cache[NAME] = (len(code), None, code.splitlines(keepends=True), NAME)  # for `inspect.getsource`
        # Every notebook has torch; math is there as it is for the workbook's own solutions.
        self.names: dict = {"__name__": "answer", "__builtins__": __builtins__, "torch": torch, "math": math}
        self.failures: list[str] = []
        missing = ast.parse(code).body
        # What one cell takes from the future holds in all that are run after it.
        future = [node for node in missing if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
        features = [getattr(__future__, alias.name, None) for node in future for alias in node.names]
        self.flags = sum({feature.compiler_flag for feature in features if feature is not None})
        for _ in range(3):  # cells need not stand in the order in which they were run
            missing = [node for node in missing if not self._define(node)]
        self.function = self.names.get(name)

    def _define(self, node: ast.stmt) -> bool:
        statement = compile(ast.Module([node], []), NAME, "exec", flags=self.flags, dont_inherit=True)
        try:
            exec(statement, self.names)
        except BaseException as error:
            line = self.lines[node.lineno - 1].strip()[:100]
            self.failures.append(f"`{line}` failed with {type(error).__name__}: {_first_line(error)}")
            return False
        return True

    def reply(self, packed_cases: bytes) -> bytes:
        """What `call` gives, packed; where that fails too, why it does, as an error of the kind "unsendable".

        An answer decides what happens when its results are read: its lists may be of a class of its own.
        """
        try:
            return values.pack(self.call(packed_cases))
        except BaseException as problem:
            error = {"kind": "unsendable", "type": type(problem).__name__}
        return values.pack({"results": [], "error": error, "failures": self.failures[-3:]})

    def call(self, packed_cases: bytes) -> dict:
        """Call with each case until one fails.

        Args:
            packed_cases: a list of tuples of arguments, as `values.pack` makes it.

        Returns:
            results: one a case, up to the failure. error: None, or what stopped it: {"kind" ("not attempted", "masked",
            "changed" its arguments in place, "not callable", "error"), "type", "message", "line"}. failures: of
            statements before.
        """
        results, error = [], None
        # Unpacked twice instead of copied: the answer may keep what it was given, and change it later.
        for arguments, original in zip(values.unpack(packed_cases), values.unpack(packed_cases), strict=True):
            if not callable(self.function):
                error = {"kind": "not callable", "type": type(self.function).__name__}
                break
            try:
                result = self.function(*arguments)
            except BaseException as problem:
                error = self._told(problem)
                break
            if values.pack(arguments) != values.pack(original):
                error = {"kind": "changed"}
                break
            results.append(result)
        return {"results": results, "error": error, "failures": self.failures[-3:]}

    def _told(self, error: BaseException) -> dict:
        kind = "masked" if isinstance(error, Masked) else "error"
        if isinstance(error, NotImplementedError) and not str(error):
            kind = "not attempted"
        line = ""
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename == NAME and 0 < frame.lineno <= len(self.lines):
                line = self.lines[frame.lineno - 1].strip()[:200]
        return {"kind": kind, "type": type(error).__name__, "message": _first_line(error), "line": line}


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:300]
