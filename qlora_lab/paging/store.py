"""Pages over three tiers: the device, host memory, a file. The least recently used page leaves a full tier first.

A page is in exactly one tier. It is used on the device; `sweep` brings pages there in a given order, fetching ahead
while the caller computes. One thread does all copying, in the order it was told to: a page that leaves a slot is
written before the page that comes into that slot is read, without any further bookkeeping. Some device slots (the
*landing*) are kept free, so that a page comes in before another one goes: it may take that one's place below.

Every page is used once a step. Plain LRU under a sweep that always runs 0, 1, ... n-1 would evict each page just before
its use: with room for half of the pages, all of them would move. Two things prevent that, and each would be enough for
the number of bytes. A caller that sweeps back and forth finds what it used last there, and LRU then evicts exactly
the page whose next use is furthest away. And pages that are still due in the sweep are left alone, which lets the pages
that are missing come in while those that are there are computed with. With room for half of the pages half of them
move, the least that is possible.
"""

import os
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from qlora_lab.paging.tiers.copier import DEVICE, DISK, HOST, NEW, Copier
from qlora_lab.paging.tiers.page_file import PageFile, PageFileError
from qlora_lab.paging.tiers.slots import Slot, SlotPool

WORKING_SLOTS = 4  # device pages that a budget of 0 still needs while it computes


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


@dataclass(eq=False, slots=True)
class Page:
    """A page and where it is. index: its number in the store. label: whose state it holds. place: a `Slot`, or a number
    in the page file. ready: the last move; None when done. views: what the owner derives from the slot; forgotten when
    the page leaves it."""

    index: int | None = None
    label: str = ""
    tier: str = NEW
    place: Slot | int | None = None
    ready: Future | None = None
    views: list | None = None


class PageStore:
    """All pages of one optimizer.

    Args:
        page_size: bytes. device: where pages are used.
        device_budget: bytes; None for all pages, 0 for none beyond what a sweep is working on.
        host_budget: bytes; None for as many as needed.
        directory: the folder of the page file; None for no such tier.
        event_limit: how many events are kept.
    """

    def __init__(self, page_size, device: torch.device, device_budget, host_budget, directory, event_limit=65536):
        self.page_size, self.device = page_size, device
        gpu = device.type == "cuda"
        self.pages: list[Page] = []
        self.pools = {
            DEVICE: SlotPool(page_size, self.capacity_of(device_budget), device),
            HOST: SlotPool(
                page_size, None if host_budget is None else host_budget // page_size, torch.device("cpu"), pinned=gpu
            ),
        }
        self.flush = device_budget == 0  # nothing stays on the device between sweeps
        self.recency: dict[str, OrderedDict[Page, None]] = {DEVICE: OrderedDict(), HOST: OrderedDict()}  # oldest first
        self._idle: dict[str, OrderedDict[Page, None]] = {}  # the same without pages due in the sweep that is on
        self.events: deque[PageEvent] = deque(maxlen=event_limit)
        self.moved: Counter[tuple[str, str]] = Counter()  # bytes of the current step by (source, target)
        self.step = 0
        self.file = PageFile(directory, page_size) if directory is not None else None
        self.copier = Copier(page_size, device, self.file)
        self._owner = os.getpid()
        self.closed = False

    # Sizes

    def capacity_of(self, budget: int | None) -> int | None:
        """Device slots for a budget in bytes.

        Raises:
            ValueError: a budget that is negative or holds one page only.
        """
        if budget is None:
            return None
        if budget < 0 or 0 < budget < 2 * self.page_size:
            raise ValueError(
                f"device_budget {budget} bytes is not allowed: give 0, or at least two pages "
                f"({2 * self.page_size} bytes), or a smaller page_size (it is {self.page_size})"
            )
        return budget // self.page_size or WORKING_SLOTS

    @property
    def landing(self) -> int:
        """Device slots kept free while some page is elsewhere."""
        capacity = self.pools[DEVICE].capacity
        if capacity is None or (len(self.pages) <= capacity and not self.flush):
            return 0
        return capacity if self.flush else _landing(capacity)

    def add(self, pages: list[Page]) -> None:
        """Take over new pages: all or none.

        Raises:
            ValueError: they do not fit, and there is no folder for the rest. PageFileError: the disk is full.
        """
        self._make_room(len(self.pages) + len(pages), self.pools[DEVICE].capacity, self.flush)
        for page in pages:
            page.index = len(self.pages)
            self.pages.append(page)

    def _make_room(self, pages: int, device_capacity: int | None, flush: bool) -> None:
        """Check that so many pages fit into the tiers together, and reserve the file's share on the disk."""
        for pool in self.pools.values():
            pool.wanted = pages
        kept = 0 if flush else device_capacity
        if kept is None or pages <= kept:
            return
        kept -= 0 if flush else _landing(kept)
        outside = pages - kept
        host = self.pools[HOST].capacity
        if host is None or outside <= host:
            return
        if self.file is None:
            raise ValueError(
                f"the optimizer's state takes {pages * self.page_size / 1e6:.1f} MB, device_budget and host_budget "
                f"hold {(kept + host) * self.page_size / 1e6:.1f} MB of it: give directory=, a folder for the rest, or "
                "a larger host_budget"
            )
        self.file.reserve(outside - host + 8)

    def residency(self) -> dict[str, int]:
        """Bytes of pages in each tier; pages never used yet are in none."""
        counts = Counter(page.tier for page in self.pages)
        return {tier: counts[tier] * self.page_size for tier in (DEVICE, HOST, DISK)}

    @property
    def device_bytes(self) -> int:
        """Bytes allocated for pages on the device, whether they hold one now or not."""
        return self.pools[DEVICE].size * self.page_size

    def resize(self, device_budget: int | None) -> None:
        """Change the device's budget now: pages beyond it leave, and their memory is given back.

        Raises:
            ValueError: a budget of one page only, or no room elsewhere for what leaves. PageFileError: the disk is
            full. Nothing is changed then.
        """
        self.check()
        capacity, flush = self.capacity_of(device_budget), device_budget == 0
        self._make_room(len(self.pages), capacity, flush)
        pool = self.pools[DEVICE]
        pool.capacity, self.flush = capacity, flush
        self._settle()
        if capacity is None or pool.size <= capacity:
            return
        self.copier.drain()
        while pool.size > capacity:
            held = Counter(id(page.place.extent) for page in self.recency[DEVICE])
            extent = min(pool.extents, key=lambda e: held[id(e)] / len(e))
            pool.drop(extent)
            for page in [page for page in self.recency[DEVICE] if page.place.extent is extent]:
                old, page.place, page.views = page.place, pool.take(), None
                page.ready = self.copier.copy(DEVICE, old, DEVICE, page.place)
            self.copier.drain()

    # Use

    def sweep(self, pages: Sequence[Page], batch_size: int = 1) -> Iterator[list[Page]]:
        """Yield the pages in order, up to `batch_size` of them at a time, each on the device and ready.

        What the caller does to a page's memory before it asks for the next is kept.
        """
        self.check()
        due = set(pages)
        self._idle = {
            tier: OrderedDict((page, None) for page in order if page not in due) for tier, order in self.recency.items()
        }
        ahead = position = 0
        try:
            self._settle()
            while position < len(pages):
                ahead = max(ahead, position)
                while ahead < len(pages) and (pages[ahead].tier == DEVICE or self._fetch(pages[ahead])):
                    ahead += 1
                # the landing was free before the sweep, and each page that is done makes room for one
                assert pages[position].tier == DEVICE
                batch = [pages[position]]
                while len(batch) < batch_size and position + len(batch) < len(pages):
                    page = pages[position + len(batch)]
                    if page.tier != DEVICE:
                        break
                    batch.append(page)
                for page in batch:
                    self._wait(page)
                yield batch
                self._used(batch)
                position += len(batch)
                self._settle()
        finally:
            self._idle = {}

    def peek(self, page: Page) -> torch.Tensor:
        """A copy of a page in CPU memory, uint8 (page_size,), without moving it."""
        self.check(writing=False)
        copy = torch.empty(self.page_size, dtype=torch.uint8)
        if page.tier != NEW:
            self.copier.read(page.tier, page.place, copy)
        else:
            copy.zero_()
        return copy

    def check(self, writing: bool = True) -> None:
        """Raise if a move failed, the store was closed, or something happened to the page file.

        writing: False tolerates a deleted file: as long as it is open, it can be read.

        Raises:
            RuntimeError: closed, used in a forked process, or failed before. PageFileError: the file is gone or cut
            short; names what is lost.
        """
        if self.closed:
            raise RuntimeError("this optimizer was closed; make another one")
        if (failure := self.copier.failure) is not None:
            raise PageFileError(
                f"the optimizer's state is no longer whole since {type(failure).__name__}: {failure}. Make a new "
                "optimizer and load the last checkpoint (parameters too) into it"
            ) from failure
        if self._owner != os.getpid():
            raise RuntimeError("this optimizer belongs to the process that made it, and cannot be used after a fork")
        if self.file is None:
            return
        places = {page.place: page.label for page in self.pages if page.tier == DISK}
        if lost := [places[place] for place in sorted(self.file.missing()) if place in places]:
            self.copier.drain()
            raise PageFileError(
                f"{self.file.path} was cut short: the optimizer's state of {'; '.join(lost)} is lost. Make a new "
                "optimizer and load the last checkpoint into it"
            )
        if writing and self.file.deleted():
            raise PageFileError(
                f"{self.file.path} was deleted while in use; it held the optimizer's state of "
                f"{'; '.join(places.values()) or 'no parameter yet'}. Nothing was changed: state_dict() of this "
                "optimizer can still be read if the file was on a local disk; load it, or the last checkpoint, into a "
                "new one"
            )

    def close(self) -> None:
        """Stop the thread and remove the file."""
        if self._owner == os.getpid():  # the thread is not in a forked child
            self.copier.close()
        if self.file is not None:
            self.file.close()
        self.closed = True

    # Moves

    def _settle(self) -> None:
        """Evict, least recently used first, until the landing is free."""
        capacity, over = self.pools[DEVICE].capacity, 0
        if capacity is not None:
            over = len(self.recency[DEVICE]) + self.landing - capacity
        while over > 0 and (page := self._oldest(DEVICE)) is not None:
            self._evict(page)
            over -= 1

    def _oldest(self, tier: str) -> Page | None:
        return next(iter(self._idle[tier] if self._idle else self.recency[tier]), None)

    def _fetch(self, page: Page) -> bool:
        """Order a page to the device; False if there is no free slot."""
        if len(self.recency[DEVICE]) >= (self.pools[DEVICE].capacity or len(self.pages)):
            return False
        slot = self.pools[DEVICE].take()
        if slot is None:
            return False
        self._move(page, DEVICE, slot)
        return True

    def _evict(self, page: Page) -> None:
        """Order a device page to the host, or, where that is full, what was used least recently there to the disk."""
        host = self.pools[HOST]
        slot = host.take()
        if slot is None and host.capacity and self.file is not None and (oldest := self._oldest(HOST)) is not None:
            self._move(oldest, DISK, self.file.take())
            slot = host.take()
        if slot is not None:
            self._move(page, HOST, slot)
        elif self.file is not None:
            self._move(page, DISK, self.file.take())
        else:
            raise RuntimeError("no tier has room for a page")  # `_make_room` has seen to it that there is

    def _move(self, page: Page, target: str, place) -> None:
        source, old = page.tier, page.place
        page.ready = self.copier.copy(source, old, target, place)
        for order in (self.recency, self._idle):
            if order and source in order:
                order[source].pop(page, None)
        if source in self.pools:
            self.pools[source].give(old)
        elif source == DISK:
            self.file.give(old)
        page.tier, page.place, page.views = target, place, None
        if target in self.recency:
            self.recency[target][page] = None
            if self._idle and target == HOST:
                self._idle[HOST][page] = None
        self.events.append(
            PageEvent(time.perf_counter(), self.step, page.index, page.label, source, target, self.page_size)
        )
        if source != NEW:
            self.moved[source, target] += self.page_size

    def _used(self, batch: list[Page]) -> None:
        event = torch.cuda.current_stream(self.device).record_event() if self.copier.streams else None
        for page in batch:
            page.place.busy = event
            self.recency[DEVICE].move_to_end(page)
            self._idle[DEVICE][page] = None

    def _wait(self, page: Page) -> None:
        if page.ready is not None:
            page.ready.result()
            page.ready = None
        if page.place.busy is not None:
            torch.cuda.current_stream(self.device).wait_event(page.place.busy)


def _landing(capacity: int) -> int:
    return min(8, max(1, capacity // 8))
