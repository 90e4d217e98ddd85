"""Arguments: what counts as a whole number, as a number, as one of the choices; and what is said of the rest."""

import numpy as np
import pytest

from qlora_lab.machine.arguments import check_choice, check_count, check_positive, is_count, is_number


@pytest.mark.parametrize("value", [1, 7, 2**40])
def test_a_count(value):
    check_count("steps", value)
    assert is_count(value) and is_number(value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2", None, np.int64(2)])
def test_no_count(value):
    assert not is_count(value)
    with pytest.raises(ValueError, match=r"steps .* is not allowed; give a whole number of at least 1"):
        check_count("steps", value)


def test_the_least_count_may_be_another():
    check_count("examples", 0, least=0)
    assert is_count(0, least=0) and not is_count(False, least=0) and not is_count(15, least=16)
    with pytest.raises(ValueError, match="examples -1 is not allowed; give a whole number of at least 0"):
        check_count("examples", -1, least=0)


@pytest.mark.parametrize("value", [0, -0.5, float("inf"), float("nan"), True, "1", None])
def test_no_positive_number(value):
    with pytest.raises(ValueError, match=r"rate .* is not allowed; give a positive number"):
        check_positive("rate", value)


def test_a_positive_number():
    for value in (1, 1e-9, np.float64(0.5)):
        check_positive("rate", value)


def test_a_choice():
    check_choice("method", "lora", ("full", "lora"))
    with pytest.raises(ValueError, match="unknown method 'lore'; choose one of full, lora"):
        check_choice("method", "lore", ("full", "lora"))
