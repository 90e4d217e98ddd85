"""Tidy executed notebooks before they are committed: python notebooks/clean.py notebooks/*.ipynb

Numbers the code cells from 1, drops what belongs to one machine or one run (execution times, widget state, stderr), and
writes each notebook whole. Outputs stay: nbval compares them.
"""

import sys
from pathlib import Path

import nbformat

from qlora_lab.files import write_text


def clean(notebook) -> None:
    notebook.metadata.pop("widgets", None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    count = 0
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # its state is not here
                if "execution_count" in output:
                    output.execution_count = count


for name in sys.argv[1:]:
    book = nbformat.read(name, as_version=4)
    clean(book)
    nbformat.validate(book)
    write_text(Path(name), nbformat.writes(book) + "\n")
