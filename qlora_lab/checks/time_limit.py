"""A limit of time for an answer: a loop without an end must not hang the cell.

Another thread sets an exception for the one that computes, which works on Linux, macOS and Windows and outside the main
thread, and leaves signals as they are: Ctrl-C works as ever. It is no `Exception`, and since `except:` catches it all
the same, making one sets the next: that one is raised where Python looks the next time, which is in the loop around the
`except` at the latest. So each loop is left in turn. (Python 3.12 takes that place for one within `try`; from there on
each line of the answer raises it, too.) One call into C that does not come back (`time.sleep`,
`sum(itertools.count())`) cannot be cut short.
"""

import ctypes
import functools
import sys
import threading
import time
from collections.abc import Callable

_set_exception = ctypes.pythonapi["PyThreadState_SetAsyncExc"]  # by [], a function of our own
_set_exception.restype = None
_TOOL = 4  # of the numbers that `sys.monitoring` has for tools, one that it gives no meaning


class TimeUp(BaseException):
    """A call took longer than it may."""


def _is_debugged(thread: int) -> bool:
    """Whether a debugger waits for a command there, or has just had one."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_globals.get("__name__") in ("bdb", "pdb"):
            return True
        frame = frame.f_back
    return False


def _raise_in_lines(thread: int, exception: type[BaseException]) -> list:
    """From now on, each line raises it of the functions that are running there. From Python 3.12 on.

    Returns:
        the code of these functions.
    """
    if sys.version_info < (3, 12) or sys.monitoring.get_tool(_TOOL) is not None:
        return []

    def on_line(*_):
        if threading.get_ident() == thread:
            raise exception

    sys.monitoring.use_tool_id(_TOOL, "qlora_lab")
    sys.monitoring.register_callback(_TOOL, sys.monitoring.events.LINE, on_line)
    frame, codes = sys._current_frames().get(thread), []
    while frame is not None and frame.f_code.co_filename != __file__:
        codes.append(frame.f_code)
        frame = frame.f_back
    for code in codes if frame is not None else ():
        sys.monitoring.set_local_events(_TOOL, code, sys.monitoring.events.LINE)
    return codes


def _stop_in_lines(codes: list) -> None:
    for code in codes:
        sys.monitoring.set_local_events(_TOOL, code, 0)
    if sys.version_info >= (3, 12) and sys.monitoring.get_tool(_TOOL) == "qlora_lab":
        sys.monitoring.free_tool_id(_TOOL)


def _wait(lock: threading.Lock) -> None:
    """Until it is free. Does not take it, so that one may be stopped here and wait once more."""
    while lock.locked():
        time.sleep(0.0002)


class TimeLimit:
    """Seconds for several calls together.

    Args:
        seconds: of all calls.
    """

    def __init__(self, seconds: float):
        self.left = seconds

    def call(self, function: Callable, *arguments):
        """What `function` gives.

        Raises:
            TimeUp: it took longer than what was left.
        """

        class Now(TimeUp):
            """Of this call."""

        thread, fired, codes, begun = ctypes.c_ulong(threading.get_ident()), [], [], time.monotonic()
        # Locks, since what one does is one step: no exception comes between two, as it would in an Event's or in join.
        running, watching = threading.Lock(), threading.Lock()
        running.acquire()
        watching.acquire()
        # In C from end to end: in a function of Python's, the exception would be raised within itself.
        again = functools.partial(_set_exception, thread, ctypes.py_object(Now))

        def watch() -> None:
            while not running.acquire(timeout=self.left):
                if not _is_debugged(thread.value):  # who reads a variable's value may take a while
                    fired.append(True)
                    Now.__init__ = staticmethod(again)
                    again()
                    if not running.acquire(timeout=1):
                        codes.extend(_raise_in_lines(thread.value, Now))
                    break
            watching.release()

        watcher = threading.Thread(target=watch, daemon=True)
        result = problem = None
        try:
            try:
                try:
                    try:
                        watcher.start()  # here, since the time may be up before it returns
                    except RuntimeError:  # no threads, as in a browser: no limit
                        watching.release()
                    result = function(*arguments)
                finally:
                    running.release()
                    _wait(watching)
            except BaseException as error:
                Now.__init__ = BaseException.__init__  # sets no further one; but one is set already ...
                problem = error
            _wait(watching)
        except TimeUp:  # ... and arrives here
            pass
        try:
            if running.locked():
                running.release()
            _wait(watching)
        except TimeUp:  # from one of their lines
            pass
        _stop_in_lines(codes)
        self.left = max(0.0, self.left - (time.monotonic() - begun))
        try:
            if fired:
                raise TimeUp
            if problem is not None:
                raise problem
            return result
        finally:
            problem = None  # it has this frame in its traceback
