"""Tidy executed notebooks before they are committed: python tools/clean.py notebooks/*.ipynb

Numbers the code cells from 1, drops what belongs to one machine or one run (execution times, widget state, stderr), and
writes each notebook whole. Outputs stay: nbval compares them. How long all cells took together is kept, with the device
and the date, so that a test can compare it with the minutes that the notebook's first cell promises.
"""

import platform
import sys
from datetime import date, datetime
from pathlib import Path

import nbformat

from qlora_lab.machine.environment import default_device, device_name
from qlora_lab.machine.files import write_text

# What JupyterLab writes into a notebook that it opens with this Python's kernel. Where it stands there already, opening
# one changes nothing in the file; with another version of Python only that line.
OPENED = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": platform.python_version(),
    },
}


def seconds(cell) -> float | None:
    """How long a cell took when it was executed; None if it was not executed just now."""
    times = cell.metadata.get("execution", {})
    if "shell.execute_reply" not in times:
        return None
    start, end = (
        datetime.fromisoformat(times[name].replace("Z", "+00:00"))
        for name in ("iopub.execute_input", "shell.execute_reply")
    )
    return (end - start).total_seconds()


def measure(notebook) -> dict | None:
    """Seconds of all cells together, the cells of more than a minute by number, device and date."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    times = [seconds(cell) for cell in cells]
    if None in times:
        return None
    return {
        "seconds": round(sum(times)),
        "long cells": [number for number, time in enumerate(times, 1) if time > 60],
        "device": device_name(default_device()),
        "date": date.today().isoformat(),
    }


def joined(outputs: list) -> list:
    """Printed text that arrived in pieces as one piece; a page that shows notebooks draws a box around each."""
    found = []
    for output in outputs:
        if found and output.output_type == "stream" and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def clean(notebook) -> None:
    measured = measure(notebook) or notebook.metadata.get("measured", {})
    notebook.metadata = nbformat.from_dict(OPENED | {"measured": measured})
    count = 0
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = joined([o for o in cell.outputs if o.get("name") != "stderr"])
            for output in cell.outputs:
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # its state is not here
                if "execution_count" in output:
                    output.execution_count = count


if __name__ == "__main__":
    for name in sys.argv[1:]:
        book = nbformat.read(name, as_version=4)
        clean(book)
        nbformat.validate(book)
        write_text(Path(name), nbformat.writes(book) + "\n")
