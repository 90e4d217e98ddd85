"""Side-by-side races against the libraries, interleaved in one process, as ratios of medians.

    python benchmarks/race.py                 all races; writes benchmarks/results/race-<device>.json
    python benchmarks/race.py kernels step    only these

Runs alternate (ours, theirs, ours, theirs, ...), so that a machine whose speed drifts slows both. Each race first
proves that both sides compute the same. Times are milliseconds; a ratio "theirs / ours" above 1 means that this package
is faster.

On a GPU the proof is a count: bitsandbytes' CUDA build is compiled with fast math, so a code in many millions may be a
neighbour. How many differ is recorded, whether that is few enough stands beside it as "accepted", and the times are
taken in any case; in the race of steps our side takes over its codes. On a CPU every bit has to be equal. Without
bitsandbytes our side runs alone.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from qlora_lab.machine import default_device

ROOT = Path(__file__).resolve().parent.parent
TORCHAO = ROOT / ".venv" / "torchao"
DEVICE = default_device()
RANK, ALPHA, BATCH, LENGTH = 8, 16, 8, 48
SIDE = 4096  # rows and columns of the matrix of `kernels`
FEW = 1e-6  # share of codes, or of decoded weights, that may differ from bitsandbytes' on a GPU


def interleaved(sides: dict, rounds: int, warmup: int = 2) -> dict[str, dict[str, float]]:
    """Call the sides in turn `rounds` times; median, minimum and maximum of each in milliseconds."""
    times = {name: [] for name in sides}
    for round_ in range(warmup + rounds):
        for name, function in sides.items():
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            if round_ >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"median_ms": round(statistics.median(t), 3), "min_ms": round(min(t), 3), "max_ms": round(max(t), 3)}
        for name, t in times.items()
    }


def synchronize() -> None:
    if DEVICE.type != "cpu":
        torch.get_device_module(DEVICE).synchronize()


def ratios(times: dict, ours: str = "ours") -> dict[str, float]:
    return {
        f"{name} / {ours}": round(t["median_ms"] / times[ours]["median_ms"], 2)
        for name, t in times.items()
        if name != ours
    }


def accepted(right: bool, checked: dict) -> dict:
    """`checked` with the verdict. On a CPU a wrong result ends the race; a GPU's time is too dear for that."""
    if DEVICE.type == "cpu":
        assert right, checked
    return checked | {"accepted": bool(right)}


def differing_codes(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """How many 4-bit codes differ, of two uint8 tensors that hold two each."""
    difference = ours.view(-1) ^ theirs.view(-1)
    return int(((difference & 15) != 0).sum() + ((difference >> 4) != 0).sum())


def compare_codes(weight: torch.Tensor, mine, functional) -> tuple[dict, tuple]:
    """Our quantized weight against bitsandbytes': counts of what differs, and its codes and state."""
    codes, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    # decoding is compared on the same codes and scales, so that a code that differs does not count twice
    same = replace(mine, codes=codes.view(-1), stored={"scales": state.absmax})
    decoded = int((same.dequantize() != functional.dequantize_4bit(codes, state)).sum())
    checked = {
        "codes that differ from bitsandbytes'": differing_codes(mine.codes, codes),
        "scales that differ": int((mine.scales != state.absmax).sum()),
        "decoded weights that differ": decoded,
        "of weights": weight.numel(),
    }
    few = 0 if DEVICE.type == "cpu" else FEW * weight.numel()
    right = checked["codes that differ from bitsandbytes'"] <= few and decoded <= few
    return accepted(right and not checked["scales that differ"], checked), (codes, state)


def kernels(rounds: int) -> dict:
    """Quantize and dequantize a 4096 x 4096 matrix, against bitsandbytes and, where installed, torchao."""
    from qlora_lab import quantize
    from qlora_lab.quantization import path_taken

    torch.manual_seed(0)
    results = {}
    functional, missing = bitsandbytes()
    nf4tensor = torchao()
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        weight = torch.randn(SIDE, SIDE, device=DEVICE).to(dtype)
        mine = quantize(weight)
        double = quantize(weight, double_quant=True)
        sides_q, sides_d = {"ours": lambda w=weight: quantize(w)}, {"ours": lambda m=mine: m.dequantize()}
        checked = {}
        if functional:
            checked, (codes, state) = compare_codes(weight, mine, functional)
            sides_q["bitsandbytes"] = lambda w=weight: functional.quantize_4bit(w, quant_type="nf4", blocksize=64)
            sides_d["bitsandbytes"] = lambda c=codes, s=state: functional.dequantize_4bit(c, s)
        if nf4tensor:
            theirs = nf4tensor(weight, block_size=64, scaler_block_size=256)
            off = (
                theirs.get_original_weight().float() - mine.dequantize().float()
            ).abs().mean() / weight.float().abs().mean()
            checked["mean |difference| to torchao / mean |weight|"] = round(off.item(), 5)  # its table has 4 decimals
            sides_q["torchao"] = lambda w=weight: nf4tensor(w, block_size=64, scaler_block_size=256)
            sides_d["torchao"] = lambda t=theirs: t.get_original_weight()
        sides_d["ours, double-quantized"] = lambda d=double: d.dequantize()
        for what, sides in (("quantize", sides_q), ("dequantize", sides_d)):
            times = interleaved(sides, rounds)
            results[f"{what} {name}"] = {"times": times, "ratios": ratios(times), "checked": checked}
    return results | {"path taken": path_taken(DEVICE.type)} | missing


def step(rounds: int) -> dict:
    """One training step of the default model, against PEFT + bitsandbytes: same batch, rank, targets, double quant."""
    from qlora_lab.quantization import path_taken

    ours, batch = our_model(), make_batch()
    theirs, checked = their_model_or_reason()
    sides = {"ours": lambda: our_step(ours, batch)}
    if theirs is not None:
        copy_adapters(ours, theirs)
        checked = copy_weights(ours, theirs) | compare_gradients(ours, theirs, batch)
        sides["PEFT + bitsandbytes"] = lambda: their_step(theirs, batch)
    trainers = list(sides)
    sides["matrix products alone"] = matrix_products(ours, batch)
    times = interleaved(sides, rounds)
    tokens = int(batch[1].sum())
    return {
        "times": times,
        "ratios": ratios(times),
        "tokens": tokens,
        "tokens_per_second": {name: round(1e3 * tokens / times[name]["median_ms"]) for name in trainers},
        "checked": checked,
        "path taken": path_taken(DEVICE.type),
    }


def products(rounds: int) -> dict:
    """Our step, and the same step with PyTorch's own float32 products: is `machine.matmul` worth its code here?"""
    from qlora_lab.machine.matmul import plain

    model, batch = our_model(), make_batch()

    def with_pytorchs_own():
        with plain():
            our_step(model, batch)

    sides = {"ours": lambda: our_step(model, batch), "PyTorch's own products": with_pytorchs_own}
    times = interleaved(sides, rounds)
    return {"times": times, "ratios": ratios(times)}


def memory() -> dict:
    """Peak memory of a training step, each side in a process of its own."""
    peaks, missing = {}, {}
    for side in ("ours", "PEFT + bitsandbytes"):
        command = [sys.executable, str(Path(__file__)), "--peak-of", side]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            peaks[side] = json.loads(done.stdout.strip().splitlines()[-1])
        elif side == "ours" or (DEVICE.type == "cpu" and bitsandbytes()[0]):
            raise RuntimeError(f"{side}: {done.stderr.strip()[-1500:]}")
        else:
            missing["left out"] = f"{side}: {(done.stderr.strip().splitlines() or ['no message'])[-1][:500]}"
    if len(peaks) < 2:
        return {"peaks": peaks} | missing
    ratio = {
        f"ours / PEFT + bitsandbytes, {what}": round(peaks["ours"][what] / peaks["PEFT + bitsandbytes"][what], 3)
        for what in peaks["ours"]
    }
    return {"peaks": peaks, "ratios": ratio}


def peak_of(side: str) -> dict[str, float]:
    """MB at the peak of a step: everything that the model and the step hold, and the step's growth alone."""
    imports = rss()
    model = our_model() if side == "ours" else their_model()
    run = our_step if side == "ours" else their_step
    batch = make_batch()
    run(model, batch, optimize=False)  # compiles, and lets libraries make their workspaces
    model.zero_grad(set_to_none=True)
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(model, batch, optimize=False)
        peak = torch.cuda.max_memory_allocated()
        return {"model and step": peak / 1e6, "step": (peak - before) / 1e6}
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what loading left behind in the allocator is not the step's
    before = rss()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    run(model, batch, optimize=False)
    peak = rss("VmHWM")
    return {"model and step": round((peak - imports) / 1e6, 1), "step": round((peak - before) / 1e6, 1)}


def rss(field: str = "VmRSS") -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def our_model():
    from qlora_lab import load_model, quantize_model

    model = load_model(device=DEVICE, dtype=torch.float32)
    torch.manual_seed(0)
    return quantize_model(model, rank=RANK, alpha=ALPHA).train()


def their_model():
    import peft
    import transformers

    from qlora_lab.models import ensure_default_model

    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(
        ensure_default_model(), quantization_config=config, dtype=torch.float32, device_map={"": DEVICE}
    )
    lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(base, lora).train()  # never eval(): on a CPU it would lose the input's gradient


def make_batch():
    """The first training examples of about the same length, padded to it: ids, mask, labels."""
    from qlora_lab import load_tokenizer
    from qlora_lab.tasks import encode, load_examples, pad_batch

    tokenizer = load_tokenizer()
    encoded = [encode(example, tokenizer) for example in load_examples("train")]
    chosen = [pair for pair in encoded if LENGTH - 4 <= len(pair[0]) <= LENGTH][:BATCH]
    batch = pad_batch(chosen, tokenizer.pad_token_id).to(DEVICE)
    return batch.input_ids, batch.attention_mask, batch.labels


def our_step(model, batch, optimize: bool = True) -> float:
    from qlora_lab.loss import supervised_loss_sum

    supervised = (batch[2][:, 1:] != -100).sum()
    loss = supervised_loss_sum(model, *batch) / supervised
    loss.backward()
    if optimize:
        update(model)
    return loss.item()


def their_step(model, batch, optimize: bool = True) -> float:
    loss = model(input_ids=batch[0], attention_mask=batch[1], labels=batch[2], use_cache=False).loss
    loss.backward()
    if optimize:
        update(model)
    return loss.item()


def update(model) -> None:
    if not hasattr(model, "_race_optimizer"):
        object.__setattr__(
            model, "_race_optimizer", torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
        )
    model._race_optimizer.step()
    model._race_optimizer.zero_grad(set_to_none=True)


def copy_adapters(ours, theirs) -> None:
    """Give both sides the same A, and a B that is not zero (with B = 0 the gradient of A would be zero)."""
    from qlora_lab.lora import adapted_layers

    peft_layers = dict(theirs.named_modules())
    torch.manual_seed(1)
    with torch.no_grad():
        for path, layer in adapted_layers(ours):
            layer.lora_B.normal_(std=0.02)
            other = peft_layers[f"base_model.model.{path}"]
            other.lora_A["default"].weight.copy_(layer.lora_A)
            other.lora_B["default"].weight.copy_(layer.lora_B)


def copy_weights(ours, theirs) -> dict:
    """Take over bitsandbytes' 4-bit codes, and its 8-bit codes of the scales; how many of the former differed.

    On a CPU the 4-bit codes are equal already, and it rounds about 0.16 % of the scales to the neighbour.
    """
    from qlora_lab.lora import adapted_layers

    modules = dict(theirs.named_modules())
    differing = total = 0
    for path, layer in adapted_layers(ours):
        weight = modules[f"base_model.model.{path}"].base_layer.weight
        state = weight.quant_state
        differing, total = differing + differing_codes(layer.codes.data, weight.data), total + layer.encoded_elements
        layer.codes.data = weight.data.view(-1).clone()
        layer.scale_codes.data = state.absmax.clone()
        layer.scale_scales.data = state.state2.absmax.clone()
        layer.scale_offset.data = state.offset.clone().view(layer.scale_offset.shape)
    checked = {"codes that differ from bitsandbytes'": differing, "of weights": total}
    return accepted(differing <= (0 if DEVICE.type == "cpu" else FEW * total), checked)


def compare_gradients(ours, theirs, batch) -> dict:
    from qlora_lab.lora import adapted_layers

    losses = our_step(ours, batch, optimize=False), their_step(theirs, batch, optimize=False)
    peft_layers, worst = dict(theirs.named_modules()), 0.0
    for path, layer in adapted_layers(ours):
        other = peft_layers[f"base_model.model.{path}"]
        for mine, yours in (
            (layer.lora_A, other.lora_A["default"].weight),
            (layer.lora_B, other.lora_B["default"].weight),
        ):
            worst = max(worst, ((mine.grad - yours.grad).norm() / yours.grad.norm()).item())
    ours.zero_grad(set_to_none=True)
    theirs.zero_grad(set_to_none=True)
    # float32 sums in another order; a wrong term would be of the order of one
    right = abs(losses[0] - losses[1]) < 1e-4 * abs(losses[1]) and worst < 1e-3
    checked = {"loss ours": losses[0], "loss theirs": losses[1], "largest relative difference of a gradient": worst}
    return {"steps": accepted(right, checked)}


def matrix_products(model, batch):
    """The products with frozen weights that any such step needs: x W^T, g W, and the head where labelled."""
    from qlora_lab.lora import adapted_layers
    from qlora_lab.machine.matmul import matmul

    tokens, labelled = batch[0].numel(), int((batch[2][:, 1:] != -100).sum())
    shapes = [(layer.out_features, layer.in_features) for _, layer in adapted_layers(model)]
    weights = {shape: torch.randn(shape, device=DEVICE) for shape in set(shapes)}
    head = model.get_output_embeddings().weight.detach()
    inputs = {n: torch.randn(tokens, n, device=DEVICE) for shape in shapes for n in shape}
    some = torch.randn(labelled, head.shape[1], device=DEVICE)
    logits = torch.randn(labelled, head.shape[0], device=DEVICE)

    def run():
        for out, in_ in shapes:
            matmul(inputs[in_], weights[out, in_].t())
            matmul(inputs[out], weights[out, in_])
        matmul(some, head.t())
        matmul(logits, head)

    return run


def bitsandbytes() -> tuple:
    """Its `functional` module, if it works on this device, and {"left out": why} where it does not."""
    try:
        import bitsandbytes.functional as functional

        codes, state = functional.quantize_4bit(torch.randn(64, 64, device=DEVICE), quant_type="nf4", blocksize=64)
        functional.dequantize_4bit(codes, state)
    except Exception as error:  # its library may be missing for this device, or fail to load: errors of many kinds
        reason = f"bitsandbytes does not work here ({type(error).__name__}: {str(error)[:300]})"
        if isinstance(error, ImportError):
            reason = f"bitsandbytes is not installed ({error})"
        print(f"{reason}: raced without it", file=sys.stderr)
        return None, {"left out": reason}
    return functional, {}


def their_model_or_reason() -> tuple:
    """PEFT's model on bitsandbytes', and nothing; or None and {"left out": why}."""
    functional, missing = bitsandbytes()
    if functional is None:
        return None, missing
    try:
        return their_model(), {}
    except Exception as error:
        if DEVICE.type == "cpu":
            raise
        return None, {"left out": f"PEFT + bitsandbytes: {type(error).__name__}: {str(error)[:500]}"}


def torchao():
    with contextlib.suppress(ImportError):
        import peft  # noqa: F401  (PEFT would load torchao if it could see it, and complain)

    if TORCHAO.is_dir():
        sys.path.append(str(TORCHAO))
    try:
        from torchao.dtypes.nf4tensor import to_nf4
    except ImportError:
        try:
            from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4
        except ImportError:
            print("torchao is not installed: raced without it", file=sys.stderr)
            return None
    return to_nf4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    races = ["kernels", "step", "memory", "products"]
    parser.add_argument("races", nargs="*", default=races, help=f"of {', '.join(races)}; default: all")
    parser.add_argument("--rounds", type=int, default=15, help="counted runs of each side")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.races) - set(races):
        parser.error(f"unknown race {min(unknown)!r}; choose from {', '.join(races)}")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    if args.peak_of:
        print(json.dumps(peak_of(args.peak_of)))
        return
    from qlora_lab.machine import describe, versions
    from qlora_lab.machine.files import write_json

    record = {"date": date.today().isoformat(), "machine": describe(), "versions": versions(), "races": {}}
    for name in args.races:
        result = {
            "kernels": lambda: kernels(args.rounds),
            "step": lambda: step(max(5, args.rounds // 2)),
            "memory": memory,
            "products": lambda: products(max(5, args.rounds)),
        }[name]()
        record["races"][name] = result
        print(json.dumps({name: result}, indent=2), flush=True)
    out = args.out or ROOT / "benchmarks" / "results" / f"race-{DEVICE.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, record)
    print(f"written to {os.path.relpath(out)}")


if __name__ == "__main__":
    main()
