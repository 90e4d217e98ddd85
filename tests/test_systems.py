"""Other systems, as far as they can be imitated here: what Windows lacks is taken away, and the package works."""

import subprocess
import sys
from pathlib import Path

import pytest
from systems import LEFT_OUT, TESTS, left_out, summary

from qlora_lab.machine.files import write_text

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("place", LEFT_OUT)
def test_every_place_is_there_and_linux_leaves_none_out(place):
    assert (TESTS / place).exists()
    assert left_out(TESTS / place, "linux") is None and left_out(TESTS / place, "win32")
    assert left_out(TESTS / place / "test_some.py", "win32") and not left_out(TESTS / f"{place}x", "win32")


def test_what_is_left_out_is_said():
    assert summary("linux") == []
    assert "NOT RUN on darwin: tests/classroom (answers are run in a sandbox that only Linux has)" in summary("darwin")
    assert len(summary("darwin")) < len(summary("win32")) == len(LEFT_OUT)


def test_line_ends_are_written_as_they_are(tmp_path):
    write_text(tmp_path / "file", "one\ntwo\r\n")
    assert (tmp_path / "file").read_bytes() == b"one\ntwo\r\n"


# What these need is there already; then what Windows does not have goes, as a package of ours would find it.
WITHOUT = """
import importlib, os, pkgutil, signal, sys
import filelock, gguf, jinja2, nbformat, psutil, torch, torch._dynamo, torch.distributed.fsdp, transformers, typer
from transformers.models.llama import modeling_llama
from torch.distributed.checkpoint import state_dict

for name in ("fcntl", "resource", "termios", "pwd", "grp", "tty", "pty"):
    sys.modules[name] = None
kept = "SIGABRT SIGFPE SIGILL SIGINT SIGSEGV SIGTERM".split()
for name in [n for n in dir(signal) if n.startswith("SIG") and n not in (*kept, "SIG_DFL", "SIG_IGN")]:
    delattr(signal, name)
for name in ("fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "getgroups", "killpg", "mkfifo", "chown",
             "getpgid", "setsid", "posix_fallocate", "sched_getaffinity", "statvfs", "uname", "getloadavg", "setuid"):
    delattr(os, name)
"""
IMPORTS = (
    WITHOUT
    + """
import qlora_lab
failed = []
for module in pkgutil.walk_packages(qlora_lab.__path__, "qlora_lab."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except (ImportError, AttributeError) as error:
        failed.append(module.name)
print(*failed)
"""
)
USE = (
    WITHOUT
    + """
sys.path.insert(0, sys.argv[1])
os.chdir(sys.argv[2])
from tiny import adapted, pairs, tiny_tokenizer
from qlora_lab import finetune, quantize, QuantizedTensor
quantize(torch.randn(64, 64)).save("w.safetensors")
assert QuantizedTensor.load("w.safetensors").shape == (64, 64)
options = {"batch_size": 4, "checkpoint_every": 1, "paging": {"device_budget": 2**14, "page_size": 4096}}
one = finetune(adapted(), tiny_tokenizer(), pairs(8), out="run", steps=2, **options)
sys.platform = "win32"
from typer.testing import CliRunner
from qlora_lab.cli.commands import app
done = CliRunner().invoke(app, ["classroom", "grade", "."])
assert done.exit_code == 1 and "on Windows use WSL 2" in " ".join(done.output.split()), done.output
print("worked", len(one.records))
"""
)


def run(code: str, *arguments) -> str:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_only_grading_needs_what_windows_lacks():
    failed = set(run(IMPORTS).split()) - {"qlora_lab.quantization.fast.triton_decoder"}  # where Triton is not there
    assert failed and {name.rpartition(".")[0].partition(".inside")[0] for name in failed} == {"qlora_lab.classroom"}


@pytest.mark.slow
def test_a_run_with_pages_and_checkpoints_without_what_windows_lacks(tmp_path):
    assert run(USE, TESTS, tmp_path).endswith("worked 2")
