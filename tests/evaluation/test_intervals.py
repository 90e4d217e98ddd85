"""Intervals: the quantiles of the printed tables, the share that hold the truth, and what pairing gains."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.evaluation.intervals import Interval, mean_interval, paired_difference, student_quantile


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_the_quantiles_are_those_of_the_tables(freedom, quantile):
    assert student_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_many_degrees_of_freedom_are_a_gaussian():
    assert student_quantile(5000) == pytest.approx(1.96, abs=2e-3)
    assert student_quantile(3, 0.5) == pytest.approx(0.764892, abs=1e-6)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_nineteen_of_twenty_intervals_hold_the_truth(count):
    samples = torch.randn(4000, count, generator=torch.Generator().manual_seed(count)).tolist()
    found = [mean_interval(sample) for sample in samples]
    holds = sum(interval.low <= 0 <= interval.high for interval in found) / len(found)
    assert abs(holds - 0.95) < 4 * math.sqrt(0.95 * 0.05 / len(found))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8), st.floats(-100, 100), st.floats(0.01, 100))
def test_an_interval_moves_and_stretches_with_its_values(values, shift, factor):
    plain, moved = mean_interval(values), mean_interval([factor * v + shift for v in values])
    size = factor * max(map(abs, values)) + abs(shift) + 1
    for a, b in ((plain.mean, moved.mean), (plain.low, moved.low), (plain.high, moved.high)):
        assert b == pytest.approx(factor * a + shift, abs=1e-7 * size * student_quantile(1))


def test_pairing_takes_out_what_the_seed_does():
    source = random.Random(0)
    seeds = {seed: source.gauss(0, 10) for seed in range(4)}
    ours = {seed: value + 1 + source.gauss(0, 0.1) for seed, value in seeds.items()}
    difference = paired_difference(ours, seeds)
    assert difference.sign == 1 and 0.7 < difference.low < 1 < difference.high < 1.3
    assert paired_difference(seeds, ours).sign == -1
    assert mean_interval(list(ours.values())).high - mean_interval(list(ours.values())).low > 5


def test_only_seeds_that_both_have_count():
    assert paired_difference({0: 1.0, 1: 2.0, 2: 99.0}, {0: 0.0, 1: 1.5}) == mean_interval([1.0, 0.5])


def test_an_interval_that_touches_zero_says_nothing():
    assert Interval(1.0, 0.0, 2.0, 3).sign == 0 and Interval(1.0, 0.1, 1.9, 3).sign == 1


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan]])
def test_too_few_or_broken_values_are_refused(values):
    with pytest.raises(ValueError, match=r"two at least|not all finite"):
        mean_interval(values)


def test_seeds_without_a_partner_are_refused():
    with pytest.raises(ValueError, match="1 in common; two are needed"):
        paired_difference({0: 1.0, 1: 2.0}, {1: 2.0, 5: 1.0})


def test_a_quantile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no quantile"):
        student_quantile(0)
