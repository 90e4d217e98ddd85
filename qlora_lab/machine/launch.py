"""Several processes that work together, started from a notebook.

torchrun starts a *file* as often as one likes and tells each process its rank and where the others are. `together`
writes such a file from a function of a notebook and from what that leans on, starts it, and gives back what the
function returned in each process. `torchrun` alone starts anything, and does not wait for it.
"""

import dis
import inspect
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch

_PLAIN = (bool, int, float, str, type(None))


# glibc keeps a freed tensor of a few MB for the next one. With this set it gives it back, as other systems do, so that
# what a process is seen to hold is what it holds.
_GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}


def torchrun(count: int, *arguments, output: Path, **variables: str) -> subprocess.Popen:
    """Start `count` processes that know of each other, each on one thread.

    Args:
        arguments: as after `torchrun`: a file, or "-m" and a module, and what is for these.
        output: the file for all they say. (A pipe that nobody reads is full one day, and who writes to it waits.)
        variables: of their environment, beside this process's.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    with output.open("w", encoding="utf-8") as file:
        return subprocess.Popen(
            [*command, *map(str, arguments)], stdout=file, stderr=subprocess.STDOUT, env=environment() | variables
        )


def environment() -> dict[str, str]:
    """This process's, with one thread, and with the place this package was imported from."""
    places = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, places))}


def together(count: int, function: Callable, *arguments) -> list[Any]:
    """What `function(*arguments)` returns in each of `count` connected processes on the CPU, in the order of ranks.

    Args:
        function: of a notebook or a file. The functions and plain values beside it that it uses go along.
        arguments: what `torch.save` keeps and `torch.load` reads without running code: tensors, numbers, strings,
            and lists, tuples and dicts of these. What it returns likewise.

    Raises:
        ValueError: the function uses something that cannot go along.
        RuntimeError: a process failed; its output is in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(program(function), encoding="utf-8")
        torch.save(arguments, Path(folder) / "arguments")
        output = Path(folder) / "output"
        if torchrun(count, path, output=output, **_GIVES_BACK).wait():
            said = output.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"{function.__name__} failed in one of {count} processes:\n{said}")
        return [torch.load(Path(folder) / str(number), weights_only=True) for number in range(count)]


def program(function: Callable) -> str:
    """The file that `together` starts: imports, plain values, the functions, and the call."""
    imports, values, sources = {}, {}, {}
    _collect(function, imports, values, sources)
    text = [*sorted(imports.values()), "", *values.values(), "", *reversed(sources.values())]
    return "\n".join(text) + _CALL.format(name=function.__name__)


_CALL = """

if __name__ == "__main__":
    import pathlib
    import torch as _torch
    from qlora_lab.machine import processes as _processes

    _folder = pathlib.Path(__file__).parent
    with _processes.connected("cpu"):
        _returned = {name}(*_torch.load(_folder / "arguments", weights_only=True))
        _torch.save(_returned, _folder / str(_processes.rank()))
"""


def _collect(function: Callable, imports: dict, values: dict, sources: dict) -> None:
    """Put the source of a function, and what it uses, into the three; a name is the key in each."""
    sources[function.__name__] = source = textwrap.dedent(inspect.getsource(function))
    for name in _globals_in(compile(source, "<source>", "exec")):
        if name not in function.__globals__ or name in sources or name.startswith("__"):
            continue  # Python's own, or there already
        found = function.__globals__[name]
        if isinstance(found, ModuleType):
            imports[name] = f"import {found.__name__} as {name}"
        elif isinstance(found, FunctionType) and found.__module__ == function.__module__:
            _collect(found, imports, values, sources)
        elif hasattr(found, "__qualname__") and found.__module__ not in (function.__module__, None):
            imports[name] = f"from {found.__module__} import {found.__qualname__} as {name}"
        elif isinstance(found, _PLAIN) or (isinstance(found, tuple) and all(isinstance(v, _PLAIN) for v in found)):
            values[name] = f"{name} = {found!r}"
        else:
            what = "class" if isinstance(found, type) else type(found).__name__
            raise ValueError(
                f"{function.__name__} uses {name}, a {what}, which cannot go along; pass it, or make it inside"
            )


def _globals_in(code: CodeType) -> Iterator[str]:
    """Names that code takes from around it, nested code included."""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_in(constant)
