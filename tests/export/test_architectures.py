"""What llama.cpp computes from an exported file, compared with what transformers computes from the model.

A name that is nearly right, rows in another order, a norm that counts from one: each loads, and answers plausibly. So
the probabilities of the next token are compared, of models with random weights, which have no plausible answers.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from tiny import tiny_tokenizer
from tiny_llama import randomize_adapters

from qlora_lab.export.architectures import ARCHITECTURES, find_architecture
from qlora_lab.export.gguf_files import model_fields, plan_adapter, plan_model, write_gguf
from qlora_lab.export.gguf_vocabulary import vocabulary_fields
from qlora_lab.lora import inject_lora

_SPEC = importlib.util.spec_from_file_location(
    "in_llama_cpp", Path(__file__).resolve().parents[2] / "benchmarks" / "in_llama_cpp.py"
)
in_llama_cpp = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(in_llama_cpp)

needs_llama_cpp = pytest.mark.skipif(
    in_llama_cpp.find_python() is None,
    reason="needs xllamacpp in an environment of its own (make .venv/home/ready): WHAT LLAMA.CPP READS IS NOT CHECKED",
)

PROMPTS = ("green two stop go=", "one two three four five six seven=", "xyzzy 12345 \n hello there, general")
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "llama with one embedding": {"tie_word_embeddings": True},
    "llama of version 3": {"rope_parameters": LLAMA_3},
    "llama stretched": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "mistral": {},
    "smollm3": {},
    "granite": {
        "attention_multiplier": 0.3,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
    },
    "qwen2": {},
    "qwen3": {},
    "phi3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 32},
    "olmo2": {},
    "starcoder2": {},
    "stablelm": {},
    "stablelm with biases": {"use_qkv_bias": True},
    "gpt_neox": {},
    "gpt_neox in sequence": {"use_parallel_residual": False},
}


def tiny_of(case: str, **changed):
    """A model of four layers and 64 wide, with weights that float16 holds exactly; heads are wider than usual."""
    family = case.partition(" ")[0]
    kind = transformers.CONFIG_MAPPING[family]
    sizes = {
        "vocab_size": 259,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    known = kind().to_dict()
    if known.get("head_dim") is not None:
        sizes["head_dim"] = 32
    options = {name: size for name, size in sizes.items() if name in known or name in kind.attribute_map}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(kind(**options | CASES[case] | changed))
        for parameter in model.parameters():
            start = parameter.data if parameter.ndim == 1 else 0.0
            parameter.data = (start + torch.randn_like(parameter) * 0.15).half().float()
    return model.eval()


def write_model(model, path: Path) -> None:
    architecture = find_architecture(model.config, whole=True)
    fields = model_fields(model.config, architecture) | vocabulary_fields(tiny_tokenizer(), 259, 2, False)
    write_gguf(path, plan_model(model, architecture, "f16", fields))


@torch.no_grad()
def assert_same_next_tokens(model, path: Path, lora: Path | None = None) -> None:
    tokenizer = tiny_tokenizer()
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    # the answer is a plain letter, whatever is likely: the probabilities are those before that
    forced = {"logit_bias": [[tokenizer("a")["input_ids"][0], 1000.0]]}
    answers, _ = in_llama_cpp.answer(path, prompts, 1, lora, threads=1, **forced)
    for ids, found in zip(prompts, answers, strict=True):
        expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert len(found["first"]) == 20
        told = torch.tensor(list(found["first"].values()))
        # llama.cpp multiplies and keeps keys and values in float16
        torch.testing.assert_close(told, expected[list(found["first"])], rtol=0, atol=0.05)


def test_every_family_that_is_written_is_compared():
    written = {family for family, architecture in ARCHITECTURES.items() if architecture.whole}
    assert written == {case.partition(" ")[0] for case in CASES}


@needs_llama_cpp
@pytest.mark.parametrize("case", CASES)
def test_a_model_and_an_adapter_beside_it_compute_the_same_there(case, tmp_path):
    model = tiny_of(case)
    write_model(model, tmp_path / "model.gguf")
    assert_same_next_tokens(model, tmp_path / "model.gguf")
    adapted = randomize_adapters(inject_lora(model, rank=4, alpha=8), seed=3)
    write_gguf(tmp_path / "adapter.gguf", plan_adapter(adapted, find_architecture(adapted.config)))
    with pytest.raises(AssertionError, match="not close"):  # the adapter changes something
        assert_same_next_tokens(adapted, tmp_path / "model.gguf")
    assert_same_next_tokens(adapted, tmp_path / "model.gguf", tmp_path / "adapter.gguf")


@needs_llama_cpp
def test_rows_in_transformers_order_would_be_noticed(tmp_path, monkeypatch):
    """The comparison itself: with the rows of q and k left where they are, it fails."""
    model = tiny_of("llama")
    monkeypatch.setitem(ARCHITECTURES["llama"].orders, "self_attn.q_proj", lambda config: None)
    write_model(model, tmp_path / "model.gguf")
    with pytest.raises(AssertionError, match="not close"):
        assert_same_next_tokens(model, tmp_path / "model.gguf")
