"""Record what ranks, data types and methods cost and give, each at a learning rate of its own, into one JSON.

    python benchmarks/costs.py                    writes data/recorded/costs-<device>.json; a night on two cores
    python benchmarks/costs.py --jobs 2           two runs side by side, each with half of the threads
    python benchmarks/costs.py --only qlora       ways whose name begins so, or so (several may be given)
    python benchmarks/costs.py --only share       how long decoding takes, which wants a quiet machine
    python benchmarks/costs.py --dry-run          only says what is missing, and how many hours that may take

Methods and ranks want different learning rates, so a comparison at one rate is a comparison of how well that rate suits
them. Here the rate is chosen alike for every method, rank and alpha: five rates a factor of 2 apart, one seed, and of
each the loss on the validation examples, without the slow exact match. Where the least loss lies at the lowest or the
highest rate, the next one beyond is tried too. Then the way is run at its chosen rate with other seeds and measured in
full. The rates of full fine-tuning begin a tenth as high as those of adapters.

What matters most comes first: full fine-tuning, LoRA, QLoRA, and QLoRA's ranks 1, 4 and 64; then the same ranks with
alpha constant, and as rsLoRA has it; then the other data types and the ranks between. In each of these three parts all
rates are chosen first, and then every way is run once before any is run twice.

Runs take minutes each and hours together. Each is a process of its own; after each, the JSON is written whole, so the
script can be cut off at any time, and a second call does what is missing. Runs that an earlier version recorded count
for what they are: at their own rate, with alpha twice the rank.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # on a bare machine nothing is installed

from qlora_lab.evaluation.recorded_runs import (  # noqa: E402
    CHOOSING_SEED,
    LEAST_RATES,
    LOSS,
    SCALINGS,
    best_rate,
    condition_of,
    way_of,
)


@dataclass(frozen=True)
class Condition:
    """A way to fine-tune, at a learning rate."""

    method: str
    rank: int = 0
    datatype: str = ""
    double_quant: bool = False
    alpha: float = 0
    learning_rate: float = 0  # of a way: 0, to be chosen; else it keeps this one
    variant: str = ""  # of how the base is rounded or the adapter begins: see `benchmarks/after_nf4.py`

    @property
    def way(self) -> str:
        return way_of(asdict(self))

    @property
    def name(self) -> str:
        return condition_of(asdict(self))

    def at(self, rate: float) -> "Condition":
        return replace(self, learning_rate=rate)


def qlora(
    rank: int, scaling: str = "alpha = 2r", datatype: str = "nf4", double_quant: bool = True, **more
) -> Condition:
    return Condition("qlora", rank, datatype, double_quant, SCALINGS[scaling](rank), **more)


PARTS = (  # of the night, what matters most first
    (
        Condition("full"),
        Condition("lora", 16, alpha=32),
        qlora(16),
        *(qlora(rank) for rank in (1, 64, 4)),
    ),
    tuple(qlora(rank, scaling) for scaling in ("alpha = 32", "rsLoRA") for rank in (1, 64, 4)),
    (
        qlora(16, datatype="int4_affine", double_quant=False),
        qlora(16, datatype="fp4"),
        qlora(16, datatype="int4"),
        qlora(16, double_quant=False),
        *(qlora(rank) for rank in (8, 2, 32)),
    ),
)
MIDDLE = {"full": 2e-4, "lora": 2e-3, "qlora": 2e-3}  # of the rates that are tried first, each twice the one before
MORE_RATES = 4  # beyond each end at most, where the best lies at an end
BUDGET = {"steps": 80, "batch_size": 8}
TEST, PARAPHRASES, VALIDATION, WORDS = 100, 40, 96, 2000
CALIBRATION = slice(5000, None)  # words of the evaluation text for GPTQ and AWQ to look at
DAMPING = 0.2  # GPTQ's usual 0.01 is for a hundred times as many tokens; of four, the least error on another text


@dataclass(frozen=True)
class Job:
    """A run to make. whole: measured in full; else for choosing a rate, by the validation loss alone."""

    condition: Condition
    seed: int
    whole: bool

    @property
    def key(self) -> str:
        return f"{self.condition.name} seed {self.seed}"


class Plan:
    """What is missing in a record.

    Args:
        runs: as in the record, by any key; continued while the plan is followed.
        parts: ways in parts, one after the other.
        seeds: each way is measured in full with, at its chosen rate.
    """

    def __init__(self, runs: dict[str, dict], parts: Sequence[Sequence[Condition]], seeds: Sequence[int]):
        self.runs, self.parts, self.seeds = runs, parts, seeds

    def next_jobs(self, left_out: frozenset[Job] = frozenset()) -> list[Job]:
        """What can be run side by side now; nothing where all is there.

        Args:
            left_out: not proposed again (they failed).
        """
        for part in self.parts:
            for jobs in (
                [job for way in part for job in self.rates_missing(way)],
                [job for seed in self.seeds for way in part for job in self.seeds_missing(way) if job.seed == seed],
            ):
                if jobs := [job for job in jobs if job not in left_out]:
                    return jobs
        return []

    def rates_missing(self, way: Condition) -> list[Job]:
        """The five rates; when these are there and the best lies at an end, the next one beyond it."""
        if way.learning_rate:
            return []
        tried = self.tried(way)
        middle = MIDDLE[way.method]
        first = [_rounded(middle * 2**power) for power in range(-(LEAST_RATES // 2), LEAST_RATES // 2 + 1)]
        if missing := [rate for rate in first if rate not in tried]:
            return [Job(way.at(rate), CHOOSING_SEED, False) for rate in missing]
        if best_rate(tried) is not None:
            return []
        best = min(tried, key=tried.get)
        beyond = _rounded(best / 2 if best == min(tried) else 2 * best)
        if not middle / 2 ** (2 + MORE_RATES) <= beyond <= middle * 2 ** (2 + MORE_RATES):
            return []
        return [Job(way.at(beyond), CHOOSING_SEED, False)]

    def seeds_missing(self, way: Condition) -> list[Job]:
        """Runs at the chosen rate that are not there yet; none while no rate is chosen."""
        rate = self.rate(way)
        if rate is None:
            return []
        there = {
            run["seed"]
            for run in self.runs.values()
            if ("exact match" in run or "broke" in run) and condition_of(run) == way.at(rate).name
        }
        return [Job(way.at(rate), seed, True) for seed in self.seeds if seed not in there]

    def rate(self, way: Condition) -> float | None:
        """Its own, or the chosen one; None while none is chosen."""
        return way.learning_rate or best_rate(self.tried(way))

    def tried(self, way: Condition) -> dict[float, float]:
        """{rate: validation loss with the choosing seed}; infinite where training broke down."""
        return {
            run["learning_rate"]: math.inf if run[LOSS] is None else run[LOSS]
            for run in self.runs.values()
            if run.get("seed") == CHOOSING_SEED and LOSS in run and way_of(run) == way.way
        }

    def hours_left(self, jobs: int) -> float | None:
        """From what runs took so far; None before the first. More, if rates beyond the ends have to be tried."""
        took: dict[tuple[bool, bool], list[float]] = {}
        for run in self.runs.values():
            if "run seconds" in run:
                took.setdefault((run["method"] == "full", "exact match" in run), []).append(run["run seconds"])
        if not took:
            return None
        every = statistics.mean(second for seconds in took.values() for second in seconds)
        seconds = 0.0
        for way in (way for part in self.parts for way in part):
            rates = len(self.rates_missing(way))
            chosen = self.rate(way) is not None
            whole = len(self.seeds_missing(way)) if chosen or not rates else len(self.seeds)
            for count, kind in ((rates, False), (whole, True)):
                known = took.get((way.method == "full", kind))
                seconds += count * (statistics.mean(known) if known else every)
        return seconds / 3600 / jobs


def _rounded(rate: float) -> float:
    """Three digits, so that a rate is the same number however it was come by."""
    return float(f"{rate:.3g}")


def run(job: Job, budget: dict, model_name: str | None = None) -> dict:
    """One fine-tune and what is asked of it: the validation loss, and of a whole job everything else."""
    import torch

    from qlora_lab import count_parameters, evaluate, finetune, load_model, load_tokenizer
    from qlora_lab.cli.run import MAX_NEW_TOKENS
    from qlora_lab.evaluation import loss_per_token
    from qlora_lab.tasks import evaluation_text, load_examples, spread
    from qlora_lab.variants import merge_dora

    name = (model_name,) if model_name else ()
    condition, tokenizer = job.condition, load_tokenizer(*name)
    torch.manual_seed(job.seed)
    model = prepare(load_model(*name, dtype=torch.float32), condition, tokenizer)
    prose = " ".join(evaluation_text().split()[:WORDS])
    before = loss_per_token(model, tokenizer, prose) if job.whole else None
    trained = count_parameters(model)
    weights = sum(t.nbytes for n, t in (*model.named_parameters(), *model.named_buffers()) if "lora_" not in n)
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = finetune(
                model,
                tokenizer,
                load_examples("train"),
                out=None if condition.variant == "dora" else folder,  # an adapter's file has no place for lengths
                checkpoint_every=10**6,
                seed=job.seed,
                learning_rate=condition.learning_rate,
                **budget,
            )
        except FloatingPointError as error:  # so high a rate is a result too
            return {LOSS: None, "broke": str(error)}
        adapter = result.adapter / "adapter_model.safetensors" if result.adapter else None
        size = adapter.stat().st_size if adapter else 0
    if condition.variant == "dora":
        merge_dora(model)  # answering decodes each weight for each token; the same numbers up to rounding
    validation = supervised_loss(model, tokenizer, load_examples("validation")[:VALIDATION])
    if not math.isfinite(validation):
        return {LOSS: None, "broke": "the validation loss is not finite"}
    ending = {
        "training seconds": round(result.seconds, 1),
        "tokens per second": round(result.tokens_per_second, 1),
        "loss of the last ten steps": round(statistics.mean(r.loss for r in result.records[-10:]), 5),
        LOSS: round(validation, 5),
    }
    if not job.whole:
        return ending
    found = {
        name: evaluate(model, tokenizer, spread(load_examples(name), count), MAX_NEW_TOKENS)
        for name, count in (("test", TEST), ("paraphrases", PARAPHRASES))
    }
    return {
        "trained parameters": trained.trainable,
        "bytes of weights": weights,
        "predicted bytes of a step": result.predicted.total,
        "bytes of the adapter's file": size,
        **ending,
        "loss on prose before": round(before, 5),
        "loss on prose after": round(loss_per_token(model, tokenizer, prose), 5),
        "exact match": {name: {"correct": e.correct, "of": len(e.answers)} for name, e in found.items()},
    }


def prepare(model, condition: Condition, tokenizer=None):
    """The model as the condition trains it.

    Args:
        tokenizer: for variants that look at data.
    """
    from qlora_lab import inject_lora, quantize_model
    from qlora_lab.quantization.calibrated import gptq, input_moments, scale_inputs
    from qlora_lab.variants import STARTS, add_dora, start_adapters

    if condition.method == "full":
        return model.requires_grad_(True)
    if condition.method == "lora":
        return inject_lora(model, condition.rank, condition.alpha)
    variant, weights, moments = condition.variant, {}, {}
    if variant in ("gptq", "awq"):
        moments = input_moments(model, windows(tokenizer))
    if variant == "awq":
        scale_inputs(model, moments, condition.datatype, double_quant=condition.double_quant)
    if variant == "gptq" or variant in STARTS:
        weights = {path: m.weight.detach() for path, m in model.named_modules() if hasattr(m, "weight")}
    model = quantize_model(
        model,
        condition.datatype,
        double_quant=condition.double_quant,
        rank=condition.rank,
        alpha=condition.alpha,
        compute_dtype=model.dtype,  # all methods compute in float32: what differs is what is stored and trained
    )
    if variant == "gptq":
        for path in moments:
            layer = model.get_submodule(path)
            layer.hold(gptq(weights[path], moments[path], layer.datatype, layer.block_size, DAMPING))
    if variant in STARTS:
        start_adapters(model, weights, variant)
    return add_dora(model) if variant == "dora" else model


def windows(tokenizer, words: slice = CALIBRATION) -> list:
    """Token ids (4, 256) each, of these words of the evaluation text; usually of those no loss is measured on."""
    from qlora_lab.tasks import evaluation_text

    text = " ".join(evaluation_text().split()[words])
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    return list(ids[: len(ids) // 1024 * 1024].view(-1, 4, 256))


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

    model = prepare(load_model(dtype=torch.float32), qlora(16)).train()
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
    parser.add_argument("--seeds", type=int, default=5, help="of each way at its chosen rate")
    parser.add_argument("--only", nargs="+", default=[""], help="ways whose name begins with one of these")
    parser.add_argument("--steps", type=int, default=BUDGET["steps"], help="of each run; a record has one budget")
    parser.add_argument("--model", help="folder or hub id; default: the workbook's own. Needs --out")
    parser.add_argument("--out", type=Path, help="the JSON; default: data/recorded/costs-<device type>.json")
    parser.add_argument("--dry-run", action="store_true", help="only say what is missing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        job = json.loads(args.one)
        print(json.dumps(run(_job(**job["job"]), job["budget"], job["model"]) if job else share_of_decoding()))
        return
    if args.model and not args.out:
        parser.error("--model needs --out: the record that comes with the workbook is of its own model")

    import torch

    from qlora_lab.machine import default_device, describe, device_name, versions
    from qlora_lab.machine.files import write_json
    from qlora_lab.models import ensure_default_model

    device = default_device()
    out = args.out or ROOT / "data" / "recorded" / f"costs-{device.type}.json"
    budget = BUDGET | {"steps": args.steps}
    asked = budget | ({"model": args.model} if args.model else {})
    record = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"budget": asked, "runs": {}}
    if record["budget"] != asked:
        parser.error(f"{out.name} holds runs with another budget, {record['budget']}; give --out another file")
    only = tuple(args.only)
    parts = [[way for way in part if way.way.startswith(only)] for part in PARTS]
    plan = Plan(record["runs"], parts, [CHOOSING_SEED + 1 + seed for seed in range(args.seeds)])
    print(told(plan, args.jobs), flush=True)
    if args.dry_run:
        return
    if not args.model:
        ensure_default_model()
    record |= {"script": "benchmarks/costs.py", "device": device_name(device), "machine": describe()}
    record |= {"versions": versions()}
    follow(plan, record, out, args.jobs, args.model)
    for way in (way for part in parts for way in part if best_rate(plan.tried(way)) is None):
        print(f"no rate is chosen for {way.way}: tried {plan.tried(way)}")
    if "share of decoding".startswith(only) and "share of decoding" not in record and not args.model:
        record["share of decoding"] = in_a_process(["--one", "{}"], torch.get_num_threads())
        write_json(out, record)
    print(f"written to {os.path.relpath(out)}")


def follow(plan: Plan, record: dict, out: Path, jobs: int, model: str | None = None) -> None:
    """Make all runs that are missing; the record is written whole after each.

    Args:
        record: with a "budget"; the plan's runs are its own.
        jobs: runs at the same time.
    """
    import torch

    from qlora_lab.machine import default_device, device_name
    from qlora_lab.machine.files import write_json

    out.parent.mkdir(parents=True, exist_ok=True)
    device, threads = device_name(default_device()), max(1, torch.get_num_threads() // jobs)
    budget = {name: record["budget"][name] for name in BUDGET}
    failed = set()
    while waiting := plan.next_jobs(frozenset(failed)):
        for job, result in side_by_side(waiting, jobs, threads, budget, model):
            if "error" in result:
                failed.add(job)
            # a record may be continued on another machine: each run says its own
            where = {"date": datetime.now(UTC).date().isoformat(), "device": device, "threads": threads}
            record["runs"][job.key] = asdict(job.condition) | {"seed": job.seed} | result | where
            write_json(out, record)
            said = result.get("error") or result.get("broke") or result.get("exact match") or f"{LOSS} {result[LOSS]}"
            print(f"{job.key}: {said}; {told(plan, jobs)}", flush=True)


def told(plan: Plan, jobs: int) -> str:
    """How far a plan is, and how long the rest may take."""
    ways = [way for part in plan.parts for way in part]
    chosen = sum(plan.rate(way) is not None for way in ways)
    finished = sum(plan.rate(way) is not None and not plan.seeds_missing(way) for way in ways)
    hours = plan.hours_left(jobs)
    rest = "how long the rest takes is known after the first run" if hours is None else f"about {hours:.1f} hours left"
    return f"rates chosen: {chosen} of {len(ways)}, measured with all seeds: {finished}; {rest}"


def side_by_side(
    jobs: Sequence[Job], at_once: int, threads: int, budget: Mapping, model: str | None
) -> Iterator[tuple[Job, dict]]:
    """(job, its result with the seconds it took), as they come in."""

    def timed(job: Job) -> dict:
        start = time.perf_counter()
        asked = json.dumps({"job": asdict(job), "budget": budget, "model": model})
        result = in_a_process(["--one", asked], threads)
        return result | {"run seconds": round(time.perf_counter() - start, 1)}

    with ThreadPoolExecutor(at_once) as pool:
        running = {pool.submit(timed, job): job for job in jobs}
        for done in as_completed(running):
            yield running[done], done.result()


def _job(condition: dict, seed: int, whole: bool) -> Job:
    return Job(Condition(**condition), seed, whole)


if __name__ == "__main__":
    main()
