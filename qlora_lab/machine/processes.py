"""Who works on this: one process alone, or several that torchrun started together.

    torchrun --nproc-per-node 2 -m qlora_lab.cli finetune ...

starts two processes with the same command. Each has a rank, 0, 1, ...; rank 0 is the main one, which alone writes and
shows what all have in common. In a process that was started alone everything here is the identity, and costs nothing.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from qlora_lab.machine.errors import UserFacingError

_NETWORK = re.compile(r"gloo|nccl|connection|socket|broken pipe|timed out|process group", re.IGNORECASE)


class LostProcess(UserFacingError, RuntimeError):
    """Another of the processes has ended, so this one cannot go on."""


def count() -> int:
    """How many processes work together; 1 where none are connected."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0 on."""
    return dist.get_rank() if count() > 1 else 0


def is_main() -> bool:
    return rank() == 0


@contextlib.contextmanager
def connected(
    device: torch.device | str | None = None, timeout: timedelta | None = None
) -> Iterator[torch.device | str | None]:
    """Inside, the processes that torchrun started together are connected; yields the device this one should use.

    Args:
        device: None or "cuda": the GPU of this process's own number on its machine, "cpu" where there is none.
        timeout: how long a process waits for the others; None is torch's default (30 minutes, 10 between GPUs).

    Yields:
        `device` unchanged where this process was started alone.

    Raises:
        ValueError: a machine with fewer GPUs than processes, one device named for several processes, or mps.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or count() > 1:
        yield device
        return
    device = _own_device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    with watched():
        yield device
        dist.barrier()  # one that is done early would look like one that is lost
        dist.destroy_process_group()  # not after an error, where it could wait for the others


@contextlib.contextmanager
def watched(advice: str = "") -> Iterator[None]:
    """Inside, an error of the network between processes is told as what it means: a `LostProcess`."""
    try:
        yield
    except RuntimeError as error:
        if count() < 2 or isinstance(error, LostProcess) or not _is_network_error(error):
            raise
        raise LostProcess(f"another process has ended, so this one ends too{advice}") from error


def from_main(function: Callable):
    """Let the main process alone call `function`; all return its result, or raise the exception that it raised."""
    if count() < 2:
        return function()
    box = [None, None]
    if is_main():
        try:
            box[0] = function()
        except Exception as error:
            box[1] = error
    dist.broadcast_object_list(box)
    if box[1] is not None:
        box[1].told_by_main = not is_main()  # one message is enough
        raise box[1]
    return box[0]


def gathered(value) -> list:
    """Every process's `value`, in the order of their ranks, in all of them."""
    if count() < 2:
        return [value]
    values = [None] * count()
    dist.all_gather_object(values, value)
    return values


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of all processes' tensors, in all of them. The argument may be changed."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        dist.barrier()


def share(items, number: int | None = None, of: int | None = None):
    """Every `of`-th of `items` from `number` on: no two processes' shares overlap, and together they are all."""
    return items[rank() if number is None else number :: count() if of is None else of]


def interleaved(shares: list[list]) -> list:
    """Undo `share`: the items in their order, from every process's part."""
    items = [None] * sum(map(len, shares))
    for number, part in enumerate(shares):
        items[number :: len(shares)] = part
    return items


def is_part(tensor: torch.Tensor) -> bool:
    """Whether this process holds a part of the tensor only."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor put together from all processes' parts; every process must ask. Others are returned as they are."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of the tensor that this process holds."""
    return tensor.to_local() if is_part(tensor) else tensor


def _own_device(device) -> torch.device:
    number, here = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"  # mps is for one process alone
    device = torch.device(device)
    if device.type == "mps":
        raise ValueError(f"{here} processes cannot share Apple's GPU; start one alone, or give --device cpu")
    if device.type != "cuda":
        return device
    if device.index is not None and here > 1:
        raise ValueError(f"{here} processes cannot share {device}; give --device cuda, and each takes its own GPU")
    if torch.cuda.device_count() < here:
        raise ValueError(f"{here} processes on a machine with {torch.cuda.device_count()} GPUs; start one for each")
    return torch.device("cuda", number if device.index is None else device.index)


def _is_network_error(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or _NETWORK.search(str(error)) is not None
