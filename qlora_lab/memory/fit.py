"""How many bytes a fine-tune needs, predicted before anything is allocated, and how many there are.

The prediction is a closed form over the model's shape: what must lie in memory between the forward and the backward
pass of one step. Sizes are in bytes; GB means 10^9 bytes.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from qlora_lab.lora import adapted_layers, output_head
from qlora_lab.loss import is_frozen_linear
from qlora_lab.machine import processes
from qlora_lab.machine.free_memory import free_memory
from qlora_lab.memory.closed_form import ModelShape, adapter_activations, layer_activations, logit_bytes


class DoesNotFit(RuntimeError):
    """The predicted peak of a step is larger than the memory that is free."""


@dataclass(frozen=True)
class StepMemory:
    """Predicted bytes of one training step, by category."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.gradients + self.optimizer + self.activations + self.logits

    @property
    def to_allocate(self) -> int:
        """What a step adds to the model that is in memory already."""
        return self.gradients + self.optimizer + self.activations + self.logits


def predict_step(
    model: nn.Module, batch_size: int, sequence_length: int, supervised_tokens: int, checkpointing: bool = False
) -> StepMemory:
    """Predict one step of training `model` (as it is: quantized or not, with adapters or not) with AdamW.

    The formulas are `budget`'s, for a batch with padding; the model says what is trained and how it is stored. With
    checkpointing one layer's activations are alive at a time, and a layer's input is kept for all of them.

    Of a model sharded between processes, this process's parts count, and its rows of the batch.

    Gradients, activations and logits count as if all were alive at once: with accumulation they are, without it the
    peak is somewhat lower.

    Args:
        supervised_tokens: tokens of the batch that have a label; only they get logits.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    trained_bytes = sum(map(_nbytes, trained))
    layers = [layer for _, layer in adapted_layers(model) if layer.rank]
    adapters = sum(_nbytes(t) for layer in layers for t in (layer.lora_A, layer.lora_B))
    seen = {id(t): t for t in (*model.parameters(), *model.buffers())}
    weights = sum(map(_nbytes, seen.values())) - adapters

    shape, size = ModelShape.of(getattr(model, "config", None)), _compute_size(model)
    norms = sum(p.numel() for p in trained if p.ndim == 1)  # a trained norm keeps its normalized input too
    per_token = shape.layers * layer_activations(shape, size, mask=sequence_length) + size * norms
    per_token += sum(
        adapter_activations([(layer.in_features, layer.rank)], size, layer.dropout > 0) for layer in layers
    )
    if checkpointing:
        per_token = per_token // max(1, shape.layers) + size * shape.layers * shape.hidden
    activations = batch_size * sequence_length * per_token
    head = output_head(model)
    logits = logit_bytes(supervised_tokens, shape.vocabulary, size, kept=head is None or not is_frozen_linear(head))
    return StepMemory(weights, adapters, trained_bytes, 2 * trained_bytes, activations, logits)


def check_fits(
    model: nn.Module,
    batch_size: int,
    sequence_length: int,
    supervised_tokens: int,
    checkpointing: bool,
    accumulation: int = 1,
    optimizer_bytes: int | None = None,
) -> StepMemory:
    """Predict a step and raise `DoesNotFit`, with what to change, where less memory is free than it needs.

    Args:
        accumulation: forward passes per optimizer step now; it decides nothing here, but the advice names the new one.
        optimizer_bytes: of the optimizer's state, where they are not AdamW's.
    """

    def predict(size: int, saving: bool) -> StepMemory:
        step = predict_step(model, size, sequence_length, -(-supervised_tokens * size // batch_size), saving)
        return step if optimizer_bytes is None else replace(step, optimizer=optimizer_bytes)

    predicted = predict(batch_size, checkpointing)
    device = next(model.parameters()).device
    free = free_memory(device)
    if predicted.to_allocate <= free:
        return predicted

    advice = []
    if not checkpointing and (saving := predict(batch_size, True)).to_allocate <= free:
        advice.append(f"gradient checkpointing, which brings it to {_gb(saving.to_allocate)}")
    # divisors only: then accumulation makes up for the smaller batch exactly
    smaller = [size for size in range(batch_size // 2, 0, -1) if batch_size % size == 0]
    for saving in (checkpointing, True):
        fitting = next((size for size in smaller if predict(size, saving).to_allocate <= free), None)
        if fitting is not None:
            both = "gradient checkpointing and " if saving and not checkpointing else ""
            advice.append(
                f"{both}batch_size={fitting} with accumulation={accumulation * batch_size // fitting} "
                f"({_gb(predict(fitting, saving).to_allocate)}, as many examples a step)"
            )
        if advice:
            break
    raise DoesNotFit(
        f"a step needs about {_gb(predicted.to_allocate)} beside the model (activations {_gb(predicted.activations)}, "
        f"logits {_gb(predicted.logits)}, gradients and optimizer {_gb(predicted.gradients + predicted.optimizer)}), "
        f"but {_gb(free)} are free on {device}. Use "
        + (" or ".join(advice) if advice else "shorter examples or a smaller model")
    )


def _nbytes(tensor: torch.Tensor) -> int:
    part = processes.local(tensor)
    return part.numel() * part.element_size()


def _compute_size(model: nn.Module) -> int:
    """Bytes of an element of the hidden states, which have the embeddings' dtype (4-bit layers do not tell)."""
    get = getattr(model, "get_input_embeddings", None)
    weight = getattr(get() if callable(get) else None, "weight", None)
    return weight.element_size() if weight is not None and weight.is_floating_point() else 4


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


__all__ = ["DoesNotFit", "StepMemory", "check_fits", "predict_step"]
