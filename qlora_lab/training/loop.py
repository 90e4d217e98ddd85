"""Fine-tuning: from examples to a trained adapter.

One optimizer step: the mean cross-entropy over all supervised tokens of `batch_size * accumulation` examples, its
gradient clipped, AdamW with linear warm-up and cosine decay. Logits are computed only where there is a label: with a
vocabulary of 49,152 and one token in two supervised, that is half of the largest matrix product of the step.

A model that is sharded between processes (see `distributed`) is trained as it would be by one: each computes its rows
of every batch, and the main one writes.

A run writes into its folder: `metrics.jsonl` (one line a step), `checkpoints/`, and at the end `adapter/` in PEFT's
format. Killed at any moment it resumes from the newest checkpoint and, on a CPU, ends with the same bits.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from qlora_lab import distributed
from qlora_lab.lora import adapted_layers
from qlora_lab.loss import supervised_loss_sum
from qlora_lab.machine import processes
from qlora_lab.machine.arguments import check_count
from qlora_lab.machine.dtypes import autocast_dtype
from qlora_lab.memory.fit import StepMemory, check_fits
from qlora_lab.models.adapters import save_adapter
from qlora_lab.models.gradient_checkpointing import check_checkpointing, disable_checkpointing, enable_checkpointing
from qlora_lab.models.inputs import input_device, known_tokens, padding_token
from qlora_lab.models.wrappers import plain_parameters
from qlora_lab.tasks.batches import Batch, Batches
from qlora_lab.tasks.function_calls import encode
from qlora_lab.training.optimizer import checked_paging, close_pages, device_bytes, make_optimizer
from qlora_lab.training.run_folder import checkpoints
from qlora_lab.training.run_folder.checkpoints import Checkpoint
from qlora_lab.training.run_folder.folder import alone_in, check_folder
from qlora_lab.training.run_folder.metrics import (
    StepRecord,
    append_record,
    keep_records,
    records_before,
    sync_records,
    write_records,
)
from qlora_lab.training.settings import Settings


class NonFiniteLoss(FloatingPointError):
    """The loss or its gradient became NaN or infinite."""


@dataclass
class FinetuneResult:
    """A finished run. `records` covers all steps, also those before a resume; `adapter` is the adapter's folder."""

    model: nn.Module = field(repr=False)
    settings: Settings
    records: list[StepRecord] = field(repr=False)
    predicted: StepMemory
    adapter: Path | None
    resumed_from: int

    @property
    def seconds(self) -> float:
        return sum(record.seconds for record in self.records)

    @property
    def tokens_per_second(self) -> float:
        return sum(record.tokens for record in self.records) / self.seconds if self.records else 0.0


def finetune(
    model: nn.Module,
    tokenizer,
    examples: Iterable,
    *,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    checkpoint_every: int = 20,
    on_step: Callable[[StepRecord], None] | None = None,
    paging: Mapping | None = None,
    **settings,
) -> FinetuneResult:
    """Train what is trainable in `model` (its adapters; everything, for a full fine-tune) on `examples`.

    Args:
        examples: objects with `.prompt` and `.target` (see `tasks.Example`), or dicts with these keys; only targets are
            learned.
        out: the run's folder, made if missing. None keeps the run in memory: no metrics, checkpoints or adapter.
        resume: go on from the newest checkpoint in `out`; begin anew if there is none yet.
        checkpoint_every: steps between checkpoints; the last step always makes one.
        on_step: called after every step with its `StepRecord`, in every process.
        paging: keep the optimizer's state in pages: `PagedAdamW`'s device_budget, host_budget, directory, page_size.
            They decide where it lies, not the result: a run may be resumed with others, or without. No directory: the
            page file lies in `out`.
        **settings: fields of `Settings`.

    Returns:
        `FinetuneResult`; the model is trained in place and left in eval mode.

    Where several processes are connected the model must be sharded (`distributed.shard`); a checkpoint of any number of
    processes may be resumed by any other.

    Bitwise equality of a resumed run with one never interrupted holds on a CPU with the same number of threads and the
    same versions. torch's global random state is as before afterwards. Inside of `torch.no_grad` or
    `torch.inference_mode` it trains all the same; under autocast in float16 the loss is scaled.

    Raises:
        ValueError: a setting that is unknown or makes no sense, nothing trainable, nothing to learn from, tokens that
            the model does not know, trained weights in float16, adapters that are merged or switched off, a folder that
            holds another run (give resume=True, or another folder) or that another process is training in, or a resume
            with other settings, examples, adapters or base, or from a damaged checkpoint. Nothing is written then.
        DoesNotFit: a step would need more memory than is free; says what to change. Nothing is written then.
        NonFiniteLoss: the loss or gradient is NaN or infinite; names the step and the last good checkpoint.
    """
    with torch.inference_mode(False), torch.enable_grad():
        return _finetune(model, tokenizer, examples, out, resume, checkpoint_every, on_step, paging, settings)


def _finetune(
    model, tokenizer, examples, out, resume: bool, checkpoint_every: int, on_step, paging, settings: dict
) -> FinetuneResult:
    chosen = Settings.of(**settings)
    check_count("checkpoint_every", checkpoint_every)
    out = Path(out) if out is not None else None
    parameters = {name: p for name, p in plain_parameters(model) if p.requires_grad}
    _check_model(model, parameters, chosen, paging)
    encoded = [encode(example, tokenizer) for example in examples]
    _check_tokens(encoded, known_tokens(model))
    batches = Batches(encoded, chosen.batch_size, padding_token(tokenizer, model), chosen.seed)
    rows = len(distributed.share_of_batch(batches[0], number=0).input_ids)  # the most that a process computes
    identity = checkpoints.identity(asdict(chosen), encoded, model, parameters)
    processes.from_main(lambda: check_folder(out, resume))
    paging = checked_paging(paging, out)
    length, supervised = batches.longest()
    predicted = check_fits(
        model,
        rows,
        length,
        supervised * rows,
        chosen.checkpointing != "none",
        chosen.accumulation,
        optimizer_bytes=device_bytes(parameters.values(), chosen, paging),
    )
    advice = "" if out is None else f"; start all again with resume=True (--resume): {out} has its checkpoints"
    with alone_in(out if processes.is_main() else None), processes.watched(advice):
        run = _Run(model, parameters, batches, chosen, out, identity, paging)
        try:
            records, start = run.train(resume, checkpoint_every, on_step)
        finally:
            close_pages(run.optimizer)
        adapter = save_adapter(model, out / "adapter") if out is not None and _has_adapters(model) else None
    return FinetuneResult(model, chosen, records, predicted, adapter, start)


class _Run:
    """What a run works with from step to step."""

    def __init__(self, model, parameters: dict[str, nn.Parameter], batches, chosen: Settings, out, identity, paging):
        self.model, self.parameters, self.batches, self.chosen = model, parameters, batches, chosen
        self.out, self.identity = out, identity
        self.device = next(iter(parameters.values())).device
        self.entrance = input_device(model) or self.device
        self.optimizer = make_optimizer(parameters.values(), chosen, paging)
        # float16 gradients underflow unless the loss is scaled up first; other dtypes pass through unscaled
        half = autocast_dtype(self.device.type) == torch.float16 or any(
            p.dtype == torch.float16 for p in model.parameters()
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)

    def train(self, resume: bool, checkpoint_every: int, on_step) -> tuple[list[StepRecord], int]:
        """All steps that are left; returns the records of all steps and the step that was resumed from."""
        metrics = self.out / "metrics.jsonl" if self.out is not None and processes.is_main() else None
        checkpoint = self._load() if resume else None  # refuses other settings before anything is changed
        start = checkpoint.step if checkpoint is not None else 0
        records = processes.from_main(lambda: records_before(metrics, start)) if start else []
        with checkpoints.own_randomness(self.chosen.seed, self.device), self._training_mode():
            if checkpoint is not None:
                self._restore(checkpoint)
            if metrics is not None:
                keep_records(metrics, start) if start else write_records(metrics, [])
            for step in range(start + 1, self.chosen.steps + 1):
                record = self.step(step)
                records.append(record)
                if metrics is not None:
                    append_record(metrics, record)
                if self.out is not None and (step % checkpoint_every == 0 or step == self.chosen.steps):
                    if metrics is not None:
                        sync_records(metrics)
                    self._save(step)
                if on_step is not None:
                    on_step(record)
            trained = Checkpoint(self.chosen.steps, {n: p.detach() for n, p in self.parameters.items()}, {}, {}, {})
            self._check_finite(self.chosen.steps, checkpoints.not_finite(trained))
        return records, start

    def step(self, step: int) -> StepRecord:
        """Forward and backward over the step's batches, clip, update."""
        began = time.perf_counter()
        chosen, count = self.chosen, self.chosen.accumulation
        parts = [self.batches[(step - 1) * count + i] for i in range(count)]
        supervised = sum(part.supervised for part in parts)
        total = torch.zeros((), device=self.device)
        if processes.count() > 1:
            checkpoints.seed_step(chosen.seed, step, processes.rank())
        try:
            for part in parts:
                total += self._backward(distributed.share_of_batch(part).to(self.entrance), supervised)
        except FloatingPointError as error:  # a layer that computes in float16 left its range
            raise self._non_finite(step, str(error)) from error
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), chosen.max_grad_norm)
        loss, grad_norm = processes.summed(total).item(), processes.whole(norm).item()
        if not math.isfinite(loss):
            raise self._non_finite(step, f"the loss is {loss}")
        # too large a scale makes float16 gradients infinite: the scaler leaves out the update and halves the scale
        if not math.isfinite(grad_norm) and self.scaler.get_scale() <= 1:  # 1: not scaled at all
            raise self._non_finite(step, f"the gradient's norm is {grad_norm}")
        rate = chosen.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        tokens = sum(part.tokens for part in parts)
        return StepRecord(step, loss, rate, grad_norm, tokens, supervised, time.perf_counter() - began)

    def _backward(self, batch: Batch, supervised: int) -> torch.Tensor:
        # divided by the tokens of the whole step: accumulation then equals one large batch
        loss = supervised_loss_sum(self.model, batch.input_ids, batch.attention_mask, batch.labels) / supervised
        if not loss.requires_grad:
            raise ValueError(
                "nothing that is trained takes part in the loss; are the layers with trained parameters used by the "
                "model, and its adapters neither merged nor switched off?"
            )
        self.scaler.scale(loss).backward()
        return loss.detach().to(self.device)

    def _non_finite(self, step: int, what: str) -> NonFiniteLoss:
        good = checkpoints.newest(self.out / "checkpoints") if self.out is not None else None
        last = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
        half = "; compute in bfloat16 or float32 instead of float16" if self.scaler.is_enabled() else ""
        return NonFiniteLoss(
            f"step {step}: {what}; {last}. Start again with a lower learning_rate (it was "
            f"{self.chosen.learning_rate:g}){half}"
        )

    @contextlib.contextmanager
    def _training_mode(self) -> Iterator[None]:
        """Inside, the model is in train mode and checkpoints as chosen; afterwards it is in eval mode, without both."""
        try:
            self.model.train()
            enable_checkpointing(self.model, self.chosen.checkpointing)
            yield
        finally:
            self.model.eval()
            self.optimizer.zero_grad(set_to_none=True)
            disable_checkpointing(self.model, self.chosen.checkpointing)

    def _save(self, step: int) -> None:
        tensors = {name: parameter.detach() for name, parameter in self.parameters.items()}
        state, random = checkpoints.optimizer_tensors(self.optimizer), checkpoints.random_states(self.device)
        checkpoint = Checkpoint(step, tensors, state, random, self.identity, scaler=self.scaler.state_dict())
        self._check_finite(step, checkpoints.not_finite(checkpoint))
        checkpoints.save_checkpoint(self.out / "checkpoints", checkpoint)

    def _check_finite(self, step: int, problem: str | None) -> None:
        """Raise where an update left NaN or infinity in any process's part: no such checkpoint or adapter is kept."""
        said = next((p for p in processes.gathered(problem) if p is not None), None)
        if said is not None:
            raise self._non_finite(step, f"after the update {said}")

    def _load(self) -> Checkpoint | None:
        checkpoint = checkpoints.load_checkpoint(self.out / "checkpoints", self.parameters)
        if checkpoint is None:
            return None
        different = checkpoints.differences({**asdict(Settings()), **checkpoint.settings}, self.identity)
        if different:
            raise ValueError(
                f"{self.out} was begun otherwise ({'; '.join(different)}); resume with the same, or use another folder"
            )
        return checkpoint

    def _restore(self, checkpoint: Checkpoint) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(checkpoints.cut_alike(checkpoint.parameters[name], parameter))
        checkpoints.restore_optimizer(self.optimizer, checkpoint.optimizer)
        checkpoints.restore_random(checkpoint.random, self.device)
        if checkpoint.scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.scaler)


def _check_model(model: nn.Module, parameters: dict[str, nn.Parameter], settings: Settings, paging) -> None:
    """Raise ValueError for a model that cannot be trained, or not like this, or not by as many processes."""
    sharded = distributed.is_sharded(model)
    if processes.count() > 1 and not sharded:
        raise ValueError(f"{processes.count()} processes are connected; call distributed.shard(model) in each first")
    if sharded and (settings.state_bits != 32 or paging is not None):
        raise ValueError("8-bit and paged optimizer state are for one process; several keep a part of it each instead")
    if sharded and any(p.dtype == torch.float16 for p in model.parameters()):
        raise ValueError("several processes do not train in float16, whose gradients are scaled; load in float32")
    if not parameters:
        raise ValueError("nothing in this model is trainable; call quantize_model or inject_lora first")
    half = next((name for name, p in parameters.items() if p.dtype == torch.float16), None)
    if half is not None:
        raise ValueError(f"{half} would be trained in float16, where small updates vanish; load the model in float32")
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        if p.is_inference():
            raise ValueError(
                f"{name} was made under torch.inference_mode, and nothing can be trained through it; load or build the "
                "model outside of it"
            )
        if p.is_meta:
            raise ValueError(f"{name} has no values (it is on the meta device); load the model before it is trained")
        if p.is_nested or (p.requires_grad and (p.is_sparse or p.is_complex())):
            raise ValueError(f"{name} is nested, sparse or complex, which AdamW here does not train; freeze it")
    for name, layer in adapted_layers(model):
        if not any(p.requires_grad for p in layer.parameters(recurse=False)):
            continue
        if getattr(layer, "merged", False):
            raise ValueError(f"the adapter of {name} is merged into its base weight; call unmerge(model) first")
        if layer.switched_off:
            raise ValueError(f"the adapter of {name} is switched off; train outside of `disabled`")
    for name, module in model.named_modules():
        sparse = isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
        if sparse and any(p.requires_grad for p in module.parameters(recurse=False)):
            raise ValueError(f"{name} makes sparse gradients, which AdamW does not take; give it sparse=False")
    check_checkpointing(model, settings.checkpointing)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"a {type(model).__name__} reads a prompt with its encoder; finetune trains models that go on writing it"
        )


def _check_tokens(encoded: list, known: int | None) -> None:
    """Raise ValueError where an example holds a token that the model has no embedding for."""
    for number, (ids, _) in enumerate(encoded):
        wrong = None if known is None or not len(ids) else next((i for i in ids.tolist() if not 0 <= i < known), None)
        if wrong is not None:
            raise ValueError(
                f"example {number} has token {wrong}, and the model knows 0 to {known - 1}; is the tokenizer another "
                "model's?"
            )


def _has_adapters(model: nn.Module) -> bool:
    return any(layer.rank for _, layer in adapted_layers(model))


__all__ = ["FinetuneResult", "NonFiniteLoss", "finetune"]
