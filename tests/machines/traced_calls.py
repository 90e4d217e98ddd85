"""Which system calls answers make in the sandbox: python tests/machines/traced_calls.py [--keep FOLDER]

Runs every solution, wrong, hostile and honest answer that the tests have in a sandbox whose processes `strace` follows,
and prints which calls they made after they were sealed: how often, how often refused (EPERM), and for calls with many
faces which. The list of allowed calls in `qlora_lab/classroom/inside/system_calls.py` was made from it.
Linux with strace, a few minutes.
"""

import argparse
import inspect
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from exercises import MODULES, WRONG, solution_of  # noqa: E402
from honest_answers import HONEST  # noqa: E402
from hostile_answers import HOSTILE  # noqa: E402

import qlora_lab  # noqa: E402
from qlora_lab.checks import EXERCISES  # noqa: E402
from qlora_lab.classroom import sandbox as sandbox_module  # noqa: E402
from qlora_lab.classroom.hidden_tests import HiddenTests, function_name  # noqa: E402
from qlora_lab.classroom.inside.answers import find_answers  # noqa: E402
from qlora_lab.classroom.inside.values import pack  # noqa: E402
from qlora_lab.classroom.sandbox import Sandbox, Stopped  # noqa: E402

LINE = re.compile(r"(\d+) +(\w+)\((.*?)(?:\) += (.*)| <unfinished \.\.\.>)$")
RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>.*\) += (.*)$")
FACES = {
    "fcntl": 1,
    "ioctl": 1,
    "prctl": 0,
    "madvise": 2,
    "futex": 1,
    "mmap": 2,
    "mprotect": 2,
    "clone": 1,
    "arch_prctl": 0,
}
FACES |= {"prlimit64": 1, "rt_sigprocmask": 0, "clock_gettime": 0, "openat": 2, "mremap": 3}


class Traced(sandbox_module.subprocess.Popen):
    """A process that is started below strace."""

    folder: Path
    count = 0

    def __init__(self, command, **options):
        Traced.count += 1
        strace = ["strace", "-f", "-qq", "-o", str(self.folder / f"trace-{Traced.count}"), "--"]
        super().__init__(strace + command, **options)


def sealed_calls(path: Path) -> tuple[Counter, Counter, Counter]:
    """Of a file of strace's: calls, refused calls, and faces of calls, of sealed processes and their threads."""
    calls, refused, faces = Counter(), Counter(), Counter()
    sealed: set[str] = set()
    for line in path.read_text(errors="replace").splitlines():
        if found := RESUMED.match(line):
            pid, name, result = found.groups()
            if name.startswith("clone") and pid in sealed:
                sealed.add(result.split()[0])
            if pid in sealed and "EPERM" in result:
                refused[name] += 1
            continue
        found = LINE.match(line)
        if not found:
            continue
        pid, name, arguments, result = found.groups()
        if pid in sealed:
            calls[name] += 1
            refused[name] += "EPERM" in (result or "")
            if name in FACES:
                parts = arguments.split(", ")
                faces[name, parts[FACES[name]] if len(parts) > FACES[name] else arguments] += 1
            if name.startswith("clone") and result and result[0].isdigit():
                sealed.add(result.split()[0])
            if name in ("exit", "exit_group"):
                sealed.discard(pid)
        elif name == "prctl" and "PR_SET_SECCOMP" in arguments and result == "0":
            sealed.add(pid)
    return calls, refused, faces


def wrong_answers():
    texts = [(ROOT / "tests" / "wrong_answers" / f"{name}.py").read_text() for name in MODULES]
    for exercise, function in WRONG:
        name = function_name(exercise)
        text = inspect.getsource(function)
        text = text[text.index("def ") :].replace(f"def {function.__name__}(", f"def {name}(", 1)
        yield exercise, find_answers(["import math\nimport torch", *texts, text], [name])[name]["code"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="a folder for strace's files")
    folder = parser.parse_args().keep or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    Traced.folder = folder.resolve()
    sandbox_module.subprocess.Popen = Traced
    answers = [(exercise, solution_of(exercise)) for exercise in EXERCISES]
    answers += list(wrong_answers())
    places = {"{seed}": ROOT / "README.md", "{package}": Path(qlora_lab.__file__).parent, "{root}": ROOT}
    for exercise, code, _ in HOSTILE.values():
        for mark, path in places.items():
            code = code.replace(mark, str(path))
        answers.append((exercise, code))
    tests = {exercise: HiddenTests(EXERCISES[exercise], "a seed") for exercise in EXERCISES}
    with Sandbox(seconds=5, memory=2**29, patience=6) as sandbox:
        for exercise, code in answers:
            try:
                verdict = tests[exercise].judge(code, sandbox)
            except Stopped as stopped:
                verdict = stopped
            print(f"\r{exercise}: {verdict}"[:100].ljust(100), end="", file=sys.stderr)
    print(file=sys.stderr)
    with Sandbox(seconds=60) as sandbox:
        for name, code in HONEST.items():
            try:
                with sandbox.answer(code, "f") as child:
                    child.ask(pack([()]))
            except Stopped as stopped:
                print(f"{name}: {stopped}")
    totals = [sum(parts, Counter()) for parts in zip(*map(sealed_calls, folder.glob("trace-*")), strict=True)]
    calls, refused, faces = totals
    for name, count in sorted(calls.items()):
        print(f"{name:24}{count:9}{refused[name] or '':9}")
        for (of, face), times in sorted(faces.items()):
            if of == name:
                print(f"{'':8}{face:60}{times:9}")


if __name__ == "__main__":
    main()
