"""A run taken home, read back by whoever reads such files; every mistake told in a sentence, with nothing left."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from families import tiny_family
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer
from tiny_llama import randomize_adapters
from typer.testing import CliRunner

from qlora_lab.cli.commands import app
from qlora_lab.cli.run import RunPlan, begin
from qlora_lab.export import home
from qlora_lab.export.architectures import ARCHITECTURES
from qlora_lab.export.home import TARGETS, export
from qlora_lab.export.trained_run import read_run
from qlora_lab.lora import adapted_layers
from qlora_lab.models.adapters import save_adapter
from qlora_lab.models.base_model import load_model
from qlora_lab.qlora import quantize_model
from qlora_lab.tasks.function_calls import prompt_text

SIX = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt_neox")
SIZES = {"vocab_size": 259, "hidden_size": 64, "intermediate_size": 96, "bos_token_id": 1}


def make_run(
    folder: Path, model=None, datatype="nf4", block_size=32, target_modules="all-linear", name="run", **adapter
) -> Path:
    """A base in `folder`/base and, beside it, the folder that `finetune` would have left of a run on it."""
    model = tiny_model() if model is None else model
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    options = {"rank": 4, "alpha": 8} | adapter
    plan = RunPlan(
        model=str(folder / "base"),
        datatype=datatype,
        block_size=block_size,
        double_quant=False,
        dtype="float32",
        **options,
    )
    begin(folder / name, plan, resume=False)
    base = load_model(folder / "base", dtype="float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how much of so small a model is not quantized
        quantize_model(base, datatype, block_size, False, target_modules=target_modules, **options)
    save_adapter(randomize_adapters(base, seed=5), folder / name / "adapter")
    return folder / name


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("home"))


def trained_weights(run: Path) -> dict[str, torch.Tensor]:
    """What each adapted layer's weight and change are, by the definition: decode, and s B A. float32."""
    model = read_run(run).load_trained("cpu")
    return {
        name: (layer.quantized.dequantize(torch.float32), layer.delta().detach())
        for name, layer in adapted_layers(model)
        if layer.rank
    }


@torch.no_grad()
def logits(model) -> torch.Tensor:
    ids = torch.randint(3, 64, (2, 11), generator=torch.Generator().manual_seed(0))
    return model(ids).logits.float()


# -- merged

_LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
ids = torch.randint(3, 64, (2, 11), generator=torch.Generator().manual_seed(0))
found = {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": "five min"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    with torch.no_grad():
        logits = model.float()(ids).logits
    found[folder] = {"logits": logits, "text": text, "ends": model.generation_config.eos_token_id}
assert not {"peft", "qlora_lab", "bitsandbytes"} & sys.modules.keys()
torch.save(found, sys.argv[1])
"""


def test_merged_weights_load_in_a_process_that_knows_nothing_of_this_package(tmp_path):
    runs = {family: make_run(tmp_path / family, tiny_family(family, **SIZES)) for family in SIX}
    made = {family: export(run, "merged", tmp_path / family / "out").path for family, run in runs.items()}
    folders = [str(path) for path in made.values()]
    subprocess.run([sys.executable, "-c", _LOAD, str(tmp_path / "found.pt"), *folders], check=True, cwd=tmp_path)
    loaded = torch.load(tmp_path / "found.pt", weights_only=True)
    for family, folder in made.items():
        found = loaded[str(folder)]
        expected = logits(read_run(runs[family]).load_trained("cpu"))
        assert (found["logits"] - expected).abs().max() < 0.02 * expected.abs().max(), family
        assert found["text"] == prompt_text("five min")
        assert 2 in np.atleast_1d(found["ends"])
        weights = load_file(folder / "model.safetensors")
        assert not [name for name in weights if any(word in name for word in ("lora", "codes", "scale", "base."))]
        assert {tensor.dtype for tensor in weights.values()} <= {torch.float16, torch.bfloat16}
        config = json.loads((folder / "config.json").read_text())
        assert "quantization_config" not in config and config["dtype"] in ("float16", "bfloat16")


@pytest.mark.parametrize("base", ["trained", "original"])
def test_into_which_base_is_what_one_says(run, base, tmp_path):
    made = export(run, "merged", tmp_path / "out", base=base)
    merged = load_file(made.path / "model.safetensors")
    original = load_file(run.parent / "base" / "model.safetensors")
    for path, (decoded, delta) in trained_weights(run).items():
        weight = decoded if base == "trained" else original[f"{path}.weight"]
        assert torch.equal(merged[f"{path}.weight"], (weight + delta).half())
    assert base in (made.path / "README.md").read_text() or "trained beside" in made.remarks[0]


def test_what_has_no_adapter_is_decoded_too(tmp_path):
    run = make_run(tmp_path, target_modules=["q_proj"])
    merged = load_file(export(run, "merged", tmp_path / "out").path / "model.safetensors")
    model = read_run(run).load_trained("cpu")
    up = model.model.layers[0].mlp.up_proj
    assert up.rank == 0
    assert torch.equal(merged["model.layers.0.mlp.up_proj.weight"], up.quantized.dequantize(torch.float32).half())


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_with_an_adapter_gets_a_weight_of_its_own(tied, tmp_path):
    run = make_run(tmp_path, tiny_model(tie_word_embeddings=tied), target_modules=["q_proj", "lm_head"])
    expected = logits(read_run(run).load_trained("cpu"))
    made = export(run, "merged", tmp_path / "out")
    found = logits(load_model(made.path, dtype="float32"))
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    names = {tensor.name for tensor in GGUFReader(export(run, "gguf", tmp_path / "m.gguf").path).tensors}
    assert "output.weight" in names
    if tied:
        with pytest.raises(ValueError, match="shares its weight with the embedding"):
            export(run, "gguf-lora", tmp_path / "lora")
    else:
        export(run, "gguf-lora", tmp_path / "lora")


def test_a_bfloat16_base_stays_one(tmp_path):
    run = make_run(tmp_path, tiny_model().bfloat16())
    made = export(run, "merged", tmp_path / "out")
    assert {t.dtype for t in load_file(made.path / "model.safetensors").values()} == {torch.bfloat16}


# -- GGUF


def rows_there(path: str, config) -> np.ndarray:
    """By hand: which row of transformers' weight stands in each row of GGUF's."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if config.model_type in ("llama", "mistral") and path.endswith(("q_proj", "k_proj")):
        heads = config.num_attention_heads if path.endswith("q_proj") else config.num_key_value_heads
        return np.array(
            [h * size + half * size // 2 + i for h in range(heads) for i in range(size // 2) for half in (0, 1)]
        )
    if path.endswith("query_key_value"):
        heads = config.num_attention_heads
        return np.array([(h * 3 + part) * size + i for part in range(3) for h in range(heads) for i in range(size)])
    return np.array([])


@pytest.mark.parametrize("family", SIX)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_lora_read_back_and_applied_by_hand_gives_the_merged_weights(family, use_rslora, tmp_path):
    run = make_run(tmp_path, tiny_family(family, **SIZES), use_rslora=use_rslora)
    made = export(run, "gguf-lora", tmp_path / "out")
    reader = GGUFReader(made.path / "adapter.gguf")
    model = read_run(run).load_trained("cpu")
    architecture = ARCHITECTURES[family].name
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert fields["general.architecture"] == architecture
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        model.config.num_hidden_layers,
    )
    layers = {path: layer for path, layer in adapted_layers(model) if layer.rank}
    assert len(found) == 2 * len(layers)
    for path, layer in layers.items():
        name = f"{names.get_name(path)}.weight"
        a, b = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
        assert a.shape == (layer.rank, layer.in_features) and b.shape == (layer.out_features, layer.rank)
        change = fields["adapter.lora.alpha"] / layer.rank * b @ a  # as llama.cpp does
        order = rows_there(path, model.config)
        expected = layer.merged_linear(torch.float32).weight.detach().numpy()
        base = layer.quantized.dequantize(torch.float32).numpy()
        if len(order):
            expected, base = expected[order], base[order]
        np.testing.assert_allclose(base + change, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", SIX)
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_model_read_back_has_the_merged_weights(family, kind, tmp_path):
    run = make_run(tmp_path, tiny_family(family, **SIZES))
    made = export(run, "gguf", tmp_path / "out", type=kind)
    reader = GGUFReader(made.path / f"model-{kind}.gguf")
    found = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    model = read_run(run).load_trained("cpu")
    for path, layer in adapted_layers(model):
        name = ARCHITECTURES[family].tensor_name(f"{path}.weight", model.config.num_hidden_layers)
        expected = layer.merged_linear(torch.float32).weight.detach().numpy()
        order = rows_there(path, model.config)
        expected = expected[order] if len(order) else expected
        kind_there = gguf.GGMLQuantizationType[kind.upper()]
        there = gguf.dequantize(gguf.quantize(expected, kind_there), kind_there)
        assert np.array_equal(found[name], there)
    norm = model.get_submodule("gpt_neox.final_layer_norm" if family == "gpt_neox" else "model.norm").weight
    assert np.allclose(found["output_norm.weight"], norm.detach().numpy() + (family == "gemma2"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["tokenizer.ggml.eos_token_id"] == 2 and fields["tokenizer.ggml.tokens"][2] == "<|im_end|>"
    assert "im_start" in fields["tokenizer.chat_template"]


def test_a_file_of_the_base_gives_all_but_what_changed(tmp_path):
    """In Q4_1: the tensor types and the tables of the base's file, and untouched tensors byte by byte."""
    run = make_run(tmp_path, target_modules=["q_proj"])
    plain = replace(read_run(run)).load_base("cpu")
    base = write_base(plain, tmp_path / "base.gguf")
    made = export(run, "gguf", tmp_path / "out", type="q4_1", base_gguf=base, base="original")
    old, new = GGUFReader(base), GGUFReader(made.path / "model-q4_1.gguf")
    fields = {name: field.contents() for name, field in new.fields.items()}
    assert fields["tokenizer.ggml.tokens"] == old.fields["tokenizer.ggml.tokens"].contents()
    assert fields["general.author"] == "somebody" and fields["general.license"] == "mit"
    assert "license: mit" in (made.path / "README.md").read_text()
    before = {tensor.name: tensor for tensor in old.tensors}
    for tensor in new.tensors:
        same = np.array_equal(np.array(tensor.data), np.array(before[tensor.name].data))
        assert tensor.tensor_type == before[tensor.name].tensor_type
        assert same != tensor.name.endswith("attn_q.weight")


def write_base(model, path: Path) -> Path:
    """A GGUF file of a base in Q4_1; the base becomes what the file decodes to, so that they are one."""
    from qlora_lab.export.architectures import find_architecture
    from qlora_lab.export.gguf_files import model_fields, plan_model, write_gguf
    from qlora_lab.export.gguf_vocabulary import vocabulary_fields

    q4_1 = gguf.GGMLQuantizationType.Q4_1
    architecture = find_architecture(model.config)
    for parameter in model.parameters():
        if parameter.ndim == 2:  # rows change places as wholes, so blocks along them do not care
            values = parameter.detach().numpy()
            parameter.data = torch.from_numpy(gguf.dequantize(gguf.quantize(values, q4_1), q4_1).copy())
    model.save_pretrained(path.parent / "base")
    fields = model_fields(model.config, architecture) | vocabulary_fields(tiny_tokenizer(), 259, 2, False)
    fields |= {"general.author": ("somebody", gguf.GGUFValueType.STRING, None)}
    fields |= {"general.license": ("mit", gguf.GGUFValueType.STRING, None)}
    plan = plan_model(model, architecture, "f16", fields)
    tensors = [t._replace(type=q4_1) if len(t.shape) == 2 else t for t in plan.tensors]
    write_gguf(path, replace(plan, tensors=tensors))
    return path


# -- what stands beside the weights


@pytest.mark.parametrize("to", TARGETS)
def test_a_card_and_a_modelfile_stand_beside_the_weights(run, to, tmp_path):
    made = export(run, to, tmp_path / "new" / "out")
    card = (made.path / "README.md").read_text()
    for said in ("base", "nf4, blocks of 32", "rank 4, alpha 8", "Results", "Licence", "<|im_end|>"):
        assert said in card
    assert str(run.parent) not in card, "a path of this machine"
    if to != "peft":
        lines = (made.path / "Modelfile").read_text().splitlines()
        assert 'PARAMETER stop "<|im_end|>"' in lines
        source = next(line for line in lines if line.startswith("FROM ")).removeprefix("FROM ")
        assert (made.path / source).exists() or to == "gguf-lora"
        assert ("ADAPTER ./adapter.gguf" in lines) == (to == "gguf-lora")
    assert sorted(made.files) == sorted(path.name for path in made.path.iterdir())


@pytest.mark.parametrize(
    "readme, said",
    [
        ("---\nlicense: mit\nlanguage: en\n---\n# A model\n", "The base model's: mit."),
        ("---\nlanguage: en\n---\nlicense: mit\n", "None was found"),
        ("---\nlicense: mit\n", "None was found"),
        (None, "None was found"),
    ],
)
def test_the_licence_is_the_base_s_or_said_to_be_unknown(run, readme, said, tmp_path):
    base = shutil.copytree(run.parent / "base", tmp_path / "base")
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    if readme is not None:
        (base / "README.md").write_text(readme)
    card = (export(adapter, "peft", tmp_path / "out", model=str(base)).path / "README.md").read_text()
    assert said in card and ("license: mit\n" in card.partition("# ")[0]) == ("base model's: mit" in said)


def test_an_exported_adapter_opens_in_peft(run, tmp_path):
    peft = pytest.importorskip("peft")
    made = export(run, "peft", tmp_path / "out")
    model = peft.PeftModel.from_pretrained(load_model(run.parent / "base", dtype="float32"), str(made.path))
    ours = home.load_adapter(load_model(run.parent / "base", dtype="float32"), run / "adapter")
    torch.testing.assert_close(logits(model), logits(ours), rtol=0, atol=1e-4)


def test_a_name_that_ends_in_gguf_gets_the_file_alone(run, tmp_path):
    made = export(run, "gguf", tmp_path / "home.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["home.gguf"] and GGUFReader(made.path).tensors


@pytest.mark.parametrize("to", TARGETS)
def test_an_adapter_without_a_run_goes_into_the_original_base(run, to, tmp_path):
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    made = export(adapter, to, tmp_path / "out", model=str(run.parent / "base"))
    assert "not known" in made.remarks[0] and made.remarks[0] in (made.path / "README.md").read_text()


@pytest.mark.skipif(os.name != "posix", reason="links need no rights there")
def test_an_empty_folder_or_a_link_to_one_is_filled(run, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export(run, "peft", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "README.md").exists()


@pytest.mark.parametrize(
    "datatype, block_size", [("nf4", 64), ("fp4", 64), ("int4", 32), ("int4_affine", 32), ("nvfp4", 16)]
)
def test_the_base_is_the_one_that_run_json_says(datatype, block_size, tmp_path):
    run = make_run(tmp_path, datatype=datatype, block_size=block_size)
    made = export(run, "merged", tmp_path / "out")
    expected = logits(read_run(run).load_trained("cpu"))
    found = logits(load_model(made.path, dtype="float32"))
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()


# -- mistakes


def unfinished(run: Path):
    shutil.rmtree(run / "adapter")


def damaged_plan(run: Path):
    (run / "run.json").write_text("{")


def other_block_size(run: Path):
    path = run / "run.json"
    path.write_text(path.read_text().replace('"block_size": 32', '"block_size": 33'))


def adapter_of_another_model(run: Path):
    path = run / "adapter" / "adapter_model.safetensors"
    save_file({name: torch.cat([t, t], 1) if "lora_A" in name else t for name, t in load_file(path).items()}, path)


def spoiled_adapter(run: Path):
    path = run / "adapter" / "adapter_model.safetensors"
    save_file({name: t * float("nan") for name, t in load_file(path).items()}, path)


def cut_adapter(run: Path):
    path = run / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def base_gone(run: Path):
    shutil.rmtree(run.parent / "base")


def unknown_family(run: Path):
    tiny_family("opt").save_pretrained(run.parent / "base")


def other_activation(run: Path):
    path = run.parent / "base" / "config.json"
    path.write_text(path.read_text().replace('"silu"', '"relu"'))


def other_tokenizer(run: Path):
    path = run.parent / "base" / "tokenizer.json"
    path.write_text(
        path.read_text()
        .replace('"use_regex":true', '"use_regex":false')
        .replace('"use_regex": true', '"use_regex": false')
    )


BROKEN = {
    unfinished: ("no trained adapter", TARGETS),
    damaged_plan: ("run.json", TARGETS),
    other_block_size: ("block_size", TARGETS),
    adapter_of_another_model: ("another base model|rank", TARGETS),
    spoiled_adapter: ("NaN", TARGETS),
    cut_adapter: ("not a whole safetensors", TARGETS),
    base_gone: ("not a folder|no local folder", TARGETS),
    unknown_family: ("how a opt model is written in GGUF is not known", ("gguf", "gguf-lora")),
    other_activation: ("relu", ("gguf",)),
    other_tokenizer: ("how llama.cpp would read this tokenizer", ("gguf",)),
}


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("to, broken", [(to, broken) for broken, (_, targets) in BROKEN.items() for to in targets])
def test_a_run_that_is_not_whole_leaves_nothing(run, to, broken, tmp_path):
    shutil.copytree(run.parent / "base", tmp_path / "base")
    own = shutil.copytree(run, tmp_path / "run")
    plan = json.loads((own / "run.json").read_text())
    plan["plan"]["model"] = str(tmp_path / "base")
    (own / "run.json").write_text(json.dumps(plan, indent=2))
    broken(own)
    before = everything(tmp_path)
    with pytest.raises((ValueError, OSError, RuntimeError), match=BROKEN[broken][0]) as raised:
        export(own, to, tmp_path / "new" / "out")
    assert "\n" not in str(raised.value)
    assert everything(tmp_path) == before


def occupied(out: Path):
    out.mkdir()
    (out / "mine.txt").write_text("mine")


PLACES = {
    "already holds something": occupied,
    "is no folder": lambda out: out.write_text("a file"),
}


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("said", PLACES)
def test_a_place_that_is_taken_stays_as_it_is(run, to, said, tmp_path):
    PLACES[said](tmp_path / "out")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=said):
        export(run, to, tmp_path / "out")
    assert everything(tmp_path) == before


ARGUMENTS = {
    "to": ({"to": "onnx"}, "to"),
    "type": ({"type": "q2_k"}, "type"),
    "base": ({"base": "best"}, "base"),
    "no run": ({"run": "nothing/here"}, "is no folder"),
    "a folder of something else": ({"run": Path(__file__).parent}, "neither a run"),
    "a file that is there": ({"out": __file__}, "is no folder"),
    "below a file": ({"out": f"{__file__}/out"}, "is no folder"),
    "another model": ({"model": "some/other"}, "was trained on"),
    "q4_1 of a base that did not come in it": ({"type": "q4_1"}, "came in it"),
    "a type where there is none": ({"to": "merged", "type": "q8_0"}, "type q8_0 would change nothing in merged"),
    "a base where none is merged into": ({"to": "gguf-lora", "base": "original"}, "base original would change nothing"),
    "a base file that is not needed": ({"to": "peft", "base_gguf": "base.gguf"}, "base_gguf base.gguf would change"),
    "no such base file": ({"base_gguf": "nothing.gguf"}, "is no file"),
    "a base file that is none": ({"base_gguf": __file__}, "not a whole GGUF"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_an_argument_that_makes_no_sense_is_told(run, case, tmp_path):
    changed, said = ARGUMENTS[case]
    values = {"run": run, "to": "gguf", "out": tmp_path / "out"} | changed
    with pytest.raises(ValueError, match=said) as raised:
        export(values.pop("run"), values.pop("to"), values.pop("out"), **values)
    assert "\n" not in str(raised.value) and not everything(tmp_path)


def test_trained_is_not_guessed_for_an_adapter_alone(run, tmp_path):
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"without a run\.json"):
        export(adapter, "merged", tmp_path / "out", base="trained", model=str(run.parent / "base"))


# an adapter's file holds nothing of the base's values, so only shapes can tell
@pytest.mark.parametrize(
    "to, changed",
    [
        ("gguf", {"hidden_size": 32}),
        ("gguf", {"num_hidden_layers": 1}),
        ("gguf", {"seed": 7}),
        ("gguf-lora", {"hidden_size": 32}),
        ("gguf-lora", {"num_hidden_layers": 1}),
    ],
)
def test_a_file_of_another_base_is_refused(run, to, changed, tmp_path):
    file = write_base(tiny_model(**changed), tmp_path / "other.gguf")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match="of another model"):
        export(run, to, tmp_path / "out", base_gguf=file)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("to", TARGETS)
def test_no_room_is_found_out_before(run, to, tmp_path, monkeypatch):
    monkeypatch.setattr(home.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(OSError, match="0 MB are free"):
        export(run, to, tmp_path / "out")
    assert not everything(tmp_path)


@pytest.mark.parametrize("to", TARGETS)
def test_a_disk_that_is_full_after_all_leaves_nothing(run, to, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(home, "write_text", full)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="nothing was written"):
        export(run, to, tmp_path / "deep" / "er" / "out")
    with pytest.raises(OSError, match="nothing was written"):
        export(run, to, tmp_path / "empty")
    assert everything(tmp_path) == {tmp_path / "empty"}


@pytest.mark.parametrize(
    "plan, template, said",
    [
        ({"data": "mine.jsonl", "format": "completion"}, None, "{{ .Prompt }}"),
        (
            {
                "data": "mine.jsonl",
                "format": "chat",
                "template": "{% for m in messages %}({{ m.content }}){% endfor %}",
            },
            "({",
            "(",
        ),
        ({"data": None, "format": "auto", "template": None}, "im_start", "im_start"),
    ],
)
def test_the_template_is_the_one_that_run_json_says(run, plan, template, said, tmp_path):
    """As later versions write it, with fields that are not known here."""
    own = shutil.copytree(run, tmp_path / "run")
    saved = json.loads((own / "run.json").read_text())
    (own / "run.json").write_text(json.dumps({"plan": saved["plan"] | plan | {"metric": None}}))
    made = export(own, "gguf", tmp_path / "out")
    fields = GGUFReader(made.path / "model-f16.gguf").fields
    found = fields["tokenizer.chat_template"].contents() if "tokenizer.chat_template" in fields else None
    assert found == template or template in found
    assert said in (made.path / "Modelfile").read_text()


# -- the command


def test_the_command_writes_and_says_what(run, tmp_path):
    done = CliRunner().invoke(
        app,
        ["export", "run", "--runs", str(run.parent), "--to", "gguf", "--type", "q8_0", "--out", str(tmp_path / "o")],
    )
    assert done.exit_code == 0, done.output
    assert "model-q8_0.gguf" in done.output and (tmp_path / "o" / "model-q8_0.gguf").exists()


def test_the_command_tells_a_mistake_in_a_line(tmp_path):
    done = CliRunner().invoke(app, ["export", "nowhere", "--to", "gguf", "--out", str(tmp_path / "o")])
    assert done.exit_code == 1 and "nowhere is no folder" in done.output and "Traceback" not in done.output
