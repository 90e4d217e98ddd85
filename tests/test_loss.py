"""The training loss equals transformers' own, and so do its gradients, whichever rows of logits are ever made."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, tiny_family
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import adapted, tiny_model
from torch import nn
from transformers import LlamaForCausalLM

from qlora_lab import inject_lora, loss
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
    noise = 1e-6 * max(value.abs().max().item() for value in their_gradients.values())
    for name, value in their_gradients.items():  # float32 sums in another order
        atol = max(1e-5 * value.abs().max().item(), noise) + 1e-7
        torch.testing.assert_close(my_gradients[name], value, rtol=1e-3, atol=atol)


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


# -- every family of transformers


OFTEN = (
    "llama",
    "gpt2",
    "gemma2",
    "granite",
    "cohere",
    "mixtral",
    "qwen3_moe",
    "bart",
    "falcon_mamba",
    "xlnet",
    "bert",
)


def small_batch():
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 60, (2, 8), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.3, -100).masked_fill(mask == 0, -100)
    labels[1, 4] = 7
    return ids, mask, labels


@pytest.mark.parametrize("head", ["trained", "frozen"])
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in FAMILIES]
)
def test_equals_transformers_own_loss_for_every_family(family, head):
    try:
        model = tiny_family(family)
    except (KeyError, ImportError) as error:
        pytest.skip(f"this transformers does not build it: {error}")
    output = model.get_output_embeddings()
    if head == "frozen":
        if output is None:
            pytest.skip("it has no head of its own")
        output.requires_grad_(False)
    compare(model, *small_batch())


@pytest.mark.parametrize("share", [0.5, 0.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "phimoe", "gpt_oss"])
def test_the_experts_loss_of_balance_is_part_of_it(family, dtype, share):
    model = tiny_family(family, output_router_logits=True, router_aux_loss_coef=share).to(dtype)
    model.get_output_embeddings().requires_grad_(False)
    ids, mask, labels = small_batch()
    count = (labels[:, 1:] != -100).sum()
    mine, theirs = supervised_loss_sum(model, ids, mask, labels), model(ids, mask, labels=labels).loss * count
    keep = labels[:, 1:] != -100
    logits = model(ids, mask).logits[:, :-1][keep].float()
    plain = nn.functional.cross_entropy(logits, labels[:, 1:][keep], reduction="sum")
    aux = (theirs - plain).item()
    assert aux > share  # it is there
    assert mine.item() - plain.item() == pytest.approx(aux, abs=0.02 if dtype == torch.bfloat16 else 1e-4)


def test_asking_for_the_balance_later_is_noticed():
    model = tiny_family("mixtral", router_aux_loss_coef=0.5)
    compare(model, *small_batch())
    model.config.output_router_logits = True
    compare(model, *small_batch())
    assert model(*small_batch()[:2]).aux_loss is not None


# -- whatever may stand between a head and the logits


class Small(nn.Module):
    """A language model that is no one's, with a step of its own after the head."""

    def __init__(self, after=lambda z: z, vocabulary=64):
        super().__init__()
        self.emb, self.l, self.lm_head = nn.Embedding(64, 32), nn.Linear(32, 32), nn.Linear(32, vocabulary, bias=False)
        self.after = after

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return SimpleNamespace(logits=self.after(self.lm_head(self.l(self.emb(input_ids)))))


class TwoHeads(Small):
    """The logits are the mean of a head at two depths, as where further tokens are predicted."""

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        h = self.emb(input_ids)
        return SimpleNamespace(logits=(self.lm_head(h) + self.lm_head(self.l(h))) / 2)


class SecondHeadCounts(Small):
    def forward(self, input_ids, attention_mask=None, use_cache=False):
        h = self.emb(input_ids)
        first = self.lm_head(h)
        self.lm_head(self.l(h))
        return SimpleNamespace(logits=first)


class Flat(Small):
    """It computes its head on all tokens of the batch in a row."""

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        h = self.l(self.emb(input_ids))
        return SimpleNamespace(logits=self.lm_head(h.flatten(0, 1)).view(*h.shape[:2], -1))


class Weighted(Small):
    """The head's weight, without the head's forward."""

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return SimpleNamespace(logits=nn.functional.linear(self.l(self.emb(input_ids)), self.lm_head.weight * 3))


class InTrainingOnly(Small):
    def forward(self, input_ids, attention_mask=None, use_cache=False):
        z = self.lm_head(self.l(self.emb(input_ids)))
        if self.training:
            z *= 3
        return SimpleNamespace(logits=z)


def in_place(change):
    def after(z):
        change(z)
        return z

    return after


def halved_gradient(z):
    if z.requires_grad:
        z.register_hook(lambda g: g / 2)
    return z


AFTER = {
    "nothing": lambda z: z,
    "divided in place": in_place(lambda z: z.div_(0.25)),
    "divided in place behind autograd's back": in_place(lambda z: z.data.div_(0.25)),
    "a copy": lambda z: z.clone(),
    "a view": lambda z: z.view(z.shape),
    "cast": lambda z: z.double(),
    "scaled": lambda z: 3 * z,
    "capped": lambda z: 2 * torch.tanh(z / 2),
    "a column masked in place": in_place(lambda z: z[..., 5].fill_(-10.0)),
    "some tokens never said": in_place(lambda z: z.masked_fill_(torch.arange(64) == 5, -1e9)),
    "cut to a smaller vocabulary": lambda z: z[..., :60],
    "shifted": lambda z: z + torch.linspace(0, 1, 64),
    "normalized": lambda z: z.log_softmax(-1) * 2,
    "rows of their own factor": lambda z: z * torch.linspace(1, 2, z.shape[1])[:, None],
    "another gradient": halved_gradient,
    "clamped where nothing is": in_place(lambda z: z.clamp_(-1e9, 1e9)),
}
KINDS = {name: lambda after=after: Small(after) for name, after in AFTER.items()} | {
    kind.__name__: kind for kind in (TwoHeads, SecondHeadCounts, Flat, Weighted, InTrainingOnly)
}


def check_against_all_logits(model, ids, rtol=1e-4):
    """The loss and its gradients are those of the logits that the model returns."""
    mine = supervised_loss_sum(model, ids, torch.ones_like(ids), ids)
    mine.backward()
    my_gradients = gradients(model)
    logits = model(input_ids=ids).logits
    theirs = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")
    theirs.backward()
    torch.testing.assert_close(mine, theirs.float(), rtol=1e-5, atol=1e-5)
    for name, value in gradients(model).items():
        torch.testing.assert_close(my_gradients[name], value, rtol=rtol, atol=1e-5 * value.abs().max().item() + 1e-7)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_after_the_head_counts(kind, training):
    torch.manual_seed(0)
    model = KINDS[kind]().train(training)
    model.lm_head.weight.data.normal_()
    model.lm_head.requires_grad_(False)
    ids = torch.arange(3, 21).view(2, 9)
    for _ in range(2):  # the second time it is known what the model does
        check_against_all_logits(model, ids)


def hook_scaling(model):
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 3)


def hook_in_place(model):
    model.lm_head.register_forward_hook(lambda module, inputs, output: output.mul_(3))


def hook_before(model):
    model.lm_head.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3,))


def hook_of_positions(model):
    factors = torch.linspace(1, 2, 9)[:, None]
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * factors[: output.shape[1]])


def hook_of_gradients(model):
    model.lm_head.register_full_backward_hook(lambda module, into, out: tuple(g / 2 for g in into))


def own_forward(model):
    plain = model.lm_head.forward
    model.lm_head.forward = lambda x: 3 * plain(x)


def with_bias(model):
    model.lm_head.bias = nn.Parameter(torch.linspace(0, 1, 64), requires_grad=False)


def wrapped(model):
    model.lm_head = nn.Sequential(model.lm_head, nn.Tanh())


def parametrized(model):
    class Triple(nn.Module):
        def forward(self, weight):
            return 3 * weight

    nn.utils.parametrize.register_parametrization(model.lm_head, "weight", Triple())


def hook_on_the_model(model):
    def triple(module, inputs, output):
        output.logits = output.logits * 3

    model.register_forward_hook(triple)


@pytest.mark.parametrize(
    "change",
    [hook_scaling, hook_in_place, hook_before, hook_of_positions, hook_of_gradients, own_forward, with_bias, wrapped,
     parametrized, hook_on_the_model],
)  # fmt: skip
def test_what_is_done_to_the_head_counts(change):
    torch.manual_seed(0)
    model = Small()
    model.lm_head.weight.data.normal_()
    model.lm_head.requires_grad_(False)
    ids = torch.arange(3, 21).view(2, 9)
    check_against_all_logits(model, ids)
    change(model)  # after it is known how the model computes
    check_against_all_logits(model, ids)
    check_against_all_logits(model, ids)


# -- a loss of the model's own


class Smoothed(LlamaForCausalLM):
    """As transformers', with labels smoothed."""

    amount, only_in_training = 0.2, False

    def forward(self, input_ids=None, attention_mask=None, labels=None, use_cache=None, **more):
        out = super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache, **more)
        if labels is not None:
            amount = self.amount if self.training or not self.only_in_training else 0.0
            logits, wanted = out.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
            out.loss = nn.functional.cross_entropy(logits, wanted, label_smoothing=amount)
        return out


class SmoothedInTraining(Smoothed):
    only_in_training = True


class OtherLossFunction(LlamaForCausalLM):
    @property
    def loss_function(self):
        def penalized(logits, labels, vocab_size, **more):
            plain = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            return plain + 0.01 * logits.logsumexp(-1).square().mean()

        return penalized


def focal(logits, labels, vocab_size, **more):
    each = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return ((1 - (-each).exp()) * each).sum() / (labels[:, 1:] != -100).sum()


def own_loss_set(model):
    model.loss_function = focal
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [Smoothed, SmoothedInTraining, OtherLossFunction, "set"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_loss_of_the_models_own_is_taken(kind, training, frozen):
    plain = tiny_model(tie_word_embeddings=False)
    model = own_loss_set(plain) if kind == "set" else kind(plain.config).eval()
    model.load_state_dict(tiny_model(tie_word_embeddings=False).state_dict())
    model.train(training).lm_head.requires_grad_(not frozen)
    compare(model, *batch(4))


def test_training_and_answering_may_have_different_losses():
    model = SmoothedInTraining(tiny_model().config)
    for training in (True, False, True):
        compare(model.train(training), *batch(4))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_finding_out_leaves_nothing_behind(dropout):
    """No random number is drawn, no buffer changed, no gradient made, and no operation seen by who watches."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.small = nn.BatchNorm1d(32), Small()
            self.register_buffer("calls", torch.zeros(()))

        def get_output_embeddings(self):
            return self.small.lm_head

        def forward(self, input_ids, attention_mask=None, use_cache=False, labels=None):
            self.calls += 1
            h = self.norm(self.small.emb(input_ids).transpose(1, 2)).transpose(1, 2)
            h = nn.functional.dropout(h, dropout, self.training)
            return SimpleNamespace(logits=self.small.lm_head(h))

    torch.manual_seed(0)
    model = Counting().train()
    ids = torch.arange(3, 21).view(2, 9)
    torch.manual_seed(3)
    first = supervised_loss_sum(model, ids, torch.ones_like(ids), ids).detach()
    assert model.calls == 1 and model.norm.num_batches_tracked == 1
    assert all(p.grad is None for p in model.parameters())
    torch.manual_seed(3)
    assert torch.equal(supervised_loss_sum(model, ids, torch.ones_like(ids), ids).detach(), first)


def test_a_model_is_not_kept_alive_by_what_is_known_of_it():
    model = Small()
    ids = torch.arange(3, 21).view(2, 9)
    supervised_loss_sum(model, ids, torch.ones_like(ids), ids)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_no_trial_for_models_of_transformers_whose_code_says_what_they_do():
    calls = []
    model = adapted()
    model.model.layers[0].register_forward_hook(lambda *a: calls.append(1))
    supervised_loss_sum(model, *batch(0))
    assert len(calls) == 1


# -- autocast


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("compute", [None, "float32 states"])
def test_autocast_of_any_dtype_round_a_model_of_any_dtype(kind, dtype, cast, compute):
    model = tiny_model(tie_word_embeddings=False).to(dtype)
    if kind == "lora":
        inject_lora(model, 4, 8)
    if compute:  # norms that give float32, as some models have
        model.model.norm.register_forward_hook(lambda module, inputs, output: output.float())
    ids, mask, labels = batch(6)
    with torch.autocast("cpu", cast):
        mine = supervised_loss_sum(model, ids, mask, labels)
        theirs = model(input_ids=ids, attention_mask=mask, labels=labels).loss * (labels[:, 1:] != -100).sum()
    mine.backward()
    mine_found = gradients(model)
    theirs.backward()
    assert mine.item() == pytest.approx(theirs.item(), rel=5e-3)
    found = gradients(model)
    name = max(found, key=lambda n: found[n].norm())
    similar = nn.functional.cosine_similarity(mine_found[name].flatten().float(), found[name].flatten().float(), 0)
    assert similar > 0.99


def test_nested_tensors_are_refused_in_a_sentence():
    ids = torch.nested.nested_tensor([torch.tensor([3, 4, 5]), torch.tensor([6, 7])])
    with pytest.raises(ValueError, match="no nested tensors"):
        supervised_loss_sum(adapted(), ids, ids, ids)


def test_a_model_without_logits_is_named():
    class Silent(Small):
        def forward(self, input_ids, attention_mask=None, use_cache=False):
            return SimpleNamespace(hidden=self.emb(input_ids))

    with pytest.raises(ValueError, match="the loss of a Silent cannot be computed: its result has no `logits`"):
        supervised_loss_sum(Silent(), *small_batch())


def test_a_head_without_memory_is_looked_at_too():
    """The meta device knows no autocast, and PyTorch raises where it is asked."""
    with torch.device("meta"):
        head = nn.Linear(4, 8, bias=False).requires_grad_(False)
    assert loss.is_frozen_linear(head) and not loss.is_frozen_linear(head.half())
