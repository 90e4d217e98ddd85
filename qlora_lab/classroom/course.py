"""The folder of a course: nbgrader's layout, and beside it what only the teacher has.

nbgrader_config.py   how nbgrader treats this course; yours to add to
gradebook.db         nbgrader's records
source/NAME/         the assignment with solutions and hidden tests, one for each notebook
release/NAME/        what students get
teacher/             the seed of the hidden tests, and verdicts on answers that were judged already
submitted/, autograded/   written by `qlora-lab classroom grade`
"""

import importlib.metadata
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat

from qlora_lab.machine.files import write_text

CONFIG = '''"""nbgrader's settings for this course. Add your own: `qlora-lab classroom release` keeps this file."""

c = get_config()  # noqa: F821  (nbgrader defines it)

c.CourseDirectory.course_id = "qlora-lab"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError"}

# No kernel runs what students wrote: in place of nbgrader's Execute, each answer is run in a sandbox and judged outside
# of it. Keep it so, also where you call `nbgrader autograde` or grade with the formgrader.
c.Autograde.autograde_preprocessors = [
    "qlora_lab.classroom.gradebook.SandboxVerdicts",
    "nbgrader.preprocessors.IgnorePattern",
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
'''


def require_nbgrader() -> None:
    """Raise ValueError where nbgrader is not installed, or too old."""
    try:
        version = importlib.metadata.version("nbgrader")
    except importlib.metadata.PackageNotFoundError:
        version = None
    if version is None or tuple(map(int, version.split(".")[:2])) < (0, 9):
        raise ValueError("a class needs nbgrader 0.9 or newer: pip install 'qlora-lab[classroom]' (or nbgrader alone)")


@dataclass(frozen=True)
class Item:
    """An exercise of a course. notebook: the name of its assignment, and of the notebook in it."""

    exercise: str
    notebook: str
    points: float

    @property
    def column(self) -> str:
        """Its name in a table: the notebook's number and the exercise."""
        return f"{self.notebook[:2]} {self.exercise}"


@dataclass(frozen=True)
class Course:
    """A course in a folder, as `release` makes it."""

    folder: Path

    @staticmethod
    def find(folder: Path) -> "Course":
        """The course in a folder or in one above it.

        Raises:
            FileNotFoundError: there is none.
        """
        folder = Path(folder).resolve()
        for place in (folder, *folder.parents):
            if (place / "nbgrader_config.py").is_file() and (place / "teacher" / "seed.txt").is_file():
                return Course(place)
        raise FileNotFoundError(
            f"no course in {folder}: it would have nbgrader_config.py and teacher/seed.txt. "
            "Make one with `qlora-lab classroom release`, or say where it is with --course"
        )

    @property
    def config(self) -> Path:
        return self.folder / "nbgrader_config.py"

    @property
    def verdicts(self) -> Path:
        """The database of answers judged already."""
        return self.folder / "teacher" / "verdicts.db"

    def notebook(self, step: str, name: str, student: str = ".") -> Path:
        """The path of a notebook. step: source, release, submitted or autograded."""
        return self.folder / step / student / name / f"{name}.ipynb"

    @cached_property
    def seed(self) -> str:
        """Of the hidden tests."""
        return (self.folder / "teacher" / "seed.txt").read_text(encoding="utf-8").strip()

    @cached_property
    def names(self) -> list[str]:
        """Of its assignments."""
        return sorted(path.parent.name for path in (self.folder / "release").glob("*/*.ipynb"))

    @cached_property
    def books(self) -> dict[str, nbformat.NotebookNode]:
        """What students got: name -> notebook."""
        return {name: nbformat.read(self.notebook("release", name), as_version=4) for name in self.names}

    @cached_property
    def items(self) -> list[Item]:
        """Its exercises, in the order of the notebooks."""
        return [
            Item(cell.metadata["exercise"], name, cell.metadata["nbgrader"]["points"])
            for name, book in self.books.items()
            for cell in book.cells
            if "exercise" in cell.metadata and cell.metadata.get("nbgrader", {}).get("grade")
        ]

    def prepare(self, seed: str | None) -> None:
        """Make the folder, its settings and its seed, unless they are there.

        Raises:
            ValueError: the folder holds something else, or another seed.
        """
        if self.folder.exists() and not self.config.exists() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and no course; give a new folder with --out")
        place = self.folder / "teacher" / "seed.txt"
        if place.exists():
            if seed is not None and seed.strip() != self.seed:
                raise ValueError(f"this course has a seed already, another than that given; it is in {place}")
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        place.parent.chmod(0o700)
        place.touch(mode=0o600)
        write_text(place, (seed or secrets.token_hex(16)).strip() + "\n")
        place.chmod(0o600)
        if not self.config.exists():
            write_text(self.config, CONFIG)
