"""The process that forks sealed children: it has torch in memory and knows no secret.

Started as `python -I zygote.py CONTROL SETTINGS`. For each `F` with a socket that comes over the control socket it
forks a child that talks over that socket alone, and tells 0, or where the system refuses a new process the number of
the error. On `K` it kills the child and on `W` it waits for its end, and tells how it ended. What the child is asked,
and what it answers, does not pass through here.
"""

import gc
import json
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # loaded as a program, from its path, with nothing of the package importable
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    import inside.sealing as sealing  # the package's parent folder is not on the path

    ISOLATED = sealing.isolate()  # before torch: a process with threads gets no namespace for itself
    SETTINGS = json.loads(sys.argv[2])
    sys.path += SETTINGS["paths"]
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    from inside import answers, masking, running, system_calls, values

    del sys.path[-1 - len(SETTINGS["paths"])]

FRAME = struct.Struct("<Q")
STATUS = struct.Struct("<id")  # an error's number, or how it ended; seconds of processor time that it took
GRACE = 5.0  # seconds in which a process that has let go of its socket comes to its end
PACKAGES = ["torch", "numpy", "sympy", "mpmath", "networkx", "typing_extensions", "jinja2", "markupsafe", "fsspec"]


def main() -> None:
    """Serve until the grader closes the control socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        ruleset = sealing.file_rules(sealing.readable_paths(PACKAGES))
        programs = system_calls.programs()
    except (sealing.Unsealed, ValueError, OSError) as error:
        _send(control, json.dumps({"problem": str(error)}).encode())
        return
    drop = os.geteuid() == 0 and all(sealing.readable_by_all(Path(module.__file__).parent) for module in (torch, os))
    version = sealing.landlock_version()
    seals = {**ISOLATED, "landlock": ruleset is not None, "signals": version >= sealing.SCOPES_SIGNALS, "nobody": drop}
    masking.install()
    _warm_up()
    gc.collect()
    gc.freeze()
    _send(control, json.dumps(seals).encode())
    child, tasks, counted = 0, 0, -1.0
    while True:
        message, handles, *_ = socket.recv_fds(control, 1, 1)
        if message == b"F":
            if time.monotonic() - counted > 1:  # reading all of /proc takes longer than a fork
                tasks, counted = sealing.tasks_of(sealing.NOBODY if drop else os.getuid()), time.monotonic()
            try:
                child = os.fork()
            except OSError as error:  # no memory or no process left, perhaps only for now
                child, told = 0, error.errno
            else:
                told = 0
                if child == 0:
                    _child(socket.socket(fileno=handles[0]), (ruleset, programs, drop, tasks))
            os.close(handles[0])
            control.sendall(STATUS.pack(told, 0.0))
        elif message in (b"K", b"W"):
            control.sendall(STATUS.pack(*_end(child, GRACE if message == b"W" else 0.0)))
            child = 0
        else:
            if child:
                os.kill(child, signal.SIGKILL)
            return


def _end(child: int, patience: float) -> tuple[int, float]:
    """How a child ended, and the seconds of processor time that it took.

    It is given so many seconds to come to its end. Then it is killed: if it had let go of its socket and gone on, this
    counts as an end of its own, by `exit`.
    """
    until = time.monotonic() + patience
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if not ended and time.monotonic() >= until:
            os.kill(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            status, ended = 0, child
        if ended:
            return status, used.ru_utime + used.ru_stime
        time.sleep(0.002)


def _warm_up() -> None:
    """Let torch load what it loads on first use, so that children find it in memory."""
    tempfile.tempdir = "/tmp"  # much of torch asks for its name on import. Nothing can be read or written there
    x = torch.randn(4, 4, requires_grad=True)
    torch.linalg.svd(x)[1].sum().backward()
    torch.nn.functional.cross_entropy(x, torch.tensor([0, 1, 2, 3]))
    torch.special.ndtri(torch.rand(3, dtype=torch.float64))
    values.unpack(values.pack([x.detach()]))


def _send(connection: socket.socket, data: bytes) -> None:
    connection.sendall(FRAME.pack(len(data)) + data)


def _receive(connection: socket.socket) -> bytes:
    data = b""
    size = None
    while size is None or len(data) < size:
        part = connection.recv(1 << 20 if size is None else min(1 << 20, size - len(data)))
        if not part:
            os._exit(0)
        data += part
        if size is None and len(data) >= FRAME.size:
            (size,), data = FRAME.unpack_from(data), data[FRAME.size :]
    return data


def _child(connection: socket.socket, seals: tuple) -> None:
    """All that a child does, from its fork to its end. Whatever an answer does, it never returns to the loop above."""
    try:
        task = json.loads(_receive(connection))
        _close_all_but(connection.fileno(), seals[0])
        number = os.readlink(b"/proc/self")  # as those count who mounted /proc: the grader, not the namespace
        try:
            sealing.seal(*seals, task["seconds"], task["memory"])
        except (sealing.Unsealed, OSError, ValueError) as error:
            _send(connection, f"not sealed: {error}".encode())
        else:
            _send(connection, b"sealed " + number)
            if task["do"] == "find":
                _send(connection, json.dumps(answers.find_answers(task["cells"], task["names"])).encode())
            else:
                _answer(connection, running.DefinedAnswer(task["code"], task["name"]))
    finally:
        os._exit(0)


def _close_all_but(*kept: int | None) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    low = 3
    for handle in sorted(k for k in kept if k is not None):
        os.closerange(low, handle)
        low = handle + 1
    os.closerange(low, 1 << 16)


def _answer(connection: socket.socket, answer) -> None:
    """Call the answer with each list of cases that comes, and send back what it gave."""
    while True:
        _send(connection, answer.reply(_receive(connection)))


if __name__ == "__main__":
    main()
