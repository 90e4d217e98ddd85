"""Which system calls answers make in the sandbox: python tests/machines/traced_calls.py [--keep FOLDER]

Runs every solution, wrong, hostile and honest answer that the tests have in a sandbox whose processes `strace` follows,
and prints which calls they made after they were sealed: how often, how often refused (EPERM), and for calls with many
faces which; last, what is allowed and was not asked for. The list of allowed calls in
`qlora_lab/classroom/inside/system_calls.py` was made from it. Linux with strace, a few minutes.
"""

import argparse
import inspect
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

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
from qlora_lab.classroom.inside.system_calls import ALLOWED, numbers  # noqa: E402
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


class Traced(subprocess.Popen):
    """A process that is started below strace."""

    folder: Path
    count = 0

    def __init__(self, command, **options):
        Traced.count += 1
        strace = ["strace", "-f", "-qq", "--decode-pids=pidns", "-o", str(self.folder / f"trace-{Traced.count}"), "--"]
        super().__init__(strace + command, **options)


def outside(result: str) -> str:
    """The process id that `clone` gave, as strace counts: `5 /* 2345 in strace's PID NS */` in a namespace."""
    found = re.search(r"/\* (\d+) in strace's", result)
    return found[1] if found else result.split()[0]


def sealed_calls(path: Path) -> tuple[Counter, Counter, Counter]:
    """Of a file of strace's: calls, refused calls, and faces of calls, of sealed processes and their threads."""
    calls, refused, faces = Counter(), Counter(), Counter()
    sealed: set[str] = set()
    for line in path.read_text(errors="replace").splitlines():
        if found := RESUMED.match(line):
            pid, name, result = found.groups()
            if name.startswith("clone") and pid in sealed:
                sealed.add(outside(result))
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
                sealed.add(outside(result))
            if name in ("exit", "exit_group"):
                sealed.discard(pid)
        elif name == "prctl" and "PR_SET_SECCOMP" in arguments and result == "0":
            sealed.add(pid)
    return calls, refused, faces


def wrong_answers():
    texts = [(ROOT / "tests" / "wrong_answers" / f"{name}.py").read_text() for name in MODULES]
    for exercise, function in WRONG:
        if not EXERCISES[exercise].graded:
            continue  # it stays outside of the sandbox
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
    sandbox_module.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": Traced})
    tests = {name: HiddenTests(exercise, "a seed") for name, exercise in EXERCISES.items() if exercise.graded}
    groups = {
        "solutions and wrong answers": [*((e, solution_of(e)) for e in tests), *wrong_answers()],
        "hostile answers": list(hostile_answers()),
        "honest answers": [("", code) for code in HONEST.values()],
    }
    asked = set()
    for number, (group, answers) in enumerate(groups.items(), 1):
        with Sandbox(seconds=60 if group == "honest answers" else 3, patience=6) as sandbox:
            for exercise, code in answers:
                try:
                    if exercise:
                        tests[exercise].judge(code, sandbox)
                    else:
                        with sandbox.answer(code, "f") as child:
                            child.ask(pack([()]))
                except Stopped:
                    pass
        calls, refused, faces = sealed_calls(folder / f"trace-{number}")
        asked |= set(calls)
        print(f"\n{group}: {len(answers)}")
        always = sorted(name for name in calls if refused[name] == calls[name])
        print("always refused:", *[name for name in always if not name.startswith("syscall_")])
        for name, count in sorted(calls.items()):
            if name in always:
                continue
            print(f"{name:24}{count:9}{refused[name] or '':9}")
            for (of, face), times in sorted(faces.items()):
                if of == name:
                    print(f"{'':8}{face:60}{times:9}")
    print("\nallowed and not asked for:", *sorted(set(numbers(ALLOWED, platform.machine())) - asked))


def hostile_answers():
    places = {"{seed}": ROOT / "README.md", "{package}": Path(qlora_lab.__file__).parent, "{root}": ROOT}
    for exercise, code, _ in HOSTILE.values():
        for mark, path in places.items():
            code = code.replace(mark, str(path))
        yield exercise, code


if __name__ == "__main__":
    main()
