"""metrics.jsonl: what is written is read again; a line that a kill cut short is left out."""

import math

import pytest

from qlora_lab.training.run_folder.metrics import (
    StepRecord,
    append_record,
    read_records,
    sync_records,
    write_records,
)


def record(step, grad_norm=0.5):
    return StepRecord(step, 1.0 / step, 1e-3, grad_norm, 10 * step, 4 * step, 0.25)


def test_appended_and_replaced_records_are_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_records(path, [record(1), record(2)])
    append_record(path, record(3, math.inf))
    sync_records(path)
    assert read_records(path, 3) == [record(1), record(2), record(3, math.inf)]
    assert read_records(path, 2) == [record(1), record(2)]
    assert "Infinity" not in path.read_text()  # no JSON parser but Python's would read it


@pytest.mark.parametrize("rest", ['{"step": 3, "lo', "null\n", '{"step": 3}\n', "\x00\x00"])
def test_a_line_cut_short_is_left_out(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    write_records(path, [record(1), record(2)])
    with open(path, "a") as file:
        file.write(rest)
    assert read_records(path, 9) == [record(1), record(2)]


def test_a_step_written_twice_counts_once_with_its_last_values(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_records(path, [record(1), record(2), record(1, 9.0)])
    assert read_records(path, 9) == [record(1, 9.0), record(2)]


def test_no_file_no_records(tmp_path):
    assert read_records(tmp_path / "metrics.jsonl", 5) == []
