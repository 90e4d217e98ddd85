"""Fresh virtual environments for the scripts beside this file, and what pip says is in them."""

import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # of the environment that this runs in


def clean_environment(**more: str) -> dict[str, str]:
    """The variables of this process without those that would lead a fresh environment back to this one."""
    return {name: value for name, value in os.environ.items() if name not in PACKAGED} | more


def make(folder: Path) -> Path:
    """Create an environment with pip in it; its Python."""
    venv.create(folder, with_pip=True, clear=True, symlinks=os.name == "posix")
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip_works(python: Path, *arguments: str) -> bool:
    """Run pip there; whether it did what it was told, with its own words where not."""
    command = [python, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    return not subprocess.run(command, env=clean_environment()).returncode


def pip(python: Path, *arguments: str) -> None:
    """Run pip there; end this process where it fails."""
    if not pip_works(python, *arguments):
        sys.exit(f"failed: pip {' '.join(arguments)}")


def versions(python: Path) -> dict[str, str]:
    """What is installed there, name -> version."""
    command = [python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    listed = subprocess.run(command, env=clean_environment(), stdout=subprocess.PIPE, check=True).stdout
    return {entry["name"].lower(): entry["version"] for entry in json.loads(listed)}


def wheel(folder: Path) -> Path:
    """Build the package's wheel into `folder`."""
    pip(Path(sys.executable), "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (found,) = folder.glob("qlora_lab-*.whl")
    return found


def required(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for, with these extras."""
    optional = PROJECT["optional-dependencies"]
    return [Requirement(text) for text in sum((optional[extra] for extra in extras), PROJECT["dependencies"])]


def pinned() -> dict[str, str]:
    """The exact versions in requirements.txt, name -> version."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
