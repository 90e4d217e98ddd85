"""What students handed in, as it comes: notebooks in folders, flat, or in zip archives; from any program.

Who handed a file in is told by the folder it lies in, or by its name. What it answers is told by its content alone.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

LARGEST = 50 * 2**20  # bytes of one notebook
MOST_MEMBERS = 20_000  # of an archive
SKIPPED = re.compile(r"(^|/)(\.|__MACOSX|Thumbs\.db|desktop\.ini)")


@dataclass(frozen=True)
class Handed:
    """A notebook that could be read. path: below the submissions' folder. time: of its last change, in seconds."""

    student: str
    path: str
    time: float
    code: tuple[str, ...]
    text: tuple[str, ...]


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be used, and why."""

    path: str
    reason: str


def read(folder: Path, names: list[str]) -> tuple[list[Handed], list[Unreadable]]:
    """Everything below a folder (or in one archive).

    Args:
        names: of the course's notebooks; in the name of a flat file they are not part of the student's.

    Returns:
        the notebooks in the order of their paths, and what is none.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: nothing in it.
    """
    if not folder.exists():
        raise FileNotFoundError(f"no folder {folder}")
    handed, problems = [], []
    for path, time, content in _files(folder):
        try:
            student = student_of(path, names)
            code, text = cells_of(content())
        except ValueError as error:
            problems.append(Unreadable(path, str(error)))
        except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, RecursionError, MemoryError) as error:
            problems.append(Unreadable(path, f"{type(error).__name__}: {error}".strip(": ")))
        else:
            handed.append(Handed(student, path, time, tuple(code), tuple(text)))
    if not handed and not problems:
        raise ValueError(f"nothing was handed in: {folder} is empty")
    return sorted(handed, key=lambda one: one.path), sorted(problems, key=lambda one: one.path)


def _files(folder: Path) -> Iterator:
    """(path below the folder, time, function that gives the bytes) of each file, members of archives included."""
    top = folder if folder.is_dir() else folder.parent
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()) if folder.is_dir() else [folder]
    paths = [p for p in paths if not SKIPPED.search(p.relative_to(top).as_posix())]
    for path in paths:
        name = path.relative_to(top).as_posix()
        if path.suffix.lower() == ".zip":  # alone, it is the class's; beside others, one student's
            yield from _members(path, name, many=len(paths) == 1)
        else:
            yield name, path.stat().st_mtime, lambda path=path: _limited(path.stat().st_size, path.read_bytes)


def _members(path: Path, name: str, many: bool) -> Iterator:
    """Members of an archive: of one student, whose name the archive has, or of a class, with folders or names."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and not SKIPPED.search(m.filename)]
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        yield name, 0.0, lambda error=error: _fail(f"not a zip archive that can be read ({error})")
        return
    if len(members) > MOST_MEMBERS:
        yield name, 0.0, lambda: _fail(f"an archive of more than {MOST_MEMBERS:,} files")
        return
    for member in members:
        inside = PurePosixPath(member.filename.replace("\\", "/"))
        place = str(inside) if many else str(PurePosixPath(name).with_suffix("") / inside)
        # Archives hold local times without a zone; they are compared with each other only.
        minutes = sum(n * f for n, f in zip(member.date_time, (535680, 44640, 1440, 60, 1, 1 / 60), strict=True))
        yield place, 60.0 * minutes, lambda member=member: _limited(member.file_size, lambda: _member(path, member))


def _member(path: Path, member: zipfile.ZipInfo) -> bytes:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        return file.read(LARGEST + 1)  # what the archive says of its size need not be true


def _limited(size: int, content) -> bytes:
    data = content() if size <= LARGEST else b""
    if size > LARGEST or len(data) > LARGEST:
        raise ValueError(f"larger than {LARGEST >> 20} MiB")
    return data


def _fail(reason: str):
    raise ValueError(reason)


def student_of(path: str, names: list[str]) -> str:
    """Who handed a file in: the folder below the submissions' names the student, or else the file's own name does.

    Raises:
        ValueError: neither does.
    """
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if len(parts) > 1:
        student = re.sub(r"_assignsubmission_.*$", "", parts[0])
    else:
        student = PurePosixPath(path).stem
        for name in names:
            student = re.sub(re.escape(name), " ", student, flags=re.IGNORECASE)
        numbers = "|".join(re.escape(name.partition("_")[0]) for name in names)
        student = re.sub(r"\(\d+\)|\bcopy( of)?\b|-Copy\d+|-checkpoint", " ", student, flags=re.IGNORECASE)
        student = re.sub(rf"(?:^|[_\-. ])(?:nb|notebook|hw)?(?:{numbers or 'x^'})(?=$|[_\-. ])", " ", student)
    # What is left goes into file names, nbgrader's CSV and spreadsheets, where = + - @ begin a formula.
    student = re.sub(r"[^\w.@ -]+", "_", student).strip(" ._-+=@")
    student = re.sub(r"\s+", " ", student)[:80]
    if not student:
        raise ValueError("no student's name in it: put it into a folder named after the student, or into its name")
    return student


def cells_of(data: bytes) -> tuple[list[str], list[str]]:
    """The sources of a notebook's code cells, and of its text cells; nbformat 3 and 4, damaged metadata or not.

    Raises:
        ValueError: not a notebook.
    """
    if not data.strip():
        raise ValueError("the file is empty")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        book = json.loads(data.decode(encoding))
    except UnicodeDecodeError:
        raise ValueError("not a notebook: it is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        what = "a web page" if data.lstrip()[:1] == b"<" else "no JSON, or not all of it"
        raise ValueError(f"not a notebook: {what} (line {error.lineno})") from None
    if not isinstance(book, dict):
        raise ValueError("not a notebook: it has no cells")
    sheets = book.get("worksheets")
    cells = [c for s in sheets if isinstance(s, dict) for c in s.get("cells", [])] if sheets else book.get("cells")
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
