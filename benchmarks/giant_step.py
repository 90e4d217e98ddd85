"""A QLoRA step of a model of 65 billion parameters on one card, under a cap of 48 GB: measured, and as simulated.

    python benchmarks/giant_step.py --simulate                    beforehand, on any machine: minutes; giant_step.json
    python benchmarks/giant_step.py --out giant.json              on a GPU of 48 GB or more
    python benchmarks/giant_step.py --model SmolLM2-135M-Instruct --device cpu --out small.json    the same code, small

The weights are synthetic (normal, of the real shapes) and quantized layer by layer on the card, so that nothing larger
than one layer is ever there in 16 bits; what the step computes is meaningless, what it allocates and moves is not.

Three questions. Does the ledger agree with the allocator's own peak and with the simulation? How many tokens a second?
And with a sequence so long that plain AdamW runs out of memory: does the paged optimizer go on? What that length is,
and what the steps take, is simulated beforehand and stands in `giant_step.json`: on the card no time goes into it.

bitsandbytes' paged optimizer stays out of the third question. Its state is managed memory, which the cap, a limit of
torch's own allocator, does not count: it would be under no pressure.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from qlora_lab import PagedAdamW, QLoRALinear, quantize
from qlora_lab.lora import output_head, replace_module
from qlora_lab.machine import versions
from qlora_lab.machine.files import write_json
from qlora_lab.memory import MemoryTrace, TrainingPlan, simulate_training
from qlora_lab.memory.simulation import build_optimizer, train_step
from qlora_lab.models.gradient_checkpointing import enable_checkpointing
from qlora_lab.quantization import path_taken

SIMULATED = Path(__file__).with_suffix(".json")
STEP = 128  # tokens: lengths are tried in multiples of it
BEYOND = 1.005  # the long sequence's peak is at least so many times the cap: AdamW cannot have it by a rounding


def build(plan: TrainingPlan, device: torch.device) -> nn.Module:
    """The plan's model with synthetic weights; linear layers are quantized one at a time on the device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(plan.config, dtype=plan.dtype, attn_implementation="sdpa")
    head = output_head(model)
    model.requires_grad_(False)
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and linear is not head:
            weight = torch.randn(linear.weight.shape, dtype=plan.dtype, device=device).mul_(linear.in_features**-0.5)
            layer = QLoRALinear(
                quantize(weight, plan.datatype, plan.block_size, plan.double_quant), None, plan.rank, plan.alpha
            )
            layer.lora_A = nn.Parameter(layer.lora_A.detach().to(plan.adapter_dtype))
            layer.lora_B = nn.Parameter(layer.lora_B.detach().to(plan.adapter_dtype))
            replace_module(model, name, layer)
            del weight
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                value = torch.randn(parameter.shape, dtype=parameter.dtype, device=device).mul_(0.02)
                if parameter.ndim == 1:  # a norm
                    value.fill_(1)
                setattr(module, name, nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=plan.config).to(device)  # its buffers are computed, not loaded
    model.train()
    enable_checkpointing(model, plan.checkpointing)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what quantizing left behind in pieces would count against the cap
    return model


def counters(device: torch.device) -> dict[str, int]:
    """Bytes as different counters see them; the peak is that since `forget_peak`."""
    seen = {"resident memory of the process": psutil.Process().memory_info().rss}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        seen |= {"torch allocator": torch.cuda.memory_allocated(device), "driver, all processes": total - free}
        seen["torch allocator's peak in this step"] = torch.cuda.max_memory_allocated(device)
    return seen


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def measured(plan: TrainingPlan, model: nn.Module, device: torch.device) -> dict:
    """The step's ledger, the allocator's peak, and tokens a second."""
    optimizer = build_optimizer(plan, model)
    train_step(plan, model, optimizer)  # makes the state, compiles kernels
    forget_peak(device)
    with MemoryTrace(model, optimizer) as trace:
        train_step(plan, model, optimizer)
    found = {"ledger peak": trace.peak, "ledger by category": trace.by_category}
    if device.type == "cuda":
        found["allocator peak"] = torch.cuda.max_memory_allocated(device)
    times = []
    for _ in range(3):
        synchronize(device)
        start = time.perf_counter()
        train_step(plan, model, optimizer)
        synchronize(device)
        times.append(time.perf_counter() - start)
    tokens = plan.batch_size * plan.sequence_length
    return found | {"step seconds": [round(t, 3) for t in times], "tokens per second": round(tokens / min(times), 1)}


def with_length(plan: TrainingPlan, length: int) -> TrainingPlan:
    return replace(plan, sequence_length=length, supervised_tokens=plan.batch_size * (length - 1))


def under_pressure(plan, model: nn.Module, device: torch.device, make, length: int, peak: int, save) -> None:
    """Two short steps, one with `length` tokens, whose `peak` is known, a short one again.

    What happened, and what the counters saw, is given to `save` after each step.
    """
    long = with_length(plan, length)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    steps, optimizer = [], make()
    try:
        for number, each in enumerate((plan, plan, long, plan)):
            forget_peak(device)  # else what an earlier step took, or failed to take, would count as this one's
            paged = isinstance(optimizer, PagedAdamW)
            try:
                if number == 2 and paged and device.type == "cuda":
                    optimizer.relieve_pressure(peak - torch.cuda.memory_allocated(device))
                train_step(each, model, optimizer)
                outcome = "done"
            except torch.cuda.OutOfMemoryError:
                outcome = "out of memory"
            step = {"tokens": each.sequence_length, "outcome": outcome, **counters(device)}
            if outcome != "done":  # here, where the error with its frames is gone, and with them what they held
                model.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
            if paged:
                step["pages"] = optimizer.residency()
            steps.append(step)
            save({"length": length, "steps": steps})
    finally:
        if isinstance(optimizer, PagedAdamW):
            optimizer.close()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def simulate(model: str, plan: TrainingPlan, cap: float, report=print) -> dict:
    """What the plan's step takes, and the sequence that fits `cap` bytes only if the optimizer's state goes.

    "long": the shortest, in multiples of 128 tokens, whose peak is above the cap by half a percent. "fits": the longest
    whose peak is below the cap.
    """

    def peak(length: int) -> int:
        if length not in known:
            known[length] = simulate_training(device="cpu", **with_length(plan, length).__dict__).peak
            report(f"{length} tokens: {known[length] / 1e9:.2f} GB", flush=True)
        return known[length]

    trace = simulate_training(device="cpu", **plan.__dict__)
    known = {plan.sequence_length: trace.peak}
    found = {
        "model": model,
        "rank": plan.rank,
        "tokens": plan.sequence_length,
        "cap bytes": round(cap),
        "simulated peak": trace.peak,
        "simulated by category": trace.by_category,
    }
    for name, limit in (("fits", cap), ("long", BEYOND * cap)):
        low, high = plan.sequence_length // STEP, 2**16 // STEP  # below the limit; above it
        if peak(low * STEP or plan.sequence_length) > limit:
            raise ValueError(f"{plan.sequence_length} tokens already take more than {cap / 1e9:g} GB")
        if peak(high * STEP) <= limit:
            raise ValueError(f"{high * STEP} tokens fit {cap / 1e9:g} GB: give a smaller --cap")
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if peak(middle * STEP) > limit else (middle, high)
        length = (low if name == "fits" else high) * STEP
        found[name] = {"tokens": length, "simulated peak": peak(length)}
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-65b", help="a preset of qlora_lab.memory.plan")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--cap", type=float, default=48.0, help="GB that this process may take of the card")
    parser.add_argument("--simulate", action="store_true", help=f"compute and write {SIMULATED.name}, and no more")
    parser.add_argument("--simulated", type=Path, default=SIMULATED, help="what --simulate wrote")
    parser.add_argument("--long", type=int, help="tokens of the long sequence, instead of those in the file")
    parser.add_argument("--long-peak", type=int, help="bytes that a step with them takes; else simulated now: a minute")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    args = parser.parse_args(arguments)
    half = {"dtype": torch.bfloat16, "adapter_dtype": torch.bfloat16}  # in 32 bits adapters would leave the cap no room
    plan = TrainingPlan(args.model, "qlora", args.rank, 1, args.length, checkpointing="non-reentrant", **half)
    if args.simulate:
        write_json(args.simulated, simulate(args.model, plan, args.cap * 1e9) | {"versions": versions()})
        return
    if args.out is None:
        parser.error("--out is missing: where the JSON goes")
    expected = json.loads(args.simulated.read_text(encoding="utf-8")) if args.simulated.exists() else {}
    wanted = {"model": args.model, "rank": args.rank, "tokens": args.length, "cap bytes": round(args.cap * 1e9)}
    if {name: expected.get(name) for name in wanted} != wanted:
        expected = wanted  # the file is about another step: what is missing is simulated here
    if args.long:
        expected["long"] = {"tokens": args.long, "simulated peak": args.long_peak}
    print(json.dumps(record(plan, torch.device(args.device), args.cap * 1e9, expected, args.out), indent=2))


def record(plan: TrainingPlan, device: torch.device, cap: float, expected: dict, out: Path) -> dict:
    """Take the step, then the long one; `out` is written whole after each part, as what comes next may be cut off.

    Args:
        expected: of `simulate`. Without a "simulated peak" that is simulated here; without a "long", or one without a
            peak, likewise.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total), device)
    if "simulated peak" not in expected:
        trace = simulate_training(device="cpu", **plan.__dict__)
        expected |= {"simulated peak": trace.peak, "simulated by category": trace.by_category}
    found = {name: value for name, value in expected.items() if name != "versions"}
    start = time.perf_counter()
    model = build(plan, device)
    found["build seconds"] = round(time.perf_counter() - start, 1)
    found["path taken"] = path_taken(device.type)
    write_json(out, found)
    found |= measured(plan, model, device)
    found["path taken"] = path_taken(device.type)
    found["ledger / simulation"] = round(found["ledger peak"] / found["simulated peak"], 4)
    if "allocator peak" in found:
        found["allocator / simulation"] = round(found["allocator peak"] / found["simulated peak"], 4)
    write_json(out, found)

    if "long" not in found:
        found["long"] = {"tokens": 2 * plan.sequence_length, "simulated peak": None}
    length, peak = found["long"]["tokens"], found["long"]["simulated peak"]
    if peak is None:
        peak = simulate_training(device="cpu", **with_length(plan, length).__dict__).peak
        found["long"]["simulated peak"] = peak
    trained = [p for p in model.parameters() if p.requires_grad]
    found["under pressure"] = {
        "bitsandbytes": "left out: torch's cap does not count managed memory, so its state, "
        "which is, would be under no pressure"
    }
    with tempfile.TemporaryDirectory() as folder:
        budget = "auto" if device.type == "cuda" else 4 * 2**20
        sides = {
            "PagedAdamW": lambda: PagedAdamW(trained, lr=1e-4, device_budget=budget, directory=folder),
            "torch.optim.AdamW": lambda: build_optimizer(plan, model),
        }
        for name, make in sides.items():

            def save(steps, name=name):
                found["under pressure"][name] = steps
                write_json(out, found)

            under_pressure(plan, model, device, make, length, peak, save)
    return found


if __name__ == "__main__":
    main()
