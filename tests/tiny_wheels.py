"""Wheels of empty packages, and a pip that knows nothing else: installs that are real and take a second."""

import os
import zipfile
from pathlib import Path


def write_wheel(
    folder: Path, name: str, version: str, requires=(), extras=(), code: str = "", scripts: str = ""
) -> Path:
    """A wheel that holds one package, with `code` as its only module and `scripts` as its entry_points.txt."""
    module = name.replace("-", "_")
    path = folder / f"{module}-{version}-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {text}" for text in requires]
    info = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}/__init__.py", code)
        archive.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", scripts)
        archive.writestr(f"{info}/RECORD", f"{module}/__init__.py,,\n")
    return path


def write_checkout(folder: Path, wheel: Path) -> None:
    """Source from which pip builds `wheel`. The build system is one file: a real one would have to be downloaded."""
    (folder / "qlora_lab").mkdir(parents=True)
    (folder / "qlora_lab" / "__init__.py").touch()
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "qlora-lab"\nversion = "0.1.0"\n'
    )
    (folder / "backend.py").write_text(
        "import shutil\ndef build_wheel(folder, *_):\n"
        f"    shutil.copy({str(wheel)!r}, folder)\n    return {wheel.name!r}\n"
    )


def pip_environment(index: Path | None) -> dict[str, str]:
    """Variables under which pip finds what lies in the folder `index`, if anything, and reaches no other place."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    found = {} if index is None else {"PIP_FIND_LINKS": str(index)}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"} | found
