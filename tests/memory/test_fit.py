"""Whether a step fits: what it needs is predicted within a few percent, and the advice given is enough."""

import pytest
import torch
from tiny import adapted, tiny_model
from transformers import LlamaConfig

from qlora_lab.loss import supervised_loss_sum
from qlora_lab.memory import fit
from qlora_lab.memory.closed_form import predict_training
from qlora_lab.memory.fit import DoesNotFit, check_fits, fit_to_gpu, predict_step
from qlora_lab.memory.simulation import simulate_training

SMALL = LlamaConfig(
    vocab_size=4000, hidden_size=512, intermediate_size=1376, num_hidden_layers=4, num_attention_heads=8
)


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
    monkeypatch.setattr(fit, "free_memory", lambda device: int(need * share))
    with pytest.raises(DoesNotFit, match=advice):
        check_fits(model, 8, 64, 100, False, accumulation=2)
    monkeypatch.setattr(fit, "free_memory", lambda device: need)
    assert check_fits(model, 8, 64, 100, False).to_allocate == need


def test_the_advice_fits(monkeypatch):
    """What the message proposes is accepted when it is followed."""
    model = adapted(tiny_model(num_hidden_layers=6))
    need = predict_step(model, 8, 64, 96).to_allocate
    monkeypatch.setattr(fit, "free_memory", lambda device: int(need * 0.6))
    check_fits(model, 8, 64, 96, True)
    check_fits(model, 4, 64, 48, False, accumulation=4)


def test_a_plan_that_fits_a_gpu():
    found = fit_to_gpu(predict_training("llama-65b", "qlora", 64, checkpointing="reentrant"), 48)
    assert not found.fits and found.change == "adapters in 16 bits"
    assert str(found) == (
        "qlora needs 47.8 GB at its peak: it does not fit 48 GB with 1.5 GB in reserve. "
        "Cheapest change: adapters in 16 bits (41.4 GB)."
    )
    found = fit_to_gpu(found.changed, 48)
    assert found.fits and found.change is None
    assert str(found) == "qlora needs 41.4 GB at its peak: it fits 48 GB with 1.5 GB in reserve, and 5.1 GB are left."


@pytest.mark.parametrize(("gpu", "reserve"), [(80, 1.5), (24, 1.5), (15, 1.5), (8, 0.8), (0.5, 0.05)])
def test_a_reserve_is_kept_which_a_small_gpu_can_afford(gpu, reserve):
    prediction = predict_training(SMALL, "lora", 8)
    assert fit_to_gpu(prediction, gpu).reserve_gb == pytest.approx(reserve)
    exactly = prediction.peak / 1e9
    assert fit_to_gpu(prediction, exactly, reserve_gb=0).fits and "reserve" not in str(fit_to_gpu(prediction, 9, 0))
    assert not fit_to_gpu(prediction, exactly).fits


@pytest.mark.parametrize("reserve", [-1, 24, 30, float("nan"), "1", True])
def test_a_reserve_that_makes_no_sense(reserve):
    with pytest.raises(ValueError, match="reserve_gb"):
        fit_to_gpu(predict_training(SMALL, "lora", 8), 24, reserve)


@pytest.mark.parametrize(
    ("arguments", "gpu", "change"),
    [
        (("llama-65b", "qlora", 64), 50, "gradient checkpointing"),
        (("llama-65b", "qlora", 64), 48, "gradient checkpointing, adapters in 16 bits"),
        (("llama-7b", "lora", 16, 16), 24, "gradient checkpointing"),
        (("llama-7b", "lora", 16, 16), 17, "gradient checkpointing and batch_size=4 with accumulation=4"),
        (("llama-7b", "lora", 16, 16), 19, "batch_size=1 with accumulation=16"),
        (("llama-7b", "lora", 16, 1), 12, "QLoRA with rank 16"),
        (("llama-65b", "full"), 48, "QLoRA with rank 16, gradient checkpointing"),
        (("llama-7b", "full"), 20, "LoRA with rank 16"),
        (("llama-2-70b", "qlora", 256), 48, "gradient checkpointing, adapters in 16 bits, rank 64"),
        (
            ("llama-65b", "qlora", 8, 1, 8192),
            45,
            "gradient checkpointing, adapters in 16 bits, sequences of 4096 tokens",
        ),
    ],
)
def test_the_cheapest_change_that_makes_it_fit(arguments, gpu, change):
    prediction = predict_training(*arguments)
    found = fit_to_gpu(prediction, gpu)
    assert not found.fits and prediction.peak > gpu * 1e9
    assert found.change == change
    assert found.changed.peak <= gpu * 1e9
    assert change in str(found)


def test_the_change_is_true_in_the_simulation():
    prediction = predict_training(SMALL, "lora", 16, 16, 256)
    found = fit_to_gpu(prediction, 0.3)
    assert simulate_training(SMALL, "lora", 16, 16, 256).peak > 0.3e9
    plan = found.changed.plan
    options = {name: getattr(plan, name) for name in ("checkpointing", "accumulation", "supervised_tokens")}
    changed = simulate_training(SMALL, plan.method, plan.rank, plan.batch_size, plan.sequence_length, **options)
    assert changed.peak <= 0.3e9 * 1.03


def test_nothing_makes_it_fit():
    found = fit_to_gpu(predict_training("llama-65b", "lora"), 10)
    assert not found.fits and found.change is None and "smaller model" in str(found)


@pytest.mark.parametrize("gpu", [0, -1, float("nan"), float("inf"), "48", True, None])
def test_a_gpu_of_no_size(gpu):
    with pytest.raises(ValueError, match="gpu_gb"):
        fit_to_gpu(predict_training(SMALL, "lora", 8), gpu)
