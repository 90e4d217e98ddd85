"""No loop keeps a call from ending, whatever it catches, and what is fast is left alone."""

import signal
import sys
import threading
import time

import pytest

from qlora_lab.checks import exercise, verdict
from qlora_lab.checks.time_limit import TimeLimit, TimeUp


def plain():
    while True:
        pass


def with_bare_except():
    while True:
        try:
            while True:
                pass
        except:  # noqa: E722
            pass


def with_excepts_in_each_other():
    while True:
        try:
            while True:
                try:
                    while True:
                        sum(range(10))
                except BaseException:
                    continue
                finally:
                    sum(range(3))
        except:  # noqa: E722
            pass


def waiting_a_little_each_time():
    while True:
        try:  # noqa: SIM105
            time.sleep(0.001)
        except BaseException:
            pass


def in_a_generator():
    def numbers():
        while True:
            try:  # noqa: SIM105
                yield 1
            except BaseException:
                pass

    return sum(numbers())


def answering_in_the_end():
    try:
        while True:
            pass
    except:  # noqa: E722
        return 3


ENDLESS = [plain, with_bare_except, with_excepts_in_each_other, waiting_a_little_each_time, in_a_generator]


@pytest.mark.parametrize("function", [*ENDLESS, answering_in_the_end])
def test_every_loop_ends(function):
    for _ in range(3):
        with pytest.raises(TimeUp):
            TimeLimit(0.02).call(function)


def test_outside_the_main_thread():
    found = []

    def run():
        try:
            TimeLimit(0.02).call(with_bare_except)
        except TimeUp:
            found.append("up")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == ["up"]


@pytest.fixture
def heeds_interrupts():
    """Python's own handler, which a process that a shell started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_results_errors_and_interrupts_pass_through(heeds_interrupts):
    def interrupted():
        signal.raise_signal(signal.SIGINT)
        plain()

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert TimeLimit(60).call(divmod, 7, 2) == (3, 1)
    for function, error in (
        (lambda: 1 / 0, ZeroDivisionError),
        (sys.exit, SystemExit),
        (interrupted, KeyboardInterrupt),
    ):
        with pytest.raises(error):
            TimeLimit(60).call(function)
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_one_that_ends_just_when_its_time_is_up_leaves_nothing_behind():
    """Whichever comes first, and nothing arrives later, here or in another thread."""
    ups = 0
    for _ in range(300):
        try:
            assert TimeLimit(0.001).call(lambda: sum(n for n in range(20_000))) == 199_990_000
        except TimeUp:
            ups += 1
    assert sum(n for n in range(100_000)) == 4_999_950_000 and 0 <= ups <= 300


def test_an_answer_without_an_end_is_told(monkeypatch):
    monkeypatch.setattr(exercise, "SECONDS", 0.05)
    found = verdict("evict", lambda last_used, due: plain())
    assert found.status == "wrong" and "did not come to an end within 0.05 seconds" in found.message


def test_without_threads_there_is_no_limit(monkeypatch):
    def none(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    assert TimeLimit(60).call(divmod, 7, 2) == (3, 1)
