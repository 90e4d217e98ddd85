"""How large a page is, and how much of the device's memory pages may take."""

import torch

from qlora_lab.machine.free_memory import free_memory

MEMORY_MARGIN = 0.05  # share of the memory that "auto" leaves alone


def page_size_for(state_bytes: int, device_budget: int | None) -> int:
    """4 MB; less where that is over a sixteenth of the state or an eighth of the budget: a power of two from 4 kB."""
    size = 2**22
    while size > 4096 and (16 * size > max(state_bytes, 1) or (device_budget and 8 * size > device_budget)):
        size //= 2
    return size


def free_bytes(device: torch.device) -> int:
    free = free_memory(device)
    if device.type != "cuda":
        return free
    allowed = torch.cuda.get_per_process_memory_fraction(device) * torch.cuda.mem_get_info(device)[1]
    return min(free, int(allowed) - torch.cuda.memory_allocated(device))


def margin(device: torch.device) -> int:
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else free_bytes(device)
    return int(MEMORY_MARGIN * total)


def is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
