"""The bundle: its README's commands install from it where no index can be reached, and a failure leaves nothing.

The package and what it needs are stand-ins here, so that a real pip does all of it in seconds;
`tests/machines/bundle.py` does the same with the real ones.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny_wheels import pip_environment, write_checkout, write_wheel
from typer.testing import CliRunner

from qlora_lab.cli import bundle
from qlora_lab.cli.bundle import BundleFailed, write_bundle
from qlora_lab.cli.commands import app

CODE = """
import sys, light
def main(): print("asked to", *sys.argv[1:])
"""


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Where pip finds what the package needs, in two versions, for as long as the bundle is made."""
    folder = tmp_path / "index"
    folder.mkdir()
    for version in ("1.0", "2.0"):
        write_wheel(folder, "light", version)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in pip_environment(folder).items():
        if name.startswith("PIP_"):
            monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def checkout(tmp_path):
    """A package that needs `light`, pinned to its first version; two notebooks."""
    folder = tmp_path / "checkout"
    script = "[console_scripts]\nqlora-lab = qlora_lab:main\n"
    requires = ['light>=1; extra == "reference"']
    wheel = write_wheel(tmp_path, "qlora-lab", "0.1.0", requires, ("reference", "notebooks"), CODE, script)
    write_checkout(folder, wheel)
    (folder / "requirements.txt").write_text("light==1.0\n")
    (folder / "notebooks").mkdir()
    for name in ("00_a.ipynb", "01_b.ipynb"):
        (folder / "notebooks" / name).write_text("{}")
    return folder


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"weights" * 1000)
    return lambda notice: path


@pytest.fixture(autouse=True)
def second(tmp_path_factory, monkeypatch):
    """The weights that were never quantized."""
    path = tmp_path_factory.mktemp("second") / "second.safetensors"
    path.write_bytes(b"more weights")
    defaults = bundle.write_bundle.__kwdefaults__ | {"second": lambda notice: path}
    monkeypatch.setattr(bundle.write_bundle, "__kwdefaults__", defaults)
    return path


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "desk"
    folder.mkdir()
    return folder / "qlora-lab-bundle.zip"


def commands(readme: str) -> list[str]:
    """The two for Linux and macOS."""
    found = re.findall(r"^    (\S.*)$", readme, re.MULTILINE)
    assert len(found) == 4 and all("Scripts" in command for command in found[2:])
    return found[:2]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the commands for Windows differ: NOT RUN")
def test_its_two_commands_install_from_it_without_an_index(index, checkout, model, out, tmp_path):
    said = []
    size = write_bundle(out, checkout, model=model, notice=said.append, progress=said.append)
    assert size == out.stat().st_size and list(out.parent.iterdir()) == [out]
    assert "Packing 2 wheels, the models and 2 notebooks …" in said

    shutil.rmtree(index)
    with zipfile.ZipFile(out) as archive:
        archive.extractall(tmp_path / "room")
    room = tmp_path / "room" / "qlora-lab-bundle"
    assert (room / "model" / "second.safetensors").read_bytes() == b"more weights"
    assert (room / "model" / "tiny.gguf").read_bytes() == model(None).read_bytes()
    assert {path.name for path in (room / "notebooks").iterdir()} == {"00_a.ipynb", "01_b.ipynb"}
    install, fetch = commands((room / "README.md").read_text())
    here = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    environment = pip_environment(None) | here
    for command in (install, fetch):
        done = subprocess.run(command, shell=True, cwd=room, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "asked to fetch --gguf model/tiny.gguf --minilm model/second.safetensors\n"
    listed = subprocess.run([room / ".venv/bin/python", "-m", "pip", "freeze"], env=environment, capture_output=True)
    assert b"light==1.0" in listed.stdout  # the pinned one


def test_a_wheel_that_cannot_be_had(index, checkout, model, out):
    (index / "light-1.0-py3-none-any.whl").unlink()
    out.write_text("yesterday's")
    with pytest.raises(BundleFailed, match=r"(?s)Nothing was written.*light==1\.0"):
        write_bundle(out, checkout, model=model, notice=str)
    assert list(out.parent.iterdir()) == [out] and out.read_text() == "yesterday's"


def test_an_interrupt_leaves_nothing(index, checkout, model, out):
    def interrupt(words):
        if " of " in words:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(out, checkout, model=model, notice=str, progress=interrupt)
    assert not list(out.parent.iterdir())


def test_a_disk_that_is_too_small(checkout, model, out, monkeypatch):
    monkeypatch.setattr(bundle, "LEAST_ROOM", 10**18)
    with pytest.raises(BundleFailed, match="larger disk with --out"):
        write_bundle(out, checkout, model=model, notice=str)
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "a.tar"], "call it a.zip"),
        (["--out", "nowhere/a.zip"], "nowhere does not exist"),
        (["--out", "a.zip"], "no checkout of QLoRA Lab"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["bundle", *arguments], terminal_width=120)
    assert result.exit_code == 1 and words in result.output and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())
