"""Two ways to train an adapter that a merged 4-bit file keeps; each leaves a run's folder for `ways_home.py`.

    python benchmarks/survive_merging.py folded RUN OUT           trains anew, by RUN's plan
    python benchmarks/survive_merging.py aware RUN OUT            goes on from RUN's adapter, for a few steps

Both are for a base in int4_affine: a block of weights is its minimum plus codes times a step.

*folded*: A has one number for each block of inputs (QA-LoRA, arXiv 2309.14717). What the adapter adds is then the same
for all weights of a block, so the block's minimum takes it, and no code changes.

*aware*: the forward pass computes with base and adapter merged and rounded, as the file will have them. The gradient
passes the rounding as if it were not there, to A and B.
"""

import argparse
import shutil
from pathlib import Path

import torch
from torch import nn

from qlora_lab.cli.run_data import read_data
from qlora_lab.lora import adapted_layers, replace_module
from qlora_lab.models import load_model, save_adapter
from qlora_lab.quantization import quantize
from qlora_lab.training.loop import finetune
from qlora_lab.training.run_plan import load_run, quantize_as, read_plan


def same_within_blocks(a: torch.Tensor, block_size: int) -> torch.Tensor:
    """(r, in) with each block of inputs at its mean."""
    return a.unflatten(1, (-1, block_size)).mean(2).repeat_interleave(block_size, 1)


def folded(run: Path, out: Path, steps: int | None) -> None:
    plan = read_plan(run)
    data = read_data(plan)
    torch.manual_seed(plan.settings.get("seed", 0))
    model = quantize_as(plan, load_model(plan.model, dtype=torch.float32))
    for _, layer in adapted_layers(model):
        with torch.no_grad():  # the first number of each block for all: as large as the sum over a block wants it
            layer.lora_A.copy_(layer.lora_A[:, :: plan.block_size].repeat_interleave(plan.block_size, 1))
        layer.lora_A.register_hook(lambda gradient: same_within_blocks(gradient, plan.block_size))
    settings = plan.settings | ({"steps": steps} if steps else {})
    result = finetune(model, data.tokenizer, data.train, **settings)
    for name, layer in adapted_layers(model):
        if not torch.equal(layer.lora_A, layer.lora_A[:, :: plan.block_size].repeat_interleave(plan.block_size, 1)):
            raise RuntimeError(f"A of {name} did not stay constant within its blocks")
    out.mkdir(parents=True)
    save_adapter(model, out / "adapter")
    print(f"folded: {len(result.records)} steps, last loss {result.records[-1].loss:.4f}")


class Rounded(nn.Module):
    """A layer that computes with base and adapter merged and rounded."""

    def __init__(self, layer: nn.Module, datatype: str, block_size: int):
        super().__init__()
        self.lora_A, self.lora_B, self.scaling = layer.lora_A, layer.lora_B, layer.scaling
        self.register_buffer("base", layer.base_weight().float(), persistent=False)
        self.kind = datatype, block_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.base + self.scaling * (self.lora_B @ self.lora_A)
        with torch.no_grad():
            off = quantize(weight, *self.kind).dequantize() - weight
        return nn.functional.linear(x, weight + off)


def aware(run: Path, out: Path, steps: int | None) -> None:
    model, _, plan = load_run(run)
    data = read_data(plan)
    layers = dict(adapted_layers(model))
    for path, layer in layers.items():
        for parameter in (layer.lora_A, layer.lora_B):
            parameter.requires_grad_(True)
        replace_module(model, path, Rounded(layer, plan.datatype, plan.block_size))
    settings = plan.settings | {"steps": steps or 40, "learning_rate": plan.settings["learning_rate"] / 3, "seed": 1}
    result = finetune(model, data.tokenizer, data.train, **settings)
    for path, layer in layers.items():
        replace_module(model, path, layer)
    out.mkdir(parents=True)
    save_adapter(model, out / "adapter")
    print(f"aware: {len(result.records)} steps, loss {result.records[0].loss:.4f} to {result.records[-1].loss:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=("folded", "aware"))
    parser.add_argument("run", type=Path, help="folder of a finished run beside int4_affine")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--steps", type=int, help="instead of the plan's, or of 40")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} is there already")
    if read_plan(arguments.run).datatype != "int4_affine":
        parser.error("the run was not trained beside int4_affine, whose blocks have a minimum")
    (folded if arguments.way == "folded" else aware)(arguments.run, arguments.out, arguments.steps)
    shutil.copy(arguments.run / "run.json", arguments.out / "run.json")


if __name__ == "__main__":
    main()
