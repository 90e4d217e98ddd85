"""What `make quick` runs."""

import subprocess

import pytest
from changed import changed_files, places_of_tests


@pytest.mark.parametrize(
    ("files", "places"),
    [
        (["qlora_lab/paging/tiers/slots.py"], ["tests/paging"]),
        (["qlora_lab/lora.py", "tests/paging/test_store.py"], ["tests/paging", "tests/test_lora.py"]),
        (["notebooks/01_four_bit_quantization.ipynb"], ["tests/checks", "tests/notebooks"]),
        (["README.md"], ["tests/notebooks"]),
        (["tests/test_loss.py"], ["tests/test_loss.py"]),
        (["qlora_lab/lora.py", "tests/tiny.py"], ["tests"]),
        (["qlora_lab/__init__.py"], ["tests"]),
        (["tests/wrong_answers/__init__.py"], ["tests"]),
        (["Makefile"], ["tests"]),
        ([], ["tests"]),
    ],
)
def test_a_room_has_its_tests_and_what_all_share_has_all(files, places):
    assert places_of_tests(files) == places


def test_what_is_committed_changed_and_new_since_main(tmp_path):
    def git(*arguments):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert changed_files(tmp_path) == []
    git("init", "-b", "main")
    for name in ("kept", "edited", "committed"):
        (tmp_path / name).touch()
    git("add", ".")
    git("commit", "-m", "one")
    assert changed_files(tmp_path) == []
    git("switch", "-c", "branch")
    (tmp_path / "committed").write_text("x")
    git("commit", "-a", "-m", "two")
    (tmp_path / "edited").write_text("x")
    (tmp_path / "new").touch()
    assert changed_files(tmp_path) == ["committed", "edited", "new"]
