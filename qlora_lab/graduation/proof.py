"""The graduation: the reader's pieces fine-tune the default model, and what they made is compared.

With the package's own fine-tuning, step by step; with PEFT, which opens the adapter; and with base and adapter merged
into one weight.
"""

import html
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from qlora_lab.evaluation.exact_match import generate
from qlora_lab.graduation.fine_tune import TARGETS, PiecesLinear, Recipe, answering, build, fine_tune
from qlora_lab.graduation.pieces import PIECES, gather
from qlora_lab.machine.environment import default_device
from qlora_lab.machine.files import save_tensors, write_json
from qlora_lab.models import DEFAULT, load_model, load_tokenizer
from qlora_lab.models.base_model import quiet
from qlora_lab.qlora import QLoRALinear, quantize_model
from qlora_lab.tasks import load_examples, parse_calls, spread
from qlora_lab.training.loop import finetune

TOLERANCE = 0.02  # largest difference between the losses of a step, as a share of the package's
MAX_NEW_TOKENS = 96


@dataclass(frozen=True)
class Graduation:
    """What came out.

    Attributes:
        own: for each piece, whether it is the reader's.
        losses, package_losses: of each step, in nats per learned token.
        commands: how many were asked. before, after: how many were answered exactly.
        same_in_peft: answers that PEFT gives letter by letter alike; None: PEFT is not installed.
        same_merged: the same for base and adapter in one weight.
        adapter: the folder it was written to, or None.
    """

    own: dict[str, bool]
    losses: list[float]
    package_losses: list[float]
    commands: int
    before: int
    after: int
    same_in_peft: int | None
    same_merged: int
    adapter: Path | None

    tolerance = TOLERANCE

    @property
    def largest_difference(self) -> float:
        """Between the losses of one step, as a share of the package's."""
        return max(abs(a - b) / b for a, b in zip(self.losses, self.package_losses, strict=True))

    @property
    def passed(self) -> bool:
        """Whether the losses equal the package's, and the adapter means the same elsewhere."""
        alike = [self.same_merged, *([] if self.same_in_peft is None else [self.same_in_peft])]
        return self.largest_difference <= TOLERANCE and all(count == self.commands for count in alike)

    def lines(self) -> list[tuple[str, str]]:
        """What is said of it: (what, outcome)."""
        steps, peft = len(self.losses), "not installed: not compared"
        if self.same_in_peft is not None:
            peft = f"{self.same_in_peft} of {self.commands} answers the same"
        within = "within" if self.largest_difference <= TOLERANCE else "NOT within"
        return [
            ("pieces", f"{sum(self.own.values())} of {len(self.own)} are yours"),
            ("loss", f"{self.losses[0]:.2f} at step 1, {self.losses[-1]:.2f} at step {steps}"),
            ("the package's losses", f"{within} {TOLERANCE:.0%} of these at each of the {steps} steps"),
            ("right answers", f"{self.before} of {self.commands} before, {self.after} after"),
            ("the adapter in PEFT", peft),
            ("merged into the base", f"{self.same_merged} of {self.commands} answers the same"),
            ("graduated", self._graduated()),
        ]

    def _graduated(self) -> str:
        if not self.passed:
            return "no"
        left = sum(not mine for mine in self.own.values())
        return f"in part: {left} pieces are still the finished ones" if left else "yes, by pieces of your own alone"

    def __str__(self) -> str:
        pieces = [f"  {'yours   ' if self.own[name] else 'finished'}  {name:18} {PIECES[name]}" for name in self.own]
        return "\n".join([*pieces, "", *(f"{what:22} {outcome}" for what, outcome in self.lines())])

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        def row(*cells: str) -> str:
            return "<tr>" + "".join(f'<td style="text-align: left">{cell}</td>' for cell in cells) + "</tr>"

        green = '<span style="color: #009E73">✓ yours</span>'
        pieces = [row(green if self.own[name] else "○ finished", name, html.escape(PIECES[name])) for name in self.own]
        told = [row(f"<b>{html.escape(what)}</b>", html.escape(outcome)) for what, outcome in self.lines()]
        tables = f"<table>{''.join(pieces)}</table><table>{''.join(told)}</table>"
        return {"text/plain": str(self), "text/html": tables}


def graduate(
    recipe: Recipe | None = None,
    *,
    commands: int = 24,
    pieces: Mapping[str, Callable] | None = None,
    out: str | os.PathLike | None = None,
    device=None,
    notice: Callable[[str], None] = lambda words: None,
) -> Graduation:
    """Quantize, adapt and fine-tune the default model by the pieces; compare with the package and with PEFT.

    Args:
        recipe: steps and the like.
        commands: of the test split, asked before and after.
        pieces: other functions in the place of some pieces, by exercise.
        out: a folder for the adapter, in PEFT's format.
        device: a torch device or its name. None: "cuda" where there is one, else "cpu". Apple's "mps" has
            to be asked for: a reader's pieces may well compute in float64, which it does not know.
        notice: receives a line before each part of the work, and the loss as it falls.

    Raises:
        WrongPiece: a piece is not right; nothing was trained or written then.
        FileExistsError: `out` is there already.
    """
    recipe = recipe or Recipe()
    if out is not None and Path(out).exists():
        raise FileExistsError(f"{out} is there already; name another folder for the adapter")
    if device is None and default_device().type == "mps":
        device = "cpu"
    chosen, own = gather(pieces)
    tokenizer, examples = load_tokenizer(), load_examples("train")
    asked = spread(load_examples("test"), commands)
    model = load_model(dtype=torch.float32, device=device)
    notice("quantizing 210 matrices by the pieces …")
    layers = build(model, chosen, recipe)

    def right(answers: Sequence[str]) -> int:
        return sum(
            bool(chosen.calls_match(parse_calls(answer), list(example.calls)))
            for answer, example in zip(answers, asked, strict=True)
        )

    def answers_of(model: nn.Module) -> list[str]:
        return generate(model, tokenizer, [example.prompt for example in asked], MAX_NEW_TOKENS)

    notice("asking it, before it has learned anything …")
    with answering(layers):
        before = right(answers_of(model))
    parts = recipe.steps * recipe.accumulation
    first = {path: layer.a.detach().clone() for path, layer in layers.items()}
    notice("the same steps by the package …")
    theirs = _package_losses(first, tokenizer, examples, recipe, device)
    notice(f"training by the pieces, {recipe.steps} steps …")

    def progress(done: int, loss: float) -> None:
        if done % max(1, parts // 10) == 0:
            notice(f"  part {done} of {parts}, loss {loss:.3f}")

    losses = fine_tune(model, layers, tokenizer, examples, chosen, recipe, progress)
    notice("asking it again …")
    with answering(layers):
        answers = answers_of(model)
    notice("the same answers, from base and adapter in one weight, and from PEFT …")
    with tempfile.TemporaryDirectory() as folder:
        adapter = save(layers, recipe, Path(out or folder) / "adapter" if out is None else Path(out))
        in_peft = _in_peft(layers, adapter, answers_of, device)
    for path, layer in layers.items():
        chosen.replace_module(model, path, layer.merged())
    merged = answers_of(model)

    def same(others: list[str] | None) -> int | None:
        return None if others is None else sum(one == other for one, other in zip(answers, others, strict=True))

    return Graduation(
        own, losses, theirs, len(asked), before, right(answers), same(in_peft), same(merged), out and Path(out)
    )


def _package_losses(first: dict[str, torch.Tensor], tokenizer, examples, recipe: Recipe, device) -> list[float]:
    """The losses of `finetune` from the same A and in the same order."""
    model = quantize_model(load_model(dtype=torch.float32, device=device), rank=recipe.rank, alpha=recipe.alpha)
    layers = {path: module for path, module in model.named_modules() if isinstance(module, QLoRALinear)}
    with torch.no_grad():
        for path, layer in layers.items():
            layer.lora_A.copy_(first[path])
    result = finetune(model, tokenizer, examples, **recipe.settings)
    return [record.loss for record in result.records]


def save(layers: dict[str, PiecesLinear], recipe: Recipe, folder: Path) -> Path:
    """The adapter in PEFT's format: A and B under PEFT's names, and what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, layer in layers.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = layer.a.detach().cpu()
        tensors[f"base_model.model.{path}.lora_B.weight"] = layer.b.detach().cpu()
    save_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": DEFAULT,
        "r": recipe.rank,
        "lora_alpha": recipe.alpha,
        "target_modules": list(TARGETS),
    }
    write_json(folder / "adapter_config.json", config)
    return folder


def _in_peft(layers: dict[str, PiecesLinear], adapter: Path, answers_of: Callable, device) -> list[str] | None:
    """Answers of the adapter opened by PEFT, beside the weights that the pieces decode to."""
    if find_spec("peft") is None:
        return None
    with quiet():
        import peft

    base = load_model(dtype=torch.float32, device=device)
    with torch.no_grad():
        for path, layer in layers.items():
            base.get_submodule(path).weight.copy_(layer.decode())
    with quiet():
        model = peft.PeftModel.from_pretrained(base, str(adapter)).eval()
    return answers_of(model)
