"""A stand-in for the bare GPU machine: python tests/machines/bare.py [--keep FOLDER]

Packs the GPU kit, and in a fresh environment with torch, transformers and PEFT, without what is missing there
(platformdirs, gguf, bitsandbytes, most of pytest's plugins) and without a network, types its two calls one after the
other, each beside a copy of the checkout and nothing else. Every stage runs on the CPU at tiny sizes. Then once more a
few stages, one of which is made to fail and one to hang half-way: they must cost themselves and nothing else. What it
cannot stand in for is the card. Linux only, where `unshare -rn` is allowed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bundle import NO_NETWORK
from environments import ROOT, clean_environment, make, pinned, pip, versions

sys.path.insert(0, str(ROOT / "benchmarks"))
from gpu_kit import CALLS, THERE, size_of

TRANSFORMERS = "5.17.0"  # as on the machine; torch and the others are those that the tests pin
TESTERS = ("pytest", "hypothesis")
ABSENT = ("platformdirs", "gguf", "bitsandbytes", "nbval", "pytest-socket", "qlora-lab")
TRANSFER = 64 * 2**20  # bytes: a call's folder and the checkout
TINY = ["--device", "cpu", "--tiny", "--seconds", "3000"]
KIT = Path("build") / "gpu-kit"


def make_bare(folder: Path) -> Path:
    """The environment; its Python."""
    python = make(folder)
    pip(python, "install", f"torch=={pinned()['torch']}")
    others = sorted(THERE - {"torch", "transformers"} & set(pinned())) + list(TESTERS)
    pins = [f"{name}=={pinned()[name]}" if name in pinned() else name for name in others if name != "transformers"]
    pip(python, "install", f"transformers=={TRANSFORMERS}", "setuptools", *pins)
    found = versions(python)
    assert not (there := found.keys() & set(ABSENT)), f"{there} is not missing here"
    return python


def copy_checkout(folder: Path) -> None:
    """What travels: files that git tracks, and new ones that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def typed(command: list, folder: Path, environment: dict[str, str]) -> int:
    """Run a command without a network; its exit status."""
    began = time.perf_counter()
    print("$", *command, flush=True)
    status = subprocess.run([*NO_NETWORK, *map(str, command)], cwd=folder, env=environment).returncode
    print(f"ended with {status} after {time.perf_counter() - began:.0f} s", flush=True)
    return status


def outcomes(out: Path) -> dict[str, str]:
    record = json.loads((out / "gpu.json").read_text(encoding="utf-8"))
    return {name: entry["outcome"] for name, entry in record["stages"].items()}


def sleeping(seconds: str) -> list[str]:
    """Processes of the command `sleep`, for so long."""
    words = f"sleep\0{seconds}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == words:
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def both_calls(room: Path, kit: Path, environment: dict[str, str]) -> None:
    """The kit's two calls, as they would be typed; all stages are done after the second."""
    checkout = room / "checkout"
    copy_checkout(checkout)
    size = size_of(checkout)
    for name in CALLS:
        here = checkout / KIT
        shutil.rmtree(here, ignore_errors=True)  # each is carried by itself
        shutil.copytree(kit / name, here / name)
        carried = size + size_of(here)
        print(f"{name}: {carried / 2**20:.1f} MiB with the checkout, which has {size / 2**20:.1f}", flush=True)
        assert carried <= TRANSFER, f"{name} does not fit one transfer"
        typed(["bash", KIT / name / "call.sh", room / name, *TINY, "--patience", "10"], checkout, environment)
        print((room / name / "log.txt").read_text(encoding="utf-8", errors="replace")[-6000:])
        files = sorted(path.name for path in (room / name).iterdir())
        assert files == ["gpu.json", "log.txt"], f"{files} would come back"
    found = outcomes(room / "call-2")
    wanted = {stage: "done" for stages, _ in CALLS.values() for stage in stages}
    assert found == wanted, found


def faults(room: Path, environment: dict[str, str]) -> None:
    """A stage that fails and one that hangs, before one that goes well."""
    faulty = Path(__file__).parent / "faults" / "sitecustomize.py"
    site = room / "kit" / "site"
    shutil.copy(faulty, site)
    environment = environment | {"PYTHONPATH": str(site), "QLORA_LAB_CACHE": str(room / "kit" / "cache")}
    stages = ["kernels", "paging", "tests"]
    out = room / "faults"
    command = ["python3", "benchmarks/record_gpu.py", *stages, "--out", out, *TINY, "--patience", "0.8"]
    assert typed(command, room / "checkout", environment) == 1
    (site / "sitecustomize.py").unlink()
    found = outcomes(out)
    assert found.pop("paging").startswith("cut off after"), found
    assert found == {"kernels": "failed", "tests": "done"}, found
    stages = json.loads((out / "gpu.json").read_text(encoding="utf-8"))["stages"]
    assert "made to fail" in stages["kernels"]["last words"]
    assert stages["paging"]["large"]["tensors"], "what was there before the hang is lost"
    assert not (left := sleeping("98765")), f"{left} went on after its stage was cut off"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="make the environment in this folder, or find it there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bare-", ignore_cleanup_errors=True) as place:
        room = Path(place)
        folder = options.keep or room / "venv"
        python = folder / "bin" / "python"
        python = python if python.exists() else make_bare(folder)
        print("installed:", *(f"{name}=={version}" for name, version in versions(python).items()), flush=True)
        kit = ROOT / KIT
        subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu_kit.py", "--out", kit], check=True)
        path = os.pathsep.join([str(python.parent.absolute()), os.environ["PATH"]])
        environment = clean_environment(PATH=path, QLORA_LAB_KIT=str(room / "kit"))
        both_calls(room, kit, environment)
        faults(room, environment)
        print("all stages were done; a failure and a hang cost only themselves")


if __name__ == "__main__":
    main()
