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
from pathlib import Path

import numpy
import torch

from qlora_lab.classroom.inside.zygote import FRAME, STATUS
from qlora_lab.machine.errors import UserFacingError

ZYGOTE = Path(__file__).parent / "inside" / "zygote.py"
SECONDS = 10.0  # of processor time, for all calls of one answer
PATIENCE = 6  # times as long by the clock: a busy machine must not cost a student points
MEMORY = 2**30  # bytes
LARGEST_REPLY = 2**22  # bytes of results; right ones of the largest exercise take 2**17
LARGEST_FOUND = 2**26  # bytes of the answers found in a notebook: text alone


class SandboxUnavailable(UserFacingError, RuntimeError):
    """This system cannot contain untrusted code. The message says what is missing."""


class Stopped(Exception):
    """A child ended or was stopped before it answered. The message is for the student."""


class Child:
    """A sealed child that has one task. Made by `Sandbox.child`."""

    def __init__(self, connection: socket.socket, pid: int, seconds: float):
        self.connection, self.pid, self.seconds = connection, pid, seconds
        self.deadline = time.monotonic() + seconds

    def ask(self, data: bytes) -> bytes:
        """Send bytes, return the reply.

        Raises:
            Stopped: no reply, or one that is too large.
        """
        self.tell(data)
        return self.reply()

    def tell(self, data: bytes) -> None:
        """Send bytes."""
        try:
            self._wait()
            self.connection.sendall(FRAME.pack(len(data)) + data)
        except (BrokenPipeError, ConnectionResetError):
            raise Stopped("ended") from None
        except TimeoutError:
            raise Stopped(self._too_slow()) from None

    def reply(self, largest: int = LARGEST_REPLY) -> bytes:
        """The next bytes that it sends.

        Raises:
            Stopped: none came, or more than `largest`.
        """
        (size,) = FRAME.unpack(self._read(FRAME.size))
        if size > largest:
            raise Stopped(f"Its result is too large: more than {largest >> 20} MiB.")
        return self._read(size)

    def _read(self, size: int) -> bytes:
        parts, missing = [], size
        while missing:
            try:
                self._wait()
                part = self.connection.recv(min(missing, 1 << 20))
            except TimeoutError:
                raise Stopped(self._too_slow()) from None
            except ConnectionResetError:
                part = b""
            if not part:
                raise Stopped("ended")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _wait(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)

    def _too_slow(self) -> str:
        return f"It did not finish within {self.seconds:g} seconds. Does it wait for something?"


class Sandbox:
    """One process with torch in memory that forks sealed children, one at a time.

    Args:
        seconds: of processor time for one child. By the clock it may take `patience` times as long.
        memory: bytes that a child may take beyond what torch has taken already.

    Attributes:
        seals: {"network", "landlock", "nobody"}: which of the seals that depend on the system hold.

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
            self.seals = json.loads(Child(self.control, self.process.pid, 120).reply())
        except Stopped:
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
            pid, _ = self._status()
            if pid < 0:
                raise SandboxUnavailable(f"the system starts no more processes ({os.strerror(-pid)})")
        except BaseException:
            ours.close()
            raise
        self.child = Child(ours, pid, self.sandbox.seconds * self.sandbox.patience)
        try:
            state = self.child.ask(json.dumps(self.task).encode())
        except Stopped:
            raise Stopped(_how_it_ended(*self._end(), self.sandbox.seconds)) from None
        if state != b"sealed":
            self._end()
            raise SandboxUnavailable(state.decode(errors="replace"))
        return self.child

    def __exit__(self, kind, error, _traceback) -> None:
        status, used = self._end()
        if isinstance(error, Stopped) and str(error) == "ended":
            raise Stopped(_how_it_ended(status, used, self.sandbox.seconds)) from None

    def _end(self) -> tuple[int, float]:
        """Kill the child if it still runs; how it ended, and the seconds of processor time that it took.

        Its number is its own until it is waited for.
        """
        self.child.connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child.pid, signal.SIGKILL)
        self.sandbox.control.sendall(b"R")
        return self._status()

    def _status(self) -> tuple[int, float]:
        data = b""
        while len(data) < STATUS.size:
            part = self.sandbox.control.recv(STATUS.size - len(data))
            if not part:
                raise SandboxUnavailable("the sandbox ended unexpectedly")
            data += part
        return STATUS.unpack(data)


def _how_it_ended(status: int, used: float, seconds: float) -> str:
    """For the student. used: seconds of processor time, by which the limit's SIGKILL is told from the system's."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL and used < 0.9 * math.ceil(seconds):
            return (
                "The system ended it before it gave a result, as it does where memory runs short. It may need too much "
                "memory, or the machine had too little; it is tried again whenever it is graded."
            )
        if number in (signal.SIGXCPU, signal.SIGKILL):
            return f"It was stopped after {seconds:g} seconds of computing. Is there a loop without an end?"
        if number == signal.SIGSEGV:
            return "It crashed Python. Does it call itself without an end, or use memory that is not its own?"
        return f"It was ended by the system ({signal.Signals(number).name})."
    return "It ended the process it ran in, so there is nothing to compare. Return the result instead."
