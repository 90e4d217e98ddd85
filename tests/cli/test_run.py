"""A run from plan to report, on a model of a hundred thousand weights, and what a killed one leaves to go on with."""

import json
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
