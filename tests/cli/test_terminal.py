"""What a person can put right is told in one line; what nobody expected keeps its traceback."""

import pytest
import typer

from qlora_lab.classroom.sandbox import SandboxUnavailable
from qlora_lab.cli.bundle import BundleFailed
from qlora_lab.cli.terminal import told_errors
from qlora_lab.machine.processes import LostProcess
from qlora_lab.memory.fit import DoesNotFit
from qlora_lab.models.downloads import ModelUnavailable, VerificationError
from qlora_lab.paging.tiers.page_file import PageFileError
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
