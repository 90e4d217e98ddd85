"""The part of the teacher's guide that the checks and the notebooks know best: written by a command, not by hand."""

import inspect
import re
from pathlib import Path

import nbformat

from qlora_lab.checks import EXERCISES, MODULES, Exercise
from qlora_lab.checks.exercise import edited_line
from qlora_lab.classroom.questions import QUESTIONS

HEAD = """# Reference for teachers

Written by `qlora-lab classroom reference`, from the notebooks, the checks and the questions. Do not edit it: a test
compares it with what the command writes. The guide is [teaching.md](teaching.md).
"""


def times(notebooks: list[Path]) -> list[list[str]]:
    """For each notebook: its number, minutes to read, minutes that its cells run, exercises, their minutes, points."""
    rows = []
    for path in notebooks:
        book = nbformat.read(path, as_version=4)
        first = book.cells[0].source
        cells = [c for c in book.cells if c.cell_type == "markdown" and "**Difficulty**" in c.source]
        tasks = [c.source for c in cells]
        graded = [c.source for c in cells if EXERCISES[c.metadata["exercise"]].graded]
        read = re.search(r"About (\d+) minutes to read", first)
        run = re.search(r"the cells run for ((?:about|under) \w+ minutes?)", first)
        minutes = sum(int(re.search(r"\*\*(\d+) minutes?\*\*", task)[1]) for task in tasks)
        points = sum(int(re.search(r"\*\*Difficulty\*\* (\d) of 5", task)[1]) for task in graded)
        stated = [read[1] if read else "", run[1] if run else ""]
        rows.append([path.stem, *stated, str(len(tasks)), str(minutes), str(points)])
    return rows


def misconceptions(exercise: Exercise) -> dict[str, list[str]]:
    """What the check says to each typical mistake -> the line of the solution with the mistake in it, or several."""
    found: dict[str, list[str]] = {}
    for one in exercise.misconceptions:
        lines = found.setdefault(one.message, [])
        if one.edit is not None:
            lines.append(edited_line(exercise.solution, *one.edit))
    return found


def reference(notebooks: list[Path]) -> str:
    """The whole text, as Markdown."""
    lines = [HEAD, "## Time and points", ""]
    lines.append("| notebook | minutes to read | cells run, on two cores | exercises | minutes for them | points |")
    lines.append("|---|---|---|---|---|---|")
    lines += ["| " + " | ".join(row) + " |" for row in times(notebooks)]
    lines += [
        "",
        "## Misconceptions",
        "",
        "What the check of each exercise recognizes, and says: first the solution, then",
    ]
    lines += ["each mistake, with the line that it makes of one of the solution's (other ways to write it count too)."]
    for module in MODULES:
        lines += ["", f"### Notebook {module.__name__[-2:]}"]
        for exercise in module.EXERCISES:
            solution = inspect.getsource(exercise.solution).rstrip()
            lines += ["", f"**{exercise.id}**", "", "```python", solution, "```", ""]
            for message, edited in misconceptions(exercise).items():
                lines.append(" · ".join([f"- {message}", *(f"`{line}`" for line in edited)]))
    lines += [
        "",
        "## Open questions and their rubrics",
        "",
        "Released with `--questions`; points are given by a person.",
    ]
    for questions in QUESTIONS.values():
        for question in questions:
            lines += ["", f"**{question.id}** ({question.points} points). {question.text}", "", question.rubric_text]
    return "\n".join(lines) + "\n"
