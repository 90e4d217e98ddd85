"""Checkpoints: whole or not there, the newest ones kept, and equal to what was saved."""

import json
import shutil

import pytest
import torch
from tiny import adapted, tiny_model

from qlora_lab.training.run_folder import checkpoints
from qlora_lab.training.run_folder.checkpoints import (
    Checkpoint,
    differences,
    identity,
    load_checkpoint,
    newest,
    save_checkpoint,
)


def made(step: int, seed: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"a.lora_A": torch.randn(3, 4, generator=generator), "a.lora_B": torch.randn(5, 3, generator=generator)}
    state = {"0/step": torch.tensor(float(step)), "0/exp_avg": torch.randn(3, 4, generator=generator)}
    return Checkpoint(step, tensors, state, {"cpu": torch.get_rng_state()}, {"seed": seed}, scaler={"scale": 2.0})


def test_what_is_loaded_is_what_was_saved(tmp_path):
    saved = made(7)
    path = save_checkpoint(tmp_path, saved)
    loaded = load_checkpoint(tmp_path)
    assert (loaded.step, loaded.settings, loaded.scaler, loaded.path) == (7, {"seed": 0}, {"scale": 2.0}, path)
    for name in ("parameters", "optimizer", "random"):
        one, other = getattr(saved, name), getattr(loaded, name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_newest_two_stay(tmp_path):
    for step in (5, 20, 10):
        save_checkpoint(tmp_path, made(step))
    save_checkpoint(tmp_path, made(100))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000020", "checkpoint-000100"]
    assert newest(tmp_path).name == "checkpoint-000100"


def test_the_same_step_again_replaces(tmp_path):
    save_checkpoint(tmp_path, made(5, seed=0))
    save_checkpoint(tmp_path, made(5, seed=1))
    assert load_checkpoint(tmp_path).settings == {"seed": 1}


@pytest.mark.parametrize("moment", ["parameters", "optimizer", "state.json", "rename"])
def test_a_save_cut_short_leaves_the_one_before(tmp_path, monkeypatch, moment):
    save_checkpoint(tmp_path, made(5))

    def fail(*args, **options):
        raise KeyboardInterrupt

    if moment == "rename":
        monkeypatch.setattr(checkpoints.os, "rename", fail)
    elif moment == "state.json":
        monkeypatch.setattr(checkpoints, "write_json", fail)
    else:
        whole = checkpoints.save_tensors
        monkeypatch.setattr(
            checkpoints, "save_tensors", lambda path, *a: fail() if moment in path.name else whole(path, *a)
        )
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, made(10))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path).step == 5
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000005"]  # leftovers are gone


@pytest.mark.parametrize("damage", ["missing", "cut", "other step", "no json"])
def test_a_damaged_checkpoint_is_named_not_skipped(tmp_path, damage):
    save_checkpoint(tmp_path, made(5))
    path = save_checkpoint(tmp_path, made(10))
    if damage == "missing":
        (path / "parameters.safetensors").unlink()
    elif damage == "cut":
        file = path / "optimizer.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "other step":
        state = json.loads((path / "state.json").read_text()) | {"step": 9}
        (path / "state.json").write_text(json.dumps(state))
    else:
        (path / "state.json").write_text("{")
    with pytest.raises(ValueError, match="checkpoint-000010 is damaged"):
        load_checkpoint(tmp_path)
    shutil.rmtree(path)
    assert load_checkpoint(tmp_path).step == 5


def test_nothing_there(tmp_path):
    assert load_checkpoint(tmp_path / "none") is None and newest(tmp_path) is None


def identity_of(model, settings=None, examples=((1, 2, 3),)):
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    encoded = [(torch.tensor(ids), torch.tensor(ids)) for ids in examples]
    return identity(settings or {"seed": 0}, encoded, model, trained)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: identity_of(adapted(), {"seed": 1}), "seed was 0, now 1"),
        (lambda: identity_of(adapted(), examples=((1, 2, 4),)), "the examples changed"),
        (lambda: identity_of(adapted(rank=5)), "rank 4"),
        (lambda: identity_of(adapted(dropout=0.1)), "dropout 0.1"),
        (lambda: identity_of(adapted(tiny_model(seed=3))), "the base model"),
        (lambda: identity_of(adapted(datatype="fp4")), "data type"),
        (lambda: identity_of(adapted(compute_dtype=torch.bfloat16)), "products in bfloat16"),
        (lambda: identity_of(adapted(target_modules=["q_proj"])), "the trained parameters"),
    ],
)
def test_what_a_resume_must_share_is_told_apart_and_named(change, words):
    before = identity_of(adapted())
    assert differences(before, identity_of(adapted(seed=9))) == []  # adapters' values may differ: they are restored
    assert words in "; ".join(differences(before, change()))
    assert json.loads(json.dumps(before)) == before


def test_the_optimizers_state_returns():
    def stepped(count):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3))
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        for _ in range(count):
            weight.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return weight, optimizer

    weight, optimizer = stepped(3)
    fresh, other = stepped(0)
    fresh.data.copy_(weight.data)
    saved = {name: tensor.clone() for name, tensor in checkpoints.optimizer_tensors(optimizer).items()}  # as a file is
    checkpoints.restore_optimizer(other, saved)
    for w, o in ((weight, optimizer), (fresh, other)):
        w.square().sum().backward()
        o.step()
    assert torch.equal(weight, fresh)


def test_own_randomness_gives_the_outer_one_back():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with checkpoints.own_randomness(5, torch.device("cpu")):
        inner = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(2), inner)
