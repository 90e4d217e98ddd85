"""Validation: it changes no step, finds the lowest loss, and a killed run ends with the same best weights."""

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tiny import Pair, adapted, assert_same_bits, metrics, pairs, tiny_model, tiny_tokenizer
from workers import Ended, alone

from qlora_lab.machine.files import load_tensors
from qlora_lab.tasks.batches import IGNORED, Batches
from qlora_lab.tasks.encoding import encode
from qlora_lab.training.loop import NonFiniteLoss, finetune
from qlora_lab.training.validation import Validation

SETTINGS = {"steps": 16, "batch_size": 4, "learning_rate": 3e-2, "validate_every": 2}


def few() -> list[Pair]:
    """So few that they are soon learned by heart."""
    return pairs(6)


def held_out(count: int = 8) -> list[Pair]:
    return [Pair(pair.prompt[::-1], pair.target) for pair in pairs(count, seed=5)]


def trained(**options):
    settings = {**SETTINGS, "validation": held_out(), **options}
    return finetune(adapted(dropout=0.1), tiny_tokenizer(), few(), **settings)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def losses(result):
    return [(record.step, record.loss) for record in result.validations]


def loss_of_labels(model, examples) -> float:
    """The loss per labelled token, example by example, from all of the model's logits."""
    total, count = 0.0, 0
    for example in examples:
        ids, labels = encode(example, tiny_tokenizer())
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0].double()
        kept = labels[1:] != IGNORED
        total -= logits[:-1].log_softmax(-1)[kept].gather(1, labels[1:][kept][:, None]).sum().item()
        count += int(kept.sum())
    return total / count


def test_the_steps_are_those_of_a_run_without_it():
    plain = finetune(
        adapted(dropout=0.1), tiny_tokenizer(), few(), **{k: v for k, v in SETTINGS.items() if k != "validate_every"}
    )
    assert [r.loss for r in trained().records] == [r.loss for r in plain.records]


def test_it_is_measured_before_the_first_step_on_the_way_and_after_the_last():
    assert [step for step, _ in losses(trained(steps=5))] == [0, 2, 4, 5]
    assert [step for step, _ in losses(trained(steps=30, validate_every=None))] == list(range(0, 31, 3))


@pytest.mark.parametrize("batch_size", [1, 3, 24])
def test_it_is_the_loss_of_every_labelled_token(batch_size):
    seen = []

    def on_validation(record):
        model.eval()
        seen.append((record.loss, loss_of_labels(model, held_out())))
        model.train()

    model = adapted(dropout=0.1)
    options = {**SETTINGS, "batch_size": batch_size, "steps": 4}
    finetune(model, tiny_tokenizer(), few(), validation=held_out(), on_validation=on_validation, **options)
    assert len(seen) == 3
    for ours, theirs in seen:
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_model_ends_with_the_weights_of_the_lowest():
    seen = {}
    model = adapted(dropout=0.1)
    result = finetune(
        model, tiny_tokenizer(), few(), validation=held_out(), **SETTINGS,
        on_validation=lambda record: seen.update({record.step: weights(model)}),
    )  # fmt: skip
    best = min(result.validations, key=lambda record: record.loss)
    assert result.best == best and 0 < best.step < 16  # else the test says nothing
    assert_same_bits(weights(model), seen[best.step])
    assert loss_of_labels(model, held_out()) == pytest.approx(best.loss, rel=1e-5)
    assert not result.stopped_early and len(result.records) == 16


def test_patience_ends_the_run_and_leaves_the_same_best():
    whole, stopped = trained(), trained(patience=2)
    assert stopped.stopped_early and stopped.best.step == whole.best.step
    assert losses(stopped) == losses(whole)[: len(stopped.validations)]
    after = [record for record in stopped.validations if record.step > stopped.best.step]
    assert len(after) == 2 and stopped.records[-1].step == after[-1].step < 16


def test_what_a_run_without_validation_cannot_have(tmp_path):
    for name in ("patience", "validate_every"):
        with pytest.raises(ValueError, match=f"{name} needs validation examples"):
            finetune(adapted(), tiny_tokenizer(), few(), out=tmp_path / "run", **{name: 2})
    for examples, words in (([], "no validation examples"), ([Pair("a", "")], "validation example 0 has no token")):
        with pytest.raises(ValueError, match=words):
            trained(validation=examples, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_validation_loss_that_is_no_number_stops_the_run():
    model = adapted()
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny_tokenizer()("e")["input_ids"][0]] = float("nan")  # tied to the head
    with pytest.raises(NonFiniteLoss, match="step 0: the validation loss is nan"):
        finetune(model, tiny_tokenizer(), few(), validation=held_out(), **SETTINGS)


# -- on disk

CHECKPOINTS = {"checkpoint_every": 3}


def lines(folder: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in map(json.loads, (folder / "validation.jsonl").read_text().splitlines())]


def test_its_records_stand_in_a_file_of_their_own(tmp_path):
    result = trained(out=tmp_path / "run", **CHECKPOINTS)
    assert lines(tmp_path / "run") == losses(result)
    plain = finetune(adapted(dropout=0.1), tiny_tokenizer(), few(), **{**SETTINGS, "validate_every": None})
    assert metrics(tmp_path / "run") == [(r.step, r.loss) for r in plain.records]
    assert set(json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])) == set(
        asdict(plain.records[0])
    )
    saved = load_tensors(result.adapter / "adapter_model.safetensors")[0]
    for name, parameter in weights(result.model).items():
        assert torch.equal(saved[f"base_model.model.{name}.weight"], parameter)


def train_until(step: int, out: Path, options: dict) -> None:
    """Train, and kill this process after a step."""

    def die(record):
        if record.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    trained(out=out, on_step=die, **options)


class Stop(Exception):
    pass


def stopped_at(step: int, out: Path, **options) -> None:
    def stop(record):
        if record.step == step:
            raise Stop

    with pytest.raises(Stop):
        trained(out=out, on_step=stop, **options)


@pytest.mark.parametrize("step", [2, 3, 7, 9, 10, 13])
@pytest.mark.parametrize("patience", [None, 3])
def test_a_run_that_stopped_anywhere_ends_like_one_that_did_not(tmp_path, step, patience):
    """Also where the best lies before the checkpoint that it goes on from, and where it lies after it."""
    options = {"patience": patience, **CHECKPOINTS}
    whole = trained(**options)
    stopped_at(step, tmp_path / "run", **options)
    resumed = trained(out=tmp_path / "run", resume=True, **options)
    assert resumed.resumed_from == step // 3 * 3
    assert losses(resumed) == losses(whole) == lines(tmp_path / "run")
    assert metrics(tmp_path / "run") == [(r.step, r.loss) for r in whole.records]
    assert_same_bits(weights(resumed.model), weights(whole.model))
    assert resumed.best.step == whole.best.step


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_run_killed_after_its_best_resumes_to_the_same_bits(tmp_path):
    whole = trained(out=tmp_path / "whole", **CHECKPOINTS)
    step = whole.best.step + 4
    assert step // 3 * 3 > whole.best.step
    with pytest.raises(Ended, match=f"exit code {-signal.SIGKILL}"):
        alone(train_until, step, tmp_path / "killed", CHECKPOINTS)
    resumed = trained(out=tmp_path / "killed", resume=True, **CHECKPOINTS)
    one, other = (load_tensors(r.adapter / "adapter_model.safetensors")[0] for r in (resumed, whole))
    assert_same_bits(one, other)
    assert lines(tmp_path / "killed") == losses(whole)


@pytest.mark.parametrize("patience", [None, 2])
def test_a_run_that_is_done_is_resumed_to_itself(tmp_path, patience):
    done = trained(out=tmp_path / "run", patience=patience, **CHECKPOINTS)
    again = trained(out=tmp_path / "run", patience=patience, resume=True, **CHECKPOINTS)
    assert losses(again) == losses(done) and again.best.step == done.best.step
    assert again.resumed_from == done.records[-1].step and again.stopped_early == done.stopped_early
    assert_same_bits(weights(again.model), weights(done.model))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"validation": held_out(6)}, "the validation examples changed"),
        ({"validation": None, "validate_every": None}, "the validation examples changed"),
        ({"patience": 5}, "patience was None, now 5"),
        ({"validate_every": 3}, "validate_every was 2, now 3"),
    ],
)
def test_a_resume_with_another_validation_is_refused(tmp_path, changed, words):
    stopped_at(7, tmp_path / "run", **CHECKPOINTS)
    before = (tmp_path / "run" / "validation.jsonl").read_bytes()
    with pytest.raises(ValueError, match=words):
        trained(out=tmp_path / "run", resume=True, **{**CHECKPOINTS, **changed})
    assert (tmp_path / "run" / "validation.jsonl").read_bytes() == before


def test_the_file_is_not_needed_to_go_on(tmp_path):
    stopped_at(10, tmp_path / "run", **CHECKPOINTS)
    (tmp_path / "run" / "validation.jsonl").unlink()
    resumed = trained(out=tmp_path / "run", resume=True, **CHECKPOINTS)
    assert lines(tmp_path / "run") == losses(resumed) == losses(trained())


def test_every_example_is_in_one_batch_and_none_is_larger_than_a_step():
    encoded = [encode(example, tiny_tokenizer()) for example in [*pairs(13), *held_out(9)]]
    length = Batches(encoded[:13], 4, 0, 0).longest()[0]
    validation = Validation(encoded, 4, length, 0, 10, None, None)
    rows = [
        tuple(ids[mask > 0].tolist())
        for batch in validation.batches
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    assert sorted(rows) == sorted(tuple(ids.tolist()) for ids, _ in encoded)
    assert all(len(b.input_ids) == 1 or b.input_ids.numel() <= 4 * length for b in validation.batches)
    assert validation.supervised == sum(int((labels[1:] != IGNORED).sum()) for _, labels in encoded)


def test_a_model_that_is_trained_whole(tmp_path):
    result = finetune(
        adapted(tiny_model(), "full"), tiny_tokenizer(), few(), validation=held_out(), out=tmp_path / "run",
        steps=4, batch_size=4, learning_rate=1e-3, validate_every=1,
    )  # fmt: skip
    assert len(result.validations) == 5 and result.adapter is None
