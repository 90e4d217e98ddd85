"""What the version of commit 599e78b wrote is still read: files, killed runs, a course with points in it.

`made_before/` was written by that version, on an AMD EPYC; the model is `tiny.tiny_model()`, which is made anew.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from exercises import solution_of
from tiny import adapted, pairs, tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from qlora_lab import QuantizedTensor, finetune, load_adapter, quantize
from qlora_lab.classroom.course import Course
from qlora_lab.cli.commands import app
from qlora_lab.machine.files import load_tensors

MADE = Path(__file__).resolve().parent / "made_before"


def copied(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(MADE / name, tmp_path / name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nf4", {}),
        ("nf4-double", {"double_quant": True}),
        ("int4-affine", {"datatype": "int4_affine", "block_size": 32}),
    ],
)
def test_a_quantized_tensor(name, options):
    weight = torch.randn(24, 70, generator=torch.Generator().manual_seed(0))
    found, now = QuantizedTensor.load(MADE / f"{name}.safetensors"), quantize(weight, **options)
    assert torch.equal(found.codes, now.codes) and torch.equal(found.dequantize(), now.dequantize())


def test_an_adapter():
    loaded = load_adapter(tiny_model(), MADE / "adapter")
    tensors, _ = load_tensors(MADE / "adapter" / "adapter_model.safetensors")
    trained = {name: p for name, p in loaded.named_parameters() if "lora_" in name}
    assert len(trained) == len(tensors) > 0
    for name, parameter in trained.items():
        assert torch.equal(parameter, tensors[f"base_model.model.{name}.weight"])


def test_a_killed_run_and_its_checkpoint(tmp_path):
    run = copied("run", tmp_path)
    before = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    options = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "checkpoint_every": 2}
    result = finetune(adapted(dropout=0.1), tiny_tokenizer(), pairs(), out=run, resume=True, **options)
    assert result.resumed_from == 4 and [record.step for record in result.records] == [1, 2, 3, 4, 5, 6]
    assert [record.loss for record in result.records[:4]] == [record["loss"] for record in before[:4]]
    whole = finetune(adapted(dropout=0.1), tiny_tokenizer(), pairs(), **options)
    assert [r.loss for r in result.records] == pytest.approx([r.loss for r in whole.records], rel=1e-4)


def test_a_run_of_the_command_line_killed_before_its_first_checkpoint(tiny_folder, tmp_path):
    run = copied("command-line-run", tmp_path)
    plan = (run / "run.json").read_text()
    (run / "run.json").write_text(plan.replace('"TINY"', json.dumps(str(tiny_folder))))
    arguments = ["finetune", "--resume", "--runs", str(tmp_path), "--device", "cpu"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads((run / "result.json").read_text()) and (run / "report.html").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_course_with_points_in_it(tmp_path):
    from nbgrader.api import Gradebook

    folder = copied("course", tmp_path)
    course = Course.find(folder)
    book = json.loads((folder / "release" / "00_start_here" / "00_start_here.ipynb").read_text())
    for cell in book["cells"]:
        if cell["cell_type"] == "code" and "def weights_in_gb" in "".join(cell["source"]):
            cell["source"] = solution_of("weights-in-gb")
    handed = tmp_path / "handed" / "grace"
    handed.mkdir(parents=True)
    (handed / "00_start_here.ipynb").write_text(json.dumps(book))
    arguments = [
        "classroom",
        "grade",
        str(handed.parent),
        "--course",
        str(folder),
        "--out",
        str(tmp_path / "grades.csv"),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    with Gradebook(f"sqlite:///{folder / 'gradebook.db'}") as points:
        scores = {name: points.find_submission(course.names[0], name).score for name in ("ada", "grace")}
    assert scores == {"ada": 1, "grace": 1}  # hers stay, though she handed nothing in this time
