"""`make lab`: the first notebook, and a toolbar without buttons that are not for a reader who works alone."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def command() -> str:
    """What `make lab` would run."""
    done = subprocess.run(["make", "--dry-run", "lab"], cwd=ROOT, capture_output=True, text=True, check=True)
    return next(part for part in done.stdout.replace("\\\n", " ").splitlines() if "jupyter lab" in part)


def test_it_opens_the_first_notebook(command):
    folder, place = re.search(r"root_dir=(\S+) .*default_url=/lab/tree/(\S+)", command).groups()
    assert ROOT / folder / place == sorted((ROOT / "notebooks").glob("*.ipynb"))[0]


def test_the_buttons_of_nbgrader_are_off(command, monkeypatch):
    """Its "Validate" calls a notebook that has none of its tests solved, whatever the exercises hold."""
    config = pytest.importorskip("jupyterlab_server.config")
    place = re.search(r'JUPYTER_CONFIG_PATH="([^"$:]+)', command)[1]
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", f"{place}{os.pathsep}{os.environ.get('JUPYTER_CONFIG_PATH', '')}")
    assert "@jupyter/nbgrader" in config.get_page_config([])["disabledExtensions"]
    found = json.loads((Path(place) / "labconfig" / "page_config.json").read_text())
    assert found == {"disabledExtensions": {"@jupyter/nbgrader": True}}
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "")
    assert "@jupyter/nbgrader" not in config.get_page_config([]).get("disabledExtensions", [])


def test_only_notebooks_lie_among_the_notebooks():
    assert {path.suffix for path in (ROOT / "notebooks").iterdir() if path.is_file() and path.name != ".ruff.toml"} == {
        ".ipynb"
    }
