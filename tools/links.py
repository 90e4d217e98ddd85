"""Write each notebook's bootstrap cell and its "Open in Colab" link: python tools/links.py notebooks/*.ipynb

Both need one address, the repository's, which stands in pyproject.toml under `[tool.qlora-lab]`. A fork puts its own
there and runs this again, and its notebooks point at itself. While there is none, there is no link, and the cell says
what to do where it would need one. Where nothing has changed, nothing is written.
"""

import sys
import tomllib
from pathlib import Path

import nbformat

from qlora_lab.machine.files import write_text

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
LABEL = "Open in Colab"
NOWHERE = "https://github.com/OWNER/qlora-lab"  # what the cell names while there is no address; it refuses it

# Up to the import it may use the standard library only. It has to stand in the notebook: it runs before the package.
BOOTSTRAP = '''\
# Where the package is installed, this cell does nothing. Elsewhere (in Colab, say) it installs
# it, and says from where: from the checkout around this notebook, or else from SOURCE, a
# repository's archive or a wheel by its https:// or file:// address. A branch's archive is
# whatever the branch is today. With the 40 digits of a commit in COMMIT it is that commit of the
# repository, always; to a wheel's address you can add "#sha256=" and its sum, which pip compares.
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

SOURCE = "{source}"
COMMIT = ""
try:
    importlib.import_module("qlora_lab")
except ModuleNotFoundError:
    folders = [
        f for f in (Path.cwd(), *Path.cwd().parents) if (f / "qlora_lab/__init__.py").is_file()
    ]
    # a folder of that name alone is no checkout
    named = re.compile(r"""^name *= *["']qlora-lab["']""", re.MULTILINE)
    projects = [f for f in folders if (f / "pyproject.toml").is_file()]
    checkouts = [
        f.as_uri()
        for f in projects
        if named.search((f / "pyproject.toml").read_text("utf-8", "replace"))
    ]
    address = (checkouts or [SOURCE])[0]
    if COMMIT:
        address = f"{{SOURCE.rpartition('/archive/')[0]}}/archive/{{COMMIT}}.zip"
        if not re.fullmatch("[0-9a-f]{{40}}", COMMIT) or "/archive/" not in SOURCE:
            raise RuntimeError(
                "COMMIT is the 40 digits of a commit of SOURCE's repository"
            ) from None
    if "/OWNER/" in address:
        raise RuntimeError("SOURCE says OWNER: put the workbook's own address there") from None
    print(f"installing qlora-lab from {{address}}; this takes a minute or two")
    if address == SOURCE and "/archive/" in SOURCE:
        print(
            "it is a branch as it is now; a commit's 40 digits in COMMIT make it always the same"
        )
    owners = importlib.metadata.packages_distributions()
    loaded = {{
        name
        for module in owners.keys() & {{*sys.modules, "torch", "numpy"}}
        for name in owners[module]
    }}
    # what is loaded stays as it is: then no restart is needed
    kept = sorted(f"{{name}}=={{importlib.metadata.version(name)}}" for name in loaded)
    wanted = [f"qlora-lab[reference,widgets] @ {{address}}", *kept]
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "install", *wanted], capture_output=True, text=True
    )
    if pip.returncode:
        failed = "pip could not install it beside what is loaded"
        raise RuntimeError(f"{{failed}}:\\n{{pip.stderr[-3000:]}}") from None
    importlib.invalidate_caches()
    print(pip.stdout.strip().splitlines()[-1])
    names = ("torch=", "numpy=", "ipython=")
    print("left as they were:", *(pin for pin in kept if pin.startswith(names)))'''


def setting() -> tuple[str, str]:
    """The repository's address without a slash at its end, "" while none is set, and the branch that readers get.

    Raises:
        ValueError: the setting is no address that notebooks can be opened from.
    """
    found = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"].get("qlora-lab", {})
    repository, branch = found.get("repository", "").rstrip("/").removesuffix(".git"), found.get("branch", "main")
    if repository and (not repository.startswith("https://github.com/") or repository.count("/") != 4):
        raise ValueError(
            f'[tool.qlora-lab] repository in {PYPROJECT.name} is {repository!r}; "https://github.com/owner/name" is '
            "the form that Colab opens notebooks from"
        )
    return "" if repository == NOWHERE else repository, branch


def bootstrap(repository: str, branch: str) -> str:
    """The source of the bootstrap cell."""
    return BOOTSTRAP.format(source=f"{repository or NOWHERE}/archive/{branch}.zip")


def link(repository: str, branch: str, name: str) -> str:
    """The line that opens the notebook called `name` in Colab; "" while there is no address."""
    if not repository:
        return ""
    place = repository.removeprefix("https://github.com/")
    return f"[{LABEL}](https://colab.research.google.com/github/{place}/blob/{branch}/notebooks/{name})"


def write_cell(book, source: str) -> None:
    """Put the bootstrap cell before the first code cell, or renew it where it stands."""
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    if "bootstrap" in code[0].metadata.get("tags", []):
        if code[0].source != source:
            code[0].source, code[0].outputs = source, []
        return
    # JupyterLab folds it away (it does nothing there); Colab, where it is needed, shows it.
    metadata = {"tags": ["bootstrap"], "jupyter": {"source_hidden": True}}
    cell = nbformat.v4.new_code_cell(source, id="bootstrap", metadata=metadata, execution_count=0)
    book.cells.insert(book.cells.index(code[0]), cell)
    # The cells are numbered from 1, also in what `make notebooks` wrote down about them.
    for cell in (cell for cell in book.cells if cell.cell_type == "code" and cell.execution_count is not None):
        cell.execution_count += 1
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = cell.execution_count
    measured = book.metadata.get("measured", {})
    if "long cells" in measured:
        measured["long cells"] = [number + 1 for number in measured["long cells"]]


def write_link(book, line: str) -> None:
    """Put the link under the title, or renew it where it stands; no line takes it out."""
    lines = book.cells[0].source.splitlines()
    places = [number for number, text in enumerate(lines) if text.startswith(f"[{LABEL}](")]
    if places and line:
        lines[places[0]] = line
    elif places:  # with the empty line before it
        del lines[max(places[0] - 1, 0) : places[0] + 1]
    elif line:
        lines[1:1] = ["", line]
    book.cells[0].source = "\n".join(lines)


def write(path: Path) -> bool:
    """Bring one notebook up to date; whether anything had to be written."""
    before = path.read_text(encoding="utf-8")
    book = nbformat.reads(before, as_version=4)
    repository, branch = setting()
    write_cell(book, bootstrap(repository, branch))
    write_link(book, link(repository, branch, path.name))
    nbformat.validate(book)
    after = nbformat.writes(book) + "\n"
    if after != before:
        write_text(path, after)
    return after != before


if __name__ == "__main__":
    for name in sys.argv[1:]:
        if write(Path(name)):
            print("written:", name)
