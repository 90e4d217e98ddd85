"""What is free is asked where it is limited: the GPU, the machine, or the container it runs in."""

import pytest
import torch

from qlora_lab.machine import free_memory


@pytest.fixture
def container(monkeypatch, tmp_path):
    """A control group of this process, in files that a test writes."""

    def make(limit, used, cache=0, version=2):
        group = tmp_path / "groups"
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        folder = group / "job" if version == 2 else group / "memory" / "job"
        folder.mkdir(parents=True)
        for name, value in zip(names, (limit, used), strict=True):
            (folder / name).write_text(f"{value}\n")
        (folder / "memory.stat").write_text(
            f"anon 5\n{'inactive_file' if version == 2 else 'total_inactive_file'} {cache}\n"
        )
        (tmp_path / "own").write_text("0::/job\n" if version == 2 else "4:cpu:/job\n3:memory:/job\n")
        monkeypatch.setattr(free_memory, "CGROUPS", group)
        monkeypatch.setattr(free_memory, "OWN_GROUPS", tmp_path / "own")

    return make


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts_and_its_file_cache_does_not(container, version):
    container(10_000_000, 7_000_000, cache=1_000_000, version=version)
    assert free_memory.free_memory("cpu") == 4_000_000


@pytest.mark.parametrize(("limit", "version"), [("max", 2), (2**63 - 4096, 1)])
def test_no_limit_leaves_the_machines_memory(container, limit, version):
    psutil = pytest.importorskip("psutil")
    container(limit, 5_000_000, version=version)
    assert free_memory.free_memory("cpu") == pytest.approx(psutil.virtual_memory().available, rel=0.1)


@pytest.mark.cuda
def test_free_memory_of_a_gpu_counts_what_the_allocator_could_give_back():
    before = free_memory.free_memory("cuda")
    x = torch.empty(2**26, device="cuda")
    assert free_memory.free_memory("cuda") <= before - x.nbytes + 2**22
    del x
    assert free_memory.free_memory("cuda") == pytest.approx(before, abs=2**22)


def test_own_memory_sees_what_a_process_takes_and_gives_back():
    before = free_memory.own_memory()
    taken = torch.ones(20_000_000)
    assert 0.9 < (free_memory.own_memory() - before) / taken.nbytes < 1.2
    del taken
    assert free_memory.own_memory() - before < 20_000_000
