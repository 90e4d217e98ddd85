"""How long a class takes to grade: python benchmarks/classroom.py [--students 300]

Makes a course of three notebooks and a class of the students in `tests/synthetic_class.py`, over and over, each with
answers of their own (a comment in every answer, so that no two share a verdict), grades them with the command line in a
fresh process, and compares the marks. Writes benchmarks/results/classroom-cpu.json.
"""

import argparse
import csv
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from synthetic_class import SHAPES, answered, make_class, solutions, wrong_answers  # noqa: E402

from qlora_lab.classroom.release import find_notebooks, release  # noqa: E402
from qlora_lab.machine.environment import device_name, versions  # noqa: E402
from qlora_lab.machine.files import write_json  # noqa: E402


def students(course, count: int) -> dict[str, tuple[dict[str, bytes], set[str]]]:
    """name -> (files, exercises that are wrong). A third of the answers are wrong or missing; all are different."""
    chance, right, wrong = random.Random(0), solutions(course), wrong_answers(course)
    made = {}
    for number in range(count):
        name, not_right, answers = f"student-{number:03d}", set(), {}
        for exercise, code in right.items():
            kind = chance.random()
            if kind < 0.15:
                not_right.add(exercise)  # left as it was
            elif kind < 0.35:
                not_right.add(exercise)
                answers[exercise] = chance.choice([c for e, _, c, _ in wrong if e == exercise])
            else:
                answers[exercise] = code
        answers = {exercise: code.replace(":\n", f":\n    # {name}\n", 1) for exercise, code in answers.items()}
        shape = SHAPES[list(SHAPES)[number % len(SHAPES)]]
        files = {f"{name}/{book}.ipynb": shape(answered(course, book, answers)) for book in course.names}
        made[name] = files, not_right
    hostile = [s for s in make_class(course) if s.name.startswith("hostile")]
    for student in hostile[: count // 10]:
        made[student.name] = student.files, student.wrong
    return dict(list(made.items())[len(made) - count :])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--students", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "classroom-cpu.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        course, _ = release(find_notebooks(["01", "03", "05"]), place / "course", seed="benchmark")
        made = students(course, options.students)
        for files, _ in made.values():
            for path, content in files.items():
                (place / "handed" / path).parent.mkdir(parents=True, exist_ok=True)
                (place / "handed" / path).write_bytes(content)
        command = [sys.executable, "-m", "qlora_lab.cli", "classroom", "grade", str(place / "handed")]
        command += [
            "--course",
            str(course.folder),
            "--out",
            str(place / "grades.csv"),
            "--workers",
            str(options.workers),
        ]
        load = round(os.getloadavg()[0], 1)
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"})
        first, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        subprocess.run(command, check=True, cwd=place, stdout=subprocess.DEVNULL)
        again = time.perf_counter() - began
        with open(place / "grades.csv", newline="", encoding="utf-8-sig") as file:
            rows = {row["student"]: row for row in csv.DictReader(file)}
        off = [
            (name, item.exercise)
            for name, (_, wrong) in made.items()
            for item in course.items
            if float(rows[name][item.column]) != (0 if item.exercise in wrong else item.points)
        ]
        found = {
            "students": len(made),
            "hostile": sum(name.startswith("hostile") for name in made),
            "notebooks": sum(len(files) for files, _ in made.values()),
            "answers": len(made) * len(course.items),
            "workers": options.workers,
            "seconds": round(first, 1),
            "processor_seconds": round(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime, 1),
            "load_average_before": load,
            "seconds_again": round(again, 1),
            "marks_other_than_expected": off,
            "machine": {"processor": device_name("cpu"), "cores": os.cpu_count(), "kernel": platform.release()},
            "versions": versions(),
            "date": date.today().isoformat(),
        }
    options.out.parent.mkdir(exist_ok=True)
    write_json(options.out, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
