"""Adapters on disk: PEFT loads ours, we load PEFT's, and a file that does not fit changes nothing."""

import json
import shutil
import warnings

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_llama import (
    LINEAR_NAMES,
    assert_close,
    assert_unchanged,
    loss_and_gradients,
    quantize_with_bitsandbytes,
    randomize_adapters,
    snapshot,
    tiny_llama,
    token_batch,
)
from torch import nn

from qlora_lab import (
    LoRALinear,
    QLoRALinear,
    inject_lora,
    load_adapter,
    load_model,
    merge,
    quantize_model,
    save_adapter,
)
from qlora_lab.lora import adapted_layers
from qlora_lab.models.adapters import CONFIG, WEIGHTS, adapter_tensors

# float32 on both sides; only the order of additions differs
FLOAT32 = 1e-5

Q1 = "model.layers.1.self_attn.q_proj"


def peft_model(base=None, **options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **options})
    return randomize_adapters(peft.get_peft_model(base or tiny_llama(), config))


def logits_of(model):
    model.eval()  # no dropout
    return model(token_batch()).logits.detach()


def edit_config(directory, **changes):
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, **changes}))


def edit_tensors(directory, change):
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


@pytest.fixture
def saved(tmp_path):
    """An adapter of the tiny model as PEFT writes it."""
    peft_model(target_modules="all-linear").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# --- both ways


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(
    "targets",
    ["all-linear", ["q_proj", "v_proj"], [Q1], ["layers.0.mlp.up_proj", "o_proj"], ["lm_head", "k_proj"]],
)
def test_peft_loads_ours(tmp_path, targets, use_rslora):
    peft = pytest.importorskip("peft")
    model = randomize_adapters(inject_lora(tiny_llama(), 4, 8, targets, dropout=0.25, use_rslora=use_rslora))
    assert save_adapter(model, tmp_path / "new" / "adapter") == tmp_path / "new" / "adapter"
    loaded = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "new" / "adapter")
    theirs = [n for n, m in loaded.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert {n.removeprefix("base_model.model.") for n in theirs} == {path for path, _ in adapted_layers(model)}
    config = loaded.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (4, 8, 0.25, use_rslora)
    assert_close(logits_of(model), logits_of(loaded), FLOAT32)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "lora_dropout": 0.1},
        {"target_modules": [Q1]},
        {"target_modules": r".*layers\.1\.mlp\.(up|down)_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
        {"target_modules": "all-linear", "rank_pattern": {"k_proj": 2, Q1: 7}, "alpha_pattern": {"mlp.up_proj": 3}},
        {"target_modules": "all-linear", "alpha_pattern": {r"layers\.\d+\.mlp\..*": 5, "o_proj": 2}},
        {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {r"^model\.layers\.0\..*": 6}},
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    ],
)
def test_we_load_pefts(tmp_path, options):
    reference = peft_model(**options)
    reference.save_pretrained(tmp_path)
    model = tiny_llama()
    assert load_adapter(model, tmp_path) is model
    assert_close(logits_of(model), logits_of(reference), FLOAT32)
    model.train(), reference.train()
    for each in (model, reference):
        each.requires_grad_(False)
        for name, parameter in each.named_parameters():
            parameter.requires_grad_("lora_" in name)
    if not options.get("lora_dropout"):
        assert_close(loss_and_gradients(model, token_batch()), loss_and_gradients(reference, token_batch()), FLOAT32)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_ranks_and_alphas_that_differ_by_layer_go_there_and_back(tmp_path, use_rslora):
    peft = pytest.importorskip("peft")
    options = {"rank_pattern": {"k_proj": 2, Q1: 7}, "alpha_pattern": {"mlp.up_proj": 3}, "use_rslora": use_rslora}
    reference = peft_model(target_modules="all-linear", **options)
    reference.save_pretrained(tmp_path / "theirs")
    model = load_adapter(tiny_llama(), tmp_path / "theirs")
    assert {layer.rank for _, layer in adapted_layers(model)} == {2, 4, 7}
    save_adapter(model, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "ours")
    assert_close(logits_of(again), logits_of(reference), FLOAT32)
    assert_close(logits_of(load_adapter(tiny_llama(), tmp_path / "ours")), logits_of(reference), FLOAT32)


@pytest.mark.parametrize("from_peft", [False, True])
def test_between_our_4_bit_model_and_bitsandbytes(tmp_path, from_peft):
    """Without double quantization, where the two bases are equal bit for bit."""
    peft = pytest.importorskip("peft")
    ours = randomize_adapters(quantize_model(tiny_llama(), rank=4, alpha=8, double_quant=False), seed=1)
    theirs = quantize_with_bitsandbytes(tiny_llama(), double_quant=False)
    if from_peft:
        theirs = peft_model(theirs, target_modules="all-linear")
        theirs.save_pretrained(tmp_path)
        load_adapter(ours, tmp_path)
    else:
        save_adapter(ours, tmp_path)
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path)
    assert isinstance(ours.get_submodule(Q1), QLoRALinear)
    assert_close(logits_of(ours), logits_of(theirs), FLOAT32)


def test_what_is_written_is_what_peft_writes(tmp_path, saved):
    model = load_adapter(tiny_llama(), saved)
    save_adapter(model, tmp_path / "ours")
    ours, theirs = load_file(tmp_path / "ours" / WEIGHTS), load_file(saved / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with safe_open(tmp_path / "ours" / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((tmp_path / "ours" / CONFIG).read_text())
    assert config["target_modules"] == sorted(LINEAR_NAMES)
    assert config.items() <= {**json.loads((saved / CONFIG).read_text()), **_differences(config)}.items()
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [CONFIG, WEIGHTS]


def _differences(config):
    """Where our configuration may say something else than PEFT's of the same adapter."""
    return {key: config[key] for key in ("target_modules", "base_model_name_or_path")}


def test_the_machines_folders_are_not_written_into_the_configuration(tmp_path):
    model = inject_lora(tiny_llama(), 2, 4)
    for name, expected in (
        (str(tmp_path / "models" / "tiny"), "./tiny"),
        (f"{tmp_path}/models/gpt2/", "./gpt2"),  # "gpt2" alone would be another model, the hub's
        ("someone/tiny", "someone/tiny"),
        ("", None),
    ):
        model.config._name_or_path = name
        save_adapter(model, tmp_path / "adapter")
        assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["base_model_name_or_path"] == expected


def test_pefts_auto_model_finds_a_local_base(tmp_path, monkeypatch):
    """By the name it is given, or from the folder that the base lies in."""
    peft = pytest.importorskip("peft")
    tiny_llama().save_pretrained(tmp_path / "my base")
    model = randomize_adapters(inject_lora(load_model(tmp_path / "my base", device="cpu"), 2, 4))
    save_adapter(model, tmp_path / "named", base_model=str(tmp_path / "my base"))
    save_adapter(model, tmp_path / "relative")
    monkeypatch.chdir(tmp_path)
    for name in ("named", "relative"):
        loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / name)
        assert_close(logits_of(loaded), logits_of(model), FLOAT32)
    loaded.save_pretrained(tmp_path / "again")


# Models, and the task that PEFT takes their adapters for: classes, spans and masked words are none for it without a
# trained head in the file.
SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
BERT = transformers.BertConfig(**SIZES, intermediate_size=32)
LLAMA = tiny_llama(layers=1).config
T5 = transformers.T5Config(
    vocab_size=97, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0
)
BART = transformers.BartConfig(
    vocab_size=97, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4
)
HEADS = {
    "LlamaForCausalLM": (LLAMA, "CAUSAL_LM", ["q_proj"]),
    "LlamaModel": (LLAMA, "FEATURE_EXTRACTION", ["q_proj"]),
    "LlamaForSequenceClassification": (LLAMA, None, ["q_proj"]),
    "LlamaForTokenClassification": (LLAMA, None, ["q_proj"]),
    "LlamaForQuestionAnswering": (LLAMA, None, ["q_proj"]),
    "BertModel": (BERT, "FEATURE_EXTRACTION", ["query"]),
    "BertForMaskedLM": (BERT, None, ["query"]),
    "BertForSequenceClassification": (BERT, None, ["query"]),
    "BertForTokenClassification": (BERT, None, ["query"]),
    "T5ForConditionalGeneration": (T5, "SEQ_2_SEQ_LM", ["q"]),
    "BartForConditionalGeneration": (BART, "SEQ_2_SEQ_LM", ["q_proj"]),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_task_is_the_one_that_peft_has_for_the_model(tmp_path, kind):
    peft = pytest.importorskip("peft")
    config, task, targets = HEADS[kind]

    def base():
        torch.manual_seed(0)
        return getattr(transformers, kind)(config).eval()

    def outputs(model):
        two = {"decoder_input_ids": token_batch()} if config.is_encoder_decoder else {}
        return model(input_ids=token_batch(), **two)[0].detach()

    model = randomize_adapters(inject_lora(base(), 2, 4, targets))
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["task_type"] == task
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path).eval()
    names = {"CAUSAL_LM": "ForCausalLM", "SEQ_2_SEQ_LM": "ForSeq2SeqLM", "FEATURE_EXTRACTION": "ForFeatureExtraction"}
    assert type(loaded).__name__ == "PeftModel" + names.get(task, "")
    assert_close(outputs(loaded), outputs(model), FLOAT32)


def test_a_model_that_hears_has_no_task_of_pefts(tmp_path):
    options = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 97, "pad_token_id": 0}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2}
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(**options, **heads, decoder_start_token_id=1)
    )
    save_adapter(inject_lora(model, 2, 4, ["q_proj"]), tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["task_type"] is None


class Nested(nn.Module):
    """The same leaf name in several places, one of them at the top and one no linear layer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"proj": nn.Linear(4, 4), "dense": nn.Linear(4, 4), "base": nn.Linear(4, 4)})
        self.proj, self.act = nn.Linear(4, 4), nn.ModuleDict({"dense": nn.ReLU()})

    def forward(self, x):
        inner = self.inner
        return inner["base"](self.act["dense"](inner["dense"](inner["proj"](self.proj(x)))))


@pytest.mark.parametrize(
    ("targets", "written"),
    [
        (["proj"], ["proj"]),
        (["inner.proj"], ["inner.proj"]),
        ("proj", "proj"),
        (["inner.dense"], ["inner.dense"]),
        (["base"], ["base"]),
        ("proj|inner.base", r"inner\.base|proj"),
        ("all-linear", ["inner.base", "inner.dense", "inner.proj", "proj"]),
    ],
)
def test_targets_are_written_in_the_shortest_form_that_means_the_adapted_layers(tmp_path, targets, written):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = Nested()
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = randomize_adapters(inject_lora(base, 2, 4, targets))
    for path, layer in adapted_layers(model):  # one that a suffix of another's path would catch
        if path == "proj":
            layer.alpha, layer.scaling = 5, 2.5
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == written
    x = torch.randn(3, 4)
    for load in (load_adapter, lambda model, path: peft.PeftModel.from_pretrained(model, path).eval()):
        plain = Nested()
        plain.load_state_dict(state)
        loaded = load(plain, tmp_path)
        assert_close(loaded(x), model(x), FLOAT32)
        adapters = {name.partition(".lora_A")[0] for name, _ in loaded.named_parameters() if ".lora_A" in name}
        assert {name.removeprefix("base_model.model.") for name in adapters} == {p for p, _ in adapted_layers(model)}


# --- loading into models that have adapters


def test_loading_replaces_the_adapters_there_are(saved):
    expected = logits_of(load_adapter(tiny_llama(), saved))
    model = randomize_adapters(inject_lora(tiny_llama(), 9, 1, ["lm_head", "q_proj"], use_rslora=True), seed=5)
    model.get_submodule(Q1).eval()
    load_adapter(model, saved)
    assert model.lm_head.rank == 0  # not in the file
    assert not any(isinstance(layer.base, LoRALinear) for _, layer in adapted_layers(model))
    assert not model.get_submodule(Q1).training
    assert_close(logits_of(model), expected, FLOAT32)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{n}.lora_{m}" for n in _adapted(model) for m in "AB"}


def _adapted(model):
    return [name for name, layer in adapted_layers(model) if layer.rank]


def test_loading_into_a_merged_model_takes_the_old_update_out_first(tmp_path):
    save_adapter(randomize_adapters(inject_lora(tiny_llama(), 4, 8, ["q_proj"])), tmp_path)
    expected = logits_of(load_adapter(tiny_llama(), tmp_path))
    model = merge(randomize_adapters(inject_lora(tiny_llama(), 4, 8), seed=5))
    assert_close(logits_of(load_adapter(model, tmp_path)), expected, FLOAT32)


def test_a_4_bit_model_keeps_its_base(saved):
    model = quantize_model(tiny_llama(), rank=0)
    codes = {name: layer.codes for name, layer in adapted_layers(model)}
    load_adapter(model, saved)
    assert all(layer.codes is codes[name] for name, layer in adapted_layers(model))
    reference = load_adapter(quantize_model(tiny_llama(), rank=16, alpha=3), saved)
    assert torch.equal(logits_of(model), logits_of(reference))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_adapters_saved_in_other_dtypes_become_float32(saved, dtype):
    edit_tensors(saved, lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    model = load_adapter(tiny_llama(), saved)
    stored = load_file(saved / WEIGHTS)
    for name, tensor in adapter_tensors(model).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())


@pytest.mark.parametrize("save", [True, False, "auto"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_peft_saved_with_its_base_is_compared_and_loaded(tmp_path, dtype, tied, save):
    reference = peft_model(tiny_llama(tied=tied), target_modules=["q_proj", "lm_head"])
    reference.to(dtype).save_pretrained(tmp_path, save_embedding_layers=save)
    names = load_file(tmp_path / WEIGHTS).keys()
    assert any("lm_head.base_layer" in name for name in names) == bool(save)
    before = tiny_llama(tied=tied)
    for base in (
        before,
        tiny_llama(tied=tied),
        merge(randomize_adapters(inject_lora(tiny_llama(), 2, 4, ["lm_head"]))),
    ):
        if base is before or not tied:
            model = load_adapter(base, tmp_path)
            assert model.lm_head.rank == 4
            if dtype == torch.float32:
                assert_close(logits_of(model), logits_of(reference), FLOAT32)
    if not tied:
        quantized = quantize_model(tiny_llama(), rank=2, target_modules=["lm_head"])
        if dtype == torch.float32:
            load_adapter(quantized, tmp_path)
            assert quantized.lm_head.rank == 4
    if save:
        for other in (
            tiny_llama(seed=1, tied=tied),
            quantize_model(tiny_llama(seed=1), rank=2, target_modules=["lm_head"]),
        ):
            with pytest.raises(ValueError, match="another"):
                load_adapter(other, tmp_path)


@pytest.mark.parametrize("targets", [["embed_tokens"], ["q_proj", "embed_tokens"]])
def test_adapters_on_an_embedding_are_refused_by_name(tmp_path, targets):
    peft_model(target_modules=targets).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.embed_tokens is an embedding"):
        load_adapter(tiny_llama(), tmp_path)


def test_a_head_that_was_trained_whole_is_refused(tmp_path):
    peft_model(target_modules=["q_proj"], modules_to_save=["lm_head"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"modules_to_save=\['lm_head'\]"):
        load_adapter(tiny_llama(), tmp_path)
    edit_config(tmp_path, modules_to_save=None)
    load_adapter(tiny_llama(), tmp_path)  # it is still the model's
    edit_tensors(tmp_path, lambda tensors: tensors["base_model.model.lm_head.weight"].mul_(1.001))
    with pytest.raises(ValueError, match="this model's is another"):
        load_adapter(tiny_llama(), tmp_path)


def test_loading_under_inference_mode_can_be_trained_afterwards(saved):
    model = tiny_llama()
    with torch.inference_mode():
        load_adapter(model, saved)
    expected = loss_and_gradients(load_adapter(tiny_llama(), saved), token_batch())
    assert_close(loss_and_gradients(model, token_batch()), expected, FLOAT32)


def test_weights_that_peft_would_leave_out_are_refused(saved):
    edit_config(saved, target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"layers\.0\.\S+, which adapter_config.json does not name among its targets"):
        load_adapter(tiny_llama(), saved)


def test_a_model_on_the_meta_device_takes_no_values(saved):
    with pytest.raises(ValueError, match="is on the meta device"):
        load_adapter(tiny_llama().to("meta"), saved)


def test_a_compiled_model_is_saved_and_loaded_under_its_own_names(tmp_path):
    model = randomize_adapters(inject_lora(tiny_llama(), 4, 8))
    save_adapter(torch.compile(model), tmp_path)
    compiled = torch.compile(tiny_llama())
    assert load_adapter(compiled, tmp_path) is compiled
    assert torch.equal(logits_of(compiled._orig_mod), logits_of(model))


@pytest.mark.cuda
def test_loading_onto_a_gpu(saved):
    model = load_adapter(tiny_llama().cuda(), saved)
    assert all(parameter.is_cuda for parameter in model.parameters())
    quantized = load_adapter(quantize_model(tiny_llama(), rank=0, device="cuda"), saved)
    assert all(parameter.is_cuda for parameter in quantized.parameters())


# --- refusals: the model stays as it was


def _drop_one_b(tensors):
    del tensors[f"base_model.model.{Q1}.lora_B.weight"]


def _spoil(tensors):
    tensors[f"base_model.model.{Q1}.lora_A.weight"][1, 2] = float("nan")


def _flatten(tensors):
    tensors[f"base_model.model.{Q1}.lora_A.weight"] = torch.zeros(4)


def _integers(tensors):
    tensors[f"base_model.model.{Q1}.lora_A.weight"] = torch.zeros(4, 64, dtype=torch.int32)


def _wider(tensors):
    tensors[f"base_model.model.{Q1}.lora_A.weight"] = torch.zeros(4, 96)


def _other_rank(tensors):
    tensors[f"base_model.model.{Q1}.lora_B.weight"] = torch.zeros(64, 5)


def _lower_rank(tensors):
    for name, shape in (("lora_A", (3, 64)), ("lora_B", (64, 3))):
        tensors[f"base_model.model.{Q1}.{name}.weight"] = torch.zeros(shape)


def _deeper(tensors):
    for name, shape in (("lora_A", (4, 64)), ("lora_B", (64, 4))):
        tensors[f"base_model.model.{Q1.replace('1', '7')}.{name}.weight"] = torch.zeros(shape)


def _embedding(tensors):
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(4, 97)


def _unlike_floats(tensors):
    name = f"base_model.model.{Q1}.lora_A.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def _complex(tensors):
    tensors[f"base_model.model.{Q1}.lora_A.weight"] = torch.zeros(4, 64, dtype=torch.complex64)


def _beyond_float32(tensors):
    tensors[f"base_model.model.{Q1}.lora_A.weight"] = torch.full((4, 64), 1e39, dtype=torch.float64)


def _no_rows(tensors):
    for name, shape in (("lora_A", (0, 64)), ("lora_B", (64, 0))):
        tensors[f"base_model.model.{Q1}.{name}.weight"] = torch.zeros(shape)


def _twice(tensors):
    tensors[f"{Q1}.lora_A.weight"] = torch.zeros(4, 64)


def _magnitude(tensors):
    tensors[f"base_model.model.{Q1}.lora_magnitude_vector"] = torch.zeros(64)


def _adapter_name(tensors):
    tensors[f"base_model.model.{Q1}.lora_A.default.weight"] = torch.zeros(4, 64)


def _another_head(tensors):
    tensors["base_model.model.lm_head.base_layer.weight"] = tiny_llama(seed=1).lm_head.weight.detach()


def _resized_head(tensors):
    tensors["base_model.model.lm_head.weight"] = torch.zeros(98, 64)


def _bias_of_its_own(tensors):
    tensors[f"base_model.model.{Q1}.base_layer.bias"] = torch.zeros(64)


def _other_module(tensors):
    tensors["base_model.model.score.weight"] = torch.zeros(1, 64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop_one_b, rf"incomplete: {Q1} has lora_A only"),
        (_spoil, rf"NaN or infinity in the adapter of {Q1}"),
        (_flatten, r"lora_A.weight' \(4,\) torch.float32, which is neither"),
        (_integers, r"torch.int32, which is neither"),
        (_wider, r"A \(4, 96\), B \(64, 4\); the layer maps 64 to 64 features"),
        (_other_rank, r"A \(4, 64\), B \(64, 5\)"),
        (_lower_rank, r"has rank 3, but adapter_config.json says 4"),
        (
            _deeper,
            r"layers.7.self_attn.q_proj, which is no linear layer of this model \(it has: q_proj, k_proj.*lm_head",
        ),
        (_embedding, r"lora_embedding_A' \(4, 97\)"),
        (_unlike_floats, r"float8_e4m3fn, which is neither"),
        (_complex, r"complex64, which is neither"),
        (_beyond_float32, rf"NaN or infinity in the adapter of {Q1}"),
        (_no_rows, r"lora_A.weight' \(0, 64\) torch.float32, which is neither"),
        (_twice, rf"holds {Q1}.lora_A.weight twice"),
        (_magnitude, r"lora_magnitude_vector' \(64,\)"),
        (_adapter_name, r"lora_A.default.weight' \(4, 64\)"),
        (_another_head, r"holds lm_head.weight \(97, 64\) torch.float32, and this model's is another"),
        (_resized_head, r"holds lm_head.weight \(98, 64\) torch.float32, and this model's is another \(\(97, 64\)\)"),
        (_bias_of_its_own, rf"holds {Q1}.bias \(64,\) torch.float32, which this model does not have"),
        (_other_module, r"holds score.weight \(1, 64\) torch.float32, which this model does not have"),
        (dict.clear, "holds no adapters"),
    ],
)
@pytest.mark.parametrize("quantized", [False, True])
def test_weights_that_do_not_fit(saved, change, words, quantized):
    edit_tensors(saved, change)
    model = quantize_model(tiny_llama(), rank=2, alpha=4) if quantized else tiny_llama()
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        load_adapter(model, saved)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "IA3"},
        {"peft_type": None},
        {"bias": "lora_only"},
        {"use_dora": True},
        {"use_qalora": True},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"layer_replication": [[0, 1], [0, 2]]},
        {"trainable_token_indices": [1, 2]},
        {"target_parameters": ["experts"]},
        {"alora_invocation_tokens": [5]},
        {"arrow_config": {"top_k": 3}},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "lora_ga"},
        {"init_lora_weights": "unheard of"},
        {"use_new_thing": True},
        {"new_config": {"size": 3}},
        {"use_dora": "yes"},
        {"kasa_config": {}},
        {"arrow_config": 0},
        {"lora_alpha": 0},
        {"lora_alpha": None},
        {"lora_dropout": 1.5},
        {"alpha_pattern": {Q1: -1}},
        {"rank_pattern": {"q_proj": 5}},
    ],
    ids=str,
)
def test_options_that_are_not_read(saved, change):
    edit_config(saved, **change)
    model = tiny_llama()
    before = snapshot(model)
    with pytest.raises(ValueError) as raised:
        load_adapter(model, saved)
    name, value = next(iter(change.items()))
    shown = next(iter(value.values())) if isinstance(value, dict) and name.endswith("pattern") else value
    assert CONFIG in str(raised.value)
    assert repr(shown) in str(raised.value)
    assert_unchanged(model, before)


# A value of every kind that JSON has, and the texts that mean something somewhere.
VALUES = st.one_of(
    st.none() | st.booleans() | st.sampled_from([0, 1, 2, 4, -1, 10**400, 4.0, 2.5, 0.5, 1e308, 5e-324]),
    st.floats() | st.text(max_size=4),
    st.sampled_from(
        ["no", "none", "4", "LORA", "gaussian", "pissa_niter_4", "all-linear", "q_proj", "layers", "CAUSAL_LM"]
    ),
    st.sampled_from([".*(q|down)_proj", "layers", r".*\.\d+\.(self_attn|mlp)\.[^k]+", "*", "(", "q_proj|down_proj"]),
    st.sampled_from([[], {}, ["q_proj"], ["q_proj", "down_proj", 3], ["q_proj", "mlp.down_proj"], [0], [1], 10 * [[]]]),
    st.dictionaries(
        st.sampled_from(["q_proj", "self_attn.q_proj", ".*proj", "*q_proj", "(", "(q|down)_proj", "^model"]),
        st.none() | st.booleans() | st.sampled_from([2, 3, 4, 4.0, "4", -1, 1e308, [4], float("nan")]),
        max_size=2,
    ),
)
FIELDS = [
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "peft_type"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "bias", "init_lora_weights", "fan_in_fan_out"),
    *("ensure_weight_tying", "use_dora", "modules_to_save", "target_parameters", "new_option", "task_type", "revision"),
]


@pytest.fixture(scope="module")
def two_targets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_targets")
    peft_model(tiny_llama(layers=1), target_modules=["q_proj", "down_proj"]).save_pretrained(folder)
    return folder


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=2), removed=st.sampled_from(FIELDS)
)
@pytest.mark.filterwarnings("ignore")
def test_whatever_a_configuration_says_the_outcome_is_pefts_or_a_refusal(two_targets, tmp_path, changes, removed):
    peft = pytest.importorskip("peft")
    shutil.copytree(two_targets, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / CONFIG).read_text())
    if len(changes) == 1:
        config.pop(removed, None)
    (tmp_path / CONFIG).write_text(json.dumps({**config, **changes}))
    model = tiny_llama(layers=1)
    before = snapshot(model)
    try:
        found = logits_of(load_adapter(model, tmp_path))
    except ValueError:
        assert_unchanged(model, before)
        return
    try:
        reference = peft.PeftModel.from_pretrained(tiny_llama(layers=1), tmp_path)
    except Exception as error:
        if "task type" not in str(error) and "keys" not in str(error):  # a name alone; null for no pattern
            raise AssertionError(f"PEFT refuses this ({error!r})") from error
    else:
        assert_close(found, logits_of(reference), FLOAT32)


@pytest.mark.parametrize("pattern", ["(a|a)*b", "(.*)*x", "((q|k|v|o|_|p|r|j|.)*)*[0-9]$", "(?:(?:.+)+)+0"])
@pytest.mark.parametrize(
    "name", ["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_pattern"]
)
def test_an_expression_that_would_take_for_ever_is_refused(saved, monkeypatch, name, pattern):
    from qlora_lab.models import adapters

    monkeypatch.setattr(adapters, "_SECONDS", 0.3)
    pattern = pattern.replace("a", "[a-z.0-9_]")
    edit_config(saved, **{name: {pattern: 4} if name.endswith("n") and name[0] in "ra" else pattern})
    edit_config(saved, **({"layers_to_transform": [0, 1]} if name == "layers_pattern" else {}))
    model = tiny_llama()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"regular expression .* takes longer than 0.3 s|does not name"):
        load_adapter(model, saved)
    assert_unchanged(model, before)


def test_deep_and_large_configurations(saved):
    content = (saved / CONFIG).read_text()
    for spoiled in ("[" * 100_000 + "]" * 100_000, content[:-2] + ', "x": "' + " " * (1 << 24) + '"}'):
        (saved / CONFIG).write_text(spoiled)
        with pytest.raises(ValueError, match="not JSON that could be read"):
            load_adapter(tiny_llama(), saved)
    (saved / CONFIG).write_bytes(b"\xef\xbb\xbf" + content.encode())  # an editor's mark at the beginning
    load_adapter(tiny_llama(), saved)


def test_a_remark_in_a_configuration_is_ignored_aloud(saved):
    edit_config(saved, trained_by="somebody")
    with pytest.warns(UserWarning, match="trained_by='somebody', which is unknown here"):
        load_adapter(tiny_llama(), saved)


def test_peft_options_that_change_nothing_are_read(saved):
    """Every field PEFT writes by default is understood; nothing else about it is refused."""
    assert len(json.loads((saved / CONFIG).read_text())) > 20
    load_adapter(tiny_llama(), saved)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_is_missing(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_adapter(tiny_llama(), saved)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
def test_a_damaged_configuration(saved, content):
    (saved / CONFIG).write_bytes(content)
    model = tiny_llama()
    before = snapshot(model)
    with pytest.raises(ValueError, match=CONFIG):
        load_adapter(model, saved)
    assert_unchanged(model, before)


def test_weights_cut_short(saved):
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=WEIGHTS):
        load_adapter(tiny_llama(), saved)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda model: model, "no adapters to save"),
        (lambda model: quantize_model(model, rank=0), "no adapters to save"),
        (lambda model: merge(inject_lora(model, 2, 4)), "unmerge"),
        (lambda model: _mixed_dropout(inject_lora(model, 2, 4)), "differ in dropout"),
        (lambda model: _spoiled(inject_lora(model, 2, 4), torch.full((2, 64), float("nan"))), f"{Q1} holds NaN"),
        (
            lambda model: _spoiled(inject_lora(model, 2, 4), torch.zeros(0)),
            rf"{Q1} is A \(0,\), B \(64, 2\): not whole",
        ),
        (lambda model: inject_lora(model, 2, 4).to("meta"), "on the meta device"),
    ],
)
def test_what_cannot_be_saved_writes_nothing(tmp_path, saved, prepare, words):
    model = prepare(tiny_llama())
    with pytest.raises(ValueError, match=words):
        save_adapter(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(ValueError, match=words):
        save_adapter(model, saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def _mixed_dropout(model):
    model.get_submodule(Q1).dropout = 0.5
    return model


def _spoiled(model, values):
    model.get_submodule(Q1).lora_A.data = values
    return model


def test_what_is_trained_beside_adapters_is_said_not_to_be_saved(tmp_path):
    model = inject_lora(tiny_llama(), 2, 4)
    model.model.norm.weight.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"model\.norm\.weight can be trained .* is not saved"):
        save_adapter(model, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", ["all-linear", ["q_a_proj", "o_proj"]])
def test_a_model_whose_experts_are_one_weight(tmp_path, targets):
    """PEFT takes gate_proj and up_proj for the experts' there; without them it loads ours."""
    peft = pytest.importorskip("peft")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "v_head_dim": 8, "qk_rope_head_dim": 8}
    ranks = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "max_position_embeddings": 64}
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    }
    config = transformers.DeepseekV3Config(vocab_size=97, **sizes, **heads, **ranks, **experts)

    def base():
        torch.manual_seed(0)
        return transformers.DeepseekV3ForCausalLM(config)

    model = randomize_adapters(inject_lora(base(), 2, 4, targets))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_adapter(model, tmp_path)
    assert any("PEFT takes the names gate_proj" in str(each.message) for each in caught) == (targets == "all-linear")
    assert_close(logits_of(load_adapter(base(), tmp_path)), logits_of(model), FLOAT32)
    if targets != "all-linear":
        assert_close(logits_of(peft.PeftModel.from_pretrained(base(), tmp_path)), logits_of(model), FLOAT32)
