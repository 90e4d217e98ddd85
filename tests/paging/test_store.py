"""Pages: each in one tier, the least recently used leaves, and what a page holds comes back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_lab.paging.store import Page, PageStore

PAGE = 4096


def make_store(tmp_path_factory, pages, device_pages, host_pages=0):
    store = PageStore(
        PAGE,
        torch.device("cpu"),
        None if device_pages is None else device_pages * PAGE,
        host_pages * PAGE,
        tmp_path_factory.mktemp("pages"),
    )
    store.add([Page() for _ in range(pages)])
    return store


@settings(max_examples=40)
@given(
    pages=st.integers(1, 30),
    device_pages=st.sampled_from([None, 0, 2, 3, 9, 17]),
    host_pages=st.sampled_from([0, 1, 4]),
    sweeps=st.lists(st.lists(st.integers(0, 29), unique=True, max_size=30), max_size=6),
    batch_size=st.integers(1, 4),
    resized=st.sampled_from([2, 5, 12, None]),
)
def test_pages_keep_their_content_and_are_in_one_tier(
    tmp_path_factory, pages, device_pages, host_pages, sweeps, batch_size, resized
):
    store = make_store(tmp_path_factory, pages, device_pages, host_pages)
    uses = [0] * pages
    for number, order in enumerate(sweeps):
        wanted = [store.pages[i] for i in order if i < pages]
        seen = []
        for batch in store.sweep(wanted, batch_size):
            for page in batch:
                assert page.tier == "device"
                assert (page.place.memory == uses[page.index]).all()  # made as zeros, then what was written last
                uses[page.index] += 1
                page.place.memory.fill_(uses[page.index])
                seen.append(page)
        assert seen == wanted
        if number == 2:
            store.resize(resized and resized * PAGE)
        held = store.residency()
        assert sum(held.values()) == PAGE * sum(page.tier != "new" for page in store.pages)
        places = [id(p.place) if p.tier != "disk" else p.place for p in store.pages if p.tier != "new"]
        assert len(set(places)) == len(places)
        assert held["host"] <= host_pages * PAGE
        capacity = store.pools["device"].capacity
        assert capacity is None or len(store.recency["device"]) <= store.pools["device"].size <= capacity
    for page, count in zip(store.pages, uses, strict=True):
        assert (store.peek(page) == count).all()
    store.close()


@settings(max_examples=30)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=40))
def test_what_stays_is_what_was_used_last(tmp_path_factory, uses):
    store = make_store(tmp_path_factory, 12, 6, host_pages=3)  # one device slot is kept free
    recent = []
    for index in uses:
        for _ in store.sweep([store.pages[index]]):
            pass
        recent = [i for i in recent if i != index] + [index]
        assert [page.index for page in store.recency["device"]] == recent[-5:]
        assert [page.index for page in store.recency["host"]] == recent[-8:-5]
        assert {page.index for page in store.pages if page.tier == "disk"} == set(recent[:-8])
    store.close()


@pytest.mark.parametrize(("device_pages", "host_pages"), [(10, 0), (10, 6), (18, 4), (4, 0), (4, 27)])
def test_sweeping_to_and_fro_moves_only_what_does_not_fit(tmp_path_factory, device_pages, host_pages):
    store = make_store(tmp_path_factory, 32, device_pages, host_pages)
    kept = device_pages - store.landing
    for sweep in range(7):
        store.moved.clear()
        for _ in store.sweep(store.pages[:: 1 if sweep % 2 else -1]):
            pass
        if sweep > 1:
            into = store.moved["disk", "device"] + store.moved["host", "device"]
            out = store.moved["device", "disk"] + store.moved["device", "host"]
            assert into == out == (32 - kept) * PAGE
            from_disk = (32 - kept - host_pages) * PAGE
            assert store.moved["disk", "device"] == max(0, from_disk)
            assert store.moved["host", "disk"] + store.moved["device", "disk"] == max(0, from_disk)
    store.close()


@pytest.mark.parametrize(("alternating", "moved"), [(True, 16), (False, 32)])
def test_plain_lru_needs_the_turn_at_the_end(tmp_path_factory, alternating, moved):
    # page by page the store cannot know what is due: this is plain LRU
    store = make_store(tmp_path_factory, 32, 18)  # two slots land
    for sweep in range(4):
        store.moved.clear()
        for page in store.pages[:: -1 if alternating and sweep % 2 else 1]:
            for _ in store.sweep([page]):
                pass
    assert store.moved["disk", "device"] == store.moved["device", "disk"] == moved * PAGE
    store.close()
