"""A class that does not exist, graded: everybody gets what they deserve, and nobody stops the rest."""

import csv
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import nbformat
import pytest
from hostile_answers import HOSTILE
from synthetic_class import LISTED, Student, answered, make_class, plain, solutions, write
from typer.testing import CliRunner
from workers import Ended, alone

from qlora_lab.classroom import grading, submissions
from qlora_lab.classroom.course import Course
from qlora_lab.classroom.grading import judge_all
from qlora_lab.classroom.judging import Judge, Unjudged
from qlora_lab.classroom.results import UNKNOWN_MISTAKE, statistics, write_csv
from qlora_lab.cli.commands import app


@pytest.fixture(scope="module")
def own_course(course, tmp_path_factory):
    """A copy that may be graded in."""
    folder = tmp_path_factory.mktemp("class") / "course"
    shutil.copytree(course.folder, folder)
    return Course(folder)


@pytest.fixture(scope="module")
def students(own_course):
    return make_class(own_course)


@pytest.fixture(scope="module")
def judged(own_course, students, tmp_path_factory):
    """(works by student, unreadable files): the whole class, without nbgrader's records."""
    folder = tmp_path_factory.mktemp("submissions")
    write(students, folder)
    handed, unreadable = submissions.read(folder, own_course.names)
    with Judge(own_course, seconds=2, memory=2**29, patience=10) as judge:
        works, problems = judge_all(handed, judge, workers=2)
    return {work.student: work for work in works}, [*unreadable, *problems]


def test_the_class_is_large_enough(students):
    assert len(students) > 100 and len({s.name for s in students}) == len(students)
    assert sum(s.name.startswith("hostile") for s in students) == len(HOSTILE) > 30


def test_everybody_is_graded_and_nobody_else(judged, students):
    assert set(judged[0]) == {student.name for student in students}


def test_everybody_gets_what_they_deserve(judged, students, own_course):
    for student in students:
        verdicts = judged[0][student.name].verdicts
        assert set(verdicts) == {item.exercise for item in own_course.items}
        not_right = {exercise for exercise, verdict in verdicts.items() if verdict.status != "right"}
        assert not_right == student.wrong, (student.name, [str(verdicts[e]) for e in not_right ^ student.wrong])


def test_wrong_and_hostile_answers_are_told_what_they_are(judged, students):
    for student in students:
        for exercise, words in student.says.items():
            assert words in judged[0][student.name].verdicts[exercise].message, student.name


def test_hostile_answers_left_nothing_behind():
    assert not Path("/tmp/pwned").exists() and not Path("/tmp/left-behind").exists()


def test_unreadable_files_are_listed_with_a_reason(judged):
    assert {one.path for one in judged[1]} == LISTED
    assert all(one.reason for one in judged[1])


def test_statistics_of_the_class(judged, own_course):
    works = list(judged[0].values())
    for one in statistics(own_course.items, works):
        right = [w.verdicts[one.item.exercise].status == "right" for w in works]
        assert one.right == sum(right) and one.difficulty == pytest.approx(sum(right) / len(works))
        assert one.diagnosed and (
            one.diagnosis == UNKNOWN_MISTAKE or "hint" in one.diagnosis or one.diagnosis.endswith(".")
        )
        assert -1 <= one.discrimination <= 1


def test_statistics_tell_a_good_item_from_one_that_is_the_same_for_all(judged, own_course):
    works = [judged[0]["perfect-colab"], judged[0]["perfect-jupyterlab"], judged[0]["empty"], judged[0]["helpers"]]
    found = {one.item.exercise: one for one in statistics(own_course.items, works)}
    assert found["decode"].discrimination == pytest.approx(1, abs=0.01)
    assert found["block-absmax"].right == 3 and found["block-absmax"].attempted == 3
    assert statistics(own_course.items, works[:2])[0].discrimination is None
    assert statistics(own_course.items, [])[0].difficulty is None


# Through nbgrader


def run(*arguments):
    return CliRunner().invoke(app, ["classroom", "grade", *map(str, arguments)], terminal_width=140)


WRITERS = ["writes", "1_1", "deletes-the-line", "deletes-the-question"]
SMALL = ["perfect-colab", "empty", "helpers", "perfect-flat", "syntax-error", "hostile-ends-the-process"]
SMALL += ["wrong-decode-sixteen_steps"]


@pytest.fixture(scope="module")
def graded(own_course, students, tmp_path_factory):
    """(folder of results, folder of submissions, output): a few of the class, all the way, with an open answer."""
    few = [s for s in students if s.name in SMALL]
    book = answered(own_course, own_course.names[0], solutions(own_course))
    for cell in book.cells:
        if cell.cell_type == "markdown" and "**Answer to question 01-a**" in cell.source:
            cell.source = "**Answer to question 01-a**\n\nBecause <b>blocks</b> are scaled."
    few.append(Student("writes", {f"writes/{own_course.names[0]}.ipynb": plain(book)}))
    few.append(Student("=1+1", {f"=1+1/{own_course.names[0]}.ipynb": plain(book)}))
    for cell in book.cells:
        if cell.cell_type == "markdown" and "**Answer to question 01-a**" in cell.source:
            cell.source = "Because blocks are scaled."
    few.append(Student("deletes-the-line", {f"deletes-the-line/{own_course.names[0]}.ipynb": plain(book)}))
    book.cells = [cell for cell in book.cells if "Question 01-a" not in cell.source]
    few.append(Student("deletes-the-question", {f"deletes-the-question/{own_course.names[0]}.ipynb": plain(book)}))
    folder, out = tmp_path_factory.mktemp("handed"), tmp_path_factory.mktemp("out")
    write(few, folder)
    result = run(folder, "--course", own_course.folder, "--out", out / "grades.csv", "--seconds", 5, "--workers", 2)
    assert result.exit_code == 0, result.output
    return out, folder, result.output


def table(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_the_table_of_points(graded, own_course, students):
    rows = {row["student"]: row for row in table(graded[0] / "grades.csv")}
    assert set(rows) == {*SMALL, *WRITERS}
    for student in students:
        if student.name in SMALL:
            row = rows[student.name]
            for item in own_course.items:
                wanted = 0 if item.exercise in student.wrong else item.points
                assert float(row[item.column]) == wanted, (student.name, item)
            own = [item.points for item in own_course.items if item.exercise not in student.wrong]
            assert float(row["total"]) == sum(own)
            assert float(row["max"]) == sum(item.points for item in own_course.items) + 4 + 4 + 4
    assert rows["empty"]["01 question-01-a"] == "0"
    assert rows["writes"]["01 question-01-a"] == rows["deletes-the-line"]["01 question-01-a"] == ""


def test_the_other_tables(graded, own_course):
    items = table(graded[0] / "items.csv")
    assert [row["exercise"] for row in items] == [item.exercise for item in own_course.items]
    listed = table(graded[0] / "unreadable.csv")
    assert {row["file"] for row in listed if row["used"] == "no"} == LISTED
    (used,) = [row for row in listed if row["used"] == "yes"]
    assert used["file"].startswith("deletes-the-question/") and "No answer to question 01-a" in used["reason"]
    assert f"{len(LISTED)} files could not be read" in graded[2] and "3 open answers wait" in graded[2]
    assert "one was used, but look at why it is listed" in graded[2]
    assert "Sandbox: files" in graded[2]


def test_spreadsheets_read_the_tables_as_utf_8(graded):
    for name in ("grades", "items", "unreadable"):
        text = (graded[0] / f"{name}.csv").read_bytes()
        assert text.startswith(b"\xef\xbb\xbf") and text.count(b"\xef\xbb\xbf") == 1


def handed_in(folder: Path, files: dict[str, str], own_course) -> list:
    for path, code in files.items():
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(nbformat.writes(book))
    return submissions.read(folder, own_course.names)[0]


def test_one_students_notebooks_do_not_keep_a_class_waiting(own_course, tmp_path, monkeypatch):
    monkeypatch.setattr(grading, "SEARCH", 0)
    right = "def decode(code, low, high):\n    return low + (high - low) * code / 15"
    files = {f"eve/{n}.ipynb": f"{right}\n# {n} {tmp_path}" for n in range(5)} | {"zoe/x.ipynb": right}
    with Judge(own_course) as judge:
        works, problems = judge_all(handed_in(tmp_path, files, own_course), judge)
    assert {work.student: len(work.files) for work in works} == {"eve": 1, "zoe": 1}
    assert [one.path for one in problems] == [f"eve/{n}.ipynb" for n in range(1, 5)]
    assert all("took too long" in one.reason for one in problems)


def test_an_answer_in_a_text_alone_is_told_as_one(own_course, tmp_path):
    text = "# def decode(code, low, high):\n#     return 1"
    with Judge(own_course) as judge:
        (work,), (problem,) = judge_all(handed_in(tmp_path, {"eve/x.ipynb": text}, own_course), judge)
    assert work.verdicts["decode"].status == "not attempted" and "an answer stands in a comment" in problem.reason


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "\v", "\x85", "\u2028"])
@pytest.mark.parametrize("begin", ["=1+1", "+1", "@x", "-x"])
def test_a_row_is_one_line_and_no_part_of_a_cell_a_formula(tmp_path, end, begin):
    """Also where a spreadsheet parts cells at semicolons, as in German."""
    cells = [f"a{end}{begin}", f"b;{begin}", f"c; {begin}", f" {begin}"]
    write_csv(tmp_path / "some.csv", list("abcd"), [cells, ["x"] * 4])
    text = (tmp_path / "some.csv").read_bytes().decode("utf-8-sig")
    assert len(text.splitlines()) == 3 and text.splitlines()[2] == "x,x,x,x"
    parts = text.splitlines()[1].replace(";", ",").split(",")
    assert not [part for part in parts if part.strip(' "')[:1] in ("=", "+", "@", "-")]
    assert next(csv.reader(text.splitlines()[1:]))[0] == f"a {begin}"


def test_in_a_table_what_begins_like_a_formula_is_a_text_and_a_number_a_number(tmp_path):
    rows = [["=1+1", "+1", "@x", "\tx", "-x", "-1+1", "-1"], ["'=1", "-0.25", -3, "x=1", "", "1", "-"]]
    write_csv(tmp_path / "some.csv", list("abcdefg"), rows)
    one, two = (list(row.values()) for row in table(tmp_path / "some.csv"))
    assert one == ["'=1+1", "'+1", "'@x", "'\tx", "'-x", "'-1+1", "-1"]
    assert two == ["'=1", "-0.25", "-3", "x=1", "", "1", "'-"]


def test_feedback_pages(graded, own_course):
    pages = {p.stem: p.read_text() for p in (graded[0] / "feedback").glob("*.html")}
    assert set(pages) == {*SMALL, *WRITERS}
    assert "SyntaxError" in pages["syntax-error"] and "ended the process" in pages["hostile-ends-the-process"]
    assert "return t.stack([largest(b)" in pages["helpers"] and "def largest" in pages["helpers"]
    assert [name for name, page in pages.items() if "No answer to question 01-a" in page] == ["deletes-the-question"]
    for page in pages.values():
        assert own_course.seed not in page and "hidden_test" not in page
        assert "<script" not in page


def test_nbgrader_has_the_points_and_the_answers(graded, own_course):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{own_course.folder / 'gradebook.db'}") as book:
        submission = book.find_submission("01_four_bit_quantization", "perfect-colab")
        assert submission.score == 21 and not submission.needs_manual_grade
        waiting = book.find_submission("01_four_bit_quantization", "writes")
        assert waiting.needs_manual_grade and waiting.score == 21
    marked = nbformat.read(own_course.notebook("autograded", "01_four_bit_quantization", "syntax-error"), as_version=4)
    outputs = {c.metadata.nbgrader.grade_id: c.outputs for c in marked.cells if c.cell_type == "code" and c.outputs}
    assert outputs["decode-test"][0].output_type == "error" and "SyntaxError" in outputs["decode-test"][0].evalue
    assert outputs["block-absmax-test"][0].data["text/plain"] == "2"


def test_a_second_run_judges_nothing_anew_and_takes_up_points_of_a_person(graded, own_course, monkeypatch):
    from nbgrader.api import Gradebook

    out, folder, _ = graded
    with Gradebook(f"sqlite:///{own_course.folder / 'gradebook.db'}") as book:
        grade = book.find_grade("question-01-a", "01_four_bit_quantization", "01_four_bit_quantization", "writes")
        grade.manual_score, grade.needs_manual_grade = 3, False
        book.db.commit()
    before = {p: p.stat().st_mtime_ns for p in (own_course.folder / "autograded").rglob("*.ipynb")}

    def again() -> bool:
        """Whether nbgrader left all that it had graded."""
        result = run(folder, "--course", own_course.folder, "--out", out / "grades.csv", "--seconds", 5)
        assert result.exit_code == 0, result.output
        rows = {row["student"]: row for row in table(out / "grades.csv")}
        assert rows["writes"]["01 question-01-a"] == "3" and rows["1_1"]["01 question-01-a"] == ""
        return {p: p.stat().st_mtime_ns for p in (own_course.folder / "autograded").rglob("*.ipynb")} == before

    assert again()
    with sqlite3.connect(own_course.verdicts) as store:
        store.execute("update verdicts set message = 'as it was kept'")
    assert not again()  # another message, which goes into what nbgrader has
    assert "as it was kept" in (out / "feedback" / "perfect-colab.html").read_text()
    wrong = own_course.notebook("autograded", "01_four_bit_quantization", "wrong-decode-sixteen_steps")
    assert "as it was kept" in wrong.read_text()


def test_the_points_are_written_whatever_happens_to_the_pages(graded, own_course, monkeypatch, tmp_path):
    from qlora_lab.classroom import grading

    def full(*_):
        raise OSError("no space left on the device")

    monkeypatch.setattr(grading, "write_feedback", full)
    result = run(graded[1], "--course", own_course.folder, "--out", tmp_path / "grades.csv", "--seconds", 5)
    assert result.exit_code == 1 and "no space left on the device" in result.output
    assert {row["student"] for row in table(tmp_path / "grades.csv")} == {*SMALL, *WRITERS}


def test_plain_nbgrader_autograde_runs_no_students_code_either(graded, own_course, students):
    """A teacher who collects with nbgrader itself: the notebook as it was handed in, graded by nbgrader's command."""
    (student,) = [s for s in students if s.name == "hostile-writes-a-file"]
    for path, content in student.files.items():
        name = Path(path).stem
        place = own_course.notebook("submitted", name, "through-nbgrader")
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
    command = [sys.executable, "-m", "nbgrader", "autograde", "01_four_bit_quantization", "--student=through-nbgrader"]
    done = subprocess.run(command, cwd=own_course.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{own_course.folder / 'gradebook.db'}") as book:
        assert book.find_submission("01_four_bit_quantization", "through-nbgrader").score == 20
    assert not Path("/tmp/left-behind").exists()


def test_a_course_without_assignments_overwrites_no_points(tmp_path):
    course = Course(tmp_path / "course")
    course.prepare(None)
    (tmp_path / "ada_01.ipynb").write_bytes(plain(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x")])))
    (tmp_path / "grades.csv").write_text("last week's")
    result = run(tmp_path / "ada_01.ipynb", "--course", course.folder, "--out", tmp_path / "grades.csv")
    assert result.exit_code == 1 and "no assignment in" in result.output
    assert (tmp_path / "grades.csv").read_text() == "last week's"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no folder nowhere"),
        ([".", "--course", "nowhere"], "no course in"),
        ([".", "--out", "nowhere/grades.csv"], "in a folder that exists"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, own_course, arguments, words):
    monkeypatch.chdir(tmp_path)
    if "--course" not in arguments:
        arguments = [*arguments, "--course", own_course.folder]
    result = run(*arguments)
    assert result.exit_code == 1 and words in result.output and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


# Runs after which something else is to be recorded

BOOK = "01_four_bit_quantization"
QUESTION = "**Answer to question 01-a**"
WRONG = "def decode(code, low, high):\n    return 0.0"
SLOW = "import time\ndef decode(code, low, high):\n    while time.process_time() < 1.5:\n        pass\n"
SLOW += "    return low + (high - low) * code / 15"


@pytest.fixture(scope="module")
def judged_course(course, tmp_path_factory):
    """A course of the first notebook alone, in which the answers below were judged once, and nothing was recorded."""
    folder = tmp_path_factory.mktemp("judged") / "course"
    shutil.copytree(course.folder, folder)
    for step in ("source", "release"):
        for name in course.names[1:]:
            shutil.rmtree(folder / step / name)
    made = Course(folder)
    with Judge(made, seconds=5) as judge:
        for decode in (None, WRONG):
            judge_all(submissions.read(hand_in(made, decode), made.names)[0], judge)
    return made


@pytest.fixture
def fresh(judged_course, tmp_path):
    """A copy of it."""
    shutil.copytree(judged_course.folder, tmp_path / "course")
    return Course(tmp_path / "course")


def hand_in(fresh, decode: str | None = None, text: str = "Blocks are scaled.", student: str = "ada") -> Path:
    """The folder of what is handed in, with this answer to `decode` (None: the solution) and to the open question."""
    book = answered(fresh, BOOK, solutions(fresh) | ({"decode": decode} if decode else {}))
    for cell in book.cells:
        if cell.cell_type == "markdown" and QUESTION in cell.source:
            cell.source = f"{QUESTION}\n\n{text}"
    folder = fresh.folder.parent / "handed"
    write([Student(student, {f"{student}/{BOOK}.ipynb": plain(book)})], folder, unreadable=False)
    return folder


def command(fresh, folder: Path, seconds: float = 5) -> list[str]:
    out = fresh.folder.parent / "grades.csv"
    return [*map(str, (folder, "--course", fresh.folder, "--out", out, "--seconds", seconds, "--workers", 1))]


def graded_rows(fresh, folder: Path, seconds: float = 5) -> list[dict[str, str]]:
    """Of all students, by their names."""
    result = run(*command(fresh, folder, seconds))
    assert result.exit_code == 0, result.output
    return table(fresh.folder.parent / "grades.csv")


def graded_row(fresh, folder: Path, seconds: float = 5) -> dict[str, str]:
    """Of the one student."""
    (row,) = graded_rows(fresh, folder, seconds)
    return row


def give_points(fresh, points: float, cell: str = "question-01-a") -> None:
    """As a person does with the formgrader."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{fresh.folder / 'gradebook.db'}") as book:
        grade = book.find_grade(cell, BOOK, BOOK, "ada")
        grade.manual_score, grade.needs_manual_grade = points, False
        book.db.commit()


def test_other_limits_change_the_points_and_leave_those_of_a_person(fresh):
    folder = hand_in(fresh, SLOW)
    row = graded_row(fresh, folder, seconds=1)
    assert row["01 decode"] == "0" and row["01 question-01-a"] == ""
    give_points(fresh, 3)
    row = graded_row(fresh, folder, seconds=10)
    assert row["01 decode"] == "1" and row["01 question-01-a"] == "3"
    marked = nbformat.read(fresh.notebook("autograded", BOOK, "ada"), as_version=4)
    (cell,) = [c for c in marked.cells if c.metadata.get("nbgrader", {}).get("grade_id") == "decode-test"]
    assert cell.outputs[0].output_type == "execute_result"


def test_a_person_is_asked_again_about_what_changed_alone(fresh):
    row = graded_row(fresh, hand_in(fresh, WRONG))
    give_points(fresh, 3)
    give_points(fresh, 0.5, "decode-test")
    row = graded_row(fresh, hand_in(fresh, WRONG, text="Blocks are scaled by their absmax."))
    assert row["01 question-01-a"] == "" and row["01 decode"] == "0.5"
    give_points(fresh, 4)
    row = graded_row(fresh, hand_in(fresh, text="Blocks are scaled by their absmax."))
    assert row["01 question-01-a"] == "4" and row["01 decode"] == ""  # right now, so 0.5 need not stand


def run_until(moment: str, arguments: list[str], folder: Path) -> None:
    """Run `classroom grade`, or nbgrader, and end this process, as the system does where memory runs out, at a moment.

    Args:
        moment: the begin of a statement of SQL, a commit of something, or before or after a file is put into a folder
            of the course.
    """
    from nbgrader.apps import NbGraderApp
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    rename, written = os.replace, []

    def here(what):
        if what == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def statement(connection, cursor, text, *_):
        what = " ".join(text.split()[:3]).lower()
        if not what.startswith("select"):
            here(what)
            written.append(what)

    def replace(source, target):
        step = str(target).split(os.sep)[-4]
        here(f"before {step}")
        rename(source, target)
        here(f"after {step}")

    event.listen(Engine, "before_cursor_execute", statement)
    event.listen(Engine, "commit", lambda _: here("commit") if written else None)
    os.replace = replace
    os.chdir(folder)
    if arguments[0] == "nbgrader":
        NbGraderApp.launch_instance(arguments[1:])
    else:
        app(["classroom", "grade", *arguments])


# In their order: while points of ada come, who has some already, and then of bob, who has none.
MOMENTS = ["after submitted", "update grade set", "commit", "before autograded", "insert into grade"]


def killed_run(fresh, moment: str, arguments: list[str]) -> None:
    with pytest.raises(Ended, match=f"exit code {-signal.SIGKILL}"):
        alone(run_until, moment, arguments, fresh.folder)


def in_gradebook(fresh, student: str) -> dict[str, tuple] | None:
    """What it has of each cell of a student's, if it has the student's submission."""
    from nbgrader.api import Gradebook, MissingEntry

    with Gradebook(f"sqlite:///{fresh.folder / 'gradebook.db'}") as book:
        try:
            submission = book.find_submission(BOOK, student)
        except MissingEntry:
            return None
        return {g.name: (g.auto_score, g.manual_score, g.needs_manual_grade) for g in submission.notebooks[0].grades}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_leaves_the_old_points_or_the_new_and_the_next_run_the_new(fresh, moment):
    graded_row(fresh, hand_in(fresh, WRONG))
    give_points(fresh, 3)
    old = in_gradebook(fresh, "ada")
    folder = hand_in(fresh, text="Blocks are scaled by their absmax.")
    hand_in(fresh, student="bob")
    killed_run(fresh, moment, command(fresh, folder))
    new = old | {"decode-test": (1, None, False), "question-01-a": (None, 3, True)}
    begun = MOMENTS.index(moment) > MOMENTS.index("commit")
    assert in_gradebook(fresh, "ada") == (new if begun else old) and in_gradebook(fresh, "bob") is None
    rows = graded_rows(fresh, folder)
    assert [row["student"] for row in rows] == ["ada", "bob"]
    assert [row["total"] for row in rows] == ["21", "21"] and [row["01 decode"] for row in rows] == ["1", "1"]
    assert [row["01 question-01-a"] for row in rows] == ["", ""]  # ada's answer changed: a person looks at it again
    assert in_gradebook(fresh, "ada") == new
    for student in ("ada", "bob"):
        marked = nbformat.read(fresh.notebook("autograded", BOOK, student), as_version=4)
        kinds = {output.output_type for cell in marked.cells for output in cell.get("outputs", [])}
        assert kinds == {"execute_result"}


def test_what_nbgrader_alone_left_half_recorded_is_graded_anew(fresh):
    """As a killed `nbgrader autograde` leaves it: no points, and a notebook in autograded/."""
    assert graded_row(fresh, hand_in(fresh, student="bob"))["total"] == "21"
    place = fresh.notebook("submitted", BOOK, "ada")
    place.parent.mkdir(parents=True)
    folder = hand_in(fresh)
    place.write_bytes((folder / "ada" / f"{BOOK}.ipynb").read_bytes())
    killed_run(fresh, "update grade set", ["nbgrader", "autograde", BOOK, "--student=ada"])
    assert in_gradebook(fresh, "ada") != in_gradebook(fresh, "bob")
    assert [row["total"] for row in graded_rows(fresh, folder)] == ["21", "21"]
    assert in_gradebook(fresh, "ada") == in_gradebook(fresh, "bob")


def test_the_same_points_come_of_nbgraders_own_autograding(fresh):
    """As a click in the formgrader starts it, on what `grade` put into submitted/."""
    folder = hand_in(fresh, WRONG)
    hand_in(fresh, student="bob")
    graded_rows(fresh, folder)
    before = [in_gradebook(fresh, student) for student in ("ada", "bob")]
    notebooks = [fresh.notebook("autograded", BOOK, student) for student in ("ada", "bob")]
    texts = [(path.read_text(), path.stat().st_mode & 0o777) for path in notebooks]
    command = [sys.executable, "-m", "nbgrader", "autograde", BOOK, "--force"]
    done = subprocess.run(command, cwd=fresh.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [in_gradebook(fresh, student) for student in ("ada", "bob")] == before
    assert [(path.read_text(), path.stat().st_mode & 0o777) for path in notebooks] == texts


def test_times_penalties_and_files_beside_the_notebook_come_along(fresh):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{fresh.folder / 'gradebook.db'}") as book:
        book.update_or_create_assignment(BOOK, duedate=datetime(2026, 1, 1))
    with open(fresh.config, "a") as file:
        file.write('c.LateSubmissionPlugin.penalty_method = "zero"\n')
    (fresh.notebook("source", BOOK).parent / "figure.png").write_bytes(b"a picture of the teacher's")
    beside = fresh.notebook("submitted", BOOK, "ada").parent
    beside.mkdir(parents=True)
    (beside / "timestamp.txt").write_text("2026-01-02 10:00:00 UTC")  # as nbgrader's collecting leaves it
    (beside / "data.csv").write_text("1,2")
    graded_row(fresh, hand_in(fresh))
    with Gradebook(f"sqlite:///{fresh.folder / 'gradebook.db'}") as book:
        submission = book.find_submission(BOOK, "ada")
        assert submission.timestamp == datetime(2026, 1, 2, 10) and submission.total_seconds_late == 34 * 3600
        assert submission.late_submission_penalty == submission.score == 21
        comments = {comment.name: comment.comment for comment in submission.notebooks[0].comments}
    assert set(comments.values()) == {None}
    shown = {path.name for path in fresh.notebook("autograded", BOOK, "ada").parent.iterdir()}
    assert shown == {f"{BOOK}.ipynb", "figure.png", "timestamp.txt", "data.csv"}


def test_what_nbgrader_could_not_record_is_told_and_does_not_wait_for_a_person(fresh, monkeypatch):
    from nbgrader.api import Gradebook

    enter = Gradebook.update_or_create_submission

    def fails(self, assignment, student, **more):
        found = enter(self, assignment, student, **more)
        if student == "ada":
            raise OSError("the disk is full")
        return found

    folder = hand_in(fresh)
    hand_in(fresh, student="bob")
    with monkeypatch.context() as patch:
        patch.setattr(Gradebook, "update_or_create_submission", fails)
        result = run(*command(fresh, folder))
    assert result.exit_code == 1 and "nbgrader failed on 1 of 2" in result.output and "disk is full" in result.output
    assert in_gradebook(fresh, "ada") is None
    ada, bob = table(fresh.folder.parent / "grades.csv")
    assert ada["total"] == ada["01 decode"] == "" and bob["total"] == "21"
    pages = [(fresh.folder.parent / "feedback" / f"{name}.html").read_text() for name in ("ada", "bob")]
    assert ["for a person to read" in page for page in pages] == [False, True]
    assert graded_rows(fresh, folder)[0]["total"] == "21"


def test_an_answer_that_could_not_be_judged_is_listed_and_the_class_goes_on(fresh, monkeypatch):
    verdict = Judge.verdict

    def fails(self, exercise, found):
        if exercise == "decode":
            raise Unjudged("the sandbox failed twice")
        return verdict(self, exercise, found)

    folder = hand_in(fresh)
    with monkeypatch.context() as patch:
        patch.setattr(Judge, "verdict", fails)
        handed, _ = submissions.read(folder, fresh.names)
        with Judge(fresh) as judge:
            (work,), (problem,) = judge_all(handed, judge)
        assert problem.path == f"ada/{BOOK}.ipynb" and problem.reason == "decode: the sandbox failed twice"
        states = {exercise: verdict.status for exercise, verdict in work.verdicts.items()}
        assert states.pop("decode") == "not judged" and set(states.values()) == {"right"}
        result = run(*command(fresh, folder))
        (row,) = table(fresh.folder.parent / "grades.csv")
    assert result.exit_code == 0 and row["01 decode"] == "not judged, see unreadable.csv"
    assert "1 open answers wait" in result.output and in_gradebook(fresh, "ada") is not None
    page = (fresh.folder.parent / "feedback" / "ada.html").read_text()
    assert "the sandbox failed twice" in page and "1 open\nanswer waits" in page
    without = float(row["total"])
    result = run(*command(fresh, folder))
    (row,) = table(fresh.folder.parent / "grades.csv")
    assert result.exit_code == 0 and float(row["total"]) == without + float(row["01 decode"]) == 21


def test_an_answer_in_a_text_cell_is_graded_and_told_and_one_that_is_lost_is_told(fresh):
    folder = hand_in(fresh)
    place = folder / "ada" / f"{BOOK}.ipynb"
    book = nbformat.read(place, as_version=4)
    for cell in book.cells:
        if cell.source.startswith("def decode"):
            cell.cell_type = "markdown"
        elif cell.source.startswith("def pack_nibbles"):
            cell.source = "if False:\n" + "\n".join(f"    {line}" for line in cell.source.split("\n"))
        elif cell.source.startswith("def nearest_code"):
            cell.source = cell.source.replace("def nearest_code", "def nearest_code[T]")
    place.write_text(nbformat.writes(book))
    row = graded_row(fresh, folder)
    assert row["01 decode"] == "1" and row["01 pack-nibbles"] == "0"
    listed = {one["reason"].partition(":")[0]: one for one in table(fresh.folder.parent / "unreadable.csv")}
    assert "in a text cell" in listed["decode"]["reason"] and "graded all the same" in listed["decode"]["reason"]
    assert "if False" in listed["pack-nibbles"]["reason"] and listed["pack-nibbles"]["used"] == "yes"
    if sys.version_info < (3, 12):
        assert row["01 nearest-code"] == "not judged, see unreadable.csv"
        assert "Python 3.12" in listed["nearest-code"]["reason"] and listed["nearest-code"]["used"] == "no"
