"""Apple's GPUs: the same as on the CPU. Where there is none, on a stand-in; `stand_in_gpu` says what that shows."""

import copy

import pytest
import torch
from stand_in_gpu import NO_DOUBLES, stand_in_gpu, without_kernel_for_mps
from tiny import adapted, commands, pairs, tiny_model, tiny_tokenizer
from tiny_llama import assert_close, loss_and_gradients, randomize_adapters, token_batch

from qlora_lab.evaluation.exact_match import evaluate
from qlora_lab.machine import default_device, describe, seconds_of
from qlora_lab.machine.free_memory import free_memory
from qlora_lab.machine.generators import kept_random, random_states, seed_generators
from qlora_lab.models.base_model import load_model
from qlora_lab.paging import PagedAdamW
from qlora_lab.quantization.datatypes import DATATYPES, SINCE_NF4
from qlora_lab.quantization.tensor import quantize
from qlora_lab.training.loop import finetune


@pytest.fixture(params=["stand-in", pytest.param("mps", marks=pytest.mark.mps)])
def gpu(request):
    if request.param == "mps":
        yield torch.device("mps")
    elif torch.backends.mps.is_available() or torch.cuda.is_available():
        pytest.skip("there is a GPU here: no stand-in for one")
    else:
        with stand_in_gpu("mps"):
            yield torch.device("mps")


def draw(*shape, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_it_is_what_is_taken_if_nobody_says(gpu, tiny_folder):
    assert default_device().type == "mps"
    assert load_model(tiny_folder).device.type == "mps"
    assert describe()["computes in"] == "float32"
    assert 0 < free_memory(gpu) < 10**13
    assert seconds_of(torch.ones(3, device=gpu).sum) >= 0


def test_where_it_does_not_work_it_is_not_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("MPS out of memory")))
    assert default_device().type == "cpu"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is a GPU of Apple's here")
def test_without_one_it_is_refused_in_a_sentence(tiny_folder):
    with pytest.raises(ValueError, match="torch sees no GPU of Apple's here"):
        load_model(tiny_folder, device="mps")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kind", "double"), [*((kind, False) for kind in DATATYPES), ("nf4", True)])
def test_codes_scales_and_decoded_weights_have_the_same_bits(gpu, kind, double, dtype):
    weight = draw(300, 227, dtype=dtype)
    here, there = quantize(weight, kind, double_quant=double), quantize(weight.to(gpu), kind, double_quant=double)
    assert there.device.type == "mps"
    assert torch.equal(there.codes.cpu(), here.codes)
    assert torch.equal(there.scales.cpu(), here.scales)
    assert torch.equal(there.dequantize().cpu(), here.dequantize())


@pytest.mark.parametrize("kind", SINCE_NF4)
def test_formats_since_nf4_have_them_too(gpu, kind):
    weight = draw(30, 227)
    here, there = quantize(weight, kind), quantize(weight.to(gpu), kind)
    assert torch.equal(there.codes.cpu(), here.codes)
    assert torch.equal(there.scales.cpu(), here.scales)
    assert torch.equal(there.dequantize().cpu(), here.dequantize())


@pytest.mark.parametrize("kind", ["qlora", "lora", "full"])
def test_loss_and_gradients(gpu, kind):
    model = randomize_adapters(adapted(kind=kind))
    tokens = token_batch()
    expected = loss_and_gradients(model, tokens)
    found = loss_and_gradients(copy.deepcopy(model).to(gpu), tokens.to(gpu))
    assert all(gradient.device.type == "mps" for gradient in found[1].values())
    on_the_cpu = found[0].cpu(), {name: gradient.cpu() for name, gradient in found[1].items()}
    assert_close(on_the_cpu, expected, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("state_bits", [32, 8])
def test_a_step_of_training_between_two_validations(gpu, state_bits):
    def trained(device):
        options = {"steps": 1, "batch_size": 4, "learning_rate": 1e-3, "validation": pairs(4, seed=1)}
        return finetune(adapted().to(device), tiny_tokenizer(), pairs(), state_bits=state_bits, **options)

    here, there = trained("cpu"), trained(gpu)
    for ours, theirs in zip(there.records + there.validations, here.records + here.validations, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)


def test_answers(gpu):
    def answers(device):
        found = evaluate(tiny_model().to(device), tiny_tokenizer(), commands(3), max_new_tokens=4)
        return [answer.text for answer in found.answers]

    assert answers(gpu) == answers("cpu")


def test_dropout_that_would_differ_when_activations_are_computed_again_is_refused(gpu):
    with_one, options = adapted(), {"steps": 1, "checkpointing": "non-reentrant"}
    with_one.more = torch.nn.Dropout(0.1)
    for model in (with_one, adapted(dropout=0.1)):
        with pytest.raises(ValueError, match="train with dropout 0"):
            finetune(model.to(gpu), tiny_tokenizer(), pairs(), **options)


def test_pages_in_its_memory_and_in_a_file(gpu, tmp_path):
    ours = [torch.nn.Parameter(draw(64, 96).to(gpu))]
    theirs = [torch.nn.Parameter(draw(64, 96))]
    reference = torch.optim.AdamW(theirs, lr=1e-2)
    with PagedAdamW(ours, lr=1e-2, device_budget=2**14, directory=tmp_path, page_size=4096) as optimizer:
        for step in range(3):
            gradient = draw(64, 96, seed=step)
            ours[0].grad, theirs[0].grad = gradient.to(gpu), gradient
            optimizer.step()
            reference.step()
        lie = optimizer.residency()
        assert lie["device"] and lie["disk"] and not lie["host"]
    assert_close(ours[0].detach().cpu(), theirs[0].detach(), 1e-6)


@pytest.mark.mps
def test_random_numbers_are_seeded_and_given_back():
    gpu = torch.device("mps")
    before = random_states(gpu)
    drawn = []
    for _ in range(2):
        with kept_random(gpu):
            seed_generators(3, gpu)
            drawn.append(torch.rand(5, device=gpu).cpu())
    assert torch.equal(*drawn)
    after = random_states(gpu)
    assert before.keys() == after.keys() == {"cpu", "mps"}
    assert all(torch.equal(before[kind], after[kind]) for kind in before)


def test_what_the_stand_in_refuses():
    missing = without_kernel_for_mps()
    assert "aten::linalg_lu_factor_ex" not in missing and {"aten::mode", "aten::geqrf"} <= missing
    with stand_in_gpu("mps"):
        with pytest.raises(TypeError, match=NO_DOUBLES):
            torch.ones(3, device="mps").double()
        with pytest.raises(TypeError, match=NO_DOUBLES):
            torch.ones(3, dtype=torch.float64).to("mps")
        with pytest.raises(RuntimeError, match="at least two devices, mps:0 and cpu"):
            torch.ones(3, device="mps") + torch.ones(3)
        with pytest.raises(NotImplementedError, match="aten::mode"):
            torch.ones(3, device="mps").mode()
