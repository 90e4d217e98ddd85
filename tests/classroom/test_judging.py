"""Verdicts are kept for as long as they hold, and a sandbox that dies takes no answer with it."""

import os
import shutil
import signal
import sqlite3
import sys

import pytest

from qlora_lab.classroom import hidden_tests
from qlora_lab.classroom.course import Course
from qlora_lab.classroom.judging import Judge, Unjudged
from qlora_lab.classroom.sandbox import Child, Sandbox, SandboxUnavailable, Stopped

RIGHT = "def decode(code, low, high):\n    return low + (high - low) * code / 15"
LARGE = "def decode(code, low, high):\n    x = bytes(3 * 10**8)\n    return low + (high - low) * code / 15"
SWALLOWED = (
    "def decode(code, low, high):\n    try:\n        x = bytes(3 * 10**8)\n    except MemoryError:\n"
    "        return None\n    return low + (high - low) * code / 15"
)
SLOW = (
    "import time\ndef decode(code, low, high):\n    while time.process_time() < 1.5:\n        pass\n"
    "    return low + (high - low) * code / 15"
)


@pytest.fixture
def own_course(course, tmp_path):
    """A copy in which nothing was judged."""
    shutil.copytree(course.folder, tmp_path / "course")
    return Course(tmp_path / "course")


def verdict(judge: Judge, code: str):
    return judge.verdict("decode", {"status": "answer", "code": code})


@pytest.mark.parametrize(
    ("code", "low", "high"),
    [
        (LARGE, {"memory": 2**27}, {"memory": 2**30}),
        (SWALLOWED, {"memory": 2**27}, {"memory": 2**30}),
        (SLOW, {"seconds": 1}, {"seconds": 10}),
    ],
    ids=["memory", "swallowed", "seconds"],
)
def test_what_was_wrong_for_want_of_something_is_right_with_more_of_it(own_course, code, low, high):
    with Judge(own_course, **low) as judge:
        assert verdict(judge, code).status == "wrong"
    with Judge(own_course, **high) as judge:
        assert verdict(judge, code).status == "right"


def test_what_is_kept_is_not_run_again(own_course):
    wrong = RIGHT.replace("15", "16")
    with Judge(own_course, seconds=5) as judge:
        assert [verdict(judge, code).status for code in (RIGHT, wrong)] == ["right", "wrong"]
    with sqlite3.connect(own_course.verdicts) as store:
        store.execute("update verdicts set message = 'as it was kept'")
    for seconds, kept in ((5, [True, True]), (6, [True, False])):
        with Judge(own_course, seconds=seconds) as judge:
            assert [verdict(judge, c).message == "as it was kept" for c in (RIGHT, wrong)] == kept


def test_what_was_found_in_a_large_notebook_is_not_kept(own_course):
    """Each function may need all of it: a zip of a student's would fill the disk."""
    with Judge(own_course) as judge:
        for size, kept in ((10**4, 1), (5 * 10**6, 1)):
            assert judge.find([f"T = '{'x' * size}'", RIGHT.replace("15", "len(T)")])["decode"]["status"] == "answer"
            assert judge._store.execute("select count(*) from notebooks").fetchone() == (kept,)


def test_what_was_stopped_is_not_run_again_either_under_the_same_limits(own_course, monkeypatch):
    """Neither an answer without an end, nor cells that crash what parses them."""
    endless = "def decode(code, low, high):\n    while True:\n        pass"
    asked = []
    find_answers = Sandbox.find_answers

    def crash(self, cells, names):
        asked.append(cells)
        if "crash" in cells[0]:
            raise Stopped("It crashed Python.")
        return find_answers(self, cells, names)

    monkeypatch.setattr(Sandbox, "find_answers", crash)
    for _ in range(2):
        with Judge(own_course, seconds=1) as judge:
            found = verdict(judge, endless)
            assert found.status == "wrong" and "stopped after 1 seconds" in found.message
            with pytest.raises(Stopped, match="It crashed Python"):
                judge.find(["# crash"])
        monkeypatch.setattr(Sandbox, "answer", None)
    assert asked == [["# crash"]]
    monkeypatch.undo()
    with Judge(own_course, seconds=2) as judge:
        assert "stopped after 2 seconds" in verdict(judge, endless).message


def test_another_version_of_what_decides_keeps_nothing(own_course, monkeypatch):
    with Judge(own_course) as judge:
        judge.find([RIGHT])
        verdict(judge, RIGHT)
    with sqlite3.connect(own_course.verdicts) as store:
        store.execute("update verdicts set message = 'as it was kept'")
        store.execute('update notebooks set answers = \'{"decode": {"status": "missing", "code": ""}}\'')
    newer = hidden_tests.versions() | {"qlora-lab": "0.1.1"}
    monkeypatch.setattr(hidden_tests, "versions", lambda: newer)
    hidden_tests.fingerprint.cache_clear()
    try:
        with Judge(own_course) as judge:
            assert judge.find([RIGHT])["decode"]["status"] == "answer"
            assert verdict(judge, RIGHT).message != "as it was kept"
    finally:
        hidden_tests.fingerprint.cache_clear()


def test_a_sandbox_that_was_killed_is_replaced(own_course):
    with Judge(own_course) as judge:
        for _ in range(2):
            judge.sandbox.process.send_signal(signal.SIGKILL)
            judge.sandbox.process.wait()
            assert judge.find([RIGHT, f"x = {os.getpid()}"])["decode"]["status"] == "answer"
        judge.sandbox.process.send_signal(signal.SIGKILL)
        judge.sandbox.process.wait()
        assert verdict(judge, RIGHT).status == "right"
        assert len(judge._sandboxes) == 1 and judge._sandboxes[0].process.poll() is None


def test_a_sandbox_that_dies_under_an_answer_is_replaced(own_course, monkeypatch):
    asked = []
    answer = Sandbox.answer

    def killed_once(self, code, name):
        asked.append(self)
        if len(asked) == 1:
            self.process.send_signal(signal.SIGKILL)
        return answer(self, code, name)

    monkeypatch.setattr(Sandbox, "answer", killed_once)
    with Judge(own_course) as judge:
        assert verdict(judge, RIGHT).status == "right" and len(set(asked)) == 2


def test_after_two_it_is_unjudged_and_nothing_is_kept(own_course, monkeypatch):
    answer = Sandbox.answer

    def killed(self, code, name):
        self.process.send_signal(signal.SIGKILL)
        return answer(self, code, name)

    with Judge(own_course) as judge:
        with monkeypatch.context() as patch:
            patch.setattr(Sandbox, "answer", killed)
            with pytest.raises(Unjudged, match="the sandbox failed twice"):
                verdict(judge, RIGHT)
        assert verdict(judge, RIGHT).status == "right"


def test_an_answer_that_ends_its_process_is_not_tried_twice(own_course, monkeypatch):
    asked = []
    answer = Sandbox.answer
    monkeypatch.setattr(Sandbox, "answer", lambda self, *given: asked.append(self) or answer(self, *given))
    with Judge(own_course) as judge:
        assert "ended the process" in verdict(judge, "import os\nos._exit(0)\ndef decode(*a): pass").message
        assert asked == [judge.sandbox]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1], ids=lambda s: s.name)
@pytest.mark.parametrize("times", [1, 2])
def test_an_answer_that_was_killed_from_outside_is_run_again_and_never_wrong(own_course, monkeypatch, number, times):
    """As by somebody else's answer, or by the system where memory runs short."""
    tell, kills = Child.tell, []

    def killed(self, data):
        tell(self, data)
        if self.pid and len(kills) < times:
            kills.append(self.pid)
            os.kill(self.pid, number)

    monkeypatch.setattr(Child, "tell", killed)
    waits = "import time\ntime.sleep(1)\n" + RIGHT
    with Judge(own_course) as judge:
        if times == 1:
            assert verdict(judge, waits).status == "right"
        else:
            with pytest.raises(Unjudged, match=rf"ended from outside \({number.name}\)"):
                verdict(judge, waits)
        assert len(kills) == times
        assert verdict(judge, waits).status == "right"


def test_a_system_that_cannot_judge_says_so(own_course, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with Judge(own_course) as judge, pytest.raises(SandboxUnavailable, match="only be graded on Linux"):
        verdict(judge, RIGHT)
