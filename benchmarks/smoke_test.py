"""What works on this device, in ten lines, each within seconds: the first thing that a GPU session is asked.

    python benchmarks/smoke_test.py [--device cuda]

What the device computes is compared with the definitions on the CPU, and each line says which path was taken: compiled
kernels, or plain PyTorch and why. A line that fails takes nothing from the others.
"""

import argparse
import importlib.util
import tempfile
import time
import traceback
from collections.abc import Callable

NEEDED = (
    *("torch", "transformers", "safetensors", "gguf", "numpy", "matplotlib", "typer", "rich", "jinja2", "filelock"),
    *("platformdirs", "psutil"),
)


ESSENTIAL = ("QLoRA layer", "a step of a small model")  # wrong results here make all others worthless
OPTIONAL = ("bitsandbytes",)


def run(device: str, tiny: bool = False, save: Callable[[dict], None] = lambda value: None) -> dict:
    """All checks. Gives `save` what there is before each of them, so that one that hangs is named.

    Returns:
        {"lines": what to read, "wrong": names of checks that found something wrong, "failed": of those that should be
        repaired before anything else runs}.
    """
    import torch

    side = 512 if tiny else 4096
    checks = {
        "what is here": lambda: what_is_here(device),
        "float32": lambda: quantization(device, torch.float32, side),
        "bfloat16": lambda: quantization(device, torch.bfloat16, side),
        "float16": lambda: quantization(device, torch.float16, side),
        "double-quantized": lambda: quantization(device, torch.bfloat16, side, double=True),
        "QLoRA layer": lambda: layer(device, tiny),
        "PagedAdamW": lambda: paged_steps(device, None),
        "PagedAdamW, state elsewhere": lambda: paged_steps(device, 0),
        "a step of a small model": lambda: model_step(device),
        "bitsandbytes": lambda: reference(device, side),
    }
    lines, wrong, failed = [], [], []
    for name, check in checks.items():
        save({"lines": lines, "wrong": wrong, "failed": failed, "at": name})
        start = time.perf_counter()
        try:
            right, told = check()
            verdict = "ok" if right else "WRONG"
        except Exception as error:
            traceback.print_exc()
            right, verdict, told = False, "FAILED", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if not right:
            wrong.append(name)
        if name not in OPTIONAL and (verdict == "FAILED" or (name in ESSENTIAL and not right)):
            failed.append(name)
        lines.append(f"{verdict:6} {name}: {told} ({time.perf_counter() - start:.1f} s)")
        print(lines[-1], flush=True)
    return {"lines": lines, "wrong": wrong, "failed": failed}


def what_is_here(device: str) -> tuple[bool, str]:
    """Versions, memory, and what of the package's dependencies is missing."""
    import torch

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    told = f"torch {torch.__version__}"
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        told += f", CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}, {free / 1e9:.1f} of {total / 1e9:.1f} GB"
        told += f" free, compute capability {torch.cuda.get_device_capability()}"
    import qlora_lab  # noqa: F401

    return not missing, told + (f"; missing: {', '.join(missing)}" if missing else "")


def path(device: str) -> str:
    """Which path large weights took so far, in words."""
    from qlora_lab.quantization import path_taken

    taken = path_taken(device)
    if taken["given up"]:
        return f"plain PyTorch ({taken['given up'][:200]})"
    told = f"compiled: {', '.join(taken['compiled and proved']) or 'nothing'}"
    if reason := taken.get("decoder in Triton given up"):
        told += f"; the decoder in Triton was given up ({reason[:200]})"
    return told


def quantization(device: str, dtype, side: int, double: bool = False) -> tuple[bool, str]:
    """Quantize and decode a matrix there, against the definitions on the CPU."""
    import torch

    from qlora_lab.quantization import quantize, set_compile

    weight = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = set_compile("never")
    expected = quantize(weight, double_quant=double)
    decoded = expected.dequantize()
    set_compile(before)
    there = weight.to(device)
    mine = quantize(there, double_quant=double)
    difference = mine.codes.cpu() ^ expected.codes
    off = {"codes": int(((difference & 15) != 0).sum() + ((difference >> 4) != 0).sum())}
    for name, tensor in expected.stored.items():
        off[name.replace("_", " ")] = int((mine.stored[name].cpu() != tensor).sum())
    # decoding is asked on its own: from the codes and scales of the CPU
    off["decoded weights"] = int((expected.to(device).dequantize().cpu() != decoded).sum())
    times = [
        f"{what} {milliseconds(device, call):.3f} ms"
        for what, call in (("quantize", lambda: quantize(there, double_quant=double)), ("decode", mine.dequantize))
    ]
    told = ", ".join(f"{count} {name}" for name, count in off.items())
    return not any(off.values()), f"{told} differ of {weight.numel():,} weights; {', '.join(times)}; {path(device)}"


def milliseconds(device: str, call: Callable, rounds: int = 5) -> float:
    """The fastest of a few calls."""
    import torch

    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def layer(device: str, tiny: bool) -> tuple[bool, str]:
    """One QLoRA layer forward and backward, in float32 and bfloat16, against the CPU in float32."""
    import copy

    import torch

    from qlora_lab import QLoRALinear

    torch.manual_seed(0)
    inside, outside, tokens = (128, 192, 16) if tiny else (2048, 4096, 256)
    made = QLoRALinear.from_linear(torch.nn.Linear(inside, outside, bias=False), 8, 16)
    torch.nn.init.normal_(made.lora_B, std=0.02)
    x, g = torch.randn(tokens, inside), torch.randn(tokens, outside)

    def results(on: str, dtype):
        one = copy.deepcopy(made).to(on)
        one.compute_dtype = dtype
        inputs = x.to(on, copy=True).requires_grad_()
        y = one(inputs)
        y.backward(g.to(on))
        return [t.detach().cpu() for t in (y, inputs.grad, one.lora_A.grad, one.lora_B.grad)]

    expected = results("cpu", torch.float32)
    worst = {}
    for dtype, most in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        pairs = zip(results(device, dtype), expected, strict=True)
        worst[dtype] = max(((a - b).norm() / b.norm()).item() for a, b in pairs), most
    right = all(found < most for found, most in worst.values())  # NaN is wrong, too
    told = ", ".join(f"{str(d).removeprefix('torch.')} {found:.1e} of {most:g}" for d, (found, most) in worst.items())
    return right, f"largest relative difference of y, dx, dA, dB: {told}; {path(device)}"


def paged_steps(device: str, budget: int | None) -> tuple[bool, str]:
    """Three steps of PagedAdamW against torch.optim.AdamW, the same gradients."""
    import torch

    from qlora_lab import PagedAdamW

    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape).to(device)) for shape in ((300, 70), (5,), (129, 3), (70_001,))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    reference = torch.optim.AdamW(theirs)
    with (
        tempfile.TemporaryDirectory() as folder,
        PagedAdamW(ours, device_budget=budget, directory=folder, page_size=2**16) as paged,
    ):
        for _ in range(3):
            for p, q in zip(ours, theirs, strict=True):
                p.grad = torch.randn_like(p)
                q.grad = p.grad.clone()
            paged.step()
            reference.step()
        moved = sum(paged.bytes_moved.values())
        held = {tier: count for tier, count in paged.residency().items() if count}
    off = sum(int((p != q).sum()) for p, q in zip(ours, theirs, strict=True))
    return off == 0, f"{off} weights differ from torch.optim.AdamW's after three steps; {moved:,} bytes moved, {held}"


def model_step(device: str) -> tuple[bool, str]:
    """A training step of a small Llama in 4 bits: the loss against the CPU's, the ledger against the allocator."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from qlora_lab import MemoryTrace, quantize_model
    from qlora_lab.loss import supervised_loss_sum

    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
    )
    losses = {}
    told = ""
    for on in ("cpu", device):
        torch.manual_seed(0)
        model = quantize_model(LlamaForCausalLM(config).to(on), rank=8, alpha=16).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        tokens = torch.arange(2 * 64).view(2, 64).to(on)
        for traced in (False, False, True):
            with MemoryTrace(model, optimizer) if traced else torch.enable_grad() as trace:
                if traced and on == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                loss = supervised_loss_sum(model, tokens, torch.ones_like(tokens), tokens) / tokens.numel()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.setdefault(on, []).append(loss.item())
        if on == device:
            told = f"; ledger {trace.peak / 1e6:.2f} MB"
            if on == "cuda":
                told += f", allocator {torch.cuda.max_memory_allocated() / 1e6:.2f} MB"
    off = max(abs(a - b) / abs(b) for a, b in zip(losses[device], losses["cpu"], strict=True))
    return off < 1e-3, f"largest relative difference of three losses {off:.1e}{told}"


def reference(device: str, side: int) -> tuple[bool, str]:
    """bitsandbytes' codes against ours, if it is there and works. Without it nothing is wrong."""
    import race
    import torch

    from qlora_lab import quantize

    race.DEVICE = torch.device(device)
    functional, missing = race.bitsandbytes()
    if functional is None:
        return True, missing["left out"]
    weight = torch.randn(side, side, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).to(device)
    checked, _ = race.compare_codes(weight, quantize(weight), functional)
    return checked["accepted"], ", ".join(f"{name} {value}" for name, value in checked.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a matrix of 512 x 512 instead of 4096")
    args = parser.parse_args()
    raise SystemExit(1 if run(args.device, args.tiny)["wrong"] else 0)


if __name__ == "__main__":
    main()
