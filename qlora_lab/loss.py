"""The training loss: cross-entropy over the tokens that have a label, with logits computed only for these.

With a vocabulary of 49,152 the output head is the largest matrix product of a step and its result the largest tensor.
Three things keep both small. Only positions whose successor has a label reach the head (a prompt's tokens have none).
The logits are made a few rows at a time, and never kept: where the head is frozen, all that the backward pass needs of
them is the gradient of the hidden states, as small as these, so it is computed in the forward pass, while the rows are
there:

    loss = sum(logsumexp(z) - z[label]),  z = W h        dloss/dh = (softmax(z) - onehot(label)) W
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from qlora_lab.lora import output_head
from qlora_lab.machine.matmul import matmul
from qlora_lab.tasks.batches import IGNORED

CHUNK_BYTES = 2**25  # of float32 logits that are alive at a time, where they need not be kept


def supervised_loss_sum(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy summed over the tokens that have a label, float32 of shape ().

    Divided by the number of these tokens it equals the loss that transformers' models compute.

    Args:
        input_ids, attention_mask, labels: int64 (batch, length). The label at position t is predicted from position
            t - 1; labels of -100 are ignored.

    Where a model does more with logits than make them (scaling, capping), or trains its head, or computes in float16
    (whose gradients have to be scaled first), all labelled rows of logits are made at once and kept for the backward
    pass. A model without a known head, or compiled as a whole, computes all logits.
    """
    keep = labels[:, 1:] != IGNORED  # (b, t-1)
    wanted = labels[:, 1:][keep]
    head = None if _is_compiled(model) else output_head(model)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if head is None:
        return F.cross_entropy(model(**inputs).logits[:, :-1][keep].float(), wanted, reduction="sum")
    if is_frozen_linear(head) and not _post_processed.get(type(model)):
        with _intercept(head, keep, rows=1) as seen:  # the head computes one row, which is thrown away
            logits = model(**inputs).logits
        if logits is seen["logits"]:
            return _HeadLoss.apply(seen["hidden"], head.weight, wanted)
        _post_processed[type(model)] = True  # what else it does is known only to its own forward: once more
    with _intercept(head, keep):
        logits = model(**inputs).logits[0]  # (1, n, vocabulary) -> (n, vocabulary)
    return F.cross_entropy(logits.float(), wanted, reduction="sum")


_post_processed: dict[type, bool] = {}  # model classes that change logits after the head


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy of `hidden` (n, d) through a frozen head (vocabulary, d), summed; labels int64 (n,)."""

    @staticmethod
    def forward(ctx, hidden, weight, labels):
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if hidden.requires_grad else None
        rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        for start in range(0, len(hidden), rows):
            part, label = hidden[start : start + rows], labels[start : start + rows, None]
            z = matmul(part, weight.t()).float()  # (rows, vocabulary)
            top, chosen = z.amax(1, keepdim=True), z.gather(1, label)
            norm = z.sub_(top).exp_().sum(1, keepdim=True)  # in place: nothing else of the logits' size is made
            total += (norm.log() + top - chosen).sum()
            if gradient is not None:  # of softmax - onehot, times norm: divided out where it is small
                z.scatter_add_(1, label, -norm)
                matmul(z.to(weight.dtype), weight, out=gradient[start : start + rows]).div_(norm)
            del z  # before the next rows are made
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (gradient,) = ctx.saved_tensors
        return gradient * g, None, None


@contextlib.contextmanager
def _intercept(head: nn.Module, keep: torch.Tensor, rows: int | None = None) -> Iterator[dict]:
    """Inside, `head` sees only the hidden states at positions marked in `keep` (batch, length - 1), or `rows` of them.

    Yields a dict that holds, after the forward pass, the "hidden" states so marked (n, d), and the head's "logits".
    """
    seen = {}

    def select(module, inputs):
        seen["hidden"] = inputs[0][:, :-1][keep.to(inputs[0].device)]  # (b, t, d) -> (n, d)
        return (seen["hidden"][None, :rows],)

    def remember(module, inputs, output):
        seen["logits"] = output

    handles = head.register_forward_pre_hook(select), head.register_forward_hook(remember)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def is_frozen_linear(head: nn.Module) -> bool:
    """Whether the gradient of the hidden states can be had without keeping logits."""
    return (
        type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad
    ) and head.weight.dtype != torch.float16


def _is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile wrapped the model: a compiled graph would keep the first batch's selection."""
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None
