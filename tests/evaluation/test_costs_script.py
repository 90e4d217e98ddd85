"""The script that records what methods cost: what it runs in which order, and that it goes on where it was cut off.

No model is trained here: runs are made up, as a process of the script would return them.
"""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

from qlora_lab.evaluation.recorded_runs import BEFORE, LOSS, PROSE, CostRecord

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def costs(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("costs")


def result(job, best: float) -> dict:
    """A made-up result: the loss is least at the rate `best`."""
    rate, seed = job["condition"]["learning_rate"], job["seed"]
    ending = {LOSS: round(0.1 * (1 + abs(math.log2(rate / best))) + 0.001 * seed, 5), "loss of the last ten steps": 0.1}
    if not job["whole"]:
        return ending
    sizes = {"trained parameters": 1000, "bytes of weights": 10_000, "bytes of the adapter's file": 4000}
    exact = {name: {"correct": 50 + seed, "of": 100} for name in ("test", "paraphrases")}
    return ending | sizes | {BEFORE: 3.7, PROSE: 3.8 + 0.01 * seed, "exact match": exact}


@pytest.fixture
def started(costs, monkeypatch, tmp_path):
    """Runs the script's `main` with made-up results; returns (the jobs it ran, its record)."""

    def start(*words, best=lambda job: costs.MIDDLE[job["condition"]["method"]], fail=lambda job: False, stop=None):
        ran = []

        def in_a_process(arguments, threads):
            asked = json.loads(arguments[1])
            if not asked:
                return {"seconds": 1.0}
            if stop is not None and len(ran) == stop:
                raise KeyboardInterrupt
            job = asked["job"]
            ran.append((costs.Condition(**job["condition"]), job["seed"], job["whole"]))
            return {"error": "killed"} if fail(job) else result(job, best(job))

        out = tmp_path / "costs.json"
        monkeypatch.setattr(costs, "in_a_process", in_a_process)
        monkeypatch.setattr(sys, "argv", ["costs.py", "--model", "made up", "--out", str(out), *words])
        try:
            costs.main()
        except KeyboardInterrupt:
            assert stop is not None
        return ran, json.loads(out.read_text()) if out.exists() else None

    return start


def test_rates_of_a_part_are_chosen_before_its_seeds_run_and_every_way_runs_once_before_any_runs_twice(costs, started):
    ran, record = started("--seeds", "2")
    order = []
    for part in costs.PARTS:
        order += [(way.way, 0, False) for way in part for _ in range(5)]
        order += [(way.way, seed, True) for seed in (1, 2) for way in part]
    assert [(condition.way, seed, whole) for condition, seed, whole in ran] == order
    found = CostRecord(record)
    assert all(found.chosen_rate(way.way) == costs.MIDDLE[way.method] for part in costs.PARTS for way in part)
    assert [way.way for way in costs.PARTS[0][:3]] == ["full", "lora r16 alpha 32", "qlora nf4 dq r16 alpha 32"]
    ways = [way.way for part in costs.PARTS for way in part]
    assert len(set(ways)) == len(ways)  # rank 16 is the same by every scaling, and there once


def test_every_method_rank_and_alpha_gets_the_same_number_of_rates_equally_far_apart(costs, started):
    ran, _ = started("--seeds", "1")
    tried = {}
    for condition, _, whole in ran:
        if not whole:
            tried.setdefault(condition.way, []).append(condition.learning_rate)
    for way, rates in tried.items():
        middle = costs.MIDDLE[way.split()[0]]
        assert [rate / middle for rate in rates] == pytest.approx([0.25, 0.5, 1, 2, 4]), way


def test_where_the_best_lies_at_an_end_the_next_rate_is_tried(costs, started):
    def best(job):
        return {1: 16e-3, 64: 2.5e-4}.get(job["condition"]["rank"], 2e-3)

    only = [f"qlora nf4 dq r{rank} alpha {alpha}" for rank, alpha in ((1, 2), (4, 8), (64, 128))]
    ran, record = started("--seeds", "1", "--only", *only, best=best)
    found = CostRecord(record)
    assert {way: found.chosen_rate(way) for way in only} == dict(zip(only, (16e-3, 2e-3, 2.5e-4), strict=True))
    assert [len(found.rates(way)) for way in only] == [7, 5, 7]  # one beyond the best as well
    assert [condition.learning_rate for condition, _, whole in ran if whole] == [16e-3, 2.5e-4, 2e-3]


def test_it_goes_on_where_it_was_cut_off_and_does_nothing_twice(costs, started):
    only = ["--seeds", "2", "--only", "full", "lora"]
    whole, _ = started(*only, stop=8)
    rest, record = started(*only)
    assert len(whole) == 8 and len(set(whole + rest)) == len(whole + rest) == 14
    assert started(*only) == ([], record)
    more, _ = started("--seeds", "3", "--only", "full", "lora")
    assert [(condition.method, seed) for condition, seed, _ in more] == [("full", 3), ("lora", 3)]


def test_a_run_that_failed_is_tried_again_by_the_next_call_only(costs, started):
    only = ["--seeds", "1", "--only", "full"]
    ran, _ = started(*only, fail=lambda job: job["condition"]["learning_rate"] == 1e-4)
    assert len(ran) == 5 and not any(whole for _, _, whole in ran)  # of four rates none is chosen
    again, record = started(*only)
    assert [(condition.learning_rate, whole) for condition, _, whole in again] == [(1e-4, False), (2e-4, True)]
    assert CostRecord(record).chosen_rate("full") == 2e-4


def test_a_rate_at_which_training_breaks_down_is_never_the_best(costs):
    way = costs.Condition("full")
    runs = {}
    for rate, loss in ((5e-5, 0.4), (1e-4, 0.3), (2e-4, 0.2), (4e-4, 0.1), (8e-4, None)):
        runs[str(rate)] = {"method": "full", "learning_rate": rate, "seed": 0, LOSS: loss}
    plan = costs.Plan(runs, [[way]], [1])
    assert [(job.condition.learning_rate, job.whole) for job in plan.next_jobs()] == [(4e-4, True)]


def test_a_model_that_breaks_at_every_rate_ends_the_search(costs):
    way = costs.Condition("lora", 16, alpha=32)
    plan = costs.Plan({}, [[way]], [1])
    made = 0
    while jobs := plan.next_jobs():
        for job in jobs:
            made += 1
            own = {"seed": job.seed, LOSS: None, "broke": "the loss is nan"}
            plan.runs[job.key] = costs.asdict(job.condition) | own
    assert 5 < made <= 5 + costs.MORE_RATES


def test_runs_of_the_record_that_comes_along_count_for_what_they_are(costs):
    """Three rates of full fine-tuning are there, and 0.004 of adapters with alpha twice the rank."""
    runs = {
        key: run
        for key, run in CostRecord.load().raw["runs"].items()
        if " alpha " not in key and run["seed"] in (0, 1, 2)
    }
    plan = costs.Plan(runs, costs.PARTS, [1])
    missing = {way.way: len(plan.rates_missing(way)) for part in costs.PARTS for way in part}
    assert missing["full"] <= 2 and missing["lora r16 alpha 32"] <= 4 and missing["qlora nf4 dq r64 alpha 128"] <= 4


def test_hours_are_counted_from_what_runs_took(costs):
    way = costs.Condition("lora", 16, alpha=32)
    run = {"method": "lora", "rank": 16, "alpha": 32, "seed": 0, LOSS: 0.1, "run seconds": 100.0}
    plan = costs.Plan({}, [[way]], [1, 2])
    assert plan.hours_left(1) is None
    plan.runs["a"] = run | {"learning_rate": 2e-3}
    assert plan.hours_left(1) == pytest.approx((4 + 2) * 100 / 3600)  # no whole run yet: as long as the others
    plan.runs["b"] = run | {"learning_rate": 4e-3, "seed": 1, "run seconds": 400.0, "exact match": {}}
    assert plan.hours_left(1) == pytest.approx((4 * 100 + 2 * 400) / 3600)
    assert plan.hours_left(2) == pytest.approx((4 * 100 + 2 * 400) / 3600 / 2)


def test_a_record_of_another_budget_is_left_alone(started, capsys):
    _, before = started("--seeds", "1", "--only", "full")
    with pytest.raises(SystemExit):
        started("--seeds", "1", "--only", "full", "--steps", "3")
    assert "holds runs with another budget" in capsys.readouterr().err
    ran, after = started("--seeds", "1", "--only", "full")
    assert not ran and after == before


def test_a_dry_run_runs_nothing(started, capsys):
    assert started("--dry-run") == ([], None)
    assert "rates chosen: 0 of 19" in capsys.readouterr().out
