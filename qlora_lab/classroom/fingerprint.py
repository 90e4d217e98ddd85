"""What a verdict depends on besides the answer, the inputs and the limits: the code that judges, and what it stands on.

A verdict that was kept holds as long as none of it changes.
"""

import functools
import hashlib
import platform
from pathlib import Path

import numpy
import torch

import qlora_lab

# Below the package. What exercises take from elsewhere in it shows in the results that they expect.
DECIDING = ("checks/*.py", "classroom/inside/*.py", "classroom/hidden_tests.py")


@functools.cache
def fingerprint() -> str:
    """Changes with the package's version, its code that decides (`DECIDING`), Python, torch and numpy."""
    versions = [qlora_lab.__version__, platform.python_version(), torch.__version__, numpy.__version__]
    return hashlib.sha256(repr([*versions, _code(Path(qlora_lab.__file__).parent)]).encode()).hexdigest()


def _code(package: Path) -> str:
    """A hash of the files' names and contents."""
    content = hashlib.sha256()
    for path in sorted(path for pattern in DECIDING for path in package.glob(pattern)):
        text = path.read_bytes()
        content.update(f"{path.relative_to(package).as_posix()} {len(text)} ".encode() + text)
    return content.hexdigest()
