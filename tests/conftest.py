"""What all tests share: markers that skip loudly, no network, reproducible property tests."""

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from systems import left_out, summary

with contextlib.suppress(ImportError):
    # torch.compile imports it; some versions refuse to be imported after distutils, which other tests bring in
    import setuptools  # noqa: F401

collect_ignore = ["made_before"]  # written by an earlier version: data of a test, and notebooks that nobody runs

settings.register_profile("house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


def pytest_configure(config):
    # Answers that tests give are kept by themselves, and no notebook finds pieces of whoever works in this checkout.
    if "QLORA_LAB_MINE" not in os.environ:
        os.environ["QLORA_LAB_MINE"] = tempfile.mkdtemp(prefix="my_qlora-")
    # What the tests start (kernels of notebooks, command lines, workers) has no network either.
    offline = str(Path(__file__).resolve().parent / "offline")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [offline, os.environ.get("PYTHONPATH")]))
    # The compiler's workers are for GPU kernels; each process that compiles would import torch once more for them.
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # Reports why tests were skipped: a machine without a GPU has not run the CUDA tests, and says so.
    if "s" not in config.option.reportchars:
        config.option.reportchars += "s"


def pytest_ignore_collect(collection_path, config):
    """With `-m cuda`, read only the modules that have such tests: a bare machine lacks what the others import."""
    if left_out(collection_path):
        return True
    if config.option.markexpr == "cuda" and collection_path.match("test_*.py"):
        return "mark.cuda" not in collection_path.read_text(encoding="utf-8") or None
    return None  # others may decide


def pytest_terminal_summary(terminalreporter):
    for line in summary():
        terminalreporter.write_line(line)


# Files that take more than half a minute, longest first: with one that begins last, all other cores wait for it.
LONGEST = [
    "07_ranks_data_types_and_costs.ipynb",
    "06_fine_tuning.ipynb",
    "05_qlora_layer_by_layer.ipynb",
    "09_your_own_data.ipynb",
    "10_after_nf4.ipynb",
    "test_grading.py",
    "03_lora.ipynb",
    "test_workshop.py",
    "08_beyond_one_gpu.ipynb",
    "test_compilation.py",
    "test_browser.py",
    "00_start_here.ipynb",
    "test_conversion.py",
    "test_simulation.py",
    "04_paged_optimizers.ipynb",
    "test_classroom_browser.py",
    "test_release.py",
    "test_tensor.py",
    "test_distributed.py",
    "01_four_bit_quantization.ipynb",
    "test_judging.py",
    "test_hub.py",
    "test_sandbox.py",
]


# first: tests that are deselected by a marker have to have it by then
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        if "course" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    from qlora_lab.machine import default_device

    lacking = {
        "cuda": torch.cuda.is_available() or "needs an NVIDIA GPU, and torch sees none here",
        "mps": default_device().type == "mps" or "needs a GPU of Apple's, and there is none that works here",
    }
    for item in items:
        for marker, reason in lacking.items():
            if reason is not True and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{reason}: NOT RUN"))


@pytest.fixture(scope="session")
def course(tmp_path_factory):
    """A course of three notebooks with hints and open questions, made once. Tests must not change it."""
    from qlora_lab.classroom.release import find_notebooks, release

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.defpath)  # as for somebody who has not activated the environment
        made, _ = release(
            find_notebooks(["01", "03", "05"]),
            tmp_path_factory.mktemp("course"),
            questions=True,
            seed="the seed of the tests",
        )
    return made


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny model and its tokenizer in a folder, as they are saved."""
    from tiny import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("tiny-model")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def pytest_make_parametrize_id(config, val, argname):
    """Bytes are no names: packed ones hold the time, and processes that test together must find the same tests."""
    return argname if isinstance(val, bytes) else None
