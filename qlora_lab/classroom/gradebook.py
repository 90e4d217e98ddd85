"""nbgrader's part: it makes what students get, and records what their answers are worth.

nbgrader would run a submission in a kernel, with the hidden tests beside it. A course of this package has
`SandboxVerdicts` in the place of that step (see `course.CONFIG`): each answer is judged from outside of a sandbox, and
the verdict becomes the output of its test cell, from which nbgrader takes the points.
"""

import atexit
import contextlib
import io
import logging
import os
import shutil
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator, Set
from datetime import UTC, datetime
from pathlib import Path

import nbformat
from nbgrader.api import Grade, Gradebook, MissingEntry
from nbgrader.converters import Autograde, GenerateAssignment
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import NbGraderPreprocessor
from sqlalchemy.exc import SAWarning
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from qlora_lab.checks.exercise import Verdict
from qlora_lab.classroom.course import Course, Item
from qlora_lab.classroom.judging import Judge
from qlora_lab.classroom.sandbox import Stopped
from qlora_lab.machine.files import write_text

_judges: dict[Path, tuple[Judge, dict]] = {}


@contextlib.contextmanager
def judged_by(judge: Judge, known: dict[tuple[str, str], Verdict]) -> Iterator[None]:
    """While it lasts, `SandboxVerdicts` asks this judge, and only for what is not in `known`, (student, exercise)."""
    _judges[judge.course.folder] = judge, known
    try:
        yield
    finally:
        del _judges[judge.course.folder]


def _judge() -> tuple[Judge, dict]:
    """What is set; else, under `nbgrader autograde`, a judge of its own. (nbgrader works in the course's folder.)"""
    course = Course.find(Path.cwd())
    if course.folder not in _judges:
        _judges[course.folder] = Judge(course), {}
        atexit.register(_judges[course.folder][0].close)
    return _judges[course.folder]


class SandboxVerdicts(NbGraderPreprocessor):
    """Gives each test cell the output that its answer's verdict calls for. Runs nothing of the notebook."""

    def preprocess(self, nb, resources):
        judge, known = _judge()
        student, notebook = (resources["nbgrader"][key] for key in ("student", "notebook"))
        items = {item.exercise: item for item in judge.course.items if item.notebook == notebook}
        for cell in nb.cells:
            grader = cell.metadata.get("nbgrader", {})
            item = items.get(grader.get("grade_id", "").removesuffix("-test"))
            if cell.cell_type == "code" and grader.get("grade") and item is not None:
                verdict = known.get((student, item.exercise)) or self._verdict(judge, nb, item.exercise)
                cell.outputs = [_output(verdict, item)]
        return nb, resources

    def _verdict(self, judge: Judge, nb, exercise: str) -> Verdict:
        """In a copy that `grading` made an answer's cell has all that it needs; else all cells are searched."""
        cells = [cell for cell in nb.cells if cell.cell_type == "code"]
        if nb.metadata.get("qlora_lab") == "copy":
            cells = [cell for cell in cells if cell.metadata.get("nbgrader", {}).get("grade_id") == exercise]
        try:
            return judge.verdict(exercise, judge.find([cell.source for cell in cells])[exercise])
        except Stopped as stopped:
            return Verdict(exercise, "wrong", f"The notebook cannot be read. {stopped}")


def _output(verdict, item: Item) -> nbformat.NotebookNode:
    """Points as a result, which nbgrader reads; or an error, which is worth nothing."""
    if verdict.status == "right":
        return nbformat.v4.new_output("execute_result", {"text/plain": f"{item.points:g}"}, execution_count=None)
    return nbformat.v4.new_output("error", ename=verdict.status, evalue=verdict.message, traceback=[str(verdict)])


def _configured(course: Course) -> tuple[CourseDirectory, Config]:
    config = PyFileConfigLoader(course.config.name, path=str(course.folder)).load_config()
    config.CourseDirectory.root = str(course.folder)
    return CourseDirectory(config=config), config


@contextlib.contextmanager
def _scripts_on_path() -> Iterator[None]:
    """nbgrader calls a program of its environment, alembic, by name; nobody need have activated that environment."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join(filter(None, [sysconfig.get_path("scripts"), before]))
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _run(converter, error: str) -> None:
    """Run a converter of nbgrader's; its own log only shows in the error."""
    stream = io.StringIO()
    log = logging.getLogger(f"qlora_lab.classroom.{id(stream)}")
    log.propagate = False
    log.addHandler(logging.StreamHandler(stream))
    log.setLevel(logging.WARNING)
    converter.log = log
    try:
        with warnings.catch_warnings(), _scripts_on_path():
            warnings.filterwarnings("ignore", category=SAWarning)  # of nbgrader's own queries
            converter.start()
    except Exception as problem:
        last = [line for line in stream.getvalue().splitlines() if line.strip()][-3:]
        raise ValueError(f"{error}: {problem} {' '.join(last)}".strip()) from problem


def generate(course: Course, name: str, text: str, due: datetime | None = None) -> None:
    """Make `release/NAME` of the text of `source/NAME`, write both, and enter it into the gradebook.

    nbgrader clears the way before it refuses, so it works in a folder of its own. What it made is put in place file by
    file, and the source last: whoever is interrupted before has the old source, and `release` sees that it is old.

    Args:
        due: when it is due, for the gradebook. None: no date.

    Raises:
        ValueError: nbgrader refuses, as it does where the exercises changed after answers were graded. Both folders
            are then as they were.
    """
    source, folder_of_students = (course.notebook(step, name).parent for step in ("source", "release"))
    folder, config = _configured(course)
    folder.assignment_id = name
    with tempfile.TemporaryDirectory(dir=course.folder, prefix=".part-") as part:
        apart = Course(Path(part))
        if source.exists():
            shutil.copytree(source, apart.notebook("source", name).parent)  # a teacher's pictures and data
        apart.notebook("source", name).parent.mkdir(parents=True, exist_ok=True)
        write_text(apart.notebook("source", name), text)
        folder.source_directory, folder.release_directory = (f"{Path(part).name}/{s}" for s in ("source", "release"))
        converter = GenerateAssignment(coursedir=folder, config=config)
        converter.force = True
        _run(converter, f"nbgrader cannot make the assignment {name}")
        _replace(folder_of_students, apart.notebook("release", name).parent)
    with _scripts_on_path(), Gradebook(folder.db_url) as book:  # its dates are in UTC, without saying so
        book.update_or_create_assignment(name, duedate=due and due.astimezone(UTC).replace(tzinfo=None))
    source.mkdir(parents=True, exist_ok=True)
    write_text(course.notebook("source", name), text)


def _replace(folder: Path, made: Path) -> None:
    """Move the files of one folder into another, which keeps none of its own. No file is missing in between."""
    kept = set()
    for path in [path for path in made.rglob("*") if path.is_file()]:
        target = folder / path.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
        kept.add(target)
    for path in folder.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()


def autograde(course: Course, name: str, student: str, same: Set[str] = frozenset()) -> None:
    """Grade what lies in `submitted/` of a student, unless it was graded to the end.

    nbgrader takes a submission for graded as soon as a notebook of it lies in `autograded/`, which it does before there
    are points. So `Course.begun` marks it from before to after, and with the mark there nbgrader begins anew.

    Args:
        same: cells whose answers, and what is thought of them, are as they were: a person's points for them stay.
            nbgrader asks a person again for all points of theirs in what it grades anew.

    Raises:
        ValueError: nbgrader failed.
    """
    folder, config = _configured(course)
    folder.assignment_id, folder.student_id = name, student
    mark, stay = course.begun(name, student), []
    if mark.exists():
        stay = [cell for cell in _settled(folder, name, student) if cell in same]
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(course.notebook("autograded", name, student).parent)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    _run(Autograde(coursedir=folder, config=config), f"{name} of {student}")
    if stay:
        with _scripts_on_path(), Gradebook(folder.db_url) as book:
            for cell in stay:
                book.find_grade(cell, name, name, student).needs_manual_grade = False
            book.db.commit()
    mark.unlink()


def _settled(folder: CourseDirectory, name: str, student: str) -> list[str]:
    """The cells for which a person gave points that stand."""
    with _scripts_on_path(), Gradebook(folder.db_url) as book, contextlib.suppress(MissingEntry):
        submission = book.find_submission(name, student)
        grades = [grade for notebook in submission.notebooks for grade in notebook.grades]
        return [g.name for g in grades if g.manual_score is not None and not g.needs_manual_grade]
    return []


def unrecorded(course: Course, name: str) -> set[str]:
    """Students of whom a test cell has no points, as where `nbgrader autograde` itself was ended while it recorded."""
    folder, _ = _configured(course)
    with _scripts_on_path(), Gradebook(folder.db_url) as book:
        without = book.db.query(Grade).filter(Grade.auto_score.is_(None), Grade.cell_type_gradecell == "code")
        return {grade.student.id for grade in without if grade.assignment.name == name}


def scores(course: Course, students: list[str]) -> dict[tuple[str, str], dict[str, float | None]]:
    """Points by (student, assignment) and cell, a person's included; None for an answer that waits for a person.

    What nbgrader has no record of, or not to the end, is left out.
    """
    folder, _ = _configured(course)
    found = {}
    with _scripts_on_path(), Gradebook(folder.db_url) as book:
        for name in course.names:
            for student in students:
                if course.begun(name, student).exists():
                    continue
                with contextlib.suppress(MissingEntry):
                    submission = book.find_submission(name, student)
                    found[student, name] = {
                        grade.name: None if grade.needs_manual_grade else grade.score
                        for notebook in submission.notebooks
                        for grade in notebook.grades
                    }
    return found
