"""What the reader has made: `from qlora_lab.mine import nearest_code` gives theirs if kept, else the finished one.

Any function that an exercise asks for can be imported so. `whose` says of each whose it is, `board` shows all of them.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass

from qlora_lab.checks import EXERCISES, MODULES, PIECES, Exercise, function_name, kept


def piece(exercise: str) -> Callable:
    """The reader's function where it is kept, else the finished one.

    Args:
        exercise: its id, or its function's name.

    Raises:
        ValueError: no such exercise.
        ImportError: the kept file is broken.
    """
    found = _exercise(exercise)
    return kept.load(function_name(found.id)) or found.solution


def is_mine(exercise: str) -> bool:
    """Whether the reader's function is kept."""
    return kept.path_of(function_name(_exercise(exercise).id)).is_file()


def whose(*exercises: str) -> str:
    """A line for each: whose function `piece` gives."""
    lines = []
    for exercise in exercises:
        name = _exercise(exercise).id
        yours = f"yours, {kept.FOLDER}/{function_name(name)}.py"
        lines.append(f"{name:20} {yours if is_mine(name) else f'finished; yours comes from {_book(name)}'}")
    return "\n".join(lines)


def _exercise(name: str) -> Exercise:
    if (found := EXERCISES.get(name.replace("_", "-"))) is None:
        raise ValueError(f"no exercise {name!r}; `qlora_lab.mine.board()` lists them")
    return found


def _book(exercise: str) -> str:
    """Such as "notebook 01"."""
    (module,) = (module for module in MODULES if any(each.id == exercise for each in module.EXERCISES))
    return module.__name__.rpartition(".")[2].replace("_", " ")


@dataclass(frozen=True)
class Board:
    """All exercises, notebook by notebook: {number: {exercise: whether the reader's answer is kept}}."""

    rows: dict[str, dict[str, bool]]

    @property
    def done(self) -> int:
        return sum(sum(row.values()) for row in self.rows.values())

    @property
    def total(self) -> int:
        return sum(map(len, self.rows.values()))

    def __str__(self) -> str:
        lines = [f"{self.done} of {self.total} exercises are yours"]
        for number, row in self.rows.items():
            marks = "  ".join(f"{'✓' if mine else '○'} {exercise}" for exercise, mine in row.items())
            lines.append(f"{number}  {sum(row.values())}/{len(row)}  {marks}")
        return "\n".join(lines)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {"text/plain": str(self), "text/html": self._html()}

    def _html(self) -> str:
        chip = "display: inline-block; border-radius: 0.7em; padding: 0 0.6em; margin: 0.1em; border: 1px solid"
        rows = []
        for number, row in self.rows.items():
            chips = "".join(
                f'<span style="{chip} {"#009E73" if mine else "#8c8c8c"}">{"✓" if mine else "○"} '
                f"{html.escape(exercise)}</span>"
                for exercise, mine in row.items()
            )
            rows.append(
                f'<tr><td style="vertical-align: top; text-align: right"><b>{number}</b></td>'
                f'<td style="vertical-align: top">{sum(row.values())}/{len(row)}</td>'
                f'<td style="text-align: left">{chips}</td></tr>'
            )
        return f"<b>{self.done} of {self.total} exercises are yours</b><table>{''.join(rows)}</table>"


def board() -> Board:
    """What is made and what is open."""
    return Board(
        {
            module.__name__[-2:]: {each.id: is_mine(each.id) for each in module.EXERCISES}
            for module in MODULES
            if module.EXERCISES
        }
    )


def __getattr__(name: str) -> Callable:
    if name in PIECES:
        return piece(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}, and no exercise asks for such a function")


__all__ = ["Board", "board", "is_mine", "piece", "whose"]
