"""Settings: what makes no sense is refused with what would; the rate rises, peaks and falls; the recorded run."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.training.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", 1.5), ("steps", True), ("batch_size", -1), ("accumulation", "2"),
        ("learning_rate", 0), ("learning_rate", float("nan")), ("max_grad_norm", -1), ("warmup", 1), ("warmup", -0.1),
        ("weight_decay", -1), ("seed", -1), ("seed", 2**32), ("checkpointing", "yes"),
        ("validate_every", 0), ("validate_every", 1.5), ("patience", 0), ("patience", True),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'lr'.*learning_rate"):
        Settings.of(lr=1)


@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.9), peak=st.floats(1e-6, 1))
def test_the_rate_rises_to_the_peak_and_falls_to_a_tenth(steps, warmup, peak):
    chosen = Settings(steps=steps, warmup=warmup, learning_rate=peak)
    rates = [chosen.rate(step) for step in range(1, steps + 1)]
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(peak)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0
    if top < steps - 1:
        assert rates[-1] == pytest.approx(peak / 10)


def test_the_recorded_run_is_the_default_one():  # README's picture says that it is
    recorded = json.loads((ROOT / "data" / "recorded" / "finetune-cpu.json").read_text(encoding="utf-8"))
    assert {**asdict(Settings()), **recorded["settings"]} == asdict(Settings())  # it knew no validation
