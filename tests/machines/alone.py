"""Every notebook by itself: python tests/machines/alone.py [NOTEBOOK ...]

Each is compared strictly with its committed outputs, but under other circumstances than those it was executed in: the
last one first, alone in an empty folder, with the package from a wheel, one thread, PyTorch's code for AVX2, and no
network. What an output owes to a neighbour, to the order, to the number of threads or to the processor shows here.

Notebooks run for minutes each; the model is fetched once into the usual cache.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from environments import ROOT, clean_environment, make, pip, wheel

LIMITS = {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}


def compare(python: Path, notebook: Path, folder: Path) -> tuple[bool, str]:
    """Whether the notebook's outputs come out the same in `folder`, where nothing else is; and what pytest said."""
    folder.mkdir()
    shutil.copy(notebook, folder)
    offline = str(ROOT / "tests" / "offline")
    command = [python, "-m", "pytest", "--nbval", "-q", "--tb=short", "-p", "no:cacheprovider", "--rootdir=."]
    done = subprocess.run(
        [*command, notebook.name],
        cwd=folder,
        env=clean_environment(PYTHONPATH=offline, **LIMITS),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = done.stdout.strip()
    return done.returncode == 0, said.splitlines()[-1] if done.returncode == 0 else said[-6000:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="at the same time")
    options = parser.parse_args()
    notebooks = sorted(options.notebooks or (ROOT / "notebooks").glob("*.ipynb"), reverse=True)
    with tempfile.TemporaryDirectory(prefix="alone-", ignore_cleanup_errors=True) as place:
        place = Path(place)
        package = wheel(place)
        python = make(place / "venv")
        pip(python, "install", "--requirement", str(ROOT / "requirements.txt"))
        pip(python, "install", "--no-deps", str(package))
        subprocess.run([python, "-m", "qlora_lab.cli", "fetch"], check=True, env=clean_environment(), cwd=place)

        def run(notebook: Path) -> bool:
            began = time.perf_counter()
            fine, said = compare(python, notebook.absolute(), place / notebook.stem)
            print(
                f"{notebook.name}: {'same' if fine else 'DIFFERS'} in {time.perf_counter() - began:.0f} s", flush=True
            )
            print("    " + said.replace("\n", "\n    "), flush=True)
            return fine

        with ThreadPoolExecutor(options.workers) as pool:
            failed = [book.name for book, fine in zip(notebooks, pool.map(run, notebooks), strict=True) if not fine]
    if failed:
        sys.exit(f"not as committed: {', '.join(failed)}")
    print(f"{len(notebooks)} notebooks, each alone: the same outputs")


if __name__ == "__main__":
    main()
