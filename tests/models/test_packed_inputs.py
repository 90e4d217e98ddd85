"""Packing: the same loss and gradients as in rows of their own, or refused by name where examples see each other."""

import pytest
import torch
import transformers
from tiny import adapted, pairs, tiny_model, tiny_tokenizer
from tiny_llama import assert_close

from qlora_lab.loss import supervised_loss_sum
from qlora_lab.models.packed_inputs import check_packing
from qlora_lab.tasks.batches import pad_batch
from qlora_lab.tasks.encoding import encode_all
from qlora_lab.tasks.packing import pack_examples
from qlora_lab.training.loop import finetune

SIZES = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.15,
}  # fmt: skip


def made(name: str, attention: str, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES | more)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 8},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 8},
    "Phi3": {},
    "Olmo2": {},
    "GPTNeoX": {},
    "Mixtral": {"num_local_experts": 4},
}


def gradients(model, batches) -> dict:
    """Loss and gradients of all adapters, over some batches together."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = supervised_loss_sum(model, **batch.inputs())
        loss.backward()
        total += loss.item()
    return {"loss": torch.tensor(total)} | {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, kind) for name in FAMILIES for kind in ("sdpa", "eager") if (name, kind) != ("Gemma2", "sdpa")],
)
def test_loss_and_gradients_are_those_of_rows_of_their_own(name, attention):
    model = adapted(made(name, attention, **FAMILIES[name]), "lora")
    for parameter in model.parameters():
        if parameter.requires_grad:  # B is zero at first, and would hide A's gradient
            torch.nn.init.normal_(parameter, std=0.1)
    check_packing(model)
    encoded = list(encode_all(pairs(9), tiny_tokenizer()))
    rows = pack_examples(encoded, 40)
    assert len(rows) < 6 and max(len(ids) for ids, _ in rows) > 20
    alone = gradients(model, [pad_batch([example], 0) for example in encoded])
    packed = gradients(model, [pad_batch(rows[:3], 0), pad_batch(rows[3:], 0)])
    assert_close(packed, alone, 2e-5)


def test_a_whole_run_learns_the_same():
    """One step over all examples, packed and not."""
    options = {"steps": 1, "batch_size": 24, "learning_rate": 1e-2}
    plain = finetune(adapted(), tiny_tokenizer(), pairs(24), **options)
    packed = finetune(adapted(), tiny_tokenizer(), pairs(24), packing=True, max_length=64, **options)
    assert packed.records[0].loss == pytest.approx(plain.records[0].loss, rel=1e-4)
    assert packed.records[0].grad_norm == pytest.approx(plain.records[0].grad_norm, rel=1e-3)
    assert packed.records[0].tokens == plain.records[0].tokens
    assert packed.records[0].supervised_tokens == plain.records[0].supervised_tokens


def leaking():
    small = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 259}
    yield "MambaForCausalLM", transformers.MambaConfig(**small, state_size=4)
    yield "Mamba2ForCausalLM", transformers.Mamba2Config(**small, state_size=8, num_heads=4, head_dim=16, n_groups=1)
    yield "BloomForCausalLM", transformers.BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=4)
    yield "Lfm2ForCausalLM", transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"])
    yield "FalconH1ForCausalLM", transformers.FalconH1Config(**SIZES, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8)


@pytest.mark.parametrize(("name", "config"), list(leaking()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_model_that_would_let_examples_see_each_other_is_refused_by_name(name, config, tmp_path):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model = adapted(model, "lora")
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.train()
    with pytest.raises(ValueError, match=rf"--packing\) is not for a {name}: "):
        finetune(model, tiny_tokenizer(), pairs(), packing=True, steps=1, batch_size=4, out=tmp_path / "run")
    assert not (tmp_path / "run").exists() and model.training
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_an_attention_that_knows_no_blocks_is_noticed():
    """A mask of positions before alone, as an attention of one's own may have it."""
    model = tiny_model()
    plain = model.model.forward

    def forward(*arguments, attention_mask=None, **options):
        rows, length = options["input_ids"].shape
        return plain(*arguments, attention_mask=torch.ones(rows, length, dtype=torch.long), **options)

    model.model.forward = forward
    with pytest.raises(ValueError, match="after another one, so its attention lets examples see each other"):
        check_packing(model)


def test_no_random_number_is_drawn():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check_packing(tiny_model(attention_dropout=0.5).train())
    assert torch.equal(torch.rand(2), expected)
