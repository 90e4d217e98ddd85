"""A training step and a few answers beside other work, for several ways in which OpenMP's threads may wait.

    python benchmarks/busy.py                 writes benchmarks/results/busy-cpu.json

Each way has a process of its own, with the same model and the same batch; they take turns, one at a time, first on a
machine that is quiet and then beside as many endless loops as there are cores. Numbers are seconds: the median, and
the slowest. A way is a set of environment variables, which OpenMP reads when PyTorch is imported.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

WAYS = {  # "as PyTorch has it": threads spin for about a millisecond before they sleep
    "as PyTorch has it": {"GOMP_SPINCOUNT": "300000"},
    "10,000 turns": {"GOMP_SPINCOUNT": "10000"},
    "3,000 turns": {"GOMP_SPINCOUNT": "3000"},
    "1,000 turns": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
LOOP = "while True: pass"
PROMPTS, NEW_TOKENS = 8, 12


def serve() -> None:
    """Be one side: for each line that comes in, do what it says and answer with the seconds it took."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    from race import make_batch, our_model, our_step

    from qlora_lab import load_tokenizer
    from qlora_lab.evaluation.exact_match import generate
    from qlora_lab.tasks import load_examples

    model, batch, tokenizer = our_model(), make_batch(), load_tokenizer()
    prompts = [example.prompt for example in load_examples("test")[:PROMPTS]]

    def answers():
        generate(model, tokenizer, prompts, NEW_TOKENS)

    parts = {"step": lambda: our_step(model, batch), "answers": answers}
    for part in parts.values():
        part()
    print(json.dumps({"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        parts[line.strip()]()
        print(json.dumps(time.perf_counter() - start), flush=True)


def start(way: dict[str, str]) -> subprocess.Popen:
    names = {name for other in WAYS.values() for name in other}
    environment = {name: value for name, value in os.environ.items() if name not in names} | way
    command = [sys.executable, __file__, "--serve"]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def ask(side: subprocess.Popen, part: str | None = None):
    if part is not None:
        side.stdin.write(part + "\n")
        side.stdin.flush()
    line = side.stdout.readline()
    if not line:
        raise RuntimeError("a side ended; run this file with --serve to see why")
    return json.loads(line)


@contextlib.contextmanager
def busy(loops: int):
    """Beside this many endless loops."""
    others = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(loops)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def race(sides: dict[str, subprocess.Popen], rounds: int) -> dict:
    """{part: {way: {"median_s", "max_s", "to the first"}}}; the sides take turns."""
    times = {part: {name: [] for name in sides} for part in ("step", "answers")}
    for _ in range(rounds):
        for part, taken in times.items():
            for name, side in sides.items():
                taken[name].append(ask(side, part))
    first = next(iter(sides))
    return {
        part: {
            name: {
                "median_s": round(statistics.median(t), 3),
                "max_s": round(max(t), 3),
                "to the first": round(statistics.median(a / b for a, b in zip(t, taken[first], strict=True)), 3),
            }
            for name, t in taken.items()
        }
        for part, taken in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="counted turns of each side")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS), metavar="WAY", help="default: all")
    parser.add_argument("--loops", type=int, nargs="*", default=[0, 1, os.cpu_count()], help="how much other work")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "busy-cpu.json")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return
    from qlora_lab.machine import describe, versions
    from qlora_lab.machine.files import write_json

    sides = {name: start(WAYS[name]) for name in args.ways}
    try:
        threads = {name: ask(side)["threads"] for name, side in sides.items()}
        record = {"date": date.today().isoformat(), "machine": describe(), "versions": versions(), "threads": threads}
        record["loops"] = {}
        for loops in args.loops:
            with busy(loops):
                record["loops"][str(loops)] = race(sides, args.rounds if not loops else max(3, args.rounds // 2))
            print(json.dumps({f"{loops} loops": record["loops"][str(loops)]}, indent=2), flush=True)
    finally:
        for side in sides.values():
            side.kill()
            side.wait()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, record)
    print(f"written to {os.path.relpath(args.out)}")


if __name__ == "__main__":
    main()
