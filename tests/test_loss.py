"""The training loss equals transformers' own, and so do its gradients, whichever rows of logits are ever made."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import adapted, tiny_model
from torch import nn

from qlora_lab import loss
from qlora_lab.loss import supervised_loss_sum


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def batch(seed: int, shape=(3, 11)):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 259, shape, generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    labels = ids.masked_fill(torch.rand(shape, generator=generator) < 0.4, -100)
    labels[mask == 0] = -100
    labels[1, 5] = 7  # one label at least
    return ids, mask, labels


def compare(model, ids, mask, labels):
    count = (labels[:, 1:] != -100).sum()
    mine = supervised_loss_sum(model, ids, mask, labels)
    mine.backward()
    my_gradients = gradients(model)
    theirs = model(input_ids=ids, attention_mask=mask, labels=labels).loss * count
    theirs.backward()
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    their_gradients = gradients(model)
    assert my_gradients.keys() == their_gradients.keys()
    for name, value in their_gradients.items():  # float32 sums in another order
        torch.testing.assert_close(my_gradients[name], value, rtol=1e-3, atol=1e-5 * value.abs().max().item() + 1e-7)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**20), rows=st.integers(1, 40))
def test_equals_transformers_loss_for_any_labels_and_chunks(seed, rows):
    model, before = adapted(), loss.CHUNK_BYTES
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    loss.CHUNK_BYTES = rows * 4 * 259
    try:
        compare(model, *batch(seed))
    finally:
        loss.CHUNK_BYTES = before


@pytest.mark.parametrize("kind", ["qlora", "lora", "full"])
def test_equals_transformers_loss_whatever_is_trained(kind):
    compare(adapted(kind=kind), *batch(0))


def test_a_head_with_an_adapter_gets_its_gradient():
    compare(
        adapted(tiny_model(tie_word_embeddings=False), kind="lora", target_modules=["lm_head", "q_proj"]), *batch(1)
    )


class Capped(nn.Module):
    """A model that squeezes its logits after the head, as some do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, input_ids, attention_mask, use_cache=False, labels=None):
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        out.logits = 3 * torch.tanh(out.logits / 3)
        if labels is not None:
            wanted = labels[:, 1:].reshape(-1)
            out.loss = nn.functional.cross_entropy(out.logits[:, :-1].reshape(len(wanted), -1), wanted)
        return out


def test_what_a_model_does_with_its_logits_is_kept():
    for _ in range(2):  # the second time it is known from the start
        compare(Capped(adapted()), *batch(2))


def test_no_hook_stays_behind_even_after_an_error():
    model = adapted()
    head = model.get_output_embeddings()
    supervised_loss_sum(model, *batch(0))
    with pytest.raises(IndexError):
        supervised_loss_sum(model, torch.full((1, 4), 10**6), torch.ones(1, 4), torch.ones(1, 4, dtype=torch.int64))
    assert not head._forward_hooks and not head._forward_pre_hooks


def test_the_logits_are_never_alive_all_at_once(monkeypatch):
    """Only `rows` rows of the vocabulary's width are made at a time."""
    seen = []
    amax = torch.Tensor.amax
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * 4 * 259)
    monkeypatch.setattr(torch.Tensor, "amax", lambda z, *a, **k: seen.append(tuple(z.shape)) or amax(z, *a, **k))
    ids, mask, labels = batch(3)
    supervised_loss_sum(adapted(), ids, mask, labels)
    seen = [rows for rows, *width in seen if width == [259]]  # quantizing takes maxima too
    assert max(seen) == 4
    assert sum(seen) == int((labels[:, 1:] != -100).sum())
