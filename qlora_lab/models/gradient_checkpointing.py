"""Activations computed again in the backward pass instead of kept: slower, the same gradients, far less memory."""

from torch import nn

CHECKPOINTING = ("none", "reentrant", "non-reentrant")


def switch_checkpointing(model: nn.Module, what: str, *arguments) -> None:
    """transformers 5.2x renamed `gradient_checkpointing_enable` and warns about the old name."""
    method = getattr(model, f"activation_checkpointing_{what}", None) or getattr(
        model, f"gradient_checkpointing_{what}"
    )
    method(*arguments)
