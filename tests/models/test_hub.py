"""Any model: from a local folder, or from a hub that is asked once."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import qlora_lab
from qlora_lab.models import hub
from qlora_lab.models.adapters import load_adapter
from qlora_lab.models.base_model import load_model, load_tokenizer
from qlora_lab.models.downloads import ModelUnavailable

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save_tiny_model(folder, **options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder, **options)
    return folder


# --- folders


def test_a_whole_folder_is_taken_as_it_is(tmp_path):
    save_tiny_model(tmp_path)
    assert hub.find_folder(tmp_path, weights=True) == tmp_path


def test_a_sharded_folder_needs_every_shard(tmp_path):
    save_tiny_model(tmp_path, max_shard_size="20KB")
    assert hub.find_folder(tmp_path, weights=True) == tmp_path
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelUnavailable, match=f"lacks {shard.name}"):
        hub.find_folder(tmp_path, weights=True)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelUnavailable, match="damaged"):
        hub.find_folder(tmp_path, weights=True)


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "~/absent", "a/b/c", "..\\absent"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(ModelUnavailable, match="is not a folder"):
        hub.find_folder(name, weights=True)


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelUnavailable, match="is not a folder"):
        hub.find_folder(tmp_path / "model.gguf", weights=True)


def test_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(ModelUnavailable, match=r"no config\.json"):
        hub.find_folder(tmp_path, weights=True)
    assert hub.find_folder(tmp_path, weights=False) == tmp_path  # transformers says what a tokenizer lacks


def test_an_adapter_is_not_followed_to_another_model(tmp_path):
    save_tiny_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else", "peft_type": "LORA"}')
    with pytest.raises(ModelUnavailable, match="holds an adapter"):
        load_model(tmp_path)


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_read(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(ModelUnavailable, match="use a copy saved with save_pretrained"):
        load_model(folder)
    assert not (tmp_path / "sprung").exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())  # the trap does work
    assert (tmp_path / "sprung").exists()


# --- a hub


class Hub(BaseHTTPRequestHandler):
    """What the hub's client asks of it: a model's description, the list of its files, and a file's content."""

    def do_GET(self):
        self.server.asked.append(self.path)
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and (folder := self.find(parts[2:4])):
            files = [{"rfilename": path.name, "size": path.stat().st_size} for path in sorted(folder.iterdir())]
            if "tree" in parts:
                tree = [{"type": "file", "path": f["rfilename"], "size": f["size"], "oid": COMMIT} for f in files]
                return self.reply(json.dumps(tree).encode())
            description = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": files, "tags": [], "private": False}
            return self.reply(json.dumps(description | {"downloads": 0, "likes": 0}).encode())
        if parts[2:3] == ["resolve"] and (folder := self.find(parts[:2])) and (folder / parts[4]).is_file():
            return self.reply((folder / parts[4]).read_bytes())
        return self.reply(b"", 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def find(self, names):
        folder = Path(self.server.root, *names)
        return folder if folder.is_dir() else None

    def reply(self, body, status=200, headers=()):
        self.send_response(status)
        headers = dict(headers) | {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.root, server.asked = tmp_path / "hub", []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def load_in_child(server, home, name):
    """Load `name` in a process that knows only this hub; returns (parameters or the error's message)."""
    code = (
        "import sys\nfrom qlora_lab import models\n"
        "try: print(sum(p.numel() for p in models.load_model(sys.argv[1], device='cpu').parameters()))\n"
        "except models.ModelUnavailable as error: print(error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(Path(qlora_lab.__file__).parents[1]),
    }
    for unwanted in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"):
        environment.pop(unwanted, None)
    finished = subprocess.run(
        [sys.executable, "-c", code, name], env=environment, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_a_hub_model_is_fetched_once(server, tmp_path):
    folder = save_tiny_model(server.root / "somebody" / "tiny")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    (folder / "adapter_model.safetensors").touch()
    expected = sum(parameter.numel() for parameter in load_model(folder, device="cpu").parameters())
    first = load_in_child(server, tmp_path / "home", "somebody/tiny")
    assert first.splitlines() == ["Fetching somebody/tiny from the model hub (0 MB, once) …", str(expected)]
    resolved = {path.split("/")[-1] for path in server.asked if "resolve" in path}
    assert resolved == {"config.json", "generation_config.json", "model.safetensors"}
    server.asked.clear()
    assert load_in_child(server, tmp_path / "home", "somebody/tiny") == f"{expected}\n"
    assert server.asked == []


@pytest.mark.slow
def test_a_hub_model_without_safetensors(server, tmp_path):
    folder = save_tiny_model(server.root / "somebody" / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = load_in_child(server, tmp_path / "home", "somebody/pickled")
    assert said.startswith("somebody/pickled has no safetensors on the model hub.")
    assert len(server.asked) == 1


@pytest.mark.slow
def test_a_model_the_hub_does_not_have(server, tmp_path):
    said = load_in_child(server, tmp_path / "home", "somebody/absent")
    assert "it has no such model" in said
    assert "Check the name" in said


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached(server, tmp_path):
    server.shutdown()
    server.server_close()
    said = load_in_child(server, tmp_path / "home", "somebody/tiny")
    assert "the model hub did not give it" in said
    assert "Check the name and the connection" in said


# --- code that comes with a model


def set_trap(path, proof):
    path.write_bytes(pickle.dumps(Trap(proof)))


def hostile(folder, proof, index=None):
    """A model's folder whose weights are a pickle that leaves `proof`."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name in ("pytorch_model.bin", "weights.pt", "model.pt", "evil.bin"):
        set_trap(folder / name, proof)
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": index}}))
    return folder


@pytest.mark.parametrize(
    "index", [None, "evil.bin", "../elsewhere/model.safetensors", "evil.bin.safetensors/../evil.bin", "weights.pt"]
)
def test_no_way_leads_to_a_pickle(tmp_path, index):
    proof = tmp_path / "ran"
    (tmp_path / "elsewhere").mkdir()
    set_trap(tmp_path / "elsewhere" / "model.safetensors", proof)
    with pytest.raises(ModelUnavailable, match=r"no model\.safetensors|no safetensors file beside it"):
        load_model(hostile(tmp_path / "model", proof, index), device="cpu")
    assert not proof.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "shard.safetensors"])
def test_a_pickle_by_the_name_of_safetensors_is_none(tmp_path, name):
    proof = tmp_path / "ran"
    folder = hostile(tmp_path / "model", proof, None if name.startswith("model") else name)
    set_trap(folder / name, proof)
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        load_model(folder, device="cpu")
    assert not proof.exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "adapter_model.safetensors"])
def test_an_adapter_is_never_a_pickle(tmp_path, name):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["a"]}')
    set_trap(tmp_path / name, tmp_path / "ran")
    with pytest.raises((FileNotFoundError, ValueError), match=r"adapter_model\.safetensors"):
        load_adapter(torch.nn.Linear(2, 2), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "setting",
    [
        {"_attn_implementation": "owner/kernel"},
        {"attn_implementation": "owner/kernel@v1:function"},
        {"_attn_implementation": {"": "sdpa", "text_config": "owner/kernel"}},
        {"text_config": {"_attn_implementation": "owner/kernel"}},
        {"towers": [{"_experts_implementation": "owner/kernel"}]},
    ],
    ids=str,
)
def test_code_for_attention_is_not_fetched(tmp_path, setting):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **setting}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelUnavailable, match=r"asks for code from the model hub \(.*owner/kernel"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("known", [True, False])
def test_code_beside_a_model_or_a_tokenizer_is_not_run(tmp_path, known):
    proof = tmp_path / "ran"
    code = f"open({str(proof)!r}, 'w')\nclass Any: pass\nclass AnyConfig: pass\n"
    (tmp_path / "code.py").write_text(code)
    places = {"AutoConfig": "code.AnyConfig", "AutoModelForCausalLM": "code.Any", "AutoTokenizer": ["code.Any", None]}
    kind = "llama" if known else "unheard_of"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": places}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Any", "auto_map": places}))
    (tmp_path / "model.safetensors").touch()
    for load in (lambda: load_model(tmp_path, device="cpu"), lambda: load_tokenizer(tmp_path)):
        with pytest.raises(ModelUnavailable):
            load()
    assert not proof.exists()
