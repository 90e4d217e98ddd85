"""Exercises of notebook 04 about paging: pages, their order, who has to leave, and what moves."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def _numbers(generator: torch.Generator, low: int, high: int, count: int) -> list[int]:
    return torch.randint(low, high, (count,), generator=generator).tolist()


def pages_of(first: int, count: int, per_page: int) -> list[int]:
    return list(range(first // per_page, (first + count - 1) // per_page + 1))


def _span(generator: torch.Generator, number: int):
    per_page = 2 ** (2 + number % 4)
    first, count = _numbers(generator, 1, 6 * per_page, 2)
    if number == 1:
        first = per_page  # exactly at the beginning of a page ...
        count = 2 * per_page  # ... to exactly the end of one
    return first, count, per_page


def sweep_order(step: int, pages: int) -> list[int]:
    forth = list(range(pages))
    return forth if step % 2 else forth[::-1]


def page_to_evict(last_used: dict, due: set) -> int:
    return min((page for page in last_used if page not in due), key=lambda page: last_used[page])


def _eviction(generator: torch.Generator, number: int):
    pages = torch.randperm(6 + 3 * number, generator=generator).tolist()
    times = torch.randperm(100, generator=generator).tolist()
    last_used = dict(zip(pages, times, strict=False))
    oldest = sorted(last_used, key=last_used.get)
    due = {page for page in oldest[1:] if _numbers(generator, 0, 3, 1)[0] == 0}  # any of them ...
    if number:
        due |= set(oldest[: number % 4])  # ... and in most cases the oldest ones
    return last_used, due - {oldest[-1 - number % 3]}  # at least one is not


def bytes_moved(pages: int, resident: int, page_bytes: int) -> int:
    return 2 * max(0, pages - resident) * page_bytes


def _traffic(generator: torch.Generator, number: int):
    pages = _numbers(generator, 4, 200, 1)[0]
    resident = pages + 5 if number == 3 else 0 if number == 2 else _numbers(generator, 1, pages, 1)[0]
    return pages, resident, 2 ** (12 + number)


EXERCISES = (
    Exercise(
        "pages-of",
        _span,
        pages_of,
        (
            Misconception(
                "The last element is first + count - 1; you ask for the page of the element after it, which is one "
                "page too many where a parameter ends with its page. Open hint 2.",
                lambda first, count, size: list(range(first // size, (first + count) // size + 1)),
            ),
            Misconception(
                "The page of the last element is missing: a range in Python ends before its end. Open hint 2.",
                lambda first, count, size: list(range(first // size, (first + count - 1) // size)),
            ),
            Misconception(
                "The number of pages is not ceil(count / per_page): a parameter may begin in the middle of a page and "
                "touch one more. Open hint 1.",
                lambda first, count, size: list(range(first // size, first // size + math.ceil(count / size))),
            ),
            Misconception(
                "The parameter does not begin at page 0 but at the page of its first element. Open hint 1.",
                lambda first, count, size: list(range(math.ceil(count / size))),
            ),
        ),
    ),
    Exercise(
        "sweep-order",
        lambda generator, number: (1 + number, _numbers(generator, 3, 9, 1)[0]),
        sweep_order,
        (
            Misconception(
                "Always forward: with room for half of the pages, LRU then has none of those that are needed. "
                "Open hint 1.",
                lambda step, pages: list(range(pages)),
            ),
            Misconception(
                "Steps count from 1, and the first one goes forward. Open hint 2.",
                lambda step, pages: sweep_order(step + 1, pages),
            ),
            Misconception(
                "Every step goes backwards; that is a loop as well. Open hint 1.",
                lambda step, pages: list(range(pages))[::-1],
            ),
            Misconception(
                "Each sweep has to visit every page; the one on which the order turns is missing. Open hint 2.",
                lambda step, pages: sweep_order(step, pages)[(0 if step == 1 else 1) :],
            ),
        ),
    ),
    Exercise(
        "evict",
        _eviction,
        page_to_evict,
        (
            Misconception(
                "That is the page used last, which LRU keeps: the smallest time is the longest ago. Open hint 1.",
                lambda last_used, due: max((p for p in last_used if p not in due), key=last_used.get),
            ),
            Misconception(
                "That page is the oldest, but it is still due in this sweep and would have to come back at once. "
                "Open hint 2.",
                lambda last_used, due: min(last_used, key=last_used.get),
            ),
            Misconception(
                "You pass over as many of the oldest pages as there are in `due`, without asking which ones. Open hint "
                "2.",
                lambda last_used, due: sorted(last_used, key=last_used.get)[len(due)],
            ),
            Misconception(
                "You pass over as many of the oldest pages as there are in `due`, without asking which ones. Open hint "
                "2.",
                lambda last_used, due: sorted(last_used, key=last_used.get)[max(0, len(due) - 1)],
            ),
            Misconception(
                "That is the first page that is not due, in the dictionary's order, not by time. Open hint 1.",
                lambda last_used, due: next(page for page in last_used if page not in due),
            ),
            Misconception(
                "That is the page of `due` used longest ago; these have to stay. Open hint 2.",
                lambda last_used, due: min((p for p in last_used if p in due), key=last_used.get, default=None),
            ),
            Misconception(
                "That is a time; the page is wanted. Open hint 1.",
                lambda last_used, due: min(t for p, t in last_used.items() if p not in due),
            ),
            Misconception(
                "That is the page with the smallest number, not the one that was used longest ago. Open hint 1.",
                lambda last_used, due: min(p for p in last_used if p not in due),
            ),
        ),
    ),
    Exercise(
        "bytes-moved",
        _traffic,
        bytes_moved,
        (
            Misconception(
                "What comes in has to go out again: each page that is not resident moves twice in a step. Open hint 1.",
                lambda n, k, size: max(0, n - k) * size,
            ),
            Misconception(
                "These are all pages; the resident ones need not move. Open hint 1.", lambda n, k, size: 2 * n * size
            ),
            Misconception(
                "If there is room for more pages than there are, nothing moves; bytes cannot be negative. Open hint 2.",
                lambda n, k, size: 2 * (n - k) * size,
            ),
            Misconception("These are pages; the answer is in bytes.", lambda n, k, size: 2 * max(0, n - k)),
        ),
    ),
)
