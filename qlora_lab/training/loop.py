"""Fine-tuning: from examples to a trained adapter.

One optimizer step: the mean cross-entropy over all supervised tokens of `batch_size * accumulation` examples, its
gradient clipped, AdamW with linear warm-up and cosine decay. Logits are computed only where there is a label: with a
vocabulary of 49,152 and one token in two supervised, that is half of the largest matrix product of the step.

A model that is sharded between processes (see `distributed`) is trained as it would be by one: each computes its rows
of every batch, and the main one writes.

A run writes into its folder: `metrics.jsonl` (one line a step), `checkpoints/`, with validation examples also
`validation.jsonl`, and at the end `adapter/` in PEFT's format: the last one, or the one of the lowest validation loss.
Killed at any moment it resumes from the newest checkpoint and, on a CPU, ends with the same bits.
"""

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from qlora_lab import distributed
from qlora_lab.lora import adapted_layers
from qlora_lab.loss import supervised_loss_sum
from qlora_lab.machine import processes
from qlora_lab.machine.arguments import check_count, check_positive
from qlora_lab.machine.dtypes import autocast_dtype
from qlora_lab.machine.generators import random_states, restore_random
from qlora_lab.memory.fit import StepMemory, check_fits
from qlora_lab.models.adapters import save_adapter
from qlora_lab.models.gradient_checkpointing import check_checkpointing, disable_checkpointing, enable_checkpointing
from qlora_lab.models.inputs import input_device, known_tokens, padding_token
from qlora_lab.models.packed_inputs import check_packing
from qlora_lab.models.wrappers import plain_parameters
from qlora_lab.tasks.batches import IGNORED, Batch, Batches
from qlora_lab.tasks.encoding import EncodedExamples, encode_all
from qlora_lab.tasks.mixing import mixed
from qlora_lab.tasks.packing import pack_examples
from qlora_lab.training.learning_rate import default_rate
from qlora_lab.training.optimizer import checked_paging, close_pages, device_bytes, make_optimizer
from qlora_lab.training.run_folder import checkpoints
from qlora_lab.training.run_folder.checkpoints import Checkpoint
from qlora_lab.training.run_folder.folder import alone_in, check_folder
from qlora_lab.training.run_folder.metrics import (
    StepRecord,
    append_line,
    append_record,
    keep_records,
    records_before,
    sync_records,
    write_lines,
    write_records,
)
from qlora_lab.training.settings import Settings
from qlora_lab.training.validation import Validation, ValidationRecord

VALIDATION = "validation.jsonl"


class NonFiniteLoss(FloatingPointError):
    """The loss or its gradient became NaN or infinite."""


@dataclass
class FinetuneResult:
    """A finished run. `records` covers all steps, also those before a resume; `adapter` is the adapter's folder.

    With validation examples: `validations` are all measurements, and `best` is the one whose weights the model has.
    """

    model: nn.Module = field(repr=False)
    settings: Settings
    records: list[StepRecord] = field(repr=False)
    predicted: StepMemory
    adapter: Path | None
    resumed_from: int
    validations: list[ValidationRecord] = field(default_factory=list, repr=False)
    best: ValidationRecord | None = None

    @property
    def stopped_early(self) -> bool:
        """Whether `patience` ended the run before its last step."""
        return bool(self.validations) and self.validations[-1].step < self.settings.steps

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
    validation: Iterable | None = None,
    on_validation: Callable[[ValidationRecord], None] | None = None,
    mix: Iterable | None = None,
    epochs: float | None = None,
    on_begin: Callable[[Settings], None] | None = None,
    **settings,
) -> FinetuneResult:
    """Train what is trainable in `model` (its adapters; everything, for a full fine-tune) on `examples`.

    Args:
        examples: objects with `.prompt` and `.target` (see `tasks.Example`), or dicts with these keys; only targets are
            learned. Or records of one's own data (`tasks.load_dataset`), or what `tasks.encode_all` made of them.
        out: the run's folder, made if missing. None keeps the run in memory: no metrics, checkpoints or adapter.
        resume: go on from the newest checkpoint in `out`; begin anew if there is none yet.
        checkpoint_every: steps between checkpoints; the last step always makes one.
        on_step: called after every step with its `StepRecord`, in every process.
        paging: keep the optimizer's state in pages: `PagedAdamW`'s device_budget, host_budget, directory, page_size.
            They decide where it lies, not the result: a run may be resumed with others, or without. No directory: the
            page file lies in `out`.
        validation: examples that are not trained on. Their loss is measured before the first step, every
            `validate_every` steps and after the last; the weights of the lowest are those that the run ends with.
            Training is the same without, to the bit, but for the last choice and an end by `patience`.
        on_validation: called after every measurement with its `ValidationRecord`, in every process.
        mix: general text (examples of which every token is learned) that is trained on too, `mix_share` of all learned
            tokens: what else the model knew is then forgotten less.
        epochs: how often the examples are gone through, in place of `steps`.
        on_begin: called before anything is trained, with the settings as they turned out: the steps of `epochs`, the
            learning rate that fits the base.
        **settings: fields of `Settings`. Without a learning_rate, `default_rate` of the model's size.

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
        told = on_begin or _silent, on_step or _silent, on_validation or _silent
        data = examples, validation, mix
        return _finetune(model, tokenizer, data, out, resume, checkpoint_every, told, paging, epochs, settings)


def _silent(record) -> None: ...


def _finetune(
    model, tokenizer, data, out, resume: bool, checkpoint_every: int, told, paging, epochs, settings: dict
) -> FinetuneResult:
    chosen = Settings.of(**settings)
    examples, validation, mix = data
    for name in ("validate_every", "patience"):
        if validation is None and getattr(chosen, name) is not None:
            raise ValueError(f"{name} needs validation examples: validation=...")
    if mix is None and "mix_share" in settings:
        raise ValueError("mix_share needs a text to be mixed in: mix=...")
    if epochs is not None:
        check_positive("epochs", epochs)
        if "steps" in settings:
            raise ValueError("a run has epochs or steps, not both; leave one of them out")
    check_count("checkpoint_every", checkpoint_every)
    out = Path(out) if out is not None else None
    parameters, encoded, batches = prepared(model, tokenizer, examples, chosen, mix, paging)
    held = None if validation is None else _encoded(validation, tokenizer, chosen.max_length, model, "validation ")
    if epochs is not None:
        chosen = replace(chosen, steps=max(1, math.ceil(epochs * batches.per_epoch / chosen.accumulation)))
    if "learning_rate" not in settings:
        begun = checkpoints.begun_with(out / "checkpoints") if resume and out is not None else {}
        chosen = replace(chosen, learning_rate=begun.get("learning_rate", default_rate(model)))
    rows = len(distributed.share_of_batch(batches[0], number=0).input_ids)  # the most that a process computes
    identity = checkpoints.identity(asdict(chosen), encoded, model, parameters, held or ())
    processes.from_main(lambda: check_folder(out, resume))
    paging = checked_paging(paging, out)
    length, supervised = batches.longest()
    if held is not None:
        every, patience = chosen.validate_every, chosen.patience
        held = Validation(held, rows, length, batches.pad, chosen.steps, every, patience)
    beside = device_bytes(parameters.values(), chosen, paging) + (held.copy_bytes(parameters) if held else 0)
    predicted = check_fits(
        model,
        rows,
        length,
        supervised * rows,
        chosen.checkpointing != "none",
        chosen.accumulation,
        optimizer_bytes=beside,
    )
    advice = "" if out is None else f"; start all again with resume=True (--resume): {out} has its checkpoints"
    with alone_in(out if processes.is_main() else None), processes.watched(advice):
        run = Run(model, parameters, batches, chosen, out, identity, paging, held)
        told[0](chosen)
        try:
            records, start = run.train(resume, checkpoint_every, *told[1:])
        finally:
            close_pages(run.optimizer)
        adapter = save_adapter(model, out / "adapter") if out is not None and _has_adapters(model) else None
    validations, best = (held.records, held.best) if held is not None else ([], None)
    return FinetuneResult(model, chosen, records, predicted, adapter, start, validations, best)


def prepared(
    model: nn.Module, tokenizer, examples: Iterable, chosen: Settings, mix: Iterable | None = None, paging=None
) -> tuple[dict[str, nn.Parameter], Sequence, Batches]:
    """What is trained, by name; the examples as tokens; and their batches. Refuses what cannot be trained.

    Raises:
        ValueError: as `finetune`.
    """
    parameters = {name: p for name, p in plain_parameters(model) if p.requires_grad}
    _check_model(model, parameters, chosen, paging)
    encoded = _encoded(examples, tokenizer, chosen.max_length, model)
    if mix is not None:
        encoded = mixed(encoded, _encoded(mix, tokenizer, None, model, "text "), chosen.mix_share, chosen.seed)
    rows = encoded
    if chosen.packing:
        check_packing(model)
        rows = pack_examples(encoded, chosen.max_length)
    return parameters, encoded, Batches(rows, chosen.batch_size, padding_token(tokenizer, model), chosen.seed)


class Run:
    """What a run works with from step to step."""

    def __init__(
        self,
        model,
        parameters: dict[str, nn.Parameter],
        batches,
        chosen: Settings,
        out,
        identity,
        paging,
        validation: Validation | None = None,
    ):
        self.model, self.parameters, self.batches, self.chosen = model, parameters, batches, chosen
        self.validation = validation
        self.out, self.identity = out, identity
        self.device = next(iter(parameters.values())).device
        self.entrance = input_device(model) or self.device
        self.optimizer = make_optimizer(parameters.values(), chosen, paging)
        # float16 gradients underflow unless the loss is scaled up first; other dtypes pass through unscaled
        half = autocast_dtype(self.device.type) == torch.float16 or any(
            p.dtype == torch.float16 for p in model.parameters()
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)

    def train(self, resume: bool, checkpoint_every: int, on_step, on_validation) -> tuple[list[StepRecord], int]:
        """All steps that are left; returns the records of all steps and the step that was resumed from."""
        metrics = self.out / "metrics.jsonl" if self.out is not None and processes.is_main() else None
        checkpoint = self._load() if resume else None  # refuses other settings before anything is changed
        start = checkpoint.step if checkpoint is not None else 0
        records, step = processes.from_main(lambda: records_before(metrics, start)) if start else [], start
        with checkpoints.own_randomness(self.chosen.seed, self.device), self.training_mode():
            if checkpoint is not None:
                self._restore(checkpoint)
            if metrics is not None:
                keep_records(metrics, start) if start else write_records(metrics, [])
            self._begin_validation(start, on_validation)
            for step in range(start + 1, self.chosen.steps + 1):
                if self.validation is not None and self.validation.enough:
                    break
                record = self.step(step)
                records.append(record)
                if metrics is not None:
                    append_record(metrics, record)
                measured = self._validate(step) if self.validation is not None and self.validation.due(step) else None
                last = step == self.chosen.steps or (measured is not None and self.validation.enough)
                if self.out is not None and (step % checkpoint_every == 0 or last):
                    if metrics is not None:
                        sync_records(metrics)
                    self._save(step)
                on_step(record)
                if measured is not None:
                    on_validation(measured)
            trained = Checkpoint(step, {n: p.detach() for n, p in self.parameters.items()}, {}, {}, {})
            self._check_finite(step, checkpoints.not_finite(trained))
            self._take_best()
        return records, start

    def _begin_validation(self, start: int, on_validation) -> None:
        """The measurement before the first step; of a run that goes on, those that it has are written again."""
        if self.validation is None:
            return
        if self.out is not None and processes.is_main():
            write_lines(self.out / VALIDATION, self.validation.state())
        if start == 0:
            on_validation(self._validate(0))

    def _validate(self, step: int) -> ValidationRecord:
        try:
            record = self.validation.measure(self.model, step, self.parameters, self.entrance)
        except FloatingPointError as error:
            raise self._non_finite(step, str(error)) from error
        if self.out is not None and processes.is_main():
            append_line(self.out / VALIDATION, asdict(record))
        return record

    def _take_best(self) -> None:
        if self.validation is not None:
            self._set(self.validation.weights)

    def _set(self, values: Mapping[str, torch.Tensor]) -> None:
        """Give the trained parameters these values."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(checkpoints.cut_alike(values[name], parameter))

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
        loss = supervised_loss_sum(self.model, **batch.inputs()) / supervised
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
    def training_mode(self) -> Iterator[None]:
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
        state, random = checkpoints.optimizer_tensors(self.optimizer), random_states(self.device)
        checkpoint = Checkpoint(step, tensors, state, random, self.identity, scaler=self.scaler.state_dict())
        if self.validation is not None:
            checkpoint.validations = self.validation.state()
            checkpoint.best = self.validation.weights if self.validation.best.step != step else {}
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
        self._set(checkpoint.parameters)
        if self.validation is not None:
            self.validation.restore(checkpoint.validations, checkpoint.best or checkpoint.parameters)
        checkpoints.restore_optimizer(self.optimizer, checkpoint.optimizer)
        restore_random(checkpoint.random, self.device)
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
    if settings.checkpointing != "none" and next(iter(parameters.values())).device.type == "mps" and _drops(model):
        raise ValueError(
            "on Apple's GPU PyTorch drops other numbers when activations are computed again, and gradients go wrong; "
            'train with dropout 0, with checkpointing "none", or on the CPU'
        )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"a {type(model).__name__} reads a prompt with its encoder; finetune trains models that go on writing it"
        )


def _encoded(examples: Iterable, tokenizer, max_length: int | None, model: nn.Module, what: str = "") -> Sequence:
    """The examples as tokens; says how many were too long.

    Raises:
        ValueError: an example from which nothing can be learned, or with tokens that the model does not know.
    """
    if isinstance(examples, EncodedExamples):  # and what was left out of them is known
        _check_tokens(examples, known_tokens(model), f"{what}example")
        return examples
    encoded = encode_all(examples, tokenizer, max_length)
    if encoded.dropped and max_length is None:
        place = encoded.dropped[0].place
        raise ValueError(f"{what}example {place} has no token to learn from (every label is {IGNORED})")
    if encoded.dropped:
        first = encoded.dropped[0]
        warnings.warn(
            f"{len(encoded.dropped)} of the {what}examples are left out, {first.origin} for one: {first.reason}",
            stacklevel=4,
        )
    _check_tokens(encoded, known_tokens(model), f"{what}example")
    return encoded


def _check_tokens(encoded: Iterable, known: int | None, what: str) -> None:
    """Raise ValueError where an example holds a token that the model has no embedding for."""
    for number, (ids, _) in enumerate(encoded):
        if known is not None and len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= known):
            wrong = next(i for i in ids.tolist() if not 0 <= i < known)
            raise ValueError(
                f"{what} {number} has token {wrong}, and the model knows 0 to {known - 1}; is the tokenizer another "
                "model's?"
            )


def _drops(model: nn.Module) -> bool:
    """Whether an adapter or a module of dropout drops anything."""
    adapters = any(layer.dropout for _, layer in adapted_layers(model))
    return adapters or any(isinstance(module, nn.Dropout) and module.p for module in model.modules())


def _has_adapters(model: nn.Module) -> bool:
    return any(layer.rank for _, layer in adapted_layers(model))


__all__ = ["FinetuneResult", "NonFiniteLoss", "finetune"]
