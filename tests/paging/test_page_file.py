"""The page file: what was written comes back or is an error; a full disk is told before anything is written."""

import errno
import os

import numpy as np
import pytest
from workers import alone

from qlora_lab.paging.tiers.page_file import PageFile, PageFileError, remove_stale

PAGE = 4096


def page(seed):
    return np.random.default_rng(seed).integers(0, 256, PAGE, dtype=np.uint8)


def test_pages_come_back(tmp_path):
    file = PageFile(tmp_path, PAGE)
    file.reserve(3)
    places = [file.take() for _ in range(5)]  # grows beyond what was reserved
    assert len(set(places)) == 5
    for seed, place in enumerate(places):
        file.write(place, page(seed))
    content = np.empty(PAGE, np.uint8)
    for seed, place in reversed(list(enumerate(places))):
        file.read(place, content)
        assert (content == page(seed)).all()
    file.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_when_room_is_reserved(tmp_path, monkeypatch):
    def full(handle, offset, length):
        os.ftruncate(handle, offset + length // 2)  # a real one can get half of the way
        raise OSError(errno.ENOSPC, "No space left on device")

    file = PageFile(tmp_path, PAGE)
    file.reserve(2)
    size = file.path.stat().st_size
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(PageFileError, match=r"need 0\.4 MB more .*No space left.*device_budget"):
        file.reserve(100)
    assert (file.places, file.path.stat().st_size) == (2, size)
    file.close()


def test_a_folder_that_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match="create it first"):
        PageFile(tmp_path / "missing", PAGE)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        PageFile(tmp_path / "file", PAGE)
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="give a writable folder"):
            PageFile(tmp_path / "closed", PAGE)


def test_another_process_leaves_a_file_in_use_alone(tmp_path):
    file = PageFile(tmp_path, PAGE)
    assert alone(remove_stale, tmp_path) == []
    assert file.path.exists()
    left = file.path.with_name(f"qlora-lab-pages-00000000-{2**22 + 1}.bin")
    left.write_bytes(file.path.read_bytes())
    assert remove_stale(tmp_path) == [left]
    assert file.path.exists()
    file.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_leaves_the_file_to_its_parent(tmp_path):
    file = PageFile(tmp_path, PAGE)
    child = os.fork()
    if child == 0:
        file.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert file.path.exists()
    assert not file.deleted()
    file.close()
