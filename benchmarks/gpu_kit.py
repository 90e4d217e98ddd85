"""All that a bare CUDA machine without a network needs, in folders small enough to carry one at a time.

    make gpu-kit                   writes build/gpu-kit/call-1 and call-2, and says how large they are

Each folder has a script, `call.sh`, to be typed in a checkout on that machine, the wheels that are missing there, and
one half of the base model's file. A call takes five and a half minutes; what it records is in its first argument, a
folder. The second one finds what the first left in /tmp, if it is the same machine; on another one it records what can
be had without the model.

What is taken to be there: Python 3.12, torch for CUDA 13.0, and the packages of `THERE`. bitsandbytes is cut down to
the one library that this torch loads.
"""

import argparse
import re
import shutil
import stat
import sys
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MOST = 60 * 2**20  # bytes of a folder: a transfer takes 64 MiB, of which a checkout needs 7
LIBRARY = "libbitsandbytes_cuda130.so"  # what bitsandbytes loads where torch was built for CUDA 13.0
EXTRAS = ("reference",)
# Packages that such a machine has. Should one be missing after all, the first line of the smoke test names it.
THERE = {
    *("accelerate", "filelock", "jinja2", "matplotlib", "numpy", "packaging", "peft", "psutil", "pyyaml", "requests"),
    *("rich", "safetensors", "tokenizers", "torch", "tqdm", "transformers", "typer"),
}
CALLS = {  # stages in order of worth, of `record_gpu.py`; seconds for all of them
    "call-1": (("smoke", "giant", "tests", "kernels"), 330),
    "call-2": (("model", "finetune", "kernels", "step", "memory", "paging"), 330),
}

SCRIPT = """\
#!/usr/bin/env bash
# {name} of the GPU kit: bash {name}/call.sh OUT [OPTION ...], in a checkout of the repository; made by `make gpu-kit`.
# OUT is the folder that comes back; options are those of benchmarks/record_gpu.py.
set -uo pipefail
here=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
out=$1
shift
place=${{QLORA_LAB_KIT:-/tmp/qlora-lab-kit}}  # outlives this call where the machine does
mkdir -p "$out" "$place/site" "$place/model"
for wheel in "$here"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$place/site"; done
cp "$here"/model/* "$place/model"
export PYTHONPATH="$place/site" QLORA_LAB_CACHE="$place/cache" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
exec python3 benchmarks/record_gpu.py {stages} --seconds {seconds} \\
    --out "$out" --keep "$place/record" --model-parts "$place/model" {options}"$@"
"""


def missing_requirements(roots: Iterable[Requirement], there: Iterable[str] = THERE) -> list[str]:
    """What has to be carried: `roots` and all they need, except what is `there`, as "name==version".

    The versions are those installed here, which requirements.txt pins.
    """
    names, todo = {}, list(roots)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in names or name in there:
            continue
        found = metadata.distribution(name)
        names[name] = f"{name}=={found.version}"
        needed = [Requirement(text) for text in found.requires or ()]
        todo += [r for r in needed if r.marker is None or r.marker.evaluate({"extra": "", "python_version": "3.12"})]
    return sorted(names.values())


def package_requirements() -> list[Requirement]:
    """What pyproject.toml asks for, with the libraries that the races compare with."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(t) for t in sum((project["optional-dependencies"][e] for e in EXTRAS), project["dependencies"])]


def check_wheel(wheel: Path) -> None:
    """Raises ValueError for a wheel that was compiled for one Python version or one system, but bitsandbytes'."""
    if not wheel.name.endswith("-none-any.whl") and not wheel.name.startswith("bitsandbytes-"):
        raise ValueError(f"{wheel.name} fits this machine only; the kit carries pure Python, and bitsandbytes")


def cut_down(wheel: Path, library: str = LIBRARY) -> None:
    """Drop the compiled libraries from a wheel, in place, except one; its list of files is kept right.

    Raises:
        ValueError: it lacks that library.
    """
    smaller = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        names = source.namelist()
        if not any(name.endswith(f"/{library}") for name in names):
            raise ValueError(f"{wheel.name} has no {library}; it has {', '.join(n for n in names if '.so' in n)}")
        dropped = {n for n in names if re.search(r"\.(so|dll|dylib)$", n) and not n.endswith(f"/{library}")}
        for name in names:
            if name in dropped:
                continue
            content = source.read(name)
            if name.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if line.split(",")[0] not in dropped).encode()
            out.writestr(source.getinfo(name).filename, content)
    smaller.replace(wheel)


def split(file: Path, folders: list[Path]) -> list[Path]:
    """Write one part of `file` into each folder, of equal sizes, named so that `join` knows the order."""
    size, parts = file.stat().st_size, []
    each = -(-size // len(folders))
    with open(file, "rb") as source:
        for number, folder in enumerate(folders, 1):
            part = folder / f"{file.name}.{number}-of-{len(folders)}"
            part.write_bytes(source.read(each))
            parts.append(part)
    return parts


def join(folder: Path, file: Path, size: int, sha256: str) -> None:
    """Put the parts in `folder` together as `file`, verified by length (bytes) and SHA-256; nothing is left otherwise.

    Raises:
        FileNotFoundError: a part is not there; the message names it.
        VerificationError: all are, and make another file.
    """
    from qlora_lab.machine.files import write_whole
    from qlora_lab.models.downloads import verify_file

    found = {int(p.name.rsplit(".", 1)[1].split("-")[0]): p for p in folder.glob(f"{file.name}.*-of-*")}
    if not found:
        raise FileNotFoundError(f"no part of {file.name} is in {folder}")
    count = int(next(iter(found.values())).name.rsplit("-", 1)[1])
    if lacking := [f"{file.name}.{n}-of-{count}" for n in range(1, count + 1) if n not in found]:
        raise FileNotFoundError(f"{', '.join(lacking)} is not in {folder}: it comes with the other call's folder")
    with write_whole(file) as temporary:
        with open(temporary, "wb") as target:
            for number in range(1, count + 1):
                with open(found[number], "rb") as source:
                    shutil.copyfileobj(source, target, 2**20)
        verify_file(temporary, size, sha256)


def size_of(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_size(folder: Path, most: int = MOST) -> int:
    """Bytes of a folder. Raises ValueError where they are more than `most`, and names the largest files."""
    size = size_of(folder)
    if size > most:
        largest = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size)[:3]
        told = ", ".join(f"{p.name} ({p.stat().st_size / 2**20:.1f} MiB)" for p in largest)
        raise ValueError(f"{folder.name} has {size / 2**20:.1f} MiB, over {most / 2**20:.0f}: {told}")
    return size


def fetch_wheels(requirements: list[str], folder: Path) -> None:
    """Have pip download exactly these, as wheels for Linux on x86-64, and cut bitsandbytes down."""
    from qlora_lab.models.downloads import run_pip

    with TemporaryDirectory() as staging:
        tags = [f"--platform={tag}_x86_64" for tag in ("manylinux_2_24", "manylinux_2_28", "manylinux2014")]
        command = ["download", "--no-deps", "--only-binary=:all:", "--python-version=3.12", *tags]
        run_pip([*command, "--dest", str(folder), *requirements], Path(staging))
    for wheel in folder.glob("*.whl"):
        check_wheel(wheel)
        if wheel.name.startswith("bitsandbytes-"):
            cut_down(wheel)


def write_script(folder: Path, name: str, options: str = "") -> None:
    stages, seconds = CALLS[name]
    script = folder / "call.sh"
    script.write_text(SCRIPT.format(name=name, stages=" ".join(stages), seconds=seconds, options=options))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)


def write_kit(out: Path, model: Path, wheels: Path) -> dict[str, int]:
    """Make the folders of all calls anew; name -> bytes.

    Raises:
        ValueError: one is over the limit.
    """
    shutil.rmtree(out, ignore_errors=True)
    folders = {name: out / name for name in CALLS}
    for name, folder in folders.items():
        (folder / "model").mkdir(parents=True)
        shutil.copytree(wheels, folder / "wheels")
        write_script(folder, name, "--stop-after-smoke " if name == "call-1" else "")
    split(model, [folder / "model" for folder in folders.values()])
    return {name: check_size(folder) for name, folder in folders.items()}


def main() -> None:
    from qlora_lab.models import ensure_default_gguf

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-kit")
    args = parser.parse_args()
    requirements = missing_requirements(package_requirements())
    print("carried:", *requirements, flush=True)
    with TemporaryDirectory() as wheels:
        fetch_wheels(requirements, Path(wheels))
        for name, size in write_kit(args.out, ensure_default_gguf(), Path(wheels)).items():
            print(f"{args.out / name}: {size / 2**20:.1f} MiB")
            for path in sorted(p for p in (args.out / name).rglob("*") if p.is_file()):
                print(f"    {path.relative_to(args.out / name)}: {path.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
