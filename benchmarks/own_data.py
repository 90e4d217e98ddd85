"""How long 100,000 examples of about 200 tokens take to be read, encoded and checked, and how much memory.

    python benchmarks/own_data.py [--examples 100000] [--turns 1] [--record]

Prose of the evaluation text, cut anew for each example, as a JSONL file of conversations for the default model's
tokenizer; read, encoded and inspected in a process of its own, as `finetune --data` does before its first step. Seconds
of each part, and the most memory that the process had, with and without what it had already after importing. Prints the
numbers; `--record` also writes `benchmarks/results/own-data-<device>.json`.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path


def write_data(path: Path, examples: int, turns: int, tokens: int) -> None:
    from qlora_lab.tasks import evaluation_text

    words, draw = evaluation_text().split(), random.Random(0)
    per_text = max(3, round(0.72 * (tokens - 25) / (2 * turns)) - 4)  # about 0.72 words a token, markers apart

    def some() -> str:
        start = draw.randrange(len(words) - per_text)
        return " ".join([str(draw.randrange(10**6)), *words[start : start + per_text]])

    with open(path, "w", encoding="utf-8") as file:
        for _ in range(examples):
            talk = [{"role": role, "content": some()} for _ in range(turns) for role in ("user", "assistant")]
            file.write(json.dumps({"messages": talk}) + "\n")


def peak() -> float:
    """The most memory that this process has had, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def serve(path: str) -> None:
    from qlora_lab import load_tokenizer
    from qlora_lab.tasks import inspect, load_dataset

    tokenizer = load_tokenizer()
    tokenizer("once", add_special_tokens=False)
    numbers, start = {"GB after importing": peak()}, time.perf_counter()
    records = load_dataset(path)
    numbers["seconds to read"] = time.perf_counter() - start
    validation = records[: len(records) // 100]
    start = time.perf_counter()
    found = inspect(records, tokenizer, 512, validation)
    numbers["seconds to encode and check"] = time.perf_counter() - start
    numbers["of processors, in all"] = time.process_time()  # what it would have taken on one core, nothing else there
    numbers |= {"GB at most": peak(), "examples": len(found.training), "tokens": found.training.tokens}
    print(json.dumps(numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        write_data(path, arguments.examples, arguments.turns, arguments.tokens)
        command = [sys.executable, __file__, "--serve", str(path)]
        numbers = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    for name, value in numbers.items():
        print(f"{name:<28} {value:,.2f}" if isinstance(value, float) else f"{name:<28} {value:,}")
    if arguments.record:
        from qlora_lab.machine.environment import versions
        from qlora_lab.machine.files import write_json

        results = Path(__file__).with_name("results")
        results.mkdir(exist_ok=True)
        write_json(
            results / "own-data-cpu.json",
            {"date": date.today().isoformat(), "versions": versions(), "turns": arguments.turns, **numbers},
        )


if __name__ == "__main__":
    main()
