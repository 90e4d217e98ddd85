"""Prints where the tests are of what changed since main, for `make quick`; `tests`, all, where nothing did or all may.

A room's tests lie in the folder of its name, or in the file `test_NAME.py` where the room is one file.
"""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def changed_files(root: Path = ROOT) -> list[str]:
    """Committed on this branch, in the working tree, or new; paths from the root. None where there is no git."""
    base = _git(root, "merge-base", "HEAD", "main") or ["HEAD"]
    return _git(root, "diff", "--name-only", *base) + _git(root, "ls-files", "--others", "--exclude-standard")


def places_of_tests(files: list[str], root: Path = ROOT) -> list[str]:
    """The folders and files of tests to run for these files."""
    found = set()
    for file in files:
        top, *rest = Path(file).parts
        if top == "notebooks":
            places = ["tests/notebooks", "tests/checks"]
        elif top == "data":
            places = ["tests/tasks"]
        elif file.endswith(".md") or top in ("tools", "site"):
            places = ["tests/notebooks"]
        elif top in ("qlora_lab", "tests") and rest:
            name = rest[0].removesuffix(".py").removeprefix("test_")
            places = [f"tests/{name}", f"tests/test_{name}.py"]
        else:
            places = []
        # what many share has no tests of its own
        found.update([place for place in places if _has_tests(root / place)] or ["tests"])
    return ["tests"] if "tests" in found or not found else sorted(found)


def _has_tests(place: Path) -> bool:
    return place.is_file() or any(place.glob("test_*.py"))


def _git(root: Path, *arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True).stdout.splitlines()


if __name__ == "__main__":
    print(*places_of_tests(changed_files()))
