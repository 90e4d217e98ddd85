"""Exercises of notebook 04: AdamW's step, what it remembers, a pager piece by piece, its order, and what moves.

The pager's pieces change files and are given functions, so each is called here by a function of its own, on pages in a
real file, every move of which is counted.
"""

import math
import os
import tempfile
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from qlora_lab.checks.differences import plain_number
from qlora_lab.checks.exercise import Exercise, Misconception, draw_integers, edited, edits


def state_bytes(parameters: int, bits: int) -> int:
    blocks = 2 * math.ceil(parameters / 256)
    return 2 * parameters * bits // 8 + (4 * blocks if bits == 8 else 0)


def _state_case(generator: torch.Generator, number: int):
    """In 8 bits, one has whole blocks, after which none begins, and one less than half of a last one."""
    limits = ((2, 4000), (1, 129), (300, 10**6))
    blocks, rest, parameters = (draw_integers(generator, low, high, 1)[0] for low, high in limits)
    parameters = {4: 256 * blocks, 1: 256 * blocks + rest}.get(number, parameters)
    return parameters, (32, 8, 16)[number % 3]


def adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    p = p * (1 - lr * weight_decay)
    m = m + (1 - beta1) * (gradient - m)
    v = beta2 * v + (1 - beta2) * gradient**2
    root = (v / (1 - beta2**step)).sqrt()
    return p - lr / (1 - beta1**step) * m / (root + eps), m, v


def _old_moments(p, gradient, m, v, lr, beta1, beta2, eps, step):
    """The step of `adamw_step`'s new m and v as if it were one of those before."""
    m_old = (m - (1 - beta1) * gradient) / beta1
    v_old = (v - (1 - beta2) * gradient**2) / beta2
    return p - lr / (1 - beta1**step) * m_old / ((v_old / (1 - beta2**step)).clamp(min=0).sqrt() + eps)


def _step_case(generator: torch.Generator, number: int):
    n = 3 + 5 * number
    p, gradient, m = (torch.randn(n, generator=generator) for _ in range(3))
    v = torch.rand(n, generator=generator) * 1e-2
    beta1, beta2, decay = (0.9, 0.8, 0.95)[number % 3], (0.99, 0.999)[number // 2 % 2], (0.1, 0.01, 0.05)[number % 3]
    return p, gradient, m, v, 1 + number, 10 ** -(1 + number % 3), beta1, beta2, (1e-8, 1e-3)[number % 2], decay


def pages_of(first: int, count: int, per_page: int) -> list[int]:
    return list(range(first // per_page, (first + count - 1) // per_page + 1))


def _span(generator: torch.Generator, number: int):
    per_page = 2 ** (2 + number % 4)
    first, count = draw_integers(generator, 1, 6 * per_page, 2)
    if number == 1:
        first = per_page  # exactly at the beginning of a page ...
        count = 2 * per_page  # ... to exactly the end of one
    return first, count, per_page


def sweep_order(step: int, pages: int) -> list[int]:
    forth = list(range(pages))
    return forth if step % 2 else forth[::-1]


def page_to_evict(last_used: dict, due: set) -> int:
    candidates = [page for page in last_used if page not in due]
    return min(candidates, key=last_used.get)


def _eviction(generator: torch.Generator, number: int):
    pages = torch.randperm(6 + 3 * number, generator=generator).tolist()
    times = torch.randperm(100, generator=generator).tolist()
    last_used = dict(zip(pages, times, strict=False))
    oldest = sorted(last_used, key=last_used.get)
    due = {page for page in oldest[1:] if draw_integers(generator, 0, 3, 1)[0] == 0}  # any of them ...
    if number:
        due |= set(oldest[: number % 4])  # ... and in most cases the oldest ones
    return last_used, due - {oldest[-1 - number % 3]}  # at least one is not


def bytes_moved(pages: int, resident: int, page_bytes: int) -> int:
    return 2 * max(0, pages - resident) * page_bytes


def _traffic(generator: torch.Generator, number: int):
    pages = draw_integers(generator, 4, 200, 1)[0]
    resident = pages + 5 if number == 3 else 0 if number == 2 else draw_integers(generator, 1, pages, 1)[0]
    return pages, resident, 2 ** (12 + number)


BEHIND = 2**22  # bytes in the file behind the pages of a check of `read_page`


def read_page(path, number, page_bytes):
    with open(path, "rb") as file:
        file.seek(number * page_bytes)
        return bytearray(file.read(page_bytes))


def write_page(path, number, page):
    with open(path, "r+b") as file:
        file.seek(number * len(page))
        file.write(page)


def _random_pages(generator: torch.Generator, pages: int, page_bytes: int) -> list[bytes]:
    return [bytes(draw_integers(generator, 1, 256, page_bytes)) for _ in range(pages)]


def _page_in_a_file(generator: torch.Generator, number: int):
    pages, page_bytes = draw_integers(generator, 3, 8, 2)
    content = _random_pages(generator, pages, page_bytes)
    return content, (0, pages - 1)[number] if number < 2 else draw_integers(generator, 1, pages, 1)[0], page_bytes


def _call_read(function: Callable, arguments: tuple):
    """What comes back, what is in the file afterwards, and whether more of it was in memory than the page.

    Behind the pages there are four MiB of zeros, which take no room on a disk.
    """
    content, number, page_bytes = arguments
    with tempfile.TemporaryDirectory() as folder:
        path, pages = Path(folder, "pages"), b"".join(content)
        path.write_bytes(pages)
        os.truncate(path, len(pages) + BEHIND)
        traced = tracemalloc.is_tracing()
        tracemalloc.start()
        try:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            page = function(path, number, page_bytes)
            much = tracemalloc.get_traced_memory()[1] - before > BEHIND // 4
        finally:
            if not traced:
                tracemalloc.stop()
        size = path.stat().st_size
        return page, path.read_bytes()[: size - BEHIND if size > BEHIND else size], much


def _tell_read(arguments: tuple, result, expected) -> str | None:
    content, number, page_bytes = arguments
    page, file, _ = result
    if page is None and file == expected[1]:
        return "It returned None. Is there a `return`?"
    if file != expected[1]:
        return f"The file of {len(expected[1])} bytes has changed; it has {len(file)} now. Reading leaves it as it is."
    if not isinstance(page, bytearray):
        return f"It gives {type(page).__name__}; a bytearray is wanted."
    if len(page) != page_bytes:
        return f"It gives {len(page)} bytes for page {number} of {len(content)}; a page has {page_bytes}."
    at = expected[1].find(page)
    where = f" These are the {page_bytes} bytes from byte {at} on; page {number} begins at byte {number * page_bytes}."
    return f"It gives other bytes than those of page {number} of {len(content)}.{where if at >= 0 else ''}"


def _which_page(arguments: tuple) -> str:
    content, number, _ = arguments
    return f"page {number} of a file of {len(content)}, {len(content[0])} bytes each"


def _page_to_write(generator: torch.Generator, number: int):
    content, place, page_bytes = _page_in_a_file(generator, number)
    return content, place, bytearray(draw_integers(generator, 1, 256, page_bytes))


def _call_write(function: Callable, arguments: tuple):
    """What is in the file afterwards, and whether the page is as it was."""
    content, number, page = arguments
    page = bytearray(page)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pages")
        path.write_bytes(b"".join(content))
        function(path, number, page)
        return path.read_bytes(), page


def _tell_write(arguments: tuple, result, expected) -> str | None:
    content, number, page = arguments
    (file, after), right = result, expected[0]
    if after != page:
        return "The page itself has changed; it is only to be copied into the file."
    if len(file) != len(right):
        return f"Afterwards the file has {len(file)} bytes; it should have {len(right)}."
    size = len(page)
    wrong = [
        i for i in range(len(right) // size) if file[i * size : (i + 1) * size] != right[i * size : (i + 1) * size]
    ]
    return (
        f"Page {number} of {len(content)} was to be written; afterwards page{'s' * (len(wrong) > 1)} "
        f"{', '.join(map(str, wrong))} of the file {'are' if len(wrong) > 1 else 'is'} not as it should be."
    )


def paged_sweep(pages, order, change, evict):
    for place, number in enumerate(order):
        if number not in pages.ram:
            if len(pages.ram) == pages.slots:
                leaves = evict(pages.last_used, set(order[place:]))
                pages.write(leaves, pages.ram.pop(leaves))
            pages.ram[number] = pages.read(number)
        change(number, pages.ram[number])
        pages.touch(number)


def prefetch_sweep(pages, order, change, evict):
    def exchange(leaves, page, comes):
        if leaves is not None:
            pages.write(leaves, page)
        return pages.read(comes)

    def fetch(number, due):
        leaves = evict(pages.last_used, due) if len(pages.ram) == pages.slots else None
        return thread.submit(exchange, leaves, pages.ram.pop(leaves, None), number)

    with ThreadPoolExecutor(1) as thread:
        coming = None if order[0] in pages.ram else fetch(order[0], set(order))
        for at, number in enumerate(order):
            if coming is not None:
                pages.ram[number] = coming.result()
                coming = None
            if at + 1 < len(order) and order[at + 1] not in pages.ram:
                coming = fetch(order[at + 1], set(order[at:]))
            page = pages.ram[number]
            change(number, page)
            pages.touch(number)


class _Done(Future):
    """What `submit` gives, without a thread."""

    def __init__(self, function: Callable, *arguments):
        super().__init__()
        self.set_result(function(*arguments))


def _waited_for(thread: ThreadPoolExecutor, function: Callable, *arguments) -> Future:
    coming = thread.submit(function, *arguments)
    coming.result()
    return coming


class _Pages:
    """What a sweep is given in a check: pages of four bytes in a file, and a count of all that happens to them.

    Args:
        folder: of the file. content: what lies in it. ram: pages in memory, used in this order; none is as in the file.
        order: of the sweep. patient: whether changing a page and reading the next wait until both are under way.
    """

    PATIENCE = 0.5  # seconds

    def __init__(self, folder: str, content: list[bytes], slots: int, ram: list[int], order: list[int], patient: bool):
        self.path, self.size, self.slots, self.order = Path(folder, "pages"), len(content[0]), slots, order
        self.path.write_bytes(b"".join(content))
        self.ram = {number: bytearray(b ^ 255 for b in content[number]) for number in ram}
        self._times = {number: time for time, number in enumerate(ram, 1)}
        self._unsaved, self._under_way, self._asked = set(ram), set(), set()
        self._state = threading.Condition()
        self._thread, self._changing, self._patient = threading.get_ident(), False, patient
        self.visited: list[int] = []
        self.reads = self.writes = self.most = 0
        self.not_ahead: set[str] = set()  # why what should happen at the same time did not

    @property
    def last_used(self) -> dict[int, int]:
        return {number: self._times.get(number, 0) for number in list(self.ram)}

    def touch(self, number: int) -> None:
        self._times[number] = 1 + max(self._times.values(), default=0)

    def _count(self) -> None:
        """The pages that take room now: those in `ram`, those being read, those changed and not written yet."""
        self._under_way -= set(self.ram)
        self.most = max(self.most, len(self._under_way | self._unsaved | set(self.ram)))
        self._state.notify_all()

    def _wait_for(self, condition: Callable[[], bool], otherwise: str) -> None:
        if self._patient and not self._state.wait_for(condition, self.PATIENCE):
            self._patient = False  # once is enough
            self.not_ahead.add(otherwise)

    def read(self, number: int) -> bytearray:
        with self._state:
            self.reads += 1
            self._under_way.add(number)
            self._asked.add(number)
            self._count()
            changed = len(self.visited)
            if changed and threading.get_ident() == self._thread:
                self.not_ahead.add("in the same thread")
            elif changed:
                self._wait_for(lambda: self._changing or len(self.visited) > changed, "waited for")
        return read_page(self.path, number, self.size)

    def write(self, number: int, page: bytearray) -> None:
        with self._state:
            self.writes += 1
            self._count()
        write_page(self.path, number, page)
        with self._state:
            self._unsaved.discard(number)
            self._under_way.discard(number)
            self._asked.discard(number)
            self._count()

    def change(self, number: int, page: bytearray) -> None:
        with self._state:
            self.visited.append(number)
            self._unsaved.add(number)
            self._under_way.discard(number)
            self._changing = True
            self._count()
            if len(self.visited) < len(self.order):
                following = self.order[len(self.visited)]
                self._wait_for(lambda: following in self.ram or following in self._asked, "late")
            for i, byte in enumerate(page):
                page[i] = (3 * byte + 7 * number + i + 1) % 256
            self._changing = False

    def found(self) -> dict:
        """What is compared. pages: each as it is in RAM, or else in the file."""
        file = self.path.read_bytes()
        cut = [file[at : at + self.size] for at in range(0, len(file), self.size)]
        return {
            "visited": self.visited,
            "pages": [bytes(self.ram.get(number, content)) for number, content in enumerate(cut)],
            "in RAM": sorted(self.ram),
            "too many": max(0, self.most - self.slots),
            "reads": self.reads,
            "writes": self.writes,
        }


def _evict(last_used: dict, due: set) -> int:
    """As asked for in the exercise; one of those due if there is no other, so that a wrong sweep goes on."""
    if not isinstance(due, set | frozenset):
        raise TypeError(f"the second argument of evict, due, has to be a set of pages, and is a {type(due).__name__}")
    return page_to_evict(last_used, due if set(last_used) - due else set())


def _sweep_case(generator: torch.Generator, number: int):
    """(pages, slots, those in RAM, order). In turn: the way back of a sweep; room for all; the page used longest ago
    is still due; pages twice in a row; a page in RAM that is not visited; a small one with nothing in RAM."""
    pages, slots = ((7, 3), (5, 6), (6, 3), (6, 2), (7, 4), (3, 2))[number % 6]
    order = list(range(pages))
    ram = (order[-slots:], [4, 2], [5], [1, 0], [5, 1, 6, 2], [])[number % 6]
    rest = [page for page in order if page not in ram]
    rest = [rest[i] for i in torch.randperm(len(rest), generator=generator)]
    back = ram[::-1] + rest
    twice = [each for each in back for _ in range(1 + (each in back[::2]))]
    order = (order[::-1], ram + rest, rest + ram, twice, back[1:], order)[number % 6]
    return pages, slots, ram, order


def _call_sweep(function: Callable, arguments: tuple, prefetches: bool = False) -> dict:
    count, slots, ram, order = arguments
    content = [bytes((37 * number + 11 * i + 5) % 256 for i in range(4)) for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        pages = _Pages(folder, content, slots, ram, order, patient=prefetches and len(order) == 3)
        function(pages, list(order), pages.change, _evict)
        return pages.found() | ({"not ahead": sorted(pages.not_ahead)} if prefetches else {})


def _call_prefetch(function: Callable, arguments: tuple) -> dict:
    return _call_sweep(function, arguments, prefetches=True)


def _which_sweep(arguments: tuple) -> str:
    count, slots, ram, order = arguments
    return f"{count} pages, {slots} slots, {ram or 'none'} in RAM before and the order {order}"


def _tell_sweep(arguments: tuple, result: dict, expected: dict) -> str | None:
    slots, order = arguments[1], arguments[3]
    case = f"With {_which_sweep(arguments)}: "
    wrong = [i for i, (a, b) in enumerate(zip(result["pages"], expected["pages"], strict=False)) if a != b]
    if result["visited"] != expected["visited"]:
        by_number = result["visited"] == sorted(order)
        why = " They are visited by number. Visit them as `order` says, whatever the order is."
        return f"{case}`change` was called for {result['visited']}.{why if by_number else ''}"
    if wrong or len(result["pages"]) != len(expected["pages"]):
        return (
            f"{case}afterwards these pages hold something other than they should: {wrong}. Was each written before it "
            "left, to its own place, and none read from the file while it was in RAM?"
            + (
                " Did the one that was being changed stay, and was the thread waited for?"
                if "not ahead" in result
                else ""
            )
        )
    if result["too many"]:
        most = slots + result["too many"]
        return f"{case}at one moment {most} pages took room in RAM. Has one left before another is read?"
    for what in ("reads", "writes"):
        if (found := result[what]) != (right := expected[what]):
            return (
                f"{case}it has {found} {what}; with the page that `evict` names leaving each time, there are {right}."
            )
    if result["in RAM"] != expected["in RAM"]:
        return f"{case}the pages {result['in RAM']} are in RAM afterwards; it should be {expected['in RAM']}."
    return f"{case}the next page was not read while the present one was changed." if result.get("not ahead") else None


def _reads_always(pages, order, change, evict):
    """A page comes from the file also where it is in RAM."""
    for place, number in enumerate(order):
        if number not in pages.ram and len(pages.ram) == pages.slots:
            leaves = evict(pages.last_used, set(order[place:]))
            pages.write(leaves, pages.ram.pop(leaves))
        pages.ram[number] = pages.read(number)
        change(number, pages.ram[number])
        pages.touch(number)


def _writes_all_back(pages, order, change, evict):
    paged_sweep(pages, order, change, evict)
    for number in list(pages.ram):
        pages.write(number, pages.ram[number])


def _empties_the_ram(pages, order, change, evict):
    _writes_all_back(pages, order, change, evict)
    pages.ram.clear()


def _reads_before_it_writes(pages, order, change, evict):
    """A page comes in before the one that leaves is written, and so finds no room."""

    def exchange(leaves, page, comes):
        came = pages.read(comes)
        if leaves is not None:
            pages.write(leaves, page)
        return came

    def fetch(number, due):
        leaves = evict(pages.last_used, due) if len(pages.ram) == pages.slots else None
        return thread.submit(exchange, leaves, pages.ram.pop(leaves, None), number)

    with ThreadPoolExecutor(1) as thread:
        coming = None if order[0] in pages.ram else fetch(order[0], set(order))
        for place, number in enumerate(order):
            if coming is not None:
                pages.ram[number] = coming.result()
                coming = None
            if place + 1 < len(order) and order[place + 1] not in pages.ram:
                coming = fetch(order[place + 1], set(order[place:]))
            change(number, pages.ram[number])
            pages.touch(number)


def evict_best(there, coming):
    def next_use(page):
        return coming.index(page) if page in coming else len(coming)

    return max(there, key=next_use)


def _future(generator: torch.Generator, number: int):
    pages = 5 + 2 * number
    there = torch.randperm(pages, generator=generator).tolist()[: 3 + number]
    coming = draw_integers(generator, 0, pages, 3 * pages)
    if number % 3 == 0:  # two of them are not asked for again
        coming = [page for page in coming if page not in there[1:3]]
    if number % 3 == 1:  # all are
        coming += there
    return there, coming


def _distance(arguments: tuple, result) -> int | str:
    """When the page is next asked for; a sentence about what is no page in RAM."""
    there, coming = arguments
    result = plain_number(result)
    if isinstance(result, bool) or result not in there:
        return f"It returned {result!r}, which is no page of {there}, those in RAM."
    return coming.index(result) if result in coming else len(coming)


def _tell_eviction(arguments: tuple, result: int | str, expected: int) -> str:
    if isinstance(result, str):
        return result
    coming = arguments[1]
    late = "is not asked for again" if expected == len(coming) else f"is next asked for at place {expected}"
    return f"The page that leaves is asked for again at place {result}; there is one in RAM that {late}."


def _parts_of_state(parameters, bits):
    return {
        "moments": 2 * parameters * bits // 8,
        "scales": 8 * math.ceil(parameters / 256) if bits == 8 else 0,
    }


EXERCISES = (
    Exercise(
        "state-bytes",
        _state_case,
        state_bytes,
        edits("""
            2 * parameters * bits // 8 + (4 * blocks if → parameters * bits // 8 + (2 * blocks if
            1: AdamW keeps two moments, m and v; that is one.

            4 * blocks if bits == 8 else 0 → 0
            2: In 8 bits each block of 256 numbers has a scale of four bytes, for both moments.

            2 * parameters * bits // 8 + (4 * blocks if bits == 8 else 0) → 2 * parameters * bits
            1: These are bits; a byte has eight.

            math.ceil(parameters / 256) → (parameters // 256)
            2: The last block of 256 may be shorter and has a scale all the same: round up.

            math.ceil(parameters / 256) → (parameters // 256 + 1)
            2: One is added even where there is no remainder: `n // 256 + 1` is one too many there;
               -(-n // 256) rounds up.

            4 * blocks if bits == 8 else 0 → 4 * blocks
            2: Only in 8 bits are there scales; 16 and 32 bits hold the numbers as they are.

            2 * math.ceil(parameters / 256) → math.ceil(2 * parameters / 256)
            2: Each moment has blocks of its own, so round up for each.

            2 * math.ceil(parameters / 256) → math.ceil(parameters / 256)
            2: There are scales for both moments; you count them for one.

            4 * blocks if bits == 8 else 0 → blocks if bits == 8 else 0
            2: A scale has four bytes.

            math.ceil(parameters / 256) → parameters / 256
            2: The last block of 256 may be shorter and has a whole scale all the same: round up.

            2 * parameters * bits // 8 → 3 * parameters * bits // 8
            1: That counts something beside the two moments: weights and gradients are no state of AdamW's.
        """),
        parts=_parts_of_state,
    ),
    Exercise(
        "adamw-step",
        _step_case,
        adamw_step,
        (
            *edits("""
            lr / (1 - beta1**step) * m / (root + eps) → lr * m / (v.sqrt() + eps)
            2: Both moments start at zero and are too small at first; their corrections by 1 - beta^step are missing.

            p = p * (1 - lr * weight_decay) → gradient = gradient + weight_decay * p
            1: Weight decay goes into the gradient here, which is Adam with L2. The W in AdamW means that the weight is
               made smaller by itself, beside the gradient.

            (root + eps), m, v → (root + eps), m / (1 - beta1**step), v / (1 - beta2**step)
            2: m and v come back corrected. They are running means that go on with the next step: correct them only
               where the weight is moved.

            beta1, beta2 → beta2, beta1
            2: beta1 and beta2 have changed places: beta1 belongs to m, beta2 to v.

            p = p * (1 - lr * weight_decay) → p = p
            1: The weight decay is missing: the W in AdamW.

            (v / (1 - beta2**step)).sqrt() → v.sqrt()
            lr / (1 - beta1**step) * m → lr * m
            2: Only one of the two moments is corrected; both start at zero.

            lr / (1 - beta1**step) * m / (root + eps) → lr / (1 - beta1) * m / ((v / (1 - beta2)).sqrt() + eps)
            2: The corrections are those of the first step at every step: 1 - beta**step.

            (root + eps) → (root**2 + eps).sqrt()
            3: eps is added after the square root, not inside it.

            (root + eps) → (root**2 + eps)
            3: m is divided by the square root of v, not by v.

            lr * weight_decay → weight_decay
            1: The decay is lr * weight_decay, so that a schedule of the learning rate scales both.

            (root + eps), m, v → (root + eps)
            -: Return all three: the new p, m and v, in this order.

            (1 - beta2) * gradient**2 → (1 - beta2) * gradient.abs()
            2: v is the running mean of the gradient's *square*.

            (1 - beta2) * gradient**2 → (1 - beta2) * m**2
            2: v is the running mean of the gradient's square, not of m's.

            return p - lr → return p + lr
            1: The weight moves along the gradient, uphill; the step is subtracted.

            return p - lr / (1 - beta1**step) * m / (root + eps), m, v → return p - lr * gradient / (root + eps), m, v
            2: The weight is moved by the gradient itself; the mean of gradients, m, moves it.

            beta2 * v + (1 - beta2) * gradient**2 → (1 - beta2) * v + beta2 * gradient**2
            m + (1 - beta1) * (gradient - m) → m + beta1 * (gradient - m)
            2: Old and new are weighted the wrong way round: most of a running mean is the old one, times beta.

            p - lr / (1 - beta1**step) * m / (root + eps) → _old_moments(p, gradient, m, v, lr, beta1, beta2, eps, step)
            2: The weight is moved by the old moments. The new gradient goes into them first.

            p - lr / (1 - beta1**step) * m → p - lr * (1 - lr * weight_decay) / (1 - beta1**step) * m
            1: The weight is moved first and shrunk after that, so that the step shrinks too. It shrinks before it
               moves.

            p = p * (1 - lr * weight_decay) → p = p - lr * weight_decay
            1: The same is taken from every weight; the decay is a share of the weight itself.

            (v / (1 - beta2**step)).sqrt() → math.sqrt(v / (1 - beta2**step))
            3: `math.sqrt` takes one number. A tensor's root is `v.sqrt()`, or `torch.sqrt(v)`.
        """),
            Misconception(
                "The corrections take beta to the power of the step, `beta**step`, not times the step.",
                2,
                function=edited(adamw_step, "beta1**step", "beta1 * step", "beta2**step", "beta2 * step"),
            ),
        ),
        any_float=True,
        tolerance=1e-5,
    ),
    Exercise(
        "pages-of",
        _span,
        pages_of,
        edits("""
            first + count - 1 → first + count
            2: The last element is first + count - 1; you ask for the page of the element after it, which is one page
               too many where a parameter ends with its page.

            (first + count - 1) // per_page + 1 → (first + count - 1) // per_page
            2: The page of the last element is missing: a range in Python ends before its end.

            (first + count - 1) // per_page + 1 → first // per_page + math.ceil(count / per_page)
            1: The number of pages is not ceil(count / per_page): a parameter may begin in the middle of a page and
               touch one more.

            first // per_page, (first + count - 1) // per_page + 1 → math.ceil(count / per_page)
            1: The parameter does not begin at page 0 but at the page of its first element.

            (first + count - 1) // per_page + 1 → first // per_page + count // per_page + 1
            1: The number of pages is not count // per_page + 1: that is right for some beginnings only. Ask for the
               page of the last element.

            (first + count - 1) // per_page + 1 → (first + count) // per_page
            2: A range in Python ends before its end: the page of the last element is missing, except where the
               parameter ends with a page.
        """),
    ),
    Exercise(
        "sweep-order",
        lambda generator, number: (1 + number, *draw_integers(generator, 3, 9, 1)),
        sweep_order,
        edits("""
            forth if step % 2 else forth[::-1] → forth
            1: Always forward: with room for half of the pages, LRU then has none of those that are needed.

            forth if step % 2 else forth[::-1] → forth[::-1] if step % 2 else forth
            2: Steps count from 1, and the first one goes forward.

            forth if step % 2 else forth[::-1] → forth[::-1]
            1: Every step goes backwards; that is a loop as well.

            forth if step % 2 else forth[::-1] → forth[step % pages :] + forth[: step % pages]
            forth if step % 2 else forth[::-1] → forth[(step - 1) % pages :] + forth[: (step - 1) % pages]
            1: Each step begins one page further and goes round; it should go back and forth, and begin where the step
               before ended.

            forth if step % 2 else forth[::-1] → (forth if step % 2 else forth[::-1])[step > 1 :]
            2: Each sweep has to visit every page; the one on which the order turns is missing.

            forth if step % 2 else forth[::-1] → forth if step % 2 else list(range(pages, 0, -1))
            2: Backwards that goes from `pages` down to 1; pages count from 0, so it has to go from pages - 1 down to 0.

            forth if step % 2 else forth[::-1] → forth if step % 2 else list(range(pages - 1, 0, -1))
            2: Backwards page 0 is missing: a range in Python ends before its end.

            forth if step % 2 else forth[::-1] → forth if step % 2 else forth.reverse()
            2: `reverse` turns the list itself and gives None: turn it first, then return it.
        """),
    ),
    Exercise(
        "evict",
        _eviction,
        page_to_evict,
        edits("""
            min(candidates, key=last_used.get) → max(candidates, key=last_used.get)
            1: That is the page used last, which LRU keeps: the smallest time is the longest ago.

            if page not in due →
            2: That page is the oldest, but it is still due in this sweep and would have to come back at once.

            min(candidates, key=last_used.get) → sorted(last_used, key=last_used.get)[len(due)]
            min(candidates, key=last_used.get) → sorted(last_used, key=last_used.get)[max(0, len(due) - 1)]
            2: You pass over as many of the oldest pages as there are in `due`, without asking which ones.

            min(candidates, key=last_used.get) → candidates[0]
            1: That is the first page that is not due, in the dictionary's order, not by time.

            min(candidates, key=last_used.get) → min(due, key=last_used.get, default=None)
            2: That is the page of `due` used longest ago; these have to stay.

            min(candidates, key=last_used.get) → min(last_used[page] for page in candidates)
            1: That is a time; the page is wanted.

            min(candidates, key=last_used.get) → min(candidates)
            1: That is the page with the smallest number, not the one that was used longest ago.

            min(candidates, key=last_used.get) → max(last_used[page] for page in candidates)
            min(candidates, key=last_used.get) → max(last_used.values())
            1: That is the time of the page used last; the page used longest ago is wanted.
        """),
    ),
    Exercise(
        "bytes-moved",
        _traffic,
        bytes_moved,
        edits("""
            2 * max(0, pages - resident) → max(0, pages - resident)
            1: What comes in has to go out again: each page that is not resident moves twice in a step.

            max(0, pages - resident) → pages
            1: These are all pages; the resident ones need not move.

            max(0, pages - resident) → (pages - resident)
            2: If there is room for more pages than there are, nothing moves; bytes cannot be negative.

            max(0, pages - resident) * page_bytes → max(0, pages - resident)
            -: These are pages; the answer is in bytes.

            max(0, pages - resident) → abs(pages - resident)
            2: If there is room for more pages than there are, nothing moves.

            max(0, pages - resident) → min(pages, resident)
            max(0, pages - resident) → resident
            1: These are the pages that stay; the others move.

            2 * max(0, pages - resident) → max(0, 2 * pages - resident)
            1: A resident page is spared both ways, in and out.
        """),
    ),
    Exercise(
        "read-page",
        _page_in_a_file,
        read_page,
        edits("""
            file.seek(number * page_bytes) → file.seek(number)
            1: `seek` counts bytes, not pages: page `number` begins at byte number * page_bytes.

            file.seek(number * page_bytes) → file.seek(0)
            1: That is always the first page: go to where page `number` begins.

            file.seek(number * page_bytes) → file.seek((number + 1) * page_bytes)
            1: That is the page after it: pages count from 0.

            file.read(page_bytes) → file.read()
            2: That reads everything from there to the end of the file. Only one page is to come into RAM.

            bytearray(file.read(page_bytes)) → file.read(page_bytes)
            2: `bytes` cannot be changed in place, and the optimizer has to change the page: make it a bytearray.

            "rb" → "w+b"
            2: Opening a file with "w" empties it.

            "rb" → "r"
            -: Opened like this, a file is read as text, and a page is none. With "rb" it gives bytes.

            file.read(page_bytes) → file.read()[:page_bytes]
            2: The page is right, but much more of the file is read to get it. There may be gigabytes behind it: read
               this page only.
        """),
        describe=_tell_read,
        call=_call_read,
        situation=_which_page,
    ),
    Exercise(
        "write-page",
        _page_to_write,
        write_page,
        edits("""
            "r+b" → "wb"
            1: Opening a file with "w" empties it: all other pages are gone.

            "r+b" → "ab"
            1: With "a" everything is added at the end of the file, whatever `seek` has done.

            file.seek(number * len(page)) → file.seek(number)
            2: `seek` counts bytes, not pages: page `number` begins at byte number * len(page).

            file.seek(number * len(page)) → file.seek(0)
            2: That always overwrites the first page: go to where page `number` begins.

            file.seek(number * len(page)) → file.seek((number + 1) * len(page))
            2: That overwrites the page after it: pages count from 0.

            "r+b" → "rb"
            1: "rb" opens a file for reading only.

            "r+b" → "r+"
            1: Without the "b" a file takes text, and a page is none.
        """),
        describe=_tell_write,
        call=_call_write,
        situation=_which_page,
    ),
    Exercise(
        "paged-sweep",
        _sweep_case,
        paged_sweep,
        (
            *edits("""
            pages.write(leaves, pages.ram.pop(leaves)) → pages.ram.pop(leaves)
            1: The page that leaves is not written to the file first: what was changed in it is lost.

            len(pages.ram) == pages.slots → len(pages.ram) > pages.slots
            1: There is one page too many in RAM: with all slots taken, one has to leave before the next is read.

            if number not in pages.ram: → if number not in pages.ram or len(pages.ram) < pages.slots:
            if number not in pages.ram: → if True:
            2: A page that is in RAM is read from the file once more. What is in the file is older: all that was
               changed in RAM is lost.

            set(order[place:]) → set()
            set(order[place:]) → {number}
            3: `evict` is not told which pages this sweep still needs: one of them leaves and has to come back.

            pages.touch(number) → pass
            3: No page is ever marked as used (`pages.touch`), so `evict` goes by times of earlier sweeps.

            change(number, pages.ram[number]) → change(number, bytearray(pages.ram[number]))
            -: A copy of the page is changed, and the page in RAM stays as it was.

            pages.ram[number] = pages.read(number) → pages.ram[number] = bytearray(4)
            1: The page that comes in is not read from the file.

            change(number, pages.ram[number]) → pages.ram[number] = change(number, pages.ram[number])
            -: `change` changes the page itself and gives None, which now stands in RAM instead of the page.
        """),
            Misconception(
                "A page that is in RAM is read from the file once more. What is in the file is older: all that was "
                "changed in RAM is lost.",
                2,
                function=_reads_always,
            ),
            Misconception(
                "Each page is written as soon as it was changed. It is enough to write the one that leaves.",
                1,
                function=edited(
                    paged_sweep,
                    *("pages.write(leaves, pages.ram.pop(leaves))", "pages.ram.pop(leaves)"),
                    *("pages.touch(number)", "pages.touch(number); pages.write(number, pages.ram[number])"),
                ),
            ),
            Misconception(
                "Each page is written as soon as it was changed. It is enough to write the one that leaves.",
                1,
                edit=("pages.touch(number)", "pages.touch(number); pages.write(number, pages.ram[number])"),
            ),
            *(
                Misconception(
                    "At the end all pages in RAM are written to the file. They stay in RAM for the next sweep, and are "
                    "written when they leave.",
                    None,
                    function=found,
                )
                for found in (_writes_all_back, _empties_the_ram)
            ),
        ),
        cases=6,
        describe=_tell_sweep,
        call=_call_sweep,
        situation=_which_sweep,
    ),
    Exercise(
        "prefetch-sweep",
        _sweep_case,
        prefetch_sweep,
        (
            *edits("""
                thread.submit(exchange, → _Done(exchange,
                2: The next page is read before the present one is changed, but by the same thread, so that the two do
                   not happen at the same time and nothing is gained. Give the reading to `thread.submit`.

                thread.submit(exchange, → _waited_for(thread, exchange,
                2: The result of the thread is waited for before `change` is called, so that the two do not happen at
                   the same time. Ask for `.result()` when the page is needed, not before.

                pages.write(leaves, page) → pass
                1: The page that leaves is not written to the file first: what was changed in it is lost.

                if at + 1 < len(order) and order[at + 1] not in pages.ram: → if at + 1 < len(order):
                3: A page that is in RAM, and may be the one that is being changed, is read from the file once more.
                   What is in the file is older: all that was changed in RAM is lost.

                len(pages.ram) == pages.slots → len(pages.ram) > pages.slots
                1: There is one page too many in RAM: the one that is on its way needs a slot, too.

                enumerate(order) → enumerate(order[:-1])
                -: The last page comes in and is never changed: after the loop there is one left to do.

                set(order[at:]) → {number}
                3: `evict` is not told which pages this sweep still needs: one of them leaves and has to come back.

                pages.touch(number) → pass
                3: No page is ever marked as used (`pages.touch`), so `evict` goes by times of earlier sweeps.
            """),
            Misconception(
                "This sweep reads a page when it is needed, and `change` waits for that. Read the next one in a thread "
                "before you call `change` for this one.",
                2,
                function=paged_sweep,
            ),
            Misconception(
                "The page that comes is read before the one that leaves is written: for that moment there is one page "
                "too many in RAM.",
                3,
                function=_reads_before_it_writes,
            ),
        ),
        cases=6,
        describe=_tell_sweep,
        call=_call_prefetch,
        situation=_which_sweep,
    ),
    Exercise(
        "evict-best",
        _future,
        evict_best,
        edits("""
            max(there, key=next_use) → min(there, key=next_use)
            1: That is the page which is asked for soonest.

            else len(coming) → else -1
            2: A page that is never asked for again is the best to lose; here it is the last to leave.

            coming.index(page) → (len(coming) - 1 - coming[::-1].index(page))
            2: Next use, not last use: how far it is to the page's *first* place in `coming`.

            max(there, key=next_use) → next_use(max(there, key=next_use))
            1: That is a place in `coming`; the page is wanted.

            max(there, key=next_use) → min(there, key=coming.count)
            1: That is the page asked for least often. What counts is how long until the next time.

            max(there, key=next_use) → there[0]
            1: That is just the first page in RAM; which one is asked for again last?

            coming.index(page) if page in coming else len(coming) → coming.index(page)
            2: A page that is never asked for again is in no place of `coming`, so that `index` stops. It is the best
               to lose.
        """),
        view=_distance,
        describe=_tell_eviction,
    ),
)
