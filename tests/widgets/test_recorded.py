"""The explorer of recorded runs reads records of both forms, and makes up no quality."""

import copy

from qlora_lab.evaluation.recorded_runs import CostRecord
from qlora_lab.widgets import explore_costs
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
    assert "marked: qlora nf4 dq r16" in explorer.figure.alt_text
    explorer.controls["rank"].value = 2
    assert "its validation loss was not recorded" in explorer.figure.alt_text
    explorer.controls["rank"].value = 64
    assert "marked: qlora nf4 dq r64" in explorer.figure.alt_text


def test_other_scalings_are_dots_of_their_own():
    runs = first_runs()
    for key, run in list(runs.items()):
        if run["method"] == "qlora" and run["rank"] == 64:
            runs[f"new {key}"] = copy.deepcopy(run) | {"alpha": 32}
    before = explore_costs(CostRecord({"runs": first_runs()})).figure.alt_text
    after = explore_costs(CostRecord({"runs": runs})).figure.alt_text
    assert "for 9 conditions" in before and "for 10 conditions" in after
