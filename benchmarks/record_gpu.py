"""Record a GPU session: what works, a 65B step, the CUDA tests, the fine-tune and the races, in order of worth.

    bash build/gpu-kit/call-1/call.sh OUT           on a bare machine, from the kit that `make gpu-kit` packs
    python benchmarks/record_gpu.py                 where the package and its dependencies are installed
    python benchmarks/record_gpu.py --join A/gpu.json B/gpu.json       the records of two calls, in data/recorded/

The smoke test comes first and says in ten lines what works. Each stage runs in a process of its own with a limit in
seconds, so that one that hangs or fails costs only itself. `gpu.json` in the folder that comes back is written whole
after every stage; what a running stage has so far stands beside it in `<stage>.json`, and what it said in `log.txt`.
The base model is looked for when a stage needs it, and only then: in the cache, in a GGUF file, or in one that came in
parts. Without bitsandbytes our own side is recorded.

Figures and prose that show GPU numbers read `data/recorded/`; none are typed by hand.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # not installed on a bare machine
LEAST = 15  # seconds that have to be left for a stage to be begun


@dataclass(frozen=True)
class Session:
    """What a stage is given. device: "cuda" or "cpu". tiny: sizes that only try the code. result: where its JSON goes.

    model_parts, gguf: where the base model's file may be; None: in the cache only, or where a network is.
    """

    device: str
    tiny: bool
    result: Path
    model_parts: Path | None = None
    gguf: Path | None = None

    def save(self, value: dict) -> None:
        """What there is so far: it survives a stage that is cut off."""
        write_json(self.result, value)


def write_json(path: Path, value: dict) -> None:
    """Whole or not at all. Nothing of the package is imported: this has to work where it cannot be."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


# -- the stages


def facts(device: str) -> dict:
    """What the machine is, for the record's head."""
    import importlib.metadata

    import torch

    from qlora_lab.machine import describe, versions

    found = {"machine": describe(), "versions": versions(), "cuda": torch.version.cuda}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["versions"]["triton"] = importlib.metadata.version("triton")
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["device"] = properties.name
        found["compute capability"] = f"{properties.major}.{properties.minor}"
        found["device bytes"] = properties.total_memory
    else:
        found["device"] = "cpu"
    return found


def smoke(session: Session) -> dict:
    """Ten lines that say what works; see `smoke_test`."""
    import smoke_test

    return smoke_test.run(session.device, session.tiny, session.save) | {"facts": facts(session.device)}


def giant(session: Session) -> dict:
    """The step of 65 billion parameters, as `giant_step.json` has it simulated."""
    import giant_step

    arguments = ["--device", session.device, "--out", str(session.result)]
    if session.tiny:
        arguments += ["--model", "SmolLM2-135M-Instruct", "--rank", "4", "--length", "32", "--long", "64"]
    giant_step.main(arguments)
    return json.loads(session.result.read_text(encoding="utf-8"))


class Outcomes:
    """A plugin of pytest's: counts, and the first line of what failed, after every test."""

    def __init__(self, save: Callable[[dict], None]):
        self.save, self.counts, self.failed = save, Counter(), {}

    def found(self) -> dict:
        return {"counts": dict(self.counts), "failed": self.failed}

    def pytest_runtest_logstart(self, nodeid, location):
        self.save(self.found() | {"at": nodeid})

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self._count(report.outcome if report.when == "call" or report.skipped else "error", report)

    def pytest_collectreport(self, report):
        if report.failed:
            self._count("not collected", report)

    def _count(self, outcome: str, report) -> None:
        self.counts[outcome] += 1
        if report.failed:
            lines = [line for line in report.longreprtext.splitlines() if line.strip()]
            told = [line[1:].strip() for line in lines if line.startswith("E ")] or lines[-1:] or ["no message"]
            self.failed[report.nodeid] = told[0][:300]
        self.save(self.found())


def cuda_tests(session: Session) -> dict:
    """Run the tests marked cuda, in the files that have some: pytest alone is needed, none of the plugins."""
    import pytest

    files = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in p.read_text(encoding="utf-8")]
    outcomes = Outcomes(session.save)
    options = ["-v", "--tb=short", "-m", "cuda", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers"]
    options += ["--continue-on-collection-errors", "-o", "faulthandler_timeout=40"]
    pytest.main([*options, *map(str, files)], plugins=[outcomes])
    if not outcomes.counts:
        raise RuntimeError("pytest ran no test: see the log")
    return outcomes.found()


def model(session: Session) -> dict:
    """The base model into the cache: from its parts, from the file given, or as `ensure_default_model` finds it."""
    import gpu_kit

    from qlora_lab.models.base_model import DEFAULT_FILE, cache_directory, default_model_status, ensure_default_model

    gguf = session.gguf
    if gguf is None and session.model_parts is not None and not default_model_status(full=False).ready:
        gguf = cache_directory() / "models" / DEFAULT_FILE.filename
        gguf.parent.mkdir(parents=True, exist_ok=True)
        gpu_kit.join(session.model_parts, gguf, DEFAULT_FILE.size, DEFAULT_FILE.sha256)
    ensure_default_model(gguf)
    return {"facts": facts(session.device)}


def finetune(session: Session) -> dict:
    """The default fine-tune on the GPU, as the command line runs it: accuracy before and after, time, memory."""
    import torch

    from qlora_lab.cli.run import Listener, RunPlan, begin, check, execute
    from qlora_lab.quantization import path_taken

    plan = RunPlan(settings={"batch_size": 32})
    if session.tiny:
        few = {"baseline_examples": 1, "test_examples": 2, "paraphrase_examples": 2, "train_examples": 8}
        plan = RunPlan(settings={"batch_size": 2, "steps": 2}, **few)
    check(plan)
    so_far = {"losses": []}
    start = time.perf_counter()

    class Told(Listener):
        def stage(self, text):
            so_far["at"] = f"{text}, after {time.perf_counter() - start:.1f} s"
            print(so_far["at"], flush=True)
            session.save(so_far)

        def step(self, record, steps):
            so_far["losses"].append(round(record.loss, 4))
            session.save(so_far)

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        begin(run, plan, resume=False)
        if session.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        result = execute(run, plan, device=session.device, listener=Told())
        seconds = time.perf_counter() - start
        found = {"plan": json.loads((run / "run.json").read_text(encoding="utf-8"))["plan"]}
    found |= {
        "seconds": round(seconds, 1),
        "training seconds": round(result.training.seconds, 1),
        "tokens per second": round(result.training.tokens_per_second),
        "predicted bytes of a step": result.training.predicted.total,
        "losses": so_far["losses"],
        "exact match": {
            name: {"correct": e.correct, "of": len(e.answers), "interval": [round(x, 4) for x in e.interval]}
            for name, e in result.evaluations.items()
        },
        "path taken": path_taken(session.device),
    }
    if session.device == "cuda":
        found["peak bytes allocated"] = torch.cuda.max_memory_allocated()
    return found


def race_module(session: Session):
    """`race`, on the session's device."""
    import race
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    race.DEVICE = torch.device(session.device)
    if session.tiny:
        race.SIDE, race.BATCH = 512, 2
    return race


def kernels(session: Session) -> dict:
    return race_module(session).kernels(1 if session.tiny else 15)


def step(session: Session) -> dict:
    return race_module(session).step(1 if session.tiny else 7)


def memory(session: Session) -> dict:
    return race_module(session).memory()


def paging(session: Session) -> dict:
    """The paged optimizer's race; what is done of it is saved after each of its two parts."""
    race_module(session)
    import paging as pages

    pages.DEVICE = pages.torch.device(session.device)
    elements, rounds = (2**16, 1) if session.tiny else (2**26, 11)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("large", "adapters"):
            found[kind] = pages.race(kind, elements, rounds, folder, 32)
            session.save(found)
    return found


@dataclass(frozen=True)
class Stage:
    run: Callable[[Session], dict]
    limit: int  # seconds
    needs_model: bool = False


STAGES = {  # in order of worth
    "smoke": Stage(smoke, 90),
    "giant": Stage(giant, 170),
    "tests": Stage(cuda_tests, 130),
    "model": Stage(model, 60),
    "finetune": Stage(finetune, 170, needs_model=True),
    "kernels": Stage(kernels, 50),
    "step": Stage(step, 70, needs_model=True),
    "memory": Stage(memory, 70, needs_model=True),
    "paging": Stage(paging, 90),
}


# -- the session


def run_limited(command: list[str], limit: float, log: Path) -> str:
    """Run a command with its output added to `log`; what became of it: "done", "failed", or "cut off after N s".

    All processes that it started end with it.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            return "done" if process.wait(timeout=limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            return f"cut off after {limit:.0f} s"
        finally:  # also what a stage left running, and what an interrupt left
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that hangs may keep it for ever
                process.wait(timeout=10)


def last_words(log: Path, start: int, count: int = 12) -> str:
    """The last lines that a stage wrote into the log, which was `start` bytes long before it."""
    with open(log, "rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join([line for line in lines if line.strip()][-count:])[-2000:]


def run_stage(name: str, limit: float, out: Path, options: list[str]) -> dict:
    """One stage in a process of its own: its outcome, its seconds, and what it found, also if that is only a part."""
    log, result = out / "log.txt", out / f"{name}.json"
    result.unlink(missing_ok=True)
    with open(log, "ab") as file:
        file.write(f"\n== {name}, at most {limit:.0f} s\n".encode())
    before, start = log.stat().st_size, time.perf_counter()
    command = [sys.executable, str(Path(__file__)), "--stage", name, "--result", str(result), *options]
    outcome = run_limited(command, limit, log)
    entry = {"date": datetime.now(UTC).date().isoformat(), "outcome": outcome}
    entry["stage seconds"] = round(time.perf_counter() - start, 1)
    if outcome != "done":
        entry["last words"] = last_words(log, before)
    if result.exists():
        entry |= json.loads(result.read_text(encoding="utf-8"))
        result.unlink()
    return entry


def run_session(names: list[str], args, options: list[str]) -> dict:
    """Run the stages, each within its limit and the session's time; the record, written after every stage."""
    end = time.monotonic() + args.seconds
    record = {"stages": {}}
    places = [args.out / "gpu.json", *([args.keep / "gpu.json"] if args.keep else [])]
    for place in reversed(places):
        if place.exists():
            record = join_records([json.loads(place.read_text(encoding="utf-8")), record])
    if args.tiny:
        record["tiny"] = "sizes that only try the code: no measurement"
    lacking = None  # why there is no model; not asked yet

    def put(name: str, entry: dict) -> None:
        record.update(entry.pop("facts", {}))
        if not better(record["stages"].get(name), entry):
            record["stages"][name] = entry
        for place in places:
            write_json(place, record)
        print(f"{name}: {entry['outcome']}" + (f" ({entry['stage seconds']} s)" if "stage seconds" in entry else ""))
        print(*(f"    {line}" for line in entry.get("lines", [])), entry.get("last words", ""), sep="\n", flush=True)

    def run(name: str) -> dict:
        left = end - time.monotonic()
        if left < LEAST:
            return {"outcome": "not begun: no time left"}
        return run_stage(name, min(STAGES[name].limit * args.patience, left), args.out, options)

    asked = False
    for name in names:
        done = record["stages"].get(name, {}).get("outcome") == "done"
        if done and not args.again and name != "model":
            print(f"{name}: in the record already", flush=True)
            continue
        if (STAGES[name].needs_model or name == "model") and not asked:
            asked, entry = True, run("model")
            put("model", dict(entry))
            lacking = None if entry["outcome"] == "done" else entry.get("last words", entry["outcome"])
        if name == "model":
            continue
        if STAGES[name].needs_model and lacking is not None:
            put(name, {"outcome": "not begun: the base model is not there", "because": lacking[-300:]})
            continue
        entry = run(name)
        put(name, dict(entry))
        if name == "smoke" and args.stop_after_smoke and (entry["outcome"] != "done" or entry["failed"]):
            print("stopped: the smoke test found something to repair first")
            break
    return record


def better(old: dict | None, new: dict) -> bool:
    """Whether what stands in a record is worth more than what would replace it: a whole stage, or a part of one."""

    def worth(entry: dict) -> int:
        return 2 if entry["outcome"] == "done" else int(not entry["outcome"].startswith("not begun"))

    return old is not None and worth(old) > worth(new)


def join_records(records: list[dict]) -> dict:
    """One record of several, oldest first: whole stages before parts of them, and newer ones before older ones."""
    joined = {"stages": {}}
    for record in records:
        for name, entry in record["stages"].items():
            if not better(joined["stages"].get(name), entry):
                joined["stages"][name] = entry
        joined |= {name: value for name, value in record.items() if name != "stages"}
    return joined


def recorded_path(record: dict) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", record.get("device", "unknown").lower()).strip("-")
    return ROOT / "data" / "recorded" / f"gpu-{name}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; default: all, in this order")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu", help="the folder to fill")
    parser.add_argument("--keep", type=Path, help="another folder for the record; a later call goes on with it")
    parser.add_argument("--seconds", type=float, default=3600, help="for everything; no stage is begun after that")
    parser.add_argument("--patience", type=float, default=1, help="each stage's limit is so many times its own")
    parser.add_argument("--model-parts", type=Path, help="a folder with the parts of the base model's file")
    parser.add_argument("--gguf", type=Path, help="the base model's file")
    parser.add_argument("--again", action="store_true", help="repeat stages that the record has already")
    parser.add_argument("--stop-after-smoke", action="store_true", help="end there if something has to be repaired")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="sizes that only try the code, on any device")
    parser.add_argument("--join", type=Path, nargs="+", metavar="GPU_JSON", help="records to make one of, oldest first")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.join:
        record = join_records([json.loads(path.read_text(encoding="utf-8")) for path in args.join])
        if "tiny" in record:
            sys.exit(f"nothing was written: one of these has {record['tiny']}")
        write_json(recorded_path(record), record)
        print(f"written to {os.path.relpath(recorded_path(record))}")
        return
    if args.stage:
        session = Session(args.device, args.tiny, args.result, args.model_parts, args.gguf)
        session.save(STAGES[args.stage].run(session))
        return
    if unknown := set(args.stages) - set(STAGES):
        parser.error(f"unknown stage {min(unknown)!r}; choose from {', '.join(STAGES)}")
    options = ["--device", args.device, *(["--tiny"] if args.tiny else [])]
    for name in ("model_parts", "gguf"):
        if (value := getattr(args, name)) is not None:
            options += [f"--{name.replace('_', '-')}", str(value.absolute())]
    args.out = args.out.absolute()
    for folder in filter(None, (args.out, args.keep)):
        folder.mkdir(parents=True, exist_ok=True)
    record = run_session(args.stages or list(STAGES), args, options)
    outcomes = {name: entry["outcome"] for name, entry in record["stages"].items()}
    print(json.dumps(outcomes, indent=2))
    sys.exit(0 if set(outcomes.values()) <= {"done"} else 1)


if __name__ == "__main__":
    main()
