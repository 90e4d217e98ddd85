"""Huge pages change where a tensor lies, and nothing else."""

import mmap

import torch

from qlora_lab.machine import huge_pages

CPU = torch.device("cpu")


def test_a_large_allocation_is_an_ordinary_tensor():
    tensor = huge_pages.empty((3, 2**20), torch.float32, CPU)
    tensor.fill_(1).mul_(2)
    assert tensor.shape == (3, 2**20) and tensor.sum().item() == 6 * 2**20
    assert tensor.clone().data_ptr() != tensor.data_ptr()


def test_where_the_system_has_none_the_allocation_is_pytorchs(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no memory left")

    monkeypatch.setattr(mmap, "mmap", refuse)
    tensor = huge_pages.empty((3, 2**20), torch.float32, CPU).zero_()
    assert tensor.shape == (3, 2**20) and not tensor.any()
