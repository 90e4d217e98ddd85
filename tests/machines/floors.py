"""The unit tests with the lowest versions that pyproject.toml allows: python tests/machines/floors.py [OPTION ...]

In a fresh environment, which takes a few minutes to make; options are those of pytest. The notebooks and the browser
are left out: their outputs are those of the pinned versions. `--torch VERSION` takes another torch than the floor,
where the floor would be a download of gigabytes.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from environments import ROOT, clean_environment, make, pinned, pip, required, versions

TESTERS = ("pytest", "pytest-socket", "hypothesis", "nbval", "playwright", "accelerate")


def lowest(torch: str | None) -> list[str]:
    """Each requirement at its floor, exactly."""
    pins = []
    for requirement in required("reference", "notebooks", "classroom"):
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{requirement} has no floor"
        version = torch if requirement.name == "torch" and torch else bound.version
        pins.append(f"{requirement.name}=={version}")
    return pins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", help="this version instead of the floor")
    parser.add_argument("--keep", type=Path, help="make the environment in this folder and leave it there")
    options, arguments = parser.parse_known_args()
    floors = lowest(options.torch)
    print("at the floor:", *floors, flush=True)
    with tempfile.TemporaryDirectory(prefix="floors-", ignore_cleanup_errors=True) as place:
        python = make(options.keep or Path(place) / "venv")
        pip(python, "install", floors[0])  # torch first: nothing else may choose one
        testers = [f"{name}=={pinned()[name]}" for name in TESTERS]
        pip(python, "install", *floors, *testers)
        pip(python, "install", "--no-deps", str(ROOT))
        print("installed:", *(f"{name}=={version}" for name, version in versions(python).items()), flush=True)
        command = [python, "-m", "pytest", "-p", "no:nbval", "-o", "addopts=--strict-markers"]
        command += ["--allow-hosts=127.0.0.1,::1,localhost", "--allow-unix-socket"]
        command += ["--ignore=tests/notebooks/test_browser.py", "tests", *arguments]
        sys.exit(subprocess.run(command, cwd=ROOT, env=clean_environment()).returncode)


if __name__ == "__main__":
    main()
