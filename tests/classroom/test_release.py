"""Assignments: what students get holds no solution, and making it again changes nothing."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from qlora_lab.checks import EXERCISES, function_name
from qlora_lab.classroom.course import Course
from qlora_lab.classroom.questions import QUESTIONS
from qlora_lab.classroom.release import NO_POINTS, assignment, find_notebooks, release
from qlora_lab.cli.commands import app

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = [p for p in sorted(FOLDER.glob("*.ipynb")) if "exercise" in p.read_text()]


def read(path):
    return nbformat.read(path, as_version=4)


def lines(text: str) -> list[str]:
    """Lines that say something: not a bracket, a `return x` or an `else:` that stand anywhere."""
    found = [line.strip() for line in text.split("\n")]
    return [line for line in found if len(re.sub(r"\W", "", line)) > 12]


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "gradebook.db"
    }


def test_every_exercise_of_a_notebook_is_in_its_assignment_with_points(course):
    for name, book in course.books.items():
        source = read(FOLDER / f"{name}.ipynb")
        wanted = {c.metadata["exercise"] for c in source.cells if "exercise" in c.metadata}
        wanted = {exercise for exercise in wanted if EXERCISES[exercise].graded}
        assert {item.exercise for item in course.items if item.notebook == name} == wanted
        ids = [c.metadata["nbgrader"]["grade_id"] for c in book.cells if "nbgrader" in c.metadata]
        assert len(ids) == len(set(ids)) == 2 * len(wanted) + len(QUESTIONS[name[:2]])
    assert {item.points for item in course.items} <= {1, 2, 3, 4, 5}


def test_what_the_sandbox_cannot_judge_gives_no_points_and_says_so():
    """A loop is given functions, a pager files, a layer goes into a model."""
    ungraded = {exercise for exercise in EXERCISES if not EXERCISES[exercise].graded}
    assert {"replace-module", "train"} <= ungraded
    for path in NOTEBOOKS:
        made = assignment(read(path), path.stem, True, False)
        for cell in made.cells:
            exercise = cell.metadata.get("exercise")
            if exercise in ungraded:
                assert "nbgrader" not in cell.metadata
                assert (NO_POINTS in cell.source) == ("**Difficulty**" in cell.source)
            else:
                assert NO_POINTS not in cell.source


def test_students_files_are_the_notebook_with_its_stubs_and_checks(course):
    for name, book in course.books.items():
        own = [c.source for c in read(FOLDER / f"{name}.ipynb").cells if "solution" not in c.metadata.get("tags", [])]
        released = {c.source.removesuffix(f"\n\n{NO_POINTS}") for c in book.cells}
        assert all(source in released for source in own)
        assert not any(c.get("outputs") or c.get("execution_count") for c in book.cells)


def test_no_line_of_a_solution_is_left(course):
    """Beyond those that the notebook itself has outside of its solutions, in the part that teaches."""
    for name, book in course.books.items():
        notebook = read(FOLDER / f"{name}.ipynb")
        given = "\n".join(c.source for c in notebook.cells if "solution" not in c.metadata.get("tags", []))
        text = course.notebook("release", name).read_text() + "\n".join(c.source for c in book.cells)
        assert "SOLUTION" not in text and "HIDDEN" not in text and "hidden_test" not in text
        released = "\n".join(c.source for c in book.cells)
        for cell in notebook.cells:
            if "solution" in cell.metadata.get("tags", []):
                (code,) = re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
                for line in lines(code.split("\n", 1)[1]):
                    assert released.count(line) <= given.count(line), (name, line)


def test_no_rubric_is_left(course):
    for name, book in course.books.items():
        text = "\n".join(c.source for c in book.cells)
        for question in QUESTIONS[name[:2]]:
            assert question.text in text and question.marker in text
            assert not any(what in text for _, what in question.rubric)


def test_hints_stay_or_go():
    for path in NOTEBOOKS:
        book = read(path)
        with_hints = "\n".join(c.source for c in assignment(book, path.stem, True, False).cells)
        without = "\n".join(c.source for c in assignment(book, path.stem, False, False).cells)
        assert "<summary>Hint 1</summary>" in with_hints and "<summary>Solution</summary>" not in with_hints
        # what a reader unfolds that belongs to no exercise (a repair in a lab, a question to oneself) stays
        assert "<summary>Hint" not in without and "<summary>Solution" not in without
        for cell in book.cells:
            if "solution" in cell.metadata.get("tags", []):
                for hint in re.findall(r"<summary>Hint.*?</summary>(.*?)</details>", cell.source, re.DOTALL):
                    for line in lines(hint):
                        assert line in with_hints and line not in without


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_source_holds_each_solution_and_its_stub(path):
    made = assignment(read(path), path.stem, True, False)
    for cell in made.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            assert '"""' in cell.source and "raise NotImplementedError" not in cell.source
            assert cell.source.count("### BEGIN SOLUTION") == cell.source.count("### END SOLUTION") == 1
            names: dict = {}
            exec("import math\nimport torch\n" + cell.source, names)
            from qlora_lab.checks import verdict

            exercise = cell.metadata["exercise"]
            assert verdict(exercise, names[function_name(exercise)]).status == "right"


def test_all_exercises_can_be_released():
    found = {c.metadata["exercise"] for p in NOTEBOOKS for c in assignment(read(p), p.stem, True, True).cells
             if "nbgrader" in c.metadata and "exercise" in c.metadata}  # fmt: skip
    assert found == {name for name, exercise in EXERCISES.items() if exercise.graded}


def test_making_it_again_changes_nothing(course, tmp_path):
    before = hashes(course.folder)
    again, changed = release(find_notebooks(["01", "03", "05"]), course.folder, questions=True)
    assert not changed and hashes(again.folder) == before
    other, _ = release(
        find_notebooks(["03", "01", "05"]), tmp_path / "other", questions=True, seed="the seed of the tests"
    )
    for part in ("source", "release"):
        assert hashes(other.folder / part) == hashes(course.folder / part)


def test_the_seed_is_only_the_teachers(course):
    seed = course.folder / "teacher" / "seed.txt"
    assert seed.stat().st_mode & 0o077 == 0 and seed.parent.stat().st_mode & 0o077 == 0
    for part in ("source", "release"):
        for path in (course.folder / part).rglob("*.ipynb"):
            assert f'"{course.seed}"' not in path.read_text()


def test_a_seed_is_drawn_once(tmp_path):
    one, other = Course(tmp_path / "one"), Course(tmp_path / "other")
    one.prepare(None)
    other.prepare(None)
    assert len(one.seed) == 32 and one.seed != other.seed
    kept = Course(tmp_path / "one")
    kept.prepare(None)
    assert kept.seed == one.seed
    with pytest.raises(ValueError, match="has a seed already"):
        Course(tmp_path / "one").prepare("another")


def test_the_teachers_settings_are_kept(tmp_path):
    course = Course(tmp_path)
    course.prepare(None)
    course.config.write_text(course.config.read_text() + "# mine\n")
    Course(tmp_path).prepare(None)
    assert course.config.read_text().endswith("# mine\n")


def run(*arguments):
    return CliRunner().invoke(app, ["classroom", "release", *map(str, arguments)], terminal_width=120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--notebooks", "17"], "no notebook 17; there are 00_start_here"),
        (["--notebooks", "01", "01"], "each notebook once"),
        (["--notebooks", "01", "--folder", "nowhere"], "no folder nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, arguments, words):
    result = run(*arguments, "--out", tmp_path / "course")
    assert result.exit_code == 1 and words in result.output and "Traceback" not in result.output
    assert not (tmp_path / "course").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    result = run("--notebooks", "01", "--out", tmp_path)
    assert result.exit_code == 1 and "no course" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_without_nbgrader_it_says_what_to_install(monkeypatch, tmp_path):
    import importlib.metadata

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    result = run("--notebooks", "01", "--out", tmp_path / "course")
    assert result.exit_code == 1 and "pip install 'qlora-lab[classroom]'" in result.output
    assert not (tmp_path / "course").exists()


@pytest.mark.slow
def test_the_command_line_needs_no_nbgrader():
    code = "import sys; sys.modules['nbgrader'] = None; import qlora_lab.cli, qlora_lab.classroom.release"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def changed(tmp_path):
    """A notebook with an exercise less than it had."""
    book = read(FOLDER / "03_lora.ipynb")
    first = next(c.metadata["exercise"] for c in book.cells if "exercise" in c.metadata)
    book.cells = [c for c in book.cells if c.metadata.get("exercise") != first]
    path = tmp_path / "changed" / "03_lora.ipynb"
    path.parent.mkdir()
    nbformat.write(book, path)
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
def test_a_refused_release_leaves_the_course_as_it_was(tmp_path, changed):
    from nbgrader.api import Gradebook

    made, _ = release([FOLDER / "03_lora.ipynb"], tmp_path / "course", seed="x")
    with Gradebook(f"sqlite:///{made.folder / 'gradebook.db'}") as book:
        book.add_student("ada")
        book.add_submission("03_lora", "ada")
    before = hashes(made.folder)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"nbgrader cannot make the assignment 03_lora: .*submissions"):
            release([changed], made.folder)
        assert hashes(made.folder) == before and Course(made.folder).names == ["03_lora"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before nbgrader", "after nbgrader", "after release/"])
def test_a_release_that_was_killed_is_made_the_next_time(tmp_path, changed, monkeypatch, moment):
    from qlora_lab.classroom import gradebook

    release([FOLDER / "03_lora.ipynb"], tmp_path / "course", seed="x")
    students = tmp_path / "course" / "release" / "03_lora" / "03_lora.ipynb"
    before, run_nbgrader, move = students.read_bytes(), gradebook._run, os.replace

    def killed_run(*arguments):
        if moment == "after nbgrader":
            run_nbgrader(*arguments)
        raise SystemExit("killed")

    def killed_move(source, target):
        move(source, target)
        if target == students:
            raise SystemExit("killed")

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        if moment == "after release/":
            patch.setattr(os, "replace", killed_move)
        else:
            patch.setattr(gradebook, "_run", killed_run)
        release([changed], tmp_path / "course")
    assert students.exists()
    _, made = release([changed], tmp_path / "course")
    assert made == ["03_lora"] and students.read_bytes() != before


@pytest.mark.slow
def test_what_lies_beside_the_source_is_released_with_it(tmp_path):
    made, _ = release([FOLDER / "03_lora.ipynb"], tmp_path / "course", seed="x")
    (made.folder / "source" / "03_lora" / "figure.png").write_bytes(b"a picture of the teacher's")
    release([FOLDER / "03_lora.ipynb"], made.folder, hints=False)
    for part in ("source", "release"):
        assert {p.name for p in (made.folder / part / "03_lora").iterdir()} == {"03_lora.ipynb", "figure.png"}
    assert not list(made.folder.glob(".part-*"))
