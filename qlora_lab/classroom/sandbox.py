"""Run untrusted code in sealed child processes, from outside: `inside/` is what happens in them.

A child gets arguments and gives results, as bytes that are safe to read. Whether a result is right is decided here, by
a process in which no line of an answer ever runs. A child that goes on for too long is killed.
"""

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

from qlora_lab.classroom.inside.zygote import FRAME, STATUS
from qlora_lab.machine.errors import UserFacingError

ZYGOTE = Path(__file__).parent / "inside" / "zygote.py"
SECONDS = 10.0  # of processor time, for all calls of one answer
PATIENCE = 6  # times as long by the clock, and longer while it computes: a busy machine must not cost a student points
USED = 0.2  # of each second beyond these, at least, it must have run or waited for a processor
BUSIEST = 10  # times as long as that, until it is the machine that is to blame
MEMORY = 2**30  # bytes
LARGEST_REPLY = 2**22  # bytes of results; right ones of the largest exercise take 2**17
# What an answer can do to itself. It can send no signals, and its limits of time end it with SIGXCPU and SIGKILL.
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS}
LARGEST_FOUND = 2**26  # bytes of the answers found in a notebook: text alone


class SandboxUnavailable(UserFacingError, RuntimeError):
    """This system cannot contain untrusted code. The message says what is missing."""


class Interrupted(SandboxUnavailable):
    """Something outside ended a child, or left it no time. That says nothing of the answer, which may be run again."""


class Stopped(Exception):
    """A child ended or was stopped before it answered. The message is for the student.

    Attributes:
        slow: whether it ran out of time.
    """

    def __init__(self, message: str, slow: bool = False):
        super().__init__(message)
        self.slow = slow


class Ended(Exception):
    """A child's end of its socket is closed. Why, `_Task` finds out."""


class Child:
    """A sealed child that has one task. Made by `Sandbox.child`.

    Args:
        pid: its process id, where it is known.
    """

    def __init__(self, connection: socket.socket, seconds: float, pid: int | None = None):
        self.connection, self.seconds, self.pid = connection, seconds, pid
        self.began = time.monotonic()
        self.deadline = self.began + seconds
        self._busy: dict[str, float] = {}

    def ask(self, data: bytes) -> bytes:
        """Send bytes, return the reply.

        Raises:
            Stopped: no reply in time, or one that is too large.
            Ended: no reply. Around a task of the sandbox's, `Stopped` or `Interrupted` becomes of it.
            Interrupted: something outside holds it up.
        """
        self.tell(data)
        return self.reply()

    def tell(self, data: bytes) -> None:
        """Send bytes."""
        left = memoryview(FRAME.pack(len(data)) + data)
        while left:
            left = left[self._in_time(self.connection.send, left) :]

    def reply(self, largest: int = LARGEST_REPLY) -> bytes:
        """The next bytes that it sends, `largest` at most. Raises what `ask` does."""
        (size,) = FRAME.unpack(self._read(FRAME.size))
        if size > largest:
            raise Stopped(f"Its result is too large: more than {largest >> 20} MiB.")
        return self._read(size)

    def _read(self, size: int) -> bytes:
        parts, missing = [], size
        while missing:
            part = self._in_time(self.connection.recv, min(missing, 1 << 20))
            if not part:
                raise Ended
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _in_time(self, act: Callable[[Any], Any], argument: Any) -> Any:
        """What an action on the connection gives, in the time that is left."""
        while True:
            try:
                left = self.deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self.connection.settimeout(left)
                return act(argument)
            except (BrokenPipeError, ConnectionResetError):
                raise Ended from None
            except TimeoutError:
                self._extend()

    def _extend(self) -> None:
        """Give it another second if it is not sealed yet, or would compute if others left it a processor."""
        states = _states(self.pid) if self.pid else {"R"}
        if "T" in states:
            raise Interrupted("the answer's process was halted from outside")
        if not states & {"R", "D", "t"} or not self._computed(states):
            raise Stopped(f"It did not finish within {self.seconds:g} seconds. Does it wait for something?", slow=True)
        if time.monotonic() > self.began + BUSIEST * self.seconds:
            raise Interrupted(f"the processors had no time for an answer in {BUSIEST * self.seconds:g} seconds")
        self.deadline = time.monotonic() + 1

    def _computed(self, states: set[str]) -> bool:
        """Whether it has used the second that it was given last: an answer may know when it is looked at.

        Waiting is counted when it ends. So a thread that would run, and did not in all that time, waits.
        """
        before, self._busy = self._busy, _busy(self.pid) if self.pid else {}
        if states & {"D", "t"} or not before or not self._busy:
            return True
        used = {thread: now - before.get(thread, 0.0) for thread, now in self._busy.items()}
        return max(used.values()) > USED or any(used[t] == 0 and "R" in _states(self.pid, t) for t in used)


def _busy(pid: int) -> dict[str, float]:
    """For each thread of a process the seconds in which it ran or waited for a processor, where these are counted."""
    seconds = {}
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            ran, waited = path.read_text().split()[:2]
            seconds[path.parent.name] = (int(ran) + int(waited)) / 1e9
    return seconds


def _states(pid: int, thread: str = "*") -> set[str]:
    """What the threads of a process are doing, or one of them, in letters of /proc.

    R runs or waits for a processor, D waits for a disk, t for who traces it; T was halted by a signal.
    """
    states = set()
    for path in Path(f"/proc/{pid}/task").glob(f"{thread}/stat"):
        with contextlib.suppress(OSError, IndexError):  # it has ended meanwhile
            states.add(path.read_text(errors="replace").rpartition(")")[2].split()[0])
    return states


class Sandbox:
    """One process with torch in memory that forks sealed children, one at a time.

    Args:
        seconds: of processor time for one child. By the clock it may take `patience` times as long.
        memory: bytes that a child may take beyond what torch has taken already.

    Attributes:
        seals: {"network", "processes", "landlock", "signals", "nobody"}: which of the seals that depend on the system
            hold. network, processes: a namespace of its own. landlock: for files; signals: for these, too.

    Raises:
        SandboxUnavailable: this system cannot contain untrusted code.
    """

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY, patience: float = PATIENCE):
        self.seconds, self.memory, self.patience = seconds, memory, patience
        if sys.platform != "linux":
            raise SandboxUnavailable(
                "answers can only be graded on Linux, whose kernel contains what students' code does; on another "
                "system use a virtual machine, a container or WSL 2 (the teacher's guide says how)"
            )
        self.folder = tempfile.TemporaryDirectory(prefix="qlora-lab-sandbox-")
        os.chmod(self.folder.name, 0o755)
        self.control, theirs = socket.socketpair()
        paths = sorted({str(Path(module.__file__).parent.parent) for module in (torch, numpy)})
        environment = {"PATH": os.defpath, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LANG": "C.UTF-8"}
        environment["TORCHDYNAMO_DISABLE"] = "1"  # `torch.compile` changes nothing: a compiler is a program
        with open(Path(self.folder.name) / "errors", "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-I", str(ZYGOTE), str(theirs.fileno()), json.dumps({"paths": paths})],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=self.folder.name,
                env=environment,
                start_new_session=True,
            )
        theirs.close()
        try:
            self.seals = json.loads(Child(self.control, 120).reply())
        except (Stopped, Ended):
            problem = (Path(self.folder.name) / "errors").read_text(errors="replace").strip().splitlines()[-1:]
            self.close()
            raise SandboxUnavailable(f"the sandbox did not start ({' '.join(problem) or 'no reason given'})") from None
        self.control.settimeout(60)
        if "problem" in self.seals:
            self.close()
            raise SandboxUnavailable(self.seals["problem"])
        if not self.seals["landlock"] and not self.seals["nobody"]:
            self.close()
            raise SandboxUnavailable(
                "nothing here keeps students' code from reading your files: that needs a kernel with Landlock "
                "(Linux 5.13 or newer), or to be started as root"
            )

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the process and what it forked."""
        self.control.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.folder.cleanup()

    def find_answers(self, cells: list[str], names: list[str]) -> dict[str, dict]:
        """As `inside.answers.find_answers`, in a child: parsing hostile code may crash Python.

        Raises:
            Stopped: it did.
        """
        with self._child({"do": "find", "cells": cells, "names": names}) as child:
            return json.loads(child.reply(LARGEST_FOUND))

    def answer(self, code: str, name: str) -> "_Task":
        """A context whose value calls an answer: `ask(packed cases)` gives bytes to unpack.

        Args:
            code: defines the answer, as `find_answers` found it.
            name: of the function.
        """
        return self._child({"do": "call", "code": code, "name": name})

    def _child(self, task: dict) -> "_Task":
        return _Task(self, task | {"seconds": math.ceil(self.seconds), "memory": self.memory})


class _Task:
    """From the fork of a child to its end, whose manner goes into the message of `Stopped`."""

    def __init__(self, sandbox: Sandbox, task: dict):
        self.sandbox, self.task = sandbox, task

    def __enter__(self) -> Child:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self.sandbox.control, [b"F"], [theirs.fileno()])
            error, _ = self._status()
            if error:
                raise SandboxUnavailable(f"the system starts no more processes ({os.strerror(error)})")
        except BaseException:
            ours.close()
            raise
        self.child = Child(ours, self.sandbox.seconds * self.sandbox.patience)
        try:
            state, _, number = self.child.ask(json.dumps(self.task).encode()).partition(b" ")
        except BaseException as problem:
            self._finish(problem)
            raise
        if state != b"sealed":
            self._end(b"K")
            raise SandboxUnavailable(f"{state} {number}".decode(errors="replace"))
        self.child.pid = int(number)
        return self.child

    def __exit__(self, kind, error, _traceback) -> None:
        self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        """Whatever happened, the child is no more afterwards. Where it ended by itself, this says how."""
        if not isinstance(error, Ended):
            self._end(b"K")
            return
        raise _how_it_ended(*self._end(b"W"), self.sandbox.seconds) from None

    def _end(self, manner: bytes) -> tuple[int, float]:
        """End the child, see `inside.zygote`; how it ended, and the seconds of processor time that it took."""
        self.child.connection.close()
        self.sandbox.control.sendall(manner)
        return self._status()

    def _status(self) -> tuple[int, float]:
        data = b""
        while len(data) < STATUS.size:
            part = self.sandbox.control.recv(STATUS.size - len(data))
            if not part:
                raise SandboxUnavailable("the sandbox ended unexpectedly")
            data += part
        return STATUS.unpack(data)


def _how_it_ended(status: int, used: float, seconds: float) -> Stopped | Interrupted:
    """used: seconds of processor time, by which the limit's SIGKILL is told from that of somebody else."""
    if not os.WIFSIGNALED(status):
        return Stopped("It ended the process it ran in, so there is nothing to compare. Return the result instead.")
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU or (number == signal.SIGKILL and used >= 0.9 * math.ceil(seconds)):
        return Stopped(
            f"It was stopped after {seconds:g} seconds of computing. Is there a loop without an end?", slow=True
        )
    if number in CRASHES:
        return Stopped("It crashed Python. Does it call itself without an end, or use memory that is not its own?")
    name = {known.value: known.name for known in signal.Signals}.get(number, f"signal {number}")
    return Interrupted(
        f"the answer's process was ended from outside ({name}), as the system does it where memory runs short"
    )
