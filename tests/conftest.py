"""What all tests share: markers that skip loudly, no network, reproducible property tests."""

import contextlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

with contextlib.suppress(ImportError):
    # torch.compile imports it; some versions refuse to be imported after distutils, which other tests bring in
    import setuptools  # noqa: F401

settings.register_profile("house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


def pytest_configure(config):
    # What the tests start (kernels of notebooks, command lines, workers) has no network either.
    offline = str(Path(__file__).resolve().parent / "offline")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [offline, os.environ.get("PYTHONPATH")]))
    # Reports why tests were skipped: a machine without a GPU has not run the CUDA tests, and says so.
    if "s" not in config.option.reportchars:
        config.option.reportchars += "s"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU, and torch sees none here: NOT RUN")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


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
