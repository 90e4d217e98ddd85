"""How the exercises of a course went: how many were right, whether they tell students apart, what went wrong."""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy

from qlora_lab.checks import EXERCISES
from qlora_lab.classroom.course import Item
from qlora_lab.machine.files import write_text

HEAD = ["notebook", "exercise", "points", "students", "attempted", "right", "difficulty", "discrimination"]
HEAD += ["most frequent diagnosis", "how often"]
OTHER = "a mistake that looks like no known misconception"


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
    """One entry an exercise. works: `grading.Work`, with verdicts."""
    right = numpy.array([[work.verdicts[i.exercise].status == "right" for i in items] for work in works], dtype=float)
    right = right.reshape(len(works), len(items))
    points = right * [item.points for item in items]
    found = []
    for place, item in enumerate(items):
        verdicts = [work.verdicts[item.exercise] for work in works]
        known = {misconception.message for misconception in EXERCISES[item.exercise].misconceptions}
        wrong = Counter(v.message if v.message in known else OTHER for v in verdicts if v.status == "wrong")
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEAD)
    for one in found:
        numbers = ["" if n is None else f"{n:.3f}" for n in (one.difficulty, one.discrimination)]
        counts = [f"{one.item.points:g}", one.students, one.attempted, one.right]
        diagnosis = [one.diagnosis, one.diagnosed or ""]
        writer.writerow([one.item.notebook, one.item.exercise, *counts, *numbers, *diagnosis])
    write_text(path, "\ufeff" + text.getvalue())  # Excel needs the mark to read UTF-8
