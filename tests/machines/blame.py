"""Which library broke which test: the verdict of `drift.py`, its table, and what it reads of runs of pytest."""

import os
import re
import xml.etree.ElementTree as xml
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

RUN = "the run itself"  # what failed where it ended without a report
ONLY = "QLORA_LAB_DRIFT_ONLY"  # names a file of tests, one a line: nothing else is run

# -- the verdict


@dataclass(frozen=True)
class Finding:
    """What became of one test that fails with all the other versions together.

    libraries: those that break it by themselves; none with `verdict` "not drift" (it fails with the pins too) and
    "together" (each by itself is fine).
    """

    test: str
    verdict: str
    libraries: tuple[str, ...] = ()


def blame(
    failing: Collection[str], with_pins: Collection[str], alone: Mapping[str, Collection[str] | None]
) -> list[Finding]:
    """Which library breaks which test.

    Args:
        failing: the tests that fail with all the other versions together.
        with_pins: those of them that fail with the pins alone.
        alone: for each library, those that fail when only it has its other version; None where it cannot be installed
            so.
    """
    findings = []
    for test in failing:
        breaking = tuple(library for library, failed in alone.items() if failed is not None and test in failed)
        if test in with_pins:
            findings.append(Finding(test, "not drift"))
        elif breaking:
            findings.append(Finding(test, "alone", breaking))
        else:
            findings.append(Finding(test, "together"))
    return findings


def table(
    pins: Mapping[str, str],
    tried: Mapping[str, str],
    tests: int,
    findings: Collection[Finding],
    messages: Mapping[str, str],
    alone: Mapping[str, Collection[str] | None],
) -> str:
    """The report, as Markdown. tried: the versions of the libraries asked for, also where they are the pins."""
    lines = ["| library | pinned | tried |", "|---|---|---|"]
    for name, version in tried.items():
        same = version == pins.get(name)
        lines.append(f"| {name} | {pins.get(name, 'none')} | {'no other version, skipped' if same else version} |")
    lines += ["", f"{tests} tests, {len(findings)} of them fail."]
    not_alone = [name for name, failed in alone.items() if failed is None]
    if not_alone:
        lines += ["", f"Not to be installed alone among the pins, so never to blame alone: {', '.join(not_alone)}."]
    if findings:
        lines += ["", "| what fails | who breaks it | what it says |", "|---|---|---|"]
    for finding in sorted(findings, key=lambda finding: (finding.verdict, finding.libraries, finding.test)):
        who = {
            "not drift": "nobody: it fails with the pins too",
            "together": "no library by itself: only all together",
            "alone": " and ".join(f"**{name} {tried[name]}**" for name in finding.libraries)
            + (", each by itself" if len(finding.libraries) > 1 else ""),
        }[finding.verdict]
        lines.append(f"| `{_cell(finding.test)}` | {who} | {_cell(messages.get(finding.test, ''))} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """One line that does not end a cell of a table."""
    return " ".join(text.split())[:200].replace("|", "\\|").replace("<", "&lt;")


# -- what a run of pytest says


def pytest_collection_modifyitems(config, items):
    """As a plugin (`-p drift`): the report names tests as pytest does, and a second run has only what failed."""
    only = set(Path(os.environ[ONLY]).read_text(encoding="utf-8").splitlines()) if ONLY in os.environ else None
    left = []
    for item in items:
        test = item.nodeid.partition("::")[0] if item.path.suffix == ".ipynb" else item.nodeid  # cells need all before
        item.user_properties.append(("test", test))
        if only is not None and not only & {test, item.nodeid.partition("::")[0]}:
            left.append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in set(left)]


def read_report(path: Path) -> tuple[int, dict[str, str]]:
    """From a junit XML: how many tests there were, and what failed, with the first line of what it said.

    A notebook is one test. A module that could not be imported stands for all of its tests, by its path.
    """
    seen, failed = set(), {}
    for case in xml.parse(path).getroot().iter("testcase"):
        test = next((p.get("value") for p in case.iter("property") if p.get("name") == "test"), None)
        if test is None:  # an error of collecting
            name = case.get("name")
            end = ".ipynb" if name.endswith(".ipynb") else ".py"
            test = name.removesuffix(end).replace(".", "/") + end
        seen.add(test)
        for problem in (*case.findall("failure"), *case.findall("error")):
            failed.setdefault(test, _words(f"{problem.get('message')}\n{problem.text}"))
    return len(seen), failed


def _words(text: str) -> str:
    """The line that names an error; the first line where there is none."""
    lines = [re.sub(r"(\x1b|#x1B)\[[\d;]*m|^E  +", "", line).strip() for line in text.splitlines()]
    return next((line for line in lines if re.match(r"[\w.]*(Error|Exception|Warning)(:|$)", line)), lines[0])


def failed_among(wanted: Collection[str], failed: Collection[str]) -> set[str]:
    """Those of `wanted` that fail in another run, where a module may not be importable, or no test was run at all."""
    return {test for test in wanted if RUN in failed or test in failed or test.partition("::")[0] in failed}
