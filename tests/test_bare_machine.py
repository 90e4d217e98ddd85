"""What a machine with a GPU has to have for the CUDA tests: torch, transformers, safetensors, pytest and hypothesis."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TESTS = Path(__file__).parent
THERE = ("torch", "transformers", "safetensors", "pytest", "hypothesis")
# In a process of its own, the other packages of this environment cannot be imported.
BARE = """
import sys
import pytest
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
sys.exit(pytest.main(sys.argv[2:]))
"""


def with_requirements(names: tuple[str, ...]) -> set[str]:
    """These distributions and all that they need, extras aside."""
    found, left = set(), [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            required = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:  # for another system or Python
            continue
        for requirement in map(Requirement, required):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(canonicalize_name(requirement.name))
    return found


@pytest.mark.slow
def test_the_cuda_tests_are_collected_there():
    there = with_requirements(THERE)
    missing = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not there & {canonicalize_name(owner) for owner in owners} and module != "qlora_lab"
    }
    assert {"peft", "bitsandbytes", "gguf", "platformdirs", "psutil", "nbformat", "pytest_socket"} <= missing
    command = [sys.executable, "-c", BARE, ",".join(sorted(missing)), "-m", "cuda", "--collect-only", "-q"]
    command += ["-o", "addopts=--strict-markers", "-p", "no:cacheprovider", str(TESTS)]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    collected = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    marked = [p for p in TESTS.rglob("test_*.py") if re.search(r"pytest\.mark\.cuda", p.read_text(encoding="utf-8"))]
    assert len(marked) > 5
    assert {path.relative_to(TESTS.parent).as_posix() for path in marked} == collected
