"""The checks of the pager: right ones of other shapes are right, however the threads run; no thread is left behind."""

import random
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest
from wrong_answers.notebook_04 import ahead, in_turn

from qlora_lab.checks import EXERCISES, verdict
from qlora_lab.checks.notebook_04 import _Pages, evict_best, page_to_evict, paged_sweep, prefetch_sweep, sweep_order


def with_a_thread_for_each(pages, order, change, evict):
    """No executor: a thread for each page that comes, joined when it is needed."""

    def bring(leaves, page, comes, into):
        if leaves is not None:
            pages.write(leaves, page)
        into.append(pages.read(comes))

    def start(number, due):
        leaves = evict(pages.last_used, due) if len(pages.ram) >= pages.slots else None
        into = []
        thread = threading.Thread(target=bring, args=(leaves, pages.ram.pop(leaves, None), number, into))
        thread.start()
        return thread, into

    coming = start(order[0], set(order)) if order[0] not in pages.ram else None
    for place, number in enumerate(order):
        if coming:
            coming[0].join()
            pages.ram[number] = coming[1][0]
        following = order[place + 1] if place + 1 < len(order) else number
        coming = start(following, set(order[place:])) if following not in pages.ram else None
        change(number, pages.ram[number])
        pages.touch(number)


def as_far_ahead_as_there_is_room(pages, order, change, evict):
    """As `PageStore` does it: whatever is missing comes as soon as a page that is not due can leave."""
    with ThreadPoolExecutor(1) as thread:
        ordered, coming = deque(), {}

        def exchange(leaves, page, comes):
            if leaves is not None:
                pages.write(leaves, page)
            return pages.read(comes)

        def look_ahead(place):
            for number in order[place:]:
                if number in pages.ram or number in coming:
                    continue
                leaves = None
                if len(pages.ram) + len(coming) >= pages.slots:
                    due = set(order[place:])
                    if not set(pages.last_used) - due:
                        return
                    leaves = evict(pages.last_used, due)
                coming[number] = thread.submit(exchange, leaves, pages.ram.pop(leaves, None), number)
                ordered.append(number)

        look_ahead(0)
        for place, number in enumerate(order):
            if number in coming:
                pages.ram[number] = coming.pop(number).result()
            look_ahead(place)
            change(number, pages.ram[number])
            pages.touch(number)


@pytest.mark.parametrize("sweep", [prefetch_sweep, ahead, with_a_thread_for_each, as_far_ahead_as_there_is_room])
@pytest.mark.parametrize("exercise", ["paged-sweep", "prefetch-sweep"])
def test_a_sweep_that_reads_ahead_is_right(exercise, sweep):
    for seed in range(3):
        assert verdict(exercise, sweep, seed).status == "right", verdict(exercise, sweep, seed)


def test_what_the_wrong_sweeps_are_edits_of_is_right():
    for seed in range(3):
        assert verdict("paged-sweep", in_turn, seed).status == "right", verdict("paged-sweep", in_turn, seed)


def test_reading_ahead_is_right_when_threads_are_slow(monkeypatch):
    read, dice = _Pages.read, random.Random(0)

    def later(pages, number):
        time.sleep(dice.random() * 0.01)
        return read(pages, number)

    monkeypatch.setattr(_Pages, "read", later)
    for sweep in (prefetch_sweep, with_a_thread_for_each):
        assert verdict("prefetch-sweep", sweep).status == "right"


def test_no_thread_is_left():
    before = threading.active_count()
    for exercise in ("paged-sweep", "prefetch-sweep"):
        verdict(exercise, EXERCISES[exercise].solution)
    assert threading.active_count() == before


def fetched(sweep, pages, slots, orders):
    with tempfile.TemporaryDirectory() as folder:
        found = _Pages(folder, [bytes(4)] * pages, slots, [], [], patient=False)
        for order in orders:
            sweep(found, order, found.change, page_to_evict)
        return found.reads, found.found()["too many"]


def best_possible(order, slots):
    there, count = [], 0
    for place, page in enumerate(order):
        if page not in there:
            count += 1
            if len(there) == slots:
                there.remove(evict_best(there, order[place:]))
            there.append(page)
    return count


@pytest.mark.parametrize(("pages", "slots"), [(2, 2), (5, 2), (7, 3), (9, 8), (4, 6)])
def test_sweeps_back_and_forth_fetch_as_few_pages_as_is_possible(pages, slots):
    orders = [sweep_order(step, pages) for step in range(1, 6)]
    least = best_possible([page for order in orders for page in order], slots)
    assert fetched(paged_sweep, pages, slots, orders) == fetched(prefetch_sweep, pages, slots, orders) == (least, 0)
    assert least == pages + 4 * max(0, pages - slots)
