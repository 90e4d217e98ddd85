"""Large tensors in huge pages: touching fresh memory 4 KiB at a time costs more than filling it."""

import mmap

import torch

_HUGE_PAGE = 2**21  # bytes


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`torch.empty`, in huge pages where that helps: on Linux CPUs, from two huge pages on."""
    count = 1
    for n in shape:
        count *= n
    size = count * dtype.itemsize
    if device.type != "cpu" or size < 2 * _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # no memory left, or a kernel built without huge pages: PyTorch knows what to say or do
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)  # the tensor keeps the mapping alive
