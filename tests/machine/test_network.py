"""No test reaches beyond this machine: what needs the network says so and is fetched before."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from pytest_socket import SocketConnectBlockedError

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "192.0.2.1"  # an address that is reserved for examples


def test_a_connection_to_elsewhere_is_refused():
    with socket.socket() as outside, pytest.raises(SocketConnectBlockedError):
        outside.connect((NOWHERE, 443))


def test_this_machine_can_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())


TRY = f"""
import socket
for attempt in (
    lambda: socket.create_connection(("{NOWHERE}", 443), timeout=1),
    lambda: socket.getaddrinfo("example.org", 443),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("{NOWHERE}", 53)),
):
    try:
        print("reached", attempt())
    except OSError as error:
        print(error)
with socket.create_server(("localhost", 0)) as server:
    socket.create_connection(server.getsockname()).close()
"""


def test_a_process_that_a_test_starts_has_no_network_either():
    done = subprocess.run([sys.executable, "-c", TRY], capture_output=True, text=True, check=True)
    assert done.stdout.count("the tests have no network") == 3, done.stdout


def test_nor_has_the_kernel_of_a_notebook():
    """Started as nbval starts it."""
    manager, client = start_new_kernel()
    try:
        said = []
        client.execute_interactive(TRY, output_hook=lambda message: said.append(message["content"].get("text", "")))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert "".join(said).count("the tests have no network") == 3, said


RUN = """
import sys
import nbformat
from nbclient import NotebookClient

book = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(book, timeout=600, startup_timeout=600, resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(book, sys.argv[1])
"""


def has_namespaces() -> bool:
    """Whether this system lets us make a network namespace (Linux, and not forbidden)."""
    unshare = shutil.which("unshare")
    return bool(unshare) and subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(not has_namespaces(), reason="this system makes no network namespace (`unshare -rn`): NOT RUN")
def test_a_notebook_runs_where_there_is_no_network_at_all(tmp_path, monkeypatch):
    """The first notebook up to the model's first answer: package, model, tokenizer and data, as they are used."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # without `offline`: the namespace alone keeps it from the network
    book = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"][:4]
    assert "evaluation.generate" in code[2].source and "it says" in code[3].source
    committed = code[2].outputs
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    book.cells = code
    path = tmp_path / "00_start_here.ipynb"
    nbformat.write(book, path)
    command = ["unshare", "-rn", sys.executable, ROOT / "tests" / "machines" / "no_network.py"]
    command += [sys.executable, "-c", RUN, path, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ran = nbformat.read(path, as_version=4).cells
    assert [cell.execution_count for cell in ran] == [1, 2, 3, 4]
    assert [output.text for output in ran[2].outputs] == [output.text for output in committed]
