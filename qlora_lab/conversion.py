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
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    decoded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers reads every byte-pair tokenizer in a GGUF file with GPT-2's splitting rule. This one is marked
    # "smollm": each digit is split off first. Without that, blanks and line breaks before a digit become other tokens.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    # The file pads with its end token. A loss that leaves out padding would then never teach the model to stop.
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.model_max_length = decoded.config.max_position_embeddings
    # A model read from GGUF counts as quantized and refuses to be saved: hand its weights to a fresh one.
    config = decoded.config
    del config.quantization_config
    config.pad_token_id = tokenizer.pad_token_id
    model = type(decoded)(config)
    model.load_state_dict(decoded.state_dict())
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
