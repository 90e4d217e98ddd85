"""The converted folder says the same as the GGUF file it was made from."""

import json
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
from qlora_lab.downloads import ModelUnavailable, sha256_of


@cache
def folder() -> Path:
    return models.ensure_default_model()


@cache
def gguf_path() -> Path:
    """The GGUF file; it stays in the cache, or lies where the user put it."""
    return Path(os.environ.get("QLORA_LAB_GGUF") or folder().parent / models.DEFAULT_FILE.filename)


@cache
def source() -> gguf.GGUFReader:
    return gguf.GGUFReader(gguf_path())


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
    Unicode characters contain): these are left out from the start.
    """
    ids, ranks, letters = vocabulary()
    encoded = []
    for piece in pieces(text):
        symbols = [letters[byte] for byte in piece.encode() if letters[byte] in ids]
        while len(symbols) > 1:
            rank, left = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(symbols)))
            if rank == len(ranks):
                break
            symbols[left : left + 2] = [symbols[left] + symbols[left + 1]]
        encoded += [ids[symbol] for symbol in symbols]
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


@pytest.mark.model
def test_the_saved_tokenizer_is_the_one_that_was_read():
    read, saved = conversion.read_tokenizer(gguf_path()), tokenizer()
    assert saved.backend_tokenizer.to_str() == read.backend_tokenizer.to_str()
    assert saved.special_tokens_map == read.special_tokens_map
    assert (saved.bos_token, saved.eos_token, saved.pad_token) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    assert saved.chat_template == read.chat_template
    sentence = "It 's 5 o'clock , is n't it ?"
    assert saved.decode(saved.encode(sentence)) == sentence  # no "cleaning up" of the blanks


# --- the child process


@pytest.mark.model
@pytest.mark.slow
def test_converting_again_gives_the_same(tmp_path):
    conversion.convert_in_child(gguf_path(), tmp_path)
    assert sha256_of(tmp_path / "model.safetensors") == sha256_of(folder() / "model.safetensors")
    again = models.load_tokenizer(tmp_path)
    assert again.backend_tokenizer.to_str() == tokenizer().backend_tokenizer.to_str()
    assert again.special_tokens_map == tokenizer().special_tokens_map
    kept, made = (json.loads((place / "config.json").read_text()) for place in (folder(), tmp_path))
    assert kept | {"transformers_version": ""} == made | {"transformers_version": ""}


def test_a_failed_conversion_says_why(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"nothing of the kind")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelUnavailable, match=r"converting broken\.gguf to safetensors failed:\n(.|\n)*GGUF"):
        conversion.convert_in_child(tmp_path / "broken.gguf", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
