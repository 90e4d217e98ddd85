"""The filters, run by an interpreter of seccomp's instructions: what they answer to any call, on both architectures."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qlora_lab.classroom.inside import system_calls
from qlora_lab.classroom.inside.system_calls import (
    ALLOW,
    ALLOWED,
    CLONE,
    CLONE3,
    FACES,
    KILL,
    MACHINES,
    NO_SUCH_CALL,
    REFUSE,
    REFUSED,
    REFUSED_FACES,
    SIGACTION,
    THREAD,
    THREAD_FLAGS,
)

WORDS = st.integers(0, 2**64 - 1)
HALF = 2**32


def run(program: bytes, data: bytes) -> int:
    """What a filter answers to a call, as the kernel computes it: one accumulator, jumps forward only."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    place = value = 0
    while True:
        operation, if_true, if_false, constant = instructions[place]
        place += 1
        if operation == 0x20:
            assert constant % 4 == 0 and constant < len(data)
            (value,) = struct.unpack_from("=I", data, constant)
        elif operation == 0x06:
            return constant
        else:
            holds = {0x15: value == constant, 0x35: value >= constant, 0x45: value & constant != 0}[operation]
            place += if_true if holds else if_false


@pytest.fixture(scope="module", params=MACHINES)
def machine(request):
    return request.param


@pytest.fixture(scope="module")
def programs(machine):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("platform.machine", lambda: machine)
        return system_calls.programs()


def answers(programs, machine: str, number: int, *arguments: int, architecture: int | None = None) -> list[int]:
    """Of each filter, to a call."""
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, architecture or MACHINES[machine][0], 0, *words)
    return [run(program, data) for program in programs]


def allowed(programs, machine: str, number: int, *arguments: int) -> bool:
    given = answers(programs, machine, number, *arguments)
    assert set(given) <= {ALLOW, REFUSE, NO_SUCH_CALL}
    return set(given) == {ALLOW}


def plain(machine: str) -> set[int]:
    return set(system_calls.numbers(ALLOWED, machine).values())


def with_faces(machine: str) -> dict[int, tuple]:
    return {number: face for row, face in FACES.items() for number in system_calls.numbers(row, machine).values()}


def test_every_call_that_is_not_in_the_list_is_refused(programs, machine):
    others = {*with_faces(machine), CLONE[machine], SIGACTION[machine]}
    for number in [*range(2000), *range(2000, 0x40000000, 999_983), 0x3FFFFFFF]:
        if number not in others:
            assert allowed(programs, machine, number) == (number in plain(machine)), number


@given(number=st.integers(0x40000000, HALF - 1), arguments=st.lists(WORDS, max_size=6))
@example(number=0x40000000, arguments=[])
def test_numbers_of_x32_and_negative_ones_end_the_process(programs, machine, number, arguments):
    assert answers(programs, machine, number, *arguments) == [KILL, KILL]


@given(number=st.integers(0, 500), architecture=st.integers(1, HALF - 1))
@example(number=0, architecture=0x40000003)  # i386, by `int 0x80`
@example(number=0, architecture=0x40000028)  # 32-bit ARM
def test_another_architecture_ends_the_process(programs, machine, number, architecture):
    if architecture != MACHINES[machine][0]:
        assert answers(programs, machine, number, architecture=architecture) == [KILL, KILL]


@given(arguments=st.lists(WORDS, min_size=6, max_size=6), data=st.data())
def test_a_call_with_many_faces_shows_only_those_that_are_allowed(programs, machine, arguments, data):
    number = data.draw(st.sampled_from(sorted(with_faces(machine))))
    place, values = with_faces(machine)[number]
    near = st.sampled_from([*values.values(), *(value for _, of in REFUSED_FACES.values() for value in of.values())])
    lower = data.draw(near | st.integers(0, 2000) | st.integers(0, HALF - 1))
    arguments[place] = arguments[place] // HALF * HALF + lower  # the upper half of such an argument is nobody's
    assert allowed(programs, machine, number, *arguments) == (lower in values.values())


@pytest.mark.parametrize(
    ("call", "value"),
    [("fcntl", v) for v in (4, 5, 6, 7, 8, 10, 15, 16, 36, 37, 38, 1024, 1026, 1031, 1033)]
    + [("ioctl", v) for v in (0x5402, 0x5412, 0x541B, 0x541C, 0x5421, 0x5452, 0x8901, 0x8902, 0xAE01, 0x400454CA)]
    + [("prctl", v) for v in (1, 4, 8, 10, 19, 22, 24, 28, 35, 36, 38, 47, 0x59616D61)]
    + [("futex", v) for v in (6, 7, 8, 11, 12, 13, 2, 128 + 6)]
    + [("madvise", v) for v in (9, 10, 11, 12, 19, 100, 101)],
)
def test_faces_that_reach_beyond_the_process_are_refused(programs, machine, call, value):
    """fcntl: owners, signals, leases, locks, F_SETFL; ioctl: the same for sockets; prctl: death signal, tracer."""
    (row,) = [row for row in FACES if row.startswith(f"{call} ")]
    (number,) = system_calls.numbers(row, machine).values()
    arguments = [0] * 6
    arguments[FACES[row][0]] = value
    assert REFUSE in answers(programs, machine, number, *arguments)


@given(
    flags=st.integers(0, HALF - 1) | st.sampled_from([0, 17, 0x4111, 0x3D0F00, THREAD]), upper=st.integers(0, 2**32 - 1)
)
@example(flags=0x3D0F00, upper=0)  # as C libraries start threads
def test_clone_starts_threads_and_nothing_else(programs, machine, flags, upper):
    thread = bool(flags & THREAD) and not flags & ~THREAD_FLAGS
    assert allowed(programs, machine, CLONE[machine], upper * HALF + flags) == thread


@pytest.mark.parametrize("bit", range(32))
def test_a_thread_has_no_flag_that_is_not_a_threads(programs, machine, bit):
    new_or_traced = {1 << n for n in (*range(8), 12, 13, 14, 15, 17, 23, 25, 26, 27, 28, 29, 30, 31)}
    assert allowed(programs, machine, CLONE[machine], 0x3D0F00 | 1 << bit) == (1 << bit not in new_or_traced)


def test_flags_in_memory_are_no_call_at_all(programs, machine):
    assert answers(programs, machine, CLONE3) == [NO_SUCH_CALL, NO_SUCH_CALL]


@given(number=st.integers(0, 100), upper=st.integers(0, 2**32 - 1))
@example(number=24, upper=0)
def test_handlers_can_be_set_for_all_signals_but_that_of_the_limit_of_time(programs, machine, number, upper):
    assert allowed(programs, machine, SIGACTION[machine], upper * HALF + number) == (number != 24)


def test_the_two_lists_have_nothing_in_common(machine):
    one, other = (system_calls.numbers(rows, machine) for rows in (ALLOWED, REFUSED))
    special = {*with_faces(machine), CLONE[machine], CLONE3, SIGACTION[machine]}
    assert not set(one) & set(other) and not set(one.values()) & set(other.values())
    assert not special & {*one.values(), *other.values()}
    for row, (place, values) in REFUSED_FACES.items():
        assert FACES[row][0] == place and not set(FACES[row][1].values()) & set(values.values())
    for rows in (ALLOWED, REFUSED):
        table = [row.split() for row in rows.split(",")]
        assert all(len(row) == 3 for row in table) and len({row[0] for row in table}) == len(table)
        numbers = list(system_calls.numbers(rows, machine).values())
        assert len(set(numbers)) == len(numbers)


def test_the_second_list_refuses_by_itself(programs, machine):
    for number in system_calls.numbers(REFUSED, machine).values():
        assert answers(programs, machine, number) == [REFUSE, REFUSE]
    for row, (place, values) in REFUSED_FACES.items():
        (number,) = system_calls.numbers(row, machine).values()
        for value in values.values():
            assert answers(programs, machine, number, *[0] * place, value) == [REFUSE, REFUSE]


def test_the_kernel_can_take_the_filters(programs):
    for program in programs:
        assert len(program) % 8 == 0 and 50 < len(program) // 8 < 4096


def headers(machine: str) -> dict[str, int]:
    """The numbers in the kernel's headers for programs, where they are installed."""
    if machine == "x86_64":
        for folder in ("x86_64-linux-gnu/asm", "asm"):
            if (path := Path("/usr/include") / folder / "unistd_64.h").exists():
                return {name: int(number) for name, number in re.findall(r"__NR_(\w+) (\d+)", path.read_text())}
    if not shutil.which("gcc") or not Path("/usr/include/asm-generic/unistd.h").exists():
        pytest.skip("no headers of the kernel here")
    # 64-bit ARM takes the generic table, with these of its options.
    options = ["BITS_PER_LONG=64", "ARCH_WANT_RENAMEAT", "ARCH_WANT_NEW_STAT", "ARCH_WANT_SET_GET_RLIMIT"]
    options += ["ARCH_WANT_TIME32_SYSCALLS", "ARCH_WANT_SYS_CLONE3", "ARCH_WANT_MEMFD_SECRET"]
    command = [
        "gcc",
        "-E",
        "-dM",
        *[f"-D__{o}" for o in options],
        "-include",
        "asm-generic/unistd.h",
        "-xc",
        "/dev/null",
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    defined = dict(re.findall(r"#define (__NR\w*) (\S+)", text))
    found = {}
    for name, value in defined.items():
        value = defined.get(value, value)
        if name.startswith("__NR_") and value.isdigit():
            found[name.removeprefix("__NR_")] = int(value)
    return found


def test_the_numbers_are_the_kernels(machine):
    known = headers(machine)
    rows = [ALLOWED, REFUSED, *FACES, *REFUSED_FACES]
    ours = {name: number for row in rows for name, number in system_calls.numbers(row, machine).items()}
    ours |= {"clone": CLONE[machine], "clone3": CLONE3, "rt_sigaction": SIGACTION[machine]}
    assert {name: known[name] for name in ours if name in known} == {n: v for n, v in ours.items() if n in known}
    younger = {"setxattrat", "removexattrat", "file_setattr", "fchmodat2"}  # than some distributions' headers
    assert set(ours) - set(known) <= younger
    for rows in (ALLOWED, REFUSED):  # what has no number there has none
        missing = {row.split()[0] for row in rows.split(",")} - set(system_calls.numbers(rows, machine))
        assert not missing & set(known)


def test_another_machine_is_refused(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(ValueError, match="riscv64"):
        system_calls.programs()
