"""Fine-tuning: from examples to a trained adapter.

One optimizer step: the mean cross-entropy over all supervised tokens of `batch_size * accumulation` examples, its
gradient clipped, AdamW with linear warm-up and cosine decay. Logits are computed only where there is a label: with a
vocabulary of 49,152 and one token in two supervised, that is half of the largest matrix product of the step.

A run writes into its folder: `metrics.jsonl` (one line a step), `checkpoints/`, and at the end `adapter/` in PEFT's
format. Killed at any moment it resumes from the newest checkpoint and, on a CPU, ends with the same bits.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from qlora_lab import checkpoints, memory
from qlora_lab.adapters import save_adapter
from qlora_lab.batching import IGNORED, Batch, Batches
from qlora_lab.checkpoints import Checkpoint
from qlora_lab.files import write_text
from qlora_lab.lora import adapted_layers
from qlora_lab.tasks import encode

CHECKPOINTING = ("none", "reentrant", "non-reentrant")


class NonFiniteLoss(FloatingPointError):
    """The loss or its gradient became NaN or infinite."""


@dataclass(frozen=True)
class Settings:
    """What decides a run's result, beside the model and the examples. A resumed run must have the same.

    steps: optimizer steps. batch_size: examples per forward. accumulation: forwards per step. learning_rate: the peak;
    it rises linearly over the first `warmup` share of the steps and falls to a tenth along a cosine. max_grad_norm: the
    gradient's 2-norm is scaled down to it. seed: decides order and dropout.
    """

    steps: int = 120
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    checkpointing: str = "none"

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulation"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} {value!r} is not allowed; give a whole number of at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name} {value!r} is not allowed; give a positive number")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup {self.warmup!r} is not a share of the steps, 0 to below 1")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay {self.weight_decay!r} is not allowed; give 0 or more")
        if self.checkpointing not in CHECKPOINTING:
            raise ValueError(f"checkpointing {self.checkpointing!r}: choose one of {', '.join(CHECKPOINTING)}")

    def rate(self, step: int) -> float:
        """The learning rate of step 1 .. steps."""
        warmup = round(self.warmup * self.steps)
        if step <= warmup:
            return self.learning_rate * step / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class StepRecord:
    """One line of metrics.jsonl. tokens: not padding; seconds: of this step alone."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    supervised_tokens: int
    seconds: float


@dataclass
class FinetuneResult:
    """A finished run. `records` covers all steps, also those before a resume."""

    model: nn.Module = field(repr=False)
    settings: Settings
    records: list[StepRecord] = field(repr=False)
    predicted: memory.StepMemory
    adapter: Path | None
    resumed_from: int

    @property
    def seconds(self) -> float:
        return sum(record.seconds for record in self.records)

    @property
    def tokens_per_second(self) -> float:
        return sum(record.tokens for record in self.records) / self.seconds


def finetune(
    model: nn.Module,
    tokenizer,
    examples: Sequence,
    *,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    checkpoint_every: int = 20,
    on_step: Callable[[StepRecord], None] | None = None,
    **settings,
) -> FinetuneResult:
    """Train what is trainable in `model` (its adapters; everything, for a full fine-tune) on `examples`.

    Args:
        examples: objects with `.prompt` and `.target` (see `tasks.Example`); only targets are learned.
        out: the run's folder, made if missing. None keeps the run in memory: no metrics, checkpoints or adapter.
        resume: go on from the newest checkpoint in `out`, if there is one.
        checkpoint_every: steps between checkpoints; the last step always makes one.
        on_step: called after every step with its `StepRecord`.
        **settings: fields of `Settings`.

    Returns:
        `FinetuneResult`; the model is trained in place and left in eval mode.

    Raises:
        ValueError: settings that make no sense, nothing trainable, nothing to learn from, a folder that holds another
            run (give resume=True, or another folder), or a resume with other settings or examples.
        memory.DoesNotFit: a step would need more memory than is free; says what to change.
        NonFiniteLoss: the loss or gradient is NaN or infinite; names the step and the last good checkpoint.
    """
    chosen = Settings(**settings)
    out = Path(out) if out is not None else None
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("nothing in this model is trainable; call quantize_model or inject_lora first")
    device = next(iter(parameters.values())).device
    encoded = [encode(example, tokenizer) for example in examples]
    batches = Batches(encoded, chosen.batch_size, tokenizer.pad_token_id, chosen.seed)
    identity = {**asdict(chosen), "examples": _fingerprint(encoded), "trainable": _fingerprint_shapes(parameters)}
    checkpoint = _starting_point(out, resume, identity)
    length, supervised = batches.longest()
    predicted = memory.check_fits(
        model, batches.batch_size, length, supervised * batches.batch_size, chosen.checkpointing != "none"
    )

    optimizer = torch.optim.AdamW(parameters.values(), lr=chosen.learning_rate, weight_decay=chosen.weight_decay)
    records: list[StepRecord] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(chosen.seed)
        if checkpoint is not None:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(checkpoint.parameters[name])
            checkpoints.restore_optimizer(optimizer, checkpoint.optimizer)
            checkpoints.restore_random(checkpoint.random, device)
            records = _read_metrics(out / "metrics.jsonl", checkpoint.step)
        start = checkpoint.step if checkpoint is not None else 0
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / "metrics.jsonl", "".join(json.dumps(asdict(r)) + "\n" for r in records))
        # float16 gradients underflow unless the loss is scaled up first; other dtypes pass through unscaled
        half = any(p.dtype == torch.float16 for p in model.parameters())
        scaler = torch.amp.GradScaler(device.type, enabled=half and device.type == "cuda")
        _prepare(model, chosen.checkpointing)
        try:
            for step in range(start + 1, chosen.steps + 1):
                record = _step(model, optimizer, scaler, batches, step, chosen, list(parameters.values()), out)
                records.append(record)
                if out is not None:
                    with open(out / "metrics.jsonl", "a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(record)) + "\n")
                    if step % checkpoint_every == 0 or step == chosen.steps:
                        _checkpoint(out, step, parameters, optimizer, device, identity)
                if on_step is not None:
                    on_step(record)
        finally:
            _finish(model, chosen.checkpointing)
    adapter = save_adapter(model, out / "adapter") if out is not None and _has_adapters(model) else None
    return FinetuneResult(model, chosen, records, predicted, adapter, start)


def supervised_loss_sum(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy summed over the tokens that have a label, float32 of shape ().

    Args:
        input_ids, attention_mask, labels: int64 (batch, length). The label at position t is predicted from position
            t - 1; labels of -100 are ignored.

    Only positions with a label go through the output head. Models that do more than one matrix product there (scaled or
    capped logits) take the way through all positions.
    """
    keep = labels[:, 1:] != IGNORED  # (b, t-1)
    targets = labels[:, 1:][keep]  # (n,)
    config = model.config
    special = any(getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"))
    if special or model.base_model is model:
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1][keep]
    else:
        hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        logits = model.get_output_embeddings()(hidden[:, :-1][keep])  # (b, t, d) -> (n, d) -> (n, vocabulary)
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def _step(model, optimizer, scaler, batches: Batches, step, chosen: Settings, parameters, out) -> StepRecord:
    began = time.perf_counter()
    device = parameters[0].device
    parts = [batches[(step - 1) * chosen.accumulation + i] for i in range(chosen.accumulation)]
    supervised = sum(part.supervised for part in parts)
    total = torch.zeros((), device=device)
    for part in parts:
        batch = part.to(device)
        # divided by the tokens of the whole step: accumulation then equals one large batch exactly
        loss = supervised_loss_sum(model, batch.input_ids, batch.attention_mask, batch.labels) / supervised
        scaler.scale(loss).backward()
        total += loss.detach()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(parameters, chosen.max_grad_norm)
    value, grad_norm = total.item(), norm.item()
    overflow = scaler.is_enabled() and not math.isfinite(grad_norm)  # the scaler lowers its scale and skips the step
    if not math.isfinite(value) or not (math.isfinite(grad_norm) or overflow):
        what = f"the loss is {value}" if not math.isfinite(value) else f"the gradient's norm is {grad_norm}"
        good = sorted((out / "checkpoints").glob("checkpoint-*")) if out is not None else []
        last = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
        raise NonFiniteLoss(
            f"step {step}: {what}; {last}. Lower learning_rate (now {chosen.learning_rate}) or compute in "
            "bfloat16 or float32 instead of float16"
        )
    rate = chosen.rate(step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    tokens = sum(part.tokens for part in parts)
    return StepRecord(step, value, rate, grad_norm, tokens, supervised, time.perf_counter() - began)


def _prepare(model: nn.Module, checkpointing: str) -> None:
    model.train()
    if checkpointing == "none":
        return
    reentrant = checkpointing == "reentrant"
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:  # it only sees gradients that enter through a tensor, and frozen embeddings give none: adapters
        model.enable_input_require_grads()  # would silently stay untrained


def _finish(model: nn.Module, checkpointing: str) -> None:
    model.eval()
    if checkpointing != "none":
        model.gradient_checkpointing_disable()
        if checkpointing == "reentrant":
            model.disable_input_require_grads()


def _checkpoint(out, step, parameters, optimizer, device, identity) -> None:
    tensors = {name: parameter.detach() for name, parameter in parameters.items()}
    state = checkpoints.optimizer_tensors(optimizer)
    random = checkpoints.random_states(device)
    checkpoints.save_checkpoint(out / "checkpoints", Checkpoint(step, tensors, state, random, identity))


def _starting_point(out: Path | None, resume: bool, identity: dict) -> Checkpoint | None:
    if out is None:
        if resume:
            raise ValueError("resume=True needs the folder of the run: out=...")
        return None
    if not resume:
        if (out / "metrics.jsonl").exists() or (out / "checkpoints").exists():
            raise ValueError(f"{out} already holds a run; continue it with resume=True or choose another folder")
        return None
    checkpoint = checkpoints.load_checkpoint(out / "checkpoints")
    if checkpoint is None:
        return None
    different = {k: (v, identity.get(k)) for k, v in checkpoint.settings.items() if identity.get(k) != v}
    if different:
        said = "; ".join(f"{k} was {old}, now {new}" for k, (old, new) in different.items())
        raise ValueError(f"{out} was begun with other settings ({said}); resume with the same, or start another folder")
    return checkpoint


def _read_metrics(path: Path, until: int) -> list[StepRecord]:
    """The records of steps 1 to `until`; a last line that a kill cut short, or steps to be repeated, are dropped."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = StepRecord(**json.loads(line))
        except (ValueError, TypeError):
            break
        if record.step <= until:
            records.append(record)
    return records


def _has_adapters(model: nn.Module) -> bool:
    return any(layer.rank for _, layer in adapted_layers(model))


def _fingerprint(encoded) -> str:
    digest = sha256()
    for ids, labels in encoded:
        digest.update(ids.numpy().tobytes() + labels.numpy().tobytes() + b"|")
    return digest.hexdigest()[:16]


def _fingerprint_shapes(parameters: dict) -> str:
    return sha256(repr([(n, tuple(p.shape)) for n, p in parameters.items()]).encode()).hexdigest()[:16]


__all__ = ["Batch", "FinetuneResult", "NonFiniteLoss", "Settings", "StepRecord", "finetune", "supervised_loss_sum"]
