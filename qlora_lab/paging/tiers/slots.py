"""Memory for pages: slots of one page each, on the device, in pinned memory or in plain RAM.

Slots are allocated in extents of 32 MB, as they are needed, and an extent can be given back: that is how the pages
shrink when something else needs the memory. On a GPU every slot remembers the last thing that used it, so that work
on three streams (computing, copying in, copying out) waits for nothing but what it needs.
"""

from collections import deque
from dataclasses import dataclass

import torch

EXTENT = 32 * 2**20  # bytes allocated in one go


@dataclass(eq=False, slots=True)
class Slot:
    """memory: uint8 (page_size,). extent: the allocation it is part of. busy: CUDA event of its last use, or None."""

    memory: torch.Tensor
    extent: torch.Tensor
    busy: torch.cuda.Event | None = None


class SlotPool:
    """Slots of `page_size` bytes, at most `capacity` of them.

    Args:
        capacity: slots; None for as many as are asked for.
        device: where the memory is. pinned: page-locked, for copies to and from a GPU.
    """

    def __init__(self, page_size: int, capacity: int | None, device: torch.device, pinned: bool = False):
        self.page_size, self.capacity = page_size, capacity
        self.device, self.pinned = device, pinned
        self.wanted = 0  # slots that could ever be of use: no extent is made larger than that
        self.size = 0  # slots allocated
        self.extents: list[torch.Tensor] = []
        self._free: deque[Slot] = deque()  # the slot that is free longest is taken first

    def take(self) -> Slot | None:
        """A free slot, or None; its memory holds anything."""
        if not self._free:
            limit = max(self.wanted, self.size + 1) if self.capacity is None else self.capacity
            count = min(max(1, EXTENT // self.page_size), limit - self.size)
            if count <= 0:
                return None
            if self.wanted > self.size:
                count = min(count, self.wanted - self.size)
            extent = torch.empty(count, self.page_size, dtype=torch.uint8, device=self.device, pin_memory=self.pinned)
            self.size += count
            self.extents.append(extent)
            # memory of torch's allocator may still be in use by what the current stream was given before
            busy = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
            self._free += [Slot(memory, extent, busy) for memory in extent.unbind()]
        return self._free.popleft()

    def give(self, slot: Slot) -> None:
        self._free.append(slot)

    def drop(self, extent: torch.Tensor) -> None:
        """Forget an extent's free slots; those in use are no longer counted and must not be given back."""
        self._free = deque(slot for slot in self._free if slot.extent is not extent)
        self.extents = [other for other in self.extents if other is not extent]
        self.size -= len(extent)
