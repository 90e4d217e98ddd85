"""The same run twice, ours and in thirty lines of TRL, PEFT and bitsandbytes, and their losses step by step.

    python benchmarks/with_trl.py --python ENVIRONMENT/bin/python [--steps 20] [--record]

`make trl-check` makes that environment. Both start from the same adapter and see the same examples in the same order.
What is left of a difference: SFTTrainer trains adapters beside a 4-bit base in bfloat16, ours are in float32; how each
rounds; the rate (Trainer's cosine has one step more); and which tokens are learned (SFTTrainer adds what the chat
template writes after the token that ends a turn). `--record` writes
data/recorded/with-trl-cpu.json, which notebook 09 shows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch

from qlora_lab import finetune, load_dataset, load_model, load_tokenizer, quantize_model, save_adapter
from qlora_lab.machine import describe, versions
from qlora_lab.machine.files import write_json
from qlora_lab.models.base_model import ensure_default_model
from qlora_lab.tasks import encode
from qlora_lab.tasks.batches import Batches

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "bicycle_shop" / "train.jsonl"
RECORDED = ROOT / "data" / "recorded" / "with-trl-cpu.json"
SETTINGS = {"batch_size": 8, "learning_rate": 2e-3, "warmup": 0.0, "seed": 0}
PACKAGES = ("trl", "peft", "bitsandbytes", "transformers", "torch")


def ours(steps: int, folder: Path) -> dict:
    """Our run; leaves the adapter it started from in `folder`/start, its examples as it saw them in train.jsonl."""
    torch.manual_seed(0)
    tokenizer, examples = load_tokenizer(), load_dataset(DATA)
    model = quantize_model(
        load_model(dtype=torch.float32, device="cpu"), rank=16, alpha=32, compute_dtype=torch.float32
    )
    save_adapter(model, folder / "start")
    encoded = [encode(example, tokenizer) for example in examples]
    rows = {tuple(ids.tolist()): line for (ids, _), line in zip(encoded, lines(DATA), strict=True)}
    batches = Batches(encoded, SETTINGS["batch_size"], tokenizer.pad_token_id, SETTINGS["seed"])
    seen = []
    for batch in (batches[number] for number in range(steps)):
        for ids, mask in zip(batch.input_ids, batch.attention_mask.bool(), strict=True):
            seen.append(rows[tuple(ids[mask].tolist())])
    (folder / "train.jsonl").write_text("".join(seen), encoding="utf-8")
    first = json.loads(seen[0])["messages"]
    ids, labels = next(e for e, line in zip(encoded, lines(DATA), strict=True) if json.loads(line)["messages"] == first)
    result = finetune(model, tokenizer, examples, steps=steps, **SETTINGS)
    return {
        "steps": [{"loss": record.loss, "rate": record.learning_rate} for record in result.records],
        "learned in the first example": tokenizer.decode(ids[labels != -100]),
        "versions": versions(),
    }


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines(keepends=True)


def theirs(python: str, base: Path, folder: Path) -> dict:
    """The thirty lines, in their own environment and without a network."""
    script = ROOT / "benchmarks" / "thirty_lines.py"
    out = folder / "theirs"
    out.mkdir()
    given = [base, folder / "train.jsonl", folder / "start", out]
    command = [os.path.abspath(python), str(script), *map(str, given)]
    subprocess.run(command, check=True, cwd=folder, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    ask = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {PACKAGES}}}))"
    found = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True)
    return json.loads((out / "losses.json").read_text()) | {"versions": json.loads(found.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of an environment with TRL")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.relative_to(ROOT)}")
    options = parser.parse_args()
    base = ensure_default_model()
    with tempfile.TemporaryDirectory() as place:
        one = ours(options.steps, Path(place))
        other = theirs(options.python, base, Path(place))
    print(f"{'step':>4} {'ours':>8} {'theirs':>8} {'difference':>11}")
    for number, (a, b) in enumerate(zip(one["steps"], other["steps"], strict=True), 1):
        print(f"{number:>4} {a['loss']:>8.4f} {b['loss']:>8.4f} {b['loss'] - a['loss']:>+11.4f}")
    for name, run in (("ours", one), ("theirs", other)):
        print(f"{name} learns in the first example: {run['learned in the first example']!r}")
    if options.record:
        head = {
            "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": describe(),
            "settings": SETTINGS,
        }
        write_json(RECORDED, head | {"ours": one, "theirs": other})
        print(f"written to {RECORDED.relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
