"""A language model small enough to train in milliseconds, a real tokenizer for it, and examples to learn."""

import json
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qlora_lab.lora import inject_lora
from qlora_lab.qlora import quantize_model
from qlora_lab.tasks.function_calls import Example

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ("red", "green", "blue", "one", "two", "three", "go", "stop")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and ChatML's markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )


def tiny_model(seed: int = 0, **changed) -> LlamaForCausalLM:
    """Two layers, hidden size 64, random weights; float32, in eval mode."""
    options = {
        "vocab_size": 259,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.15,  # large enough that answers and gradients are no near-ties
        "attn_implementation": "sdpa",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**options | changed)).eval()


def adapted(model=None, kind: str = "qlora", rank: int = 4, dropout: float = 0.0, seed: int = 1, **options):
    """The model with adapters: on 4-bit weights ("qlora"), on its own ("lora"), or none and all trainable ("full")."""
    model = tiny_model() if model is None else model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "qlora":
            return quantize_model(model, rank=rank, alpha=2 * rank, dropout=dropout, **options)
        if kind == "lora":
            return inject_lora(model, rank, 2 * rank, dropout=dropout, **options)
    return model.requires_grad_(True)


@dataclass(frozen=True)
class Pair:
    """The least that training asks of an example."""

    prompt: str
    target: str


def pairs(count: int = 24, seed: int = 0) -> list[Pair]:
    """Short examples of different lengths: words, and the same words backwards."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        n = int(torch.randint(1, 4, (), generator=generator))
        words = [WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator)]
        found.append(Pair(" ".join(words) + "=", " ".join(words[::-1]) + SPECIAL[2]))
    return found


def commands(count: int = 6) -> list[Example]:
    """Examples of the real task, kept short."""
    return [
        Example(f"timer {n} min" if n % 2 else f"a timer of {n} minutes", ({"name": "timer", "arguments": {"m": n}},))
        for n in range(1, count + 1)
    ]


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def metrics(folder) -> list[tuple[int, float]]:
    """(step, loss) of each line of metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]
