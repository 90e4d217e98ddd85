"""A page of optimizer state, and the record of a move."""

from concurrent.futures import Future
from dataclasses import dataclass

from qlora_lab.paging.tiers.copier import NEW


@dataclass(frozen=True, slots=True)
class PageEvent:
    """A page that moved. time: seconds (time.perf_counter) when the move was ordered. parameter: whose state it holds;
    "first … last" for a page that several share. source "new": the page was made, filled with zeros."""

    time: float
    step: int
    page: int
    parameter: str
    source: str
    target: str
    bytes: int


class Page:
    """A page and where it is. place: a `Slot`, or a number in the page file. ready: the last move; None when done."""

    __slots__ = ("index", "label", "place", "ready", "tier", "views")

    def __init__(self, index: int):
        self.index = index
        self.label = ""
        self.tier, self.place = NEW, None
        self.ready: Future | None = None
        self.views = None  # whatever the owner derives from the slot; forgotten when the page leaves it
