"""What every notebook must keep to, beside giving the outputs it shows (nbval compares these)."""

import re
from pathlib import Path

import nbformat
import pytest

# Where each claim of the chapter that the workbook grew from is computed, in cells tagged with its number.
CLAIMS = {
    "C1": ("05", "08"),  # 65B: full fine-tuning above 780 GB, QLoRA under 48 GB
    "C2": ("01", "02"),  # a code means nothing without its scale; 4.5 and 4.127 bits a weight
    "C3": ("01",),  # NF4 and the normal distribution
    "C4": ("03",),  # 1024 x 1024 at rank 8
    "C5": ("03",),  # W0 + BA, with its factor and B = 0
    "C6": ("03",),  # the theorem on the number of parameters
    "C7": ("03",),  # the table of ranks, and real models
    "C8": ("07",),  # ranks too small and too large
    "C9": ("04",),  # what paged optimizers move, and when
    "C10": ("05", "06"),  # the four steps
    "C11": ("02",),  # W' = s Q
    "C12": ("05", "07"),  # memory, quality, speed
    "C13": ("07",),  # limits
    "C14": ("03",),  # figure: LoRA beside a frozen weight
    "C15": ("05",),  # figure: the three methods side by side
    "C16": ("00", "05"),  # what the Q stands for
}
NUMBERS = {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
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
    ignored = [
        cell
        for cell in cells
        if "NBVAL_IGNORE_OUTPUT" in cell.source or "nbval-ignore-output" in cell.metadata.get("tags", [])
    ]
    assert len(ignored) <= len(cells) / 2


def test_it_begins_with_a_title_and_a_claim_and_says_its_limits(book):
    first = book.cells[0].source
    assert first.startswith("# ") and "**Claim.**" in first and "**What you will do**" in first and "**Time.**" in first
    headings = [line for cell in book.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    assert any(line.startswith("## What this does not show") for line in headings)
    assert any(line.startswith("## References") for line in headings)


def test_no_answer_stands_whole_in_what_is_taught(book):
    """Single lines may; an exercise is not worth its name if all of its solution is in the cells before it."""
    taught = "".join(c.source for c in book.cells if "solution" not in c.metadata.get("tags", [])).split()
    taught = "".join(taught)
    for cell in book.cells:
        if "solution" in cell.metadata.get("tags", []):
            (code,) = re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
            lines = ["".join(line.split()) for line in code.splitlines()[1:]]
            assert any(line not in taught for line in lines), cell.metadata["exercise"]


def test_its_cells_take_the_minutes_it_promises(book):
    """Within a factor of two of what its last execution took (`make notebooks` measures it)."""
    first = book.cells[0].source
    assert re.search(r"\*\*Time\.\*\* About \d+ minutes to read(?: and \d+ minutes of exercises)?; ", first)
    promise = re.search(r"the cells run for (about|under) (\w+) minutes? on two CPU cores", first)
    minutes = NUMBERS.get(promise[2]) or int(promise[2])
    measured = book.metadata["measured"]
    assert measured["seconds"] > 0 and measured["device"] and measured["date"]
    if promise[1] == "under":
        assert measured["seconds"] <= 60 * minutes
    else:
        assert 30 * minutes <= measured["seconds"] <= 120 * minutes


def test_cells_of_more_than_a_minute_say_so_beforehand(book):
    for number in book.metadata["measured"]["long cells"]:
        place = book.cells.index(code_cells(book)[number - 1])
        before = next(cell for cell in reversed(book.cells[:place]) if cell.cell_type == "markdown")
        assert "minute" in before.source, f"cell {number}"


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_is_computed_where_it_belongs(claim):
    for path in NOTEBOOKS:
        if path.stem[:2] in CLAIMS[claim]:
            cells = code_cells(nbformat.read(path, as_version=4))
            tagged = [cell for cell in cells if claim in cell.metadata.get("tags", [])]
            assert tagged, f"no cell of {path.stem} carries the tag {claim}"


def test_tags_are_known(book):
    tags = {tag for cell in book.cells for tag in cell.metadata.get("tags", [])}
    assert tags <= {*CLAIMS, "solution", "bootstrap", "nbval-ignore-output"}


def test_links_lead_somewhere(book):
    for cell in book.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)\s]+)\)", cell.source):
                if target.startswith("#"):
                    continue  # Jupyter makes an anchor of each heading in its own way
                assert target.startswith("https://") or (FOLDER / target.partition("#")[0]).exists(), target


def test_readme_maps_every_notebook():
    text = (FOLDER.parent / "README.md").read_text()
    for path in NOTEBOOKS:
        assert f"(notebooks/{path.name})" in text


def test_it_is_small_enough_to_be_shown(book):
    assert len(nbformat.writes(book)) < 2_000_000
