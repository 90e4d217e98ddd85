"""Judge the answers of a course: find them in cells, run them in sandboxes, and remember what came out.

A verdict is kept under a hash of the answer and of all it was tested with. So the same answer is run once, whoever
hands it in, and a class whose grading was interrupted goes on where it was. What is right is so under any limits; that
an answer is wrong may be for want of time or memory, and holds for the limits it was found with.
"""

import hashlib
import json
import sqlite3
import sys
import threading
from collections.abc import Callable
from typing import Any

from qlora_lab.checks import EVER_ASKED
from qlora_lab.checks.exercise import Verdict, function_name
from qlora_lab.classroom.course import Course
from qlora_lab.classroom.hidden_tests import HiddenTests, fingerprint
from qlora_lab.classroom.sandbox import MEMORY, PATIENCE, SECONDS, Sandbox, SandboxUnavailable, Stopped

TABLES = """
create table if not exists notebooks (hash text primary key, answers text);
create table if not exists verdicts (hash text primary key, exercise text, status text, message text);
"""


LARGEST_KEPT = 2**22  # characters of what was found in a notebook; what is more is searched for again
STOPPED = "not searched"  # in the place of a function's name, beside which no other stands: why cells cannot be parsed
NOT_JUDGED = "not judged"  # a verdict's status where there is none


class Unjudged(RuntimeError):
    """The machine failed, not the answer: two sandboxes ended one after the other. Nothing is kept of it."""


class Judge:
    """Finds and judges answers. May be used by several threads; each gets a sandbox of its own.

    Args:
        course: whose seed makes the hidden tests.
        seconds, memory, patience: limits of one answer, see `Sandbox`.

    A sandbox that ends is replaced. `SandboxUnavailable` is raised where there was never one: this system cannot judge.
    """

    def __init__(self, course: Course, seconds: float = SECONDS, memory: int = MEMORY, patience: float = PATIENCE):
        self.course, self.limits = course, (float(seconds), memory, float(patience))
        self.names = {function_name(item.exercise): item.exercise for item in course.items}
        self._own = threading.local()
        self._sandboxes: list[Sandbox] = []
        self._had_one = False
        self._lock = threading.RLock()
        self._tests: dict[str, HiddenTests] = {}
        self._store = sqlite3.connect(course.verdicts, check_same_thread=False, timeout=60)
        self._store.execute("pragma journal_mode=wal")
        self._store.execute("pragma synchronous=normal")
        self._store.executescript(TABLES)

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the sandboxes."""
        for sandbox in self._sandboxes:
            sandbox.close()
        self._sandboxes.clear()
        self._own = threading.local()
        self._store.close()

    @property
    def sandbox(self) -> Sandbox:
        """This thread's."""
        if not hasattr(self._own, "sandbox"):
            self._own.sandbox = Sandbox(*self.limits)
            with self._lock:
                self._sandboxes.append(self._own.sandbox)
                self._had_one = True
        return self._own.sandbox

    def _run(self, task: Callable[[Sandbox], Any]) -> Any:
        """What a task gives in this thread's sandbox; in a new one where that fails, as it does when it was killed.

        Raises:
            Stopped: as the task does.
            Unjudged: the new one failed, too.
        """
        for _ in range(2):
            try:
                return task(self.sandbox)
            except (SandboxUnavailable, OSError) as error:
                if not self._had_one:
                    raise
                problem = error
                self._discard()
        raise Unjudged(f"It could not be judged: the sandbox failed twice ({problem}). Grade again to try it again.")

    def _discard(self) -> None:
        """End this thread's sandbox, if it has one, so that the next use makes another."""
        sandbox = self._own.__dict__.pop("sandbox", None)
        if sandbox is not None:
            with self._lock:
                self._sandboxes.remove(sandbox)
            sandbox.close()

    def find(self, cells: list) -> dict[str, dict]:
        """What of each exercise of the course stands in cells: id -> as `find_answers` tells it.

        Args:
            cells: as `find_answers` takes them.

        Raises:
            Stopped: they cannot be parsed.
            Unjudged: that could not be found out.
        """
        key = _hash(cells, list(self.names), fingerprint(), self.limits)
        with self._lock:
            row = self._store.execute("select answers from notebooks where hash = ?", (key,)).fetchone()
        if row:
            found = json.loads(row[0])
        else:
            try:
                found = self._run(lambda sandbox: sandbox.find_answers(cells, list(self.names)))
            except Stopped as stopped:
                found = {STOPPED: str(stopped)}
            if len(text := json.dumps(found)) <= LARGEST_KEPT:
                with self._lock, self._store:
                    self._store.execute("insert or replace into notebooks values (?, ?)", (key, text))
        if STOPPED in found:
            raise Stopped(found[STOPPED])
        return {self.names[name]: what for name, what in found.items()}

    def verdict(self, exercise: str, found: dict) -> Verdict:
        """On what `find` found.

        Raises:
            Unjudged: there is none; or it needs a newer Python than this one.
        """
        lost = f" But one stands {found['aside']}, which the notebook does not run." if found.get("aside") else ""
        if found["status"] == "missing":
            name = function_name(exercise)
            return Verdict(exercise, "not attempted", f"There is no function `{name}` in what was handed in.{lost}")
        if found["status"] == "stub":
            return Verdict(
                exercise, "not attempted", f"`raise NotImplementedError` stands where the answer belongs.{lost}"
            )
        if found["status"] == "broken":
            return Verdict(exercise, "wrong", f"Its cell is no Python: {found['problem']}.")
        if found["status"] == "newer":
            own = ".".join(map(str, sys.version_info[:2]))
            needs = f"It is written for Python {found['python']}, and was read by Python {own}: {found['problem']}"
            raise Unjudged(f"{needs}. Grade with that Python, or by hand.")
        verdict = self._verdict_on(exercise, found["code"])
        if verdict.status != "right" and "then" in found:  # a later cell changed what it needs
            then = self._verdict_on(exercise, found["then"])
            verdict = then if then.status == "right" else verdict
        return verdict

    def _verdict_on(self, exercise: str, code: str) -> Verdict:
        """On an answer's code."""
        tests = self._tests_of(exercise)
        key, limited = _hash(code, tests.digest), _hash(code, tests.digest, self.limits)
        with self._lock:
            query = "select status, message from verdicts where hash in (?, ?)"
            row = self._store.execute(query, (key, limited)).fetchone()
        if row:
            return Verdict(exercise, *row)
        try:
            verdict = self._run(lambda sandbox: tests.judge(code, sandbox))
        except Stopped as stopped:
            verdict = Verdict(exercise, "wrong", str(stopped))
        with self._lock, self._store:
            row = (key if verdict.status == "right" else limited, exercise, verdict.status, verdict.message)
            self._store.execute("insert or replace into verdicts values (?, ?, ?, ?)", row)
        return verdict

    def _tests_of(self, exercise: str) -> HiddenTests:
        with self._lock:
            if exercise not in self._tests:
                self._tests[exercise] = HiddenTests(EVER_ASKED[exercise], self.course.seed)
            return self._tests[exercise]


def _hash(*content) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
