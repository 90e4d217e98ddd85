"""`qlora-lab classroom release` and `grade`."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from qlora_lab.cli.terminal import console, minutes, told_errors

app = typer.Typer(help="A class: assignments from the notebooks, and their grading.", no_args_is_help=True)


@app.command()
def release(
    notebooks: Annotated[list[str], typer.Option(help="Numbers, names or paths: --notebooks 01 03 05.")],
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    out: Annotated[Path, typer.Option(help="Folder of the course, new or made before.")] = Path("course"),
    hints: Annotated[bool, typer.Option(help="Leave the hints in students' notebooks.")] = True,
    questions: Annotated[bool, typer.Option(help="Add open questions, which a person grades.")] = False,
    seed: Annotated[str | None, typer.Option(help="Of the hidden tests, any text. Default: drawn once.")] = None,
    due: Annotated[
        list[str] | None,
        typer.Option(help="When they are due: 2026-12-04T18:00, or of one notebook: 05=2026-12-11T18:00. Repeatable."),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the notebooks lie. Default: this checkout's.")] = None,
) -> None:
    """Make an nbgrader course of notebooks: `source/` with solutions and hidden tests, `release/` for students.

    The same command again leaves every file as it is; after a notebook changed, it brings the course up to date.
    """
    _refuse_windows()
    from qlora_lab.classroom.release import due_dates, find_notebooks
    from qlora_lab.classroom.release import release as make

    with told_errors():
        paths = find_notebooks([*notebooks, *(more or [])], folder)
        course, changed = make(paths, out, hints, questions, seed, due_dates(due or [], paths))
    table = Table(title=f"Course in {course.folder}", title_justify="left")
    for column in ("assignment", "exercises", "points", ""):
        table.add_column(column, justify="right" if column in ("exercises", "points") else "left")
    for name in course.names:
        items = [item for item in course.items if item.notebook == name]
        state = "made" if name in changed else "as it was"
        table.add_row(name, str(len(items)), f"{sum(item.points for item in items):g}", state)
    console.print(table)
    console.print(f"for students: {course.folder / 'release'}", soft_wrap=True)
    console.print(f"keep to yourself: {course.folder / 'teacher'}, {course.folder / 'source'}", soft_wrap=True)


@app.command()
def grade(
    submissions: Annotated[Path, typer.Argument(help="Folder of what was handed in, or one zip archive.")],
    out: Annotated[Path, typer.Option(help="The table of points; items.csv, unreadable.csv, feedback/ beside it.")] = (
        Path("grades.csv")
    ),
    course: Annotated[Path, typer.Option(help="Folder of the course.")] = Path("course"),
    seconds: Annotated[float, typer.Option(help="Of processor time, for one answer.", min=1)] = 10,
    memory: Annotated[float, typer.Option(help="GB that one answer may take.", min=0.1)] = 1.0,
    workers: Annotated[int, typer.Option(help="Answers at a time. Default: one a core.", min=0)] = 0,
) -> None:
    """Grade a class: find the answers, run them in a sandbox, let nbgrader record them, write tables and feedback.

    What was interrupted goes on where it was, and what was graded before is not run again.
    """
    _refuse_windows()
    from qlora_lab.classroom.course import Course, require_nbgrader
    from qlora_lab.classroom.grading import grade as grade_class
    from qlora_lab.classroom.judging import Judge

    began = time.perf_counter()
    torch.set_num_threads(1)  # inputs are small, and each sandbox has a core of its own to keep busy
    with told_errors("the same command goes on where it was"):
        require_nbgrader()
        home = Course.find(course)
        with Judge(home, seconds, int(1e9 * memory)) as judge:
            console.print(containment(judge.sandbox.seals), soft_wrap=True)
            with console.status("reading") as status:
                result = grade_class(
                    home,
                    submissions,
                    out,
                    judge,
                    workers or os.cpu_count() or 1,
                    lambda what, done, of: status.update(f"{what}: {done} of {of}"),
                )
    console.print(items_table(result.items))
    console.print(f"{len(result.works)} students graded in {minutes(time.perf_counter() - began)}")
    if result.unreadable:
        console.print(f"{len(result.unreadable)} files could not be read: {result.files['unreadable']}", soft_wrap=True)
    if result.doubtful:
        what = "one was" if len(result.doubtful) == 1 else f"{len(result.doubtful)} were"
        console.print(f"{what} used, but look at why it is listed: {result.files['unreadable']}", soft_wrap=True)
    if result.waiting:
        console.print(f"{result.waiting} open answers wait for you in nbgrader's formgrader; then run this again.")
    for what in ("grades", "items", "feedback"):
        console.print(f"{what:9}{result.files[what]}", soft_wrap=True)


def items_table(items) -> Table:
    """A class's results by exercise. Where the terminal is narrow, the diagnoses wrap and the numbers stay."""
    table = Table(title="Exercises", title_justify="left")
    table.add_column("exercise", no_wrap=True)
    for column in ("right", "of", "diffi-\nculty", "discrimi-\nnation"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("most frequent diagnosis", overflow="fold")
    for one in items:
        numbers = ["" if n is None else f"{n:.2f}" for n in (one.difficulty, one.discrimination)]
        seen = f"{one.diagnosis} ({one.diagnosed})" if one.diagnosed else ""
        table.add_row(one.item.column, str(one.right), str(one.students), *numbers, seen)
    return table


@app.command()
def reference(
    out: Annotated[Path, typer.Option(help="The Markdown file to write.")] = Path("docs/teaching_reference.md"),
    folder: Annotated[Path | None, typer.Option(help="Where the notebooks lie. Default: this checkout's.")] = None,
) -> None:
    """Write what the teacher's guide says of each exercise: times, points, misconceptions, rubrics."""
    from qlora_lab.classroom.reference import reference as text_of
    from qlora_lab.classroom.release import notebooks_folder
    from qlora_lab.machine.files import write_text

    with told_errors():
        write_text(out, text_of(sorted(notebooks_folder(folder).glob("*.ipynb"))))
    console.print(f"written: {out}", soft_wrap=True)


def containment(seals: dict[str, bool]) -> str:
    """In a line, how students' code is kept away from the rest of the machine."""
    files = "files: only Python's own can be read (Landlock)" if seals["landlock"] else "files: read as user nobody"
    network = "no sockets (seccomp)" + (", in an empty network namespace" if seals["network"] else "")
    alone = ["in a namespace of processes"] * seals["processes"] + ["in Landlock's scope"] * seals["signals"]
    signals = "no signals (seccomp)" + "".join(f", {seal}" for seal in alone)
    return f"Sandbox: {files}; {network}; no new processes; {signals}; limits of time and memory."


def _refuse_windows() -> None:
    """In a sentence, before what needs modules that Windows does not have is imported."""
    with told_errors():
        if sys.platform == "win32":
            raise ValueError(
                "courses are made on Linux or macOS and graded on Linux; on Windows use WSL 2 (docs/teaching.md)"
            )
