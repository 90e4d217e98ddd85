"""A record of runs: what is read from it, and that its sentences follow from its numbers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.evaluation.recorded_runs import LOSS, CostRecord, fit_line


def run(method: str, seed: int, loss: float, rank: int = 0, correct: int = 50, **more) -> dict:
    return {
        "method": method,
        "rank": rank,
        "seed": seed,
        LOSS: loss,
        "exact match": {"test": {"correct": correct, "of": 100}},
        "trained parameters": 1000 * rank or 5000,
        "bytes of weights": 20_000,
        "bytes of the adapter's file": 4 * 1000 * rank,
    } | more


def record(**losses) -> CostRecord:
    """qlora at rank 16 of the given losses, by condition ("r4": [...])."""
    runs = {}
    for name, values in losses.items():
        for seed, loss in enumerate(values):
            runs[f"qlora nf4 {name} seed {seed}"] = run("qlora", seed, loss, int(name[1:]))
    return CostRecord({"runs": runs})


def test_a_sentence_follows_from_the_numbers():
    clear = record(r4=[0.50, 0.60, 0.55], r16=[0.40, 0.50, 0.45]).compare("qlora nf4 r4", "qlora nf4 r16")
    assert str(clear) == "validation loss: qlora nf4 r4 is higher than qlora nf4 r16: +0.100 (+0.100 to +0.100)"
    other = record(r4=[0.40, 0.50, 0.45], r16=[0.50, 0.60, 0.55]).compare("qlora nf4 r4", "qlora nf4 r16")
    assert "qlora nf4 r4 is lower than qlora nf4 r16: -0.100" in str(other)
    unclear = record(r4=[0.40, 0.50, 0.45], r16=[0.50, 0.40, 0.47]).compare("qlora nf4 r4", "qlora nf4 r16")
    assert "3 seeds do not tell qlora nf4 r4 from qlora nf4 r16" in str(unclear)


def test_results_are_read_by_seed_and_shares_as_shares():
    found = record(r16=[0.4, 0.5])
    assert found.values("qlora nf4 r16", LOSS) == {0: 0.4, 1: 0.5}
    assert found.values("qlora nf4 r16", "test") == {0: 0.5, 1: 0.5}
    assert found.interval("qlora nf4 r16", LOSS).mean == pytest.approx(0.45)
    assert found.result("qlora nf4 r16")[3] == [0.4, 0.5]


def test_runs_that_failed_and_conditions_of_one_seed_are_left_out():
    runs = {"lora r4 seed 0": run("lora", 0, 0.5, 4), "lora r4 seed 1": {"error": "killed", "seed": 1}}
    found = CostRecord({"runs": runs})
    assert found.conditions() == [] and found.conditions(seeds=1) == ["lora r4"]
    with pytest.raises(ValueError, match="holds no run"):
        CostRecord({"runs": {"lora r4 seed 1": {"error": "killed", "seed": 1}}})


def test_the_cheapest_that_is_as_good_is_found():
    names = [f"qlora nf4 r{rank}" for rank in (1, 4, 16)]
    losses = {"r1": [0.9, 0.91, 0.92], "r4": [0.51, 0.49, 0.53], "r16": [0.50, 0.51, 0.50]}
    assert record(**losses).best(names) == "qlora nf4 r16"
    assert record(**losses).smallest_as_good(names) == "qlora nf4 r4"
    assert record(**losses | {"r1": [0.5, 0.5, 0.51]}).smallest_as_good(names) == "qlora nf4 r1"


def test_memory_counts_moments_and_gradients_of_what_is_trained():
    adapters = record(r16=[0.4, 0.5])
    assert adapters.trained("qlora", 16) == 16_000 and adapters.trained("qlora", 3) == 3000
    assert adapters.state_bytes("qlora nf4 r16") == 20_000 + 16 * 16_000
    full = CostRecord({"runs": {f"full lr 1 seed {seed}": run("full", seed, 0.3) for seed in (0, 1)}})
    assert full.state_bytes("full lr 1") == 20_000 + 12 * 5000  # its parameters are the weights


def test_unknown_names_are_told():
    with pytest.raises(KeyError, match="no condition 'lora'; there are qlora nf4 r16"):
        record(r16=[0.4, 0.5]).values("lora", LOSS)
    with pytest.raises(KeyError, match="no measure 'speed'; there are test, method"):
        record(r16=[0.4, 0.5]).values("qlora nf4 r16", "speed")
    with pytest.raises(KeyError, match="no run of 'full'"):
        record(r16=[0.4, 0.5]).trained("full", 1)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(record(r16=[0.4, 0.5]).raw))
    assert CostRecord.load(path).conditions() == ["qlora nf4 r16"]


def test_the_record_that_comes_with_the_package_is_whole():
    """Three seeds at least of what notebook 07 rests on."""
    found = CostRecord.load()
    names = found.conditions(seeds=3)
    for needed in ("full", "lora r16", *(f"qlora nf4 dq r{r}" for r in (1, 16, 64))):
        assert any(name.startswith(needed) for name in names), needed
    assert {"script", "device", "versions", "budget", "share of decoding"} <= found.raw.keys()
    assert all("date" in run for run in found.raw["runs"].values())


@given(st.floats(-5, 5), st.floats(-5, 5), st.lists(st.integers(-50, 50), min_size=2, max_size=8, unique=True))
def test_a_line_is_found_again(intercept, slope, xs):
    found = fit_line([(x, intercept + slope * x) for x in xs])
    assert found == pytest.approx((intercept, slope), abs=1e-8)


def test_a_line_needs_two_points():
    with pytest.raises(ValueError, match="two different x"):
        fit_line([(1.0, 2.0), (1.0, 3.0)])
