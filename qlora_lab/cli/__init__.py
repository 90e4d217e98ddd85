"""The command line. `commands` has one function a command; the other files do the work of one each."""

from qlora_lab.cli.commands import main

__all__ = ["main"]
