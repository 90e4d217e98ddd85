"""Grade a class: from a folder of what was handed in to a table, pages for the students, and statistics.

For each student and exercise the best answer is taken from all their notebooks: one that was attempted before one that
was not, a later file before an earlier. It is judged, put into a clean copy of the assignment, and entered into
nbgrader's records.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from qlora_lab.checks.exercise import Verdict
from qlora_lab.classroom import submissions
from qlora_lab.classroom.course import Course, require_nbgrader
from qlora_lab.classroom.judging import NOT_JUDGED, Judge, Unjudged
from qlora_lab.classroom.open_answers import find_open_answers
from qlora_lab.classroom.results import ItemStatistics, statistics, write_csv, write_feedback, write_items
from qlora_lab.classroom.sandbox import Stopped
from qlora_lab.classroom.submissions import Doubtful, HandedInNotebook, Texts, Unreadable

SEARCH = 60  # times the limit of time of one answer, for all notebooks of a student: nobody's take a tenth of it
RANK = {"missing": 0, "stub": 1, "broken": 2, "newer": 3, "answer": 3}
LOST = "{exercise}: an answer stands {place}, which the notebook does not run. {state} Hand it in again in a code cell."


@dataclass
class StudentWork:
    """What one student handed in.

    Attributes:
        found, verdicts: by exercise. opened: answers to open questions, by their ids.
        texts: the text cells of each of their notebooks. notes: what the student is to know of it all.
    """

    student: str
    files: list[str] = field(default_factory=list)
    found: dict[str, dict] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    texts: list[Texts] = field(default_factory=list)
    opened: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Grades:
    """What grading a class gave.

    Attributes:
        points: (student, column) -> points, None where a person has yet to give them; nothing where nbgrader failed to
            record them. maximum: by column.
        waiting: open answers without points.
        unreadable: files that could not be used. doubtful: those that were, in a way that need not be what was meant.
        files: what was written, by what it is.
    """

    works: list[StudentWork]
    points: dict[tuple[str, str], float | None]
    maximum: dict[str, float]
    items: list[ItemStatistics]
    unreadable: list[Unreadable]
    doubtful: list[Doubtful]
    waiting: int
    files: dict[str, Path]


def grade(
    course: Course,
    folder: Path,
    out: Path,
    judge: Judge,
    workers: int = 1,
    tell: Callable[[str, int, int], None] = lambda *_: None,
) -> Grades:
    """Grade all that was handed in.

    Args:
        folder: of submissions.
        out: the CSV to write; `items.csv`, `unreadable.csv` and `feedback/` come beside it.
        judge: of this course.
        workers: sandboxes at a time.
        tell: called with what is being done, and how much of it is.

    Raises:
        FileNotFoundError, ValueError: no submissions, no assignments, no place for the results; or nbgrader failed,
            after everything that can be written was.
    """
    require_nbgrader()
    from qlora_lab.classroom import gradebook

    if out.is_dir() or not out.resolve().parent.is_dir():
        raise ValueError(f"cannot write {out}: give the path of a CSV file in a folder that exists")
    if not course.names:
        raise ValueError(f"no assignment in {course.folder / 'release'}: make them with `qlora-lab classroom release`")
    handed, problems = submissions.read(folder, course.names)
    works, others = judge_all(handed, judge, workers, tell)
    problems = sorted([*problems, *others, *find_open_answers(course, works)], key=lambda one: one.path)
    recorded, failed = {}, []
    with gradebook.CourseGradebook(course) as records:
        for number, name in enumerate(course.names):
            for place, work in enumerate(works):
                tell("recording", number * len(works) + place, len(course.names) * len(works))
                try:
                    recorded[work.student, name] = records.record(name, work)
                except ValueError as error:
                    failed.append(str(error))
    columns, points = _points(course, works, recorded)
    items = statistics(course.items, works)
    files = {
        "grades": out,
        "items": out.parent / "items.csv",
        "unreadable": out.parent / "unreadable.csv",
        "feedback": out.parent / "feedback",
    }
    _write_grades(out, course, works, columns, points)  # first: whatever happens to the rest, the points are there
    rows = [[one.path, "yes" if isinstance(one, Doubtful) else "no", one.reason] for one in problems]
    write_csv(files["unreadable"], ["file", "used", "reason"], rows)
    write_items(files["items"], items)
    write_feedback(files["feedback"], course, works, points)
    if failed:
        count = f"{len(failed)} of {len(course.names) * len(works)} submissions"
        raise ValueError(f"nbgrader failed on {count}, which have no points yet: {'; '.join(failed[:3])}")
    waiting = sum(value is None for value in points.values())
    waiting -= sum(verdict.status == NOT_JUDGED for work in works for verdict in work.verdicts.values())
    doubtful = [one for one in problems if isinstance(one, Doubtful)]
    unreadable = [one for one in problems if not isinstance(one, Doubtful)]
    return Grades(works, points, columns, items, unreadable, doubtful, waiting, files)


def judge_all(
    handed: list[HandedInNotebook],
    judge: Judge,
    workers: int = 1,
    tell: Callable[[str, int, int], None] = lambda *_: None,
) -> tuple[list[StudentWork], list[Unreadable]]:
    """Each student's verdicts, and what could not be used or judged. Writes nothing but the judge's memory."""
    with ThreadPoolExecutor(workers) as pool:
        works, problems = _find(handed, judge, pool, tell)
        problems += _judge(works, judge, pool, tell)
    return works, problems


def _find(handed: list[HandedInNotebook], judge: Judge, pool, tell) -> tuple[list[StudentWork], list[Unreadable]]:
    """Each student's best answers, and the files in which nothing could be found."""

    handed_out = {cell.source.strip() for book in judge.course.books.values() for cell in book.cells}

    spent: dict[str, float] = defaultdict(float)

    def look(one: HandedInNotebook):
        if spent[one.student] > SEARCH * judge.limits[0]:
            return Unreadable(one.path, "searching others of the same student took too long: hand in what counts alone")
        began = time.monotonic()
        try:
            return judge.find([*one.code, *({"text": text} for text in one.text if text.strip() not in handed_out)])
        except Stopped as stopped:
            return Unreadable(one.path, f"its code cannot be parsed: {stopped}")
        except Unjudged as problem:
            return Unreadable(one.path, str(problem))
        finally:
            spent[one.student] += time.monotonic() - began

    works: dict[str, StudentWork] = {}
    ranks: dict[tuple[str, str], tuple] = {}
    problems = []
    for number, (one, found) in enumerate(zip(handed, pool.map(look, handed), strict=True)):
        tell("reading", number, len(handed))
        if not isinstance(found, Unreadable) and not any(RANK[f["status"]] or "aside" in f for f in found.values()):
            found = Unreadable(one.path, "none of the course's functions is in it")
        if isinstance(found, Unreadable):
            problems.append(found)
            continue
        work = works.setdefault(one.student, StudentWork(one.student))
        work.files.append(one.path)
        work.texts.append(one.text)
        for exercise, what in found.items():
            live = what["status"] == "answer" and "aside" not in what
            rank = RANK[what["status"]], live or ("aside" in what and RANK[what["status"]] < 2), one.time, one.path
            if rank > ranks.get((one.student, exercise), (-1,)):
                ranks[one.student, exercise] = rank
                work.found[exercise] = what
    return [works[student] for student in sorted(works)], problems


def _judge(works: list[StudentWork], judge: Judge, pool, tell) -> list[Unreadable]:
    """Give each work its verdicts. One that could not be judged waits for the next run, and the teacher is told."""
    problems = []

    def look(task) -> Verdict:
        work, exercise = task
        try:
            return judge.verdict(exercise, work.found[exercise])
        except Unjudged as problem:
            problems.append(Unreadable(", ".join(work.files), f"{exercise}: {problem}"))
            return Verdict(exercise, NOT_JUDGED, str(problem))

    tasks = [(work, item.exercise) for work in works for item in judge.course.items]
    for number, ((work, exercise), verdict) in enumerate(zip(tasks, pool.map(look, tasks), strict=True)):
        tell("judging", number, len(tasks))
        work.verdicts[exercise] = verdict
        if place := work.found[exercise].get("aside"):
            state = "It was graded all the same." if work.found[exercise]["status"] == "answer" else "It has no points."
            note = LOST.format(exercise=exercise, place=place, state=state)
            work.notes.append(note)
            problems.append(Doubtful(", ".join(work.files), note))
    return problems


def _points(course: Course, works: list[StudentWork], recorded: dict) -> tuple[dict[str, float], dict]:
    """The columns with their maximum, in the order of the notebooks, and the points by student and column.

    Args:
        recorded: (student, assignment) -> points by cell.
    """
    cells = []
    for name, book in course.books.items():
        for cell in book.cells:
            grader = cell.metadata.get("nbgrader", {})
            if grader.get("grade"):
                cells.append((name, grader["grade_id"], float(grader["points"])))
    columns = {f"{name[:2]} {cell.removesuffix('-test')}": most for name, cell, most in cells}
    points = {
        (work.student, column): recorded[work.student, name][cell]
        for work in works
        for column, (name, cell, _) in zip(columns, cells, strict=True)
        if cell in recorded.get((work.student, name), {})
    }
    return columns, points


def _write_grades(out: Path, course: Course, works: list[StudentWork], columns: dict[str, float], points: dict) -> None:
    rows = []
    exercises = {item.column: item.exercise for item in course.items}
    for work in works:
        own = [points.get((work.student, column)) for column in columns]
        recorded = all((work.student, column) in points for column in columns)
        total = f"{sum(value for value in own if value is not None):g}" if recorded else ""
        given = ["" if value is None else f"{value:g}" for value in own]
        for place, column in enumerate(columns):
            verdict = work.verdicts.get(exercises.get(column))
            if own[place] is None and verdict is not None and verdict.status == NOT_JUDGED:
                given[place] = "not judged, see unreadable.csv"
        rows.append([work.student, *given, total, f"{sum(columns.values()):g}"])
    write_csv(out, ["student", *columns, "total", "max"], rows)
