"""Own data from file to report, killed and resumed; what is wrong with it is told before anything is written."""

import json
from dataclasses import replace

import pytest
from tiny import assert_same_bits, metrics, pairs
from typer.testing import CliRunner

from qlora_lab.cli.commands import app
from qlora_lab.cli.run import Listener, RunPlan, begin, execute
from qlora_lab.cli.run_data import read_data
from qlora_lab.machine.files import load_tensors
from qlora_lab.training.run_plan import read_plan

SMALL = ["--rank", "4", "--batch-size", "4", "--device", "cpu", "--learning-rate", "1e-2", "--baseline-examples", "2"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], terminal_width=150)


def said(result) -> str:
    return " ".join(result.output.split())


@pytest.fixture
def data(tmp_path):
    """Forty questions and answers, and a text."""
    path = tmp_path / "train.jsonl"
    rows = [{"prompt": f"{pair.prompt} ", "completion": pair.target.removesuffix("<|im_end|>")} for pair in pairs(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "prose.txt.jsonl").write_text(json.dumps({"text": "It was a dark and stormy night. " * 40}))
    return path


def losses(folder):
    return [(r["step"], r["loss"]) for r in map(json.loads, (folder / "validation.jsonl").read_text().splitlines())]


def test_from_a_file_to_a_report(tiny_folder, data, tmp_path):
    arguments = ["finetune", "--data", data, "--model", tiny_folder, "--runs", tmp_path / "runs", "--name", "own"]
    options = ["--epochs", 2, "--metric", "exact", "--mix", tmp_path / "prose.txt.jsonl", "--packing"]
    done = run(*arguments, *SMALL, *options)
    assert done.exit_code == 0, done.output
    folder, text = tmp_path / "runs" / "own", said(done)
    for words in ("read as questions", "held back", "tokens learned", "validation loss", "general text", "kept: step"):
        assert words in text, words
    assert {path.name for path in folder.iterdir()} >= {
        "run.json", "before.json", "metrics.jsonl", "validation.jsonl", "samples.jsonl", "adapter", "report.html",
        "result.json", "loss.png", "match.png",
    }  # fmt: skip
    numbers = json.loads((folder / "result.json").read_text())
    assert numbers["validation"]["best step"] == min(losses(folder), key=lambda point: point[1])[0]
    assert set(numbers["loss on general text"]) == {"before", "after"}
    assert list(numbers["evaluations"]) == ["base model (2 of validation)", "validation"]
    plan = read_plan(folder)
    assert (plan.format, plan.metric, plan.settings["packing"]) == ("prompt-completion", "exact", True)
    page = (folder / "report.html").read_text()
    assert "examples held back" in page and "<mark" in page and page.count("data:image/png") == 2
    steps = {json.loads(line)["step"] for line in (folder / "samples.jsonl").read_text().splitlines()}
    assert steps == {step for step, _ in losses(folder)}
    asked = run("ask", "one two", "--runs", tmp_path / "runs", "--device", "cpu")
    assert asked.exit_code == 0 and "with " in asked.output, asked.output


def plan_for(tiny_folder, data, **changed) -> RunPlan:
    settings = {"batch_size": 4, "learning_rate": 3e-2, "validate_every": 2}
    return RunPlan(
        model=str(tiny_folder),
        rank=4,
        alpha=8,
        data=str(data),
        epochs=1.5,
        dropout=0.1,
        **{"settings": settings} | changed,
    )


def test_own_data_stopped_and_resumed_ends_with_the_same_bits(tiny_folder, data, tmp_path):
    class Stop(Exception):
        pass

    class Stopping(Listener):
        def step(self, record, steps):
            assert steps == 14
            if record.step == 11:
                raise Stop

    plan = plan_for(tiny_folder, data, mix=str(tmp_path / "prose.txt.jsonl"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    begin(whole, plan, resume=False)
    execute(whole, plan, device="cpu")
    begin(cut, plan, resume=False)
    with pytest.raises(Stop):
        execute(cut, plan, device="cpu", listener=Stopping(), checkpoint_every=3)
    result = execute(cut, begin(cut, RunPlan(), resume=True), resume=True, device="cpu")
    assert result.training.resumed_from == 9
    one, other = (load_tensors(f / "adapter" / "adapter_model.safetensors")[0] for f in (cut, whole))
    assert_same_bits(one, other)
    assert metrics(cut) == metrics(whole) and losses(cut) == losses(whole)


def test_a_resume_where_the_data_has_changed_is_refused(tiny_folder, data, tmp_path):
    plan = plan_for(tiny_folder, data)
    begin(tmp_path / "run", plan, resume=False)
    execute(tmp_path / "run", plan, device="cpu")
    data.write_text(data.read_text().replace("red", "blue", 1))
    with pytest.raises(ValueError, match=r"the (validation )?examples changed"):
        execute(tmp_path / "run", read_plan(tmp_path / "run"), resume=True, device="cpu")
    data.unlink()
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        execute(tmp_path / "run", read_plan(tmp_path / "run"), resume=True, device="cpu")


def test_a_template_a_file_of_validation_and_patience(tiny_folder, data, tmp_path):
    template, held = tmp_path / "own.jinja", tmp_path / "held.jsonl"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    held.write_text(json.dumps({"prompt": "stop go", "completion": "go stop"}) + "\n")
    arguments = ["finetune", "--data", data, "--model", tiny_folder, "--runs", tmp_path / "runs", "--name", "own"]
    options = ["--steps", 8, "--template", template, "--validation", held, "--patience", 1, "--validate-every", 1]
    done = run(*arguments, *SMALL, *options)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "runs" / "own"
    assert read_plan(folder).template == template.read_text()
    command = "<|im_start|>user\nstop go<|im_end|>\n<|im_start|>assistant\n"
    assert command not in json.loads((folder / "before.json").read_text())["answers"][0]["command"]
    template.unlink()
    asked = run("ask", "stop go", "--adapter", folder, "--device", "cpu")
    assert asked.exit_code == 0, asked.output


WRONG = {
    "no such file": (["--data", "none.jsonl"], "no file or folder"),
    "a line that is no JSON": (["--data", "broken.jsonl"], "broken.jsonl, line 2: not JSON"),
    "an unknown format": (["--data", "train.jsonl", "--format", "chats"], "unknown format 'chats'"),
    "a file of other columns": (["--data", "train.jsonl", "--format", "chat"], "train.jsonl, line 1"),
    "no template there": (["--data", "train.jsonl", "--template", "none.jinja"], "no file none.jinja"),
    "no template": (["--data", "train.jsonl", "--template", "train.jsonl"], "is no chat template"),
    "an unknown metric": (["--data", "train.jsonl", "--metric", "f1"], "unknown metric 'f1'"),
    "a metric of no module": (["--data", "train.jsonl", "--metric", "no_such:f"], "cannot be imported"),
    "answers that are no JSON": (["--data", "train.jsonl", "--metric", "json"], "the answer is no JSON"),
    "a metric and nothing held back": (
        ["--data", "train.jsonl", "--metric", "exact", "--validation-share", "0"],
        "give --validation",
    ),
    "patience and nothing held back": (
        ["--data", "train.jsonl", "--patience", "2", "--validation-share", "0"],
        "patience",
    ),
    "a share that is none": (["--data", "train.jsonl", "--validation-share", "1.5"], "validation_share 1.5"),
    "no validation file": (["--data", "train.jsonl", "--validation", "none.jsonl"], "no file or folder"),
    "one example": (["--data", "one.jsonl"], "cannot be split"),
    "nothing left of it": (["--data", "train.jsonl", "--max-length", "2"], "left"),
    "epochs and steps": (["--data", "train.jsonl", "--epochs", "2", "--steps", "3"], "epochs or steps, not both"),
    "no epochs": (["--data", "train.jsonl", "--epochs", "0"], "epochs 0"),
    "no such layer": (["--data", "train.jsonl", "--target-modules", "query"], "target 'query' matches no module"),
    "a share of no mix": (["--mix-share", "0.2"], "mix_share is for text that is mixed in"),
    "no mix file": (["--mix", "none.jsonl"], "no file or folder"),
    "a metric without data": (["--metric", "exact"], "metric is for data of your own"),
    "a template without data": (["--template", "own.jinja"], "template is for data of your own"),
    "a rate test that goes on": (["--find-rate", "--resume", "--name", "x"], "leave --resume out"),
    "no patience": (["--patience", "0"], "patience 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_and_leaves_nothing(tiny_folder, data, tmp_path, monkeypatch, name):
    options, words = WRONG[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n')
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    (tmp_path / "one.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    result = run("finetune", "--model", tiny_folder, "--runs", tmp_path / "runs", "--device", "cpu", *options)
    assert result.exit_code == 1 and words in said(result) and "Traceback" not in result.output, result.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("asked", "given", "words"),
    [
        ({"data": "other.jsonl"}, ["data"], "was begun with data"),
        ({"epochs": 3}, ["epochs"], "with epochs 1.5"),
        ({"settings": {"steps": 5}}, ["steps"], "was begun without steps, not with 5"),
        ({"settings": {"learning_rate": 1e-3}}, ["learning_rate"], "with learning_rate 0.03"),
        ({"metric": "json"}, ["metric"], "without metric"),
        ({"format": "text"}, ["format"], "with format prompt-completion"),
    ],
)
def test_a_resume_with_other_options_is_refused(tiny_folder, data, tmp_path, asked, given, words):
    plan = plan_for(tiny_folder, data, format="prompt-completion")
    begin(tmp_path / "run", plan, resume=False)
    with pytest.raises(ValueError, match=words):
        begin(tmp_path / "run", replace(plan, **asked), True, given)
    assert begin(tmp_path / "run", replace(plan, format="auto"), True, ["format", "data", "epochs"]) == plan


def test_the_rate_test_leaves_a_picture_and_no_run(tiny_folder, data, tmp_path):
    arguments = ["finetune", "--data", data, "--model", tiny_folder, "--runs", tmp_path / "runs", "--name", "own"]
    done = run(*arguments, "--rank", 4, "--batch-size", 4, "--find-rate", "--device", "cpu")
    assert done.exit_code == 0 and "fits these examples; the default" in said(done), done.output
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["own-rates.png"]


def test_the_function_task_validates_where_that_is_asked_for(tiny_folder):
    plan = RunPlan(model=str(tiny_folder), settings={"validate_every": 3})
    assert len(read_data(plan).validation) == 150 and read_data(replace(plan, settings={})).validation is None


def test_function_calls_in_a_file_are_judged_as_the_task_judges_them(tiny_folder, tmp_path):
    from qlora_lab.tasks.function_calls import classify_answer, data_directory

    lines = (data_directory() / "function_calls" / "test.jsonl").read_text().splitlines()[:30]
    (tmp_path / "calls.jsonl").write_text("\n".join(lines))
    found = read_data(RunPlan(model=str(tiny_folder), data=str(tmp_path / "calls.jsonl"), baseline_examples=0))
    assert found.judge is classify_answer and found.judged and found.format == "function-calls"
    assert len(found.asked["validation"]) == 3 == len(found.validation) and len(found.train) == 27 and not found.first
