"""The system calls that a sealed process may make, as two filters for seccomp.

The kernel asks both, and the stricter holds. The first allows what Python, numpy and torch need to compute, and refuses
whatever else there is or will be: found by tracing answers of all kinds (`tests/machines/traced_calls.py`), with what
other C libraries take for the same. A call with many faces is allowed for some of them. The second is a list of what is
refused, made without looking at the first: one slip in one list opens nothing.

What is refused fails with EPERM, so that Python goes on and says so. So does a signal to oneself, by which `abort` ends
a process: it then crashes, which is told as a crash.
"""

import platform
import struct

# Name, number on x86_64, number on aarch64 (- where it has none).
ALLOWED = """
    read 0 63, write 1 64, writev 20 66, pread64 17 67, close 3 57, lseek 8 62, dup 32 23, dup2 33 -, dup3 292 24,
    open 2 -, openat 257 56, access 21 -, faccessat 269 48, faccessat2 439 439, stat 4 -, lstat 6 -, fstat 5 80,
    newfstatat 262 79, statx 332 291, statfs 137 43, fstatfs 138 44, readlink 89 -, readlinkat 267 78, getdents64 217
    61, getcwd 79 17, mmap 9 222, munmap 11 215, mremap 25 216, mprotect 10 226, brk 12 214, msync 26 227, exit 60 93,
    exit_group 231 94, rt_sigreturn 15 139, rt_sigprocmask 14 135, sigaltstack 131 132, restart_syscall 219 128,
    sched_yield 24 124, nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114,
    gettimeofday 96 169, time 201 -, times 100 153, getrusage 98 165, getrlimit 97 163, sysinfo 99 179, uname 63 160,
    getrandom 318 278, getcpu 309 168, sched_getaffinity 204 123, getpid 39 172, getppid 110 173, gettid 186 178,
    getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, set_robust_list 273 99, rseq 334 293, poll 7 -,
    ppoll 271 73, select 23 -, pselect6 270 72, recvfrom 45 207, sendto 44 206,
    capget 125 90
"""

# Calls with many faces: name, numbers; which argument decides, and its values that are allowed.
FACES = {
    "fcntl 72 25": (1, {"F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_DUPFD_CLOEXEC": 1030}),
    "ioctl 16 29": (
        1,
        {"TCGETS": 0x5401, "TIOCGWINSZ": 0x5413, "FIONCLEX": 0x5450, "FIOCLEX": 0x5451, "TCGETS2": 0x802C542A},
    ),
    "prctl 157 167": (
        0,
        {"PR_SET_NAME": 15, "PR_GET_NAME": 16, "PR_CAPBSET_READ": 23, "PR_SVE_GET_VL": 51, "PR_SET_VMA": 0x53564D41},
    ),
    "madvise 28 233": (
        2,
        {"NORMAL": 0, "RANDOM": 1, "SEQUENTIAL": 2, "WILLNEED": 3, "DONTNEED": 4, "FREE": 8}
        | {"HUGEPAGE": 14, "NOHUGEPAGE": 15},
    ),
    # Each also for this process alone (128), or with a deadline by the clock on the wall (256).
    "futex 202 98": (
        1,
        {
            f"{name} {flags}": number | flags
            for name, number in {
                "WAIT": 0,
                "WAKE": 1,
                "REQUEUE": 3,
                "CMP_REQUEUE": 4,
                "WAKE_OP": 5,
                "WAIT_BITSET": 9,
                "WAKE_BITSET": 10,
            }.items()
            for flags in (0, 128, 256, 384)
        },
    ),
}

# `clone` for threads: the flag that makes one, and those that go with it. Anything else there is a process, or a
# namespace. `clone3` keeps its flags in memory, where no filter can read them.
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
THREAD = 0x00010000
THREAD_FLAGS = THREAD | 0x0F00 | 0x00040000 | 0x00080000 | 0x00100000 | 0x00200000 | 0x00400000 | 0x01000000
# `rt_sigaction` for all signals but one: that it computed for too long is told by how SIGXCPU ended it.
SIGACTION = {"x86_64": 13, "aarch64": 134}
SIGXCPU = 24

# The second list.
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
    sched_setattr 314 274, ioprio_set 251 30, migrate_pages 256 238, move_pages 279 239, accept4 288 242,
    timer_create 222 107, mq_notify 244 184
"""
# Who is told of what happens to a file, and by which signal; and text typed into a terminal.
REFUSED_FACES = {
    "fcntl 72 25": (
        1,
        {"F_SETOWN": 8, "F_SETSIG": 10, "F_SETOWN_EX": 15, "F_SETLEASE": 1024, "F_NOTIFY": 1026},
    ),
    "ioctl 16 29": (
        1,
        {"FIOASYNC": 0x5452, "FIOSETOWN": 0x8901, "SIOCSPGRP": 0x8902, "TIOCSTI": 0x5412, "TIOCLINUX": 0x541C},
    ),
}
MACHINES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}  # architecture, column

LOAD, EQUAL, AT_LEAST, ANY_BIT, ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, NO_SUCH_CALL, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
Instruction = tuple[int, int, int, int]  # operation, jump if true, jump if false, constant


def numbers(rows: str, machine: str) -> dict[str, int]:
    """name -> number on a machine, of a table as above."""
    column = MACHINES[machine][1]
    found = {row.split()[0]: row.split()[column] for row in rows.split(",")}
    return {name: int(number) for name, number in found.items() if number != "-"}


def programs() -> list[bytes]:
    """The two filters for this machine, in the order in which they can be installed.

    Raises:
        ValueError: a machine whose numbers are not in the tables.
    """
    machine = platform.machine()
    if machine not in MACHINES:
        raise ValueError(f"answers can be graded on x86_64 and aarch64; this is {machine}")
    return [_packed(_refusing(machine)), _packed(_allowing(machine))]


def _allowing(machine: str) -> list[Instruction]:
    program = _begin(machine)
    for number in numbers(ALLOWED, machine).values():
        program += _if(number, [(ANSWER, 0, 0, ALLOW)])
    for row, (place, values) in FACES.items():
        program += _if(*numbers(row, machine).values(), _by_value(place, values, ALLOW, REFUSE))
    clone = [_argument(0), (ANY_BIT, 0, 1, ~THREAD_FLAGS & 0xFFFFFFFF), (ANSWER, 0, 0, REFUSE)]
    program += _if(CLONE[machine], [*clone, (ANY_BIT, 1, 0, THREAD), (ANSWER, 0, 0, REFUSE), (ANSWER, 0, 0, ALLOW)])
    program += _if(SIGACTION[machine], _by_value(0, {"SIGXCPU": SIGXCPU}, REFUSE, ALLOW))
    return [*program, (ANSWER, 0, 0, REFUSE)]


def _refusing(machine: str) -> list[Instruction]:
    program = _begin(machine)
    for number in numbers(REFUSED, machine).values():
        program += _if(number, [(ANSWER, 0, 0, REFUSE)])
    for row, (place, values) in REFUSED_FACES.items():
        program += _if(*numbers(row, machine).values(), _by_value(place, values, REFUSE, ALLOW))
    clone = [_argument(0), (ANY_BIT, 1, 0, THREAD), (ANSWER, 0, 0, REFUSE), (ANSWER, 0, 0, ALLOW)]
    return [*program, *_if(CLONE[machine], clone), (ANSWER, 0, 0, ALLOW)]


def _begin(machine: str) -> list[Instruction]:
    """Other architectures' calls end the process; after this, the number of the call is loaded."""
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, MACHINES[machine][0]), (ANSWER, 0, 0, KILL), (LOAD, 0, 0, 0)]
    program += [(AT_LEAST, 0, 1, 0x40000000), (ANSWER, 0, 0, KILL)]  # x32's numbers
    return program + _if(CLONE3, [(ANSWER, 0, 0, NO_SUCH_CALL)])  # C libraries then take `clone`


def _if(number: int, block: list[Instruction]) -> list[Instruction]:
    """What a call of this number meets. The block ends with an answer."""
    return [(EQUAL, 0, len(block), number), *block]


def _by_value(place: int, values: dict[str, int], among: int, otherwise: int) -> list[Instruction]:
    """One answer where an argument is among values, another where it is not. These arguments are ints: half a word."""
    block = [_argument(place)]
    for value in values.values():
        block += _if(value, [(ANSWER, 0, 0, among)])
    return [*block, (ANSWER, 0, 0, otherwise)]


def _argument(place: int) -> Instruction:
    return LOAD, 0, 0, 16 + 8 * place  # its lower half: both machines are little-endian


def _packed(program: list[Instruction]) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
