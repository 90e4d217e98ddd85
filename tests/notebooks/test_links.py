"""The notebooks' bootstrap cell and their links: the same everywhere, true to the setting, and each branch carried out.

The branches run in a small virtual environment with stand-ins for torch, numpy and this package, so that a real pip
decides what is installed, in seconds and without a network.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest
from tiny_wheels import pip_environment, write_checkout, write_wheel

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
spec = importlib.util.spec_from_file_location("links", ROOT / "tools" / "links.py")
links = importlib.util.module_from_spec(spec)
spec.loader.exec_module(links)

ADDRESS = "https://github.com/someone/her-fork"


def first_code_cell(path: Path):
    return next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


# --- what stands in the notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_writing_them_again_changes_nothing(path, tmp_path):
    copy = shutil.copy(path, tmp_path / path.name)
    assert not links.write(copy)
    assert copy.read_bytes() == path.read_bytes()


def test_all_notebooks_begin_with_the_same_cell():
    cells = [first_code_cell(path) for path in NOTEBOOKS]
    assert {cell.source for cell in cells} == {links.bootstrap(*links.setting())}
    assert all("bootstrap" in cell.metadata.tags and not cell.outputs for cell in cells)


def test_a_fork_points_at_itself(tmp_path, monkeypatch):
    setting = tmp_path / "pyproject.toml"
    setting.write_text(f'[tool.qlora-lab]\nrepository = "{ADDRESS}/"\nbranch = "summer"\n')
    monkeypatch.setattr(links, "PYPROJECT", setting)
    copy = shutil.copy(NOTEBOOKS[0], tmp_path / NOTEBOOKS[0].name)
    before = nbformat.read(copy, as_version=4)
    assert links.write(copy) and not links.write(copy)
    after = nbformat.read(copy, as_version=4)
    assert f'SOURCE = "{ADDRESS}/archive/summer.zip"' in first_code_cell(copy).source
    assert f"(https://colab.research.google.com/github/someone/her-fork/blob/summer/notebooks/{copy.name})" in (
        after.cells[0].source
    )
    changed = [old.id for old, new in zip(before.cells, after.cells, strict=True) if old != new]
    assert changed == [before.cells[0].id, "bootstrap"]


@pytest.mark.parametrize("repository", ["https://example.org/someone/x", "someone/x", "https://github.com/someone"])
def test_a_setting_that_cannot_work_is_refused(repository, tmp_path, monkeypatch):
    setting = tmp_path / "pyproject.toml"
    setting.write_text(f'[tool.qlora-lab]\nrepository = "{repository}"\n')
    monkeypatch.setattr(links, "PYPROJECT", setting)
    with pytest.raises(ValueError, match="the form that Colab opens notebooks from"):
        links.setting()


@pytest.mark.parametrize("line", ["", 'repository = ""\n', f'repository = "{links.NOWHERE}"\n'])
def test_without_an_address_there_is_no_link(line, tmp_path, monkeypatch):
    """One that was there is taken out, and comes back with an address; the cell still says where one is needed."""
    setting, copy = tmp_path / "pyproject.toml", tmp_path / NOTEBOOKS[0].name
    monkeypatch.setattr(links, "PYPROJECT", setting)
    shutil.copy(NOTEBOOKS[0], copy)
    with_link, without = f'[tool.qlora-lab]\nrepository = "{ADDRESS}"\n', f"[tool.qlora-lab]\n{line}"
    setting.write_text(with_link)
    links.write(copy)
    linked = nbformat.read(copy, as_version=4).cells[0].source
    assert links.LABEL in linked
    setting.write_text(without)
    assert links.write(copy) and not links.write(copy)
    bare = nbformat.read(copy, as_version=4).cells[0].source
    assert links.LABEL not in bare and "\n\n\n" not in bare and "/OWNER/" in first_code_cell(copy).source
    assert (
        "\n".join(text for text in linked.split("\n") if not text.startswith(f"[{links.LABEL}]")).replace(
            "\n\n\n", "\n\n"
        )
        == bare
    )
    setting.write_text(with_link)
    assert links.write(copy) and nbformat.read(copy, as_version=4).cells[0].source == linked


def test_a_notebook_without_them_gets_both_and_keeps_the_rest(tmp_path, monkeypatch):
    setting = tmp_path / "pyproject.toml"
    setting.write_text(f'[tool.qlora-lab]\nrepository = "{ADDRESS}"\n')
    monkeypatch.setattr(links, "PYPROJECT", setting)
    cells = [nbformat.v4.new_markdown_cell("# A title\n\n**Claim.** Text.")]
    output = nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=1)
    cells += [nbformat.v4.new_code_cell("1", execution_count=1, outputs=[output], metadata={"tags": ["C1"]})]
    book = nbformat.v4.new_notebook(cells=cells, metadata={"measured": {"seconds": 90, "long cells": [1]}})
    path = tmp_path / "book.ipynb"
    nbformat.write(book, path)
    assert links.write(path) and not links.write(path)
    title, bootstrap, rest = nbformat.read(path, as_version=4).cells
    assert re.fullmatch(r"# A title\n\n\[Open in Colab\]\(\S+/book.ipynb\)\n\n\*\*Claim.\*\* Text.", title.source)
    assert bootstrap.execution_count == 1 and rest.execution_count == rest.outputs[0].execution_count == 2
    assert rest.source == "1" and rest.metadata.tags == ["C1"]
    assert nbformat.read(path, as_version=4).metadata.measured["long cells"] == [2]


# --- what the cell does


REQUIRES = ["torch>=1", "numpy>=1", 'oracle>=1; extra == "reference"', 'sliders>=1; extra == "widgets"']


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A folder of wheels in which torch and numpy are newer than those installed."""
    folder = tmp_path_factory.mktemp("index")
    for name, version in (("torch", "1.5"), ("torch", "2.0"), ("numpy", "1.5"), ("numpy", "2.0")):
        write_wheel(folder, name, version)
    write_wheel(folder, "oracle", "1.0", ["torch", "numpy"])
    write_wheel(folder, "sliders", "1.0")
    return folder


@pytest.fixture(scope="module")
def settings(index):
    """The environment of a pip that knows this folder and nothing else."""
    return pip_environment(index)


@pytest.fixture(scope="module")
def colab(tmp_path_factory, settings):
    """An environment that has its own torch and numpy."""
    folder = tmp_path_factory.mktemp("colab") / "venv"
    venv.create(folder, with_pip=True, symlinks=True)
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", "torch==1.5", "numpy==1.5"], env=settings)
    return folder


@pytest.fixture
def run(colab, settings, tmp_path):
    """Runs source in a fresh copy of that environment, from a folder outside any checkout."""
    copy = shutil.copytree(colab, tmp_path / "venv", symlinks=True)
    (tmp_path / "content").mkdir()

    def run(source: str, folder: Path = tmp_path / "content"):
        return subprocess.run(
            [copy / "bin/python", "-c", source], cwd=folder, env=settings, capture_output=True, text=True
        )

    return run


def cell(source: str | None = None) -> str:
    """The bootstrap cell, with another address in SOURCE."""
    text = links.bootstrap("https://github.com/OWNER/qlora-lab", "main")
    return text if source is None else text.replace("https://github.com/OWNER/qlora-lab/archive/main.zip", source)


VERSIONS = """
import importlib.metadata
import qlora_lab, oracle, sliders  # in the same process: no restart
print([importlib.metadata.version(name) for name in ("torch", "numpy", "oracle", "sliders")])
"""


@pytest.mark.slow
def test_from_an_address_and_then_never_again(run, tmp_path):
    wheel = write_wheel(tmp_path, "qlora-lab", "0.1.0", REQUIRES, ("reference", "widgets"))
    done = run(cell(wheel.as_uri()) + VERSIONS)
    assert done.returncode == 0, done.stderr
    told, installed, kept, versions = done.stdout.splitlines()
    assert told == f"installing qlora-lab from {wheel.as_uri()}; this takes a minute or two"
    assert installed == "Successfully installed oracle-1.0 qlora-lab-0.1.0 sliders-1.0"
    assert "torch==1.5" in kept and "numpy==1.5" in kept
    assert versions == "['1.5', '1.5', '1.0', '1.0']"  # 2.0 was there to be had
    wheel.unlink()
    again = run(cell(wheel.as_uri()))
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_package_that_wants_another_torch_is_not_installed(run, tmp_path):
    wheel = write_wheel(tmp_path, "qlora-lab", "0.1.0", ["torch>=2", "numpy>=1"], ("reference", "widgets"))
    done = run(cell(wheel.as_uri()))
    assert done.returncode == 1
    assert "pip could not install it beside what is loaded" in done.stderr and "torch==1.5" in done.stderr
    after = run("import importlib.metadata as m; print(m.version('torch')); import qlora_lab")
    assert after.stdout == "1.5\n" and "No module named 'qlora_lab'" in after.stderr


@pytest.mark.slow
def test_what_the_kernel_has_loaded_stays_too(run, index, tmp_path):
    """A module that is replaced after it was loaded would need a restart."""
    write_wheel(index, "loaded", "1.0"), write_wheel(index, "loaded", "2.0")
    assert run("import pip._internal.cli.main as m; m.main(['install', '-q', 'loaded==1.0'])").returncode == 0
    wheel = write_wheel(tmp_path, "qlora-lab", "0.1.0", ["loaded>=2"], ("reference", "widgets"))
    done = run("import loaded\n" + cell(wheel.as_uri()))
    assert done.returncode == 1 and "loaded==1.0" in done.stderr
    assert run(cell(wheel.as_uri())).returncode == 0


@pytest.mark.slow
def test_from_the_checkout_that_the_notebook_lies_in(run, tmp_path):
    checkout = tmp_path / "a checkout"
    (checkout / "notebooks").mkdir(parents=True)
    wheel = write_wheel(tmp_path, "qlora-lab", "0.1.0", REQUIRES, ("reference", "widgets"))
    write_checkout(checkout, wheel)
    done = run(cell() + VERSIONS, checkout / "notebooks")
    assert done.returncode == 0, done.stderr
    assert f"installing qlora-lab from {checkout.as_uri()};" in done.stdout
    assert done.stdout.endswith("['1.5', '1.5', '1.0', '1.0']\n")


@pytest.mark.slow
def test_a_folder_of_that_name_is_no_checkout(run, tmp_path):
    """One in a parent folder is installed, and so run, only if it says that it is this package."""
    lookalike = tmp_path / "downloads"
    wheel = write_wheel(tmp_path, "qlora-lab", "0.1.0", REQUIRES, ("reference", "widgets"))
    write_checkout(lookalike, wheel)
    (lookalike / "pyproject.toml").write_text('[project]\nname = "something-else"\n')
    (lookalike / "inner").mkdir()
    done = run(cell(wheel.as_uri()), lookalike / "inner")
    assert done.stdout.startswith(f"installing qlora-lab from {wheel.as_uri()};"), done.stderr


@pytest.mark.slow
def test_an_archive_of_a_branch_is_told_and_can_be_pinned(run, tmp_path):
    wheel = write_wheel(tmp_path, "qlora-lab", "0.1.0", REQUIRES, ("reference", "widgets"))
    archives, commit = tmp_path / "archive", "0123456789" * 4
    archives.mkdir()
    branch = cell((archives / "main.zip").as_uri())
    assert "it is a branch as it is now; a commit's 40 digits in COMMIT" in run(branch).stdout
    for pinned, words in ((commit, f"/archive/{commit}.zip;"), ("main", "COMMIT is the 40 digits of a commit")):
        done = run(branch.replace('COMMIT = ""', f'COMMIT = "{pinned}"'))
        assert words in done.stdout + done.stderr and "a branch as it is" not in done.stdout
    refused = run(cell(wheel.as_uri()).replace('COMMIT = ""', f'COMMIT = "{commit}"'))
    assert "of SOURCE's repository" in refused.stderr and not refused.stdout
    done = run(cell(f"{wheel.as_uri()}#sha256={'0' * 64}"))
    assert done.returncode == 1 and "hash" in done.stderr.lower()


@pytest.mark.slow
def test_without_an_address_it_says_what_to_do(run):
    done = run(cell())
    assert done.returncode == 1 and "put the workbook's own address there" in done.stderr
    assert "During handling" not in done.stderr


@pytest.mark.slow
def test_where_the_package_imports_it_prints_nothing():
    done = subprocess.run([sys.executable, "-c", cell()], cwd=ROOT / "notebooks", capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
