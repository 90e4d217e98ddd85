"""Make assignments of the notebooks, which are their only source.

An exercise is four cells: task, stub, check, and hints with the solution. In an assignment the stub holds the solution
between nbgrader's marks, a test cell follows the check, and of the last cell the hints are left, or nothing.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

import nbformat

from qlora_lab.checks import EVER_ASKED, function_name
from qlora_lab.classroom.course import Course, require_nbgrader
from qlora_lab.classroom.questions import QUESTIONS, Question

STUB_END = "raise NotImplementedError"
NO_POINTS = "(This one gives no points: `check` judges it here, and the cells below use it.)"
DUE_EXAMPLES = "2026-12-04T18:00 for all, 05=2026-12-11T18:00 for one notebook"
SOLUTION = re.compile(r"\n*<details><summary>Solution</summary>.*?</details>", re.DOTALL)


def notebooks_folder(folder: Path | None = None) -> Path:
    """Where the notebooks lie: a given folder, the one beside the package in a checkout, or `notebooks` here.

    Raises:
        FileNotFoundError: no such folder.
    """
    if folder is None:
        beside = Path(__file__).resolve().parents[2] / "notebooks"
        folder = beside if beside.is_dir() else Path("notebooks")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; say where the notebooks are with --folder")
    return folder


def find_notebooks(names: Iterable[str], folder: Path | None = None) -> list[Path]:
    """The notebooks meant by their numbers (`01`), names or paths.

    Args:
        folder: where they lie, see `notebooks_folder`.

    Raises:
        FileNotFoundError: no such folder or notebook.
        ValueError: the same one twice, or none.
    """
    known = sorted(notebooks_folder(folder).glob("*.ipynb"))
    found = []
    for name in names:
        fitting = [path for path in known if name in (path.stem, path.name, path.stem.partition("_")[0])]
        path = Path(name) if name.endswith(".ipynb") and Path(name).is_file() else next(iter(fitting), None)
        if path is None:
            raise FileNotFoundError(f"no notebook {name}; there are {', '.join(p.stem for p in known)}")
        found.append(path)
    if not found or len(set(found)) < len(found):
        raise ValueError("give each notebook once, and at least one: --notebooks 01 03 05")
    return found


def due_dates(texts: Iterable[str], notebooks: Iterable[Path]) -> dict[str, datetime]:
    """Name of each notebook that has a due date -> the date, with its time zone.

    Args:
        texts: ISO 8601 dates with a time, for all notebooks; or NOTEBOOK=DATE for one, which goes before. Without an
            offset (`+01:00`, `Z`) a date is in this machine's time zone.

    Raises:
        ValueError: no date, or not of one of these notebooks.
    """
    names = [path.stem for path in notebooks]
    everyone, own = {}, {}
    for text in texts:
        which, given, date = text.rpartition("=")
        fitting = [name for name in names if not given or which in (name, name.partition("_")[0])]
        if not fitting:
            raise ValueError(f"due date {text!r}: {which!r} is none of the notebooks {', '.join(names)}")
        (own if given else everyone).update(dict.fromkeys(fitting, _date(date, text)))
    return everyone | own


def _date(date: str, text: str) -> datetime:
    try:
        found = datetime.fromisoformat(date.strip())
    except ValueError as error:
        raise ValueError(f"due date {text!r} is not understood ({error}); write {DUE_EXAMPLES}") from error
    if len(date.strip()) <= len("2026-12-04"):
        raise ValueError(f"due date {text!r} has no time of day; write {DUE_EXAMPLES}")
    return found.astimezone() if found.tzinfo is None else found


def in_words(date: datetime) -> str:
    """As students read it: the same for all, wherever they are."""
    offset = date.strftime("%z")
    return f"{date:%A}, {date.day} {date:%B %Y}, {date:%H:%M} (UTC{offset[:3]}:{offset[3:5]})"


def assignment(
    book: nbformat.NotebookNode, name: str, hints: bool, questions: bool, due: datetime | None = None
) -> nbformat.NotebookNode:
    """The source of an assignment.

    Args:
        book: the executed notebook.
        name: of the notebook.
        hints: keep them.
        questions: add the open questions, which a person grades.
        due: when it is due, with a time zone, if students are to read that.

    Raises:
        ValueError: an exercise is not as it should be, or there is none.
    """
    cells, graded, exercises = [], 0.0, {}
    for cell in book.cells:
        if "exercise" in cell.metadata:
            exercises.setdefault(cell.metadata["exercise"], []).append(cell)
    if not exercises:
        raise ValueError(f"{name} has no exercises to make an assignment of")
    for exercise, four in exercises.items():
        if [c.cell_type for c in four] != ["markdown", "code", "code", "markdown"]:
            raise ValueError(f"{name}: exercise {exercise} is not task, stub, check and solution")
    for cell in book.cells:
        exercise = cell.metadata.get("exercise")
        if exercise is None:
            cells.append(_plain(cell))
            continue
        task, stub, check, solution = exercises[exercise]
        if not _is_graded(exercise) and cell is not solution:
            cells.append(_plain(cell, exercise))
            if cell is task:
                cells[-1].source += f"\n\n{NO_POINTS}"
        elif cell is task:
            cells.append(_plain(task, exercise))
        elif cell is stub:
            cells.append(_answer_cell(stub, exercise, _with_solution(exercise, stub.source, solution.source)))
        elif cell is check:
            points = _points(task.source, exercise)
            graded += points
            cells += [_plain(check, exercise), _test_cell(check, exercise, points)]
        elif hints and (text := SOLUTION.sub("", solution.source).strip()):
            cells.append(nbformat.v4.new_markdown_cell(text, id=solution.id, metadata={"exercise": exercise}))
    asked = QUESTIONS.get(name[:2], ()) if questions else ()
    cells += [cell for question in asked for cell in _question_cells(question)]
    graded += sum(question.points for question in asked)
    cells.insert(1, _introduction(sum(map(_is_graded, exercises)), graded, hints, bool(asked), due))
    made = nbformat.v4.new_notebook(cells=cells)
    made.metadata = {key: book.metadata[key] for key in ("kernelspec", "language_info") if key in book.metadata}
    nbformat.validate(made)
    return made


def _plain(cell: nbformat.NotebookNode, exercise: str | None = None) -> nbformat.NotebookNode:
    """A cell as it is, without outputs and metadata."""
    metadata = {} if exercise is None else {"exercise": exercise}
    if "bootstrap" in cell.metadata.get("tags", []):
        metadata["tags"] = ["bootstrap"]
    new = nbformat.v4.new_markdown_cell if cell.cell_type == "markdown" else nbformat.v4.new_code_cell
    return new(cell.source, id=cell.id, metadata=metadata)


def _nbgrader(name: str, **settings) -> dict:
    base = {"schema_version": 3, "grade": False, "solution": False, "locked": False, "task": False}
    return base | {"grade_id": name} | settings


def _answer_cell(stub: nbformat.NotebookNode, exercise: str, source: str) -> nbformat.NotebookNode:
    metadata = {"exercise": exercise, "nbgrader": _nbgrader(exercise, solution=True)}
    return nbformat.v4.new_code_cell(source, id=stub.id, metadata=metadata)


def _with_solution(exercise: str, stub: str, solution: str) -> str:
    """The stub, with the solution's body between nbgrader's marks in the place of its last line."""
    code = re.findall(r"```python\n(.*?)```", solution, re.DOTALL)
    head = stub.rstrip()
    if not code or not head.endswith(STUB_END):
        raise ValueError(f"exercise {exercise}: no solution, or a stub that does not end in `{STUB_END}`")
    tree, given = ast.parse(code[-1]), ast.parse(stub)
    name = function_name(exercise)
    for what in (tree, given):
        if len(what.body) != 1 or not isinstance(what.body[0], ast.FunctionDef) or what.body[0].name != name:
            raise ValueError(f"exercise {exercise}: stub and solution must each be the function {name} alone")
    function = tree.body[0]
    if [a.arg for a in function.args.args] != [a.arg for a in given.body[0].args.args]:
        raise ValueError(f"exercise {exercise}: stub and solution name their arguments differently")
    body = code[-1].rstrip().split("\n")[function.body[0].lineno - 1 :]
    region = ["    ### BEGIN SOLUTION", *body, "    ### END SOLUTION"]
    return head[: -len(STUB_END)].rstrip() + "\n" + "\n".join(region)


def _is_graded(exercise: str) -> bool:
    """Whether answers go through the sandbox; what moves files or changes models does not."""
    return exercise not in EVER_ASKED or EVER_ASKED[exercise].graded


def _points(task: str, exercise: str) -> float:
    """An exercise gives as many points as it is difficult, 1 to 5."""
    stated = re.search(r"\*\*Difficulty\*\* (\d) of 5", task)
    if not stated:
        raise ValueError(f"exercise {exercise} states no difficulty, so it has no points")
    return float(stated[1])


def _test_cell(check: nbformat.NotebookNode, exercise: str, points: float) -> nbformat.NotebookNode:
    name = function_name(exercise)
    source = f'''# {points:g} {"point" if points == 1 else "points"}. This cell fails until the answer is right. \
More inputs decide when it is graded.
from qlora_lab.checks import verdict

result = verdict("{exercise}", {name})
assert result.status == "right", result
### BEGIN HIDDEN TESTS
from qlora_lab.classroom.hidden_tests import hidden_test

hidden_test("{exercise}", {name})
### END HIDDEN TESTS'''
    # JupyterLab goes on after a cell with this tag, so that "Run All" reaches the end.
    metadata = {"exercise": exercise, "tags": ["raises-exception"]}
    metadata["nbgrader"] = _nbgrader(f"{exercise}-test", grade=True, locked=True, points=points)
    return nbformat.v4.new_code_cell(source, id=f"{check.id}-test", metadata=metadata)


def _question_cells(question: Question) -> list[nbformat.NotebookNode]:
    ask = f"### Question {question.id}\n\n{question.text}\n\n**{question.points} points**, given by a person."
    answer = f"{question.marker}\n\n### BEGIN SOLUTION\n{question.rubric_text}\n### END SOLUTION"
    metadata = _nbgrader(f"question-{question.id}", grade=True, solution=True, points=float(question.points))
    return [
        nbformat.v4.new_markdown_cell(ask, id=f"question-{question.id}", metadata={}),
        nbformat.v4.new_markdown_cell(answer, id=f"answer-{question.id}", metadata={"nbgrader": metadata}),
    ]


def _introduction(
    exercises: int, points: float, hints: bool, questions: bool, due: datetime | None
) -> nbformat.NotebookNode:
    summary = f"{exercises} exercises{' and open questions' if questions else ''}, {points:g} points"
    if due is not None:
        summary += f", due **{in_words(due)}**"
    text = (
        f"## This notebook is an assignment\n\n{summary}. Write each answer into the cell of its function, in place of "
        "`raise NotImplementedError`, and keep the function's name: answers are found by it. `check` says what looks "
        "wrong, as often as you like, and until an answer is right the cells below use the finished version. The cell "
        "after it fails until the answer is right. Then hand in this file.\n\n"
        "An answer may use torch, Python's own library, and functions of yours in other cells. `qlora_lab`, "
        "bitsandbytes, PEFT and transformers are masked while it is graded: calling the finished version of what is "
        "asked gets no points. It is graded on more inputs than `check` has, within a few seconds."
    )
    if not hints:
        text += " Where `check` names a hint: your teacher has left these out."
    return nbformat.v4.new_markdown_cell(text, id="assignment", metadata={})


def release(
    notebooks: list[Path],
    folder: Path,
    hints: bool = True,
    questions: bool = False,
    seed: str | None = None,
    due: Mapping[str, datetime] | None = None,
) -> tuple[Course, list[str]]:
    """Make a course of notebooks, or bring it up to date. The same notebooks leave the same files.

    Args:
        notebooks: paths.
        folder: of the course.
        seed: of the hidden tests. None: the course's own, or a new one.
        due: name of a notebook -> when it is due, see `due_dates`. Written for students, and into the gradebook.

    Returns:
        the course, and the names of those assignments that changed.

    Raises:
        ValueError: see `assignment` and `Course.prepare`; or nbgrader is missing or refuses. What it refuses stays as
            it was.
    """
    require_nbgrader()
    from qlora_lab.classroom import gradebook

    due = due or {}
    sources = {}
    for path in notebooks:
        book = nbformat.read(path, as_version=4)
        sources[path.stem] = nbformat.writes(assignment(book, path.stem, hints, questions, due.get(path.stem))) + "\n"
    course = Course(folder.resolve())
    course.prepare(seed)
    changed = []
    for name, text in sources.items():
        path = course.notebook("source", name)
        if path.exists() and path.read_text(encoding="utf-8") == text and course.notebook("release", name).exists():
            continue
        gradebook.generate_assignment(course, name, text, due.get(name))
        changed.append(name)
    return course, changed
