"""Files that are written whole or not at all.

Everything the package leaves on disk goes through `write_whole`: the content is written to a temporary name in the
same folder, flushed to the disk, and renamed over the target, which POSIX and NTFS do in one step. Whoever reads the
target sees the old file or the new one, never half of either, also after `kill -9` or a power cut.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors

from qlora_lab.machine.errors import UserFacingError

# what a file system answers that has no such operation, or a folder that may be written to but not read
_NOT_OFFERED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
_NOT_FOR_FOLDERS = _NOT_OFFERED | {errno.EACCES, errno.EPERM, errno.EISDIR}


_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENAMETOOLONG, errno.ESTALE}


class CannotWrite(UserFacingError, OSError):
    """The system refused to write: no space, a quota, a disk that fails, one that is read-only."""


@contextlib.contextmanager
def told_writing(path: str | os.PathLike, consequence: str = "what was there before is unchanged") -> Iterator[None]:
    """Inside, what a system says that refuses to write is told as a sentence about `path`.

    Raises:
        CannotWrite: no space, a quota, a disk that fails or is read-only, too long a name.
        PermissionError: the file, or its folder, may not be written to.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, UserFacingError):
            raise
        named = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else ""
        if error.errno in _REFUSED:
            said = CannotWrite(f"cannot write {path} ({error.strerror}); {consequence}")
        elif isinstance(error, PermissionError) and Path(os.fsdecode(named)).parent == Path(path).parent:
            said = PermissionError(f"cannot write {path} ({error.strerror}); {consequence}")
        else:
            raise
        said.errno = error.errno
        raise said from error


@contextlib.contextmanager
def write_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving without an error, move it there in one step.

    A link stays a link: the file that it leads to is the one that is replaced.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        IsADirectoryError: `path` is a folder.
        ValueError: `path` is a pipe, a device or the like.
        CannotWrite, PermissionError: the system refuses; the old file is unchanged.
    """
    path = Path(path)
    with told_writing(path):
        final = _replaceable(path)
        # a long name may leave no room for more: systems allow 255 bytes
        shown = final.name if len(os.fsencode(final.name)) < 200 else secrets.token_hex(8)
        temporary = final.with_name(f".{shown}.{secrets.token_hex(8)}.part")
        try:
            temporary.touch(exist_ok=False)
            yield temporary
            with open(temporary, "rb+") as written:
                _sync(written.fileno(), _NOT_OFFERED)
            os.replace(temporary, final)
            _sync_folder(final.parent)
        finally:
            with contextlib.suppress(OSError):  # what went wrong before says more
                temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8 with its line ends as they are, on Windows too, whole or not at all."""
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | os.PathLike, value) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN and infinity are refused: JSON has no such numbers."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def save_tensors(
    path: str | os.PathLike, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write named tensors as one safetensors file, whole or not at all; each is copied to the CPU first."""
    content = to_safetensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)
    with write_whole(path) as temporary:
        temporary.write_bytes(content)


def load_tensors(path: str | os.PathLike, device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file: the tensors by name, and its metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not whole safetensors (cut short, or another format such as a pickle).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if os.name == "nt":  # they lie in the file, and no file there is replaced while something lies in it
                tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            metadata = file.metadata() or {}
    except Exception as error:  # safetensors raises its own class, and plain ones for some damage
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from error
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata


def _replaceable(path: Path) -> Path:
    """The file that is to be written: where `path` leads to."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the path of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a pipe or a device, which cannot be replaced; give the path of a file")
    final = path.resolve() if path.is_symlink() else path
    if not final.parent.is_dir():
        raise FileNotFoundError(f"the folder {final.parent} does not exist; create it first")
    return final


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: str | os.PathLike) -> None:
    """Force what was written to a file onto the disk."""
    with open(path, "rb") as file:
        _sync(file.fileno(), _NOT_OFFERED)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be opened and flushed; Windows needs no such step."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in _NOT_FOR_FOLDERS:
            return
        raise
    try:
        _sync(handle, _NOT_FOR_FOLDERS)
    finally:
        os.close(handle)


def _sync(handle: int, harmless: set[int]) -> None:
    """os.fsync, which some file systems do not offer (and then have nothing to lose)."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in harmless:
            raise
