"""How many bytes a fine-tune needs, predicted before anything is allocated, and how many there are.

The prediction is a closed form over the model's shape: what must lie in memory between the forward and the backward
pass of one step. Sizes are in bytes; GB means 10^9 bytes.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from qlora_lab.lora import adapted_layers


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

    Activations per layer and token, in elements of the model's dtype, for hidden size d, MLP size m and key-value size
    k: the two norms keep their input and the normalized input (4 d); attention keeps its input, queries, keys and
    values before and after the rotation and its output (5 d + 3 k); the MLP keeps its input, gate, its activation, up
    and their product (d + 4 m); the adapters keep r numbers for each of seven layers. With checkpointing one layer's
    set is alive at a time, and a layer's input (d) is kept for all of them.

    Args:
        supervised_tokens: tokens of the batch that have a label; only they get logits, in float32.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    trained = sum(p.numel() * p.element_size() for p in trainable)
    adapters = sum(
        t.numel() * t.element_size()
        for _, layer in adapted_layers(model)
        if layer.rank
        for t in (layer.lora_A, layer.lora_B)
    )
    seen = {id(t): t for t in (*model.parameters(), *model.buffers())}
    weights = sum(t.numel() * t.element_size() for t in seen.values()) - adapters
    config = getattr(model, "config", None)
    hidden = getattr(config, "hidden_size", 0)
    layers = getattr(config, "num_hidden_layers", 0)
    heads = getattr(config, "num_attention_heads", 1) or 1
    kv = hidden * (getattr(config, "num_key_value_heads", None) or heads) // heads
    mlp = getattr(config, "intermediate_size", 4 * hidden) or 4 * hidden
    vocabulary = getattr(config, "vocab_size", 0)
    size = max(
        (p.element_size() for p in model.parameters() if p.is_floating_point() and not p.requires_grad), default=4
    )
    rank = max((layer.rank for _, layer in adapted_layers(model)), default=0)
    per_token = 10 * hidden + 3 * kv + 4 * mlp + 7 * rank
    kept = (layers * hidden + per_token) if checkpointing else layers * per_token
    activations = batch_size * sequence_length * kept * size
    logits = 3 * supervised_tokens * vocabulary * 4  # the logits, their softmax, their gradient
    return StepMemory(weights, adapters, trained, 2 * trained, activations, logits)


def free_memory(device: torch.device | str) -> int:
    """Bytes a process can still allocate on a device: the GPU's free memory, or the machine's within its container."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = psutil.virtual_memory().available
    limit = _container_limit()
    return available if limit is None else min(available, max(0, limit - psutil.Process().memory_info().rss))


def check_fits(
    model: nn.Module, batch_size: int, sequence_length: int, supervised_tokens: int, checkpointing: bool
) -> StepMemory:
    """Predict a step and raise `DoesNotFit`, with what to change, where less memory is free than it needs."""
    predicted = predict_step(model, batch_size, sequence_length, supervised_tokens, checkpointing)
    device = next(model.parameters()).device
    free = free_memory(device)
    if predicted.to_allocate <= free:
        return predicted
    advice = []
    if not checkpointing:
        saving = predict_step(model, batch_size, sequence_length, supervised_tokens, True)
        if saving.to_allocate <= free:
            advice.append(f"gradient checkpointing, which brings it to {_gb(saving.to_allocate)}")
    for smaller in (s for s in (2**k for k in range(12, -1, -1)) if s < batch_size):
        part = predict_step(
            model, smaller, sequence_length, -(-supervised_tokens * smaller // batch_size), checkpointing
        )
        if part.to_allocate <= free:
            times = -(-batch_size // smaller)
            advice.append(
                f"batch_size={smaller} with accumulation={times} ({_gb(part.to_allocate)}, the same gradient)"
            )
            break
    raise DoesNotFit(
        f"a step needs about {_gb(predicted.to_allocate)} beside the model (activations {_gb(predicted.activations)}, "
        f"logits {_gb(predicted.logits)}, gradients and optimizer {_gb(predicted.gradients + predicted.optimizer)}), but "
        f"{_gb(free)} are free on {device}. Use "
        + (" or ".join(advice) if advice else "shorter examples or a smaller model")
    )


def _container_limit() -> int | None:
    """The memory limit of the container (cgroup 2 or 1), or None."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(path).read_text())
        except (OSError, ValueError):
            continue
        if limit < 2**60:
            return limit
    return None


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
