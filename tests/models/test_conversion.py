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
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM, LlamaConfig

from qlora_lab.models import base_model, conversion
from qlora_lab.models.downloads import ModelUnavailable, sha256_of


@cache
def folder() -> Path:
    return base_model.ensure_default_model()


@cache
def gguf_path() -> Path:
    """The GGUF file; it stays in the cache, or lies where the user put it."""
    return Path(os.environ.get("QLORA_LAB_GGUF") or folder().parent / base_model.DEFAULT_FILE.filename)


@cache
def source() -> gguf.GGUFReader:
    return gguf.GGUFReader(gguf_path())


@cache
def stored() -> dict[str, torch.Tensor]:
    return load_file(folder() / "model.safetensors")


@pytest.mark.model
@pytest.mark.slow
def test_weights_and_configuration_are_those_that_transformers_reads():
    theirs = AutoModelForCausalLM.from_pretrained(gguf_path().parent, gguf_file=gguf_path().name, dtype=torch.float32)
    expected = theirs.state_dict()
    assert expected.keys() - stored().keys() == {"lm_head.weight"}  # tied to the embedding
    for name, kept in stored().items():
        assert kept.dtype == torch.float32
        assert torch.equal(kept, expected[name]), name
    ours = LlamaConfig.from_pretrained(folder()).to_dict()
    for name, value in theirs.config.to_dict().items():
        if name.endswith(("_token_id", "_name_or_path")) or name in ("quantization_config", "dtype"):
            continue  # of the tokenizer, or of the file
        if name == "architectures":
            value = ["LlamaForCausalLM"]  # which a configuration from a GGUF file leaves out
        assert ours[name] == value, name


@pytest.mark.model
def test_float32_is_needed():
    kept = stored()["model.layers.0.mlp.down_proj.weight"]
    for dtype in (torch.bfloat16, torch.float16):
        assert not torch.equal(kept.to(dtype).float(), kept), dtype


# --- any model of the family


def write_gguf(path: Path, model, architecture: str = "llama", pre: str = "smollm", extra: str | None = None) -> Path:
    """A GGUF file of a small LLaMA model, rotated pairs side by side as llama.cpp wants them."""
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", *map(str, range(config.vocab_size - 6))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages }}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, values in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:
                values = values.view(heads, 2, -1, values.shape[1]).transpose(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values.numpy())
    if extra:
        writer.add_tensor(extra, torch.zeros(4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_a_converted_model_computes_the_same(tmp_path, tied):
    model = tiny_model(tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    (tmp_path / "out").mkdir()
    conversion.convert_gguf(write_gguf(tmp_path / "tiny.gguf", model), tmp_path / "out")
    converted, tokenizer = base_model.load_model(tmp_path / "out"), base_model.load_tokenizer(tmp_path / "out")
    ids = torch.randint(0, 259, (2, 40))
    assert torch.equal(converted(ids).logits, model(ids).logits)
    assert (converted.config.bos_token_id, converted.config.eos_token_id, converted.config.pad_token_id) == (1, 2, 0)
    assert tokenizer.encode("ab<|im_end|>") == [5, 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"architecture": "gpt2"}, "no model of the LLaMA family, but gpt2"),
        ({"pre": "qwen2"}, "no byte-pair tokenizer of the SmolLM family"),
        ({"extra": "blk.0.attn_q.bias"}, r"no layer of a LLaMA model has a tensor blk\.0\.attn_q\.bias"),
        ({"extra": "blk.0.ssm_in.weight"}, r"no layer of a LLaMA model has a tensor blk\.0\.ssm_in\.weight"),
    ],
)
def test_another_model_is_refused_before_anything_is_written(tmp_path, wrong, message):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model(), **wrong)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=message):
        conversion.convert_gguf(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


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
    return base_model.load_tokenizer()


# Text with many blanks, digits, quotes and line breaks, besides all of Unicode; the special tokens' "<|" kept out.
texts = st.one_of(st.text(max_size=60), st.text("ab Zé 0123\n\t.,'st{}\":-中½", max_size=60)).filter(
    lambda text: "<" not in text
)


@pytest.mark.slow
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
def test_the_ends_of_a_text():
    saved = tokenizer()
    assert (saved.bos_token, saved.eos_token, saved.pad_token) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    assert saved.chat_template == source().fields["tokenizer.chat_template"].contents()
    sentence = "It 's 5 o'clock , is n't it ?"
    assert saved.decode(saved.encode(sentence)) == sentence  # no "cleaning up" of the blanks


# --- the child process


@pytest.mark.model
@pytest.mark.slow
def test_converting_again_gives_the_same(tmp_path):
    conversion.convert_in_child(gguf_path(), tmp_path)
    assert sha256_of(tmp_path / "model.safetensors") == sha256_of(folder() / "model.safetensors")
    again = base_model.load_tokenizer(tmp_path)
    assert again.backend_tokenizer.to_str() == tokenizer().backend_tokenizer.to_str()
    assert again.special_tokens_map == tokenizer().special_tokens_map
    kept, made = (json.loads((place / "config.json").read_text()) for place in (folder(), tmp_path))
    other = {"transformers_version": "", "_model_name_or_path": ""}  # the name was written formerly
    assert kept | other == made | other


@pytest.mark.slow
def test_a_failed_conversion_says_why(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"nothing of the kind")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelUnavailable, match=r"converting broken\.gguf to safetensors failed:\n(.|\n)*GGUF"):
        conversion.convert_in_child(tmp_path / "broken.gguf", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
