"""`my_qlora`: the reader's right answers, kept as source, one function to a file.

`check` puts an answer here once it is right. What is kept has to work by itself, so the file is written as it would
stand in a package: the modules that the function uses are imported, earlier pieces come from `qlora_lab.mine`, and the
file's function is checked once more before it is kept. An answer that leans on anything else around it stays right, and
is told what it leans on.
"""

import ast
import builtins
import importlib
import inspect
import linecache
import os
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from qlora_lab.machine.files import write_text

FOLDER = "my_qlora"
PLACE = "QLORA_LAB_MINE"  # the environment variable that names another folder
# Where a name is looked for whose object does not say where it comes from, as PyTorch's compiled functions do not
SOURCES = ("torch.special", "torch.nn.functional", "torch.linalg", "torch", "math", "numpy")


class NotKept(ValueError):
    """An answer that does not stand alone. The message is a sentence for the reader."""


def folder() -> Path:
    """Where the reader's pieces lie, or will: `my_qlora` here, in a folder above, or beside the notebooks."""
    if given := os.environ.get(PLACE):
        return Path(given)
    here = Path.cwd()
    for place in (here, here / "notebooks", *here.parents):
        if (place / FOLDER).is_dir():
            return place / FOLDER
    beside = here / "notebooks"
    return (beside if (beside / "00_start_here.ipynb").is_file() else here) / FOLDER


def path_of(name: str) -> Path:
    """The file of the function `name`, whether it is there or not."""
    return folder() / f"{name}.py"


def load(name: str) -> Callable | None:
    """The kept function of that name, or None where there is none.

    Raises:
        ImportError: the file is there and cannot be read as Python, or holds no such function.
    """
    path = path_of(name)
    if not path.is_file():
        return None
    return function_of(path.read_text(encoding="utf-8"), name, str(path))


def function_of(source: str, name: str, path: str) -> Callable:
    """The function `name` of a file's text, in a module of its own."""
    module = ModuleType(f"{FOLDER}.{name}")
    module.__file__ = path
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)  # lines for error messages
    try:
        exec(compile(source, path, "exec"), module.__dict__)
        return vars(module)[name]
    except Exception as error:
        raise ImportError(f"{path}: {type(error).__name__}: {error}; repair the file or remove it") from error


def file_text(function: Callable, name: str, pieces: frozenset[str], heading: str) -> str:
    """The file in which a function can stand alone.

    Args:
        function: the answer.
        name: what it has to be called.
        pieces: names of functions that are exercises: one used here is imported from `qlora_lab.mine`.
        heading: its first line, a docstring.

    Raises:
        NotKept: it is no plain function of that name, or uses what no import brings.
    """
    written = inspect.unwrap(function)  # below a decorator
    if not inspect.isfunction(written):
        raise NotKept(f"it has to be written as `def {name}(…):`")
    try:
        source = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError):
        raise NotKept("its source could not be read") from None
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef) or tree.body[0].name != name:
        raise NotKept(f"it has to be written as `def {name}(…):`")
    if written.__closure__:
        raise NotKept("it is made inside another function")
    imports = sorted(_import_of(used, written.__globals__, pieces - {name}) for used in _outer_names(source, name))
    head = "\n".join(line for line in imports if line)
    return f'"""{heading}"""\n\n' + (f"{head}\n\n\n" if head else "") + source.rstrip() + "\n"


def keep(text: str, name: str) -> Path:
    """Write the file, whole."""
    path = path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return path


def _outer_names(source: str, name: str) -> set[str]:
    """Names that a function takes from around it."""

    def tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
        yield table
        for child in table.get_children():
            yield from tables(child)

    top = symtable.symtable(source, "<answer>", "exec")
    found = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    for table in tables(top):
        if table.get_type() != "module":
            found |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return {each for each in found if each != name and not hasattr(builtins, each)}


def _import_of(name: str, around: dict[str, Any], pieces: frozenset[str]) -> str:
    """The line that brings `name`, or "" where none is needed."""
    if name not in around:
        raise NotKept(f"it uses `{name}`, which is not there")
    value = around[name]
    if isinstance(value, ModuleType):
        if value.__name__.partition(".")[0] == "qlora_lab":
            raise NotKept(f"it uses `{name}` of qlora_lab, which has the finished version of what is asked")
        return f"import {name}" if value.__name__ == name else f"import {value.__name__} as {name}"
    if name in pieces and callable(value):
        return f"from qlora_lab.mine import {name}"
    for source in (getattr(value, "__module__", None), *SOURCES):
        if source in sys.modules and source not in ("__main__", "builtins"):
            if source.partition(".")[0] == "qlora_lab":
                raise NotKept(f"it uses `{name}` of qlora_lab, which has the finished version of what is asked")
            if getattr(importlib.import_module(source), name, None) is value:
                return f"from {source} import {name}"
    raise NotKept(f"it uses `{name}`, which stands outside of it; write that inside")


__all__ = ["FOLDER", "PLACE", "NotKept", "file_text", "folder", "function_of", "keep", "load", "path_of"]
