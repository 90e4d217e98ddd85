"""The lowest tier: a file of fixed-size pages in a folder that the caller names.

The file belongs to one process for as long as that lives: its name carries a random id and the process id, and the
system holds a lock on it that ends with the process, however that ends. A file nobody holds the lock of was left by a
killed run, and the next run in the same folder removes it. It is scratch space, never something to resume from.

Pages go through plain reads and writes, not through a memory map: what lies on disk does not count as the process's
memory. A sum over every page is kept in memory, so that a page that comes back changed is an error and not a number.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from pathlib import Path

import numpy as np

from qlora_lab.machine.errors import UserFacingError

try:
    import fcntl
except ImportError:  # Windows: an open file cannot be removed, which is lock enough
    fcntl = None

_NAME = re.compile(r"qlora-lab-pages-[0-9a-f]{8}-\d+\.bin")
_MAGIC = b"qlora_lab pages 1\n"
HEADER = 4096  # bytes before the first page


class PageFileError(UserFacingError, RuntimeError):
    """The page file is gone, damaged, or cannot be written."""


class PageFile:
    """Numbered places of `page_size` bytes each.

    Args:
        directory: an existing, writable folder.
        page_size: bytes, a multiple of 8.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: the folder is missing, no folder, or not writable.
    """

    def __init__(self, directory: str | os.PathLike, page_size: int):
        self.page_size = page_size
        self.places = 0  # reserved on disk
        self.in_use: set[int] = set()
        self._free: list[int] = []
        self._sums: dict[int, int] = {}
        directory = Path(directory)
        if not directory.exists():
            raise FileNotFoundError(f"the folder {directory} for optimizer pages does not exist; create it first")
        if not directory.is_dir():
            raise NotADirectoryError(f"{directory} is not a folder; give a folder for optimizer pages")
        remove_stale(directory)
        try:
            self.path, self._file = _create(directory)
        except PermissionError as error:
            raise PermissionError(f"cannot write optimizer pages into {directory}; give a writable folder") from error
        self._owner = os.getpid()

    def reserve(self, places: int) -> None:
        """Make room on the disk for that many pages, so that a full disk is told now and not in mid-step.

        Raises:
            PageFileError: the disk has no room; nothing is changed.
        """
        if places <= self.places:
            return
        before, size = HEADER + self.places * self.page_size, HEADER + places * self.page_size
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), before, size - before)
            else:
                self._file.truncate(size)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            free = shutil.disk_usage(self.path.parent).free
            raise PageFileError(
                f"optimizer pages need {(size - before) / 1e6:.1f} MB more in {self.path.parent}, where "
                f"{free / 1e6:.1f} MB are free ({error.strerror}); choose another folder, or a larger device_budget or "
                "host_budget"
            ) from error
        self._free += range(places - 1, self.places - 1, -1)
        self.places = places

    def take(self) -> int:
        """A place that is free; the file grows if there is none."""
        if not self._free:
            self.reserve(self.places + 1)
        place = self._free.pop()
        self.in_use.add(place)
        return place

    def give(self, place: int) -> None:
        self.in_use.discard(place)
        self._free.append(place)

    def write(self, place: int, content: np.ndarray) -> None:
        """Write a page. content: uint8 (page_size,), contiguous."""
        try:
            self._seek(place)
            view, done = memoryview(content), 0
            while done < self.page_size:
                done += self._file.write(view[done:])
        except OSError as error:
            raise PageFileError(f"cannot write optimizer pages to {self.path}: {error.strerror or error}") from error
        self._sums[place] = _sum(content)

    def read(self, place: int, content: np.ndarray) -> None:
        """Read a page into `content`.

        Raises:
            PageFileError: the file is too short, or the page is not what was written.
        """
        try:
            self._seek(place)
            view, done = memoryview(content), 0
            while done < self.page_size:
                count = self._file.readinto(view[done:])
                if not count:
                    raise PageFileError(f"{self.path} was cut short: a page of optimizer state is lost")
                done += count
        except OSError as error:
            raise PageFileError(f"cannot read optimizer pages from {self.path}: {error.strerror or error}") from error
        if _sum(content) != self._sums[place]:
            raise PageFileError(f"{self.path} was changed by someone else: a page of optimizer state is lost")

    def missing(self) -> set[int]:
        """Places in use that lie behind the end of the file (empty if the file is whole)."""
        size = os.fstat(self._file.fileno()).st_size
        return {place for place in self.in_use if HEADER + (place + 1) * self.page_size > size}

    def deleted(self) -> bool:
        """Whether the name no longer leads to this file."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except OSError:
            return True

    def close(self) -> None:
        """Remove the file. A forked child leaves its parent's file alone."""
        if self._file.closed:
            return
        if os.getpid() == self._owner:
            if not self.deleted():
                with contextlib.suppress(OSError):
                    self.path.unlink()
            self._file.close()
            with contextlib.suppress(OSError):  # Windows removes only what is closed
                self.path.unlink()

    def _seek(self, place: int) -> None:
        self._file.seek(HEADER + place * self.page_size)


def remove_stale(directory: str | os.PathLike) -> list[Path]:
    """Remove page files that killed runs left in `directory`; files that a live process holds stay. Returns them."""
    removed = []
    for path in Path(directory).iterdir():
        if not _NAME.fullmatch(path.name) or path.is_symlink():
            continue
        with contextlib.suppress(OSError), open(path, "rb+", buffering=0) as file:
            if file.read(len(_MAGIC)) not in (_MAGIC, b"") or _lock(file) != "ours":
                continue
            if fcntl is not None:
                path.unlink()
                removed.append(path)
        if fcntl is None:
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(path)
    return removed


def _create(directory: Path):
    while True:
        path = directory / f"qlora-lab-pages-{secrets.token_hex(4)}-{os.getpid()}.bin"
        file = open(path, "xb+", buffering=0)  # noqa: SIM115
        # another run that starts at this moment may take the file, not locked yet, for a stale one
        if _lock(file) == "held" or not path.exists():
            file.close()
            continue
        try:
            file.write(_MAGIC.ljust(HEADER, b"\0"))
        except OSError as error:
            file.close()
            path.unlink(missing_ok=True)
            raise PageFileError(f"cannot write optimizer pages into {directory}: {error.strerror}") from error
        return path, file


def _lock(file) -> str:
    """Try to lock: "ours", "held" by another process, or "unknown" where the file system has no locks."""
    if fcntl is None:
        return "ours"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:
        return "unknown"
    return "ours"


def _sum(content: np.ndarray) -> int:
    return int(np.add.reduce(content.view(np.uint64)))
