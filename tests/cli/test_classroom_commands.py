"""What the commands for a class print."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from qlora_lab.classroom.results import ItemStatistics
from qlora_lab.cli.classroom_commands import items_table


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_numbers_of_a_class_stay_readable_in_any_terminal(width):
    said = (
        "4 bits are the codes alone; a block's constants come on top, and are what double quantization makes smaller."
    )
    one = ItemStatistics(SimpleNamespace(column="05 full-training-bytes"), 312, 290, 187, 0.6, 0.43, said, 41)
    console = Console(file=io.StringIO(), width=width)
    console.print(items_table([one]))
    printed = console.file.getvalue()
    for text in ("05 full-training-bytes", "187", "312", "0.60", "0.43"):
        assert f" {text} " in printed
    words = " ".join(printed.replace("│", " ").split())
    assert all(word in words for word in said.split()) and "(41)" in printed
    assert all(len(line) <= width for line in printed.splitlines())
