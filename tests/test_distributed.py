"""Several processes on a CPU: the same loss, gradients and adapters as one, with a part of the bytes each."""

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise

import psutil
import pytest
import torch
from tiny import metrics
from typer.testing import CliRunner
from workers import (
    first_batch,
    loss_and_gradients,
    made,
    main_raises,
    memory,
    refused,
    stopped,
    timeline,
    together,
    trained,
    validated,
)

from qlora_lab import distributed
from qlora_lab.cli.commands import app
from qlora_lab.machine import processes
from qlora_lab.machine.files import load_tensors

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are forked and killed here")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qlora", "lora", "full"])
def test_two_processes_have_the_loss_and_gradients_of_one(kind):
    loss, gradients = loss_and_gradients(kind)
    for theirs, found in together(2, loss_and_gradients, kind):
        assert theirs == pytest.approx(loss, rel=1e-6)
        assert found.keys() == gradients.keys()
        for name, expected in gradients.items():
            assert abs(found[name] - expected).max() <= 2e-6 * abs(expected).max(), name


@pytest.mark.parametrize("mode", ["reentrant", "non-reentrant"])
def test_gradient_checkpointing_keeps_them(mode):
    _, gradients = loss_and_gradients("qlora")
    for _, found in together(2, loss_and_gradients, "qlora", mode):
        for name, expected in gradients.items():
            assert abs(found[name] - expected).max() <= 2e-6 * abs(expected).max(), name


@pytest.mark.parametrize("datatype", ["nvfp4", "q4_1"])
def test_two_processes_with_scales_in_eight_bits_and_in_sixteen(datatype):
    options = {"datatype": datatype, "double_quant": False}
    loss, gradients = loss_and_gradients("qlora", "none", options)
    for theirs, found in together(2, loss_and_gradients, "qlora", "none", options):
        assert theirs == pytest.approx(loss, rel=1e-6)
        for name, expected in gradients.items():
            assert abs(found[name] - expected).max() <= 2e-6 * abs(expected).max(), name


def test_four_processes_too_with_affine_codes_and_odd_shapes():
    options = {"datatype": "int4_affine", "double_quant": False, "rank": 3}
    loss, gradients = loss_and_gradients("qlora", "none", options)
    for theirs, found in together(4, loss_and_gradients, "qlora", "none", options):
        assert theirs == pytest.approx(loss, rel=1e-6)
        for name, expected in gradients.items():
            assert abs(found[name] - expected).max() <= 2e-6 * abs(expected).max(), name


def test_each_process_holds_a_part_of_everything_also_after_steps():
    model = made()
    whole = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    trained_bytes = sum(whole[name] for name, p in model.named_parameters() if p.requires_grad)
    found = together(2, memory)
    root = [name for name in whole if ".layers." not in name]
    assert len(root) == 2 and all(f["before"].pop(name) == whole[name] for f in found for name in root)  # not cut
    assert all(f["after"].pop(name) == whole[name] for f in found for name in root)
    for name, size in ((name, size) for name, size in whole.items() if name not in root):
        assert sum(f["before"][name] for f in found) == size, name  # nothing twice
        assert found[0]["before"][name] <= -(-size // 2) + whole[name] // max(1, model.get_parameter(name).shape[0])
    assert all(f["after"] == f["before"] for f in found)
    assert sum(f["gradients"] for f in found) == trained_bytes
    assert sum(f["state"] for f in found) == 2 * trained_bytes
    assert sum(found[0]["before"].values()) < 0.51 * sum(whole[name] for name in found[0]["before"])


def test_traffic_is_what_is_predicted():
    for found in together(2, memory):
        gathered, scattered = found["predicted"]
        for by_kind, calls in found["traffic"]:
            assert by_kind["all-gather"] == gathered
            assert by_kind["reduce-scatter"] == scattered
            assert calls["all-gather"] == 2 * 2 and calls["reduce-scatter"] == 2  # two blocks


def test_a_timeline_sees_each_layer_come_and_go_twice():
    for spans, calls in together(2, timeline):
        assert calls == {"all-gather": 4, "reduce-scatter": 2}  # two layers
        for layer in (0, 1):
            own = [span[1:] for span in spans if span[0] == layer]
            assert [kind for kind, *_ in sorted(own, key=lambda span: span[1])] == [
                *("gather", "arrived", "whole"), *("gather", "arrived", "whole"), "reduce-scatter"
            ]  # fmt: skip
            assert all(begin <= end for _, begin, end in own)
            assert all(one[2] <= other[1] for one, other in pairwise(sorted(own, key=lambda span: span[1])))
        first = {layer: min(span[2] for span in spans if span[:2] == (layer, "whole")) for layer in (0, 1)}
        assert first[0] < first[1]
        scattered = {layer: begin for layer, kind, begin, _ in spans if kind == "reduce-scatter"}
        assert scattered[1] < scattered[0]


def rows_of(batch):
    return [
        tuple(ids[: int(mask.sum())].tolist()) for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]


@pytest.mark.parametrize("of", [1, 2, 3, 4, 8])
def test_the_batch_is_split_without_overlap(of):
    batch = first_batch()
    parts = [distributed.share_of_batch(batch, number, of) for number in range(of)]
    assert processes.interleaved([rows_of(part) for part in parts]) == rows_of(batch)
    assert sum(part.supervised for part in parts) == batch.supervised
    assert sum(part.tokens for part in parts) == batch.tokens
    assert all(bool(part.attention_mask[:, -1].any()) for part in parts[:of] if of > 1)  # no column of padding only


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("unsharded", "call distributed.shard"),
        ("seeds", "same seed"),
        ("batch", "raise batch_size"),
        ("bits", "8-bit"),
        ("paging", "paged"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_by_all(what, words):
    assert all(words in message for message in together(2, refused, what))


def test_what_the_main_process_raises_all_raise_and_one_tells():
    assert together(2, main_raises) == [("said by one", False), ("said by one", True)]


def test_a_run_of_two_equals_a_run_of_one(tmp_path):
    alone, _, texts = trained(tmp_path / "one")
    for records, _, theirs in together(2, trained, tmp_path / "two"):
        assert theirs == texts
        for (step, loss, norm, tokens), (s, other, n, t) in zip(alone, records, strict=True):
            assert (s, t) == (step, tokens)
            assert other == pytest.approx(loss, rel=1e-4) and n == pytest.approx(norm, rel=1e-3)
    assert [step for step, _ in metrics(tmp_path / "two")] == [1, 2, 3, 4, 5, 6]  # one line a step, from one process
    one, two = (load_tensors(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one[0].keys() == two[0].keys() and one[1] == two[1]
    for name, tensor in one[0].items():
        torch.testing.assert_close(two[0][name], tensor, rtol=0, atol=2e-3 * tensor.abs().max().item())
    config = (tmp_path / "two" / "adapter" / "adapter_config.json").read_bytes()
    assert config == (tmp_path / "one" / "adapter" / "adapter_config.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, (1, 4)), (1, (2,))])
def test_a_checkpoint_is_resumed_by_another_number_of_processes(tmp_path, before, after):
    whole, _, texts = trained(tmp_path / "whole")
    together(before, stopped, tmp_path / "cut", 4) if before > 1 else stopped(tmp_path / "cut", 4)
    for count in after:
        folder = tmp_path / f"resumed by {count}"
        shutil.copytree(tmp_path / "cut", folder)
        results = together(count, trained, folder, True) if count > 1 else [trained(folder, True)]
        for records, resumed_from, theirs in results:
            assert resumed_from == 4 and theirs == texts
            for (_, loss, norm, _), (_, other, n, _) in zip(whole, records, strict=True):
                assert other == pytest.approx(loss, rel=1e-4) and n == pytest.approx(norm, rel=1e-3)
        assert len(metrics(folder)) == 6


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits_with_dropout_too(tmp_path):
    together(2, stopped, tmp_path / "cut", 4, 0.1)
    resumed = together(2, trained, tmp_path / "cut", True, "qlora", 0.1)
    assert resumed[0][1] == 4
    together(2, trained, tmp_path / "whole", False, "qlora", 0.1)
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("cut", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_two_processes_validate_and_resume_to_the_same_bits(tmp_path):
    together(2, validated, tmp_path / "cut", 7)
    resumed = together(2, validated, tmp_path / "cut", None, True)
    whole = together(2, validated, tmp_path / "whole")
    assert resumed == whole and whole[0] == whole[1]
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("cut", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    alone, _ = validated(tmp_path / "alone")
    assert whole[0][0][0][1] == pytest.approx(alone[0][1], rel=1e-5)  # before the first step, so without dropout


def test_a_resume_with_other_settings_is_refused_by_all(tmp_path):
    together(2, stopped, tmp_path / "cut", 4)
    assert all("learning_rate" in message for message in together(2, refused, "resume", tmp_path / "cut"))


def launch(count: int, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "qlora_lab.cli", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.mark.slow
def test_torchrun_a_killed_worker_ends_all_soon_and_one_process_goes_on(tiny_folder, tmp_path):
    small = ["--rank", "4", "--batch-size", "4", "--train-examples", "24", "--baseline-examples", "3"]
    small += ["--test-examples", "5", "--paraphrase-examples", "3", "--device", "cpu", "--steps", "40"]
    arguments = ["finetune", "--model", tiny_folder, *small, "--runs", tmp_path, "--checkpoint-every", "1"]
    process = launch(2, *arguments, "--name", "killed")
    children, deadline = [], time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if any((tmp_path / "killed" / "checkpoints").glob("checkpoint-00000[3-9]")):
            children = psutil.Process(process.pid).children(recursive=True)
            workers = [c for c in children if c.environ().get("RANK") == "1"]
            os.kill(workers[0].pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    killed = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert children and process.returncode != 0, output
    assert time.monotonic() - killed < 30
    assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
    assert "rank      : 1" in output and "SIGKILL" in output
    assert output.count("asking the base model") == 1 and output.count("training, in 2 processes") == 1
    checkpoints = sorted((tmp_path / "killed" / "checkpoints").glob("checkpoint-*"))
    assert checkpoints and (checkpoints[-1] / "part-00001.safetensors").exists()

    resumed = CliRunner().invoke(app, ["finetune", "--resume", "--runs", str(tmp_path), "--device", "cpu"])
    assert resumed.exit_code == 0, resumed.output
    assert len(metrics(tmp_path / "killed")) == 40
    assert (tmp_path / "killed" / "adapter" / "adapter_model.safetensors").exists()
