"""The report: one file that needs nothing else, and in which what a model says stays text."""

import base64
import re

import pytest
from tiny import Pair, adapted, pairs, tiny_tokenizer

from qlora_lab.cli.report import write_report
from qlora_lab.evaluation.exact_match import Answer, Evaluation
from qlora_lab.training.loop import finetune

HOSTILE = '<script>alert(1)</script><img src="https://example.org/x.png">'


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    training = finetune(adapted(), tiny_tokenizer(), pairs(), steps=3, batch_size=4)
    answers = [Answer(Pair(HOSTILE, ""), HOSTILE, "correct"), Answer(Pair("x", ""), "y", f"wrong {HOSTILE}")]
    rows = {"base model": Evaluation(answers[1:], 1.0), "test": Evaluation(answers, 1.0)}
    path = write_report(folder, training, rows, [(HOSTILE, "[]", HOSTILE, HOSTILE)], {"run": "r", "model": HOSTILE})
    return path.read_text(encoding="utf-8"), folder


def test_it_needs_nothing_from_elsewhere(page):
    text, folder = page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'<img src="([^"]*)"', text))
    assert not re.search(r"<(script|link|iframe)\b", text) and "url(" not in text and "@import" not in text
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_its_figures_are_images_with_a_description(page):
    text, _ = page
    images = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="([^"]+)"', text)
    assert len(images) == 2
    assert all(base64.b64decode(data).startswith(b"\x89PNG") and len(alt) > 40 for data, alt in images)


def test_it_holds_the_numbers(page):
    text, _ = page
    assert "50.0 %" in text and "0.0 %" in text and "3 steps" in text and "learning_rate" in text


def test_what_a_model_says_stays_text(page):
    text, _ = page
    assert "&lt;script&gt;alert(1)" in text
