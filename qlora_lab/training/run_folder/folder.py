"""The folder of a training run: one run to a folder, and one process at a time.

A killed process leaves no lock behind: the system frees it.
"""

import contextlib
import errno
import warnings
from collections.abc import Iterator
from pathlib import Path

import filelock

from qlora_lab.machine.files import told_writing

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


def check_folder(out: Path | None, resume: bool) -> None:
    """Raise ValueError where a run in `out` (None: no folder) would write over another, or has nothing to resume in."""
    if out is None:
        if resume:
            raise ValueError("resume=True needs the folder of the run: out=...")
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder for the run")
    there = [name for name in ("metrics.jsonl", "checkpoints", "adapter") if (out / name).exists()]
    if there and not resume:
        raise ValueError(
            f"{out} already holds a run ({', '.join(there)}); continue it with resume=True or choose another folder"
        )


@contextlib.contextmanager
def alone_in(out: Path | None) -> Iterator[None]:
    """Make the run's folder, and keep other processes out of it; the system frees the lock of a killed process."""
    if out is None:
        yield
        return
    with told_writing(out, "nothing was begun"):
        out.mkdir(parents=True, exist_ok=True)
    path = out / ".lock"
    if path.exists() and not path.is_file():
        raise ValueError(
            f"{path} is no file, so {out} cannot be kept for this run; remove it, or choose another folder"
        )
    lock = filelock.FileLock(path, timeout=0)
    try:
        with told_writing(path, "nothing was begun"):
            lock.acquire()
    except filelock.Timeout as error:
        raise ValueError(f"another process is training in {out} now; wait for it, or choose another folder") from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {out} has no locks: nothing keeps a second process from training in it",
            RuntimeWarning,
            stacklevel=4,
        )
    try:
        yield
    finally:
        lock.release()
