"""The exercises as the notebooks have them, wrong answers to them (`wrong_answers/`), and more (`unseen_answers/`)."""

import importlib
import re
from pathlib import Path

import nbformat
import torch

ROOT = Path(__file__).resolve().parent
FOLDER = ROOT.parent / "notebooks"
MODULES = [path.stem for path in sorted((ROOT / "wrong_answers").glob("*.py")) if path.stem != "__init__"]
WRONG = [
    (function.exercise, function)
    for name in MODULES
    for function in vars(importlib.import_module(f"wrong_answers.{name}")).values()
    if hasattr(function, "exercise")
]
SETS = ("first", "second", "third", "fourth", "fifth")  # of `unseen_answers`
UNSEEN = [
    (function.exercise, function)
    for name in SETS
    for function in vars(importlib.import_module(f"unseen_answers.{name}")).values()
    if hasattr(function, "exercise")
]
RIGHT = [(exercise, function) for exercise, function in UNSEEN if function.is_right]
UNSEEN_WRONG = [(exercise, function) for exercise, function in UNSEEN if not function.is_right]


def cells_of_exercises():
    found = {}
    for path in sorted(FOLDER.glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if "exercise" in cell.metadata:
                found.setdefault(cell.metadata["exercise"], []).append((path.stem, cell))
    return found


CELLS = cells_of_exercises()


def run(source: str) -> dict:
    names = {"torch": torch, "math": importlib.import_module("math")}
    exec(compile(source, "<cell>", "exec"), names)
    return names


def function_in(names: dict, exercise: str):
    return names[exercise.replace("-", "_")]


def solution_of(exercise: str) -> str:
    text = CELLS[exercise][3][1].source
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1]
