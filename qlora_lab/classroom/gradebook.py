"""nbgrader's part: it makes what students get, and keeps what their answers are worth.

`generate_assignment` lets nbgrader make what students get. `CourseGradebook.record` enters what a student's answers are
worth: a clean copy of the assignment with the answers in it goes into `submitted/`, the points go into the gradebook,
and the copy with the verdicts as outputs of its test cells goes into `autograded/`, where the formgrader finds it.

Left to itself, nbgrader would run a submission in a kernel, with the hidden tests beside it. A course of this package
has `SandboxVerdicts` in the place of that step (see `course.CONFIG`): `nbgrader autograde`, and a click in the
formgrader, get each verdict from outside of a sandbox, and so the same outputs.
"""

import atexit
import contextlib
import functools
import io
import json
import logging
import os
import re
import shutil
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator, Set
from datetime import UTC, datetime
from pathlib import Path

import nbformat
from nbgrader.api import Gradebook, SourceCell, SubmittedAssignment, SubmittedNotebook
from nbgrader.converters import Autograde, GenerateAssignment
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import AssignLatePenalties, NbGraderPreprocessor
from nbgrader.utils import compute_checksum, determine_grade, find_all_files, is_grade, is_solution
from sqlalchemy.exc import SAWarning
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from qlora_lab.checks.exercise import Verdict
from qlora_lab.classroom.course import Course
from qlora_lab.classroom.judging import NOT_JUDGED, Judge
from qlora_lab.classroom.sandbox import Stopped
from qlora_lab.machine.files import write_text

NO_WIDTH = "\u200b"  # a space that takes no room


class SandboxVerdicts(NbGraderPreprocessor):
    """Gives each test cell the output that its answer's verdict calls for. Runs nothing of the notebook."""

    def preprocess(self, nb, resources):
        judge = _judge(Course.find(Path.cwd()).folder)  # nbgrader works in the course's folder
        _put_verdicts(nb, judge.course, resources["nbgrader"]["notebook"], lambda e: self._verdict(judge, nb, e))
        return nb, resources

    def _verdict(self, judge: Judge, nb, exercise: str) -> Verdict:
        """In a copy that `record` made an answer's cell has all that it needs; else all cells are searched."""
        cells = [cell for cell in nb.cells if cell.cell_type == "code"]
        if nb.metadata.get("qlora_lab") == "copy":
            cells = [cell for cell in cells if cell.metadata.get("nbgrader", {}).get("grade_id") == exercise]
        try:
            return judge.verdict(exercise, judge.find([cell.source for cell in cells])[exercise])
        except Stopped as stopped:
            return Verdict(exercise, "wrong", f"The notebook cannot be read. {stopped}")


@functools.cache
def _judge(folder: Path) -> Judge:
    """For what nbgrader grades by itself."""
    judge = Judge(Course(folder))
    atexit.register(judge.close)
    return judge


def _put_verdicts(book, course: Course, name: str, verdict: Callable[[str], Verdict]) -> None:
    """Give the test cells their outputs: points as a result, which nbgrader reads; or an error, worth nothing."""
    items = {f"{item.exercise}-test": item for item in course.items if item.notebook == name}
    for cell in book.cells:
        item = items.get(cell.metadata.get("nbgrader", {}).get("grade_id"))
        if item is None or cell.cell_type != "code" or not cell.metadata["nbgrader"].get("grade"):
            continue
        found = verdict(item.exercise)
        if found.status == "right":
            text = {"text/plain": f"{item.points:g}"}
            cell.outputs = [nbformat.v4.new_output("execute_result", text, execution_count=None)]
        else:
            error = {"ename": found.status, "evalue": found.message, "traceback": [str(found)]}
            cell.outputs = [nbformat.v4.new_output("error", **error)]


class CourseGradebook(Gradebook):
    """nbgrader's records of a course, with the settings that its `nbgrader_config.py` makes."""

    def __init__(self, course: Course):
        self.course = course
        self.folder, config = _configured(course)
        self.settings = Autograde(coursedir=self.folder, config=config)
        self.late = AssignLatePenalties(config=config)
        self.late.init_plugin()
        with _scripts_on_path():
            super().__init__(self.folder.db_url, self.folder.course_id)

    def record(self, name: str, work) -> dict[str, float | None]:
        """Enter a student's submission of the assignment `name`.

        All points come into the gradebook in one transaction: whoever is interrupted has the old ones or the new. The
        notebook in `autograded/` is written after that. What is as it should be already is left alone, so the next run
        does what an interrupted one did not come to.

        Points that a person gave stay. Where the answer, or whether it is right, is not as in `autograded/`, the person
        is asked for them again.

        Args:
            work: a `grading.StudentWork`, with verdicts.

        Returns:
            points by cell, a person's included; None for an answer that waits for a person.

        Raises:
            ValueError: it could not be recorded. Its message says whose, and why.
        """
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=SAWarning)  # of nbgrader's own queries
                return self._record(name, work)
        except Exception as problem:
            raise ValueError(f"{name} of {work.student}: {problem}") from problem

    def _record(self, name: str, work) -> dict[str, float | None]:
        submitted, graded = (self.course.notebook(step, name, work.student) for step in ("submitted", "autograded"))
        book = _answered_copy(self.course, name, work)
        text = _text(book)
        if text != _read(submitted):
            submitted.parent.mkdir(parents=True, exist_ok=True)
            write_text(submitted, text)
        with self._one_transaction():
            submission, notebook = self._submission(name, work.student)
            _restore(book, notebook.notebook.source_cells)
            _put_verdicts(book, self.course, name, work.verdicts.__getitem__)
            text, before = _text(book), _read(graded)
            _enter_points(book, notebook, _unchanged(before, text))
            self.db.commit()  # into the transaction: the database computes the scores
            if text != before:
                notebook.late_submission_penalty = self._penalty(submission, notebook)
            points = {grade.name: None if grade.needs_manual_grade else grade.score for grade in notebook.grades}
        if text != before:
            graded.parent.mkdir(parents=True, exist_ok=True)
            self._copy_files(name, work.student)
            write_text(graded, text)
            self.settings.set_permissions(name, work.student)
        return points

    @contextlib.contextmanager
    def _one_transaction(self) -> Iterator[None]:
        """What the methods of a Gradebook commit, each by itself, is committed at the end, or none of it.

        A session of SQLAlchemy's that is bound to a connection in a transaction leaves that to whoever began it.
        """
        try:
            with self.engine.begin() as connection:
                self.db.remove()
                self.db.configure(bind=connection)
                yield
                self.db.flush()
        finally:
            self.db.remove()
            self.db.configure(bind=self.engine)

    def _submission(self, name: str, student: str) -> tuple[SubmittedAssignment, SubmittedNotebook]:
        """The one of a student, made if there is none, with the time that nbgrader's collecting left beside it."""
        if self.settings.create_student:
            self.update_or_create_student(student)
        place = self.course.notebook("submitted", name, student).parent
        timestamp = self.folder.get_existing_timestamp(str(place))
        found = self.update_or_create_submission(name, student, **({"timestamp": timestamp} if timestamp else {}))
        return found, self.find_submission_notebook(name, name, student)

    def _penalty(self, submission: SubmittedAssignment, notebook: SubmittedNotebook) -> float | None:
        """Points that are taken for lateness by the course's plugin; nbgrader's own takes none."""
        seconds = submission.total_seconds_late
        if seconds <= 0:
            return None
        penalty = self.late.plugin_inst.late_submission_penalty(submission.student.id, notebook.score, seconds)
        return None if penalty is None else min(max(penalty, 0), notebook.score)

    def _copy_files(self, name: str, student: str) -> None:
        """Into `autograded/`, as nbgrader does: what lies beside the submission, then what lies beside the source."""
        target = self.course.notebook("autograded", name, student).parent
        for step, who, kept in (
            ("submitted", student, []),
            ("source", ".", self.settings.exclude_overwriting.get(name, [])),
        ):
            folder = self.course.notebook(step, name, who).parent
            for path in map(Path, find_all_files(str(folder), [*self.folder.ignore, "*.ipynb"])):
                place = target / path.relative_to(folder)
                if path.relative_to(folder).as_posix() not in kept:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.unlink(missing_ok=True)  # it may not be written to
                    shutil.copy(path, place)


def _text(book: nbformat.NotebookNode) -> str:
    return nbformat.writes(book) + "\n"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _answered_copy(course: Course, name: str, work) -> nbformat.NotebookNode:
    """A clean copy of the assignment with a student's answers in the places for them. work: a `grading.StudentWork`."""
    cells = []
    for cell in course.books[name].cells:
        grader = cell.metadata.get("nbgrader", {})
        if "exercise" not in cell.metadata and not cell.id.startswith(("question-", "answer-")):
            continue
        cell = nbformat.from_dict(cell)
        if grader.get("solution") and cell.cell_type == "code":
            cell.source = work.found[grader["grade_id"]]["code"] or cell.source
        elif grader.get("solution"):
            given = work.opened.get(grader["grade_id"])
            cell.source = _harmless(given) if given else cell.source
        elif cell.cell_type == "code" and not grader.get("grade"):
            continue  # `check`: its verdict is the test cell's
        elif "<details>" in cell.source:
            continue  # hints
        cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells, metadata=course.books[name].metadata | {"qlora_lab": "copy"})


def _harmless(text: str) -> str:
    """A student's Markdown, which the formgrader shows as a web page, without what is more than text there.

    No tag becomes one of the page. Links and pictures, which may hold scripts or call home, stay as they were written:
    between the brackets comes a space of no width. So it does in commands of TeX that make links or load others. A web
    address that stands in the text can be followed, as it is read.
    """
    text = re.sub(r"\](?=[(\[:])", f"]{NO_WIDTH}", text.replace("<", "&lt;"))
    return re.sub(r"\\(?=(?:href|mmlToken|require)(?![a-zA-Z]))", rf"\\{NO_WIDTH}", text)


def _restore(book: nbformat.NotebookNode, sources: list[SourceCell]) -> None:
    """Put into the cells that are the teacher's what nbgrader keeps of them: test cells with their hidden part."""
    cells = {cell.metadata.get("nbgrader", {}).get("grade_id"): cell for cell in book.cells}
    for source in sources:
        if source.name in cells:
            cell = cells[source.name]
            cell.metadata["nbgrader"]["checksum"] = source.checksum
            if source.locked:
                cell.source = source.source


def _enter_points(book: nbformat.NotebookNode, notebook: SubmittedNotebook, unchanged: Set[str]) -> None:
    """Give a submission the points that the cells of a graded notebook are worth, and ask a person for the others.

    Args:
        unchanged: cells for which a person's points stand, if there are any.
    """
    grades = {grade.name: grade for grade in notebook.grades}
    comments = {comment.name: comment for comment in notebook.comments}
    for cell in book.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if is_grade(cell):
            grade = grades[name]
            grade.auto_score, _ = determine_grade(cell)
            if cell.cell_type == "code" and cell.outputs and cell.outputs[0].get("ename") == NOT_JUDGED:
                grade.auto_score = None  # not 0: nobody knows yet
            if grade.manual_score is None or name not in unchanged:
                grade.needs_manual_grade = grade.manual_score is not None or grade.auto_score is None
        if is_solution(cell):
            as_handed_out = cell.metadata["nbgrader"]["checksum"] == compute_checksum(cell)
            comments[name].auto_comment = "No response." if as_handed_out else None


def _unchanged(before: str, text: str) -> set[str]:
    """The cells of a graded notebook for which nothing changed that points are given for."""
    old, new = _bases(before), _bases(text)
    return {cell for cell in new if old.get(cell) == new[cell]}


def _bases(text: str) -> dict[str, tuple[str, str | None]]:
    """What points are given for in a graded notebook, by the cells that have them: the answer and the verdict's status.

    Nothing where the text is no such notebook.
    """
    try:
        cells = [(cell["metadata"].get("nbgrader", {}), cell) for cell in json.loads(text)["cells"]]
        answers = {grader["grade_id"]: "".join(cell["source"]) for grader, cell in cells if grader.get("solution")}
        graded = {grader["grade_id"]: cell.get("outputs") for grader, cell in cells if grader.get("grade")}
        status = {cell: outputs[0].get("ename", "right") if outputs else None for cell, outputs in graded.items()}
        return {cell: (answers[cell.removesuffix("-test")], status[cell]) for cell in graded}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


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


def generate_assignment(course: Course, name: str, text: str, due: datetime | None = None) -> None:
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
    with CourseGradebook(course) as book:  # its dates are in UTC, without saying so
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
