"""A run from plan to report, on a model of a hundred thousand weights, and what a killed one leaves to go on with."""

import errno
import json
import os
from dataclasses import replace

import pytest
import torch

from qlora_lab.cli import run
from qlora_lab.cli.run import Listener, RunPlan, begin, check, execute, unfinished

SHORT = {"steps": 3, "batch_size": 4, "learning_rate": 1e-2}


def plan_for(folder, **changed) -> RunPlan:
    small = {"train_examples": 24, "baseline_examples": 3, "test_examples": 5, "paraphrase_examples": 4}
    return RunPlan(model=str(folder), rank=4, alpha=8, settings=SHORT, **small | changed)


class Recorder(Listener):
    def __init__(self):
        self.stages, self.steps = [], []

    def stage(self, text):
        self.stages.append(text)

    def step(self, record, steps):
        self.steps.append((record.step, steps))


def test_a_run_leaves_adapter_metrics_curve_and_report(tiny_folder, tmp_path):
    from qlora_lab import load_adapter, load_model, quantize_model

    plan, said = plan_for(tiny_folder), Recorder()
    folder = tmp_path / "a-run"
    assert begin(folder, plan, resume=False) == plan
    result = execute(folder, plan, device="cpu", listener=said)
    assert {path.name for path in folder.iterdir()} >= {
        "run.json", "before.json", "metrics.jsonl", "loss.png", "report.html", "adapter", "checkpoints",
    }  # fmt: skip
    assert json.loads((folder / "run.json").read_text())["plan"]["dtype"] == "float32"
    assert said.steps == [(1, 3), (2, 3), (3, 3)]
    assert [len(e.answers) for e in result.evaluations.values()] == [3, 5, 4]
    assert "training" in said.stages and result.report == folder / "report.html"
    loaded = load_adapter(quantize_model(load_model(tiny_folder, device="cpu"), rank=0), folder / "adapter")
    trained = dict(result.training.model.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in loaded.named_parameters() if "lora_" in name)
    with pytest.raises(ValueError, match="no unfinished run"):
        unfinished(tmp_path)


def test_a_run_that_stopped_goes_on_to_the_same_weights(tiny_folder, tmp_path):
    class Stop(Exception):
        pass

    class Stopping(Listener):
        def step(self, record, steps):
            if record.step == 2:
                raise Stop

    plan = plan_for(tiny_folder)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    begin(whole, plan, resume=False)
    expected = execute(whole, plan, device="cpu")
    begin(cut, plan, resume=False)
    with pytest.raises(Stop):
        execute(cut, plan, device="cpu", listener=Stopping(), checkpoint_every=1)
    assert unfinished(tmp_path) == cut
    again, asked = begin(cut, RunPlan(), resume=True), Recorder()
    assert again == replace(plan, dtype="float32")
    result = execute(cut, again, resume=True, device="cpu", listener=asked)
    assert result.training.resumed_from == 2 and asked.steps == [(3, 3)]
    assert not any("base model" in stage and "asking" in stage for stage in asked.stages)  # its answers were kept
    assert (cut / "adapter" / "adapter_model.safetensors").read_bytes() == (
        whole / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    assert expected.samples == result.samples


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rank": 0}, "at least 1"),
        ({"rank": -2}, "rank -2"),
        ({"datatype": "nf5"}, "nf4"),
        ({"block_size": 7}, "block_size 7"),
        ({"test_examples": -1}, "test_examples -1"),
        ({"compute_dtype": "float8"}, "bfloat16"),
        ({"settings": {"steps": 0}}, "steps 0"),
        ({"datatype": "int4_affine", "double_quant": True}, "double"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_before_anything_is_made(changed, words):
    with pytest.raises(ValueError, match=words):
        check(RunPlan(**changed))


def test_no_run_is_overwritten_and_none_is_resumed_that_is_not_there(tmp_path):
    folder = tmp_path / "run"
    begin(folder, RunPlan(), resume=False)
    before = (folder / "run.json").read_text()
    with pytest.raises(ValueError, match="already holds"):
        begin(folder, RunPlan(rank=2), resume=False)
    assert (folder / "run.json").read_text() == before
    with pytest.raises(ValueError, match="no run to resume"):
        begin(tmp_path / "other", RunPlan(), resume=True)


def test_a_resume_loads_the_base_in_the_dtype_it_was_begun_in(tiny_folder, tmp_path, monkeypatch):
    folder, plan = tmp_path / "a-run", plan_for(tiny_folder, baseline_examples=0)
    begin(folder, plan, resume=False)
    assert run._load(begin(folder, plan, resume=True), "cpu")[0].dtype == torch.float32
    run._remember_dtype(folder, plan, torch.bfloat16)  # as on a GPU
    again = begin(folder, RunPlan(), resume=True)
    assert (
        again.dtype == "bfloat16"
        and again.rank == plan.rank
        and "begun" in json.loads((folder / "run.json").read_text())
    )
    assert run._load(again, "cpu")[0].dtype == torch.bfloat16
    monkeypatch.setattr(run.processes, "count", lambda: 2)
    assert run._load(again, "cpu")[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="resume with one"):
        run._load(plan_for(tiny_folder, dtype="float16"), "cpu")
    monkeypatch.setattr(run, "default_dtype", lambda device: torch.float16)
    assert run._load(plan, "cpu")[0].dtype == torch.float32


def test_the_newest_unfinished_run_is_found(tmp_path):
    for age, name in enumerate(("new", "old", "done")):
        begin(tmp_path / name, RunPlan(), resume=False)
        import os

        os.utime(tmp_path / name / "run.json", (1e9 - age, 1e9 - age))
    (tmp_path / "done" / "report.html").write_text("")
    assert unfinished(tmp_path) == tmp_path / "new"


def test_run_json_says_how_the_run_was_begun(tmp_path):
    begin(tmp_path / "run", RunPlan(rank=3, settings=SHORT), resume=False)
    saved = json.loads((tmp_path / "run" / "run.json").read_text())
    assert saved["plan"]["rank"] == 3 and saved["plan"]["settings"] == SHORT and saved["begun"]


def test_samples_are_of_different_kinds():
    from qlora_lab.evaluation.exact_match import Answer, Evaluation
    from qlora_lab.tasks.function_calls import load_examples

    examples = load_examples("test")[:60]
    after = Evaluation([Answer(e, "said", "not JSON") for e in examples], 1.0)
    rows = run._samples(None, after)
    kinds = [tuple(call["name"] for call in json.loads(expected)) for _, expected, _, _ in rows]
    assert len(rows) == 3 == len(set(kinds)) and len(kinds[0]) == 2


# -- what a run's folder may hold


BROKEN = [
    "{}",
    "[]",
    "null",
    "7",
    "",
    "\x00\x00",
    "{",
    '{"plan": {}, "x": ',
    '{"plan": []}',
    '{"plan": 7}',
    '{"plan": {"rank": "8"}}',
    '{"plan": {"rank": 0}}',
    '{"plan": {"rank": null}}',
    '{"plan": {"settings": {"steps": -1}}}',
    '{"plan": {"settings": {"stepps": 1}}}',
    '{"plan": {"settings": 3}}',
    '{"plan": {"settings": null}}',
    '{"plan": {"datatype": ["nf4"]}}',
    '{"plan": {"block_size": "64"}}',
    '{"plan": {"model": 3}}',
    '{"plan": {"dtype": "int8"}}',
    '{"plan": {"compute_dtype": {}}}',
    '{"plan": {"train_examples": -1}}',
    '{"plan": {"of_a_later_version": 1}}',
]


@pytest.mark.parametrize("text", BROKEN)
def test_a_run_json_that_says_nothing_is_told_in_a_sentence(tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run.json does not say how the run was begun \(.*begin anew with another"):
        begin(tmp_path / "run", RunPlan(), resume=True)
    assert (tmp_path / "run" / "run.json").read_text() == text


@pytest.mark.parametrize("kind", ["folder", "pipe"] if os.name == "posix" else ["folder"])
def test_a_run_json_that_is_no_file(tmp_path, kind):
    path = tmp_path / "run" / "run.json"
    path.parent.mkdir()
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(ValueError, match="is no file, so the run cannot go on"):
        begin(tmp_path / "run", RunPlan(), resume=True)


def test_what_an_editor_does_to_run_json_is_read(tmp_path):
    folder, plan = tmp_path / "run", RunPlan(rank=3, settings=SHORT)
    begin(folder, plan, resume=False)
    content = (folder / "run.json").read_bytes()
    (folder / "run.json").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert begin(folder, RunPlan(), resume=True) == plan


def test_a_run_killed_while_it_was_begun_can_be_begun(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run.json.0123456789abcdef.part").write_text('{"plan": ')
    with pytest.raises(ValueError, match="no run to resume"):
        begin(folder, RunPlan(), resume=True)
    assert begin(folder, RunPlan(rank=2), resume=False).rank == 2


@pytest.mark.parametrize(
    ("asked", "given", "words"),
    [
        ({"rank": 8, "alpha": 16}, ["rank"], "was begun with rank 4 and goes on with it, not with 8"),
        ({"alpha": 3}, ["alpha"], "with alpha 8"),
        ({"settings": {**SHORT, "steps": 9}}, ["steps"], "with steps 3"),
        ({"settings": {**SHORT, "seed": 1}}, ["seed"], "with seed 0"),
        ({"double_quant": False}, ["double_quant"], "with double_quant True"),
        ({"model": "elsewhere"}, ["model"], "with model"),
        ({"test_examples": 0}, ["test_examples"], "with test_examples 5"),
    ],
)
def test_a_resume_with_other_options_is_refused_and_with_the_same_is_not(tmp_path, asked, given, words):
    folder, plan = tmp_path / "run", plan_for("somewhere")
    begin(folder, plan, resume=False)
    with pytest.raises(ValueError, match=words):
        begin(folder, replace(plan, **asked), True, given)
    assert begin(folder, replace(plan, **asked), True, []) == plan
    assert begin(folder, plan, True, given) == plan


def test_the_same_model_under_another_path_is_the_same(tiny_folder, tmp_path, monkeypatch):
    begin(tmp_path / "run", plan_for(tiny_folder), resume=False)
    monkeypatch.chdir(tiny_folder.parent)
    assert begin(tmp_path / "run", plan_for(tiny_folder.name), True, ["model"]).model == str(tiny_folder)


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"answers": [{}], "seconds": 1}', '{"answers": null}', ""])
def test_answers_of_the_base_that_are_damaged_are_asked_for_again(tmp_path, text):
    from qlora_lab.tasks.function_calls import load_examples

    (tmp_path / "before.json").write_text(text)
    assert run._kept_answers(tmp_path / "before.json", load_examples("test")[:2]) is None


def test_a_disk_that_is_full_leaves_no_half_run(tmp_path, monkeypatch):
    from qlora_lab.machine.files import CannotWrite

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("mkdir", "fsync", "replace"):
        folder = tmp_path / call
        monkeypatch.setattr(os, call, full)
        with pytest.raises(CannotWrite, match=r"cannot write .*run.json .No space left on device"):
            begin(folder, RunPlan(), resume=False)
        monkeypatch.undo()
        assert begin(folder, RunPlan(), resume=False) == RunPlan()
