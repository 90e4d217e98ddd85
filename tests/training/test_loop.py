"""Training: seeds decide everything, and a run killed in the middle ends as if nothing had happened."""

import os
import signal
from pathlib import Path

import pytest
import torch
from tiny import adapted, pairs, tiny_tokenizer
from workers import Ended, alone

from qlora_lab.machine.files import load_tensors
from qlora_lab.training.loop import NonFiniteLoss, finetune

FAST = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2}


def trained(kind="qlora", **options):
    settings = {**FAST, **options}
    dropout = settings.pop("dropout", 0.0)
    return finetune(adapted(kind=kind, dropout=dropout), tiny_tokenizer(), pairs(), **settings)


def weights(result):
    return {name: p.detach().clone() for name, p in result.model.named_parameters() if p.requires_grad}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["qlora", "lora", "full"])
def test_the_loss_falls_whatever_is_trained(kind):
    result = trained(kind, steps=40)
    assert result.records[-1].loss < 0.7 * result.records[0].loss
    assert not result.model.training


def test_one_seed_one_result():
    one, same, other = trained(dropout=0.1), trained(dropout=0.1), trained(dropout=0.1, seed=1)
    assert_same_bits(weights(one), weights(same))
    assert [r.loss for r in one.records] != [r.loss for r in other.records]


def test_accumulation_equals_one_large_batch():
    examples = pairs(8)
    options = {"steps": 1, "learning_rate": 1e-2}
    large = finetune(adapted(), tiny_tokenizer(), examples, batch_size=8, **options)
    parts = finetune(adapted(), tiny_tokenizer(), examples, batch_size=2, accumulation=4, **options)
    assert parts.records[0].loss == pytest.approx(large.records[0].loss, rel=1e-5)
    assert parts.records[0].grad_norm == pytest.approx(large.records[0].grad_norm, rel=1e-4)


@pytest.mark.parametrize("mode", ["reentrant", "non-reentrant"])
def test_gradient_checkpointing_changes_nothing(mode):
    plain, checkpointed = trained(), trained(checkpointing=mode)
    for one, other in zip(plain.records, checkpointed.records, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = adapted()
    finetune(model, tiny_tokenizer(), pairs(), **FAST)
    assert torch.equal(torch.rand(3), expected)


KILLED = {"steps": 10, "batch_size": 4, "learning_rate": 1e-2, "checkpoint_every": 3}


def train_until(step: int, out: Path) -> None:
    """Train, and kill this process after a step."""

    def die(record):
        if record.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    finetune(adapted(dropout=0.1), tiny_tokenizer(), pairs(), out=out, on_step=die, **KILLED)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_run_killed_in_the_middle_resumes_to_the_same_bits(tmp_path):
    with pytest.raises(Ended, match=f"exit code {-signal.SIGKILL}"):
        alone(train_until, 7, tmp_path / "killed")
    resumed = finetune(adapted(dropout=0.1), tiny_tokenizer(), pairs(), out=tmp_path / "killed", resume=True, **KILLED)
    whole = finetune(adapted(dropout=0.1), tiny_tokenizer(), pairs(), out=tmp_path / "whole", **KILLED)
    assert resumed.resumed_from == 6
    assert [r.loss for r in resumed.records] == [r.loss for r in whole.records]
    one, other = (load_tensors(r.adapter / "adapter_model.safetensors")[0] for r in (resumed, whole))
    assert_same_bits(one, other)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    trained(out=tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="resume"):
        trained(out=tmp_path / "run")
    with pytest.raises(ValueError, match="learning_rate"):
        trained(out=tmp_path / "run", resume=True, learning_rate=1e-3)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    model = adapted()
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = float("nan")
    with pytest.raises(NonFiniteLoss, match="step 1"):
        finetune(model, tiny_tokenizer(), pairs(), out=tmp_path / "run", **FAST)


def test_nothing_trainable_is_an_error():
    with pytest.raises(ValueError, match="nothing in this model is trainable"):
        finetune(adapted().requires_grad_(False), tiny_tokenizer(), pairs(), **FAST)
