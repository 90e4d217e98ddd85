"""Activations computed again in the backward pass instead of kept: slower, the same gradients, far less memory."""

from torch import nn

CHECKPOINTING = ("none", "reentrant", "non-reentrant")


def check_checkpointing(model: nn.Module, kind: str) -> None:
    """Raise ValueError for a kind that the model does not offer."""
    if kind == "none":
        return
    offered = any(hasattr(model, f"{name}_checkpointing_enable") for name in ("activation", "gradient"))
    lacking = "" if kind != "reentrant" or hasattr(model, "enable_input_require_grads") else " of the reentrant kind"
    if lacking or not offered or not getattr(model, "supports_gradient_checkpointing", True):
        raise ValueError(
            f'a {type(model).__name__} offers no gradient checkpointing{lacking}; choose another kind or "none"'
        )


def enable_checkpointing(model: nn.Module, kind: str) -> None:
    """Switch on one of the kinds in `CHECKPOINTING`; "none" does nothing.

    The reentrant kind only sees gradients that enter through a tensor, and frozen embeddings give none: adapters would
    silently stay untrained. So it makes their output require a gradient.
    """
    if kind != "none":
        _switch(model, "enable", {"use_reentrant": kind == "reentrant"})
    if kind == "reentrant":
        model.enable_input_require_grads()


def disable_checkpointing(model: nn.Module, kind: str) -> None:
    """Undo `enable_checkpointing` of the same kind."""
    if kind != "none":
        _switch(model, "disable")
    if kind == "reentrant":
        model.disable_input_require_grads()


def _switch(model: nn.Module, what: str, *arguments) -> None:
    """transformers 5.2x renamed `gradient_checkpointing_enable` and warns about the old name."""
    method = getattr(model, f"activation_checkpointing_{what}", None)
    (method or getattr(model, f"gradient_checkpointing_{what}"))(*arguments)
