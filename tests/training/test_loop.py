"""Training: seeds decide everything, and a run killed in the middle ends as if nothing had happened."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

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


# -- what a model, an example or the circumstances may be: trained all the same, or refused in a sentence


class Numbers:
    """A tokenizer of the least a tokenizer has: a byte is a token."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __call__(self, text, **options):
        return {"input_ids": [3 + byte for byte in text.encode()]}


@pytest.mark.parametrize("pad", [259, 10**6, -1, None, 3.5, [0]])
def test_any_token_will_do_for_padding(pad):
    ours = finetune(adapted(), Numbers(pad_token_id=pad), pairs(), **FAST)
    assert [r.loss for r in ours.records] == [
        r.loss for r in finetune(adapted(), Numbers(pad_token_id=0), pairs(), **FAST).records
    ]


def test_a_tokenizer_that_knows_no_padding():
    assert finetune(adapted(), Numbers(), pairs(), **FAST).records


def test_tokens_that_the_model_does_not_know_are_named(tmp_path):
    def foreign(text, **options):
        return {"input_ids": [1000 + byte for byte in text.encode()]}

    with pytest.raises(ValueError, match=r"example 0 has token 1.*, and the model knows 0 to 258"):
        finetune(adapted(), foreign, pairs(), out=tmp_path / "run", **FAST)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["dicts", "generator", "tuple"])
def test_examples_may_come_in_any_form(form):
    examples = pairs()
    forms = {"dicts": [vars(e) for e in examples], "generator": (e for e in examples), "tuple": tuple(examples)}
    one = finetune(adapted(), tiny_tokenizer(), forms[form], **FAST)
    assert [r.loss for r in one.records] == [r.loss for r in trained().records]


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ({"prompt": "a"}, "needs a `target` that is a text, and has None"),
        ({"prompt": 3, "target": "a"}, "needs a `prompt` that is a text, and has 3"),
        ("just a text", "needs a `prompt`"),
        ({"prompt": "a", "target": ""}, "no token to learn from"),
        ({"prompt": "", "target": "a"}, "no token to learn from"),
        ({"prompt": "", "target": ""}, "no token to learn from"),
    ],
)
def test_an_example_that_teaches_nothing_is_named(example, words):
    with pytest.raises(ValueError, match=words):
        finetune(adapted(), tiny_tokenizer(), [example], **FAST)


def test_an_example_without_a_prompt_teaches_what_follows_its_first_token():
    assert finetune(adapted(), tiny_tokenizer(), [{"prompt": "", "target": "ab"}] * 4, **FAST).records


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["qlora", "lora", "full"])
def test_where_nothing_records_gradients_it_trains_all_the_same(kind, context):
    model, plain = adapted(kind=kind, dropout=0.1), trained(kind, dropout=0.1)
    with context():
        result = finetune(model, tiny_tokenizer(), pairs(), **FAST)
        assert not torch.is_grad_enabled()
    assert_same_bits(weights(result), weights(plain))


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qlora", "lora"])
def test_it_trains_under_autocast(kind, dtype, cast):
    from tiny import tiny_model

    options = {**FAST, "steps": 12}
    plain = finetune(adapted(tiny_model().to(dtype), kind), tiny_tokenizer(), pairs(), **options)
    with torch.autocast("cpu", cast):
        result = finetune(adapted(tiny_model().to(dtype), kind), tiny_tokenizer(), pairs(), **options)
    assert result.records[-1].loss < 0.95 * result.records[0].loss
    assert result.records[0].loss == pytest.approx(plain.records[0].loss, rel=0.02)
    assert result.records[0].grad_norm == pytest.approx(plain.records[0].grad_norm, rel=0.1)


def sparse_embedding(model):
    model.requires_grad_(True).model.embed_tokens.sparse = True


def on_meta(model):
    model.model.norm = model.model.norm.to("meta")


def made_in_inference_mode(model):
    with torch.inference_mode():
        model.model.norm.weight = torch.nn.Parameter(model.model.norm.weight.clone(), requires_grad=False)


def an_encoder_and_a_decoder(model):
    model.config.is_encoder_decoder = True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (sparse_embedding, "model.embed_tokens makes sparse gradients.*sparse=False"),
        (on_meta, "model.norm.weight has no values"),
        (made_in_inference_mode, "model.norm.weight was made under torch.inference_mode"),
        (an_encoder_and_a_decoder, "reads a prompt with its encoder"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, change, words):
    model = adapted(kind="lora")
    change(model)
    with pytest.raises(ValueError, match=words):
        finetune(model, tiny_tokenizer(), pairs(), out=tmp_path / "run", **FAST)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["qlora", "lora"])
@pytest.mark.parametrize("how", ["merged", "switched off"])
def test_adapters_that_would_not_learn_are_named(tmp_path, kind, how):
    from qlora_lab.lora import disabled, merge, unmerge

    model = adapted(kind=kind)
    before = weights(SimpleNamespace(model=model))
    if how == "merged" and kind == "lora":
        merge(model)
        with pytest.raises(ValueError, match=r"is merged into its base weight; call unmerge\(model\) first"):
            finetune(model, tiny_tokenizer(), pairs(), out=tmp_path / "run", **FAST)
        unmerge(model)
    else:
        with disabled(model), pytest.raises(ValueError, match="is switched off"):
            finetune(model, tiny_tokenizer(), pairs(), out=tmp_path / "run", **FAST)
    assert_same_bits(before, weights(SimpleNamespace(model=model)))
    assert not (tmp_path / "run").exists()
    assert finetune(model, tiny_tokenizer(), pairs(), **FAST).records


def test_adapters_switched_off_while_it_runs_are_noticed_and_none_is_written(tmp_path):
    from qlora_lab.lora import disabled

    model = adapted()
    off = disabled(model)
    with pytest.raises(ValueError, match="nothing that is trained takes part in the loss"):
        finetune(model, tiny_tokenizer(), pairs(), out=tmp_path / "run", on_step=lambda record: off.__enter__(), **FAST)
    assert not (tmp_path / "run" / "adapter").exists()
    off.__exit__(None, None, None)


def test_half_of_it_frozen_trains_the_other_half():
    model = adapted()
    for name, p in model.named_parameters():
        p.requires_grad_("lora_B" in name)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    result = finetune(model, tiny_tokenizer(), pairs(), **{**FAST, "steps": 30})
    assert result.records[-1].loss < 0.9 * result.records[0].loss
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in frozen.items())


def test_a_frozen_remainder_of_merged_adapters_is_no_hindrance():
    from qlora_lab.lora import merge

    model = merge(adapted(kind="lora"))
    for name, p in model.named_parameters():
        p.requires_grad_("norm" in name)
    assert finetune(model, tiny_tokenizer(), pairs(), **FAST).records


@pytest.mark.parametrize("kind", ["reentrant", "non-reentrant"])
def test_a_model_without_gradient_checkpointing_says_so(tmp_path, kind):
    from test_loss import Small

    with pytest.raises(ValueError, match="a Small offers no gradient checkpointing"):
        finetune(Small(), tiny_tokenizer(), pairs(), out=tmp_path / "run", checkpointing=kind, **FAST)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("out", [True, False])
def test_weights_that_an_update_makes_infinite_are_never_kept(tmp_path, monkeypatch, out):
    """The loss of the last step is a number; what is saved after it would not be."""
    from qlora_lab.training import loop

    def overflowing(parameters, *rest):
        parameters = list(parameters)

        class Overflowing(torch.optim.AdamW):
            def step(self, closure=None):
                super().step(closure)
                self.count = getattr(self, "count", 0) + 1
                if self.count == 4:
                    with torch.no_grad():
                        parameters[1].view(-1)[0] = float("inf")

        return Overflowing(parameters, lr=1e-3)

    monkeypatch.setattr(loop, "make_optimizer", overflowing)
    folder = tmp_path / "run" if out else None
    with pytest.raises(NonFiniteLoss, match=r"step 4: after the update .*lora_B holds NaN or infinity"):
        finetune(adapted(), tiny_tokenizer(), pairs(), out=folder, checkpoint_every=2, **{**FAST, "steps": 4})
    if out:
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-000002"]
        assert not (folder / "adapter").exists()


def test_a_model_whose_layers_have_sizes_of_their_own_trains():
    import transformers

    config = transformers.Gemma3nTextConfig(
        vocab_size=259, vocab_size_per_layer_input=259, hidden_size=32, hidden_size_per_layer_input=8,
        intermediate_size=[64, 48], num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        sliding_window=8, laurel_rank=4, num_kv_shared_layers=0, activation_sparsity_pattern=None,
        layer_types=["sliding_attention", "full_attention"], pad_token_id=0,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    model = adapted(model, "lora", target_modules=["q_proj", "down_proj"])
    result = finetune(model, tiny_tokenizer(), pairs(), **{**FAST, "steps": 20})
    assert result.records[-1].loss < result.records[0].loss and result.predicted.total > 0


@pytest.mark.parametrize("paging", [None, {"device_budget": 20_000, "page_size": 4096}], ids=["in memory", "in pages"])
def test_adapters_in_16_bits_resume_to_the_same_bits(tmp_path, paging):
    def stop(record):
        if record.step == 5:
            raise Ended

    def train(folder, **options):
        model = adapted(adapter_dtype=torch.bfloat16)
        options |= {"steps": 8, "batch_size": 4, "learning_rate": 1e-2, "checkpoint_every": 2, "paging": paging}
        finetune(model, tiny_tokenizer(), pairs(), out=tmp_path / folder, **options)
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    whole = train("whole")
    with pytest.raises(Ended):
        train("stopped", on_step=stop)
    resumed = train("stopped", resume=True)
    assert {p.dtype for p in resumed.values()} == {torch.bfloat16}
    assert_same_bits(resumed, whole)
