"""A QLoRA step of a model of 65 billion parameters on one card, under a cap of 48 GB: measured, and as simulated.

    python benchmarks/giant_step.py --out giant.json                                 on a GPU of 48 GB or more
    python benchmarks/giant_step.py --model SmolLM2-135M-Instruct --device cpu --out small.json    the same code, small

The weights are synthetic (normal, of the real shapes) and quantized layer by layer on the card, so that nothing larger
than one layer is ever there in 16 bits; what the step computes is meaningless, what it allocates and moves is not.

Three questions. Does the ledger agree with the allocator's own peak and with the simulation? How many tokens a second?
And with a sequence so long that plain AdamW runs out of memory: does the paged optimizer go on? bitsandbytes' paged
optimizer is run under the same pressure where it is installed, with what each counter sees: torch's allocator, the
driver (which counts every process), and the resident memory of this process. It is given managed memory only while the
card has far more free than it could take.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from qlora_lab import PagedAdamW, QLoRALinear, quantize
from qlora_lab.lora import output_head, replace_module
from qlora_lab.machine.files import write_json
from qlora_lab.memory import MemoryTrace, TrainingPlan, simulate_training
from qlora_lab.memory.simulation import build_optimizer, train_step
from qlora_lab.models.gradient_checkpointing import enable_checkpointing


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
    return model


def counters(device: torch.device) -> dict[str, int]:
    """Bytes as different counters see them."""
    seen = {"resident memory of the process": psutil.Process().memory_info().rss}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        seen |= {"torch allocator": torch.cuda.memory_allocated(device), "driver, all processes": total - free}
    return seen


def measured(plan: TrainingPlan, model: nn.Module, device: torch.device) -> dict:
    """The step's ledger, the allocator's peak, and tokens a second."""
    optimizer = build_optimizer(plan, model)
    train_step(plan, model, optimizer)  # makes the state, compiles kernels
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with device, MemoryTrace(model, optimizer) as trace:
        train_step(plan, model, optimizer)
    found = {"ledger peak": trace.peak, "ledger by category": trace.by_category}
    if device.type == "cuda":
        found["allocator peak"] = torch.cuda.max_memory_allocated(device)
    times = []
    for _ in range(3):
        synchronize(device)
        start = time.perf_counter()
        with device:
            train_step(plan, model, optimizer)
        synchronize(device)
        times.append(time.perf_counter() - start)
    tokens = plan.batch_size * plan.sequence_length
    return found | {"step seconds": [round(t, 3) for t in times], "tokens per second": round(tokens / min(times), 1)}


def under_pressure(plan: TrainingPlan, model: nn.Module, device: torch.device, make, length: int) -> dict:
    """Two short steps, one with `length` tokens, a short one again; what happened, and what the counters saw."""
    long = TrainingPlan(**{**plan.__dict__, "sequence_length": length, "supervised_tokens": length - 1})
    found, optimizer = {"length": length, "steps": []}, make()
    try:
        for number, each in enumerate((plan, plan, long, plan)):
            try:
                if number == 2 and isinstance(optimizer, PagedAdamW) and device.type == "cuda":
                    optimizer.relieve_pressure(
                        simulate_training(device="cuda", **long.__dict__).peak - measure_now(device)
                    )
                with device:
                    train_step(each, model, optimizer)
                outcome = "done"
            except torch.cuda.OutOfMemoryError:
                outcome = "out of memory"
                model.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
            step = {"tokens": each.sequence_length, "outcome": outcome, **counters(device)}
            if isinstance(optimizer, PagedAdamW):
                step["pages"] = optimizer.residency()
            found["steps"].append(step)
    finally:
        if isinstance(optimizer, PagedAdamW):
            optimizer.close()
    return found


def measure_now(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bitsandbytes_optimizer(parameters):
    try:
        from bitsandbytes.optim import PagedAdamW32bit
    except ImportError:
        return None
    return lambda: PagedAdamW32bit(parameters, lr=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-65b", help="a preset of qlora_lab.memory.plan")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--long", type=int, default=0, help="tokens of the long sequence; 0: found from the simulation")
    parser.add_argument("--cap", type=float, default=48.0, help="GB that this process may take of the card")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.cap * 1e9 / total), device)
    dtype = torch.bfloat16
    plan = TrainingPlan(args.model, "qlora", args.rank, 1, args.length, checkpointing="non-reentrant", dtype=dtype)
    simulated = simulate_training(device=device.type, **plan.__dict__)
    record = {
        "model": args.model,
        "rank": args.rank,
        "tokens": args.length,
        "cap bytes": round(args.cap * 1e9) if device.type == "cuda" else None,
        "simulated peak": simulated.peak,
        "simulated by category": simulated.by_category,
    }
    start = time.perf_counter()
    model = build(plan, device)
    record["build seconds"] = round(time.perf_counter() - start, 1)
    record |= measured(plan, model, device)
    record["ledger / simulation"] = round(record["ledger peak"] / simulated.peak, 4)
    if "allocator peak" in record:
        record["allocator / simulation"] = round(record["allocator peak"] / simulated.peak, 4)
    write_json(args.out, record)  # what comes next may be cut off

    length = args.long or too_long(plan, args.cap * 1e9)
    trained = [p for p in model.parameters() if p.requires_grad]
    with tempfile.TemporaryDirectory() as folder:
        budget = "auto" if device.type == "cuda" else 4 * 2**20
        sides = {
            "torch.optim.AdamW": lambda: build_optimizer(plan, model),
            "PagedAdamW": lambda: PagedAdamW(trained, lr=1e-4, device_budget=budget, directory=folder),
            "bitsandbytes PagedAdamW32bit": bitsandbytes_optimizer(trained) if device.type == "cuda" else None,
        }
        record["under pressure"] = {}
        for name, make in sides.items():
            record["under pressure"][name] = (
                under_pressure(plan, model, device, make, length) if make else "not installed, or no GPU"
            )
            write_json(args.out, record)
    print(json.dumps(record, indent=2))


def too_long(plan: TrainingPlan, cap: float) -> int:
    """The shortest sequence, in steps of 256 tokens, that fits the cap only if the optimizer's state goes."""
    length = plan.sequence_length
    while length < 65536:
        length += 256
        trace = simulate_training(**{**plan.__dict__, "sequence_length": length, "supervised_tokens": length - 1})
        if trace.peak > cap:
            return length
    return length


if __name__ == "__main__":
    main()
