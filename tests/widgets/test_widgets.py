"""Explorers: every control changes what is drawn, and what is drawn is what was asked for; the box asks and tells."""

import html
import inspect
import re

import ipywidgets
import pytest

from qlora_lab import tasks, widgets
from qlora_lab.memory.closed_form import predict_training
from qlora_lab.memory.fit import fit_to_gpu

MAKERS = {name: getattr(widgets, name) for name in dir(widgets) if name.startswith("explore_")}
ASKING = [name for name, make in MAKERS.items() if "base_answer" in inspect.signature(make).parameters]
MAKERS = {name: make for name, make in MAKERS.items() if name not in ASKING}


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


@pytest.mark.slow
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


def test_ipywidgets_7_is_given_the_same_view(monkeypatch):
    """Colab has that version: it displays a widget at once and cannot say how."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append(data))
    explorer = widgets.explore_pages()
    widgets.show(explorer)
    if hasattr(ipywidgets.Widget, "_repr_mimebundle_"):
        monkeypatch.delattr(ipywidgets.Widget, "_repr_mimebundle_")
    widgets.show(explorer)
    view = "application/vnd.jupyter.widget-view+json"
    assert shown[0].keys() == shown[1].keys() and shown[0][view] == shown[1][view]
    assert shown[1][view]["model_id"] == explorer.model_id


@pytest.mark.parametrize("name", MAKERS)
def test_it_asks_a_question_and_its_controls_are_as_wide_as_the_figure(name):
    explorer = MAKERS[name]()
    assert re.fullmatch(r"<div [^>]*><b>Try it:</b> .{40,}\?.*</div>", explorer.question.value)
    width = re.search(r"<img .*style=\"width: (\d+)px", explorer.picture.value)[1]
    for control in explorer.controls.values():
        assert (control.layout.width, control.layout.max_width) == ("98%", f"{width}px")


def src(picture) -> str:
    return re.search('src="([^"]*)"', picture.value)[1]


@pytest.mark.parametrize("name", MAKERS)
def test_a_kept_state_stays_beside_the_present_one_until_reset(name):
    explorer = MAKERS[name]()
    first = explorer.picture.value
    assert explorer.kept is None and explorer.kept_picture.value == ""
    explorer.keep_button.click()
    assert src(explorer.picture) == src(explorer.kept_picture) and "the same state" in explorer.kept_picture.value
    kept = src(explorer.kept_picture)
    for control in explorer.controls.values():
        was, control.value = control.value, another(control)
        assert src(explorer.kept_picture) == kept != src(explorer.picture)
        assert f"<b>Kept</b>: {control.description} {html.escape(str(was))}" in explorer.kept_picture.value
        assert f"<b>Now</b>: {control.description} {html.escape(str(control.value))}" in explorer.picture.value
        control.value = was
    control.value = another(control)
    explorer.keep_button.click()  # another one takes its place
    assert src(explorer.kept_picture) == src(explorer.picture) != kept
    drawn = []
    draw, explorer._draw = explorer._draw, lambda **values: drawn.append(values) or draw(**values)
    explorer.reset_button.click()
    assert explorer.picture.value == first and explorer.kept_picture.value == "" and explorer.kept is None
    assert len(drawn) == 1


def test_fit_tells_what_the_budget_says():
    explorer = widgets.explore_fit()
    peak = predict_training("llama-65b", "qlora", 64, 1, 512, checkpointing="non-reentrant").peak / 1e9
    assert f"{peak:,.1f} GB: it does not fit; cheapest change: adapters in 16 bits" in explorer.figure.alt_text
    explorer.controls["gpu"].value = 80
    assert f"{peak:,.1f} GB: it fits" in explorer.figure.alt_text
    explorer.controls["gpu"].value = 24
    assert "it does not fit" in explorer.figure.alt_text


def test_several_gpus_keep_the_reserve_that_one_keeps():
    explorer = widgets.explore_gpus()
    explorer.controls["processes"].value = 1
    for model, gpu in (("llama-65b", 48), ("llama-13b", 12), ("llama-13b", 16)):  # the first two fit without one
        explorer.controls["model"].value, explorer.controls["gpu"].value = model, gpu
        found = fit_to_gpu(predict_training(model, "qlora", 64, checkpointing="non-reentrant"), gpu)
        assert found.budget.peak < 1e9 * gpu and found.fits == (gpu == 16)
        said = "it fits" if found.fits else "too much"
        assert f"{found.budget.peak / 1e9:,.1f} GB on one GPU: {said}" in explorer.figure.alt_text
        assert f"against {gpu} GB of a GPU, {found.reserve_gb:g} GB of it in reserve" in explorer.figure.alt_text


def test_room_for_half_under_lru():
    order = [*range(4)] * 3
    assert widgets.least_recently_used(order, 2)[1] == list(range(12))  # a loop: nothing is ever there
    moves, fetched = widgets.least_recently_used([0, 1, 2, 3, 3, 2, 1, 0], 2)
    assert fetched == [0, 1, 2, 3, 6, 7] and moves[2] == (2, 0, "disk")


CALL = '[{"name":"timer","arguments":{"minutes":12}}]'


def test_the_box_asks_both_and_says_whether_a_program_could_use_it():
    asked = []
    box = widgets.explore_answers(
        lambda command: asked.append(("base", command)) or "Sure!",
        lambda command: asked.append(("tuned", command)) or CALL,
    )
    del asked[:]
    box.command.value = "  a timer of 12 minutes "
    box.button.click()
    assert asked == [("base", "a timer of 12 minutes"), ("tuned", "a timer of 12 minutes")]
    assert box.answers == {"base model": "Sure!", "tuned model": CALL}
    assert "Sure!" in box.columns["base model"].value and "does not parse as calls" in box.columns["base model"].value
    assert "parses as 1 call" in box.columns["tuned model"].value and box.status.value == ""


def test_its_controls_are_disabled_while_it_computes():
    seen = []
    box = widgets.explore_answers(str, str, examples=())

    def answer(command):
        seen.append((box.button.disabled, box.command.disabled, box.status.value))
        return CALL

    box._answerers = {"base model": answer, "tuned model": answer}
    box.ask("lights on")
    assert [state[:2] for state in seen] == [(True, True)] * 2
    assert "base model is answering (1 of 2)" in seen[0][2] and "tuned model is answering (2 of 2)" in seen[1][2]
    assert not box.button.disabled and not box.command.disabled


def test_answer_box_judges_and_asks_as_told():
    said = {"{}": (True, "JSON")}
    box = widgets.explore_answers(
        lambda command: "{}", str, ["hello"], judge=lambda text: said.get(text, (False, "prose")), question="Why?"
    )
    table = box.fallback()[0]["text/html"]
    assert "JSON; is it what you asked for?" in table and "prose" in table
    assert "Why?" in box.children[0].value


def test_errors_are_told_in_the_box_and_the_other_model_still_answers():
    def fails(command):
        raise ValueError("a command must not contain <|im_end|>")

    box = widgets.explore_answers(fails, lambda command: CALL, examples=["x"])
    assert "ValueError: a command must not contain &lt;|im_end|&gt;" in box.columns["base model"].value
    assert box.answers == {"tuned model": CALL} and not box.button.disabled
    assert "ValueError" in box.fallback()[0]["text/html"]
    box.ask("   ")
    assert box.status.value == "Type a command first." and box.answers == {} and not box.button.disabled


def test_an_interrupt_leaves_the_box_in_working_order():
    box = widgets.explore_answers(str, str, examples=())

    def interrupted(command):
        raise KeyboardInterrupt

    box._answerers = {"base model": interrupted, "tuned model": str}
    with pytest.raises(KeyboardInterrupt):
        box.ask("x")
    assert not box.button.disabled and not box.command.disabled


def test_what_a_model_says_is_text_and_no_markup():
    box = widgets.explore_answers(lambda command: "<script>alert(1)</script>", str, examples=["<b>on</b>"])
    page = box.fallback()[0]["text/html"] + "".join(column.value for column in box.columns.values())
    assert "<script>" not in page and "&lt;script&gt;" in page and "<b>on</b>" not in page


def test_the_box_is_shown_with_a_table_of_its_examples(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append(data))
    examples = ["one", "two", "three"]
    box = widgets.explore_answers(lambda command: command * 100, lambda command: CALL, examples)
    widgets.show(box)
    data = shown[0]
    assert "application/vnd.jupyter.widget-view+json" in data and "image/png" not in data
    assert data["text/html"].count("<tr>") == 4 and data["text/html"].count("does not parse as calls") == 3
    places = [data["text/plain"].index(f"{example}\n    base model: {example}") for example in examples]
    assert places == sorted(places) and box.command.value == "one" and "one" in box.answers["base model"]
    assert max(map(len, data["text/plain"].splitlines())) < 220


@pytest.mark.parametrize(
    ("text", "usable", "words"),
    [
        (CALL, True, "parses as 1 call"),
        (f"[{CALL[1:-1]},{CALL[1:-1]}]", True, "parses as 2 calls"),
        ("[]", False, "expected a list of one or two calls"),
        ('[{"name":"oven","arguments":{}}]', False, "no function 'oven'"),
        ("Of course! " + CALL, False, "does not parse"),
    ],
)
def test_the_verdict_on_an_answer(text, usable, words):
    found, said = widgets.answer_box.judge_calls(text)
    assert found is usable and words in said


TIMER = tasks.Example("twelve minutes", ({"name": "timer", "arguments": {"minutes": 12}},))


@pytest.mark.parametrize(
    ("text", "example", "said"),
    [
        (CALL, TIMER, "✓ exactly the calls wanted"),
        (CALL.replace("12", "20"), TIMER, "✗ parses as 1 call, but not what was wanted (wrong argument: minutes)"),
        (f"[{CALL[1:-1]},{CALL[1:-1]}]", TIMER, "✗ parses as 2 calls, but not what was wanted (extra call)"),
        ("Sure!", TIMER, "✗ does not parse as calls"),
        ("Paris.", tasks.Example("capital?", ()), "○ no call, and none was asked for"),
        (CALL, tasks.Example("capital?", ()), "✗ it calls a function, and none was asked for"),
        ("[]", tasks.Example("capital?", ()), "✗ it calls a function, and none was asked for"),
    ],
)
def test_a_tick_is_for_what_was_wanted(text, example, said):
    assert widgets.answer_box.judge_example(text, example) == said


def test_nothing_that_is_typed_gets_a_tick():
    """Nobody has said what is wanted; of the examples it is known, also when they are asked again."""
    box = widgets.explore_answers(lambda command: "Sure!", lambda command: CALL, [TIMER, "lights on"])
    assert "✓ exactly" in box.columns["tuned model"].value and "✗" in box.columns["base model"].value
    page, lines = box.fallback()[0].values()
    assert page.count("✓") == lines.count("✓") == 1 and "○ parses as 1 call; is it what you asked for?" in lines
    box.ask("set twelve minutes")
    assert "✓" not in box.columns["tuned model"].value and "○ parses as 1 call" in box.columns["tuned model"].value
    box.ask(TIMER.command)
    assert "✓" in box.columns["tuned model"].value


def test_scale_shows_the_chapters_example():
    explorer = widgets.explore_scale()
    assert "Q = 6: 0.125 x 6 = 0.75." in explorer.figure.alt_text
    explorer.controls["scale"].value = 0.12
    assert "Q = 6: 0.12 x 6 = 0.72 (0.125 gives 0.75: off by -0.030)" in explorer.figure.alt_text
