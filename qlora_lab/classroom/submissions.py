"""What students handed in, as it comes: notebooks in folders, flat, or in zip archives; from any program.

Who handed a file in is told by the folder it lies in, or by its name. What it answers is told by its content alone.
"""

import itertools
import json
import operator
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_lab.classroom.archives import files_below
from qlora_lab.classroom.students import class_folders, name_in, of_platform, student_of

# What is handed in instead of notebooks: the place of some bytes, these, and what they tell.
OTHER_KINDS = (
    (0, b"PK\x03\x04", "a zip archive or a document, under another name"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (0, b"\x1f\x8b", "something packed with gzip"),
    (0, b"BZh", "something packed with bzip2"),
    (0, b"\xfd7zXZ", "something packed with xz"),
    (0, b"\x28\xb5\x2f\xfd", "something packed with Zstandard"),
    (257, b"ustar", "a tar archive"),
    (0, b"%PDF", "a PDF"),
    (0, b"\xd0\xcf\x11\xe0", "an old document of an office program"),
    (0, b"\x89PNG", "a picture"),
    (0, b"\xff\xd8\xff", "a picture"),
)
MERGE = re.compile(rb"^<<<<<<< ", re.MULTILINE)


class Texts(Sequence):
    """Texts of cells, kept packed: those of a whole class are in memory at once, and an archive packs a thousandfold.

    Made again each time that one is asked for; who needs them several times makes a tuple of them.
    """

    def __init__(self, texts: Iterable[str]):
        self._packed = zlib.compress(json.dumps(list(texts)).encode(), 1)

    def _texts(self) -> list[str]:
        return json.loads(zlib.decompress(self._packed))

    def __len__(self) -> int:
        return len(self._texts())

    def __getitem__(self, place):
        return self._texts()[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts())


@dataclass(frozen=True)
class HandedInNotebook:
    """A notebook that could be read. path: below the submissions' folder. time: of its last change, in seconds."""

    student: str
    path: str
    time: float
    code: Texts
    text: Texts


@dataclass(frozen=True)
class Problem:
    """What a teacher is to know of a file, or of a folder."""

    path: str
    reason: str


class Unreadable(Problem):
    """It could not be used."""


class Doubtful(Problem):
    """It was used, in a way that need not be what was meant."""


def read(folder: Path, names: list[str]) -> tuple[list[HandedInNotebook], list[Problem]]:
    """Everything below a folder (or in one archive).

    Args:
        names: of the course's notebooks; in the name of a flat file they are not part of the student's.

    Returns:
        the notebooks in the order of their paths, and what is none, or whose student is in doubt.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: nothing in it.
    """
    if not folder.exists():
        raise FileNotFoundError(f"no folder {folder}")
    books: list[tuple] = []
    problems: list[Problem] = []
    for path, time, content in files_below(folder):
        try:
            code, text = cells_of(content())
        except ValueError as error:
            problems.append(Unreadable(path, str(error)))
        except Exception as error:  # one file never stops the rest, whatever it makes a library raise
            problems.append(Unreadable(path, f"{type(error).__name__}: {error}".strip(": ")))
        else:
            books.append((path, time, Texts(code), Texts(text)))
    if not books and not problems:
        raise ValueError(f"nothing was handed in: {folder} is empty")
    students, doubts = _students(sorted({path for path, *_ in books}), names)  # an archive may hold a name twice
    handed = [HandedInNotebook(students[path], path, *book) for path, *book in books if path in students]
    order = operator.attrgetter("path")
    return sorted(handed, key=order), sorted([*problems, *doubts], key=order)


def _students(paths: list[str], names: list[str]) -> tuple[dict[str, str], list[Problem]]:
    """Whose each notebook is, by its path, and where that is unknown or may be wrong."""
    students: dict[str, str] = {}
    problems: list[Problem] = []
    written: dict[str, dict[str, str]] = {}  # student -> name as it stood there -> the first path with it
    folders = class_folders(paths, names)
    for path in paths:
        (above,) = [folder for folder in folders if path.startswith(folder)] or [""]
        below = path.removeprefix(above)
        try:
            students[path] = student_of(below, names)
        except ValueError as error:
            problems.append(Unreadable(path, str(error)))
        else:
            written.setdefault(students[path], {}).setdefault(name_in(below, names), path)
    for folder in sorted(folders):
        reason = "taken for the class's, not for one student's: what it holds is named after students"
        problems.append(Doubtful(folder, reason))
    for student, (first, *others) in written.items():
        for other in others:
            names_of = f'"{other}" and "{first}" are both written {student}'
            problems.append(Doubtful(written[student][other], f"{names_of}, and graded as one: rename one if not"))
    return students, problems + ([] if folders else _merged(students, names))


def _merged(students: dict[str, str], names: list[str]) -> list[Problem]:
    """Students whose notebooks look like those of several."""
    named: dict[str, set[str]] = {}  # student -> the names that a learning platform gave to files in the folder
    for path, student in students.items():
        inner = path.partition("/")[2]
        if inner and of_platform(inner):
            named.setdefault(student, set()).add(name_in(inner, names))
    problems: list[Problem] = [
        Doubtful(student, f"files of {', '.join(sorted(some)[:3])} lie in it, and were taken for this one student's")
        for student, some in named.items()
        if len(some) > 1
    ]
    if len(set(students.values())) == 1 and len(students) > max(1, len(names)):
        reason = f"all {len(students)} notebooks were taken for this student's: give each student a folder"
        problems.append(Doubtful(next(iter(students.values())), reason))
    return problems


def cells_of(data: bytes) -> tuple[list[str], list[str]]:
    """The sources of a notebook's code cells, and of its text cells; nbformat 3 and 4, damaged metadata or not.

    Raises:
        ValueError: not a notebook.
    """
    if not data.strip():
        raise ValueError("the file is empty")
    for place, begins, what in OTHER_KINDS:
        if data.startswith(begins, place):
            raise ValueError(f"not a notebook but {what}: hand in the notebook itself, or a zip archive of notebooks")
    if MERGE.search(data):
        raise ValueError("not a notebook: it has the marks of a merge (<<<<<<<) that was not brought to an end")
    try:
        book = json.loads(data.decode(json.detect_encoding(data)))
    except UnicodeDecodeError:
        raise ValueError("not a notebook: it is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        what = "a web page" if data.lstrip()[:1] == b"<" else "no JSON, or not all of it"
        raise ValueError(f"not a notebook: {what} (line {error.lineno})") from None
    if not isinstance(book, dict):
        raise ValueError("not a notebook: it has no cells")
    cells, sheets = book.get("cells"), book.get("worksheets")
    if isinstance(sheets, list) and sheets:
        cells = [sheet["cells"] for sheet in sheets if isinstance(sheet, dict) and isinstance(sheet.get("cells"), list)]
        cells = list(itertools.chain(*cells)) if cells else None
    if not isinstance(cells, list):
        raise ValueError("not a notebook: it has no cells")
    code, text = [], []
    for cell in cells:
        if isinstance(cell, dict):
            source = cell.get("source", cell.get("input", ""))
            if isinstance(source, list):
                source = "".join(line for line in source if isinstance(line, str))
            if isinstance(source, str):
                source = source.replace("\r\n", "\n").encode("utf-8", "replace").decode()  # half a surrogate is no text
                (code if cell.get("cell_type") == "code" else text).append(source)
    if not code:
        raise ValueError("a notebook without code")
    return code, text
