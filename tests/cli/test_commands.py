"""The command line, as a person uses it: help worth reading, mistakes told in a line, a killed run that goes on."""

import inspect
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from qlora_lab.cli.commands import app, finetune
from qlora_lab.cli.run import RunPlan
from qlora_lab.training.settings import Settings

SMALL = ["--rank", "4", "--batch-size", "4", "--train-examples", "24", "--baseline-examples", "2"]
SMALL += ["--test-examples", "4", "--paraphrase-examples", "3", "--device", "cpu"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], terminal_width=120)


@pytest.mark.parametrize("command", [[], ["finetune"], ["ask"], ["fetch"], ["bundle"], ["doctor"]])
def test_help(command):
    result = run(*command, "--help")
    assert result.exit_code == 0 and len(result.output) > 200


def test_the_defaults_are_the_plans():
    """The command line spells its defaults out, for --help; `RunPlan` and `Settings` have them too."""
    options = {name: parameter.default for name, parameter in inspect.signature(finetune).parameters.items()}
    plan = asdict(RunPlan()) | asdict(Settings())
    shared = (plan.keys() & options.keys()) - {"alpha"}
    assert {name: options[name] for name in shared} == {name: plan[name] for name in shared}
    assert options["alpha"] is None and plan["alpha"] == 2 * plan["rank"]


def test_doctor_says_versions_device_and_cache():
    output = run("doctor").output
    for word in ("torch", "device", "computes in", "free memory", "cache", "qlora-lab finetune"):
        assert word in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetune", "--datatype", "nf5"], "nf4"),
        (["finetune", "--rank", "0"], "at least 1"),
        (["finetune", "--steps", "0"], "steps 0"),
        (["finetune", "--compute-dtype", "float8"], "bfloat16"),
        (["finetune", "--resume"], "no unfinished run"),
        (["finetune", "--resume", "--name", "none"], "no run to resume"),
        (["ask", "wake me at six"], "no adapter"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, arguments, words):
    result = run(*arguments, "--runs", tmp_path)
    assert result.exit_code == 1
    assert words in result.output and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_gguf_that_is_not_the_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("QLORA_LAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    result = run("fetch", "--gguf", tmp_path / "other.gguf")
    assert result.exit_code == 1 and "4 bytes, expected 98,362,432" in " ".join(result.output.split())
    assert not list((tmp_path / "cache" / "models").glob("[!.]*"))  # the lock file alone


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_adapter(tiny_folder, tmp_path):
    arguments = ["finetune", "--model", tiny_folder, "--steps", "60", *SMALL, "--checkpoint-every", "1"]
    command = [sys.executable, "-m", "qlora_lab.cli", *map(str, arguments), "--runs", str(tmp_path), "--name", "killed"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        written = (tmp_path / "killed" / "checkpoints").glob("checkpoint-*")
        if any(int(number) >= 3 for number in (path.name.rpartition("-")[2] for path in written) if number.isdigit()):
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stdout.read()

    resumed = run("finetune", "--resume", "--runs", tmp_path)
    assert resumed.exit_code == 0, resumed.output
    assert "Before and after" in resumed.output and "adapter" in resumed.output
    whole = run(*arguments, "--runs", tmp_path, "--name", "whole")
    assert whole.exit_code == 0, whole.output
    one, other = (
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("killed", "whole")
    )
    assert one == other

    asked = run("ask", "timer 5 min", "--model", tiny_folder, "--runs", tmp_path, "--device", "cpu")
    assert asked.exit_code == 0 and "base model" in asked.output and "adapter" in asked.output


@pytest.mark.slow
def test_a_paged_run_ends_with_the_same_adapter(tiny_folder, tmp_path):
    arguments = ["finetune", "--model", tiny_folder, "--steps", "3", *SMALL, "--runs", tmp_path]
    assert run(*arguments, "--name", "plain").exit_code == 0
    assert run(*arguments, "--name", "paged", "--page-budget", "0").exit_code == 0
    plain, paged = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("plain", "paged"))
    assert plain.read_bytes() == paged.read_bytes()
