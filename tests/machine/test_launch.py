"""A function of a notebook in several processes: what it leans on goes along, or is named."""

import math
import os

import pytest
import torch
import torch.distributed as dist

from qlora_lab.machine import processes
from qlora_lab.machine.launch import environment, program, together

RATE, SHAPE, LOOSE = 0.5, (2, 3), {"a": 1}


class Loose:
    pass


def double(tensor, by=RATE):
    return 4 * by * tensor


def total(tensor):
    dist.all_reduce(tensor)
    return tensor


def work(tensor, model):  # `model` is a name of its own, whatever else is called so
    shares = [double(total(tensor + processes.rank())) for _ in range(1)]
    return {"sum": shares[0], "rank": processes.rank(), "shape": SHAPE, "e": math.e, "model": model["a"]}


def leans_on_a_dictionary():
    return LOOSE["a"]


def leans_on_a_class():
    return Loose()


def fails():
    raise ValueError("not in here")


def test_a_program_holds_what_its_function_leans_on_and_nothing_else():
    text = program(work)
    names = {}
    exec(compile(text, "<program>", "exec"), names)  # its call is for a file that is started
    assert names["RATE"] == RATE and names["SHAPE"] == SHAPE and names["dist"] is dist and names["math"] is math
    assert names["processes"] is processes and names["double"](3) == 6 and callable(names["total"])
    assert "LOOSE" not in names and "pytest" not in names and "model" not in names


def test_what_cannot_go_along_is_named():
    with pytest.raises(ValueError, match="leans_on_a_dictionary uses LOOSE, a dict, which cannot go along"):
        program(leans_on_a_dictionary)
    with pytest.raises(ValueError, match="leans_on_a_class uses Loose, a class, which cannot go along"):
        program(leans_on_a_class)


@pytest.mark.slow
def test_two_processes_give_back_what_they_return_in_the_order_of_their_ranks():
    found = together(2, work, torch.ones(3), {"a": [1, "b"]})
    assert [result["rank"] for result in found] == [0, 1]
    for result in found:
        assert torch.equal(result["sum"], torch.full((3,), 6.0))
        assert result["shape"] == SHAPE and result["e"] == math.e and result["model"] == [1, "b"]


@pytest.mark.slow
def test_one_that_fails_is_told_with_what_it_said():
    with pytest.raises(RuntimeError, match=r"(?s)fails failed in one of 1 processes.*ValueError: not in here"):
        together(1, fails)


def test_processes_find_the_package_and_have_one_thread(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    found = environment()
    first, *others = found["PYTHONPATH"].split(os.pathsep)
    assert os.path.isfile(os.path.join(first, "qlora_lab", "__init__.py")) and others == ["elsewhere"]
    assert found["OMP_NUM_THREADS"] == "1"
