"""The stopwatch measures the call, and lets no method have faster products than another."""

import time

import pytest
import torch

from qlora_lab.machine import matmul
from qlora_lab.machine.stopwatch import seconds_of


def test_it_measures_the_call():
    assert seconds_of(time.sleep, 0.05) >= 0.05


def test_products_are_pytorchs_own_inside_and_as_before_afterwards(monkeypatch):
    monkeypatch.setattr(matmul, "_onednn_is_faster", lambda: True)
    found, x = [], torch.ones(2, 2)
    seconds_of(lambda: found.append(matmul.prefers_onednn(x)))
    with pytest.raises(ZeroDivisionError):
        seconds_of(lambda: 1 / 0)
    assert found == [False] and matmul.prefers_onednn(x)
