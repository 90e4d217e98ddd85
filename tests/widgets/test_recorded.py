"""Explorers of records read what is there, of both forms of runs too, and make up no quality."""

import copy

import pytest

from qlora_lab.evaluation.formats_record import FormatsRecord
from qlora_lab.evaluation.recorded_runs import CostRecord
from qlora_lab.widgets import explore_costs, explore_formats
from qlora_lab.widgets.recorded import short


def first_runs() -> dict:
    """The record's runs at one rate for all adapters, alpha twice the rank, seeds 0 to 2."""
    raw = CostRecord.load().raw
    runs = raw["runs"].items()
    return {key: run for key, run in runs if " alpha " not in key and run.get("seed", 9) < 3 and "exact match" in run}


def test_names_say_alpha_only_where_it_is_not_twice_the_rank():
    assert short("qlora nf4 dq r16 alpha 32") == "qlora nf4 dq r16"
    assert short("qlora nf4 dq r64 alpha 32") == "qlora nf4 dq r64 alpha 32"
    assert short("full") == "full"


def test_a_choice_that_was_recorded_is_marked_and_one_that_was_not_is_a_line():
    explorer = explore_costs(CostRecord({"runs": first_runs()}))
    assert explorer.controls["base"].options[:2] == ("lora", "qlora nf4 dq")
    assert "marked: nf4 dq r16." in explorer.figure.alt_text
    explorer.controls["rank"].value = 2
    assert "its validation loss was not recorded" in explorer.figure.alt_text
    explorer.controls["rank"].value = 64
    assert "marked: nf4 dq r64." in explorer.figure.alt_text


def test_other_scalings_cannot_be_chosen_and_are_no_dots():
    runs = first_runs()
    for key, run in list(runs.items()):
        if run["method"] == "qlora" and run["rank"] == 64:
            runs[f"new {key}"] = copy.deepcopy(run) | {"alpha": 32}
    before = explore_costs(CostRecord({"runs": first_runs()})).figure.alt_text
    after = explore_costs(CostRecord({"runs": runs})).figure.alt_text
    assert "for 9 conditions" in before and after == before


def row(weights: float, loss: float, distance: float | None = None) -> dict:
    other = None if distance is None else {"weights": weights, "outputs": weights, "distance": distance}
    return {"bits": 4.5, "default": {"weights": weights, "outputs": weights, "loss": loss}, "never quantized": other}


ROWS = {
    "float32": row(0.0, 3.7, 0.0),
    "nf4": row(0.1, 3.9, 0.02),
    "nf4 + AWQ": row(0.11, 3.8),
    "mxfp4": row(0.12, 4.0, 0.03),
}


def test_a_format_is_told_beside_nf4_in_both_models():
    explorer = explore_formats(FormatsRecord({"rows": ROWS}))
    assert explorer.controls["datatype"].options == ("nf4", "mxfp4")
    assert explorer.controls["method"].options == ("rounding alone", "AWQ")
    said = explorer.figure.alt_text
    assert "weights, default 1.20" in said and "loss above float32's, default 1.50" in said
    assert "distance, never quantized 1.50" in said
    explorer.controls["datatype"].value = "nf4"
    explorer.controls["method"].value = "AWQ"
    said = explorer.figure.alt_text
    assert "loss above float32's, default 0.50" in said and "weights, never quantized not recorded" in said
    explorer.controls["datatype"].value = "mxfp4"
    assert explorer.figure.alt_text.startswith("mxfp4 + AWQ was not recorded")


def test_without_nf4_there_is_nothing_to_compare_with():
    with pytest.raises(ValueError, match="no row \"nf4\"; it has \\['mxfp4'\\]"):
        explore_formats(FormatsRecord({"rows": {"mxfp4": ROWS["mxfp4"]}}))
