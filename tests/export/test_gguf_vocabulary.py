"""Tokenizers written as GGUF tables: recognized by their parts or refused, and cutting up texts alike in llama.cpp."""

import json

import pytest
import torch
from test_architectures import in_llama_cpp, needs_llama_cpp, tiny_of
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qlora_lab.export.architectures import find_architecture
from qlora_lab.export.gguf_files import model_fields, plan_model, write_gguf
from qlora_lab.export.gguf_vocabulary import _CUTS, vocabulary_fields
from qlora_lab.tasks import evaluation_text

TEXTS = (
    "It's 12345 steps, isn't it?",
    " two  blanks and\ttabs \n\n lines\r\n",
    "Zürich, naïve, 東京, 🧀 and ½",
    "CamelCase_and_snake 3.14159 --- !!!",
    "<|end|>a control token inside",
)
ROWS = 600


def byte_level(*cut) -> PreTrainedTokenizerFast:
    """Trained on a page, cutting up texts by the parts given."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(cut)) if len(cut) > 1 else cut[0]
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=["<|pad|>", "<|end|>"])
    tokenizer.train_from_iterator([evaluation_text()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")


def cut_of(parts) -> list:
    make = {
        "ByteLevel": lambda regex: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex),
        "Digits": lambda each: pre_tokenizers.Digits(individual_digits=each),
        "Split": lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated"),
    }
    return [make[kind](value) for kind, value in parts]


def sentencepiece(prefix: str = "always") -> PreTrainedTokenizerFast:
    """Like Llama 2's: blanks as ▁, bytes for what is not known."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    blank = [normalizers.Prepend("▁")] if prefix == "always" else []
    tokenizer.normalizer = normalizers.Sequence([*blank, normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=590, special_tokens=special)
    words = evaluation_text().replace("\n", " ").split(" ")
    tokenizer.train_from_iterator(words, trainer)
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(saved))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix == "always" else parts)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


KNOWN = {name: (lambda parts=parts: byte_level(*cut_of(parts))) for parts, name in _CUTS.items()} | {
    "sentencepiece": sentencepiece,
    "sentencepiece without a blank before": lambda: sentencepiece("never"),
}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make() for name, make in KNOWN.items()}


@pytest.mark.parametrize("name", KNOWN)
def test_all_tokens_are_there_and_what_kind_they_are(name, tokenizers):
    tokenizer = tokenizers[name]
    fields = {key: value[0] for key, value in vocabulary_fields(tokenizer, ROWS, tokenizer.eos_token_id, False).items()}
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == ROWS and len(set(tokens)) == ROWS
    assert all(tokens[place] == text for text, place in tokenizer.get_vocab().items())
    assert kinds[tokenizer.eos_token_id] == 3 and kinds[-1] == 5  # control, unused
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    if name.startswith("sentencepiece"):
        assert fields["tokenizer.ggml.model"] == "llama" and kinds[tokens.index("<0x41>")] == 6
    else:
        assert fields["tokenizer.ggml.pre"] == name


@needs_llama_cpp
@pytest.mark.parametrize("name", KNOWN)
@torch.no_grad()
def test_texts_become_the_same_tokens_there(name, tokenizers, tmp_path):
    """A text and our tokens of it lead llama.cpp to the same probabilities; other tokens would not."""
    tokenizer, model = tokenizers[name], tiny_of("llama", vocab_size=ROWS)
    architecture = find_architecture(model.config)
    fields = model_fields(model.config, architecture)
    fields |= vocabulary_fields(tokenizer, ROWS, tokenizer.eos_token_id, False)
    write_gguf(tmp_path / "model.gguf", plan_model(model, architecture, "f16", fields))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    letter = next(place for text, place in tokenizer.get_vocab().items() if text == "e")
    forced = {"logit_bias": [[letter, 1000.0]]}
    answers, _ = in_llama_cpp.answer(tmp_path / "model.gguf", [*TEXTS, *ids], 1, threads=1, **forced)
    for text, by_text, by_ids in zip(TEXTS, answers[: len(TEXTS)], answers[len(TEXTS) :], strict=True):
        assert by_text["first"] and by_text["first"] == by_ids["first"], text


REFUSED = {
    "words": lambda t: t.__class__(models.WordLevel({"a": 0}, "a")),
    "unigram": lambda t: t.__class__(models.Unigram([("a", 0.0)], 0)),
    "lower case": lambda t: setattr(t, "normalizer", normalizers.Lowercase()),
    "digits in pairs": lambda t: setattr(
        t,
        "pre_tokenizer",
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\p{N}{2}"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    ),
    "a blank before": lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "blanks only": lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()),
    "nothing": lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Sequence([])),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_is_nearly_a_known_one_is_refused(name):
    backend = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)).backend_tokenizer
    backend = REFUSED[name](backend) or backend
    with pytest.raises(ValueError, match=r"how llama\.cpp would read this tokenizer"):
        vocabulary_fields(PreTrainedTokenizerFast(tokenizer_object=backend), ROWS, None, False)


def test_more_tokens_than_the_model_has_are_refused(tokenizers):
    with pytest.raises(ValueError, match="not of one model"):
        vocabulary_fields(tokenizers["gpt-2"], 100, None, False)


def test_a_token_that_was_added_is_one_of_the_user_s(tokenizers):
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_tokens([AddedToken("wholeword", special=False)])
    fields = vocabulary_fields(tokenizer, ROWS, None, False)
    assert fields["tokenizer.ggml.token_type"][0][tokenizer.get_vocab()["wholeword"]] == 4
