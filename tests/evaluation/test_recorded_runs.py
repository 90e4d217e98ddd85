"""A record of runs: what is read from it, and that its sentences follow from its numbers."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.evaluation.recorded_runs import LOSS, SCALINGS, CostRecord, best_rate, condition_of, fit_line


def run(method: str, seed: int, loss: float, rank: int = 0, correct: int = 50, **more) -> dict:
    return {
        "method": method,
        "rank": rank,
        "learning_rate": 0.004,
        "seed": seed,
        LOSS: loss,
        "exact match": {"test": {"correct": correct, "of": 100}},
        "trained parameters": 1000 * rank or 5000,
        "bytes of weights": 20_000,
        "bytes of the adapter's file": 4 * 1000 * rank,
    } | more


def name(rank: int) -> str:
    return f"qlora nf4 r{rank} alpha {2 * rank} lr 0.004"


def record(**losses) -> CostRecord:
    """qlora of the given losses, by rank ("r4": [...]), as it was recorded when names said neither alpha nor rate."""
    runs = {}
    for rank, values in losses.items():
        for seed, loss in enumerate(values):
            key = f"qlora nf4 {rank} seed {seed}"
            runs[key] = run("qlora", seed, loss, int(rank[1:]), datatype="nf4")
    return CostRecord({"runs": runs})


def test_a_sentence_follows_from_the_numbers():
    clear = record(r4=[0.50, 0.60, 0.55], r16=[0.40, 0.50, 0.45]).compare(name(4), name(16))
    assert str(clear) == f"validation loss: {name(4)} is higher than {name(16)}: +0.100 (+0.100 to +0.100)"
    other = record(r4=[0.40, 0.50, 0.45], r16=[0.50, 0.60, 0.55]).compare(name(4), name(16))
    assert f"{name(4)} is lower than {name(16)}: -0.100" in str(other)
    unclear = record(r4=[0.40, 0.50, 0.45], r16=[0.50, 0.40, 0.47]).compare(name(4), name(16))
    assert f"no clear difference between {name(4)} and {name(16)} over 3 seeds" in str(unclear)


def test_results_are_read_by_seed_and_shares_as_shares():
    found = record(r16=[0.4, 0.5])
    assert found.values(name(16), LOSS) == {0: 0.4, 1: 0.5}
    assert found.values(name(16), "test") == {0: 0.5, 1: 0.5}
    assert found.interval(name(16), LOSS).mean == pytest.approx(0.45)
    assert found.result(name(16))[3] == [0.4, 0.5]


def test_runs_that_failed_and_conditions_of_one_seed_are_left_out():
    runs = {"lora r4 seed 0": run("lora", 0, 0.5, 4), "lora r4 seed 1": {"error": "killed", "seed": 1}}
    found = CostRecord({"runs": runs})
    assert found.conditions() == [] and found.conditions(seeds=1) == ["lora r4 alpha 8 lr 0.004"]
    with pytest.raises(ValueError, match="holds no run"):
        CostRecord({"runs": {"lora r4 seed 1": {"error": "killed", "seed": 1}}})


def test_the_cheapest_that_is_as_good_is_found():
    names = [name(rank) for rank in (1, 4, 16)]
    losses = {"r1": [0.9, 0.91, 0.92], "r4": [0.51, 0.49, 0.53], "r16": [0.50, 0.51, 0.50]}
    assert record(**losses).best(names) == name(16)
    assert record(**losses).smallest_as_good(names) == name(4)
    assert record(**losses | {"r1": [0.5, 0.5, 0.51]}).smallest_as_good(names) == name(1)


def test_memory_counts_moments_and_gradients_of_what_is_trained():
    adapters = record(r16=[0.4, 0.5])
    assert adapters.trained("qlora", 16) == 16_000 and adapters.trained("qlora", 3) == 3000
    assert adapters.state_bytes(name(16)) == 20_000 + 16 * 16_000
    full = CostRecord({"runs": {f"full lr 1 seed {seed}": run("full", seed, 0.3, learning_rate=1) for seed in (0, 1)}})
    assert full.state_bytes("full lr 1") == 20_000 + 12 * 5000  # its parameters are the weights


def test_a_run_is_named_by_its_way_and_its_rate():
    own = {"method": "qlora", "datatype": "nf4", "double_quant": True, "rank": 64, "learning_rate": 2e-3}
    assert condition_of(own) == "qlora nf4 dq r64 alpha 128 lr 0.002"  # as runs had it that said no alpha
    assert condition_of(own | {"alpha": 32.0}) == "qlora nf4 dq r64 alpha 32 lr 0.002"
    assert condition_of({"method": "full", "rank": 0, "datatype": "", "learning_rate": 5e-5}) == "full lr 5e-05"
    factors = {law: [alpha(rank) / rank for rank in (1, 16, 64)] for law, alpha in SCALINGS.items()}
    assert factors == {"alpha = 2r": [2, 2, 2], "alpha = 32": [32, 2, 0.5], "rsLoRA": [8, 2, 1]}
    assert all(alpha(64) / 64 == pytest.approx(8 / 64**0.5) for law, alpha in SCALINGS.items() if law == "rsLoRA")


def test_runs_of_two_scalings_and_rates_are_kept_apart():
    runs = {}
    for alpha, rate in ((8, 2e-3), (8, 4e-3), (32, 4e-3)):
        for seed in (1, 2):
            own = {"datatype": "nf4", "double_quant": True, "alpha": alpha, "learning_rate": rate}
            runs[f"{alpha} {rate} {seed}"] = run("qlora", seed, alpha * rate, 4, **own)
    found = CostRecord({"runs": runs})
    assert found.by_rank("alpha = 2r") == {4: "qlora nf4 dq r4 alpha 8"}
    assert found.by_rank("alpha = 32") == {4: "qlora nf4 dq r4 alpha 32"}
    assert found.by_rank("rsLoRA") == {}
    assert set(found.values("qlora nf4 dq r4 alpha 8 lr 0.002", LOSS).values()) == {8 * 2e-3}


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({1: 0.5, 2: 0.4, 4: 0.3, 8: 0.4, 16: 0.5}, 4),
        ({1: 0.5, 2: 0.4, 4: 0.3, 8: 0.2, 16: 0.1}, None),  # beyond the highest there may be a better one
        ({1: 0.1, 2: 0.2, 4: 0.3, 8: 0.4, 16: 0.5}, None),
        ({1: 0.5, 2: 0.4, 4: 0.3, 8: 0.2, 16: 0.1, 32: math.inf}, 16),  # it broke there
        ({1: 0.5, 2: 0.1, 4: 0.3, 8: 0.2}, None),  # four are too few
        ({}, None),
    ],
)
def test_a_rate_is_chosen_among_five_or_more_and_not_at_an_end(losses, best):
    assert best_rate(losses) == best


def test_a_way_is_quoted_at_its_chosen_rate_and_before_that_at_the_one_run_most():
    own = {"datatype": "nf4", "rank": 4}
    old = {f"old {seed}": run("qlora", seed, 0.3, **own) for seed in (0, 1, 2)}
    way, old_name = "qlora nf4 r4 alpha 8", "qlora nf4 r4 alpha 8 lr 0.004"
    coarse = {}
    for rate, loss in ((5e-4, 0.4), (1e-3, 0.2), (2e-3, 0.25), (8e-3, None)):
        coarse[f"coarse {rate}"] = run("qlora", 0, loss, learning_rate=rate, alpha=8, **own)
        del coarse[f"coarse {rate}"]["exact match"]
    found = CostRecord({"runs": old | coarse})
    assert found.rates(way) == {5e-4: 0.4, 1e-3: 0.2, 2e-3: 0.25, 4e-3: 0.3, 8e-3: math.inf}
    assert found.chosen_rate(way) == 1e-3 and found.ways() == [way]
    assert found.conditions(seeds=1) == [old_name] and found.quoted(way) == old_name  # not run there yet
    new = {f"new {seed}": run("qlora", seed, 0.2, learning_rate=1e-3, alpha=8, **own) for seed in (1, 2)}
    found = CostRecord({"runs": old | coarse | new})
    assert found.quoted(way) == "qlora nf4 r4 alpha 8 lr 0.001"
    assert found.quoted(way, seeds=3) == old_name and found.quoted("full") is None


def test_unknown_names_are_told():
    with pytest.raises(KeyError, match=f"no condition 'lora'; there are {name(16)}"):
        record(r16=[0.4, 0.5]).values("lora", LOSS)
    with pytest.raises(KeyError, match="no measure 'speed'; there are test, method"):
        record(r16=[0.4, 0.5]).values(name(16), "speed")
    with pytest.raises(KeyError, match="no run of 'full'"):
        record(r16=[0.4, 0.5]).trained("full", 1)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(record(r16=[0.4, 0.5]).raw))
    assert CostRecord.load(path).conditions() == [name(16)]


def test_the_record_that_comes_with_the_package_is_whole():
    """A chosen rate and five seeds at least of what notebook 07 concludes something from."""
    found = CostRecord.load()
    for way in ("full", "lora r16 alpha 32", *(f"qlora nf4 dq r{rank} alpha {2 * rank}" for rank in (1, 4, 16, 64))):
        assert found.chosen_rate(way) and found.quoted(way, seeds=5), way
    assert {"script", "device", "versions", "budget", "share of decoding"} <= found.raw.keys()
    assert all({"date", "device"} <= run.keys() for run in found.raw["runs"].values())


@given(st.floats(-5, 5), st.floats(-5, 5), st.lists(st.integers(-50, 50), min_size=2, max_size=8, unique=True))
def test_a_line_is_found_again(intercept, slope, xs):
    found = fit_line([(x, intercept + slope * x) for x in xs])
    assert found == pytest.approx((intercept, slope), abs=1e-8)


def test_a_line_needs_two_points():
    with pytest.raises(ValueError, match="two different x"):
        fit_line([(1.0, 2.0), (1.0, 3.0)])
