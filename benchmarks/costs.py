"""Record what ranks, data types and methods cost and give: the same task and budget, several seeds, into one JSON.

    python benchmarks/costs.py                    writes data/recorded/costs-<device>.json
    python benchmarks/costs.py --jobs 2           two runs side by side, each with half of the threads
    python benchmarks/costs.py --only qlora       conditions whose name begins so, or so (several may be given)
    python benchmarks/costs.py --only share       how long decoding takes, which wants a quiet machine

Runs take minutes each and hours together. Each is a process of its own; after each, the JSON is written whole, so the
script can be cut off at any time, and a second call does what is missing. Full fine-tuning gets a learning rate of its
own (that of adapters would tear the model apart): the best of a few by loss on the validation examples, which is
recorded beside the others. What the notebook's sentences rest on comes first, every condition once and then the other
seeds; the ranks and data types between follow.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # on a bare machine nothing is installed


@dataclass(frozen=True)
class Condition:
    """One way to fine-tune. alpha is twice the rank, so that the scale alpha / r is the same for all ranks."""

    method: str
    rank: int = 0
    datatype: str = ""
    double_quant: bool = False
    learning_rate: float = 4e-3

    @property
    def name(self) -> str:
        bits = f" {self.datatype}{' dq' if self.double_quant else ''}" if self.datatype else ""
        rank = f" r{self.rank}" if self.rank else f" lr {self.learning_rate:g}"
        return self.method + bits + rank


FULL = tuple(Condition("full", learning_rate=rate) for rate in (5e-5, 2e-4, 8e-4))
FIRST = (
    Condition("qlora", 16, "nf4", True),
    Condition("lora", 16),
    *FULL,
    *(Condition("qlora", rank, "nf4", True) for rank in (1, 64)),
)
THEN = (
    Condition("qlora", 16, "fp4", True),
    Condition("qlora", 16, "int4", True),
    Condition("qlora", 16, "nf4"),
    Condition("qlora", 16, "int4_affine"),
    *(Condition("qlora", rank, "nf4", True) for rank in (4, 8, 2, 32)),
)
BUDGET = {"steps": 80, "batch_size": 8}
TEST, PARAPHRASES, VALIDATION, WORDS = 100, 40, 96, 2000


def run(condition: Condition, seed: int, budget: dict) -> dict:
    """One fine-tune and everything that is asked of it."""
    import torch

    from qlora_lab import count_parameters, evaluate, finetune, load_model, load_tokenizer
    from qlora_lab.cli.run import MAX_NEW_TOKENS
    from qlora_lab.evaluation import loss_per_token
    from qlora_lab.tasks import evaluation_text, load_examples, spread

    tokenizer = load_tokenizer()
    torch.manual_seed(seed)
    model = prepare(load_model(dtype=torch.float32), condition)
    prose = " ".join(evaluation_text().split()[:WORDS])
    before = loss_per_token(model, tokenizer, prose)
    trained = count_parameters(model)
    weights = sum(t.nbytes for n, t in (*model.named_parameters(), *model.named_buffers()) if "lora_" not in n)
    with tempfile.TemporaryDirectory() as folder:
        result = finetune(
            model,
            tokenizer,
            load_examples("train"),
            out=folder,
            checkpoint_every=10**6,
            seed=seed,
            learning_rate=condition.learning_rate,
            **budget,
        )
        adapter = result.adapter / "adapter_model.safetensors" if result.adapter else None
        size = adapter.stat().st_size if adapter else 0
    validation = supervised_loss(model, tokenizer, load_examples("validation")[:VALIDATION])
    found = {
        name: evaluate(model, tokenizer, spread(load_examples(name), count), MAX_NEW_TOKENS)
        for name, count in (("test", TEST), ("paraphrases", PARAPHRASES))
    }
    return {
        "trained parameters": trained.trainable,
        "bytes of weights": weights,
        "predicted bytes of a step": result.predicted.total,
        "bytes of the adapter's file": size,
        "training seconds": round(result.seconds, 1),
        "tokens per second": round(result.tokens_per_second, 1),
        "loss of the last ten steps": round(statistics.mean(r.loss for r in result.records[-10:]), 5),
        "validation loss": round(validation, 5),
        "loss on prose before": round(before, 5),
        "loss on prose after": round(loss_per_token(model, tokenizer, prose), 5),
        "exact match": {name: {"correct": e.correct, "of": len(e.answers)} for name, e in found.items()},
    }


def prepare(model, condition: Condition):
    """The model as the condition trains it."""
    from qlora_lab import inject_lora, quantize_model

    if condition.method == "full":
        return model.requires_grad_(True)
    if condition.method == "lora":
        return inject_lora(model, condition.rank, 2 * condition.rank)
    return quantize_model(
        model,
        condition.datatype,
        double_quant=condition.double_quant,
        rank=condition.rank,
        alpha=2 * condition.rank,
        compute_dtype=model.dtype,  # all methods compute in float32: what differs is what is stored and trained
    )


def supervised_loss(model, tokenizer, examples) -> float:
    """Mean cross-entropy in nats over the targets' tokens."""
    import torch

    from qlora_lab.loss import supervised_loss_sum
    from qlora_lab.tasks import encode, pad_batch

    encoded = [encode(example, tokenizer) for example in examples]
    total = count = 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(encoded), 16):
            batch = pad_batch(encoded[start : start + 16], tokenizer.pad_token_id)
            total += supervised_loss_sum(model, batch.input_ids, batch.attention_mask, batch.labels).item()
            count += batch.supervised
    return total / count


def share_of_decoding(lengths=(8, 32, 128, 512, 2048), rounds: int = 3) -> list[dict]:
    """Seconds of one step's forward and backward pass by number of tokens, and of decoding all weights twice."""
    import torch

    from qlora_lab import load_model
    from qlora_lab.lora import adapted_layers
    from qlora_lab.loss import supervised_loss_sum

    model = prepare(load_model(dtype=torch.float32), Condition("qlora", 16, "nf4", True)).train()
    weights = [layer.quantized for _, layer in adapted_layers(model)]

    def step(tokens: int) -> None:
        ids = torch.randint(100, 1000, (max(1, tokens // 256), min(tokens, 256)))
        labels = ids.clone()
        labels[:, : ids.shape[1] // 2] = -100
        supervised_loss_sum(model, ids, torch.ones_like(ids), labels).backward()

    def decode() -> None:
        for _ in range(2):
            for weight in weights:
                weight.dequantize(torch.float32)

    rows = []
    for tokens in lengths:
        times = {"step": [], "decoding": []}
        for _ in range(rounds + 1):
            for name, action in (("step", lambda n=tokens: step(n)), ("decoding", decode)):
                start = time.perf_counter()
                action()
                times[name].append(time.perf_counter() - start)
        rows.append({"tokens": tokens} | {f"{n} seconds": round(statistics.median(t[1:]), 4) for n, t in times.items()})
    return rows


def in_a_process(arguments: list[str], threads: int) -> dict:
    """Run this script for one result; its last line is the JSON."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr or done.stdout).strip()[-1000:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[""], help="conditions whose name begins with one of these")
    parser.add_argument("--steps", type=int, default=BUDGET["steps"], help="of each run; a record has one budget")
    parser.add_argument("--out", type=Path, help="the JSON; default: data/recorded/costs-<device type>.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        job = json.loads(args.one)
        result = run(Condition(**job["condition"]), job["seed"], job["budget"]) if job else share_of_decoding()
        print(json.dumps(result))
        return

    import torch

    from qlora_lab.machine import default_device, describe, device_name, versions
    from qlora_lab.machine.files import write_json
    from qlora_lab.models import ensure_default_model

    ensure_default_model()
    device, threads = default_device(), max(1, torch.get_num_threads() // args.jobs)
    out = args.out or ROOT / "data" / "recorded" / f"costs-{device.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    only = tuple(args.only)
    budget = BUDGET | {"steps": args.steps}
    record = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"budget": budget, "runs": {}}
    if record["budget"] != budget:
        parser.error(f"{out.name} holds runs with another budget, {record['budget']}; give --out another file")
    record |= {"script": "benchmarks/costs.py", "device": device_name(device), "machine": describe()}
    record |= {"versions": versions()}

    def save(key: str, result: dict) -> None:  # a record may be continued on another machine: each run says its own
        where = {"date": datetime.now(UTC).date().isoformat(), "device": device_name(device), "threads": threads}
        record["runs"][key] = result | where
        write_json(out, record)
        print(f"{len(record['runs']):3} {key}: {result.get('error') or result['exact match']}", flush=True)

    def work(jobs: list[tuple[Condition, int]]) -> None:
        missing = [(c, s) for c, s in jobs if "exact match" not in record["runs"].get(f"{c.name} seed {s}", {})]
        with ThreadPoolExecutor(args.jobs) as pool:
            running = {}
            for condition, seed in missing:
                job = json.dumps({"condition": asdict(condition), "seed": seed, "budget": budget})
                running[pool.submit(in_a_process, ["--one", job], threads)] = condition, seed
            for done in as_completed(running):
                condition, seed = running[done]
                save(f"{condition.name} seed {seed}", asdict(condition) | {"seed": seed} | done.result())

    first, then = ([c for c in group if c.name.startswith(only)] for group in (FIRST, THEN))
    work([(c, 0) for c in first])
    rates = [r for r in record["runs"].values() if r.get("method") == "full" and "validation loss" in r]
    best = min((r for r in rates if r["seed"] == 0), key=lambda r: r["validation loss"], default=None)
    if best:
        record["learning rate of full fine-tuning"] = best["learning_rate"]
        write_json(out, record)
    repeated = [c for c in first if c not in FULL or (best and c.learning_rate == best["learning_rate"])]
    work([(c, seed) for seed in range(1, args.seeds) for c in repeated])
    work([(c, seed) for seed in range(args.seeds) for c in then])
    if "share of decoding".startswith(only) and "share of decoding" not in record:
        record["share of decoding"] = in_a_process(["--one", "{}"], torch.get_num_threads())
        write_json(out, record)
    print(f"written to {os.path.relpath(out)}")


if __name__ == "__main__":
    main()
