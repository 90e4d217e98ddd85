"""Turning a GGUF checkpoint into a folder that transformers loads in well under a second.

The values do not change: what the GGUF formats decode to is stored in float32 safetensors, exactly. A folder counts as
finished by its manifest, written last, which lists every file with its length, time and SHA-256 and says what the
folder was made from.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from qlora_lab.machine.files import write_json
from qlora_lab.models import downloads
from qlora_lab.models.downloads import ModelUnavailable, PackagedFile

VERSION = 1  # raise it whenever `convert_gguf` changes what it writes: older folders are then made again
MANIFEST = "manifest.json"
READ = (".json", ".safetensors", ".jinja", ".model", ".txt", ".bin", ".py")  # endings that transformers looks for

# GGUF's names for the layers of a LLaMA model, and transformers'
_LAYERS = {
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
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a transformers folder.

    Float32, because a decoded value d·q + m has more significant bits than bfloat16 or float16 hold. transformers reads
    such a file as well, with the same values, but it goes through all tables for each of its questions, which takes
    longer than decoding, and counts the model as quantized from then on.

    Args:
        gguf: a checkpoint of the SmolLM2 family.
        folder: an existing, empty folder; receives safetensors, configuration, tokenizer and chat template.

    Raises:
        ValueError: another model, or another tokenizer.
    """
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    reader = GGUFReader(gguf)  # reads all tables, which takes seconds: once
    tables = {name: field.contents() for name, field in reader.fields.items()}
    if tables.get("general.architecture") != "llama":
        raise ValueError(f"{gguf.name} holds no model of the LLaMA family, but {tables.get('general.architecture')}")
    tokenizer, weights = _tokenizer(tables), _weights(reader, tables)
    config = _config(tables, tokenizer, tied="lm_head.weight" not in weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _config(tables: dict, tokenizer, tied: bool):
    """transformers' configuration, from the tables of a GGUF file."""
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=len(tables["tokenizer.ggml.tokens"]),
        hidden_size=tables["llama.embedding_length"],
        intermediate_size=tables["llama.feed_forward_length"],
        num_hidden_layers=tables["llama.block_count"],
        num_attention_heads=tables["llama.attention.head_count"],
        num_key_value_heads=tables["llama.attention.head_count_kv"],
        max_position_embeddings=tables["llama.context_length"],
        rms_norm_eps=tables["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": tables["llama.rope.freq_base"]},
        tie_word_embeddings=tied,
        **{f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad", "unk")},
    )


def _weights(reader, tables: dict) -> dict[str, torch.Tensor]:
    """The decoded tensors of a GGUF file, float32, under transformers' names."""
    from gguf import dequantize

    heads = {"attn_q": tables["llama.attention.head_count"], "attn_k": tables["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        place, _, kind = tensor.name.removesuffix(".weight").rpartition(".")  # "blk.0", "attn_q", or "", "output"
        names, prefix = (_LAYERS, f"model.layers.{place.removeprefix('blk.')}.") if place else (_OUTSIDE, "")
        if kind not in names or not tensor.name.endswith(".weight"):
            raise ValueError(f"no layer of a LLaMA model has a tensor {tensor.name}")
        values = torch.tensor(dequantize(tensor.data, tensor.tensor_type))  # a copy: the file is only mapped
        if kind in heads:  # a rotated pair lies side by side in GGUF, half a head apart in transformers
            pairs = values.view(heads[kind], -1, 2, values.shape[1])  # (heads, head size / 2, 2, in)
            values = pairs.transpose(1, 2).reshape(values.shape)
        weights[f"{prefix}{names[kind]}.weight"] = values.contiguous()
    return weights


def _tokenizer(tables: dict):
    """The byte-pair tokenizer, from the tables of a GGUF file.

    transformers can make it too, but not right: it splits by GPT-2's rule alone, while this family ("smollm") splits
    off each digit first, so that blanks and line breaks before a digit would become other tokens; and some of its
    versions end a text with the token that begins one.
    """
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import PreTrainedTokenizerFast

    own = {name.removeprefix("tokenizer.ggml."): table for name, table in tables.items()}
    if (own.get("model"), own.get("pre")) != ("gpt2", "smollm"):
        raise ValueError("this GGUF file has no byte-pair tokenizer of the SmolLM family")
    tokens = own["tokens"]
    merges = [tuple(merge.split(" ")) for merge in own["merges"]]
    backend = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, own["token_type"], strict=True) if kind == TokenType.CONTROL]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[own["bos_token_id"]],
        eos_token=tokens[own["eos_token_id"]],
        unk_token=tokens[own["unknown_token_id"]],
        # The file pads with its end token. A loss that leaves out padding would then never teach the model to stop.
        pad_token="<|endoftext|>",
        chat_template=own["tokenizer.chat_template"],
        model_max_length=tables["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )


def convert_in_child(gguf: Path, folder: Path) -> None:
    """`convert_gguf` in a Python process of its own.

    The conversion takes several times the model's memory, which a child gives back, and transformers reports its
    progress in ways that would end up in a notebook's output.

    Raises:
        ModelUnavailable: the conversion failed; the message ends with the child's last words.
    """
    package = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    finished = subprocess.run(
        [sys.executable, "-m", "qlora_lab.models.conversion", str(gguf), str(folder)],
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if finished.returncode != 0:
        words = "\n".join(finished.stdout.strip().splitlines()[-5:]) or f"exit status {finished.returncode}"
        raise ModelUnavailable(f"converting {gguf.name} to safetensors failed:\n{words}")


def write_manifest(folder: Path, file: PackagedFile) -> None:
    """Push the files of a converted folder to the disk and describe them, as the last step of a conversion."""
    import transformers

    readable = folder.stat().st_mode & 0o666  # safetensors writes for the owner only; a cache may be shared
    files = {}
    for path in sorted(folder.iterdir()):
        path.chmod(readable)
        with open(path, "rb+") as written:
            downloads.flush(written)
        found = path.stat()
        files[path.name] = {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": downloads.sha256_of(path)}
    manifest = {
        "source": f"{file.requirement}: {file.member}",
        "source_sha256": file.sha256,
        "conversion": VERSION,
        "transformers": transformers.__version__,
        "files": files,
    }
    with open(folder / MANIFEST, "w", encoding="utf-8") as target:
        json.dump(manifest, target, indent=2)
        downloads.flush(target)


def find_problem(folder: Path, file: PackagedFile, full: bool = False) -> str | None:
    """What keeps a converted folder from being used, in words, or None.

    Looking costs nothing as long as each file has the length and the time of its last change that it had when it was
    written. A file that was touched since is read and compared once, and if it is the same its new time is noted.

    Args:
        folder: where the converted model should be.
        file: what it must have been converted from.
        full: read every file and compare its SHA-256 (a second or two): bits that turned on the disk change no time.
    """
    if not folder.is_dir():
        return "not in the cache"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (manifest["source_sha256"], manifest["conversion"]) != (file.sha256, VERSION):
            return "made from another source, or by another version of the conversion"
        touched = False
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != expected["size"]:
                return f"{name} is missing or has the wrong size"
            changed = path.stat().st_mtime_ns
            if full or changed != expected.get("mtime_ns"):
                if downloads.sha256_of(path) != expected["sha256"]:
                    return f"{name} has changed since it was written"
                touched |= changed != expected.get("mtime_ns")
                expected["mtime_ns"] = changed
        # transformers would read what lies beside the model's own files: an adapter, a template, other weights
        strange = sorted(path.name for path in folder.iterdir() if path.suffix in READ and path.name != MANIFEST)
        strange = [name for name in strange if name not in manifest["files"]]
        if strange:
            return f"{strange[0]} does not belong to it"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is missing or damaged"
    if touched:
        with contextlib.suppress(OSError):  # a cache that cannot be written is read anew each time
            write_json(folder / MANIFEST, manifest)
    return None


if __name__ == "__main__":
    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
