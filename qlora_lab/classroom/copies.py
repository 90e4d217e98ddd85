"""The copies of an assignment that nbgrader grades: clean, with a student's answers in the places for them."""

import json

import nbformat

from qlora_lab.classroom.course import Course
from qlora_lab.machine.files import write_text

VERDICTS = "qlora_lab_verdicts"  # in a copy's metadata


def write_copy(course: Course, name: str, work, again: bool = False) -> set[str]:
    """Put the answers, and the verdicts on them, into a clean copy of the assignment, for nbgrader.

    Where that changes the copy, or `again`, it is marked to be graded anew, see `Course.begun`.

    Args:
        work: a `grading.Work`, with verdicts.

    Returns:
        the cells for whose points nothing changed that they are given for: answer, and whether it is right.
    """
    cells = []
    for cell in course.books[name].cells:
        grader = cell.metadata.get("nbgrader", {})
        if "exercise" not in cell.metadata and not cell.id.startswith(("question-", "answer-")):
            continue
        cell = nbformat.from_dict(cell)
        if grader.get("solution") and cell.cell_type == "code":
            found = work.found[grader["grade_id"]]
            cell.source = found["code"] or cell.source
        elif grader.get("solution"):
            # The formgrader shows Markdown as a web page: no tag of a student's becomes one of it.
            given = work.opened.get(grader["grade_id"])
            cell.source = given.replace("<", "&lt;") if given else cell.source
        elif cell.cell_type == "code" and not grader.get("grade"):
            continue  # `check`: its verdict is the test cell's
        elif "<details>" in cell.source:
            continue  # hints
        cells.append(cell)
    verdicts = {i.exercise: work.verdicts[i.exercise] for i in course.items if i.notebook == name}
    book = nbformat.v4.new_notebook(cells=cells, metadata=course.books[name].metadata | {"qlora_lab": "copy"})
    # Read by nobody but the comparison below. Without it a verdict that changed, as with other limits or with a
    # corrected exercise, would leave the copy as it was, and so the points.
    book.metadata[VERDICTS] = {e: [v.status, v.message] for e, v in verdicts.items()}
    text = nbformat.writes(book) + "\n"
    path, mark = course.notebook("submitted", name, work.student), course.begun(name, work.student)
    before = path.read_text(encoding="utf-8") if path.exists() else None
    if before != text or again:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    if before != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    old, new = _bases(before or ""), _bases(text)
    return {cell for cell in new if old.get(cell) == new[cell]}


def _bases(text: str) -> dict[str, list]:
    """What points are given for in a copy, by the cells that have them: the answer, and whether it is right.

    Nothing where the text is no copy, as of a notebook that nbgrader collected.
    """
    try:
        book = json.loads(text)
        graders = [(cell, cell["metadata"].get("nbgrader", {})) for cell in book["cells"]]
        answers = {grader["grade_id"]: cell["source"] for cell, grader in graders if grader.get("solution")}
        verdicts = book["metadata"].get(VERDICTS, {})
        graded = [grader["grade_id"] for _, grader in graders if grader.get("grade")]
        exercises = {cell: cell.removesuffix("-test") for cell in graded}
        return {cell: [answers[e], verdicts.get(e, [None])[0]] for cell, e in exercises.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
