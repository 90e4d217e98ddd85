"""Sentences about a record: each is said where its numbers say so, and not where they say something else."""

import math

import pytest
from test_recorded_runs import run

from qlora_lab.evaluation import conclusions
from qlora_lab.evaluation.recorded_runs import BEFORE, LOSS, PROSE, CostRecord

FULL, LORA, QLORA = "full", "lora r16 alpha 32", "qlora nf4 dq r16 alpha 32"
NAMES = {FULL: "full", QLORA: "QLoRA"}


def made(settings, seeds=(1, 2, 3)) -> dict:
    """Runs of one condition: {key: run}. settings: of the runs, and lists, of which each seed takes its own."""
    runs = {}
    for place, seed in enumerate(seeds):
        own = {name: value[place] if isinstance(value, list) else value for name, value in settings.items()}
        runs[f"{own} seed {seed}"] = run(own.pop("method"), seed, own.pop("loss"), **own)
    return runs


def qlora(rank=16, alpha=None, **more) -> dict:
    own = {"method": "qlora", "rank": rank, "datatype": "nf4", "double_quant": True, "learning_rate": 4e-3}
    return own | ({"alpha": alpha} if alpha else {}) | more


def full(**more) -> dict:
    return {"method": "full", "learning_rate": 2e-4} | more


def sweep(settings: dict, losses: dict) -> dict:
    """Runs that choose a rate: {rate: loss}, seed 0, nothing else measured."""
    runs = {}
    for rate, loss in losses.items():
        one = run(settings["method"], 0, loss, **{k: v for k, v in settings.items() if k != "method"})
        del one["exact match"]
        runs[f"{settings} at {rate}"] = one | {"learning_rate": rate}
    return runs


def around(best: float) -> dict:
    return {best * factor: 0.1 * (1 + abs(math.log2(factor))) for factor in (0.25, 0.5, 1, 2, 4)}


def record(*parts) -> CostRecord:
    return CostRecord({"runs": {key: value for part in parts for key, value in part.items()}})


THEIRS = made(full(loss=[0.05, 0.06, 0.055], correct=[55, 53, 54], **{PROSE: [3.78, 3.79, 3.77], BEFORE: 3.7}))
WORSE = made(qlora(loss=[0.08, 0.09, 0.086], correct=[41, 38, 40], **{PROSE: [4.3, 4.4, 4.35], BEFORE: 3.9}))
SAME = made(qlora(loss=[0.05, 0.061, 0.054], correct=[54, 54, 55], **{PROSE: [3.77, 3.8, 3.77], BEFORE: 3.9}))
BETTER = made(qlora(loss=[0.04, 0.05, 0.046], correct=[56, 53, 53], **{PROSE: [3.77, 3.8, 3.77], BEFORE: 3.9}))
PARTLY = made(qlora(loss=[0.05, 0.061, 0.054], correct=[54, 54, 55], **{PROSE: [4.3, 4.4, 4.35], BEFORE: 3.9}))


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (WORSE, "does not hold here: QLoRA is worse in all 3 measures."),
        (PARTLY, "does not hold here in 1 of 3 measures."),
        (SAME, "is neither refuted here nor shown: no clear difference in any measure."),
        (BETTER, "holds here: QLoRA is worse in none of the 3 measures."),
    ],
)
def test_the_claim_holds_or_not_as_the_numbers_say(ours, said):
    lines = conclusions.as_good(record(ours, THEIRS), QLORA, FULL, NAMES).splitlines()
    assert lines[0] == f'"QLoRA keeps the quality of full" {said}'
    assert len(lines) == 5 and all("3 seeds" in line for line in lines[1:4])


def test_a_verdict_has_its_interval_and_its_word():
    lines = conclusions.as_good(record(WORSE, THEIRS), QLORA, FULL, NAMES).splitlines()
    assert lines[1] == "  loss on new commands: +0.030 (+0.029 to +0.032), worse (3 seeds)"
    assert lines[2].startswith("  share of commands answered exactly: -0.143 (") and "), worse" in lines[2]
    better = conclusions.as_good(record(BETTER, THEIRS), QLORA, FULL).splitlines()
    assert better[1].endswith("better (3 seeds)") and better[2].endswith("no clear difference (3 seeds)")


def test_one_measure_is_compared_in_a_line():
    found = record(WORSE, THEIRS)
    line = conclusions.compared(found, QLORA, FULL, LOSS, NAMES)
    assert line == "loss on new commands: QLoRA minus full +0.030 (+0.029 to +0.032), worse (3 seeds)"
    assert conclusions.compared(found, FULL, QLORA, LOSS).endswith("-0.030 (-0.032 to -0.029), better (3 seeds)")


def test_forgetting_is_told_from_a_base_that_was_worse_before():
    assert conclusions.forgetting(record(THEIRS), FULL, NAMES).startswith(
        "full forgets: loss on prose 3.700 before, +0.0"
    )
    still = made(qlora(loss=[0.1, 0.1, 0.1], **{PROSE: [3.9, 3.91, 3.89], BEFORE: 3.9}))
    assert conclusions.forgetting(record(still), QLORA, NAMES).startswith(
        "QLoRA neither clearly forgets nor gains: loss on prose 3.9"
    )
    less = made(qlora(loss=[0.1, 0.1, 0.1], **{PROSE: [3.7, 3.71, 3.69], BEFORE: 3.9}))
    assert conclusions.forgetting(record(less), QLORA).startswith(f"{QLORA} gains")


def test_the_table_judges_against_the_first_and_ends_in_the_difference():
    rows = conclusions.method_rows(record(THEIRS, WORSE), {"full": FULL, "QLoRA": QLORA})
    assert list(rows) == ["full", "QLoRA", "QLoRA − full"]
    assert [verdict for _, _, verdict in rows["full"]] == ["", "", "", ""]
    assert [verdict for _, _, verdict in rows["QLoRA"]] == ["worse"] * 4  # 16 bytes for each of its 16,000 parameters
    assert rows["QLoRA"][1][:2] == ("0.085", "0.073–0.098")
    assert rows["QLoRA − full"][1] == ("+0.030", "+0.029 to +0.032", "worse")
    assert rows["QLoRA − full"][2][0] == "−0.14" and rows["QLoRA − full"][0][1].startswith("+")
    same = conclusions.method_rows(record(THEIRS, SAME), {"full": FULL, "QLoRA": QLORA})
    assert [verdict for _, _, verdict in same["QLoRA − full"]][1:] == ["no clear difference"] * 3


def test_a_comparison_is_fair_where_both_rates_were_chosen():
    unfair = conclusions.fairly(record(WORSE, THEIRS), (QLORA, FULL), NAMES)
    assert unfair == "Not yet a fair comparison: each had 0 rates to choose from."
    half = record(WORSE, THEIRS, sweep(qlora(), {4e-3: 0.08}), sweep(full(), around(2e-4)))
    assert "QLoRA had one rate, full had 5 rates" in conclusions.fairly(half, (QLORA, FULL), NAMES)
    whole = record(WORSE, THEIRS, sweep(qlora(), around(4e-3)), sweep(full(), around(2e-4)))
    expected = "A fair comparison: each at its chosen rate (QLoRA 0.004, full 0.0002)."
    assert conclusions.fairly(whole, (QLORA, FULL), NAMES) == expected
    assert conclusions.as_good(whole, QLORA, FULL, NAMES).endswith(expected)


def test_a_rate_that_is_chosen_and_not_yet_run_makes_nothing_fair():
    found = record(WORSE, THEIRS, sweep(qlora(), around(2e-3)), sweep(full(), around(2e-4)))
    assert found.chosen_rate(QLORA) == 2e-3 and not found.settled(QLORA) and found.settled(FULL)
    said = conclusions.fairly(found, (QLORA, FULL), NAMES)
    assert said == "Not yet a fair comparison: not run at the rate that was chosen: QLoRA."
    assert conclusions.rates_chosen(found).endswith(
        f"chosen: 2 of 2 ways to fine-tune. Not yet run at theirs: {QLORA}."
    )


def test_how_many_rates_are_chosen_is_counted():
    few = sweep(full(), {5e-5: 0.1, 2e-4: 0.06, 8e-4: 0.09})
    one = conclusions.rates_chosen(record(WORSE, THEIRS, few, sweep(qlora(), {4e-3: 0.08})))
    assert "chosen: 0 of 2" in one and "All adapters had one rate, 0.004, full fine-tuning had 3 rates: not yet" in one
    two = conclusions.rates_chosen(record(WORSE, THEIRS, few, sweep(qlora(), {4e-3: 0.08, 2e-3: 0.07})))
    assert "chosen: 0 of 2" in two and "Each had 3 rates at most: not yet a fair comparison" in two
    some = conclusions.rates_chosen(record(WORSE, THEIRS, sweep(full(), around(2e-4))))
    assert "chosen: 1 of 2" in some and some.endswith(f"Still open: {QLORA}.")
    every = record(WORSE, THEIRS, sweep(qlora(), around(4e-3)), sweep(full(), around(2e-4)))
    assert "chosen: 2 of 2" in conclusions.rates_chosen(every) and "best rate of each" in conclusions.rates_chosen(
        every
    )


def ranked(**losses) -> tuple[CostRecord, dict]:
    runs = [made(qlora(int(name[1:]), loss=values)) for name, values in losses.items()]
    found = record(*runs)
    return found, found.by_rank("alpha = 2r")


def test_ranks_are_too_small_or_too_large_only_where_it_shows():
    small, large = conclusions.rank_extremes(*ranked(r1=[0.9, 0.91, 0.92], r16=[0.5, 0.51, 0.5], r64=[0.8, 0.82, 0.8]))
    assert small.startswith("too small limits learning: yes; loss on new commands, rank 1 minus rank 16 +0.407")
    assert large.startswith("too large is worse: yes; loss on new commands, rank 64 minus rank 16 +0.303")
    small, large = conclusions.rank_extremes(*ranked(r1=[0.52, 0.5, 0.5], r16=[0.5, 0.51, 0.5], r64=[0.4, 0.4, 0.41]))
    assert "limits learning: yes" in small
    assert large == "too large is worse: not seen; loss on new commands, rank 64 has the best mean"
    small, _ = conclusions.rank_extremes(*ranked(r1=[0.52, 0.5, 0.5], r16=[0.5, 0.51, 0.5], r64=[0.9, 0.9, 0.91]))
    assert "limits learning: not seen;" in small
    low = made(qlora(1, loss=[0.5, 0.5, 0.51], correct=[61, 62, 63]))  # more loss, and more answered exactly
    found = record(low, made(qlora(64, loss=[0.4, 0.41, 0.42], correct=50)))
    small, large = conclusions.rank_extremes(found, found.by_rank("alpha = 2r"), "test")
    assert small == "too small limits learning: not seen; share of commands answered exactly, rank 1 has the best mean"
    assert large.startswith("too large is worse: yes; share of commands answered exactly, rank 64 minus rank 1 -0.")


def test_whether_one_rate_suits_all_ranks_is_asked_of_chosen_rates():
    def with_rates(**best):
        sweeps = [sweep(qlora(int(r[1:]), 32), around(rate)) for r, rate in best.items()]
        return record(THEIRS, sweep(full(), around(2e-4)), *sweeps)

    same = conclusions.same_rate_for_all_ranks(with_rates(r1=2e-3, r4=2e-3, r64=2e-3), "alpha = 32")
    assert "the same up to a factor of 2 (rank 1 0.002, rank 4 0.002, rank 64 0.002), 10 times full" in same
    near = conclusions.same_rate_for_all_ranks(with_rates(r1=2e-3, r4=2e-3, r64=1e-3), "alpha = 32")
    assert "the same up to a factor of 2" in near and "5 to 10 times full fine-tuning's 0.0002" in near
    apart = conclusions.same_rate_for_all_ranks(with_rates(r1=8e-3, r64=1e-3), "alpha = 32")
    assert "not the same: a factor of 8 apart; times the root of the rank they are the same (rank 1" in apart
    nearly = conclusions.same_rate_for_all_ranks(with_rates(r1=4e-3, r64=1e-3), "alpha = 32")
    assert "a factor of 4 apart; times the root of the rank they are the same up to a factor of 2 (" in nearly
    more = conclusions.same_rate_for_all_ranks(with_rates(r1=1e-3, r64=4e-3), "alpha = 32")
    assert "not the same: a factor of 4 apart (rank 1" in more
    early = conclusions.same_rate_for_all_ranks(with_rates(r1=2e-3), "alpha = 32")
    assert early == "alpha = 32: cannot be said yet; the rate is chosen for 1 of 1 ranks"
    assert "0 of 0 ranks" in conclusions.same_rate_for_all_ranks(with_rates(r1=2e-3), "rsLoRA")


def test_the_chapters_claim_on_the_runs_at_one_rate():
    """The runs that notebook 07 began with, seeds 0 to 2, whatever has been recorded since."""
    raw = CostRecord.load().raw
    rates = {"full": (5e-5, 2e-4, 8e-4)}
    first = {
        key: run
        for key, run in raw["runs"].items()
        if run["seed"] < 3
        and "exact match" in run
        and run["learning_rate"] in rates.get(run["method"], (4e-3,))
        and " alpha " not in key  # as the first version of the script named its runs
        and (run["method"] != "full" or run["learning_rate"] == 2e-4 or run["seed"] == 0)
    }
    lines = conclusions.as_good(CostRecord({"runs": first}), QLORA, FULL, NAMES).splitlines()
    assert lines[0] == '"QLoRA keeps the quality of full" does not hold here: QLoRA is worse in all 3 measures.'
    assert [line.partition(": ")[2] for line in lines[1:4]] == [
        "+0.022 (+0.003 to +0.041), worse (3 seeds)",
        "-0.150 (-0.216 to -0.084), worse (3 seeds)",
        "+0.610 (+0.212 to +1.008), worse (3 seeds)",
    ]
    assert lines[4] == "  Not yet a fair comparison: QLoRA had one rate, full had 3 rates to choose from."
    said = conclusions.rates_chosen(CostRecord({"runs": first}))
    assert "chosen: 0 of 9" in said and "All adapters had one rate, 0.004, full fine-tuning had 3 rates" in said


PLAIN, FP4, NEVER = "qlora nf4 dq r16 alpha 32", "qlora fp4 dq r16 alpha 32", "qlora mxfp4 r16 alpha 32"
BASES = {"nf4 dq": PLAIN, "fp4 dq": FP4, "int4 dq": "qlora int4 dq r16 alpha 32", "mxfp4": NEVER}
PLAIN_RUNS = made(qlora(loss=[0.08, 0.09, 0.086], correct=[41, 40, 39]))
ON_FP4 = made(qlora(loss=[0.1, 0.11, 0.107], correct=[42, 40, 40], datatype="fp4"))
ON_INT4 = made(qlora(loss=[0.07, 0.081, 0.075], correct=[30, 29, 29], datatype="int4"))


def test_ways_are_sorted_by_what_their_seeds_show():
    found = record(PLAIN_RUNS, ON_FP4, ON_INT4)
    said = "better: int4 dq; worse: fp4 dq; not recorded: mxfp4."
    assert conclusions.sorted_by_verdict(found, BASES, "nf4 dq") == f"loss on new commands, against nf4 dq. {said}"
    said = "no clear difference: fp4 dq; worse: int4 dq; not recorded: mxfp4."
    assert conclusions.sorted_by_verdict(found, BASES, "nf4 dq", "test").endswith(f"against nf4 dq. {said}")
    none = conclusions.sorted_by_verdict(found, {"nf4 dq": PLAIN}, "nf4 dq")
    assert none == "loss on new commands, against nf4 dq. Nothing to compare."
    missing = conclusions.sorted_by_verdict(record(ON_FP4), BASES, "nf4 dq")
    assert missing.endswith("not recorded: fp4 dq, int4 dq, mxfp4.")


def test_one_rate_is_the_one_that_was_chosen():
    none = conclusions.at_one_rate(record(PLAIN_RUNS, ON_FP4), BASES, "nf4 dq")
    assert none == "No rate is chosen yet for nf4 dq, which had 0 rates: not yet a fair comparison."
    same = conclusions.at_one_rate(record(PLAIN_RUNS, ON_FP4, sweep(qlora(), around(4e-3))), BASES, "nf4 dq")
    assert same == "All at the rate chosen for nf4 dq, 0.004."
    other = made(qlora(loss=[0.1, 0.11, 0.1]) | {"learning_rate": 2e-3})
    moved = record(PLAIN_RUNS, other, ON_FP4, sweep(qlora(), around(2e-3)))
    said = "The rate chosen for nf4 dq is 0.002; at another: fp4 dq 0.004. Not yet fair."
    assert conclusions.at_one_rate(moved, BASES, "nf4 dq") == said


def test_a_rate_that_is_off_stands_beside_what_variants_change():
    ways = {"plain": PLAIN, "fp4": FP4, "int4": BASES["int4 dq"], "mxfp4": NEVER}
    rates = sweep(qlora(), around(4e-3) | {8e-3: 0.15})
    said = conclusions.rates_and_variants(record(PLAIN_RUNS, ON_FP4, ON_INT4, rates), ways, "plain")
    assert said == (
        "A rate off by a factor of two costs plain +0.050 to +0.100 nats (one seed); the variants change -0.010 (int4) "
        "to +0.020 (fp4), by their means."
    )
    one = conclusions.rates_and_variants(record(PLAIN_RUNS, ON_FP4, rates), ways, "plain")
    assert one.endswith("the variants change +0.020 (fp4), by their means.")
    assert conclusions.rates_and_variants(record(PLAIN_RUNS, rates), ways, "plain").endswith("no variant is recorded.")
    assert conclusions.rates_and_variants(record(PLAIN_RUNS), ways, "plain") == "No rate is chosen yet for plain."
