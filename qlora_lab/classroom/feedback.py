"""A page for each student: points and diagnoses, and the code that was graded. No hidden input is in it."""

import shutil
import tempfile
from importlib.resources import files
from pathlib import Path

import jinja2

from qlora_lab.classroom.course import Course


def write_feedback(folder: Path, course: Course, works: list, points: dict) -> None:
    """Write `folder/STUDENT.html` for each of `works` (`grading.Work`); pages of others stay.

    Args:
        points: (student, column) -> points, or None where a person has yet to give them.
    """
    folder.mkdir(exist_ok=True)
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("qlora_lab.classroom").joinpath("feedback.html.jinja").read_text(encoding="utf-8")
    )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        for work in works:
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
                waiting=[column for column, value in columns.items() if value is None],
            )
            file = Path(part) / f"{work.student}.html"
            file.write_text(page, encoding="utf-8")
            shutil.move(file, folder / file.name)
