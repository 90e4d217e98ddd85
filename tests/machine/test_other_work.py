"""Other work is neither idle nor our own, and in the way only where no core is left; how threads wait for it."""

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.machine import other_work


def set_clocks(monkeypatch):
    """A machine of four cores whose clocks a test sets."""
    found = SimpleNamespace(now=0.0, idle=0.0, own=0.0)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(idle=found.idle, user=0.0))
    process = SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=found.own, system=0.0))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    monkeypatch.setattr(other_work, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


@pytest.fixture
def clocks(monkeypatch):
    return set_clocks(monkeypatch)


@given(st.floats(0.1, 100), st.floats(0, 4), st.floats(0, 1))
def test_the_cores_that_others_took(seconds, own, of_the_rest):
    with pytest.MonkeyPatch.context() as patch:
        clock = set_clocks(patch)
        others = (4 - own) * of_the_rest
        work = other_work.OtherWork()
        clock.now, clock.own, clock.idle = seconds, own * seconds, (4 - own - others) * seconds
        found = work.in_the_way()
    idle = 4 - own - others
    if idle < 0.39 and others > 0.26:
        assert found == pytest.approx(others)
    elif idle > 0.41 or others < 0.24:
        assert found == 0


def test_two_looks_at_once_say_nothing_and_forget_nothing(clocks):
    work = other_work.OtherWork()
    clocks.now = 0.01
    assert work.in_the_way() == 0
    clocks.now, clocks.own = 1.0, 2.0
    assert work.in_the_way() == pytest.approx(2)


def test_this_machine_has_such_clocks():
    assert 0 <= other_work.OtherWork().in_the_way() <= (psutil.cpu_count() or 1)


@pytest.mark.parametrize(
    "set_before, first, left",
    [
        ({}, "", "3000"),
        ({"GOMP_SPINCOUNT": "7"}, "", "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "", None),
        ({}, "import torch; ", None),  # OpenMP has read it already: it would only mislead what is started from here
    ],
)
def test_threads_wait_briefly_unless_the_user_chose(set_before, first, left):
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | set_before
    code = first + "import qlora_lab, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    found = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert found.stdout.strip() == str(left)
