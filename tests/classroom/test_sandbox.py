"""What an answer can and cannot do in the sandbox. (What hostile ones get for it: `test_classroom_grading.py`.)"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from honest_answers import HONEST
from hostile_answers import HOSTILE

from qlora_lab.classroom import sandbox as sandbox_module
from qlora_lab.classroom.inside import sealing
from qlora_lab.classroom.inside.values import pack, unpack
from qlora_lab.classroom.sandbox import Interrupted, Sandbox, SandboxUnavailable, Stopped


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(seconds=2, memory=2**29, patience=10) as made:
        yield made


@pytest.fixture(scope="module")
def patient():
    with Sandbox(seconds=60) as made:
        yield made


def call(sandbox, code: str, *arguments):
    """What `f` of this code gives for these arguments, or the type of what it raises."""
    with sandbox.answer(code, "f") as child:
        reply = unpack(child.ask(pack([arguments])))
    return reply["error"]["type"] if reply["error"] and "type" in reply["error"] else reply["results"][0]


def test_an_answer_is_called_with_what_it_needs(sandbox):
    code = "import torch\ndef f(x, levels):\n    return (x[:, None] - levels).abs().argmin(1), [len(x)]"
    found, (length,) = call(sandbox, code, torch.tensor([0.1, 0.9]), torch.tensor([0.0, 1.0]))
    assert found.tolist() == [0, 1] and length == 2


@pytest.mark.parametrize(
    "body",
    [
        "torch.linalg.svd(torch.eye(3))[1].sum().item()",
        "torch.autograd.grad((w := torch.ones(3, requires_grad=True)).sum(), w)[0].sum().item()",
        "float(__import__('statistics').mean([3, 3]))",
        "float(__import__('numpy').ones(3).sum())",
        "float(__import__('decimal').Decimal(3))",
        "torch.nn.Linear(2, 3).weight.shape[0] * 1.0",
    ],
)
def test_what_answers_are_made_of_works(sandbox, body):
    assert call(sandbox, f"import torch\ndef f():\n    return {body}") == 3.0


def test_each_child_begins_anew(sandbox):
    code = "import torch\ndef f():\n    torch.seen = getattr(torch, 'seen', 0) + 1\n    return torch.seen"
    assert call(sandbox, code) == call(sandbox, code) == 1


def test_arguments_changed_in_place_are_noticed(sandbox):
    with sandbox.answer("def f(x):\n    return x.add_(1)", "f") as child:
        assert unpack(child.ask(pack([(torch.ones(2),)])))["error"] == {"kind": "changed"}


def test_files_can_be_read_where_python_lies_and_nowhere_else(sandbox, tmp_path):
    (tmp_path / "secret").write_text("x")
    tmp_path.chmod(0o755)
    read = "def f(path):\n    return len(open(path, 'rb').read())"
    assert call(sandbox, read, os.__file__) > 0
    for path in (tmp_path / "secret", sealing.__file__, "/etc/hostname", "/proc/self/environ", "/proc/1/cmdline"):
        assert call(sandbox, read, str(path)) in ("PermissionError", "FileNotFoundError")
    for body in (
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"__import__('os').remove({str(tmp_path / 'secret')!r})",
        f"__import__('os').rename({str(tmp_path / 'secret')!r}, 'x')",
        f"__import__('os').listdir({str(tmp_path)!r})",
        "open('here', 'w')",
    ):
        assert call(sandbox, f"def f():\n    return str({body})") == "PermissionError", body
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize(
    "body",
    [
        "__import__('socket').socket()",
        "__import__('socket').socketpair()",
        "__import__('os').fork()",
        "__import__('os').execv('/bin/sh', ['sh'])",
        "__import__('os').posix_spawn('/bin/sh', ['sh'], {})",
        "__import__('multiprocessing').Process(target=print).start()",
        "__import__('os').kill(__import__('os').getppid(), 9)",
        "__import__('os').memfd_create('x')",
        "__import__('os').setpriority(0, 0, 19)",
        "__import__('resource').setrlimit(7, (9999, 9999))",
        "__import__('os').chmod(__import__('os').__file__, 0o644)",
        "__import__('os').chown(__import__('os').__file__, 0, 0)",
        "__import__('os').utime(__import__('os').__file__)",
        "__import__('os').setxattr(__import__('os').__file__, 'user.x', b'y')",
        "__import__('time').clock_settime(0, 0.0)",
        "__import__('socket').sethostname('x')",
    ],
)
def test_calls_that_reach_beyond_the_process_are_refused(sandbox, body):
    assert call(sandbox, f"def f():\n    return str({body})") in ("PermissionError", "OSError", "ValueError")


def test_it_has_no_capabilities(sandbox):
    """Also where the grader is root."""
    code = "import ctypes\ndef f():\n    data = bytes(24)\n    header = (0x20080522).to_bytes(4, 'little') + bytes(4)\n"
    code += "    assert ctypes.CDLL(None).capget(header, data) == 0\n    return data == bytes(24)"
    assert call(sandbox, code) is True


def test_the_environment_holds_nothing_of_the_graders(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    with Sandbox() as fresh:
        names = call(fresh, "import os\ndef f():\n    return sorted(os.environ)")
    assert "SECRET_TOKEN" not in names and "HOME" not in names


@pytest.mark.slow
def test_limits_of_time_and_memory(sandbox):
    with pytest.raises(Stopped, match="stopped after 2 seconds of computing"):
        call(sandbox, "def f():\n    while True: pass")
    with Sandbox(seconds=1, patience=5) as fresh, pytest.raises(Stopped, match="did not finish within 5 seconds"):
        call(fresh, "import time\ndef f():\n    time.sleep(1000)")
    assert call(sandbox, "def f():\n    return len(bytes(2**28))") == 2**28
    assert call(sandbox, "def f():\n    return len(bytes(2**30))") == "MemoryError"


def test_after_a_child_died_the_next_one_lives(sandbox):
    for code, words in (
        ("import os\ndef f():\n    os._exit(3)", "ended the process"),
        ("import ctypes\ndef f():\n    ctypes.string_at(0)", "crashed Python"),
    ):
        with pytest.raises(Stopped, match=words):
            call(sandbox, code)
        assert call(sandbox, "def f():\n    return 1") == 1


def test_a_kill_by_the_system_is_not_called_a_loop(sandbox):
    """As the kernel's killer of processes does it where memory runs short."""
    with (
        pytest.raises(Interrupted, match=r"from outside \(SIGKILL\).*where memory runs short"),
        sandbox.answer("import time\ndef f():\n    time.sleep(600)", "f") as child,
    ):
        child.tell(pack([()]))
        os.kill(child.pid, signal.SIGKILL)
        child.reply()


def test_an_answer_that_was_halted_from_outside_is_no_mistake():
    with (
        Sandbox(seconds=1, patience=1) as fresh,
        pytest.raises(Interrupted, match="halted from outside"),
        fresh.answer("import time\ndef f():\n    time.sleep(600)", "f") as child,
    ):
        child.tell(pack([()]))
        os.kill(child.pid, signal.SIGSTOP)
        child.reply()


def test_on_a_busy_machine_what_computes_has_its_time_and_an_endless_loop_is_told_as_one(monkeypatch):
    """A clock that is up at once stands for processors that others have."""
    monkeypatch.setattr(sandbox_module, "BUSIEST", 1000)
    computes = "import time\ndef f():\n    while time.process_time() < {}:\n        pass\n    return 1"
    with Sandbox(seconds=2, patience=0.1) as busy:
        assert call(busy, computes.format(1)) == 1
        with pytest.raises(Stopped, match="stopped after 2 seconds of computing") as stopped:
            call(busy, computes.format(600))
        assert stopped.value.slow
        with pytest.raises(Stopped, match=r"did not finish within 0\.2 seconds") as stopped:
            call(busy, "import time\ndef f():\n    time.sleep(600)")
        assert stopped.value.slow


@pytest.mark.parametrize(
    "waits",
    [
        # It is looked at once a second, and seen to compute.
        "import time\nBEGAN = time.monotonic()\ndef f():\n    turn = 0\n    while True:\n        turn += 0.1\n"
        "        time.sleep(max(0, BEGAN + turn - time.monotonic()))\n        end = time.monotonic() + 0.01\n"
        "        while time.monotonic() < end:\n            pass",
        # The same in many threads, each for a moment.
        "import threading, time\ndef nap():\n    while True:\n        time.sleep(0.05)\n"
        "def f():\n    for _ in range(5):\n        threading.Thread(target=nap).start()\n    nap()",
    ],
    ids=["one", "many"],
)
def test_who_only_looks_busy_gets_no_more_time(monkeypatch, waits):
    """Its processor time would last for five minutes of that."""
    states = sandbox_module._states
    monkeypatch.setattr(sandbox_module, "_states", lambda pid, *one: states(pid, *one) if one else {"R"})
    if not sandbox_module._busy(os.getpid()):
        pytest.skip("this kernel does not count how long threads wait for a processor")
    with Sandbox(seconds=60, patience=0.03) as fresh, pytest.raises(Stopped, match="Does it wait") as stopped:
        call(fresh, waits)
    assert stopped.value.slow


@pytest.mark.parametrize(
    ("before", "now", "state", "computed"),
    [
        ({}, {"1": 5.0}, "S", True),  # not looked at before
        ({"1": 5.0}, {}, "R", True),  # a kernel that does not count
        ({"1": 5.0}, {"1": 5.9}, "S", True),
        ({"1": 5.0, "2": 1.0}, {"1": 5.01, "2": 1.9}, "S", True),
        ({"1": 5.0}, {"1": 5.01}, "R", False),  # it woke for this moment
        ({"1": 5.0}, {"1": 5.01, "2": 0.01}, "R", False),
        ({"1": 5.0}, {"1": 5.0}, "S", False),
        ({"1": 5.0}, {"1": 5.0}, "R", True),  # others had the processor all the time
    ],
)
def test_who_computed_is_told_from_who_slept(monkeypatch, before, now, state, computed):
    child = sandbox_module.Child(None, 1, pid=1)
    child._busy = before
    monkeypatch.setattr(sandbox_module, "_busy", lambda pid: now)
    monkeypatch.setattr(sandbox_module, "_states", lambda pid, thread: {state})
    assert child._computed({state}) is computed


def test_a_machine_without_any_time_is_not_the_answers_fault(monkeypatch):
    monkeypatch.setattr(sandbox_module, "BUSIEST", 0)
    with Sandbox(seconds=9, patience=0.01) as busy, pytest.raises(Interrupted, match="had no time for an answer"):
        call(busy, "def f():\n    while True: pass")


@pytest.mark.parametrize(
    ("status", "used", "kind", "words"),
    [
        (signal.SIGXCPU, 1.1, Stopped, "stopped after 1.5 seconds of computing"),  # a tick counts for whole
        (signal.SIGKILL, 2.0, Stopped, "stopped after 1.5 seconds of computing"),
        (signal.SIGKILL, 1.1, Interrupted, "ended from outside .SIGKILL."),
        (signal.SIGTERM, 0.1, Interrupted, "ended from outside .SIGTERM."),
        (signal.SIGUSR1, 0.1, Interrupted, "ended from outside .SIGUSR1."),
        (signal.SIGRTMIN + 1, 0.1, Interrupted, "ended from outside"),
        (signal.SIGSEGV, 0.1, Stopped, "crashed Python"),
        (signal.SIGSYS, 0.1, Stopped, "crashed Python"),
        (0, 0.1, Stopped, "ended the process"),
        (3 << 8, 0.1, Stopped, "ended the process"),
    ],
)
def test_how_a_child_ended_is_told_by_who_can_have_done_it(status, used, kind, words):
    told = sandbox_module._how_it_ended(int(status), used, 1.5)
    assert type(told) is kind and re.search(words, str(told))


def with_another_zygote(monkeypatch, tmp_path, code: str) -> Sandbox:
    """A sandbox whose process has run this code before its own."""
    program = tmp_path / "another.py"
    program.write_text(f"""
import os, runpy, sys
sys.path.append({str(sandbox_module.ZYGOTE.parent.parent)!r})
from inside import sealing, system_calls
{code}
runpy.run_path({str(sandbox_module.ZYGOTE)!r}, run_name="__main__")
""")
    monkeypatch.setattr(sandbox_module, "ZYGOTE", program)
    return Sandbox(seconds=5)


ATTACK = """
import fcntl, os, signal, struct
def f(*numbers):
    for number in numbers:
        for signal_number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1):
            try:
                os.kill(number, signal_number)
            except OSError:
                pass
            try:
                read, write = os.pipe()
            except OSError:
                read = write = 3
            for set_owner in (
                lambda: fcntl.fcntl(read, fcntl.F_SETOWN, number),
                lambda: fcntl.fcntl(read, 15, struct.pack('ii', 1, number)),
            ):
                try:
                    set_owner()
                    fcntl.fcntl(read, 10, int(signal_number))
                    fcntl.fcntl(read, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
                    os.write(write, b'x')
                except OSError:
                    pass
            if read != write:
                os.close(read), os.close(write)
    return 'done'
"""


@pytest.mark.parametrize("without", ["filters", "namespace", "landlock"])
def test_signals_reach_nobody_else_also_where_one_seal_fails(monkeypatch, tmp_path, without):
    """Nor do they with two of the three alone: filters of system calls, a namespace of processes, Landlock's scope."""
    code = {
        "filters": "system_calls.programs = lambda: []",
        "namespace": "sealing.LIBC.unshare = lambda flags: -1",
        "landlock": "sealing.SCOPES_SIGNALS = 10**6",
    }[without]
    with Sandbox(seconds=60) as other, with_another_zygote(monkeypatch, tmp_path, code) as fresh:
        assert fresh.seals["processes"] in (without != "namespace", False)
        if without == "filters" and not (fresh.seals["processes"] and fresh.seals["signals"]):
            pytest.skip("this kernel has the filters alone")
        with other.answer("def f():\n    return 1", "f") as victim:
            zygotes = [other.process.pid, fresh.process.pid]
            assert call(fresh, ATTACK, victim.pid, *zygotes, os.getpid(), 1, -1, os.getppid()) == "done"
            assert unpack(victim.ask(pack([()])))["results"] == [1]
        assert call(fresh, "def f():\n    return 1") == call(other, "def f():\n    return 1") == 1


def test_a_kernel_without_namespaces_is_told_and_held_by_the_rest(monkeypatch, tmp_path):
    with with_another_zygote(monkeypatch, tmp_path, "sealing.LIBC.unshare = lambda flags: -1") as fresh:
        assert not fresh.seals["network"] and not fresh.seals["processes"]
        assert call(fresh, "def f():\n    return 1") == 1
        assert call(fresh, "import os\ndef f():\n    os.kill(os.getppid(), 9)") == "PermissionError"
        with pytest.raises(Stopped, match="ended the process"):
            call(fresh, "import os\ndef f():\n    os._exit(3)")
        assert call(fresh, "def f():\n    return 1") == 1


def test_a_child_sees_its_parent_and_itself(sandbox):
    if not sandbox.seals["processes"]:
        pytest.skip("this kernel gives no namespace of processes")
    found = call(sandbox, "import os\ndef f():\n    return [os.getpid(), os.getppid()]")
    assert found[1] == 1 and found[0] < 1000


def test_a_child_leaves_nothing_to_the_next(sandbox):
    """It is forked from a process in which no answer ever ran, and shares no memory, file or handler with it."""
    look = """
import builtins, gc, json, os, signal, sys, threading, torch
def f():
    state = [sorted(vars(module)) for module in (builtins, json, os, torch)]
    handlers = [repr(signal.getsignal(n)) for n in sorted(signal.valid_signals())]
    counts = [gc.isenabled(), sys.getrecursionlimit(), threading.active_count(), torch.get_num_threads()]
    values = [torch.randn(3).tolist(), str(torch.get_default_dtype()), len(sys.path), len(os.environ)]
    return [state, handlers, counts, values, json.dumps([1]), torch.equal(torch.ones(1), torch.ones(1))]
"""
    before = call(sandbox, look)
    leave = HOSTILE["leaves-something-for-the-next"][1].replace("def decode(code, low, high)", "def f()")
    with contextlib.suppress(Stopped):
        call(sandbox, leave)
    assert call(sandbox, look) == before
    with sandbox.answer("def f():\n    return 1", "f") as child:
        maps = Path(f"/proc/{child.pid}/maps").read_text().splitlines()
        assert len(maps) > 100 and not [
            line for line in maps if line.split()[1][1] == "w" and line.split()[1][3] == "s"
        ]
        files = {os.readlink(path) for path in Path(f"/proc/{child.pid}/fd").iterdir()}
        assert {name.partition(":")[0] for name in files} == {"/dev/null", "socket"} and len(files) == 2


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("class L(list):\n    def __iter__(self):\n        raise OSError\ndef f():\n    return L()", "OSError"),
        ("def f():\n    return 'x' * (4 * 10**8)", "MemoryError"),
    ],
)
def test_a_result_that_cannot_be_sent_is_told_as_such(sandbox, code, name):
    with sandbox.answer(code, "f") as child:
        assert unpack(child.ask(pack([()])))["error"] == {"kind": "unsendable", "type": name}


def test_a_result_that_is_too_large_is_not_read(sandbox):
    with pytest.raises(Stopped, match="too large: more than 4 MiB"):
        call(sandbox, "def f():\n    return 'x' * 5_000_000")
    found = sandbox.find_answers(["def f():\n    return " + repr("x" * 5_000_000)], ["f"])
    assert found["f"]["status"] == "answer" and len(found["f"]["code"]) > 5_000_000


def test_where_the_system_refuses_a_process_the_sandbox_says_so_and_lives(tmp_path, monkeypatch):
    program = tmp_path / "refused.py"
    program.write_text(f"""
import errno, os, runpy, sys
start = os.fork
def fork():
    if "torch" not in sys.modules:  # the sandbox itself, on its way into a namespace
        return start()
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
os.fork = fork
runpy.run_path({str(sandbox_module.ZYGOTE)!r}, run_name="__main__")
""")
    monkeypatch.setattr(sandbox_module, "ZYGOTE", program)
    with Sandbox() as fresh:
        for _ in range(2):
            with pytest.raises(SandboxUnavailable, match="starts no more processes"):
                call(fresh, "def f():\n    return 1")
        assert fresh.process.poll() is None


@pytest.mark.slow
def test_threads_are_counted_and_limited():
    """As a user that is not root, whose threads Linux does not limit."""
    code = """if True:
        import os, resource, sys, threading
        from qlora_lab.classroom.inside import sealing
        if os.getuid() == 0:
            os.setresuid(sealing.NOBODY, sealing.NOBODY, sealing.NOBODY)
        before, end = sealing.tasks_of(os.getuid()), threading.Event()
        started = []
        def start(count):
            try:
                while len(started) < count:
                    started.append(threading.Thread(target=end.wait))
                    started[-1].start()
            except RuntimeError:
                started.pop()
        start(5)
        print(sealing.tasks_of(os.getuid()) - before)
        sealing.limit_threads(before)
        start(2 * sealing.THREADS)
        print(len(started))
        end.set()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    counted, started = map(int, done.stdout.split())
    # Not to the thread: the user may have other processes, which start and end some meanwhile.
    assert 0 < counted < 100 and sealing.THREADS / 2 < started < sealing.THREADS * 1.5, done.stderr


def test_no_process_is_left(sandbox):
    fresh = Sandbox()
    with fresh.answer("def f():\n    return 1", "f") as child:
        pid = child.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    fresh.close()
    assert fresh.process.poll() is not None


@pytest.mark.slow
def test_if_the_grader_dies_so_do_its_children():
    code = (
        "import sys; from qlora_lab.classroom.sandbox import *; s = Sandbox(600);"
        "t = s.answer('import time\\ntime.sleep(600)', 'f'); c = t.__enter__();"
        "print(s.process.pid, c.pid, flush=True); sys.stdin.read()"
    )
    grader = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in grader.stdout.readline().split()]
    assert len(pids) == 2
    grader.send_signal(signal.SIGKILL)
    grader.wait()
    for _ in range(300):
        if not any(alive(pid) for pid in pids):
            return
        time.sleep(0.1)
    raise AssertionError("still running")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_another_system_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="only be graded on Linux"):
        Sandbox()


def test_without_landlock_and_root_it_is_refused(monkeypatch):
    monkeypatch.setattr("qlora_lab.classroom.sandbox.Child.reply", lambda self: b'{"landlock": false, "nobody": false}')
    with pytest.raises(SandboxUnavailable, match=r"Linux 5\.13"):
        Sandbox()


@pytest.mark.parametrize("name", HONEST)
def test_honest_answers_work(patient, name):
    assert call(patient, HONEST[name]) is True
