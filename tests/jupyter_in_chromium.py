"""JupyterLab in headless Chromium, for the tests that need a real browser: fixtures, and what a hand would do."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic", "--disable-sync"]
SETTINGS = {
    "IdentityProvider": {"token": "browser-test"},
    "ServerApp": {"port_retries": 50},
    "LabApp": {"check_for_updates_class": "jupyterlab.NeverCheckForUpdate", "extension_manager": "readonly"},
}
SCREENSHOTS = os.environ.get("SCREENSHOTS")  # a folder to leave pictures in

IN_A_BROWSER = [
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


@contextlib.contextmanager
def watched_page(browser):
    """A page that fails in the end if anything was reported as an error in its console."""
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


@pytest.fixture
def page(browser, request):
    with watched_page(browser) as page:
        yield page
        if SCREENSHOTS:
            page.screenshot(path=f"{SCREENSHOTS}/{request.node.name}.png")


def open_and_run(page, lab, notebook: Path) -> None:
    """Open a notebook of the laboratory's folder and choose Run, Run All Cells."""
    address, folder = lab
    page.goto(f"{address}lab/tree/{notebook.relative_to(folder)}?token=browser-test&reset")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
    page.get_by_text("| Idle").wait_for(timeout=120_000)  # the kernel's state, in the status bar
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
