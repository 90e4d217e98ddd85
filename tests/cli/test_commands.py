"""The command line, as a person uses it: help worth reading, mistakes told in a line, a killed run that goes on."""

import contextlib
import inspect
import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from qlora_lab.cli.commands import app, finetune, main
from qlora_lab.cli.run import RunPlan
from qlora_lab.qlora import QLoRALinear
from qlora_lab.quantization.datatypes import DATATYPES, SINCE_NF4, get_datatype
from qlora_lab.training.learning_rate import default_rate
from qlora_lab.training.run_plan import load_run, read_plan
from qlora_lab.training.settings import Settings

SMALL = ["--rank", "4", "--batch-size", "4", "--train-examples", "24", "--baseline-examples", "2"]
SMALL += ["--test-examples", "4", "--paraphrase-examples", "3", "--device", "cpu"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], terminal_width=120)


@pytest.mark.parametrize("command", [[], ["finetune"], ["ask"], ["export"], ["fetch"], ["bundle"], ["doctor"]])
def test_help(command):
    result = run(*command, "--help")
    assert result.exit_code == 0 and len(result.output) > 200


def test_the_defaults_are_the_plans():
    """The command line spells its defaults out, for --help; `RunPlan` and `Settings` have them too."""
    options = {name: parameter.default for name, parameter in inspect.signature(finetune).parameters.items()}
    plan = asdict(RunPlan()) | asdict(Settings())
    shared = (plan.keys() & options.keys()) - {"alpha", "learning_rate", "block_size"}
    assert {name: options[name] for name in shared} == {name: plan[name] for name in shared}
    assert options["alpha"] is None and plan["alpha"] == 2 * plan["rank"]
    assert options["learning_rate"] is None and plan["learning_rate"] == default_rate(134_515_008)
    assert options["block_size"] is None and plan["block_size"] == 64


def test_help_names_all_data_types():
    said = inspect.signature(finetune).parameters["datatype"].annotation.__metadata__[0].help
    assert said.replace(", or one of those since:", ",") == f"{', '.join((*DATATYPES, *SINCE_NF4))}."


def test_doctor_says_versions_device_and_cache():
    output = run("doctor").output
    for word in ("torch", "device", "computes in", "free memory", "cache", "qlora-lab finetune"):
        assert word in output


def test_the_cached_model_is_read_whole_where_that_is_asked_for(tmp_path, monkeypatch):
    """`doctor --full` and `fetch`; `doctor` alone looks at lengths and times."""
    from qlora_lab.models import base_model, never_quantized

    asked = []
    monkeypatch.setattr(never_quantized, "ensure_never_quantized", lambda given: tmp_path)
    status = base_model.ModelStatus(tmp_path, 0, "model.safetensors has changed since it was written")
    monkeypatch.setattr(base_model, "default_model_status", lambda full: asked.append(full) or status)
    monkeypatch.setattr(base_model, "ensure_default_model", lambda gguf, full: asked.append(full) or tmp_path)
    assert "not ready: model.safetensors has changed" in " ".join(run("doctor", "--full").output.split())
    run("doctor"), run("fetch")
    assert asked == [True, False, True]


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
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
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
@pytest.mark.parametrize("datatype", ["mxfp4", "nvfp4", "q4_1", "bof4_s"])
def test_a_run_on_a_base_in_a_later_format_is_loaded_and_asked(datatype, tiny_folder, tmp_path):
    where = ["--model", tiny_folder, "--runs", tmp_path]
    done = run("finetune", *where, "--name", "run", "--steps", "2", *SMALL, "--datatype", datatype)
    assert done.exit_code == 0, done.output
    plan = read_plan(tmp_path / "run")
    own = get_datatype(datatype)
    assert (plan.datatype, plan.block_size, plan.double_quant) == (datatype, own.block_size, own.allows_double_quant)
    model, _, _ = load_run(tmp_path / "run", device="cpu")
    layers = [module for module in model.modules() if isinstance(module, QLoRALinear)]
    assert layers and all((layer.datatype, layer.block_size) == (datatype, own.block_size) for layer in layers)
    asked = run("ask", "timer 5 min", *where, "--device", "cpu")
    assert asked.exit_code == 0 and "adapter" in asked.output, asked.output


@pytest.mark.slow
def test_a_paged_run_ends_with_the_same_adapter(tiny_folder, tmp_path):
    arguments = ["finetune", "--model", tiny_folder, "--steps", "3", *SMALL, "--runs", tmp_path]
    assert run(*arguments, "--name", "plain").exit_code == 0
    assert run(*arguments, "--name", "paged", "--page-budget", "0").exit_code == 0
    plain, paged = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("plain", "paged"))
    assert plain.read_bytes() == paged.read_bytes()


# -- streams that cannot take what is said, and names that are markup elsewhere


def in_a_process(*arguments, **environment):
    command = [sys.executable, "-m", "qlora_lab.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, timeout=120)


@pytest.fixture(scope="module")
def a_run(tiny_folder, tmp_path_factory):
    """A run whose name is markup and whose letters no ASCII stream has."""
    runs = tmp_path_factory.mktemp("runs")
    arguments = ["finetune", "--model", tiny_folder, "--runs", runs, "--name", NAME, "--steps", "2", *SMALL]
    return runs, in_a_process(*arguments, PYTHONIOENCODING="ascii")


NAME = "m[/b] :pill: käse"


@pytest.mark.slow
def test_a_run_with_any_name_to_a_stream_of_ascii(a_run):
    runs, done = a_run
    assert done.returncode == 0, done.stderr
    assert b"m[/b] :pill: k\\xe4se" in done.stdout and b"Traceback" not in done.stderr
    assert (runs / NAME / "report.html").exists()


@pytest.mark.slow
def test_ask_finds_it_and_answers_to_such_a_stream(a_run, tiny_folder):
    runs, _ = a_run
    done = in_a_process(
        "ask", "Remind Jörg to buy Käse 🧀 at 5 pm", "--runs", runs, "--model", tiny_folder, PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 0, done.stderr
    assert b"m[/b] :pill: k\\xe4se" in done.stdout


ENCODINGS = pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "utf-16-le"])


@contextlib.contextmanager
def streams(encoding: str):
    """Standard output and errors of some encoding; yields a list that holds, afterwards, what was written to them."""
    from qlora_lab.cli import terminal

    written, opened = [], [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
    before = sys.stdout, sys.stderr, terminal.console._file
    sys.stdout, sys.stderr, terminal.console._file = *opened, None
    try:
        yield written
    finally:
        sys.stdout, sys.stderr, terminal.console._file = before
        written += [stream.buffer.getvalue().decode(encoding) for stream in opened]


def called(monkeypatch, encoding, *arguments):
    """Exit code, output and errors of the command in a process whose streams have this encoding."""
    monkeypatch.setattr(sys, "argv", ["qlora-lab", *map(str, arguments)])
    with streams(encoding) as written, pytest.raises(SystemExit) as left:
        main()
    return left.value.code, *written


@ENCODINGS
@pytest.mark.parametrize(
    "arguments", [["doctor"], ["memory"], ["--help"], ["finetune", "--help"], ["classroom", "--help"]], ids=" ".join
)
def test_every_command_to_any_stream(monkeypatch, encoding, arguments):
    code, out, err = called(monkeypatch, encoding, *arguments)
    assert code == 0 and len(out) > 200 and not err


@ENCODINGS
def test_what_a_run_says_to_any_stream(encoding):
    from qlora_lab.cli import terminal

    with streams(encoding) as written:
        terminal.escape_unencodable()
        terminal.Bars().stage("answering [/b] :pill: Käse 🧀 \udcff")
        terminal.say("Käse 🧀 [/b]", style="bold")
    assert "[/b] :pill: K" in written[0] and written[0].count("\n") == 2


@ENCODINGS
def test_an_error_with_any_letters_is_one_line(monkeypatch, encoding, tmp_path):
    code, out, err = called(monkeypatch, encoding, "ask", "wake me", "--runs", tmp_path / "Jörg [/b] :pill: 🧀")
    assert code == 1 and not out
    assert err.startswith("error no adapter in ") and "[/b] :pill:" in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs bytes in arguments")
def test_a_command_that_is_no_text_is_told(a_run, tiny_folder):
    runs, _ = a_run
    done = in_a_process("ask", "wake \udcff me", "--runs", runs, "--model", tiny_folder)
    assert b"Traceback" not in done.stderr and done.returncode in (0, 1), done.stderr


@pytest.mark.slow
def test_a_reader_that_goes_away():
    command = [sys.executable, "-m", "qlora_lab.cli", "memory"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    error = process.stderr.read()
    process.wait(timeout=60)
    assert b"Traceback" not in error, error.decode()


@pytest.mark.parametrize("budget", ["nan", "inf", "-1"])
def test_a_budget_that_is_no_number_of_megabytes(tmp_path, budget):
    result = run("finetune", "--page-budget", budget, "--runs", tmp_path)
    assert result.exit_code == 1 and "page_budget" in result.output and not list(tmp_path.iterdir())


def test_an_option_that_cannot_be_had_is_not_left_out_silently(tmp_path):
    result = run("finetune", "--datatype", "int4_affine", "--double-quant", "--runs", tmp_path)
    assert result.exit_code == 1 and "double" in result.output and not list(tmp_path.iterdir())


def test_options_beside_resume_are_not_ignored(tiny_folder, tmp_path):
    from qlora_lab.cli.run import begin

    begin(tmp_path / "run", RunPlan(model=str(tiny_folder), rank=4, alpha=8), resume=False)
    for option in (["--rank", "8"], ["--rslora"], ["--steps", "7"], ["--no-double-quant"], ["--learning-rate", "0.5"]):
        result = run("finetune", "--resume", "--runs", tmp_path, *option)
        assert result.exit_code == 1 and "was begun with" in result.output, result.output


# -- memory: the numbers of notebook 05


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpu", 48], ["in float32", "47.81 GB", "does not fit 48 GB with 1.5 GB in reserve", "adapters in 16 bits"]),
        (["--gpu", 48, "--reserve", 0], ["47.81 GB", "it fits 48 GB, and 0.19 GB are left"]),
        (["--gpu", 48, "--adapter-dtype", "bfloat16"], ["in bfloat16", "41.43 GB", "it fits 48 GB", "5.1 GB are left"]),
        (["--method", "full"], ["784.48 GB"]),
    ],
)
def test_memory_bills_what_is_trained_and_keeps_a_reserve(options, said):
    result = run("memory", *options)
    words = " ".join(result.output.split())
    assert result.exit_code == 0 and all(each in words for each in said), result.output


def test_memory_bills_the_logits_of_other_peoples_losses():
    """Of a step whose peak is in the loss: 8,192 tokens, three float32 numbers for each of 32,000 words."""
    peaks = []
    for option in ("--chunked-loss", "--no-chunked-loss"):
        result = run("memory", "--model", "llama-7b", "--sequence-length", 8192, option)
        assert result.exit_code == 0, result.output
        peaks.append(float(result.output.split("peak")[1].split()[1]))
    assert peaks[1] - peaks[0] > 0.5


@pytest.mark.parametrize("option", [["--adapter-dtype", "int4"], ["--gpu", 48, "--reserve", 48], ["--gpu", 0]])
def test_memory_refuses_what_makes_no_sense(option):
    result = run("memory", *option)
    assert result.exit_code == 1 and "is not allowed" in result.output
