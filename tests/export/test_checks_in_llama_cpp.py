"""The scripts that measure exports: what they read back are the file's weights, and they run, at a tiny size."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from families import tiny_family
from test_architectures import needs_llama_cpp
from test_home import SIX, SIZES, make_run

from qlora_lab.export import export, read_run
from qlora_lab.export.merged import merge_into_base

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("family", SIX)
def test_what_is_read_back_are_the_weights_of_the_file(script, family, tmp_path):
    """The order of rows undone, norms less one: the very weights that were merged, rounded to float16."""
    run = make_run(tmp_path, tiny_family(family, **SIZES))
    made = export(run, "gguf", tmp_path / "m.gguf")
    found = dict(script("export_check").read_back(read_run(run), made.path).named_parameters())
    for name, expected in merge_into_base(read_run(run)).named_parameters():
        rounded = expected.half().float() if expected.ndim > 1 else expected
        torch.testing.assert_close(found[name], rounded, rtol=0, atol=1e-6 if expected.ndim == 1 else 0)


@needs_llama_cpp
def test_each_way_home_is_measured_once(script, tmp_path, monkeypatch):
    ways_home, out = script("ways_home"), tmp_path / "ways.json"
    run = make_run(tmp_path, datatype="int4_affine")
    command = ["ways_home.py", str(run), "--commands", "3", "--prose", "400", "--out", str(out)]
    monkeypatch.setattr(ways_home, "MAX_NEW_TOKENS", 4)
    monkeypatch.setattr(sys, "argv", [*command, "--ways", "beside the"])
    ways_home.main()
    some = json.loads(out.read_text())["rows"]
    assert 0 < len(some) < len(ways_home.ways_of(read_run(run)))
    monkeypatch.setattr(sys, "argv", command)
    ways_home.main()
    rows = json.loads(out.read_text())["rows"]
    assert rows[: len(some)] == some and [row["way"] for row in rows] == list(
        dict.fromkeys([row["way"] for row in some] + list(ways_home.ways_of(read_run(run))))
    )
    by_way = {row["way"]: row for row in rows}
    beside = by_way["adapter beside the 4-bit base it was trained beside"]
    merged = by_way["merged into the base it was trained beside, F16"]
    assert abs(beside["loss of answers"] - merged["loss of answers"]) < 0.01 * beside["loss of answers"]
    monkeypatch.setattr(ways_home, "measure", None)  # nothing is measured twice
    ways_home.main()
