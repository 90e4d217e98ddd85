"""Memory: what a step needs is predicted within a few percent, what is free is asked where it is limited."""

import psutil
import pytest
import torch
from tiny import adapted, tiny_model

from qlora_lab import memory
from qlora_lab.loss import supervised_loss_sum
from qlora_lab.memory import DoesNotFit, check_fits, free_memory, predict_step


def activations_kept(model, batch: int, length: int) -> int:
    """Bytes of all storages that autograd keeps between forward and backward, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(3, 259, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = supervised_loss_sum(model, ids, mask, labels)
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["qlora", "lora"])
@pytest.mark.parametrize(("batch", "length"), [(4, 32), (2, 100)])
def test_predicted_activations_are_those_that_autograd_keeps(kind, batch, length):
    model = adapted(tiny_model(num_hidden_layers=6), kind=kind).train()
    predicted = predict_step(model, batch, length, batch * length - 2 - batch)
    assert predicted.activations == pytest.approx(activations_kept(model, batch, length), rel=0.1)


def test_weights_adapters_gradients_and_moments_are_those_of_the_tensors():
    model = adapted()
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    everything = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    predicted = predict_step(model, 2, 16, 20)
    assert (predicted.adapters, predicted.gradients, predicted.optimizer) == (trained, trained, 2 * trained)
    assert predicted.weights == everything - trained
    assert predicted.total == predicted.weights + trained + predicted.to_allocate


def test_checkpointing_and_smaller_batches_need_less():
    model = adapted(tiny_model(num_hidden_layers=6))
    plain, saving = (predict_step(model, 8, 64, 100, checkpointing=c) for c in (False, True))
    assert saving.activations < plain.activations / 2
    assert predict_step(model, 4, 64, 50).activations == pytest.approx(plain.activations / 2, rel=0.01)


@pytest.mark.parametrize(
    ("share", "advice"),
    [(0.6, "gradient checkpointing"), (0.6, "batch_size=4 with accumulation=4"), (1e-9, "smaller model")],
)
def test_what_does_not_fit_is_refused_with_what_would(monkeypatch, share, advice):
    model = adapted(tiny_model(num_hidden_layers=6))
    need = predict_step(model, 8, 64, 100).to_allocate
    monkeypatch.setattr(memory, "free_memory", lambda device: int(need * share))
    with pytest.raises(DoesNotFit, match=advice):
        check_fits(model, 8, 64, 100, False, accumulation=2)
    monkeypatch.setattr(memory, "free_memory", lambda device: need)
    assert check_fits(model, 8, 64, 100, False).to_allocate == need


def test_the_advice_fits(monkeypatch):
    """What the message proposes is accepted when it is followed."""
    model = adapted(tiny_model(num_hidden_layers=6))
    need = predict_step(model, 8, 64, 96).to_allocate
    monkeypatch.setattr(memory, "free_memory", lambda device: int(need * 0.6))
    check_fits(model, 8, 64, 96, True)
    check_fits(model, 4, 64, 48, False, accumulation=4)


@pytest.fixture
def container(monkeypatch, tmp_path):
    """A control group of this process, in files that a test writes."""

    def make(limit, used, cache=0, version=2):
        group = tmp_path / "groups"
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        folder = group / "job" if version == 2 else group / "memory" / "job"
        folder.mkdir(parents=True)
        for name, value in zip(names, (limit, used), strict=True):
            (folder / name).write_text(f"{value}\n")
        (folder / "memory.stat").write_text(
            f"anon 5\n{'inactive_file' if version == 2 else 'total_inactive_file'} {cache}\n"
        )
        (tmp_path / "own").write_text("0::/job\n" if version == 2 else "4:cpu:/job\n3:memory:/job\n")
        monkeypatch.setattr(memory, "CGROUPS", group)
        monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")

    return make


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts_and_its_file_cache_does_not(container, version):
    container(10_000_000, 7_000_000, cache=1_000_000, version=version)
    assert free_memory("cpu") == 4_000_000


@pytest.mark.parametrize(("limit", "version"), [("max", 2), (2**63 - 4096, 1)])
def test_no_limit_leaves_the_machines_memory(container, limit, version):
    container(limit, 5_000_000, version=version)
    assert free_memory("cpu") == pytest.approx(psutil.virtual_memory().available, rel=0.1)


@pytest.mark.cuda
def test_free_memory_of_a_gpu_counts_what_the_allocator_could_give_back():
    before = free_memory("cuda")
    x = torch.empty(2**26, device="cuda")
    assert free_memory("cuda") <= before - x.nbytes + 2**22
    del x
    assert free_memory("cuda") == pytest.approx(before, abs=2**22)
