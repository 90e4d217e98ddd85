"""The default rate: as it was for the default model, as QLoRA's for seven billion, and falling between them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import adapted, pairs, tiny_model, tiny_tokenizer

from qlora_lab.lora import inject_lora
from qlora_lab.models.base_model import load_skeleton
from qlora_lab.training import learning_rate
from qlora_lab.training.learning_rate import base_size, default_rate, why_rate
from qlora_lab.training.loop import finetune
from qlora_lab.training.settings import Settings


@pytest.mark.parametrize(
    ("count", "rate"),
    [(1, 3e-3), (134_515_008, Settings().learning_rate), (7e9, 2e-4), (6.74e9, 2.1e-4), (33e9, 1e-4), (65e9, 1e-4)],
)
def test_known_sizes(count, rate):
    assert default_rate(count) == pytest.approx(rate) and why_rate(count)


@pytest.mark.model
def test_the_default_model_with_its_adapters_keeps_its_rate():
    skeleton = load_skeleton()
    assert default_rate(skeleton) == default_rate(inject_lora(skeleton, 16, 32)) == Settings().learning_rate


@pytest.mark.parametrize("kind", ["qlora", "lora", "full"])
def test_adapters_do_not_count(kind, monkeypatch):
    """The default model with adapters has 139 million parameters, and its rate stays."""
    plain = sum(p.numel() for p in tiny_model().parameters())
    model = adapted(kind=kind, rank=32)
    assert base_size(model) == plain
    monkeypatch.setattr(learning_rate, "SMALL", (plain, 3e-3))
    assert default_rate(model) == 3e-3


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_a_larger_base_never_has_a_higher_rate(one, other):
    small, large = sorted((one, other))
    assert 1e-4 <= default_rate(large) <= default_rate(small) <= 3e-3


def test_a_run_takes_it_and_says_so(monkeypatch, tmp_path):
    from qlora_lab.training import loop

    monkeypatch.setattr(loop, "default_rate", lambda model: 7e-4)
    told = []
    options = {"steps": 2, "batch_size": 4, "out": tmp_path / "run", "on_begin": told.append}
    result = finetune(adapted(), tiny_tokenizer(), pairs(), **options)
    assert result.settings.learning_rate == told[0].learning_rate == 7e-4
    given_one = finetune(adapted(), tiny_tokenizer(), pairs(), steps=2, batch_size=4, learning_rate=1e-2)
    assert given_one.settings.learning_rate == 1e-2


def test_a_resumed_run_keeps_its_rate_whatever_the_default_has_become(monkeypatch, tmp_path):
    from qlora_lab.training import loop

    class Stop(Exception):
        pass

    def stop(record):
        if record.step == 3:
            raise Stop

    options = {"steps": 4, "batch_size": 4, "out": tmp_path / "run", "checkpoint_every": 2}
    with pytest.raises(Stop):
        finetune(adapted(), tiny_tokenizer(), pairs(), on_step=stop, **options)
    monkeypatch.setattr(loop, "default_rate", lambda model: 7e-4)
    resumed = finetune(adapted(), tiny_tokenizer(), pairs(), resume=True, **options)
    assert resumed.resumed_from == 2 and resumed.settings.learning_rate == 3e-3


@pytest.mark.parametrize(("epochs", "steps"), [(1, 6), (2.5, 15), (0.01, 1), (0.2, 2)])
def test_epochs_in_place_of_steps(epochs, steps):
    result = finetune(adapted(), tiny_tokenizer(), pairs(24), batch_size=4, epochs=epochs)
    assert len(result.records) == result.settings.steps == steps


def test_epochs_count_what_is_accumulated_and_packed():
    told = []
    options = {"batch_size": 4, "epochs": 2, "on_begin": told.append}
    finetune(adapted(), tiny_tokenizer(), pairs(24), accumulation=3, **options)
    finetune(adapted(), tiny_tokenizer(), pairs(24), packing=True, max_length=200, **options)
    assert [settings.steps for settings in told] == [4, 2]


@pytest.mark.parametrize(("options", "words"), [({"epochs": 0}, "epochs 0"), ({"epochs": 1, "steps": 3}, "not both")])
def test_epochs_that_make_no_sense(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        finetune(adapted(), tiny_tokenizer(), pairs(), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
