"""Which library broke what. The environments of `make drift-check` are not made here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from machines.blame import ONLY, RUN, Finding, blame, failed_among, read_report, table

MACHINES = Path(__file__).parent / "machines"


@pytest.mark.parametrize(
    ("with_pins", "alone", "finding"),
    [
        (set(), {"torch": {"t"}, "peft": set()}, Finding("t", "alone", ("torch",))),
        (set(), {"torch": {"t"}, "peft": {"t", "u"}}, Finding("t", "alone", ("torch", "peft"))),
        (set(), {"torch": set(), "peft": {"u"}}, Finding("t", "together")),
        (set(), {"torch": None, "peft": {"t"}}, Finding("t", "alone", ("peft",))),
        (set(), {"torch": None, "peft": set()}, Finding("t", "together")),
        (set(), {}, Finding("t", "together")),
        ({"t"}, {}, Finding("t", "not drift")),
        ({"t"}, {"torch": {"t"}}, Finding("t", "not drift")),
        ({"u"}, {"torch": {"t"}}, Finding("t", "alone", ("torch",))),
    ],
)
def test_who_is_to_blame(with_pins, alone, finding):
    assert blame(["t"], with_pins, alone) == [finding]


def test_nothing_fails_and_nobody_is_to_blame():
    assert blame([], {"t"}, {"torch": {"t"}}) == []


@pytest.mark.parametrize(
    ("failed", "found"),
    [
        (["a.py::x"], {"a.py::x"}),
        (["a.py::x[1]"], set()),
        (["a.py"], {"a.py::x", "a.py::y"}),  # the module cannot be imported there
        ([RUN], {"a.py::x", "a.py::y", "b.ipynb"}),
        (["b.ipynb", "c.py::z"], {"b.ipynb"}),
        ([], set()),
    ],
)
def test_what_fails_again(failed, found):
    assert failed_among(["a.py::x", "a.py::y", "b.ipynb"], failed) == found


def test_the_table_says_who_and_what():
    findings = [
        Finding("a.py::x[1|2]", "alone", ("peft", "torch")),
        Finding("a.py::y", "together"),
        Finding("a.py::z", "not drift"),
        Finding("b.ipynb", "alone", ("peft",)),
    ]
    text = table(
        {"torch": "2.0", "peft": "1.0", "gguf": "3"},
        {"torch": "2.1", "peft": "1.1", "gguf": "3"},
        9,
        findings,
        {"a.py::x[1|2]": "TypeError: no\n  <b>", "b.ipynb": "x" * 999},
        {"torch": {"a.py::x[1|2]"}, "peft": {"a.py::x[1|2]"}, "numpy": None},
    )
    lines = text.splitlines()
    assert "| torch | 2.0 | 2.1 |" in lines and "| gguf | 3 | no other version, skipped |" in lines
    assert "9 tests, 4 of them fail." in lines and "| `a.py::y` | no library by itself: only all together |  |" in lines
    both = r"| `a.py::x[1\|2]` | **peft 1.1** and **torch 2.1**, each by itself | TypeError: no &lt;b> |"
    assert both in lines and "| `a.py::z` | nobody: it fails with the pins too |  |" in lines
    assert any(line.endswith("numpy.") for line in lines)
    assert f"| `b.ipynb` | **peft 1.1** | {'x' * 200} |" in lines


TESTS = """
import pytest

@pytest.mark.parametrize("value", ["a::b", "c d", 3])
def test_values(value):
    if value == "a::b":
        raise ValueError("not\\nthis")

@pytest.fixture
def broken():
    assert 1 == 2

def test_of_a_fixture(broken):
    pass
"""


@pytest.mark.slow
def test_reports_of_pytest_are_read_and_what_failed_runs_again(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "test_one.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "below" / "test_two.py").write_text("import not_there\n", encoding="utf-8")
    (tmp_path / "test_three.py").write_text("def test():\n    pass\n", encoding="utf-8")

    def run(**environment):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:nbval", "-p", "no:cacheprovider", "-p", "blame"]
        command += ["--rootdir=.", "--continue-on-collection-errors", "--junit-xml=report.xml", "-c", os.devnull]
        environment = {**os.environ, "PYTHONPATH": str(MACHINES)} | environment
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        return read_report(tmp_path / "report.xml")

    one, two = "below/test_one.py", "below/test_two.py"
    failed = {
        f"{one}::test_values[a::b]": "ValueError: not",
        f"{one}::test_of_a_fixture": 'failed on setup with "assert 1 == 2"',
        two: "ModuleNotFoundError: No module named 'not_there'",
    }
    assert run() == (1 + 1 + 3 + 1, failed)
    (tmp_path / two).write_text("def test_now():\n    pass\n", encoding="utf-8")
    (tmp_path / "only").write_text("\n".join(failed), encoding="utf-8")
    del failed[two]
    assert run(**{ONLY: str(tmp_path / "only")}) == (3, failed)
