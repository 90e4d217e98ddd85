"""Turning a GGUF checkpoint into a folder that transformers loads in well under a second.

The values do not change: what the GGUF formats decode to is stored in float32 safetensors, exactly. A folder counts as
finished by its manifest, written last, which lists every file with its length and SHA-256 and says what the folder was
made from.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from qlora_lab import downloads
from qlora_lab.downloads import ModelUnavailable, PackagedFile

VERSION = 1  # raise it whenever `convert_gguf` changes what it writes: older folders are then made again
MANIFEST = "manifest.json"


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a transformers folder.

    Float32, because a decoded value d·q + m has more significant bits than bfloat16 or float16 hold.

    Args:
        gguf: a checkpoint of the SmolLM2 family.
        folder: an existing, empty folder; receives safetensors, configuration, tokenizer and chat template.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = read_tokenizer(gguf)
    decoded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model read from GGUF counts as quantized and refuses to be saved: hand its weights to a fresh one.
    config = decoded.config
    if hasattr(config, "quantization_config"):  # older versions of transformers leave none
        del config.quantization_config
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad", "unk")}
    for name, value in special.items():
        setattr(config, name, value)
    model = type(decoded)(config)
    model.load_state_dict(decoded.state_dict())
    model.generation_config = GenerationConfig.from_model_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_tokenizer(gguf: Path):
    """Build the byte-pair tokenizer from a GGUF file's own tables.

    transformers can read it too, but not right: it splits by GPT-2's rule alone, while this family ("smollm") splits
    off each digit first, so that blanks and line breaks before a digit would become other tokens; and some of its
    versions end a text with the token that begins one.
    """
    from gguf import GGUFReader, TokenType
    from tokenizers import AddedToken, Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields
    tables = {name.removeprefix("tokenizer.ggml."): field.contents() for name, field in fields.items()}
    if (tables.get("model"), tables.get("pre")) != ("gpt2", "smollm"):
        raise ValueError(f"{gguf.name} has no byte-pair tokenizer of the SmolLM family")
    tokens = tables["tokens"]
    merges = [tuple(merge.split(" ")) for merge in tables["merges"]]
    backend = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, tables["token_type"], strict=True) if kind == TokenType.CONTROL]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[tables["bos_token_id"]],
        eos_token=tokens[tables["eos_token_id"]],
        unk_token=tokens[tables["unknown_token_id"]],
        # The file pads with its end token. A loss that leaves out padding would then never teach the model to stop.
        pad_token="<|endoftext|>",
        chat_template=tables["tokenizer.chat_template"],
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
    package = Path(__file__).resolve().parents[1]
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    finished = subprocess.run(
        [sys.executable, "-m", "qlora_lab.conversion", str(gguf), str(folder)],
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
        files[path.name] = {"size": path.stat().st_size, "sha256": downloads.sha256_of(path)}
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

    Args:
        folder: where the converted model should be.
        file: what it must have been converted from.
        full: read every file and compare its SHA-256 (a second or two), instead of only its length.
    """
    if not folder.is_dir():
        return "not in the cache"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (manifest["source_sha256"], manifest["conversion"]) != (file.sha256, VERSION):
            return "made from another source, or by another version of the conversion"
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != expected["size"]:
                return f"{name} is missing or has the wrong size"
            if full and downloads.sha256_of(path) != expected["sha256"]:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is missing or damaged"
    return None


if __name__ == "__main__":
    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
