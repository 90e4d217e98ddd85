"""Files appear whole or not at all."""

import os

import pytest
import torch

from qlora_lab.machine.files import load_tensors, save_tensors, write_json, write_text, write_whole


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), write_whole(path) as temporary:
        temporary.write_text("half of the ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o640


def test_a_folder_and_a_missing_folder_are_told_apart(tmp_path):
    with pytest.raises(IsADirectoryError, match="give the path of a file"):
        write_text(tmp_path, "x")
    with pytest.raises(FileNotFoundError, match="create it first"):
        write_text(tmp_path / "missing" / "file.txt", "x")


def test_json_refuses_nan_before_the_old_file_is_touched(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1\n}\n'


def test_tensors_come_back_bit_equal(tmp_path):
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.randn(5).bfloat16(), "c": torch.arange(3), "d": torch.empty(0)}
    save_tensors(tmp_path / "t.safetensors", tensors, {"kind": "test"})
    loaded, metadata = load_tensors(tmp_path / "t.safetensors")
    assert metadata == {"kind": "test"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("cut", [0, 4, 30, -1])
def test_a_cut_file_is_refused(tmp_path, cut):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_tensors(path)


def test_a_pickle_is_refused(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "t.pt")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_tensors(tmp_path / "t.pt")
