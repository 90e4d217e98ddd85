"""In a real browser: JupyterLab in headless Chromium, every explorer moved, one notebook run from top to bottom.

Needs Chromium or Chrome on the machine (Debian: `apt-get install chromium`); skipped, with a line in the summary, where
there is none.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from qlora_lab import widgets

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic", "--disable-sync"]
EXPLORERS = ["codebook", "scale", "rank", "pages", "fit", "gpus", "costs"]
SETTINGS = {
    "IdentityProvider": {"token": "browser-test"},
    "ServerApp": {"port_retries": 50},
    "LabApp": {"check_for_updates_class": "jupyterlab.NeverCheckForUpdate", "extension_manager": "readonly"},
}
SCREENSHOTS = os.environ.get("SCREENSHOTS")  # a folder to leave pictures in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome, and there is none here: NOT RUN"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """(address of a JupyterLab, its folder); its settings are its own."""
    folder, own = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("jupyter")
    places = {"JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"), "JUPYTERLAB_SETTINGS_DIR": str(own / "settings")}
    places |= {f"JUPYTER_{name}_DIR": str(own / name.lower()) for name in ("CONFIG", "RUNTIME", "DATA")}
    notices = own / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    nbgrader = own / "config" / "nbgrader_config.json"  # how long a cell may take while an assignment is validated
    contents = {own / "config" / "jupyter_lab_config.json": SETTINGS, notices: {"fetchNews": "false"}}
    for file, content in (contents | {nbgrader: {"Execute": {"timeout": 900}}}).items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]
    paths = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    with open(own / "log", "w") as log:
        server = subprocess.Popen(command, env=os.environ | places | {"PYTHONPATH": paths}, stdout=log, stderr=log)
    try:
        yield _address(server, own), folder
    finally:
        server.terminate()
        server.wait(30)


def _address(server: subprocess.Popen, own: Path) -> str:
    for _ in range(600):
        for file in (own / "runtime").glob("jpserver-*.json"):
            return json.loads(file.read_text())["url"]
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError("JupyterLab did not start:\n" + (own / "log").read_text()[-3000:])


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, request):
    """A page that fails the test if anything is reported as an error in its console."""
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    if SCREENSHOTS:
        page.screenshot(path=f"{SCREENSHOTS}/{request.node.name}.png")
    page.close()
    assert not errors


def open_and_run(page, lab, notebook: Path) -> None:
    """Open a notebook of the laboratory's folder and choose Run, Run All Cells."""
    address, folder = lab
    page.goto(f"{address}lab/tree/{notebook.relative_to(folder)}?token=browser-test&reset")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
    page.get_by_text("| Idle").wait_for(timeout=120_000)  # the kernel's state, in the status bar
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def controls_of(page) -> list:
    """The controls of an explorer in their order, each with what moves it as a hand or a key would."""

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

    found = page.locator(".jp-OutputArea .widget-vbox > *:not(.widget-html)")
    return [(found.nth(number), move) for number in range(found.count())]


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_control_of_an_explorer_changes_its_figure(page, lab, name):
    explorer = getattr(widgets, f"explore_{name}")()
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell(f"from qlora_lab import widgets\nwidgets.show(widgets.explore_{name}())"),
    ]
    book.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = lab[1] / f"{name}.ipynb"
    nbformat.write(book, notebook)

    open_and_run(page, lab, notebook)
    picture = page.locator(".jp-OutputArea .widget-html-content img")
    picture.wait_for(timeout=120_000)
    controls = controls_of(page)
    assert len(controls) == len(explorer.controls)
    for control, move in reversed(controls):  # the first ones, model and method, decide what the others can change
        before = picture.get_attribute("src"), picture.get_attribute("alt")
        act = move(control)
        start = time.perf_counter()
        act()
        page.wait_for_function(
            "before => document.querySelector('.jp-OutputArea .widget-html-content img').src != before", arg=before[0]
        )
        print(f"{name}: {control.inner_text().splitlines()[0]}: {1e3 * (time.perf_counter() - start):.0f} ms")
        assert picture.get_attribute("alt") != before[1]
        assert picture.bounding_box()["width"] > 300
    if SCREENSHOTS:
        page.locator(".jp-OutputArea").first.screenshot(path=f"{SCREENSHOTS}/explorer-{name}.png")


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
