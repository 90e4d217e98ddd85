"""In a real browser: JupyterLab in headless Chromium, every explorer moved, one notebook run from top to bottom.

Needs Chromium or Chrome on the machine (Debian: `apt-get install chromium`); skipped, with a line in the summary, where
there is none.
"""

import shutil
import subprocess
import sys
import time

import nbformat
import pytest
from jupyter_in_chromium import (  # noqa: F401  (fixtures)
    FOLDER,
    IN_A_BROWSER,
    SCREENSHOTS,
    browser,
    lab,
    open_and_run,
    page,
    watched_page,
)  # fmt: skip

from qlora_lab import widgets

EXPLORERS = ["codebook", "scale", "rank", "pages", "fit", "gpus", "costs"]

pytestmark = IN_A_BROWSER


def controls_of(page, cell) -> list:
    """The controls of a cell's explorer in their order, each with what moves it as a hand or a key would."""

    def move(control):
        if control.locator(".noUi-handle").count():
            control.locator(".noUi-handle").first.focus()
            return lambda: page.keyboard.press("ArrowRight")
        if control.locator("select").count():
            select, last = control.locator("select"), control.locator("option").count() - 1
            other = 0 if select.evaluate("select => select.selectedIndex") == last else last
            return lambda: select.select_option(index=other)
        if control.locator("input[type=checkbox]").count():
            return lambda: control.locator("input[type=checkbox]").click()
        return lambda: control.locator("button:not(.mod-active)").first.click()

    found = cell.locator(".jp-OutputArea .widget-vbox > *:not(.widget-html, .explorer-buttons, .explorer-pictures)")
    return [(found.nth(number), move) for number in range(found.count())]


@pytest.fixture(scope="module")
def explorers(browser, lab):
    """The page of a notebook with a cell for each: one kernel draws them all."""
    sources = [f"from qlora_lab import widgets\nwidgets.show(widgets.explore_{name}())" for name in EXPLORERS]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    book.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = lab[1] / "explorers.ipynb"
    nbformat.write(book, notebook)
    with watched_page(browser) as page:
        open_and_run(page, lab, notebook)
        yield page


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_control_of_an_explorer_changes_its_figure(explorers, name):
    page, number = explorers, EXPLORERS.index(name)
    cell = page.locator(".jp-CodeCell").nth(number)
    picture = cell.locator(".jp-OutputArea .widget-html-content img")
    picture.wait_for(timeout=120_000)
    picture.scroll_into_view_if_needed()
    controls = controls_of(page, cell)
    assert len(controls) == len(getattr(widgets, f"explore_{name}")().controls)
    for control, move in reversed(controls):  # the first ones, model and method, decide what the others can change
        before = picture.get_attribute("src"), picture.get_attribute("alt")
        act = move(control)
        start = time.perf_counter()
        act()
        page.wait_for_function(
            "([number, before]) => document.querySelectorAll('.jp-CodeCell')[number]"
            ".querySelector('.jp-OutputArea .widget-html-content img').src != before",
            arg=[number, before[0]],
        )
        print(f"{name}: {control.inner_text().splitlines()[0]}: {1e3 * (time.perf_counter() - start):.0f} ms")
        assert picture.get_attribute("alt") != before[1]
        assert picture.bounding_box()["width"] > 300
    widths = [control.bounding_box()["width"] for control, _ in controls]
    assert all(abs(width - picture.bounding_box()["width"]) < 20 for width in widths), widths
    if SCREENSHOTS:
        cell.locator(".jp-OutputArea").first.screenshot(path=f"{SCREENSHOTS}/explorer-{name}.png")


def test_a_state_is_kept_and_everything_is_reset_with_the_buttons(explorers):
    page, cell = explorers, explorers.locator(".jp-CodeCell").first
    pictures = cell.locator(".jp-OutputArea .explorer-pictures img")
    first = pictures.first.get_attribute("src")
    cell.get_by_role("button", name="Keep this state to compare").click()
    pictures.nth(1).wait_for(timeout=30_000)
    control, move = controls_of(page, cell)[-1]
    move(control)()
    page.wait_for_function(
        "first => document.querySelector('.jp-OutputArea .explorer-pictures img').src != first", arg=first
    )
    assert pictures.nth(1).get_attribute("src") == first
    if SCREENSHOTS:
        cell.locator(".jp-OutputArea").first.screenshot(path=f"{SCREENSHOTS}/explorer-kept.png")
    cell.get_by_role("button", name="Reset").click()
    page.wait_for_function("() => document.querySelectorAll('.explorer-pictures img').length == 7")  # one for each
    assert pictures.count() == 1


ASK = """
import time
from qlora_lab import widgets

def loud(command):
    time.sleep(1)
    if command == "fail":
        raise ValueError("no <such> command")
    return command.upper()

widgets.show(widgets.explore_answers(loud, lambda command: '[{"name":"weather","arguments":{}}]', ["hello"]))
"""


def test_the_box_asks_both_models_and_is_disabled_while_they_answer(page, lab):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(ASK)])
    book.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = lab[1] / "answers.ipynb"
    nbformat.write(book, notebook)

    open_and_run(page, lab, notebook)
    box = page.locator(".jp-OutputArea .widget-vbox")
    box.get_by_text("HELLO").wait_for(timeout=120_000)
    button, field = box.get_by_role("button", name="Ask", exact=True), box.locator(".widget-text input")
    for command, answer in (("lights on", "LIGHTS ON"), ("fail", "ValueError: no <such> command")):
        field.fill(command)
        button.click()
        page.wait_for_function("() => document.querySelector('.jp-OutputArea .widget-button').disabled")
        assert field.is_disabled()
        box.get_by_text(answer).wait_for(timeout=30_000)
        page.wait_for_function("() => !document.querySelector('.jp-OutputArea .widget-button').disabled")
        assert box.get_by_text("parses as 1 call").count() == 1
    if SCREENSHOTS:
        page.locator(".jp-OutputArea").first.screenshot(path=f"{SCREENSHOTS}/answers.png")


def test_opening_a_notebook_and_saving_it_changes_nothing(page, lab):
    """In the form that `make notebooks` leaves, with the Python that left it."""
    notebook = lab[1] / sorted(FOLDER.glob("00_*.ipynb"))[0].name
    shutil.copy(FOLDER / notebook.name, notebook)
    subprocess.run([sys.executable, FOLDER.parent / "tools" / "clean.py", notebook], check=True)
    before, written = notebook.read_bytes(), notebook.stat().st_mtime_ns
    page.goto(f"{lab[0]}lab/tree/{notebook.name}?token=browser-test&reset")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
    page.get_by_text("| Idle").wait_for(timeout=120_000)
    time.sleep(2)  # what the kernel says about itself comes a moment later
    assert page.locator(".lm-TabBar .jp-mod-dirty").count() == 0
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.keyboard.press("Control+s")
    for _ in range(100):
        if notebook.stat().st_mtime_ns != written:
            break
        time.sleep(0.1)
    assert notebook.stat().st_mtime_ns != written and notebook.read_bytes() == before


def test_a_notebook_runs_from_top_to_bottom(page, lab):
    source = sorted(FOLDER.glob("0[2-4]_*.ipynb"))[0]
    notebook = lab[1] / source.name
    book = nbformat.read(source, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(book, notebook)

    open_and_run(page, lab, notebook)
    cells = []
    for _ in range(600):  # what is on the disk is what the reader would keep
        page.keyboard.press("Control+s")
        time.sleep(1)
        cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
        if cells[-1].execution_count is not None:
            break
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {(o.output_type, o.get("name")) for cell in cells for o in cell.outputs}
    assert ("error", None) not in kinds and ("stream", "stderr") not in kinds
    if SCREENSHOTS:
        page.screenshot(path=f"{SCREENSHOTS}/notebook.png")
