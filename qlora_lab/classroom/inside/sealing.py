"""Seal a process before it runs untrusted code, with what Linux itself offers; nothing here can be undone afterwards.

- Landlock: files can be read where Python's and torch's own lie, and nowhere else; nothing can be written.
- seccomp: no sockets, no new processes or programs, no signals to others, no shared memory, no namespaces, no changes
  to files' rights, owners and times, nothing that administers a system; and no capabilities.
- resource limits: processor time, address space, open files, threads, bytes written (none), core dumps (none).
- where it began as root: user and group become "nobody".
- an empty network namespace besides, where the kernel allows one.
"""

import contextlib
import ctypes
import importlib.util
import os
import platform
import re
import resource
import stat
import struct
import sys
import sysconfig
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_NETWORK, NEW_USER, THREAD = 0x40000000, 0x10000000, 0x00010000
NO_NEW_PRIVILEGES, SECCOMP, DIE_WITH_PARENT = 38, 22, 1
NOBODY = 65534
THREADS = 256  # of an answer; right ones start none
CAPABILITIES = 0x20080522  # version of the structures that `capset` reads
LANDLOCK = (444, 445, 446)  # create a ruleset, add a rule, restrict: the same numbers on every architecture
READ = (1 << 2) | (1 << 3)  # read a file, list a folder
READ_FILE = 1 << 2
# Rights that each version of Landlock knows about files: what is handled and not allowed is refused.
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}

# System calls that are refused: name, number on x86_64, number on aarch64 (- where it has none).
REFUSED = """
    socket 41 198, connect 42 203, accept 43 202, bind 49 200, listen 50 201, socketpair 53 199, fork 57 -, vfork 58
    -, execve 59 221, execveat 322 281, kill 62 129, tkill 200 130, tgkill 234 131, rt_sigqueueinfo 129 138,
    rt_tgsigqueueinfo 297 240, shmget 29 194, semget 64 190, msgget 68 186, mq_open 240 180, memfd_create 319 279,
    ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, prlimit64 302 261, setpriority 141 140, bpf
    321 280, perf_event_open 298 241, userfaultfd 323 282, unshare 272 97, setns 308 268, mount 165 40, umount2 166
    39, pivot_root 155 41, chroot 161 51, keyctl 250 219, add_key 248 217, request_key 249 218, io_uring_setup 425
    425, pidfd_send_signal 424 424, pidfd_open 434 434, pidfd_getfd 438 438, chmod 90 -, fchmod 91 52, fchmodat 268
    53, fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54, setxattr 188 5, lsetxattr 189 6,
    fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, setxattrat 463 463, removexattrat
    466 466, file_setattr 469 469, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, open_by_handle_at
    304 265, name_to_handle_at 303 264, sethostname 170 161, setdomainname 171 162, settimeofday 164 170,
    clock_settime 227 112, adjtimex 159 171, clock_adjtime 305 266, reboot 169 142, init_module 175 105,
    finit_module 313 273, delete_module 176 106, kexec_load 246 104, kexec_file_load 320 294, iopl 172 -, ioperm 173
    -, swapon 167 224, swapoff 168 225, acct 163 89, quotactl 179 60, syslog 103 116, setrlimit 160 164, personality
    135 92, fanotify_init 300 262, inotify_init 253 -, inotify_init1 294 26, mount_setattr 442 442, move_mount 429
    429, open_tree 428 428, fsopen 430 430, fsmount 432 432, fspick 433 433, io_uring_enter 426 426,
    io_uring_register 427 427, process_madvise 440 440, memfd_secret 447 447, sched_setscheduler 144 119,
    sched_setattr 314 274, ioprio_set 251 30, migrate_pages 256 238, move_pages 279 239, accept4 288 242
"""
MACHINES = {"x86_64": (0xC000003E, 56, 1), "aarch64": (0xC00000B7, 220, 2)}  # architecture, number of clone, column
CLONE3 = 435


class Unsealed(RuntimeError):
    """This system cannot contain untrusted code. The message says what is missing."""


def _call(number: int, *arguments) -> int:
    result = LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def isolate_network() -> bool:
    """Move this process into a network of its own that has no way out. False where the kernel refuses."""
    flags = NEW_NETWORK if os.geteuid() == 0 else NEW_NETWORK | NEW_USER
    return LIBC.unshare(flags) == 0


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
    content = struct.pack("=Q", rights)
    ruleset = _call(LANDLOCK[0], content, ctypes.c_size_t(len(content)), ctypes.c_uint32(0))
    for path in paths:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            allowed = READ if path.is_dir() else READ_FILE
            rule = struct.pack("=Qi", allowed, handle)
            _call(LANDLOCK[1], ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0))
        finally:
            os.close(handle)
    return ruleset


def seccomp_program() -> bytes:
    """The filter as the kernel's instructions: (operation, jump if true, jump if false, constant)."""
    machine = platform.machine()
    if machine not in MACHINES:
        raise Unsealed(f"answers can be graded on x86_64 and aarch64; this is {machine}")
    architecture, clone, column = MACHINES[machine]
    numbers = [row.split()[column] for row in REFUSED.split(",")]
    refused = [int(number) for number in numbers if number != "-"]
    load, equal, above, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, no_such_call, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
    program = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, architecture),
        (answer, 0, 0, kill),
        (load, 0, 0, 0),  # the number of the call
        (above, 0, 1, 0x40000000),  # x32's numbers
        (answer, 0, 0, kill),
        (equal, 0, 1, CLONE3),
        (answer, 0, 0, no_such_call),  # C libraries then take clone, whose flags can be read
    ]
    for number in refused:
        program += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    program += [
        (equal, 0, 3, clone),
        (load, 0, 0, 16),  # its flags: threads are allowed, processes are not
        (any_bit, 1, 0, THREAD),
        (answer, 0, 0, refuse),
        (answer, 0, 0, allow),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def forbid_calls(program: bytes) -> None:
    """Install the filter for this process."""
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


def seal(ruleset: int | None, program: bytes, drop: bool, tasks: int, seconds: int, memory: int) -> None:
    """Seal this process.

    Args:
        ruleset, program: from `file_rules` and `seccomp_program`.
        drop: become the user `nobody`.
        tasks: threads that the user has already, see `tasks_of`.
        seconds: of processor time.
        memory: bytes of address space beyond what the process has now.
    """
    LIBC.prctl(DIE_WITH_PARENT, ctypes.c_ulong(9), *[ctypes.c_ulong(0)] * 3)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + memory,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    limit_threads(tasks)
    if drop:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        LIBC.prctl(DIE_WITH_PARENT, ctypes.c_ulong(9), *[ctypes.c_ulong(0)] * 3)  # a change of user clears it
    if LIBC.prctl(NO_NEW_PRIVILEGES, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3):
        raise Unsealed("the kernel cannot forbid new privileges")
    if ruleset is not None:
        _call(LANDLOCK[2], ctypes.c_int(ruleset), ctypes.c_uint32(0))
        os.close(ruleset)
    # Landlock says nothing of what root may do besides reading and writing files, nor of rights, owners and times of
    # files: capabilities are given up, and the calls are among those that are refused.
    if LIBC.capset(struct.pack("=Ii", CAPABILITIES, 0), bytes(24)):
        raise Unsealed("the kernel does not take capabilities back")
    forbid_calls(program)
