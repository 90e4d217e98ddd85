"""One run to a folder, one process at a time; where the file system has no locks, that is said."""

import errno
import os
import warnings

import filelock
import pytest

from qlora_lab.machine.files import CannotWrite
from qlora_lab.training.run_folder.folder import alone_in, check_folder

posix = pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")


def test_two_at_a_time_are_refused_and_one_after_the_other_are_not(tmp_path):
    run = tmp_path / "run"
    with alone_in(run), pytest.raises(ValueError, match=r"another process is training in .*run now"), alone_in(run):
        pass
    with alone_in(tmp_path / "run"):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_once_and_used(tmp_path, monkeypatch, code):
    def no_locks(self, *arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    with pytest.warns(RuntimeWarning, match="has no locks: nothing keeps a second process"), alone_in(tmp_path / "run"):
        pass


def test_where_there_are_locks_nothing_is_said(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with alone_in(tmp_path / "run"):
            pass


@pytest.mark.parametrize("what", ["folder", pytest.param("pipe", marks=posix)])
def test_a_lock_that_is_no_file_is_named(tmp_path, what):
    (tmp_path / ".lock").mkdir() if what == "folder" else os.mkfifo(tmp_path / ".lock")
    with pytest.raises(ValueError, match=r"\.lock is no file.*remove it, or choose another folder"), alone_in(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_refuses_is_told_before_anything_is_begun(tmp_path, monkeypatch, code):
    def full(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(CannotWrite, match="nothing was begun"), alone_in(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


@posix
def test_a_folder_that_is_a_link_is_the_folder(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "far")
    with alone_in(tmp_path / "run"):
        assert (tmp_path / "far" / ".lock").exists()


def test_what_is_there_is_said(tmp_path):
    check_folder(None, False), check_folder(tmp_path / "none", False), check_folder(tmp_path / "none", True)
    with pytest.raises(ValueError, match="needs the folder of the run"):
        check_folder(None, True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        check_folder(tmp_path / "file", False)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"already holds a run .checkpoints.; continue it with resume=True"):
        check_folder(tmp_path, False)
