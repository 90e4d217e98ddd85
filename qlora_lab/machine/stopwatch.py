"""How long a call takes, measured so that methods can be compared."""

import time
from collections.abc import Callable

import torch

from qlora_lab.machine.environment import default_device
from qlora_lab.machine.matmul import plain


def seconds_of(call: Callable, *arguments) -> float:
    """Seconds that `call(*arguments)` takes, the GPU's work included.

    Every product in it is PyTorch's own: on AMD processors this package's 4-bit layer takes faster ones (`matmul`),
    which is no merit of four bits.
    """
    kind = default_device().type
    wait = (lambda: None) if kind == "cpu" else torch.get_device_module(kind).synchronize
    with plain():
        wait()
        start = time.perf_counter()
        call(*arguments)
        wait()
        return time.perf_counter() - start
