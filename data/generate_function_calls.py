"""Writes data/function_calls/{train,validation,test}.jsonl from the grammar beside this script, byte for byte the same.

    python data/generate_function_calls.py            # write the files
    python data/generate_function_calls.py --check    # only compare them; exit status 1 if one differs

paraphrases.jsonl is written by hand and never touched here.
"""

import argparse
import json
import os
import random
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from command_grammar.commands import command

DIRECTORY = Path(__file__).resolve().parent / "function_calls"
SIZES = {"test": 200, "validation": 150, "train": 3000}  # in this order: a later split skips what an earlier one has
SEEDS = {"test": 2026_03, "validation": 2026_02, "train": 2026_01}
MAX_WORDS = 40


def fingerprint(text: str) -> str:
    """A command without case, punctuation and spacing: two commands that share it count as the same."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def generate() -> dict[str, list[dict[str, Any]]]:
    """The rows of every generated split; no command occurs twice, within a split or across them."""
    taken: set[str] = set()
    splits = {}
    for split, size in SIZES.items():
        source = random.Random(SEEDS[split])
        rows: list[dict[str, Any]] = []
        while len(rows) < size:
            row = command(source, unseen_words=split == "test", practise=split == "train")
            key = fingerprint(row["command"])
            if key not in taken and len(row["command"].split()) <= MAX_WORDS:
                taken.add(key)
                rows.append(row)
        splits[split] = rows
    return splits


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    """One JSON object a line, UTF-8, ending in a newline."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def main() -> int:
    """Write or check the files; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only; exit status 1 if a file differs")
    options = parser.parse_args()
    differing = []
    for split, rows in generate().items():
        path, content = DIRECTORY / f"{split}.jsonl", as_jsonl(rows)
        if options.check:
            if not path.exists() or path.read_bytes() != content:
                differing.append(path.name)
            continue
        unfinished = path.with_name(path.name + ".unfinished")
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
        print(f"{path.name}: {len(rows)} commands")
    if differing:
        print(f"not what the grammar makes: {', '.join(differing)}; run this script without --check", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
