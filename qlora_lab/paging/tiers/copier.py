"""Copying pages between tiers, in one thread and in the order it was told.

The order is the whole protocol: a page that leaves a slot is written before the page that comes into that slot is read,
because it was ordered first. On a GPU the thread only starts the copies, on one stream for each direction, and waits
where a file is involved; slots remember their last use (`Slot.busy`), which is what later copies and the computation
wait for. A page on its way between the device and a file passes through a buffer, page-locked for CUDA.

After a failure nothing is copied any more: what comes next could overwrite what could not be saved.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from qlora_lab.paging.tiers.page_file import PageFile
from qlora_lab.paging.tiers.slots import Slot, SlotPool

DEVICE, HOST, DISK, NEW = "device", "host", "disk", "new"


class Copier:
    """Carries out copies for a `PageStore`. failure: the error of the first copy that failed, or None."""

    def __init__(self, page_size: int, device: torch.device, file: PageFile | None):
        gpu = device.type == "cuda"
        self.file = file
        self.failure: BaseException | None = None
        self.streams = {tier: torch.cuda.Stream(device) for tier in (DEVICE, HOST)} if gpu else {}
        apart = device.type != "cpu" and file is not None  # no file is read into a GPU's memory, Apple's included
        self._staging = SlotPool(page_size, 2, torch.device("cpu"), pinned=gpu) if apart else None
        self._thread: ThreadPoolExecutor | None = None

    def copy(self, source: str, start, target: str, end) -> Future:
        """Order a page from a place of tier `source` to one of `target`: slots, or places in the file."""
        return self._order(self._copy, source, start, target, end)

    def read(self, tier: str, place, content: torch.Tensor) -> None:
        """Copy a page into `content`, uint8 (page_size,) on the CPU; waits for it."""
        self._order(self._read, tier, place, content).result()

    def drain(self) -> None:
        """Wait until everything ordered is done."""
        if self._thread is not None and self.failure is None:
            self._order(lambda: None).result()
        for stream in self.streams.values():
            stream.synchronize()

    def close(self) -> None:
        """Stop the thread; what it has not begun is not done."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def _order(self, work, *arguments) -> Future:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "optimizer pages")
        return self._thread.submit(self._guarded, work, *arguments)

    def _guarded(self, work, *arguments):
        # after a failure nothing is copied any more: what comes next could overwrite what could not be saved
        if self.failure is not None:
            raise self.failure
        try:
            return work(*arguments)
        except BaseException as error:
            self.failure = error
            raise

    def _copy(self, source: str, start, target: str, end) -> None:
        if source == NEW:
            self._on_stream(target, None, end)
        elif target == DISK:
            staging = start
            if source == DEVICE and self._staging is not None:
                staging = self._staging.take()
                self._on_stream(HOST, start, staging)
            self._finish(staging)
            self.file.write(end, staging.memory.numpy())
            if staging is not start:
                self._staging.give(staging)
        elif source == DISK:
            staging = end if self._staging is None or target == HOST else self._staging.take()
            self._finish(staging)
            self.file.read(start, staging.memory.numpy())
            if staging is not end:
                self._on_stream(DEVICE, staging, end)
                self._staging.give(staging)
        else:
            self._on_stream(target, start, end)

    def _on_stream(self, target: str, start: Slot | None, end: Slot) -> None:
        """Copy between slots, or fill with zeros; on a GPU in the stream of that direction, after all earlier uses."""
        if not self.streams:
            end.memory.zero_() if start is None else end.memory.copy_(start.memory)
            return
        with torch.cuda.stream(self.streams[target]):
            for slot in (start, end):
                if slot is not None and slot.busy is not None:
                    self.streams[target].wait_event(slot.busy)
            end.memory.zero_() if start is None else end.memory.copy_(start.memory, non_blocking=True)
            end.busy = self.streams[target].record_event()
            if start is not None:
                start.busy = end.busy

    @staticmethod
    def _finish(slot: Slot) -> None:
        if slot.busy is not None:
            slot.busy.synchronize()

    def _read(self, tier: str, place, copy: torch.Tensor) -> None:
        if tier == DISK:
            self.file.read(place, copy.numpy())
        else:
            self._finish(place)
            copy.copy_(place.memory)
