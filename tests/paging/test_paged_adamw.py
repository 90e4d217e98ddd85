"""The paged optimizer is torch.optim.AdamW bit for bit, wherever its state is, and tells what it cannot do."""

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_lab.memory.ledger import MemoryTrace
from qlora_lab.paging.paged_adamw import PagedAdamW, spare_bytes
from qlora_lab.paging.tiers.page_file import PageFileError

PAGE = 4096
SHAPES = st.one_of(
    st.integers(0, 3000).map(lambda n: (n,)),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.just(()),
)


def parameters(shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def give_gradients(step, *sides, skip=()):
    """The same gradients for all sides; parameters in `skip` get none."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, row in enumerate(zip(*sides, strict=True)):
        scale = 10 ** torch.empty(()).uniform_(-6, 2, generator=generator)
        gradient = torch.randn(row[0].shape, generator=generator) * scale
        for p in row:
            p.grad = None if i in skip else gradient.to(p.dtype)


def assert_equal(ours, theirs):
    for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(p, q), f"parameter {i} of shape {tuple(p.shape)}"


def assert_same_state(one, other):
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    for key, state in one["state"].items():
        assert state.keys() == other["state"][key].keys()
        for name, value in state.items():
            assert torch.equal(value, other["state"][key][name]), (key, name)
            assert value.dtype == other["state"][key][name].dtype


@settings(max_examples=60)
@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=6),
    page_size=st.sampled_from([PAGE, 2 * PAGE, 16 * PAGE]),
    device_pages=st.sampled_from([None, 0, 2, 3, 5, 17]),
    host_pages=st.sampled_from([0, 1, 3, None]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64]),
    weight_decay=st.sampled_from([0.0, 0.01, 0.3]),
    maximize=st.booleans(),
    skip=st.lists(st.sets(st.integers(0, 5)), min_size=4, max_size=4),
)
def test_every_bit_is_that_of_adamw(
    tmp_path_factory, shapes, page_size, device_pages, host_pages, dtype, weight_decay, maximize, skip
):
    ours, theirs = parameters(shapes, dtype), parameters(shapes, dtype)
    options = {"lr": 3e-3, "betas": (0.87, 0.98), "weight_decay": weight_decay, "maximize": maximize}
    reference = torch.optim.AdamW(theirs, **options)
    budgets = [None if n is None else n * page_size for n in (device_pages, host_pages)]
    with PagedAdamW(
        ours,
        **options,
        device_budget=budgets[0],
        host_budget=budgets[1],
        directory=tmp_path_factory.mktemp("pages"),
        page_size=page_size,
    ) as paged:
        for step, without in enumerate(skip):
            give_gradients(step, ours, theirs, skip=without)
            reference.step()
            paged.step()
            assert_equal(ours, theirs)
            held = paged.residency()
            if device_pages is not None:
                assert held["device"] <= budgets[0]
            if host_pages is not None:
                assert held["host"] <= budgets[1]
        assert_same_state(paged.state_dict(), reference.state_dict())


def test_groups_schedulers_and_closures(tmp_path):
    shapes = [(90, 33), (7,), (2000,), (40, 40)]
    sides = parameters(shapes), parameters(shapes)
    optimizers = []
    for side, make in zip(sides, (lambda g: PagedAdamW(g, **half(tmp_path)), torch.optim.AdamW), strict=True):
        optimizer = make([{"params": side[:2], "lr": 0.1, "weight_decay": 0.5}, {"params": side[2:3], "eps": 1e-3}])
        optimizer.add_param_group({"params": side[3:], "betas": (0.5, 0.6), "lr": torch.tensor(0.013)})
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.01, 0.02], total_steps=10)
        optimizers.append((optimizer, schedule))
    for _ in range(6):
        losses = []
        for side, (optimizer, schedule) in zip(sides, optimizers, strict=True):

            def closure(side=side, optimizer=optimizer):
                optimizer.zero_grad()
                loss = sum((p**2).sum() for p in side)
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).item())
            schedule.step()
        assert losses[0] == losses[1]
    assert_equal(*sides)


def half(directory):
    return {"directory": directory, "device_budget": 4 * PAGE, "page_size": PAGE}


@pytest.mark.parametrize("layout", ["transposed", "gaps", "channels_last", "gradient"])
def test_parameters_of_any_layout(tmp_path, layout):
    def make():
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(6, 20, 10, 8, generator=generator)
        if layout == "transposed":
            x = x.view(120, 80).t()
        elif layout == "gaps":
            x = x[:, ::2]
        elif layout == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        return [torch.nn.Parameter(x), torch.nn.Parameter(x[:1, :2].clone(memory_format=torch.preserve_format))]

    ours, theirs = make(), make()
    assert ours[0].stride() == theirs[0].stride()
    paged, reference = PagedAdamW(ours, **half(tmp_path)), torch.optim.AdamW(theirs)
    for step in range(3):
        give_gradients(step, ours, theirs)
        if layout == "gradient":
            for p in (ours[0], theirs[0]):
                p.grad = p.grad.transpose(0, 1).contiguous().transpose(0, 1)
        paged.step()
        reference.step()
    assert_equal(ours, theirs)
    assert_same_state(paged.state_dict(), reference.state_dict())
    paged.load_state_dict(reference.state_dict())
    assert_same_state(paged.state_dict(), reference.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_rounds_alike_in_vectors_and_at_the_end_of_a_tensor(dtype):
    # what bit-equality of pages rests on: the update of 2000 numbers is that of 2000 pieces of 1 to 70
    generator = torch.Generator().manual_seed(0)
    whole = parameters([(2000,)], dtype)
    pieces, start = [], 0
    while start < 2000:
        count = int(torch.randint(1, 70, (), generator=generator))
        pieces.append(torch.nn.Parameter(whole[0].detach()[start : start + count].clone()))
        start += count
    one, other = torch.optim.AdamW(whole), torch.optim.AdamW(pieces)
    for step in range(5):
        give_gradients(step, whole)
        for piece, gradient in zip(pieces, whole[0].grad.split([len(p) for p in pieces]), strict=True):
            piece.grad = gradient.clone()
        one.step()
        other.step()
    joined = torch.cat([p.detach() for p in pieces])
    torch.testing.assert_close(whole[0].detach(), joined, rtol=0, atol=0, equal_nan=True)  # in float16 eps is zero


@settings(max_examples=25)
@given(
    first=st.sampled_from([None, 0, 3, 9]),
    second=st.sampled_from([None, 0, 2, 5]),
    direction=st.sampled_from(["paged to paged", "torch to paged", "paged to torch"]),
)
def test_state_goes_between_budgets_and_between_libraries(tmp_path_factory, first, second, direction):
    folder = tmp_path_factory.mktemp("pages")
    shapes = [(3000,), (5,), (31, 57), (8,)]
    budget = lambda n: {"device_budget": n and n * PAGE, "directory": folder, "page_size": PAGE}  # noqa: E731
    theirs = parameters(shapes)
    reference = torch.optim.AdamW(theirs, lr=2e-3)
    ours = parameters(shapes)
    source = (
        torch.optim.AdamW(ours, lr=2e-3) if direction == "torch to paged" else PagedAdamW(ours, 2e-3, **budget(first))
    )
    for step in range(3):
        give_gradients(step, ours, theirs, skip={3})
        reference.step()
        source.step()
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    target = torch.optim.AdamW(resumed) if direction == "paged to torch" else PagedAdamW(resumed, **budget(second))
    give_gradients(9, resumed)
    target.step()  # what was there before is to be forgotten
    with torch.no_grad():
        for p, q in zip(resumed, ours, strict=True):
            p.copy_(q)
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    for step in range(3, 6):
        give_gradients(step, resumed, theirs)
        reference.step()
        target.step()
    assert_equal(resumed, theirs)
    assert_same_state(target.state_dict(), reference.state_dict())


def test_a_state_that_does_not_fit_is_refused_before_anything_changes(tmp_path):
    ours = parameters([(3000,), (7,)])
    paged = PagedAdamW(ours, **half(tmp_path))
    give_gradients(0, ours)
    paged.step()
    before = copy.deepcopy(paged.state_dict())
    wrong = copy.deepcopy(before)
    wrong["state"][0]["exp_avg"] = torch.zeros(2999)
    with pytest.raises(ValueError, match=r"\(2999,\)"):
        paged.load_state_dict(wrong)
    del wrong["state"][0]["exp_avg"]
    with pytest.raises(ValueError, match="lacks exp_avg"):
        paged.load_state_dict(wrong)
    amsgrad = torch.optim.AdamW(parameters([(3000,), (7,)]), amsgrad=True)
    with pytest.raises(ValueError, match="amsgrad"):
        paged.load_state_dict(amsgrad.state_dict())
    assert_same_state(paged.state_dict(), before)


def test_state_is_made_for_what_is_trained_only(tmp_path):
    ours = parameters([(100_000,), (5000,)])
    ours[0].requires_grad_(False)
    paged = PagedAdamW(ours, **half(tmp_path))
    give_gradients(0, ours, skip={0})
    paged.step()
    assert list(paged.state_dict()["state"]) == [1]
    assert sum(paged.residency().values()) <= 2 * 4 * 5000 + PAGE
    assert dict(paged.state[ours[1]]).keys() == {"step", "exp_avg", "exp_avg_sq"}
    ours[0].requires_grad_()  # unfrozen later, as torch allows
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    reference = torch.optim.AdamW(theirs)
    reference.load_state_dict(paged.state_dict())
    give_gradients(1, ours, theirs)
    paged.step()
    reference.step()
    assert_equal(ours, theirs)


def test_half_resident_moves_half_and_events_tell_all(tmp_path):
    ours = parameters([(512 * 64,)])  # 64 pages
    paged = PagedAdamW(ours, device_budget=36 * PAGE, directory=tmp_path, page_size=PAGE)  # 4 slots land, 32 stay
    tier = {}
    for step in range(6):
        give_gradients(step, ours)
        paged.events.clear()
        paged.step()
        for event in paged.events:
            assert tier.get(event.page, "new") == event.source
            assert (event.step, event.bytes, event.parameter) == (step + 1, PAGE, "0")
            tier[event.page] = event.target
        count = {name: list(tier.values()).count(name) * PAGE for name in ("device", "host", "disk")}
        assert paged.residency() == count
        assert sum(count.values()) == 64 * PAGE
        if step:
            assert paged.bytes_moved == {("disk", "device"): 32 * PAGE, ("device", "disk"): 32 * PAGE}


def test_pressure_gives_memory_back_at_once_and_takes_it_again(tmp_path):
    ours, theirs = parameters([(512 * 64,)]), parameters([(512 * 64,)])
    paged, reference = PagedAdamW(ours, directory=tmp_path, page_size=PAGE), torch.optim.AdamW(theirs)

    def step(number):
        give_gradients(number, ours, theirs)
        paged.step()
        reference.step()
        assert_equal(ours, theirs)

    step(0)
    assert paged.residency()["device"] == 64 * PAGE
    released = paged.release(40 * PAGE)
    assert released >= 40 * PAGE
    assert paged.residency()["device"] <= 24 * PAGE
    assert paged._store.device_bytes == 64 * PAGE - released
    step(1)
    assert paged.residency()["device"] <= 24 * PAGE
    paged.set_device_budget(0)
    assert paged.residency()["device"] == 0
    step(2)
    paged.set_device_budget(None)
    step(3)
    assert paged.residency()["device"] == 64 * PAGE
    step(4)
    assert paged.bytes_moved == {}


def test_the_ledger_counts_pages_on_the_device_as_optimizer_state(tmp_path):
    p = torch.nn.Parameter(torch.zeros(8 * 4096 // 8))  # eight pages of state
    p.grad = torch.ones_like(p)
    optimizer = PagedAdamW([p], directory=tmp_path, page_size=4096)
    with MemoryTrace(optimizer=optimizer) as trace:
        optimizer.step()
        optimizer.release(6 * 4096)
        released = trace.live
        optimizer.set_device_budget(None)
        optimizer.step()
    # for a moment both: the two pages that stay are copied into an allocation of their own, then the old one goes
    assert trace.by_category["optimizer state"] == (8 + 2) * 4096
    assert released - p.grad.nbytes == 2 * 4096
    with MemoryTrace(optimizer=optimizer) as later:
        pass
    assert later.by_category["optimizer state"] == 8 * 4096


def test_auto_follows_the_memory_that_is_free(tmp_path, monkeypatch):
    free = 10 * 2**30
    monkeypatch.setattr("qlora_lab.paging.paged_adamw.free_memory", lambda device: free)
    ours, theirs = parameters([(512 * 64,)]), parameters([(512 * 64,)])
    paged, reference = (
        PagedAdamW(ours, device_budget="auto", directory=tmp_path, page_size=PAGE),
        torch.optim.AdamW(theirs),
    )
    for number, (free, expected) in enumerate([(10 * 2**30, 64), (0, 64), (-40 * PAGE, 24), (10 * 2**30, 64)]):  # noqa: B007
        give_gradients(number, ours, theirs)
        paged.step()
        reference.step()
        assert_equal(ours, theirs)
        assert expected - 8 <= paged.residency()["device"] // PAGE <= expected
    free = 0
    assert paged.relieve_pressure(30 * PAGE) >= 30 * PAGE
    assert paged.residency()["device"] <= 34 * PAGE


# Eight bits


def test_8_bit_state_follows_adamw(tmp_path):
    torch.manual_seed(0)
    inputs, truth = torch.randn(256, 80), torch.randn(80, 60)
    finals, sizes = [], []
    for make in (torch.optim.AdamW, lambda p, **o: PagedAdamW(p, state_bits=8, **half(tmp_path), **o)):
        weight = torch.nn.Parameter(torch.zeros(80, 60))
        optimizer = make([weight], lr=0.02, weight_decay=0.0)
        losses = []
        for _ in range(150):
            loss = ((inputs @ (weight - truth)) ** 2).mean()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        finals.append((weight.detach(), losses))
        sizes.append(optimizer)
    (exact, exact_losses), (coded, coded_losses) = finals
    assert coded_losses[-1] < 1e-2 * coded_losses[0]
    assert coded_losses[-1] < 2 * exact_losses[-1] + 1e-3 * exact_losses[0]
    assert (coded - exact).norm() < 0.05 * exact.norm()
    assert sum(sizes[1].residency().values()) == 3 * PAGE  # 4800 elements, 1792 to a page; 38.4 kB in 32 bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8_bit_state_resumes_to_the_same_bits(tmp_path, dtype):
    whole, parts = parameters([(5000,), (10,)], dtype), parameters([(5000,), (10,)], dtype)
    options = {"state_bits": 8, **half(tmp_path)}
    one, other = PagedAdamW(whole, **options), PagedAdamW(parts, **options)
    for step in range(8):
        give_gradients(step, whole, parts)
        one.step()
        other.step()
        saved = other.state_dict()
        other = PagedAdamW(parts, **{**options, "device_budget": None})
        other.load_state_dict(saved)
    assert_equal(whole, parts)


# What goes wrong


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"state_bits": 4}, "32 or 8"),
        ({"page_size": 1000}, "multiple of 4096"),
        ({"device_budget": -1}, "0 or more"),
        ({"device_budget": "all"}, "0 or more"),
        ({"device_budget": PAGE, "page_size": PAGE}, "at least two pages"),
        ({"device_budget": 2 * PAGE, "page_size": PAGE}, "give directory="),
        ({"device_budget": 2 * PAGE, "host_budget": 2 * PAGE, "page_size": PAGE}, "give directory="),
        ({"device_budget": "auto"}, "give directory="),
        ({"lr": -1.0}, "learning rate"),
        ({"betas": (0.9, 1.0)}, "beta"),
    ],
)
def test_settings_that_make_no_sense(options, said):
    with pytest.raises(ValueError, match=said):
        PagedAdamW(parameters([(4000,)]), **options)


def test_what_cannot_be_trained():
    with pytest.raises(ValueError, match="complex64"):
        PagedAdamW([torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="one PagedAdamW serves one device"):
        PagedAdamW([*parameters([(3,)]), torch.nn.Parameter(torch.zeros(3, device="meta"))])
    embedding = torch.nn.Embedding(10, 4, sparse=True)
    paged = PagedAdamW(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        paged.step()


def test_a_group_that_fits_nowhere_is_not_added(tmp_path, monkeypatch):
    ours = parameters([(512 * 4,), (512 * 20,)])
    paged = PagedAdamW(ours[:1], device_budget=4 * PAGE, page_size=PAGE)
    with pytest.raises(ValueError, match="give directory="):
        paged.add_param_group({"params": ours[1:]})
    assert len(paged.param_groups) == 1
    give_gradients(0, ours)
    paged.step()


@pytest.mark.parametrize("what", ["cut short", "deleted"])
def test_a_page_file_that_is_gone_is_told_before_anything_changes(tmp_path, what):
    ours = parameters([(512 * 20,), (512 * 20,)])
    paged = PagedAdamW(ours, **half(tmp_path))
    for step in range(2):
        give_gradients(step, ours)
        paged.step()
    before = [p.detach().clone() for p in ours]
    state = copy.deepcopy(paged.state_dict())
    if what == "deleted":
        paged.page_file.unlink()
    else:
        os.truncate(paged.page_file, 3 * PAGE)
    with pytest.raises(PageFileError, match=f"{what}.*state of .*0.*1"):
        paged.step()
    assert_equal(ours, before)
    if what == "deleted":
        assert_same_state(paged.state_dict(), state)
    else:
        with pytest.raises(PageFileError, match="cut short"):
            paged.state_dict()


def test_a_page_that_was_changed_is_never_used(tmp_path):
    ours = parameters([(512 * 40,)])
    paged = PagedAdamW(ours, **half(tmp_path))
    give_gradients(0, ours)
    paged.step()
    size = paged.page_file.stat().st_size
    with open(paged.page_file, "rb+") as file:
        file.seek(size - 30 * PAGE)
        file.write(bytes(range(256)) * (30 * 16))
    give_gradients(1, ours)
    with pytest.raises(PageFileError, match="changed by someone else"):
        paged.step()
    with pytest.raises(PageFileError, match=r"no longer whole.*last checkpoint"):
        paged.step()
    with pytest.raises(PageFileError, match="no longer whole"):
        paged.state_dict()


def test_a_disk_that_fills_up_in_mid_step_loses_nothing_silently(tmp_path, monkeypatch):
    ours = parameters([(512 * 40,)])
    paged = PagedAdamW(ours, **half(tmp_path))
    file, written = paged._store.file._file, 0

    class Full:
        def __getattr__(self, name):
            return getattr(file, name)

        def write(self, content):
            nonlocal written
            written += 1
            if written > 10:
                raise OSError(28, "No space left on device")
            return file.write(content)

    paged._store.file._file = Full()
    give_gradients(0, ours)
    with pytest.raises(PageFileError, match="No space left"):
        paged.step()
    assert written == 11  # nothing is copied after the failure: no page takes the slot of one that was not saved
    with pytest.raises(PageFileError, match="no longer whole"):
        paged.step()


def test_copies_are_refused_with_the_way_out(tmp_path):
    paged = PagedAdamW(parameters([(10,)]), **half(tmp_path))
    for make in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="state_dict"):
            make(paged)


def test_the_file_goes_with_the_optimizer(tmp_path):
    paged = PagedAdamW(parameters([(5000,)]), **half(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    paged.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="closed"):
        paged.step()
    forgotten = PagedAdamW(parameters([(5000,)]), **half(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    del forgotten
    gc.collect()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="give directory="):
        PagedAdamW(parameters([(5000,)]), device_budget=2 * PAGE, page_size=PAGE)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_the_file_of_a_killed_process_is_removed_by_the_next(tmp_path):
    script = """
import os, signal, sys, torch
from qlora_lab.paging import PagedAdamW
p = torch.nn.Parameter(torch.randn(512 * 200))
paged = PagedAdamW([p], device_budget=4 * 4096, directory=sys.argv[1], page_size=4096)
move = paged._store._move
def die(*arguments):
    if len(paged.events) > 120:
        os.kill(os.getpid(), signal.SIGKILL)
    move(*arguments)
paged._store._move = die
p.grad = torch.randn_like(p)
paged.step()
"""
    alive = PagedAdamW(parameters([(512 * 40,)]), **half(tmp_path))
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "qlora-lab-pages-notes.bin").write_text("not ours")
    (tmp_path / f"qlora-lab-pages-01234567-{os.getpid()}.bin").write_text("ours by name only")
    with PagedAdamW(parameters([(512 * 40,)]), **half(tmp_path)) as other:
        expected = {alive.page_file, other.page_file, tmp_path / "qlora-lab-pages-notes.bin"}
        assert set(tmp_path.iterdir()) == expected | {tmp_path / f"qlora-lab-pages-01234567-{os.getpid()}.bin"}


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_resident_memory_stays_within_the_budget(tmp_path):
    script = """
import gc, sys, torch
from pathlib import Path
from qlora_lab.paging import PagedAdamW
def rss():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
p = torch.nn.Parameter(torch.full((6 * 10**6,), 0.5))  # 48 MB of state
p.grad = torch.full_like(p, 1e-3)
def grown(budget):
    gc.collect()
    before = rss()
    with PagedAdamW([p], device_budget=budget, directory=sys.argv[1]) as paged:
        paged.step()
        paged.step()
        return rss() - before
grown(6 * 10**6)  # what torch imports when it is first used
print(grown(6 * 10**6), grown(None))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    paged, everything = map(int, done.stdout.split())
    assert everything > 44e6
    assert paged < 6e6 + 6e6  # the budget, and what a page's update works on


@pytest.mark.cuda
@pytest.mark.parametrize("device_pages", [None, 0, 3, 20])
@pytest.mark.parametrize("host_pages", [0, 10, None])
def test_every_bit_is_that_of_adamw_on_a_gpu(tmp_path, device_pages, host_pages):
    shapes = [(300, 70), (5,), (129, 3), (70_001,)]
    ours = [torch.nn.Parameter(p.detach().cuda()) for p in parameters(shapes)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    budgets = [None if n is None else n * PAGE for n in (device_pages, host_pages)]
    reference = torch.optim.AdamW(theirs)
    paged = PagedAdamW(ours, device_budget=budgets[0], host_budget=budgets[1], directory=tmp_path, page_size=PAGE)
    for _ in range(6):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        paged.step()
        reference.step()
        assert_equal(ours, theirs)
    for one, other in zip(paged.state_dict()["state"].values(), reference.state_dict()["state"].values(), strict=True):
        assert torch.equal(one["exp_avg_sq"], other["exp_avg_sq"].cpu())


def test_under_a_cap_the_margin_is_a_share_of_the_cap(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (90 * 10**9, 140 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 40 / 140)
    assert spare_bytes(torch.device("cuda")) == pytest.approx((40 - 30 - 2) * 1e9, abs=2)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)
    assert spare_bytes(torch.device("cuda")) == pytest.approx((90 - 7) * 1e9, abs=2)


@pytest.mark.cuda
def test_auto_gives_way_to_activations_on_a_gpu(tmp_path):
    weight = torch.nn.Parameter(torch.zeros(64 * 2**20, device="cuda"))  # 512 MB of state
    weight.grad = torch.ones_like(weight)
    paged = PagedAdamW([weight], device_budget="auto")
    paged.step()
    assert paged.residency()["host"] == 0
    total = torch.cuda.mem_get_info()[1]
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 0.051 * total) / total)
        spike = int(0.05 * total)
        assert paged.relieve_pressure(spike) > 0
        assert paged.residency()["host"] > 0
        torch.empty(spike, dtype=torch.uint8, device="cuda")
        paged.step()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# -- what torch.optim.AdamW takes, in the same bits or refused in a sentence


def two(shapes, seed=0, dtype=torch.float32):
    """The same parameters twice."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [[torch.nn.Parameter(v.clone()) for v in values] for _ in range(2)]


def step_alike(ours, theirs, paged, plain, steps=3, skip=()):
    for step in range(steps):
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            generator = torch.Generator().manual_seed(100 * step + index)
            grad = torch.randn(a.shape, generator=generator).to(a.dtype)
            a.grad, b.grad = (None, None) if (step, index) in skip else (grad.clone(), grad.clone())
        paged.step(), plain.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


SHAPES = [(), (1,), (0,), (3, 0), (5, 7), (300,), (2, 3, 4)]
GIVEN = {
    "a list": lambda ps: ps,
    "a generator": lambda ps: (p for p in ps),
    "a tuple": tuple,
    "named": lambda ps: [(f"p{i}", p) for i, p in enumerate(ps)],
    "a generator of names": lambda ps: ((f"p{i}", p) for i, p in enumerate(ps)),
    "groups": lambda ps: [{"params": ps[:2], "lr": 0.3}, {"params": ps[2:], "weight_decay": 0.5}],
    "groups of names": lambda ps: [{"params": [(f"p{i}", p)]} for i, p in enumerate(ps)],
    "an empty group first": lambda ps: [{"params": []}, {"params": ps}],
    "an empty group last": lambda ps: [{"params": ps}, {"params": []}],
    "a group of one tensor": lambda ps: [{"params": ps[0]}, {"params": ps[1:]}],
    "a group of a generator": lambda ps: [{"params": (p for p in ps)}],
}


@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"foreach": True}, {"foreach": False, "amsgrad": False},
                                     {"fused": False, "capturable": False, "differentiable": False},
                                     {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3}, {"weight_decay": 0.0}])  # fmt: skip
@pytest.mark.parametrize("form", GIVEN)
def test_parameters_may_be_given_as_to_adamw(form, options):
    ours, theirs = two(SHAPES)
    paged, plain = PagedAdamW(GIVEN[form](ours), **options), torch.optim.AdamW(GIVEN[form](theirs), **options)
    step_alike(ours, theirs, paged, plain, skip={(0, 4), (1, 5)})
    assert [g.get("param_names") for g in paged.param_groups] == [g.get("param_names") for g in plain.param_groups]
    assert paged.state_dict()["state"].keys() == plain.state_dict()["state"].keys()


@pytest.mark.parametrize("budget", [None, 0, 2 * PAGE])
def test_groups_added_to_one_that_is_empty(tmp_path, budget):
    ours, theirs = two([(512 * 3,), (), (0,), (700,)])
    options = {} if budget is None else {"device_budget": budget, "directory": tmp_path, "page_size": PAGE}
    paged, plain = PagedAdamW([{"params": []}], **options), torch.optim.AdamW([{"params": []}])
    paged.step(), plain.step()
    assert paged.state_dict()["state"] == {} and paged.residency() == {"device": 0, "host": 0, "disk": 0}
    for a, b in zip(ours, theirs, strict=True):
        paged.add_param_group({"params": [a], "lr": 0.1}), plain.add_param_group({"params": [b], "lr": 0.1})
        step_alike(ours, theirs, paged, plain, skip={(s, i) for s in range(3) for i in range(4) if b is not theirs[i]})
    other = PagedAdamW([{"params": []}])
    for a in ours:
        other.add_param_group({"params": [a]})
    other.load_state_dict(plain.state_dict())
    step_alike(ours, theirs, other, plain)


def test_frozen_at_first_and_without_a_gradient_for_long():
    ours, theirs = two([(5,), (6,)])
    ours[0].requires_grad_(False), theirs[0].requires_grad_(False)
    paged, plain = PagedAdamW(ours), torch.optim.AdamW(theirs)
    step_alike(ours[1:], theirs[1:], paged, plain)
    ours[0].requires_grad_(True), theirs[0].requires_grad_(True)
    step_alike(ours, theirs, paged, plain)


@pytest.mark.parametrize("name", ["amsgrad", "capturable", "differentiable", "fused"])
@pytest.mark.parametrize("where", ["constructor", "group", "added group", "later"])
def test_other_arithmetic_is_refused_by_name(name, where):
    ours = parameters([(5,), (6,)])
    with pytest.raises(ValueError, match=f"PagedAdamW knows no {name}"):
        if where == "constructor":
            PagedAdamW(ours, **{name: True})
        if where == "group":
            PagedAdamW([{"params": ours, name: True}])
        paged = PagedAdamW(ours[:1])
        if where == "added group":
            paged.add_param_group({"params": ours[1:], name: True})
        paged.param_groups[0][name] = True
        give_gradients(0, ours)
        paged.step()
    assert len(paged.param_groups) == 1 if where == "added group" else True


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_given_twice_is_named():
    ours = parameters([(5,), (6,)])
    with pytest.raises(ValueError, match="parameter 1 is given twice"):
        PagedAdamW([*ours, ours[1]])
    with pytest.raises(ValueError, match="parameter b is given twice"):
        PagedAdamW([("a", ours[0]), ("b", ours[1]), ("c", ours[1])])
    paged = PagedAdamW(ours[:1])
    with pytest.raises(ValueError, match="given twice"):
        paged.add_param_group({"params": [ours[1], ours[1]]})
    assert len(paged.param_groups) == 1
    with pytest.raises(ValueError, match="more than one parameter group"):
        paged.add_param_group({"params": ours[:1]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_8_bits_cannot_hold_is_refused_and_nothing_is_changed(value, dtype):
    ours, theirs = two([(5000,), (4096, 2), (7,)], dtype=dtype)
    paged, other = PagedAdamW(ours, state_bits=8), PagedAdamW(theirs, state_bits=8)
    step_alike(ours, theirs, paged, other)
    before, state = [p.detach().clone() for p in ours], paged.state_dict()
    for p in ours:
        p.grad = torch.ones_like(p)
    ours[1].grad[77, 1] = value
    with pytest.raises(FloatingPointError, match="the gradient of parameter 1 holds NaN"):
        paged.step()
    assert all(torch.equal(a, b) for a, b in zip(before, ours, strict=True))
    for index, values in paged.state_dict()["state"].items():
        assert all(torch.equal(values[name], state["state"][index][name]) for name in values)
    step_alike(ours, theirs, paged, other)  # and it goes on as if that step had not been asked for


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_in_32_bits_it_stays_where_it_is_as_in_adamw(value):
    ours, theirs = two([(5000,)])
    paged, plain = PagedAdamW(ours), torch.optim.AdamW(theirs)
    for a in (ours[0], theirs[0]):
        a.grad = torch.ones_like(a)
        a.grad[77] = value
    paged.step(), plain.step()
    assert torch.equal(ours[0].nan_to_num(7.0), theirs[0].nan_to_num(7.0)) and ours[0].isnan().sum() <= 1


def a_state():
    ours = parameters([(5,), (6, 2)])
    plain = torch.optim.AdamW([("a", ours[0]), ("b", ours[1])])
    give_gradients(0, ours)
    plain.step()
    return ours, plain.state_dict()


def swapped(state):
    state["param_groups"][0]["param_names"] = ["b", "a"]


FAULTS = {
    "another shape": (lambda s: s["state"][0].update(exp_avg=torch.zeros(6)), "exp_avg of parameter 0 has the shape"),
    "a shape that would be broadcast": (lambda s: s["state"][1].update(exp_avg=torch.zeros(1, 1)), "has the shape"),
    "integers": (lambda s: s["state"][0].update(exp_avg=torch.zeros(5, dtype=torch.int64)), "no tensor of floats"),
    "complex": (lambda s: s["state"][0].update(exp_avg=torch.zeros(5, dtype=torch.complex64)), "no tensor of floats"),
    "no tensor": (lambda s: s["state"][0].update(exp_avg=[0.0] * 5), "no tensor of floats"),
    "a missing moment": (lambda s: s["state"][0].pop("exp_avg_sq"), "lacks exp_avg_sq"),
    "another optimizer": (lambda s: s["state"].update({0: {"momentum_buffer": torch.zeros(5)}}), "no state of AdamW"),
    "amsgrad": (lambda s: s["state"][0].update(max_exp_avg_sq=torch.zeros(5)), "holds max_exp_avg_sq"),
    "step NaN": (lambda s: s["state"][0].update(step=torch.tensor(float("nan"))), "which is no number of steps"),
    "step below zero": (lambda s: s["state"][0].update(step=torch.tensor(-1.0)), "which is no number of steps"),
    "step and a half": (lambda s: s["state"][0].update(step=torch.tensor(1.5)), "which is no number of steps"),
    "another order": (swapped, "in another order, a first"),
    "more parameters": (lambda s: s["state"].update({5: s["state"][0]}), "more than there are here"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_state_that_is_another_is_refused_and_nothing_is_changed(fault):
    ours, state = a_state()
    paged = PagedAdamW([("a", ours[0]), ("b", ours[1])])
    paged.load_state_dict(state)
    before = paged.state_dict()
    change, words = FAULTS[fault]
    change(state)
    with pytest.raises(ValueError, match=words):
        paged.load_state_dict(state)
    for index, values in paged.state_dict()["state"].items():
        assert all(torch.equal(values[name], before["state"][index][name]) for name in values)


def test_a_state_with_nan_is_not_spread_over_a_block():
    ours = parameters([(5000,)])
    plain = torch.optim.AdamW(ours)
    give_gradients(0, ours)
    plain.step()
    state = plain.state_dict()
    state["state"][0]["exp_avg"][3] = float("nan")
    PagedAdamW(ours).load_state_dict(state)
    with pytest.raises(ValueError, match="exp_avg of parameter 0 holds NaN or infinity, which 8 bits"):
        PagedAdamW(ours, state_bits=8).load_state_dict(state)
