"""metrics.jsonl: what is written is read again; a line that a kill cut short is left out."""

import json
import math
import os

import pytest

from qlora_lab.training.run_folder.metrics import (
    StepRecord,
    append_record,
    keep_records,
    read_records,
    records_before,
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


CHANGED = {
    "a byte-order mark": lambda content: b"\xef\xbb\xbf" + content,
    "Windows ends of lines": lambda content: content.replace(b"\n", b"\r\n"),
    "both": lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"),
    "no end of the last line": lambda content: content[:-1],
    "empty lines": lambda content: b"\n" + content.replace(b"\n", b"\n\n"),
    "lines out of order": lambda content: b"".join(content.splitlines(keepends=True)[::-1]),
    "a line twice": lambda content: content + content.splitlines(keepends=True)[1],
    "a line cut short at the end": lambda content: content + content[:20],
    "other spaces": lambda content: content.replace(b": ", b":  "),
}


@pytest.mark.parametrize("change", CHANGED)
def test_what_an_editor_does_loses_no_step(tmp_path, change):
    path, records = tmp_path / "metrics.jsonl", [record(step) for step in (1, 2, 3)]
    write_records(path, records)
    path.write_bytes(CHANGED[change](path.read_bytes()))
    assert records_before(path, 3) == records
    keep_records(path, 3)
    assert read_records(path, 9) == records
    assert [json.loads(line)["step"] for line in path.read_bytes().splitlines()] == [1, 2, 3]


def test_what_somebody_noted_beside_it_stays(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_records(path, [record(step) for step in (1, 2, 3)])
    lines = [json.dumps({**json.loads(line), "note": "as expected"}) for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    assert records_before(path, 2) == [record(1), record(2)]
    keep_records(path, 2)
    assert path.read_text().splitlines() == lines[:2]


@pytest.mark.parametrize(
    "line",
    [
        "oops",
        "[]",
        "7",
        '{"step": 2}',
        json.dumps({**vars(record(2)), "step": "2"}),
        json.dumps({**vars(record(2)), "loss": math.nan}),
        json.dumps({**vars(record(2)), "loss": None}),
    ],
)
def test_a_line_in_the_middle_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    write_records(path, [record(step) for step in (1, 2, 3)])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2]]) + "\n")
    before = path.read_bytes()
    for call in (read_records, records_before, keep_records):
        with pytest.raises(ValueError, match="line 2, is no record of a step"):
            call(path, 3)
    assert path.read_bytes() == before


def test_a_missing_step_is_named_and_a_missing_file_is_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_records(path, [record(step) for step in (1, 3)])
    with pytest.raises(ValueError, match="no record of step 2, though the checkpoint is of step 3"):
        records_before(path, 3)
    path.unlink()
    assert records_before(path, 3) == []


@pytest.mark.skipif(os.name != "posix", reason="needs a named pipe")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="is no file"):
        read_records(tmp_path / "metrics.jsonl", 3)
