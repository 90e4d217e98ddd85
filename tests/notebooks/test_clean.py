"""Notebooks in the form that `make notebooks` leaves, which is the one that JupyterLab leaves when it opens one."""

import copy
import importlib.util
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
spec = importlib.util.spec_from_file_location("clean", ROOT / "tools" / "clean.py")
clean = importlib.util.module_from_spec(spec)
spec.loader.exec_module(clean)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cleaning_again_changes_nothing(path):
    """But for the version of Python, which is that of whoever executed it."""
    book = nbformat.read(path, as_version=4)
    version = book.metadata.language_info.get("version")
    assert version and version.startswith("3.")
    clean.clean(book)
    book.metadata.language_info.version = version
    assert path.read_text(encoding="utf-8") == nbformat.writes(book) + "\n"


def test_what_belongs_to_one_run_is_dropped():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "Figure: a."}
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="one\n"),
        nbformat.v4.new_output("stream", name="stdout", text="two\n"),
        nbformat.v4.new_output("stream", name="stderr", text="a warning\n"),
        nbformat.v4.new_output("display_data", view),
        nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=17),
    ]
    metadata = {"execution": {"iopub.execute_input": "2026-01-01T00:00:00Z"}, "tags": ["kept"]}
    cell = nbformat.v4.new_code_cell("1", outputs=outputs, execution_count=17, metadata=metadata)
    book = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}, "measured": {"seconds": 3}})
    clean.clean(book)
    assert [output.output_type for output in cell.outputs] == ["stream", "display_data", "execute_result"]
    assert cell.outputs[0].text == "one\ntwo\n" and cell.outputs[1].data == {"text/plain": "Figure: a."}
    assert cell.execution_count == cell.outputs[2].execution_count == 1 and cell.metadata == {"tags": ["kept"]}
    assert book.metadata == clean.OPENED | {"measured": {"seconds": 3}}
    before = copy.deepcopy(book)
    clean.clean(book)
    assert book == before
