"""What a model takes: which tokens it knows, and where they have to be."""

import torch
from torch import nn


def known_tokens(model: nn.Module) -> int | None:
    """How many tokens the model has embeddings for; None if it does not say."""
    count, weight = getattr(_input_embedding(model), "num_embeddings", None), embedding_weight(model)
    if isinstance(count, int):
        return count
    return weight.shape[0] if weight is not None and weight.ndim == 2 else None


def padding_token(tokenizer, model: nn.Module) -> int:
    """A token to pad with: masked as it is, any that the model knows will do, and the tokenizer's own may be none."""
    pad, known = getattr(tokenizer, "pad_token_id", None), known_tokens(model)
    return pad if isinstance(pad, int) and pad >= 0 and (known is None or pad < known) else 0


def input_device(model: nn.Module) -> torch.device | None:
    """Where a batch has to be, of a model whose parts may be on several devices; None if it does not say."""
    weight = embedding_weight(model)
    return weight.device if weight is not None and not weight.is_meta else None


def embedding_weight(model: nn.Module) -> torch.Tensor | None:
    """The weight of the model's input embedding, if it says which."""
    weight = getattr(_input_embedding(model), "weight", None)
    return weight if isinstance(weight, torch.Tensor) else None


def _input_embedding(model: nn.Module):
    get = getattr(model, "get_input_embeddings", None)
    try:
        return get() if callable(get) else None
    except (NotImplementedError, AttributeError):  # transformers' answers of a model that has none
        return None
