"""Whatever stands round a model or its parts, what is written goes by the plain model's names, and is read into it."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import adapted, pairs, tiny_model, tiny_tokenizer
from tiny_llama import assert_close, randomize_adapters, tiny_llama, token_batch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from qlora_lab import finetune, inject_lora, load_adapter, quantize_model, save_adapter
from qlora_lab.lora import adapted_layers
from qlora_lab.models.adapters import CONFIG, WEIGHTS
from qlora_lab.models.wrappers import inner_model, plain_modules, plain_parameters


def compiled(module):
    return torch.compile(module, backend="eager")


def in_place(module):
    module.compile(backend="eager")
    return module


def each_block(wrap):
    def wrapped(model):
        layers = model.model.layers
        for i, layer in enumerate(layers):
            layers[i] = wrap(layer)
        return model

    return wrapped


def each_linear(wrap):
    def wrapped(model):
        for name, module in list(model.named_modules()):
            if name.endswith("_proj"):
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, wrap(module))
        return model

    return wrapped


class Holder(nn.Module):
    """A module of one's own around the whole model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model(*inputs)


class WithHead(Holder):
    """It has weights of its own, so it is a model of its own."""

    def __init__(self, model):
        super().__init__(model)
        self.value = nn.Linear(97, 1)


WRAPPERS = {
    "compiled blocks": each_block(compiled),
    "compiled whole": compiled,
    "compiled in place": in_place,
    "compiled linears": each_linear(compiled),
    "compiled all over": lambda model: compiled(each_block(compiled)(each_linear(compiled)(model))),
    "data parallel": nn.DataParallel,
    "data parallel of compiled": lambda model: nn.DataParallel(compiled(model)),
    "data parallel blocks": each_block(nn.DataParallel),
    "data parallel linears": each_linear(nn.DataParallel),
    "checkpointed blocks": each_block(checkpoint_wrapper),
    "checkpointed linears": each_linear(checkpoint_wrapper),
    "checkpointed compiled blocks": each_block(lambda block: checkpoint_wrapper(compiled(block))),
    "averaged": AveragedModel,
    "held": Holder,
    "held twice": lambda model: Holder(Holder(compiled(model))),
    "sequential": nn.Sequential,
}
FORWARD = ("compiled blocks", "compiled linears", "data parallel linears", "checkpointed linears", "held", "averaged")


def bare(quantized):
    return quantize_model(tiny_llama(layers=1), rank=0) if quantized else tiny_llama(layers=1)


def tuned(quantized, rank=4, seed=0):
    model = tiny_llama(layers=1)
    model = quantize_model(model, rank=rank, alpha=8) if quantized else inject_lora(model, rank, 8)
    return randomize_adapters(model, seed).eval()


def values(model):
    return {name: value for name, value in plain_parameters(model) if "lora_" in name}


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapped_model_is_saved_and_loaded_as_the_plain_one(tmp_path, kind, quantized):
    model = tuned(quantized)
    plain = save_adapter(model, tmp_path / "plain")
    wrapped = save_adapter(WRAPPERS[kind](tuned(quantized)), tmp_path / "wrapped")
    for name in (CONFIG, WEIGHTS):
        assert (wrapped / name).read_bytes() == (plain / name).read_bytes()
    for other in (bare(quantized), tuned(quantized, rank=2, seed=3)):
        loaded = WRAPPERS[kind](other)
        assert load_adapter(loaded, plain) is loaded
        found = values(loaded)
        assert found.keys() == values(model).keys()
        assert all(torch.equal(found[name], value) for name, value in values(model).items())
        if kind in FORWARD:
            torch._dynamo.reset()
            assert_close(loaded.eval()(token_batch()).logits, model(token_batch()).logits, 1e-6)


@pytest.mark.parametrize("kind", ["compiled blocks", "compiled linears", "compiled all over", "data parallel linears"])
@pytest.mark.parametrize("change", ["inject", "quantize", "quantize alone"])
def test_what_is_put_into_a_wrapped_model_acts_as_in_the_plain_one(kind, change):
    """A compiled linear layer goes on calling what was compiled, unless it is told."""

    def changed(model):
        if change == "inject":
            return randomize_adapters(inject_lora(model, 4, 8)).eval()
        return randomize_adapters(quantize_model(model, rank=4 if change == "quantize" else 0)).eval()

    torch._dynamo.reset()
    wrapped = WRAPPERS[kind](tiny_llama(layers=1)).eval()
    with torch.no_grad():
        wrapped(token_batch())  # compiled before the change
        assert_close(changed(wrapped)(token_batch()).logits, changed(tiny_llama(layers=1))(token_batch()).logits, 1e-5)


def test_a_compiled_layer_alone():
    torch._dynamo.reset()
    layer = compiled(nn.Sequential(nn.Linear(8, 8), compiled(nn.Linear(8, 8))))
    x = torch.randn(2, 8)
    before = layer(x)
    model = randomize_adapters(inject_lora(layer, 2, 4, ["1._orig_mod"]))
    assert not torch.equal(model(x), before)
    single = compiled(nn.Linear(8, 8))
    assert not torch.equal(randomize_adapters(inject_lora(single, 2, 4))(x), single._orig_mod.base(x))


def test_peft_loads_what_compiled_blocks_were_saved_from(tmp_path):
    peft = pytest.importorskip("peft")
    model = tuned(quantized=False)
    expected = model(token_batch()).logits
    save_adapter(each_block(compiled)(model), tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_llama(layers=1), tmp_path).eval()
    assert_close(loaded(token_batch()).logits, expected, 1e-5)


def test_what_peft_saved_from_compiled_parts_is_read_into_the_plain_model(tmp_path):
    """PEFT itself leaves the wrappers' names in, and then finds nothing to load them into."""
    peft = pytest.importorskip("peft")
    options = {"r": 4, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {r"mlp\.down_proj": 2}}
    theirs = randomize_adapters(peft.get_peft_model(tiny_llama(layers=1), peft.LoraConfig(**options))).eval()
    expected = theirs(token_batch()).logits
    each_block(compiled)(theirs.base_model.model)
    theirs.save_pretrained(tmp_path)
    assert any("._orig_mod." in name for name in load_file(tmp_path / WEIGHTS))
    assert_close(load_adapter(tiny_llama(layers=1), tmp_path)(token_batch()).logits, expected, 1e-5)


def test_a_module_of_ones_own_that_has_weights_keeps_its_paths(tmp_path):
    """PEFT calls its parts by these paths too."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = randomize_adapters(inject_lora(WithHead(tiny_llama(layers=1)), 4, 8, ["q_proj"])).eval()
    save_adapter(model, tmp_path)
    torch.manual_seed(0)
    theirs = peft.PeftModel.from_pretrained(WithHead(tiny_llama(layers=1)), tmp_path).eval()
    assert_close(theirs(token_batch()).logits, model(token_batch()).logits, 1e-5)
    assert plain_modules(model).keys() == dict(model.named_modules()).keys()


def test_what_was_saved_under_the_paths_of_a_holder_is_read_into_one(tmp_path):
    """As PEFT saves it, and earlier versions of this package did."""
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(Holder(tiny_llama(layers=1)), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    randomize_adapters(theirs).eval().save_pretrained(tmp_path)
    ours = load_adapter(Holder(tiny_llama(layers=1)), tmp_path)
    assert_close(ours(token_batch()).logits, theirs(token_batch()).logits, 1e-5)


def test_adapters_in_a_model_of_pefts_are_refused(tmp_path):
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(tiny_llama(layers=1), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    save_adapter(tuned(quantized=False), tmp_path / "ours")
    for call in (lambda: save_adapter(theirs, tmp_path / "no"), lambda: load_adapter(theirs, tmp_path / "ours")):
        with pytest.raises(ValueError, match="adapters of PEFT's"):
            call()
    assert not (tmp_path / "no").exists()


def test_parameters_keep_their_order_and_every_one_has_a_name_of_its_own():
    plain = [name for name, _ in tuned(quantized=True).named_parameters()]
    for kind, wrap in WRAPPERS.items():
        model = wrap(tuned(quantized=True))
        named = list(plain_parameters(model))
        assert [name for name, _ in named] == plain, kind
        assert all(a is b for (_, a), b in zip(named, model.parameters(), strict=True)), kind
        assert type(inner_model(model)).__name__ == "LlamaForCausalLM"


def run(model, out, **options):
    options = {"steps": 2, "batch_size": 2, "checkpoint_every": 1, **options}
    return finetune(model, tiny_tokenizer(), pairs(6), out=out, **options)


@pytest.mark.parametrize("kind", ["checkpointed blocks", "compiled linears"])
def test_a_run_of_a_wrapped_model_is_resumed_by_the_plain_one_and_the_other_way_round(tmp_path, kind):
    torch._dynamo.reset()
    expected = run(adapted(tiny_model(num_hidden_layers=1)), tmp_path / "plain")
    for first, second in ((WRAPPERS[kind], lambda model: model), (lambda model: model, WRAPPERS[kind])):
        out = tmp_path / f"run-{first is WRAPPERS[kind]}"

        def stop(record):
            if record.step == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(first(adapted(tiny_model(num_hidden_layers=1))), out, on_step=stop)
        result = run(second(adapted(tiny_model(num_hidden_layers=1))), out, resume=True)
        assert result.resumed_from == 1
        for name in (CONFIG, WEIGHTS):
            assert (result.adapter / name).read_bytes() == (expected.adapter / name).read_bytes()
    assert not list(adapted_layers(tiny_model()))
