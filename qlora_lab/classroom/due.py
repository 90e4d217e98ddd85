"""When an assignment is due: what a teacher writes, and what students and nbgrader get of it."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

EXAMPLES = "2026-12-04T18:00 for all, 05=2026-12-11T18:00 for one notebook"


def due_dates(texts: Iterable[str], notebooks: Iterable[Path]) -> dict[str, datetime]:
    """Name of each notebook that has a due date -> the date, with its time zone.

    Args:
        texts: ISO 8601 dates with a time, for all notebooks; or NOTEBOOK=DATE for one, which goes before. Without an
            offset (`+01:00`, `Z`) a date is in this machine's time zone.

    Raises:
        ValueError: no date, or not of one of these notebooks.
    """
    names = [path.stem for path in notebooks]
    everyone, own = {}, {}
    for text in texts:
        which, given, date = text.rpartition("=")
        fitting = [name for name in names if not given or which in (name, name.partition("_")[0])]
        if not fitting:
            raise ValueError(f"due date {text!r}: {which!r} is none of the notebooks {', '.join(names)}")
        (own if given else everyone).update(dict.fromkeys(fitting, _date(date, text)))
    return everyone | own


def _date(date: str, text: str) -> datetime:
    try:
        found = datetime.fromisoformat(date.strip())
    except ValueError as error:
        raise ValueError(f"due date {text!r} is not understood ({error}); write {EXAMPLES}") from error
    if len(date.strip()) <= len("2026-12-04"):
        raise ValueError(f"due date {text!r} has no time of day; write {EXAMPLES}")
    return found.astimezone() if found.tzinfo is None else found


def in_words(date: datetime) -> str:
    """As students read it: the same for all, wherever they are."""
    offset = date.strftime("%z")
    return f"{date:%A}, {date.day} {date:%B %Y}, {date:%H:%M} (UTC{offset[:3]}:{offset[3:5]})"
