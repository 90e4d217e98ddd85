"""How many bytes can still be allocated, of the GPU or within a container's limits; and what a process has alone."""

import contextlib
import ctypes
import gc
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")  # Linux control groups: where a container's memory limit stands


OWN_GROUPS = Path("/proc/self/cgroup")


def free_memory(device: torch.device | str) -> int:
    """Bytes a process can still allocate on a device: the GPU's free memory, or the machine's within its container.

    Apple's GPUs (mps) have none of their own: both limits hold.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil  # only here: a bare machine with a GPU may lack it

    left = [psutil.virtual_memory().available, _container_left()]
    if device.type == "mps":  # a share of the machine's memory
        left.append(max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()))
    return min(bytes_left for bytes_left in left if bytes_left is not None)


def own_memory() -> int:
    """Bytes of the machine's memory that this process has for itself: what would be free if it ended now.

    What it has freed already is given back to the system first, where the system has a way to ask for that.
    """
    import psutil

    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_full_info().uss


def _container_left() -> int | None:
    """Bytes left under the limits of this process's control groups (version 2 or 1); None where there is no limit.

    The file cache, which the kernel gives back under pressure, does not count as used.
    """
    own = {}  # controller -> path; version 2 has one line with no controller
    for line in _lines(OWN_GROUPS):
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path.strip("/"))
    left = []
    for base, path, limit, usage in (
        (CGROUPS, own.get("", ""), "memory.max", "memory.current"),
        (CGROUPS / "memory", own.get("memory", ""), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        own_folder = base / path
        for folder in (own_folder, *own_folder.parents):  # a limit holds for everything below it
            if not folder.is_relative_to(base):
                break
            try:
                most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
            except (OSError, ValueError):  # no such file, or the word "max"
                continue
            stat = dict(line.split() for line in _lines(folder / "memory.stat") if len(line.split()) == 2)
            cache = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            if most < 2**60:  # version 1 writes a number near 2^63 for "no limit"
                left.append(max(0, most - max(0, used - cache)))
    return min(left, default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
