"""A room without internet: python tests/machines/bundle.py [--bundle FILE] [NOTEBOOK]

Makes the bundle (or takes one), unpacks it elsewhere, and there, in a network namespace without any device, types the
two commands of its README and runs a notebook. Linux only, where `unshare -rn` is allowed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from environments import ROOT, clean_environment, versions

NO_NETWORK = ["unshare", "-rn", sys.executable, str(Path(__file__).with_name("no_network.py"))]
RUN = """
import sys
import nbformat
from nbclient import NotebookClient

book = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(book, timeout=3600, startup_timeout=600, resources={"metadata": {"path": "notebooks"}}).execute()
print(sum(cell.cell_type == "code" for cell in book.cells), "cells ran")
"""


def typed(command: str | list[str], folder: Path, environment: dict[str, str]) -> None:
    """Run a command without a network and say how long it took; end this process where it fails."""
    began = time.perf_counter()
    words = ["sh", "-c", command] if isinstance(command, str) else command
    if subprocess.run(NO_NETWORK + words, cwd=folder, env=environment).returncode:
        sys.exit(f"failed: {command}")
    print(f"{time.perf_counter() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", nargs="?", default="04_paged_optimizers.ipynb")
    parser.add_argument("--bundle", type=Path, help="a bundle that was made before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="room-", ignore_cleanup_errors=True) as place:
        archive = options.bundle or Path(place) / "qlora-lab-bundle.zip"
        if not options.bundle:
            began = time.perf_counter()
            command = [sys.executable, "-m", "qlora_lab.cli", "bundle", "--out", archive, "--checkout", ROOT]
            subprocess.run(command, check=True)
            print(f"made in {time.perf_counter() - began:.0f} s", flush=True)
        print(f"{archive.name}: {archive.stat().st_size / 1e6:,.0f} MB", flush=True)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(place)
        (room,) = (path.parent for path in Path(place).glob("*/README.md"))
        path = os.pathsep.join([str(Path(sys.executable).resolve().parent), os.environ["PATH"]])
        environment = clean_environment(PATH=path, QLORA_LAB_CACHE=str(room / "cache"), PIP_CONFIG_FILE=os.devnull)
        environment = {name: value for name, value in environment.items() if name != "PIP_FIND_LINKS"}
        for command in re.findall(r"^    (\S.*)$", (room / "README.md").read_text(encoding="utf-8"), re.MULTILINE)[:2]:
            print("$", command, flush=True)
            typed(command, room, environment)
        python = room / ".venv" / "bin" / "python"
        print(len(versions(python)), "packages; running", options.notebook, flush=True)
        typed([str(python), "-c", RUN, f"notebooks/{options.notebook}"], room, environment)


if __name__ == "__main__":
    main()
