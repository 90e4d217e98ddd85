"""The house: every file has its line in the tree, no two things share a name, nobody looks into another room's drawers.

That a room imports only rooms below it is checked by `lint-imports`, with the layers in pyproject.toml.
"""

import ast
import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

import qlora_lab

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "qlora_lab"
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
TREES = {"README.md": (ROOT / "README.md").read_text(), "qlora_lab": qlora_lab.__doc__}
HOUR = [
    "quantization/datatypes.py",
    "quantization/blockwise.py",
    "quantization/tensor.py",
    "lora.py",
    "qlora.py",
    "paging/adamw.py",
    "loss.py",
    "training/loop.py",
]


def tree(text: str) -> str:
    """The drawing of the package, up to the next empty line."""
    return text[text.index("qlora_lab/\n") :].split("\n\n")[0].split("\n```")[0].rstrip()


def room(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else path.stem


@pytest.mark.parametrize("place", TREES)
def test_every_file_has_a_line_in_the_tree(place):
    found, folders = [], []
    for line in tree(TREES[place]).splitlines()[1:]:
        indent, name = re.match(r"( *)(\S+)", line).groups()
        depth = len(indent) // 4 - 1
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            found.append("".join([*folders, name]))
        assert len(line.split()) > 2, f"what is {name} for?"
    assert sorted(found) == [str(path.as_posix()) for path in FILES]


def test_both_trees_are_one():
    assert tree(TREES["README.md"]) == tree(TREES["qlora_lab"])


@pytest.mark.parametrize("place", ["README.md", "CONTRIBUTING.md", "qlora_lab/__init__.py"])
def test_the_hour_is_told(place):
    text = (ROOT / place).read_text()
    hour = re.findall(r"`([\w/]+\.py)`", text[text.index("The hour") :])[: len(HOUR)]
    assert hour == HOUR and all((PACKAGE / path).exists() for path in hour)


def test_no_file_or_room_shares_its_name():
    names = Counter([*(path.stem for path in FILES if path.stem != "__main__"), *ROOMS])
    assert [name for name, times in names.items() if times > 1] == []


def test_no_public_class_or_function_shares_its_name():
    """But for commands and exercises' solutions, which are named after what they do, and kernels: the same, sooner."""
    names = Counter(show=-1)  # plots.show a figure, widgets.show a widget
    for path in FILES:
        if path.name in ("commands.py", "classroom_commands.py", "kernels.py") or path.stem.startswith("notebook_"):
            continue
        for node in ast.parse((PACKAGE / path).read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                names[node.name] += 1
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize("name", ROOMS)
def test_a_face_hands_on_nothing_that_is_named_like_a_file_of_its_room(name):
    face = importlib.import_module(f"qlora_lab.{name}")
    files = {path.stem for path in FILES if path.parts[0] == name}
    assert files.isdisjoint(getattr(face, "__all__", [])) and face.__doc__


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nobody_imports_another_rooms_underscored_names(path):
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qlora_lab."):
            own = node.module.split(".")[1] == room(path)
            assert own or not [alias.name for alias in node.names if alias.name.startswith("_")], node.module
