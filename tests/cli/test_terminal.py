"""What a person can put right is told in one line; what nobody expected keeps its traceback."""

from types import SimpleNamespace

import pytest
import typer
from chat_families import chat_tokenizer
from rich.console import Console

from qlora_lab.classroom.sandbox import SandboxUnavailable
from qlora_lab.cli import terminal
from qlora_lab.cli.bundle import BundleFailed
from qlora_lab.cli.terminal import told_errors
from qlora_lab.machine.processes import LostProcess
from qlora_lab.memory.fit import DoesNotFit
from qlora_lab.models.downloads import ModelUnavailable, VerificationError
from qlora_lab.paging.tiers.page_file import PageFileError
from qlora_lab.tasks import inspect, load_dataset
from qlora_lab.training.loop import NonFiniteLoss

OWN = [BundleFailed, DoesNotFit, LostProcess, ModelUnavailable, PageFileError, SandboxUnavailable, VerificationError]


@pytest.mark.parametrize("kind", [*OWN, NonFiniteLoss, ValueError, TypeError, FileNotFoundError, PermissionError])
def test_an_error_that_is_told(capsys, kind):
    with pytest.raises(typer.Exit) as left, told_errors():
        raise kind("the disk is full; make [room]")
    assert left.value.exit_code == 1
    assert capsys.readouterr().err == "error the disk is full; make [room]\n"


@pytest.mark.parametrize("kind", OWN)
def test_it_is_still_the_built_in_one(kind):
    assert issubclass(kind, RuntimeError)


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, AssertionError])
def test_an_error_that_is_not(capsys, kind):
    with pytest.raises(kind), told_errors():
        raise kind("something else")
    assert not capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(capsys):
    with pytest.raises(typer.Exit) as left, told_errors("begin again"):
        raise KeyboardInterrupt
    assert left.value.exit_code == 130 and "interrupted; begin again" in capsys.readouterr().out


def bars_of(monkeypatch, records, steps=100, busy=0.0):
    printed = []
    monkeypatch.setattr(terminal.console, "print", lambda text, **_: printed.append(text))
    bars = terminal.Bars()
    bars.others = SimpleNamespace(in_the_way=lambda: busy, cores=2)
    for number, (tokens, seconds) in enumerate(records, 1):
        bars.step(SimpleNamespace(step=number, loss=1.0, tokens=tokens, seconds=seconds), steps)
    return printed


def test_what_is_left_is_promised_at_the_speed_of_the_last_steps(monkeypatch):
    printed = bars_of(monkeypatch, [(100, 1.0)] * 20 + [(100, 4.0)] * 20)
    assert printed[1] == "step 20 of 100  loss 1.000  100 tokens/s  1 min 20 s left"
    assert printed[3] == "step 40 of 100  loss 1.000  25 tokens/s  4 min 00 s left"


def test_the_bar_says_what_slows_it_down(monkeypatch):
    (line,) = bars_of(monkeypatch, [(100, 1.0)] * 10, busy=1.3)
    assert line.endswith("1 min 30 s left  (slowed down: other work takes 1.3 of 2 cores)")


def inspected(monkeypatch, **options) -> str:
    records = load_dataset([{"prompt": "[b]a[/b]", "completion": "[i]b"}, {"prompt": "c", "completion": ""}])
    found = inspect(records, chat_tokenizer("chatml"), validation=records[:1])
    console = Console(highlight=False, emoji=False, record=True, width=100, **options)
    monkeypatch.setattr(terminal, "console", console)
    with console.capture() as captured:
        terminal.print_inspection(found)
    for what, *_ in found.table():
        assert what in captured.get()
    assert all(warning in captured.get() for warning in found.warnings) and len(found.warnings) == 2
    return captured.get()


def test_what_is_learned_is_green_and_bold(monkeypatch):
    shown = inspected(monkeypatch, force_terminal=True, color_system="standard")
    assert "\x1b[1;32m[i]b<|im_end|>\x1b[0m" in shown and "\x1b[2m[b]a[/b]<|im_end|>" in shown and "«" not in shown


@pytest.mark.parametrize("options", [{"force_terminal": False}, {"force_terminal": True, "no_color": True}])
def test_and_in_quotation_marks_where_there_are_no_colours(monkeypatch, options):
    assert "«[i]b<|im_end|>»" in inspected(monkeypatch, **options)
