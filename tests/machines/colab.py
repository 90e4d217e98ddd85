"""A stand-in for Colab: python tests/machines/colab.py [NOTEBOOK ...]

A fresh environment with the newest versions that the index has (older ipywidgets, as Colab's; torch as pinned, since
another one is gigabytes), no checkout, no JupyterLab. Each notebook lies alone in an empty folder, with the address of
a built wheel in its first cell, and runs from top to bottom under the limits of `t4/`. Afterwards torch, numpy, ipython
and everything else that was there must be what it was.

Notebooks run for minutes each, and the model is fetched anew unless --cache names a cache that has it.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from environments import ROOT, clean_environment, make, pinned, pip, required, versions, wheel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

# What Colab has before anything is installed there, of what matters here.
PREINSTALLED = ["numpy", "matplotlib", "transformers", "accelerate", "peft", "psutil", "jinja2", "rich", "ipykernel"]
WIDGETS = ["ipywidgets==7.7.1", "notebook==6.5.7"]  # newer ones of the second would bring JupyterLab
SOURCE = 'SOURCE = "'


def write_kernel(folder: Path, python: Path, environment: dict[str, str]) -> None:
    """A kernel called "colab" that is the fresh environment's; only ipykernel is needed there."""
    place = folder / "kernels" / "colab"
    place.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (place / "kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "Colab", "language": "python", "env": environment})
    )


def put_address(book, address: str) -> None:
    """Do what a reader would: put the wheel's address into the first cell."""
    cell = next(cell for cell in book.cells if cell.cell_type == "code")
    lines = cell.source.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith(SOURCE)]
    lines[place] = f'{SOURCE}{address}"'
    cell.source = "\n".join(lines)


def run(path: Path, address: str, content: Path) -> tuple[bool, str]:
    """Execute one notebook; whether it went through, and what its first cell said or what failed."""
    book = nbformat.read(path, as_version=4)
    put_address(book, address)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    folder = content / path.stem  # nothing beside it
    folder.mkdir()
    client = NotebookClient(
        book, timeout=3600, startup_timeout=600, kernel_name="colab", resources={"metadata": {"path": str(folder)}}
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return False, str(error)[-3000:]
    finally:
        nbformat.write(book, folder / path.name)
    first = next(cell for cell in book.cells if cell.cell_type == "code")
    return True, "".join(output.get("text", "") for output in first.outputs).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument("--memory", type=float, default=12.7, help="GB of the machine, as Colab's")
    parser.add_argument("--cache", type=Path, help="a cache folder with the model (default: a fresh one)")
    options = parser.parse_args()
    notebooks = options.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb"))
    with tempfile.TemporaryDirectory(prefix="colab-", ignore_cleanup_errors=True) as place:
        place = Path(place)
        address = wheel(place).as_uri()
        python = make(place / "venv")
        pip(python, "install", f"torch=={pinned()['torch']}")
        pip(python, "install", *PREINSTALLED, *WIDGETS)
        before = versions(python)
        for name in ("jupyterlab", "qlora-lab", "bitsandbytes"):
            assert name not in before, f"{name} should not be there yet"

        content = place / "content"
        content.mkdir()
        environment = clean_environment(
            PYTHONPATH=str(Path(__file__).parent / "t4"),
            T4_HOST_BYTES=str(int(1e9 * options.memory)),
            QLORA_LAB_CACHE=str((options.cache or place / "cache").absolute()),
        )
        write_kernel(place / "jupyter", python, environment)
        os.environ["JUPYTER_PATH"] = str(place / "jupyter")
        failed = []
        for path in notebooks:
            began = time.perf_counter()
            fine, said = run(path, address, content)
            print(f"{path.name}: {'ran' if fine else 'FAILED'} in {time.perf_counter() - began:.0f} s", flush=True)
            print("    " + said.replace("\n", "\n    "), flush=True)
            if not fine:
                failed.append(path.name)
        after = versions(python)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    changed = {name: (version, after.get(name)) for name, version in before.items() if after.get(name) != version}
    newer = [
        f"{name} {after[name]} (pinned: {version})"
        for name, version in pinned().items()
        if after.get(name, version) != version  # what is not there at all, as JupyterLab, is no newer version
    ]
    print(f"largest process: {peak / 1e9:.1f} GB of {options.memory} GB")
    print("other versions than the pinned ones:", ", ".join(newer))
    print("changed by the installation:", changed or "nothing that was there")
    for requirement in required("reference", "widgets"):
        assert requirement.specifier.contains(after[requirement.name]), requirement
    if failed or changed:
        sys.exit(f"failed: {', '.join(failed) or 'the installation changed what was there'}")
    print(f"{len(notebooks)} notebooks ran; torch {after['torch']}, numpy {after['numpy']} as before")


if __name__ == "__main__":
    main()
