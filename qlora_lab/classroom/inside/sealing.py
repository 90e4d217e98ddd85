"""Seal a process before it runs untrusted code, with what Linux itself offers; nothing here can be undone afterwards.

- Landlock: files can be read where Python's and torch's own lie, and nowhere else; nothing can be written. Signals
  reach nobody else, where the kernel's version knows of them.
- seccomp: only the system calls that computing needs (`system_calls.py`); and no capabilities.
- resource limits: processor time, address space, open files, threads, bytes written (none), core dumps (none).
- where it began as root: user and group become "nobody".
- an empty network namespace, and one of processes in which only the process that forked it can be seen, where the
  kernel allows them.
"""

import contextlib
import ctypes
import importlib.util
import os
import re
import resource
import signal
import stat
import struct
import sys
import sysconfig
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_NETWORK, NEW_USER, NEW_PROCESSES = 0x40000000, 0x10000000, 0x20000000
NO_NEW_PRIVILEGES, SECCOMP, DIE_WITH_PARENT = 38, 22, 1
NOBODY = 65534
THREADS = 256  # of an answer; right ones start none
CAPABILITIES = 0x20080522  # version of the structures that `capset` reads
LANDLOCK = (444, 445, 446)  # create a ruleset, add a rule, restrict: the same numbers on every architecture
READ = (1 << 2) | (1 << 3)  # read a file, list a folder
SCOPES_SIGNALS = 6  # the version of Landlock from which on it does
READ_FILE, WRITE_FILE = 1 << 2, 1 << 1
# Rights that each version of Landlock knows about files: what is handled and not allowed is refused.
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}


class Unsealed(RuntimeError):
    """This system cannot contain untrusted code. The message says what is missing."""


def _call(number: int, *arguments) -> int:
    result = LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def isolate() -> dict[str, bool]:
    """Go on in namespaces of one's own, as far as the kernel allows: a network without a way out, and processes.

    A namespace of processes begins with its first one. So this forks, and returns in the new process; the old one waits
    for it, and ends as it does. To be called before there are threads.

    Returns:
        {"network", "processes"}: which of the two there are.
    """
    user = 0 if os.geteuid() == 0 else NEW_USER
    for flags in (NEW_NETWORK | NEW_PROCESSES, NEW_NETWORK, 0):
        if not flags or LIBC.unshare(user | flags) == 0:
            break
    seals = {"network": bool(flags & NEW_NETWORK), "processes": False}
    if flags & NEW_PROCESSES:
        try:
            first = os.fork()
        except OSError as error:
            raise Unsealed(f"the system starts no more processes ({os.strerror(error.errno)})") from None
        if first:
            os.waitpid(first, 0)
            os._exit(0)
        _die_with_parent()
        seals["processes"] = True
    return seals


def _die_with_parent() -> None:
    LIBC.prctl(DIE_WITH_PARENT, ctypes.c_ulong(signal.SIGKILL), *[ctypes.c_ulong(0)] * 3)


def landlock_version() -> int:
    """0 where the kernel has no Landlock."""
    if sys.platform != "linux":
        return 0
    try:
        return _call(LANDLOCK[0], None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError:
        return 0


def readable_paths(packages: list[str]) -> list[Path]:
    """Python's own files without the installed packages, the named packages, and the system's libraries."""
    system = ("/usr/lib", "/lib", "/lib64", "/usr/lib64", "/dev/null", "/dev/zero", "/dev/urandom")
    found = [Path(name).resolve() for name in system]
    standard = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    standard.add(Path(os.__file__).resolve().parent)
    # /usr/lib may hold Python with packages in it: then its entries are listed one by one.
    for folder in standard | {p for p in found if any(s.is_relative_to(p) for s in standard)}:
        found = [p for p in found if p != folder]
        found += _entries(folder, standard)
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec and spec.origin:
            path = Path(spec.origin).resolve()
            found.append(path.parent if path.name.startswith("__init__.") else path)
    return sorted({p for p in found if p.exists()})


def _entries(folder: Path, standard: set[Path]) -> list[Path]:
    """What lies in a folder, without Python's packages."""
    found = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name in ("site-packages", "dist-packages"):
            continue
        inside = [s for s in standard if s != folder and s.is_relative_to(entry)]
        python = entry.name.startswith("python") and entry.is_dir() and folder not in standard
        found += _entries(entry, standard) if inside or python else [entry]
    return found


def file_rules(paths: list[Path]) -> int | None:
    """A Landlock ruleset that allows reading below `paths` and nothing else; None where there is no Landlock."""
    version = landlock_version()
    if not version:
        return None
    rights = FILE_RIGHTS[min(version, max(FILE_RIGHTS))]
    # From its fourth version on it knows ports, all of which are refused; from its sixth, who may be sent a signal or
    # reached by a socket without a file: only what is sealed together.
    content = (
        struct.pack("=Q", rights)
        + struct.pack("=Q", 3) * (version >= 4)
        + struct.pack("=Q", 3) * (version >= SCOPES_SIGNALS)
    )
    ruleset = _call(LANDLOCK[0], content, ctypes.c_size_t(len(content)), ctypes.c_uint32(0))
    for path in paths:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            allowed = READ if path.is_dir() else READ_FILE
            if path == Path(os.devnull):
                allowed |= WRITE_FILE
            rule = struct.pack("=Qi", allowed, handle)
            _call(LANDLOCK[1], ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0))
        finally:
            os.close(handle)
    return ruleset


def forbid_calls(program: bytes) -> None:
    """Install a filter for this process."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    if LIBC.prctl(SECCOMP, ctypes.c_ulong(2), header, ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise Unsealed(f"the kernel takes no seccomp filter ({os.strerror(ctypes.get_errno())})")


def readable_by_all(path: Path) -> bool:
    """Whether any user may read below a folder: `nobody` must be able to import from there."""
    with contextlib.suppress(OSError):
        modes = [os.stat(p).st_mode for p in (path, *path.parents)]
        return all(mode & stat.S_IXOTH for mode in modes) and bool(modes[0] & stat.S_IROTH)
    return False


def tasks_of(user: int) -> int:
    """How many threads a user has now, in all processes that can be seen."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found = re.search(r"^Uid:\t(\d+)\b.*?^Threads:\t(\d+)", path.read_text(), re.MULTILINE | re.DOTALL)
            if found and int(found[1]) == user:
                count += int(found[2])
    return count


def limit_threads(tasks: int) -> None:
    """Let this process and others of its user start threads until there are `THREADS` more than `tasks`.

    Linux counts them for the user, not for the process, and does not count root's: there the limit of memory is all
    that bounds an answer's threads, at about a thousand to a GB.
    """
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    limit = tasks + THREADS if most == resource.RLIM_INFINITY else min(tasks + THREADS, most)
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))


def seal(ruleset: int | None, programs: list[bytes], drop: bool, tasks: int, seconds: int, memory: int) -> None:
    """Seal this process.

    Args:
        ruleset, programs: from `file_rules` and `system_calls.programs`.
        drop: become the user `nobody`.
        tasks: threads that the user has already, see `tasks_of`.
        seconds: of processor time.
        memory: bytes of address space beyond what the process has now.
    """
    _die_with_parent()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + memory,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    # SIGXCPU ends it, which can be told from a kill by the system; a second later SIGKILL ends what blocks that.
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    limit_threads(tasks)
    if drop:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _die_with_parent()  # a change of user clears it
    if LIBC.prctl(NO_NEW_PRIVILEGES, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3):
        raise Unsealed("the kernel cannot forbid new privileges")
    if ruleset is not None:
        _call(LANDLOCK[2], ctypes.c_int(ruleset), ctypes.c_uint32(0))
        os.close(ruleset)
    # Landlock says nothing of what root may do besides reading and writing files, nor of rights, owners and times of
    # files: capabilities are given up, and the calls are among those that are refused.
    if LIBC.capset(struct.pack("=Ii", CAPABILITIES, 0), bytes(24)):
        raise Unsealed("the kernel does not take capabilities back")
    for program in programs:
        forbid_calls(program)
