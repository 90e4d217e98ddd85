"""The training loss: cross-entropy over the tokens that have a label, with logits computed only for these.

With a vocabulary of 49,152 the output head is the largest matrix product of a step and its result the largest tensor;
where one token in two is a prompt's, half of both would be thrown away.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from qlora_lab.batching import IGNORED
from qlora_lab.lora import output_head


def supervised_loss_sum(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy summed over the tokens that have a label, float32 of shape ().

    Divided by the number of these tokens it equals the loss that transformers' models compute.

    Args:
        input_ids, attention_mask, labels: int64 (batch, length). The label at position t is predicted from position
            t - 1; labels of -100 are ignored.

    Only positions whose successor has a label reach the output head; what a model does with logits afterwards (scaling,
    capping) is its own. A model without a known head, or compiled as a whole, computes all logits.
    """
    keep = labels[:, 1:] != IGNORED  # (b, t-1)
    head = None if _is_compiled(model) else output_head(model)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if head is None:
        logits = model(**inputs).logits[:, :-1][keep]  # (b, t, vocabulary) -> (n, vocabulary)
    else:
        with _select(head, keep):
            logits = model(**inputs).logits[0]  # (1, n, vocabulary) -> (n, vocabulary)
    return F.cross_entropy(logits.float(), labels[:, 1:][keep], reduction="sum")


@contextlib.contextmanager
def _select(head: nn.Module, keep: torch.Tensor) -> Iterator[None]:
    """Inside, `head` sees only the hidden states at positions marked in `keep` (batch, length - 1)."""

    def select(module, inputs):
        hidden = inputs[0]
        return (hidden[:, :-1][keep.to(hidden.device)][None],)  # (b, t, d) -> (1, n, d)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def _is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile wrapped the model: a compiled graph would keep the first batch's selection."""
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None
