"""Files appear whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch

from qlora_lab.machine.errors import UserFacingError
from qlora_lab.machine.files import CannotWrite, load_tensors, save_tensors, write_json, write_text, write_whole


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), write_whole(path) as temporary:
        temporary.write_text("half of the ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o640


def test_a_folder_and_a_missing_folder_are_told_apart(tmp_path):
    with pytest.raises(IsADirectoryError, match="give the path of a file"):
        write_text(tmp_path, "x")
    with pytest.raises(FileNotFoundError, match="create it first"):
        write_text(tmp_path / "missing" / "file.txt", "x")


def test_json_refuses_nan_before_the_old_file_is_touched(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1\n}\n'


def test_tensors_come_back_bit_equal(tmp_path):
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.randn(5).bfloat16(), "c": torch.arange(3), "d": torch.empty(0)}
    save_tensors(tmp_path / "t.safetensors", tensors, {"kind": "test"})
    loaded, metadata = load_tensors(tmp_path / "t.safetensors")
    assert metadata == {"kind": "test"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("cut", [0, 4, 30, -1])
def test_a_cut_file_is_refused(tmp_path, cut):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_tensors(path)


def test_a_pickle_is_refused(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "t.pt")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_tensors(tmp_path / "t.pt")


def failing(monkeypatch, call: str, code: int, only=lambda argument: True) -> None:
    """Let a call of the system fail with an errno."""
    place = Path if hasattr(Path, call) and call != "replace" else os
    real = getattr(place, call)

    def fail(argument, *rest, **options):
        if not only(argument):
            return real(argument, *rest, **options)
        raise OSError(code, os.strerror(code), argument if isinstance(argument, str) else None)

    monkeypatch.setattr(place, call, fail)


def is_folder(handle) -> bool:
    found = os.fstat(handle) if isinstance(handle, int) else os.stat(handle) if os.path.exists(handle) else None
    return found is not None and stat.S_ISDIR(found.st_mode)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EPERM])
def test_a_file_system_that_cannot_flush_folders_is_written_to_all_the_same(tmp_path, monkeypatch, code):
    failing(monkeypatch, "fsync", code, is_folder)
    write_text(tmp_path / "file.txt", "new")
    assert (tmp_path / "file.txt").read_text() == "new" and os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_nor_does_it_need_to_flush_files(tmp_path, monkeypatch, code):
    failing(monkeypatch, "fsync", code)
    save_tensors(tmp_path / "t.safetensors", {"a": torch.ones(3)})
    assert torch.equal(load_tensors(tmp_path / "t.safetensors")[0]["a"], torch.ones(3))


def test_a_folder_that_may_be_written_to_and_not_read_is_written_to(tmp_path, monkeypatch):
    opened = os.open

    def denied(path, *rest, **options):
        if is_folder(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *rest, **options)

    monkeypatch.setattr(os, "open", denied)
    write_text(tmp_path / "file.txt", "new")
    assert (tmp_path / "file.txt").read_text() == "new"


@pytest.mark.parametrize("call", ["touch", "write_text", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_whatever_call_the_system_refuses_the_old_file_stays_and_a_sentence_says_so(tmp_path, monkeypatch, call, code):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    failing(monkeypatch, call, code)
    with pytest.raises(CannotWrite, match=f"cannot write {path} .{os.strerror(code)}") as caught:
        write_text(path, "new")
    assert isinstance(caught.value, UserFacingError) and caught.value.errno == code
    monkeypatch.undo()
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_real_disk_that_is_full(tmp_path):
    import resource

    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.ones(3)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(CannotWrite, match="cannot write"):
            save_tensors(path, {"a": torch.ones(30_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["t.safetensors"]


def test_an_error_of_the_caller_is_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such wheel"), write_whole(tmp_path / "file.txt"):
        raise FileNotFoundError("no such wheel")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="links need no rights there")
def test_a_link_stays_a_link_and_leads_to_the_new_file(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target.txt", tmp_path / "link.txt"
    link.symlink_to(target)
    for text in ("one", "two"):  # at first it leads nowhere
        write_text(link, text)
        assert link.is_symlink() and target.read_text() == text
    assert os.listdir(tmp_path / "far") == ["target.txt"]


@pytest.mark.skipif(os.name != "posix", reason="needs a named pipe")
def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe or a device"):
        write_text(tmp_path / "pipe", "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("length", [180, 225, 255])
def test_names_of_any_length_that_the_system_allows(tmp_path, length):
    path = tmp_path / ("ä" * (length // 2 - 2) + ".txt")
    write_text(path, "x")
    assert path.read_text() == "x" and len(os.listdir(tmp_path)) == 1


def test_a_name_that_is_too_long_is_told_so(tmp_path):
    with pytest.raises(CannotWrite, match="File name too long"):
        write_text(tmp_path / ("x" * 300), "x")
