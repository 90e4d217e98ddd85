"""Whose a file is: told by the folder below the submissions', or else by the file's own name.

Learning platforms write more than a name into these; what differs between two assignments of one student is left out.
"""

import itertools
import re
import unicodedata
from pathlib import PurePosixPath

# What a platform writes comes first, and then the name that a student gave the file, which may look like another's: so
# the first place where a pattern fits is the one that counts.
PLATFORMS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"(?P<who>.+?)_assignsubmission_.*",  # Moodle: Ada L_123_assignsubmission_file_
        # Canvas: lovelaceada_LATE_12_3456_homework; but no year, as in hw_2_2026_ada, and no number that is
        # the name of a student of Blackboard's, as in Homework_1_20261234_attempt_...
        r"(?P<who>[^_]+)_(?:LATE_)?(?P<id>[1-9]\d*)_(?!20\d\d_|\d+_attempt_\d{4}-)[1-9]\d{2,}_.+",
        # Brightspace: 12345-678 - Ada Lovelace - Nov 27, 2026 1204 PM
        r"(?P<id>\d+)-\d+ ?- ?(?P<who>.+?) ?- ?(?=[^-]*\b\d{4}\b)[^-]*",
        r".+?_(?P<who>[^_]+)_attempt_\d{4}(?:-\d\d){5}(?:_.*)?",  # Blackboard: Homework_ada1_attempt_2026-11-27-12-04-…
    )
)
LONGEST = 200  # bytes: it becomes part of file names, of which file systems take 255


def of_platform(path: str) -> bool:
    """Whether a learning platform named the first folder of a path, or the file itself."""
    return _platform(_first(path)) is not None


def name_in(path: str, names: list[str]) -> str:
    """The name of a student as it stands in a path: in the first folder, or else in the file's own name.

    Args:
        names: of the course's notebooks; in the name of a flat file they are not part of the student's.
    """
    path = path.replace("\\", "/")
    first = unicodedata.normalize("NFC", _first(path))  # macOS writes ü as u with a dot pair
    found = _platform(first)
    if found is not None:
        first = found
    elif len(PurePosixPath(path).parts) == 1:
        first = _without_titles(first, names)
    return re.sub(r"\s+", " ", first).strip(" ._-")


def student_of(path: str, names: list[str]) -> str:
    """Who handed a file in, see `name_in`, with what file names and tables cannot hold replaced by `_`.

    Raises:
        ValueError: nothing is left.
    """
    # It goes into file names, nbgrader's CSV and spreadsheets, where = + - @ begin a formula. Letters, digits, and the
    # marks that belong to letters (M: the vowels of नेता) stay.
    kept = (c if c in " .@-_" or unicodedata.category(c)[0] in "LMN" else "\0" for c in name_in(path, names))
    student = re.sub("\0+", "_", "".join(kept)).strip(" ._-+=@")
    student = student[:80].encode()[:LONGEST].decode("utf-8", "ignore").strip(" ._-+=@")
    if not student:
        raise ValueError("no student's name in it: put it into a folder named after the student, or into its name")
    return student


def class_folders(paths: list[str], names: list[str]) -> set[str]:
    """The folders, each with a slash at its end, that hold students and are none's; mostly there is no such folder.

    That is one in which all files lie, as whoever compresses `submissions/` makes it, with a folder for each student
    (and none for a notebook of the course, as a student may have); or those in which a learning platform named all.
    """
    parts = [PurePosixPath(path.replace("\\", "/")).parts for path in paths]
    levels = zip(*(folders[:-1] for folders in parts), strict=False)
    common = [level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels)]
    below = ["/".join(folders[len(common) :]) for folders in parts]
    if common and len({_first(path) for path in below}) > 1:
        students = all(("/" in path and _without_titles(_first(path), names)) or of_platform(path) for path in below)
        return {"/".join(common) + "/"} if students else set()
    downloads = [len(p) > 1 and not of_platform("/".join(p)) and of_platform("/".join(p[1:])) for p in parts]
    return {f"{folders[0]}/" for folders in parts} if all(downloads) else set()


def _first(path: str) -> str:
    parts = PurePosixPath(path.replace("\\", "/")).parts or ("",)
    return parts[0] if len(parts) > 1 else PurePosixPath(parts[0]).stem


def _platform(first: str) -> str | None:
    for pattern in PLATFORMS:
        if found := pattern.fullmatch(first):
            number = found.groupdict().get("id")  # of the student: two may have one name
            return f"{found['who']}_{number}" if number else found["who"]
    return None


def _without_titles(name: str, names: list[str]) -> str:
    """The name of a file without those of the course's notebooks, their numbers, and what copying adds."""
    for title in names:
        name = re.sub(re.escape(title), " ", name, flags=re.IGNORECASE)
    numbers = "|".join(re.escape(title.partition("_")[0]) for title in names)
    name = re.sub(r"\(\d+\)|\bcopy( of)?\b|-Copy\d+|-checkpoint", " ", name, flags=re.IGNORECASE)
    return re.sub(rf"(?:^|[_\-. ])(?:nb|notebook|hw)?(?:{numbers or 'x^'})(?=$|[_\-. ])", " ", name).strip(" ._-")
