"""From the name of any model to a local folder of it: a folder as it is, or a hub id by way of the hub's own cache.

Weights are taken from safetensors only. The hub is asked only for what is not here yet, and once: transformers alone
would try an unreachable hub for a minute before it gave up.
"""

import json
import os
from fnmatch import fnmatch
from pathlib import Path

from qlora_lab.models.downloads import ModelUnavailable

CONFIGURATION = ["*.json", "*.jinja", "*.model", "*.txt"]  # and tokenizer
WEIGHTS = ["model*.safetensors"]
INDEX = "model.safetensors.index.json"
ONLY_SAFETENSORS = (
    "Other weight files can run code when they are read and are not loaded: use a copy saved with save_pretrained, "
    "which writes safetensors."
)


def find_folder(name: str | os.PathLike, weights: bool) -> Path:
    """The local folder of a model, downloaded from the hub where it must be.

    Args:
        name: a folder, or a hub id ("owner/model").
        weights: whether the weights are needed, or the configuration and tokenizer alone.

    Raises:
        ModelUnavailable: there is no such folder or hub model, it lacks something, or the hub cannot be reached.
    """
    name = os.fspath(name)
    path = Path(name).expanduser()
    if path.is_dir():
        if (problem := find_missing(path, weights)) is not None:
            raise ModelUnavailable(f"{path} {problem}")
        return path
    if path.exists() or name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name:
        raise ModelUnavailable(f"{name} is not a folder. Give one that holds config.json and model.safetensors.")
    return _snapshot(name, weights)


def find_missing(folder: Path, weights: bool) -> str | None:
    """What a folder lacks for being loaded, as the end of a sentence about it, or None."""
    if not weights:
        return None
    if (folder / "adapter_config.json").is_file():  # transformers would follow it to another model
        return "holds an adapter. Load its base model first, then use load_adapter."
    if not (folder / "config.json").is_file():
        return "has no config.json. Give a folder that also holds model.safetensors."
    if (kernel := _find_kernel(read_config(folder))) is not None:
        return f"asks for code from the model hub ({kernel}), which is not run. Take that out of its config.json."
    try:
        files = weight_files(folder)
    except FileNotFoundError:
        return f"has no model.safetensors. {ONLY_SAFETENSORS}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"has a damaged {INDEX}. Fetch the model again."
    other = [path.name for path in files if path.suffix != ".safetensors" or path.parent != folder]
    if other:
        return f"names {other[0]} in its index, which is no safetensors file beside it. {ONLY_SAFETENSORS}"
    missing = [path.name for path in files if not path.is_file()]
    return f"lacks {missing[0]}, which its index names. Fetch the model again." if missing else None


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads the weights from: model.safetensors, or else what the index names.

    Raises:
        FileNotFoundError: neither is there.
        OSError, ValueError, LookupError, TypeError, AttributeError: the index is damaged.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def read_config(folder: Path) -> dict:
    """config.json, or nothing where it cannot be read: transformers then says why."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _find_kernel(value, name: str = "") -> str | None:
    """A setting like `"_attn_implementation": "owner/kernel"`, for which transformers would fetch code; or None."""
    if isinstance(value, str):
        return f"{name}: {value}" if name.endswith("implementation") and "/" in value else None
    if isinstance(value, dict):
        inner = [(name if name.endswith("implementation") else key, each) for key, each in value.items()]
    else:
        inner = [(name, each) for each in value] if isinstance(value, list) else []
    return next((found for key, each in inner if (found := _find_kernel(each, key)) is not None), None)


def _snapshot(name: str, weights: bool) -> Path:
    """The hub cache's folder for a hub id; the hub is asked only where that is missing or incomplete."""
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    wanted = {"allow_patterns": CONFIGURATION + WEIGHTS * weights, "ignore_patterns": ["*/*"]}  # nothing in subfolders
    try:
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True, **wanted))
        if find_missing(folder, weights) is None:
            return folder
    except (OSError, ValueError):
        pass  # not here, or not all of it
    try:
        files = huggingface_hub.model_info(name, files_metadata=True, timeout=10).siblings or []
        sizes = [file.size or 0 for file in files if fnmatch(file.rfilename, WEIGHTS[0])]
        if weights:
            if not sizes:
                raise ModelUnavailable(f"{name} has no safetensors on the model hub. {ONLY_SAFETENSORS}")
            print(f"Fetching {name} from the model hub ({sum(sizes) / 1e6:,.0f} MB, once) …")
        folder = Path(huggingface_hub.snapshot_download(name, **wanted))
    except ModelUnavailable:
        raise
    except Exception as error:  # the HTTP library's classes, which differ between versions of the hub's client
        missing = isinstance(error, RepositoryNotFoundError)
        reason = "it has no such model, or none that you may read" if missing else first_line(error)
        raise ModelUnavailable(
            f"{name!r} is no local folder, and the model hub did not give it ({reason}). Check the name and the "
            "connection, or give a folder that holds config.json and model.safetensors."
        ) from error
    if (problem := find_missing(folder, weights)) is not None:
        raise ModelUnavailable(f"{name} {problem}")
    return folder


def first_line(error: Exception) -> str:
    """The first line of an error's message, without its full stop, for quoting in another."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
