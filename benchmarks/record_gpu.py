"""Record a GPU session: the CUDA tests, the races, the fine-tune and a 65B step, in one go, into one JSON.

    python benchmarks/record_gpu.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf

Made for a bare CUDA machine: it needs this repository, torch and transformers; no network and no installation. What is
missing there (bitsandbytes, PEFT, pytest) is said in the record and left out. The base model comes from the cache, or
from the GGUF file given. Each stage runs in a process of its own, so that one that fails, or is cut off, takes nothing
from the others; the JSON is written whole after every stage, and a second call adds what the first had no time for.

Figures and prose that show GPU numbers read `data/recorded/`; none are typed by hand.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # not installed on a bare machine


def cuda_tests(folder: Path) -> dict:
    """Run the tests marked cuda; counts, and what failed with its first line."""
    report = folder / "tests.xml"
    done = call("-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", f"--junitxml={report}", "tests")
    if not report.exists():
        raise RuntimeError(f"pytest made no report: {done.stdout[-500:]}{done.stderr[-500:]}")
    counts, failed = Counter(), {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        counts[outcome] += 1
        if outcome in ("failure", "error"):
            message = next(child for child in case if child.tag == outcome).get("message", "")
            failed[f"{case.get('classname')}.{case.get('name')}"] = message.splitlines()[0][:300] if message else ""
    return {"counts": dict(counts), "failed": failed}


def race(folder: Path, name: str) -> dict:
    """One race of `race.py`."""
    out = folder / "race.json"
    checked(call(str(ROOT / "benchmarks" / "race.py"), name, "--out", str(out)))
    return json.loads(out.read_text(encoding="utf-8"))["races"][name]


def finetune(folder: Path) -> dict:
    """The default fine-tune on the GPU, as the command line runs it: accuracy before and after, time, memory."""
    program = """
import json, sys, time
import torch
from pathlib import Path
from qlora_lab.cli.run import RunPlan, begin, check, execute
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
plan = RunPlan(settings={"batch_size": 32})
check(plan)
begin(folder, plan, resume=False)
torch.cuda.reset_peak_memory_stats()
start = time.perf_counter()
result = execute(folder, plan, device="cuda")
seconds = time.perf_counter() - start
out.write_text(json.dumps({
    "plan": json.loads((folder / "run.json").read_text())["plan"],
    "seconds": round(seconds, 1),
    "training seconds": round(result.training.seconds, 1),
    "tokens per second": round(result.training.tokens_per_second),
    "peak bytes allocated": torch.cuda.max_memory_allocated(),
    "predicted bytes of a step": result.training.predicted.total,
    "losses": [round(r.loss, 4) for r in result.training.records],
    "exact match": {name: {"correct": e.correct, "of": len(e.answers), "interval": [round(x, 4) for x in e.interval]}
                    for name, e in result.evaluations.items()},
}))
"""
    out = folder / "finetune.json"
    checked(call("-c", program, str(folder / "run"), str(out)))
    return json.loads(out.read_text(encoding="utf-8"))


def paging(folder: Path) -> dict:
    """The paged optimizer's race."""
    out = folder / "paging.json"
    checked(call(str(ROOT / "benchmarks" / "paging.py"), "--directory", str(folder), "--out", str(out)))
    return json.loads(out.read_text(encoding="utf-8"))["races"]


def giant(folder: Path) -> dict:
    """The step of 65 billion parameters. What was recorded before it was cut off counts."""
    out = folder / "giant.json"
    done = call(str(ROOT / "benchmarks" / "giant_step.py"), "--out", str(out))
    if not out.exists():
        checked(done)
    result = json.loads(out.read_text(encoding="utf-8"))
    return result if done.returncode == 0 else result | {"cut off by": done.stderr.strip()[-500:]}


STAGES = {
    "tests": cuda_tests,
    "kernels": lambda folder: race(folder, "kernels"),
    "step": lambda folder: race(folder, "step"),
    "memory": lambda folder: race(folder, "memory"),
    "finetune": finetune,
    "paging": paging,
    "giant": giant,
}


def call(*arguments: str) -> subprocess.CompletedProcess:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def checked(done: subprocess.CompletedProcess) -> None:
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip()[-1500:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=list(STAGES), help=f"of {', '.join(STAGES)}; default: all")
    parser.add_argument("--gguf", type=Path, help="the default model's GGUF file, where there is no network")
    parser.add_argument("--out", type=Path, help="the JSON; default: data/recorded/gpu-<device>.json")
    parser.add_argument("--again", action="store_true", help="repeat stages that the JSON has already")
    args = parser.parse_args()
    if unknown := set(args.stages) - set(STAGES):
        parser.error(f"unknown stage {min(unknown)!r}; choose from {', '.join(STAGES)}")

    import torch

    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here; this script records a GPU session")
    from qlora_lab.machine import describe, versions
    from qlora_lab.machine.files import write_json
    from qlora_lab.models import ensure_default_model

    ensure_default_model(args.gguf)
    device = torch.cuda.get_device_name()
    out = args.out or ROOT / "data" / "recorded" / f"gpu-{device.lower().replace(' ', '-')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    record = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"stages": {}}
    record |= {"device": device, "machine": describe(), "versions": versions(), "cuda": torch.version.cuda}
    for name in args.stages:
        if name in record["stages"] and "error" not in record["stages"][name] and not args.again:
            print(f"{name}: in {out.name} already")
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = STAGES[name](Path(folder))
            except Exception as error:  # a stage that fails must not take the session's other numbers with it
                result = {"error": f"{type(error).__name__}: {error}"}
        seconds = round(time.perf_counter() - start, 1)
        record["stages"][name] = {"date": datetime.now(UTC).date().isoformat(), "stage seconds": seconds, **result}
        write_json(out, record)
        print(f"{name}: {'FAILED, see the record' if 'error' in result else 'recorded'} ({seconds} s)", flush=True)
    print(f"written to {os.path.relpath(out)}")


if __name__ == "__main__":
    main()
