"""The record of formats: what is in it is read, what is not is None, and sentences follow from its numbers."""

import pytest
from test_recorded_runs import run

from qlora_lab.evaluation import FormatsRecord, conclusions
from qlora_lab.evaluation.formats_record import datatype_of, fine_tuned, method_of, runs_of_both
from qlora_lab.evaluation.recorded_runs import CostRecord

TEXT = [3.5, 3.9, 3.7]


def row(weights: float, outputs: float, added=(0.1, 0.1, 0.1), bits: float = 4.5, other=True) -> dict:
    losses = [loss + more for loss, more in zip(TEXT, added, strict=True)]
    default = {"weights": weights, "outputs": outputs, "loss": sum(losses) / 3, "losses": losses}
    untouched = {"weights": weights, "outputs": outputs, "distance": outputs**2}
    return {"bits": bits, "default": default, "never quantized": untouched if other else None}


ROWS = {
    "float32": row(0, 0, (0, 0, 0), 32),
    "nf4": row(0.09, 0.08, (0.20, 0.25, 0.22)),
    "nvfp4": row(0.094, 0.081, (0.21, 0.25, 0.22), 4.5001),
    "q4_1": row(0.08, 0.07, (0.1, 0.1, 0.1), 5.0),
    "mxfp4": row(0.117, 0.10, (0.40, 0.44, 0.41), 4.25),
    "nf4 + GPTQ": row(0.11, 0.06, (0.10, 0.13, 0.12)),
    "mxfp4 + GPTQ": row(0.14, 0.08, (0.38, 0.46, 0.41), 4.25),
    "nf4 + AWQ": row(0.092, 0.07, (0.18, 0.21, 0.19), other=False),
}
RECORD = FormatsRecord({"rows": ROWS})


def test_names_say_data_type_and_method():
    assert [datatype_of(name) for name in ("nf4 dq", "mxfp4 + GPTQ")] == ["nf4 dq", "mxfp4"]
    assert [method_of(name) for name in ("nf4 dq", "mxfp4 + GPTQ")] == ["", "GPTQ"]
    assert fine_tuned("nf4 dq") == "qlora nf4 dq r16 alpha 32" and fine_tuned("float32") == "lora r16 alpha 32"
    assert fine_tuned("nf4 + GPTQ") == "qlora nf4 r16 alpha 32 gptq"


def test_rows_are_chosen_by_method_and_bits():
    assert RECORD.names() == [name for name in ROWS if name != "float32"]
    assert RECORD.names("GPTQ") == ["nf4 + GPTQ", "mxfp4 + GPTQ"]
    assert RECORD.names("", most_bits=4.5) == ["nf4", "nvfp4", "mxfp4"]  # a number for the whole tensor is no bit
    assert RECORD.bits("mxfp4") == 4.25
    with pytest.raises(KeyError, match="no row 'nf5'; there are float32, nf4"):
        RECORD.bits("nf5")


def test_what_is_added_is_above_the_unrounded_model():
    assert RECORD.added("nf4") == pytest.approx(0.67 / 3) and RECORD.added("float32") == 0
    assert RECORD.added("nf4", "never quantized") == pytest.approx(0.08**2)


def test_what_is_not_recorded_is_none_or_left_out():
    assert RECORD.value("nf4", "outputs") == 0.08 and RECORD.value("nf4 + AWQ", "outputs", "never quantized") is None
    assert RECORD.added("nf5") is None and RECORD.loss_difference("nf4", "nf5") is None
    points = RECORD.points("weights", "never quantized", leave_out=["q4_1"])
    assert list(points) == ["nf4", "nvfp4", "mxfp4", "nf4 + GPTQ", "mxfp4 + GPTQ"]
    assert points["nf4"] == (0.09, pytest.approx(0.0064))
    empty = FormatsRecord({})
    assert empty.names() == [] and empty.points("weights") == {} and empty.value("nf4", "loss") is None


def test_losses_are_compared_piece_by_piece():
    difference = RECORD.loss_difference("mxfp4", "nf4")
    assert difference.mean == pytest.approx(0.58 / 3) and difference.sign == 1 and difference.count == 3
    assert RECORD.loss_difference("nvfp4", "nf4").sign == 0


def test_the_record_that_comes_with_the_package_can_be_read():
    found = FormatsRecord.load()
    assert "nf4" in found.names() and found.bits("nf4") == 4.5 and 0.09 < found.value("nf4", "weights") < 0.1
    assert all({"date", "device"} <= row.keys() for row in found.raw["rows"].values())
    runs = CostRecord(found.raw)
    for variant in ("loftq", "pissa", "dora"):
        way = f"qlora nf4 dq r16 alpha 32 {variant}"
        assert runs.chosen_rate(way) and runs.quoted(way, seeds=3), way


def test_runs_of_both_records_are_compared_with_each_other():
    mine = {f"mxfp4 {seed}": run("qlora", seed, 0.1, 16, datatype="mxfp4", double_quant=False) for seed in (1, 2)}
    costs = CostRecord({"runs": {f"full {seed}": run("full", seed, 0.08) for seed in (1, 2)}})
    both = runs_of_both(FormatsRecord({"runs": mine}), costs)
    assert both.ways() == ["full", "qlora mxfp4 r16 alpha 32"]
    assert both.compare("qlora mxfp4 r16 alpha 32 lr 0.004", "full lr 0.004").interval.mean == pytest.approx(0.02)
    assert runs_of_both(FormatsRecord({}), costs).ways() == ["full"]


def test_the_least_harm_names_what_the_text_does_not_tell_from_it():
    assert conclusions.least_harm(RECORD, 4.5) == (
        "At most 4.5 bits: nf4 adds least to the loss, +0.223 nats. Not shown worse: nvfp4. Shown worse: mxfp4."
    )
    assert conclusions.least_harm(RECORD, 4.5, None) == (
        "At most 4.5 bits: nf4 + GPTQ adds least to the loss, +0.117 nats. Not shown worse: none. "
        "Shown worse: nf4, nvfp4, mxfp4, mxfp4 + GPTQ, nf4 + AWQ."
    )
    assert "q4_1 adds least" in conclusions.least_harm(RECORD, 5.0)
    assert conclusions.least_harm(FormatsRecord({}), 4.5) == "At most 4.5 bits: nothing is recorded."


def test_a_method_is_judged_on_each_data_type():
    on_nf4, on_mxfp4 = conclusions.data_against_none(RECORD, "GPTQ")
    assert on_nf4.startswith("GPTQ on nf4: error of weights times 1.22; error of outputs times 0.75; loss -0.107 (")
    assert on_nf4.endswith("), better") and on_mxfp4.endswith("), no clear difference")
    half = FormatsRecord({"rows": {"nf4 + GPTQ": ROWS["nf4 + GPTQ"]}})
    assert conclusions.data_against_none(half, "GPTQ") == ["GPTQ on nf4: not recorded"]
    assert conclusions.data_against_none(FormatsRecord({}), "GPTQ") == []
