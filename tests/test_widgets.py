"""Explorers: every control changes what is drawn, and what is drawn is what was asked for."""

import re

import pytest

from qlora_lab import widgets
from qlora_lab.budget import predict_training

MAKERS = {name: getattr(widgets, name) for name in dir(widgets) if name.startswith("explore_")}


def another(control):
    """A value other than the one a control has."""
    if isinstance(control.value, bool):
        return not control.value
    options = getattr(control, "options", None)
    if options:
        values = [option[1] if isinstance(option, tuple) else option for option in options]
        return next(value for value in reversed(values) if value != control.value)
    return control.min if control.value != control.min else control.max


@pytest.mark.parametrize("name", MAKERS)
def test_every_control_changes_the_picture(name):
    explorer = MAKERS[name]()
    for control in explorer.controls.values():
        before, words = explorer.picture.value, explorer.figure.alt_text
        control.value = another(control)
        assert explorer.picture.value != before and explorer.figure.alt_text != words, control.description
        assert len(re.findall("<img alt=", explorer.picture.value)) == 1


@pytest.mark.parametrize("name", MAKERS)
def test_every_value_can_be_drawn(name):
    explorer = MAKERS[name]()
    for control in explorer.controls.values():
        options = getattr(control, "options", None) or [control.value]
        for option in options:
            control.value = option
            assert explorer.figure.alt_text


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_shown_with_a_static_figure(name, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    widgets.show(MAKERS[name]())
    data, options = shown[0]
    assert "application/vnd.jupyter.widget-view+json" in data and data["image/png"].startswith(b"\x89PNG")
    assert len(options["metadata"]["image/png"]["alt"]) > 60


def test_fit_tells_what_the_budget_says():
    explorer = widgets.explore_fit()
    peak = predict_training("llama-65b", "qlora", 64, 1, 512, checkpointing="non-reentrant").peak / 1e9
    assert f"{peak:,.1f} GB: it fits" in explorer.figure.alt_text
    explorer.controls["gpu"].value = 24
    assert "it does not fit" in explorer.figure.alt_text


def test_room_for_half_under_lru():
    order = [*range(4)] * 3
    assert widgets.least_recently_used(order, 2)[1] == list(range(12))  # a loop: nothing is ever there
    moves, fetched = widgets.least_recently_used([0, 1, 2, 3, 3, 2, 1, 0], 2)
    assert fetched == [0, 1, 2, 3, 6, 7] and moves[2] == (2, 0, "disk")


def test_scale_shows_the_chapters_example():
    explorer = widgets.explore_scale()
    assert "Q = 6: 0.125 x 6 = 0.75." in explorer.figure.alt_text
    explorer.controls["scale"].value = 0.12
    assert "Q = 6: 0.12 x 6 = 0.72 (0.125 gives 0.75: off by -0.030)" in explorer.figure.alt_text
