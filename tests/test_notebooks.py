"""What every notebook must keep to, beside giving the outputs it shows (nbval compares these)."""

import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def book(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def outputs(book):
    return [output for cell in code_cells(book) for output in cell.outputs]


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_it_is_valid_and_executed_in_order(book):
    nbformat.validate(book)
    assert [cell.execution_count for cell in code_cells(book)] == list(range(1, len(code_cells(book)) + 1))


def test_it_holds_no_error_no_stderr_and_no_widget_state(book):
    assert not [o for o in outputs(book) if o.output_type == "error" or o.get("name") == "stderr"]
    assert "widgets" not in book.metadata  # GitHub refuses to show a notebook with widget state


def test_it_names_no_machine(book):
    text = nbformat.writes(book)
    text = re.sub(r'"image/png": "[^"]*"', "", text)
    found = re.findall(r"(?:/home/|/Users/|/root/|/tmp/|[A-Z]:\\\\Users)[^\s\"']*", text)
    assert not found


def test_figures_have_alternative_texts(book):
    for output in outputs(book):
        if "image/png" in output.get("data", {}):
            alt = output.metadata.get("image/png", {}).get("alt", "")
            assert len(alt) > 60 and re.search(r"\d", alt), alt


def test_most_cells_are_compared(book):
    """A cell whose output is not stable says so; these are the exception."""
    cells = [cell for cell in code_cells(book) if cell.outputs]
    ignored = [cell for cell in cells if "NBVAL_IGNORE_OUTPUT" in cell.source]
    assert len(ignored) <= len(cells) / 2


def test_it_begins_with_a_title_and_a_claim_and_says_its_limits(book):
    first = book.cells[0].source
    assert first.startswith("# ") and "**Claim.**" in first and "**What you will do**" in first and "**Time.**" in first
    headings = [line for cell in book.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    assert any(line.startswith("## What this does not show") for line in headings)
    assert any(line.startswith("## References") for line in headings)


def test_it_is_small_enough_to_be_shown(book):
    assert len(nbformat.writes(book)) < 2_000_000
