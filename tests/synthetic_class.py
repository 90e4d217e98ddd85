"""A class that does not exist: what its students hand in, and the marks that each of their answers deserves.

Perfect ones in every shape that files come in, empty ones, each typical wrong answer, syntax errors, and hostile ones.
`benchmarks/classroom.py` makes a larger class of the same students.
"""

import copy
import importlib
import inspect
import io
import json
import random
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from hostile_answers import HOSTILE

import qlora_lab
from qlora_lab.classroom.course import Course
from qlora_lab.classroom.hidden_tests import function_name
from qlora_lab.classroom.inside.answers import find_answers

WRONG_ANSWERS = Path(__file__).parent / "wrong_answers"


@dataclass
class Student:
    """files: path -> content. wrong: exercises that deserve nothing; all others are right. says: words of diagnoses."""

    name: str
    files: dict[str, bytes]
    wrong: set[str] = field(default_factory=set)
    says: dict[str, str] = field(default_factory=dict)


def solutions(course: Course) -> dict[str, str]:
    """The code of each exercise's solution, from the course's source."""
    found = {}
    for name in course.names:
        for cell in nbformat.read(course.notebook("source", name), as_version=4).cells:
            if cell.metadata.get("nbgrader", {}).get("solution") and cell.cell_type == "code":
                found[cell.metadata["exercise"]] = re.sub(r"\n    ### (BEGIN|END) SOLUTION", "", cell.source)
    return found


def wrong_answers(course: Course) -> list[tuple[str, str, str, str]]:
    """(exercise, name, code, words of its diagnosis) of each typical wrong answer to an exercise of the course."""
    exercises = {item.exercise for item in course.items}
    found = []
    for path in sorted(WRONG_ANSWERS.glob("[!_]*.py")):
        module = importlib.import_module(f"wrong_answers.{path.stem}")
        rest = path.read_text()
        for function in vars(module).values():
            if getattr(function, "exercise", None) in exercises:
                name = function_name(function.exercise)
                text = inspect.getsource(function)
                text = text[text.index("def ") :].replace(f"def {function.__name__}(", f"def {name}(", 1)
                code = find_answers(["import math\nimport torch", rest, text], [name])[name]["code"]
                found.append((function.exercise, function.__name__, code, function.says))
    return found


def answered(course: Course, name: str, answers: dict[str, str]) -> nbformat.NotebookNode:
    """A student's copy of a released notebook, with these answers in the places of the stubs."""
    book = copy.deepcopy(course.books[name])
    for cell in book.cells:
        grader = cell.metadata.get("nbgrader", {})
        if grader.get("solution") and cell.cell_type == "code" and grader["grade_id"] in answers:
            cell.source = answers[grader["grade_id"]]
            cell.execution_count = 3
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="something\n")]
    return book


def plain(book) -> bytes:
    return nbformat.writes(book).encode()


def from_colab(book) -> bytes:
    """As Colab saves: no cell metadata but its own, other ids, nbformat_minor 0, an empty cell at the end."""
    made = json.loads(nbformat.writes(book))
    for number, cell in enumerate(made["cells"]):
        cell["metadata"] = {"id": f"Xy{number:010d}"}
        cell.pop("id", None)
        if cell["cell_type"] == "code":
            cell["metadata"]["colab"] = {"base_uri": "https://localhost:8080/"}
    made["cells"].append({"cell_type": "code", "source": [], "metadata": {"id": "last"}, "outputs": []})
    made |= {"nbformat_minor": 0, "metadata": {"colab": {"provenance": []}, "kernelspec": {"name": "python3"}}}
    return json.dumps(made).encode()


def old_format(book) -> bytes:
    """nbformat 3, as programs of before 2015 wrote it, with lists of lines."""
    cells = [
        {"cell_type": "code", "input": c.source.splitlines(True), "outputs": [], "language": "python", "metadata": {}}
        if c.cell_type == "code"
        else {"cell_type": "markdown", "source": c.source.splitlines(True), "metadata": {}}
        for c in book.cells
    ]
    made = {"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}, "worksheets": [{"cells": cells}]}
    return json.dumps(made).encode()


def with_byte_order_mark(book) -> bytes:
    return b"\xef\xbb\xbf" + plain(book)


def shuffled(book) -> bytes:
    book = copy.deepcopy(book)
    random.Random(0).shuffle(book.cells)
    return plain(book)


def copied_cells(book) -> bytes:
    """Each answer's cell twice, first with an older try, and the stub once more at the end."""
    book = copy.deepcopy(book)
    cells = []
    for cell in book.cells:
        if cell.metadata.get("nbgrader", {}).get("solution") and cell.cell_type == "code":
            name = re.findall(r"^def (\w+)\(", cell.source, re.MULTILINE)[-1]
            cells.append(nbformat.v4.new_code_cell(f"def {name}(*arguments):\n    return None"))
            cells += [cell, copy.deepcopy(cell)]
            cells.append(nbformat.v4.new_code_cell(f"def {name}(*arguments):\n    raise NotImplementedError"))
        else:
            cells.append(cell)
    book.cells = cells
    return json.dumps(book).encode()


def with_magics(book) -> bytes:
    """IPython's own lines in the cells of answers."""
    book = copy.deepcopy(book)
    for cell in book.cells:
        if cell.metadata.get("nbgrader", {}).get("solution") and cell.cell_type == "code":
            cell.source = "%%time\n!pip list\n%matplotlib inline\n" + cell.source + "\nhelp?"
    return plain(book)


def with_carriage_returns(book) -> bytes:
    return plain(book).replace(b"\\n", b"\\r\\n")


SHAPES = {
    "jupyterlab": plain,
    "colab": from_colab,
    "nbformat3": old_format,
    "bom": with_byte_order_mark,
    "shuffled": shuffled,
    "copied": copied_cells,
    "magics": with_magics,
    "windows": with_carriage_returns,
}


def make_class(course: Course) -> list[Student]:
    """All of it."""
    right = solutions(course)
    everything = set(right)
    names = course.names

    def books(answers, shape=plain):
        return {name: shape(answered(course, name, answers)) for name in names}

    def files(student, answers, shape=plain):
        return {f"{student}/{name}.ipynb": content for name, content in books(answers, shape).items()}

    students = [Student(f"perfect-{s}", files(f"perfect-{s}", right, shape)) for s, shape in SHAPES.items()]
    students.append(Student("empty", files("empty", {}), everything))
    students.append(
        Student("perfect-flat", {f"{name} perfect-flat (1).ipynb": c for name, c in books(right, from_colab).items()})
    )
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in books(right).items():
            file.writestr(f"homework/{name}.ipynb", content)
    students.append(Student("perfect-zip", {"perfect-zip.zip": archive.getvalue()}))
    first = {e: c for e, c in right.items() if e in {i.exercise for i in course.items if i.notebook == names[0]}}
    students.append(
        Student("first-only", {"first-only/Copy of homework.ipynb": books(first)[names[0]]}, everything - set(first))
    )
    single = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in ("import torch", *right.values())])
    students.append(Student("all-in-one-file", {"all-in-one-file/x.ipynb": plain(single)}))
    with_helpers = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("import torch as t\nfrom math import *\nSCALES = {}"),
            nbformat.v4.new_code_cell("def largest(block):\n    return block.abs().max()"),
            nbformat.v4.new_code_cell(
                "def block_absmax(weight, block_size):\n"
                "    return t.stack([largest(b) for b in weight.reshape(-1).split(block_size)])"
            ),
        ]
    )
    students.append(Student("helpers", {"helpers/a.ipynb": plain(with_helpers)}, everything - {"block-absmax"}))
    later = right | {"decode": "def decode(code, low, high):\n    return 0.0"}
    students.append(
        Student(
            "twice",
            {
                f"twice/{names[0]}.ipynb": books(later)[names[0]],
                f"twice/{names[0]}-final.ipynb": books(right)[names[0]],
            },
            everything - set(first),
        )
    )
    broken = right | {"decode": "def decode(code, low, high):\n    return low + (high - low * code / 15"}
    students.append(Student("syntax-error", files("syntax-error", broken), {"decode"}, {"decode": "SyntaxError"}))
    deep = "def decode(code, low, high):\n    return " + "-" * 300_000 + "1"
    students.append(
        Student("too-deep", files("too-deep", right | {"decode": deep}), {"decode"}, {"decode": "no Python"})
    )
    for exercise, name, code, says in wrong_answers(course):
        student = f"wrong-{exercise}-{name}"
        students.append(Student(student, files(student, right | {exercise: code}), {exercise}, {exercise: says}))
    package = Path(qlora_lab.__file__).resolve().parent
    places = {"{seed}": course.folder / "teacher" / "seed.txt", "{package}": package, "{root}": package.parent}
    for name, (exercise, code, says) in HOSTILE.items():
        for mark, path in places.items():
            code = code.replace(mark, str(path))
        student = f"hostile-{name}"
        says = {exercise: says} if says else {}
        students.append(Student(student, files(student, right | {exercise: code}), {exercise}, says))
    return students


def _damaged(method: int) -> bytes:
    """An archive whose one member is packed by a method, with the packed bytes spoiled."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as file:
        file.writestr("x.ipynb", b'{"cells": [{"cell_type": "code", "source": "x = 1"}]}' * 50)
    data = bytearray(whole.getvalue())
    place = 30 + len("x.ipynb") + (4 if method == zipfile.ZIP_LZMA else 0)  # after LZMA's own head
    data[place : place + 20] = b"\xff" * 20
    return bytes(data)


def _without_end() -> bytes:
    """An archive that says that its one member has more bytes than there are."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("x.ipynb", b"{}")
    data, size = whole.getvalue(), (10_000).to_bytes(4, "little")
    place = data.index(b"PK\x01\x02") + 20
    return data[:place] + size + size + data[place + 8 :]


UNREADABLE = {
    "nobody/empty.ipynb": b"",
    "nobody/page.ipynb": b"<!DOCTYPE html><html>Sign in</html>",
    "nobody/cut.ipynb": b'{"cells": [{"cell_type": "code", "sour',
    "nobody/report.pdf": b"%PDF-1.7\xff\xfe\xfa",
    "nobody/list.ipynb": b"[1, 2]",
    "nobody/deep.ipynb": b"[" * 200_000,
    "nobody/other.ipynb": b'{"cells": [{"cell_type": "code", "source": "x = 1"}]}',
    "nobody/five.ipynb": b'{"worksheets": 5}',
    "nobody/null.ipynb": b'{"worksheets": [{"cells": null}]}',
    "nobody/M\udcfcller.ipynb": b"",  # a name that is not UTF-8, as unzip leaves it of Windows' archives
    "nobody/deflate.zip": _damaged(zipfile.ZIP_DEFLATED),
    "nobody/lzma.zip": _damaged(zipfile.ZIP_LZMA),
    "nobody/short.zip": _without_end(),
    "nobody/broken.zip": b"PK\x03\x04 and no more",
    "01_four_bit_quantization.ipynb": b'{"cells": [{"cell_type": "code", "source": "def decode(c, l, h): return 1"}]}',
}


# The same as they are listed: members of archives by their own names, all in text that can be written.
LISTED = set(UNREADABLE) - {"nobody/M\udcfcller.ipynb"} | {"nobody/M%FCller.ipynb"}
LISTED -= {f"nobody/{name}.zip" for name in ("deflate", "lzma", "short")}
LISTED |= {f"nobody/{name}/x.ipynb" for name in ("deflate", "lzma", "short")}


def write(students: list[Student], folder: Path, unreadable: bool = True) -> None:
    """Put what they hand in into a folder."""
    files = {path: content for student in students for path, content in student.files.items()}
    for path, content in (files | (UNREADABLE if unreadable else {})).items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
