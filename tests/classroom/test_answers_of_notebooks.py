"""In the notebooks as they are, solved, each answer stands nearly alone: what is taught around it stays behind."""

import ast
from pathlib import Path

import nbformat
import pytest
from exercises import FOLDER, solution_of

from qlora_lab.checks import EXERCISES, function_name
from qlora_lab.classroom.inside.answers import find_answers

NOTEBOOKS = sorted(Path(FOLDER).glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_answer_brings_little_along(path):
    """Code that is not needed is run once for each answer of each student."""
    names = []
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code" and "raise NotImplementedError" in cell.source and "exercise" in cell.metadata:
            cell.source = solution_of(cell.metadata["exercise"])
            names.append(function_name(cell.metadata["exercise"]))
    found = find_answers([cell.source for cell in book.cells if cell.cell_type == "code"], names)
    assert {name: answer["status"] for name, answer in found.items()} == dict.fromkeys(names, "answer")
    for name, answer in found.items():
        assert "then" not in answer and len(answer["code"]) < 2000, name


def test_no_notebook_defines_what_another_asks_for():
    """Of a class's files the last definition counts, whichever notebook it stands in."""
    graded = {function_name(name) for name, exercise in EXERCISES.items() if exercise.graded}
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and "exercise" not in cell.metadata:
                defined = {node.name for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)}
                assert not defined & graded, (path.stem, cell.id)
