"""Other versions of the libraries, and which of them breaks what: python tests/machines/drift.py [OPTION ...]

One fresh environment, first with the newest torch, transformers, PEFT and bitsandbytes and everything else as pinned:
the unit tests, and two notebooks. What fails is run again with the pins alone, where a failure is no drift, and with
one library after the other at its newest among pins. A table says which library broke what; it ends with status 1
where one did. `--floors` takes the lowest versions that pyproject.toml allows instead, of everything that has one.

Of a notebook only errors count: another version may print another text, but the assertions beside it have to hold.
The tests of the browser are left out. Options that are not listed here are those of pytest. Where a version would be a
download of gigabytes, `--at torch==VERSION` tries another one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from blame import ONLY, RUN, blame, failed_among, read_report, table
from environments import ROOT, clean_environment, make, pinned, pip, pip_works, required, versions

NEWEST = ("torch", "transformers", "peft", "bitsandbytes")
NOTEBOOKS = ("notebooks/02_scale_factors_and_dequantization.ipynb", "notebooks/03_lora.ipynb")


class Environment:
    """An environment whose versions change, and the tests in it."""

    def __init__(self, folder: Path, place: Path, options: list[str]):
        self.python = folder / "bin" / "python" if (folder / "bin").is_dir() else make(folder)
        self.place, self.options = place, options

    def install(self, wanted: Mapping[str, str]) -> bool:
        """Whether these can be installed together. "" is the newest version; what they need is the newest that fits."""
        names = [f"{name}=={version}" if version else name for name, version in wanted.items()]
        return pip_works(self.python, "install", "--upgrade", "--upgrade-strategy", "eager", *names)

    def test(self, title: str, only: Collection[str] = ()) -> tuple[int, dict[str, str]]:
        """Run what is asked for, or only these tests of it; what `read_report` says of it."""
        print(f"\n{title}", flush=True)
        report, more = self.place / "report.xml", {}
        report.unlink(missing_ok=True)
        if only and RUN not in only:
            more[ONLY] = str(self.place / "only")
            Path(more[ONLY]).write_text("\n".join(only), encoding="utf-8")
        command = [self.python, "-m", "pytest", "-q", "--tb=short", "-p", "blame", "-p", "no:cacheprovider"]
        command += ["-o", "addopts=--strict-markers", f"--junit-xml={report}"]
        command += ["--allow-hosts=127.0.0.1,::1,localhost", "--allow-unix-socket", "--nbval-lax"]
        command += ["--continue-on-collection-errors"]  # one module that cannot be imported would end it all
        command += ["--ignore=tests/notebooks/test_browser.py", "--ignore=tests/notebooks/test_classroom_browser.py"]
        environment = clean_environment(PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests" / "machines")]))
        status = subprocess.run([*command, *self.options], cwd=ROOT, env=environment | more).returncode
        if not report.exists():
            return 0, {RUN: f"pytest ended with status {status} and wrote no report"}
        return read_report(report)


def floors() -> dict[str, str]:
    """The lowest version that pyproject.toml allows, of all that it asks for."""
    found = {}
    for requirement in required("reference", "notebooks", "classroom"):
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{requirement} has no floor"
        found[requirement.name] = bound.version
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--floors", action="store_true", help="the lowest versions allowed, without the notebooks")
    parser.add_argument("--libraries", nargs="+", metavar="NAME", help=f"default: {' '.join(NEWEST)}, or all floors")
    parser.add_argument("--at", action="append", default=[], metavar="NAME==VERSION", help="this version instead")
    parser.add_argument("--report", type=Path, help="append the table to this file as well")
    parser.add_argument("--environment", type=Path, help="one that is there, or is made there and left")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="default: tests, and without --floors two notebooks")
    options, arguments = parser.parse_known_args()
    pins, lowest = pinned(), floors()
    tried = {
        name: lowest[name] if options.floors else ""
        for name in options.libraries or (lowest if options.floors else NEWEST)
    }
    tried |= dict(text.split("==") for text in options.at)
    if unknown := tried.keys() - pins.keys():
        sys.exit(f"requirements.txt has no {', '.join(sorted(unknown))}")
    subprocess.run([sys.executable, "-m", "qlora_lab.cli", "fetch"], cwd=ROOT, check=True)  # tests have no network
    tests = options.tests or ["tests", *(() if options.floors else NOTEBOOKS)]
    with tempfile.TemporaryDirectory(prefix="drift-", ignore_cleanup_errors=True) as place:
        place = Path(place)
        environment = Environment(options.environment or place / "venv", place, [*arguments, *tests])
        if not environment.install(pins | tried):
            sys.exit("these versions cannot be installed together: " + " ".join(f"{n}=={v}" for n, v in tried.items()))
        installed = versions(environment.python)
        tried = {name: installed[name].partition("+")[0] for name in tried}  # "+cpu" says who built it
        print("installed:", *(f"{name}=={version}" for name, version in installed.items()), flush=True)
        pip(environment.python, "install", "--no-deps", str(ROOT))
        others = {name: version for name, version in tried.items() if version != pins[name]}
        count, failed, with_pins, alone = 0, {}, set(), {}
        if others:
            count, failed = environment.test("all together")
        if failed:
            if not environment.install(pins):
                sys.exit("the versions in requirements.txt cannot be installed")
            with_pins = failed_among(failed, environment.test("the pins alone", failed)[1])
            drifted = [test for test in failed if test not in with_pins]
            for name in others if drifted else ():
                # with one library only there is nothing left to find out
                if len(others) == 1:
                    alone[name] = set(failed)
                elif environment.install(pins | {name: others[name]}):
                    again = environment.test(f"{name} {others[name]} among the pins", drifted)[1]
                    alone[name] = failed_among(drifted, again)
                else:
                    alone[name] = None
    findings = blame(failed, with_pins, alone)
    text = f"## Drift: {'the floors' if options.floors else 'the newest versions'}\n\n"
    text += table(pins, tried, count, findings, failed, alone)
    print(f"\n{text}", flush=True)
    if options.report:
        with open(options.report, "a", encoding="utf-8") as file:
            file.write(text)
    sys.exit(int(any(finding.verdict != "not drift" for finding in findings)))


if __name__ == "__main__":
    main()
