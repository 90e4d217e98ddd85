"""The converted folder says the same as the GGUF file it was made from."""

import os
from functools import cache
from itertools import pairwise
from pathlib import Path

import gguf
import pytest
import regex
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from qlora_lab import conversion, models
from qlora_lab.downloads import ModelUnavailable


@cache
def folder() -> Path:
    return models.ensure_default_model()


@cache
def source() -> gguf.GGUFReader:
    """The GGUF file; it stays in the cache, or lies where the user put it."""
    file = os.environ.get("QLORA_LAB_GGUF") or folder().parent / models.DEFAULT_FILE.filename
    return gguf.GGUFReader(file)


NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read_tensor(tensor) -> tuple[str, torch.Tensor]:
    """The name in transformers and the decoded float32 values of one GGUF tensor of a LLaMA model."""
    values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
    parts = tensor.name.split(".")
    if parts[0] != "blk":
        return {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[parts[0]], values
    if parts[2] in ("attn_q", "attn_k"):
        # GGUF keeps the two halves of a rotated pair side by side, transformers half a head apart.
        heads = {"attn_q": 9, "attn_k": 3}[parts[2]]
        values = values.view(heads, 32, 2, 576).transpose(1, 2).reshape(heads * 64, 576)
    return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight", values


@pytest.mark.model
def test_every_weight_is_exactly_what_gguf_decodes_to():
    with safe_open(folder() / "model.safetensors", "pt") as stored:
        expected = set(stored.keys())
        for tensor in source().tensors:
            name, values = read_tensor(tensor)
            kept = stored.get_tensor(name)
            assert kept.dtype == torch.float32
            assert torch.equal(kept, values), name
            expected.remove(name)
    assert expected == set()


@pytest.mark.model
def test_float32_is_needed():
    name, values = read_tensor(next(tensor for tensor in source().tensors if tensor.tensor_type.name == "Q4_1"))
    for dtype in (torch.bfloat16, torch.float16):
        assert not torch.equal(values.to(dtype).float(), values), name


# --- the tokenizer, against the slow and obvious one


@cache
def vocabulary():
    """Token ids, merge ranks and the printable stand-in of each byte, from the GGUF file and from GPT-2's rule."""
    fields = source().fields
    ids = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(fields["tokenizer.ggml.merges"].contents())}
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return ids, ranks, letters


def pieces(text: str) -> list[str]:
    """The splitting rule "smollm": every digit alone, GPT-2's pattern on what lies between."""
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return [piece for part in regex.findall(r"\p{N}|\P{N}+", text) for piece in regex.findall(gpt2, part)]


def encode_slowly(text: str) -> list[int]:
    """Byte-pair encoding as defined: join the pair of lowest rank until no pair has one.

    The vocabulary has no token for 21 of the 256 bytes (some control characters, and bytes that only rare or no
    Unicode characters contain): these are left out.
    """
    ids, ranks, letters = vocabulary()
    encoded = []
    for piece in pieces(text):
        symbols = [letters[byte] for byte in piece.encode()]
        while len(symbols) > 1:
            rank, left = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(symbols)))
            if rank == len(ranks):
                break
            symbols[left : left + 2] = [symbols[left] + symbols[left + 1]]
        encoded += [ids[symbol] for symbol in symbols if symbol in ids]
    return encoded


@cache
def tokenizer():
    return models.load_tokenizer()


# Text with many blanks, digits, quotes and line breaks, besides all of Unicode; the special tokens' "<|" kept out.
texts = st.one_of(st.text(max_size=60), st.text("ab Zé 0123\n\t.,'st{}\":-中½", max_size=60)).filter(
    lambda text: "<" not in text
)


@pytest.mark.model
@given(texts)
@example("a  12")
@example("At\n\n9:30, I'll add    1,000.5 (or ½) to 中文 — that's it.")
@settings(max_examples=300, deadline=None)
def test_tokens_are_those_of_byte_pair_encoding_by_the_book(text):
    encoded = tokenizer().encode(text)
    assert encoded == encode_slowly(text)
    ids, _, letters = vocabulary()
    if all(letters[byte] in ids for byte in text.encode()):
        assert tokenizer().decode(encoded) == text


@pytest.mark.model
def test_special_tokens_and_the_chat_template():
    ids, _, _ = vocabulary()
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    text = tokenizer().apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    encoded = tokenizer().encode(text)
    assert [encoded.count(ids[token]) for token in ("<|im_start|>", "<|im_end|>")] == [3, 2]
    assert tokenizer().get_vocab() == ids


# --- the child process


def test_a_failed_conversion_says_why(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"nothing of the kind")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelUnavailable, match=r"converting broken\.gguf to safetensors failed:\n(.|\n)*GGUF"):
        conversion.convert_in_child(tmp_path / "broken.gguf", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
