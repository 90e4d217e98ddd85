"""Which tests run on which system: Linux runs all, and what other systems leave out stands here, with the reason.

A single test that needs something of one system says so itself (`skipif`), with its reason too. `conftest.py` ends the
summary with what was left out.
"""

import sys
from pathlib import Path

TESTS = Path(__file__).parent
GRADING = "answers are run in a sandbox that only Linux has"
COMPILER = "the fast paths are tried with the compilers that Linux has"
# place below tests/ -> the systems (`sys.platform`) that leave it out, and why
LEFT_OUT = {
    "classroom": (("darwin", "win32"), GRADING),
    "quantization/test_compilation.py": (("darwin", "win32"), COMPILER),
    "quantization/test_kernels.py": (("darwin", "win32"), COMPILER),
    "quantization/test_triton_decoder.py": (("darwin", "win32"), COMPILER),
    "test_gpu_kit.py": (("darwin", "win32"), "the kit is a script for bash on a Linux machine"),
    "test_distributed.py": (("win32",), "processes are forked and killed there"),
    "notebooks/test_links.py": (("win32",), "makes environments of links"),
    "cli/test_bundle.py": (("win32",), "runs the bundle's commands as a shell of Unix would"),
}


def left_out(path: Path, system: str = sys.platform) -> str | None:
    """Why the tests in a file or folder are left out on this system; None where they run."""
    for place, (systems, reason) in LEFT_OUT.items():
        if system in systems and path.is_relative_to(TESTS / place):
            return reason
    return None


def summary(system: str = sys.platform) -> list[str]:
    """A line for each place that is left out."""
    return [f"NOT RUN on {system}: tests/{at} ({why})" for at, (systems, why) in LEFT_OUT.items() if system in systems]
