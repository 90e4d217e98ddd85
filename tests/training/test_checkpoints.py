"""Checkpoints: whole or not there, the newest ones kept, and equal to what was saved."""

import errno
import json
import os
import shutil

import pytest
import torch
from tiny import adapted, tiny_model

from qlora_lab.machine.files import CannotWrite, load_tensors, save_tensors
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


# -- damage: refused by name before anything is restored


def small(step: int = 4) -> tuple[Checkpoint, dict]:
    """A checkpoint of two parameters with AdamW's state, and the parameters."""
    parameters = {"a": torch.nn.Parameter(torch.randn(4, 3)), "b": torch.nn.Parameter(torch.randn(1, 1))}
    optimizer = torch.optim.AdamW(parameters.values())
    for _ in range(step):
        sum(p.square().sum() for p in parameters.values()).backward()
        optimizer.step()
    tensors = {name: p.detach().clone() for name, p in parameters.items()}
    state = checkpoints.optimizer_tensors(optimizer)
    return Checkpoint(step, tensors, state, {"cpu": torch.get_rng_state()}, {"seed": 0}), parameters


def rewritten(path, name: str, change) -> None:
    """Change a checkpoint's tensors as somebody would who knows nothing of its sums, or of an earlier version's."""
    tensors, _ = load_tensors(path / name)
    change(tensors)
    save_tensors(path / name, tensors)


def of_an_earlier_version(path) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({key: state[key] for key in ("step", "settings", "scaler")}))


@pytest.mark.parametrize("file", ["parameters.safetensors", "optimizer.safetensors", "state.json"])
def test_any_flipped_bit_is_found(tmp_path, file):
    saved, parameters = small()
    path = save_checkpoint(tmp_path, saved)
    whole = (path / file).read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (path / file).write_bytes(damaged)
        try:
            load_checkpoint(tmp_path, parameters)
        except ValueError as error:
            assert "is damaged" in str(error)
        else:  # white space of the state file says nothing
            assert file == "state.json" and json.loads(damaged) == json.loads(whole)
    (path / file).write_bytes(whole)
    assert load_checkpoint(tmp_path, parameters).step == 4


def nan(tensors, key="a"):
    tensors[key].view(-1)[0] = float("nan")


WRONG = {
    "NaN": ("parameters", nan, "a holds NaN"),
    "infinity": ("parameters", lambda t: t["b"].fill_(float("inf")), "b holds NaN or infinity"),
    "a shape that would be broadcast": (
        "parameters",
        lambda t: t.update(a=torch.ones(1, 1)),
        r"a is \(1, 1\) of float32",
    ),
    "another dtype": ("parameters", lambda t: t.update(a=t["a"].double()), r"a is \(4, 3\) of float64"),
    "transposed": ("parameters", lambda t: t.update(a=t["a"].t().contiguous()), r"a is \(3, 4\)"),
    "a missing key": ("parameters", lambda t: t.pop("a"), "lacks a"),
    "an extra key": ("parameters", lambda t: t.update(c=torch.ones(1)), "holds c, which is not trained"),
    "a NaN moment": ("optimizer", lambda t: nan(t, "0/exp_avg"), "0/exp_avg holds NaN"),
    "a negative second moment": ("optimizer", lambda t: t["0/exp_avg_sq"].neg_(), "exp_avg_sq of a"),
    "a moment of another shape": ("optimizer", lambda t: t.update({"0/exp_avg": torch.ones(1, 1)}), "exp_avg of a"),
    "half a state": ("optimizer", lambda t: t.pop("1/exp_avg"), "the optimizer's state of b"),
    "another optimizer's state": (
        "optimizer",
        lambda t: t.update({"0/momentum_buffer": t.pop("0/exp_avg")}),
        "exp_avg_sq, momentum_buffer, step, which is not AdamW's",
    ),
    "a parameter too many": ("optimizer", lambda t: t.update({"7/step": torch.ones(())}), "7/step belongs to no"),
    "no number": ("optimizer", lambda t: t.update({"x/step": torch.ones(())}), "x/step belongs to no"),
    "a later step": ("optimizer", lambda t: t["0/step"].fill_(99.0), "step of a is none of 0 to 4"),
    "no random state": ("optimizer", lambda t: t.pop("random/cpu"), "no random state"),
    "another random state": ("optimizer", lambda t: t.update({"random/cpu": torch.ones(3)}), "random state is none"),
}


@pytest.mark.parametrize("earlier", [True, False], ids=["no sums", "sums"])
@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_do_not_belong_are_refused_by_name(tmp_path, name, earlier):
    file, change, words = WRONG[name]
    saved, parameters = small()
    path = save_checkpoint(tmp_path, saved)
    rewritten(path, f"{file}.safetensors", change)
    if earlier:
        of_an_earlier_version(path)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with pytest.raises(ValueError, match=words if earlier else "its SHA-256 differs"):
        load_checkpoint(tmp_path, parameters)
    assert all(torch.equal(before[name], p) for name, p in parameters.items())


def test_swapped_missing_and_additional_files(tmp_path):
    saved, parameters = small()
    path = save_checkpoint(tmp_path, saved)
    one, other = path / "parameters.safetensors", path / "optimizer.safetensors"
    one.rename(path / "x"), other.rename(one), (path / "x").rename(other)
    with pytest.raises(ValueError, match="SHA-256 differs"):
        load_checkpoint(tmp_path, parameters)
    one.rename(path / "x"), other.rename(one), (path / "x").rename(other)
    (path / ".DS_Store").write_text("what a file browser leaves")
    assert load_checkpoint(tmp_path, parameters).step == 4
    shutil.copy(one, path / "part-00000.safetensors")
    with pytest.raises(ValueError, match=r"part-00000.safetensors is one file too many"):
        load_checkpoint(tmp_path, parameters)
    (path / "part-00000.safetensors").unlink(), one.unlink()
    with pytest.raises(ValueError, match=r"parameters.safetensors is missing"):
        load_checkpoint(tmp_path, parameters)


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"step": 4}', '{"step": "4", "settings": {}}', "\x00", ""])
def test_a_state_file_that_says_something_else(tmp_path, text):
    saved, parameters = small()
    path = save_checkpoint(tmp_path, saved)
    (path / "state.json").write_text(text)
    with pytest.raises(ValueError, match="checkpoint-000004 is damaged"):
        load_checkpoint(tmp_path, parameters)


def test_the_way_out_is_a_checkpoint_that_is_whole(tmp_path):
    _, parameters = small()
    paths = [save_checkpoint(tmp_path, small(step)[0]) for step in (2, 3)]
    (paths[1] / "parameters.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="delete it to resume from checkpoint-000002"):
        load_checkpoint(tmp_path, parameters)
    (paths[0] / "optimizer.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="no whole one before it"):
        load_checkpoint(tmp_path, parameters)


CALLS = ["fsync", "replace", "rename", "mkdir", "scandir"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_full_disk_leaves_the_one_before_and_no_half(tmp_path, monkeypatch, call, nth):
    saved, parameters = small(2)
    save_checkpoint(tmp_path, saved)
    later, count = small(3)[0], [0]
    real = getattr(os, call)

    def fail(*arguments, **options):
        count[0] += 1
        if count[0] == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, fail)
    try:
        save_checkpoint(tmp_path, later)
    except OSError as error:
        assert isinstance(error, CannotWrite) and "No space left" in str(error)
        monkeypatch.undo()
        assert load_checkpoint(tmp_path, parameters).step == 2
    else:
        monkeypatch.undo()
        assert load_checkpoint(tmp_path, parameters).step == 3
    assert all(path.name in ("checkpoint-000002", "checkpoint-000003") for path in tmp_path.iterdir())


def test_the_same_step_again_is_kept_if_it_cannot_be_replaced(tmp_path, monkeypatch):
    saved, parameters = small()
    save_checkpoint(tmp_path, saved)
    real = os.rename

    def fail(source, target):
        if ".new.part" in str(source):
            raise OSError(errno.EIO, "Input/output error")
        return real(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(CannotWrite):
        save_checkpoint(tmp_path, small()[0])
    monkeypatch.undo()
    loaded = load_checkpoint(tmp_path, parameters)
    assert torch.equal(loaded.parameters["a"], saved.parameters["a"])


@pytest.mark.skipif(os.name != "posix", reason="links need no rights there")
def test_what_lies_in_the_way_as_a_link_or_a_file_is_replaced_and_nothing_behind_it(tmp_path):
    folder, kept = tmp_path / "checkpoints", tmp_path / "kept"
    folder.mkdir(), kept.mkdir()
    (kept / "file").write_text("mine")
    (folder / ".checkpoint-000004.new.part").symlink_to(kept)
    (folder / ".checkpoint-000003.old.part").write_text("")
    saved, parameters = small()
    save_checkpoint(folder, saved)
    assert load_checkpoint(folder, parameters).step == 4
    assert (kept / "file").read_text() == "mine" and len(list(folder.iterdir())) == 1
