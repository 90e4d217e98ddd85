"""A slice of `make fuzz`, and proof that it sees what it is to see. The 2,000 and more: tests/machines/fuzz.py."""

import pytest
import torch
from machines.fuzz import run_case

from qlora_lab import lora
from qlora_lab.lora import LoRALinear


@pytest.mark.parametrize("seed", range(60))
def test_every_outcome_is_equal_or_refused(seed):
    outcome = run_case(seed)
    assert outcome.kind != "FINDING", f"--only {seed}: {outcome.what}\n{outcome.case}"


def _findings(seeds) -> list[str]:
    return [outcome.what for outcome in map(run_case, seeds) if outcome.kind == "FINDING"]


def test_a_case_is_the_same_each_time():
    assert [run_case(seed) for seed in range(5)] == [run_case(seed) for seed in range(5)]


def test_the_fuzz_sees_a_wrong_value(monkeypatch):
    right = LoRALinear.forward
    monkeypatch.setattr(LoRALinear, "forward", lambda self, *inputs, **options: 1.01 * right(self, *inputs, **options))
    assert any("differs" in what for what in _findings(range(40)))


def test_the_fuzz_sees_a_raw_error(monkeypatch):
    def fails(self, *inputs, **options):
        return torch.ones(2) @ torch.ones(3)

    monkeypatch.setattr(LoRALinear, "forward", fails)
    assert any("RuntimeError: inconsistent tensor size" in what for what in _findings(range(40)))


def test_the_fuzz_sees_what_a_refusal_changed(monkeypatch):
    right = lora.find_targets

    def changes_first(model, targets, *rest):
        model.requires_grad_(False)
        return right(model, targets, *rest)

    monkeypatch.setattr(lora, "find_targets", changes_first)
    assert any("changed after a refusal" in what for what in _findings(range(60)))
