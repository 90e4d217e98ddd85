"""A tokenizer in the words of a GGUF file: its tokens, what kind each is, its merges, and how a text is cut up first.

llama.cpp has the cutting up built in, for some dozens of tokenizers, by name. A name that is nearly right splits
numbers or line breaks into other tokens, and the answers get worse without a word. So only those are written that are
recognized piece by piece; for others, take the tables from a GGUF file of the base.
"""

import json

from gguf import GGUFValueType, TokenType

Field = tuple[object, GGUFValueType, GGUFValueType | None]  # value, its type, and for lists that of their elements

TEXT, COUNT, FLAG, REAL = GGUFValueType.STRING, GGUFValueType.UINT32, GGUFValueType.BOOL, GGUFValueType.FLOAT32
LIST = GGUFValueType.ARRAY

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
# llama.cpp's name for what a tokenizer does to a text before it merges bytes: (kind, what decides) of each part.
_CUTS = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", _LLAMA_3), ("ByteLevel", False)): "llama-bpe",
    (("Split", _QWEN_2), ("ByteLevel", False)): "qwen2",
}


def vocabulary_fields(tokenizer, rows: int, end: int | None, bos_first: bool) -> dict[str, Field]:
    """The fields of a GGUF file that describe a tokenizer.

    Args:
        rows: of the model's embedding; tokens that the tokenizer does not have are filled up.
        end: the token that ends an answer.
        bos_first: a prompt begins with the token for that, which llama.cpp then puts there.

    Raises:
        ValueError: a tokenizer that llama.cpp does not have, as far as is known here; more tokens than rows.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown("it is not one of the `tokenizers` library")
    parts = json.loads(backend.to_str())
    if parts["model"]["type"] != "BPE":
        raise _unknown(f"its kind is {parts['model']['type']}")
    known = tokenizer.get_vocab()
    if max(known.values()) >= rows:
        raise ValueError(f"the tokenizer has {max(known.values()) + 1} tokens and the model {rows}: not of one model")
    tokens, kinds = [f"[PAD{i}]" for i in range(rows)], [int(TokenType.UNUSED)] * rows
    for text, place in known.items():
        tokens[place], kinds[place] = text, int(TokenType.NORMAL)
    for token in parts["added_tokens"]:
        kinds[token["id"]] = int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in parts["model"]["merges"]]
    pieces = bool(parts["model"].get("byte_fallback"))
    own = _sentencepiece(parts, tokens, kinds, merges) if pieces else _bytes(parts, merges)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id if end is None else end,
        "eot_token_id": end,
        "unknown_token_id": tokenizer.unk_token_id,
        "padding_token_id": tokenizer.pad_token_id,
    }
    own |= {
        "tokens": (tokens, LIST, TEXT),
        "token_type": (kinds, LIST, GGUFValueType.INT32),
        "add_bos_token": (bos_first, FLAG, None),
    }
    own |= {name: (place, COUNT, None) for name, place in special.items() if place is not None}
    return {f"tokenizer.ggml.{name}": value for name, value in own.items()}


def _bytes(parts: dict, merges: list) -> dict[str, Field]:
    cut = tuple(_what_decides(part) for part in _flat(parts["pre_tokenizer"]))
    if cut not in _CUTS:
        raise _unknown("it cuts up texts in another way")
    if (parts.get("normalizer") or {"type": "NFC"})["type"] != "NFC":  # which changes no usual text, and Qwen has
        raise _unknown(f"it changes texts first ({parts['normalizer']['type']})")
    return {
        "model": ("gpt2", TEXT, None),
        "pre": (_CUTS[cut], TEXT, None),
        # there must be some: where a tokenizer has none, one of tokens that do not exist changes nothing
        "merges": ([" ".join(pair) for pair in merges] or ["[NONE] [NONE]"], LIST, TEXT),
    }


def _sentencepiece(parts: dict, tokens: list[str], kinds: list[int], merges: list) -> dict[str, Field]:
    """Pieces with scores: of two neighbours those are joined first whose piece has the higher score."""
    scores = [-1e6] * len(tokens)
    places = {text: place for place, text in enumerate(tokens)}
    for rank, pair in reversed(list(enumerate(merges))):
        scores[places["".join(pair)]] = -float(rank)
    for place, text in enumerate(tokens):
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kinds[place] = int(TokenType.BYTE)
            scores[place] = 0.0
        elif text == parts["model"].get("unk_token"):
            kinds[place] = int(TokenType.UNKNOWN)
    prefix = '"prepend"' in json.dumps(parts).lower() or '"prepend_scheme": "always"' in json.dumps(parts)
    prefix |= '"prepend_scheme": "first"' in json.dumps(parts)
    return {
        "model": ("llama", TEXT, None),
        "pre": ("default", TEXT, None),
        "scores": (scores, LIST, REAL),
        "add_space_prefix": (prefix, FLAG, None),
    }


def _flat(part: dict | None) -> list[dict]:
    if part is None:
        return []
    return [inner for each in part["pretokenizers"] for inner in _flat(each)] if part["type"] == "Sequence" else [part]


def _what_decides(part: dict) -> tuple[str, object]:
    if part["type"] == "ByteLevel":
        return "ByteLevel", None if part.get("add_prefix_space") else part.get("use_regex", True)
    if part["type"] == "Digits":
        return "Digits", part["individual_digits"]
    if part["type"] == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        return "Split", part["pattern"].get("Regex")
    return part["type"], None


def _unknown(why: str) -> ValueError:
    return ValueError(
        f"how llama.cpp would read this tokenizer is not known here ({why}); give a GGUF file of the base with "
        "--base-gguf, from which its tables are taken, or use gguf-lora"
    )
