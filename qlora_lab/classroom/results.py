"""How a class did: statistics of each exercise, a page for each student, and how tables are written.

An exercise's statistics are how many were right, whether it tells students apart, and what went wrong. A student's page
has points and diagnoses, and the code that was graded; no hidden input is in it.
"""

import csv
import io
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy

from qlora_lab.checks import EVER_ASKED
from qlora_lab.classroom.course import Course, Item
from qlora_lab.classroom.judging import NOT_JUDGED
from qlora_lab.machine.files import write_text

ITEM_COLUMNS = ["notebook", "exercise", "points", "students", "attempted", "right", "difficulty", "discrimination"]
ITEM_COLUMNS += ["most frequent diagnosis", "how often"]
# What a spreadsheet takes for the begin of a formula, also where it parts cells at semicolons; -0.25 is a number.
FORMULA = re.compile(r"(?:\A|(?<=[;|\t]))(?=\t|\s*(?:[=+@＝＋＠－]|-(?!\d+(\.\d+)?\Z)))")
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]+")  # ends of lines among them, which would begin a row
UNKNOWN_MISTAKE = "a mistake that looks like no known misconception"


@dataclass(frozen=True)
class ItemStatistics:
    """Of one exercise over a class.

    Attributes:
        students: who handed anything in. attempted: of these, who wrote an answer.
        difficulty: share of right answers among all students, 0 to 1; None without students.
        discrimination: correlation between being right here and the points from all other exercises, -1 to 1; None
            where one of the two is the same for all.
        diagnosis, diagnosed: the most frequent diagnosis of wrong answers, and how often it was.
    """

    item: Item
    students: int
    attempted: int
    right: int
    difficulty: float | None
    discrimination: float | None
    diagnosis: str
    diagnosed: int


def statistics(items: list[Item], works: list) -> list[ItemStatistics]:
    """One entry an exercise. works: `grading.StudentWork`, with verdicts."""
    right = numpy.array([[work.verdicts[i.exercise].status == "right" for i in items] for work in works], dtype=float)
    right = right.reshape(len(works), len(items))
    points = right * [item.points for item in items]
    found = []
    for place, item in enumerate(items):
        verdicts = [work.verdicts[item.exercise] for work in works]
        known = {misconception.message for misconception in EVER_ASKED[item.exercise].misconceptions}
        wrong = Counter(v.message if v.message in known else UNKNOWN_MISTAKE for v in verdicts if v.status == "wrong")
        ((diagnosis, count),) = wrong.most_common(1) or [("", 0)]
        found.append(
            ItemStatistics(
                item,
                len(works),
                sum(v.status != "not attempted" for v in verdicts),
                int(right[:, place].sum()),
                float(right[:, place].mean()) if works else None,
                _correlation(right[:, place], points.sum(1) - points[:, place]),
                diagnosis,
                count,
            )
        )
    return found


def _correlation(one: numpy.ndarray, other: numpy.ndarray) -> float | None:
    if len(one) < 3 or one.std() == 0 or other.std() == 0:
        return None
    return float(numpy.corrcoef(one, other)[0, 1])


def write_items(path: Path, found: list[ItemStatistics]) -> None:
    """Write them as a CSV."""
    rows = []
    for one in found:
        numbers = ["" if n is None else f"{n:.3f}" for n in (one.difficulty, one.discrimination)]
        counts = [f"{one.item.points:g}", one.students, one.attempted, one.right]
        diagnosis = [one.diagnosis, one.diagnosed or ""]
        rows.append([one.item.notebook, one.item.exercise, *counts, *numbers, *diagnosis])
    write_csv(path, ITEM_COLUMNS, rows)


def write_csv(path: Path, head: list[str], rows: list[list]) -> None:
    """A table for spreadsheets, in which a text that begins like a formula is kept a text; a number is none.

    A row is one line, whatever stands in its cells. The file begins with a byte order mark, without which Excel takes
    UTF-8 for the system's own encoding.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([FORMULA.sub("'", CONTROL.sub(" ", str(cell))) for cell in row])
    write_text(path, "\ufeff" + text.getvalue())


def write_feedback(folder: Path, course: Course, works: list, points: dict) -> None:
    """Write `folder/STUDENT.html` for each of `works` (`grading.StudentWork`); pages of others stay.

    Args:
        points: (student, column) -> points, or None where a person has yet to give them.
    """
    folder.mkdir(exist_ok=True)
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("qlora_lab.classroom").joinpath("feedback.html.jinja").read_text(encoding="utf-8")
    )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        for work in works:
            unjudged = {i.column for i in course.items if work.verdicts[i.exercise].status == NOT_JUDGED}
            columns = {column: value for (student, column), value in points.items() if student == work.student}
            page = template.render(
                work=work,
                notebooks=[
                    (name, [(item, work.verdicts[item.exercise], columns.get(item.column)) for item in items])
                    for name in course.names
                    if (items := [item for item in course.items if item.notebook == name])
                ],
                code={e: f["code"] for e, f in work.found.items() if f["status"] in ("answer", "broken")},
                total=sum(value for value in columns.values() if value is not None),
                waiting=[column for column, value in columns.items() if value is None and column not in unjudged],
            )
            file = Path(part) / f"{work.student}.html"
            file.write_text(page, encoding="utf-8")
            shutil.move(file, folder / file.name)
