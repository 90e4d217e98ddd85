"""What wrong results have to do with the right ones: told where it holds of all inputs, and else not at all."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_lab.checks import EXERCISES
from qlora_lab.checks.exercise import Exercise, judge
from qlora_lab.checks.resemblances import changed_result, evidence, other_parts

SUMS = [name for name, exercise in EXERCISES.items() if exercise.parts is not None]


def a_sum(n, size):
    return 3 * n + size**2 + 7


def parts_of_it(n, size):
    return {"three for each": 3 * n, "squares": size**2, "seven": 7}


def numbers(generator, number):
    return tuple(torch.randint(2, 1000, (2,), generator=generator).tolist())


SUM = Exercise("a-sum", numbers, a_sum, parts=parts_of_it)


@pytest.mark.parametrize("name", SUMS)
def test_parts_are_those_of_the_solution(name):
    exercise = EXERCISES[name]
    for number in range(exercise.cases):
        arguments = exercise.draw(torch.Generator().manual_seed(number), number)
        total = sum(torch.as_tensor(part).double() for part in exercise.parts(*arguments).values())
        torch.testing.assert_close(total, torch.as_tensor(exercise.solution(*arguments)).double(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda n, size: 3 * n + 7, "Part by part: squares missing, the rest right."),
        (lambda n, size: 3 * n, "Part by part: squares missing, seven missing, the rest right."),
        (
            lambda n, size: 6 * n + size**2 + 7,
            "Part by part: three for each 2 times what it should be, the rest right.",
        ),
        (lambda n, size: size**2 + 7 - 3 * n, "Part by part: three for each subtracted, the rest right."),
        (lambda n, size: 3 * n + size + 7, "Squares: this part is what it should be, divided by `size`."),
        (lambda n, size: 3 * (n + 1) + size**2 + 7, "It is 3 too many in each case."),
        (lambda n, size: a_sum(n, size) + n, "It is too large by `n` in each case."),
        (lambda n, size: a_sum(n, size) * size, "All of it is what it should be, times `size`."),
        (lambda n, size: a_sum(size, n), "It would be right with `n` and `size` exchanged."),
        (lambda n, size: a_sum(n, size - 1), "It would be right with `size - 1` for `size`."),
        (lambda n, size: n**3 + size, None),
        (lambda n, size: 6 * n + 2 * size**2 + 7, None),  # two factors may mean other parts
    ],
)
def test_a_sum(answer, words):
    found = judge(SUM, answer)
    told = found.message.split(" With (")[0]
    assert found.status == "wrong"
    assert told == words if words else found.message.startswith("With ("), found


@given(st.lists(st.floats(0.5, 50), min_size=3, max_size=3, unique=True), st.sampled_from((2.0, 0.5, 8.0, 1 / 7)))
@settings(max_examples=50, deadline=None)
def test_a_factor_is_found_of_numbers_and_of_tensors(values, factor):
    scalars = [((value,), factor * value, value) for value in values]
    tensors = [((value,), factor * torch.tensor(values) * value, torch.tensor(values) * value) for value in values]
    for cases in (scalars, tensors):
        told = changed_result(["x"], cases, 1e-6)
        assert f"{factor:.6g} times what it should be" in told


@given(st.lists(st.integers(2, 10**6), min_size=8, max_size=8, unique=True), st.randoms())
@settings(max_examples=100, deadline=None)
def test_nothing_is_told_of_results_without_a_relation(values, random):
    cases = [((n, random.randrange(2, 999)), random.uniform(0.1, 9.0) * n + 0.5, float(n)) for n in values]
    assert changed_result(["n", "size"], cases, 0.0) is None
    assert other_parts(["n", "size"], lambda n, size: {"n": n - size, "size": size}, cases, 1e-6) is None


def test_a_result_like_no_other_is_only_wrong():
    for odd in (object(), float("nan"), 10**400, -(10**5000), "text", [], torch.zeros(0), (None,), {1: 2}, lambda: 1):
        assert judge(SUM, lambda n, size, odd=odd: odd).status == "wrong"


def test_a_result_that_follows_in_part():
    cases = [((n,), (2.0 * n, math.sin(n)), (float(n), math.cos(n))) for n in (3, 5, 8, 13)]
    assert changed_result(["n"], cases, 1e-6) is None
    told = changed_result(["n"], cases, 1e-6, all_values=False)
    assert told == "Value 1 of 2 is wrong: all of it is 2 times what it should be."


def test_values_in_the_wrong_places():
    cases = [((n,), (n + 1.0, float(n), n * n * 1.0), (float(n), n * n * 1.0, n + 1.0)) for n in (3, 5, 8)]
    assert changed_result(["n"], cases, 1e-6) == "The values are right, but where 1 to 3 should be, there is 3, 1, 2."


def test_few_bits_are_no_evidence():
    assert evidence([True] * 8) < evidence(0.5) < evidence(torch.rand(3)) and evidence(3) == 2.0
