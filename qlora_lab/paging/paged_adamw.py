"""AdamW whose state is paged: bit for bit `torch.optim.AdamW`, with the moments wherever there is room.

The two moments of every parameter lie flattened in fixed-size pages (`pages`), and a step sweeps over the pages: fetch,
update, next. Arithmetic is per element, so neither the cut into pages nor their order changes a bit; small parameters
share pages, large ones span several. A page of 4 MB, the default, and the weights and gradients it belongs to stay in a
processor's last cache while the eight operations of the update pass over them, and is large enough that the cost of
starting an operation in all threads, and of starting a disk, does not show.

Sweeps alternate in direction (see `pages`): with room for a share r of the state on the device, 1 - r of its bytes come
in and 1 - r go out in a step. On a machine without a GPU the "device" is RAM, up to the budget, and the rest a file.
"""

import itertools
import weakref
from collections import defaultdict

import torch

from qlora_lab.paging.adamw import Coefficients, update
from qlora_lab.paging.layout import Layout, Record, Segment
from qlora_lab.paging.moments import Moments, check_state
from qlora_lab.paging.page import Page, PageEvent
from qlora_lab.paging.page_budget import free_bytes, is_count, margin, page_size_for
from qlora_lab.paging.store import PageStore

GPU_RUN = 32  # pages updated by one set of kernels on a GPU; a CPU takes one at a time, which fits its cache


class PagedAdamW(torch.optim.Optimizer):
    """Drop-in for `torch.optim.AdamW` (without amsgrad) whose state may be larger than the memory it is used in.

    Args:
        params, lr, betas, eps, weight_decay, maximize: as for `torch.optim.AdamW`. Parameters are float32, float64,
            bfloat16 or float16, all on one device; those that require no gradient get no state until they have one.
        device_budget: bytes of pages on the device. None: all of them. 0: none between steps, and four pages while one
            computes. "auto": what is free, less 5 % of the memory, measured before each step.
        host_budget: bytes of pages in host memory, page-locked for a GPU. None: as many as needed beside a GPU; none
            beside a CPU, whose memory is the device already.
        directory: an existing folder for the file that holds the rest, reserved before the first step.
        page_size: bytes, a multiple of 4096. None: 4 MB, less where the state or the budget is small.
        state_bits: 32 keeps the moments in each parameter's dtype, as torch does. 8 keeps them in `state_codes` for
            parameters of at least 4096 elements: no longer AdamW's bits, a quarter of its bytes.
        event_limit: how many `events` are kept.

    Attributes:
        events: the last `PageEvent`s, oldest first; `clear()` it to drain it.
        bytes_moved: bytes moved in the last step by (source, target).

    Raises:
        ValueError: settings that make no sense, state that fits nowhere, parameters on several devices or of another
            dtype. PageFileError: the disk has no room. FileNotFoundError, NotADirectoryError, PermissionError: the
            folder.

    In use, a `PageFileError` names what is lost when the file is damaged, cut short, deleted or cannot be written.
    """

    def __init__(
        self,
        params,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        device_budget: int | str | None = None,
        host_budget: int | None = None,
        directory=None,
        page_size: int | None = None,
        state_bits: int = 32,
        event_limit: int = 65536,
    ):
        if state_bits not in (8, 32):
            raise ValueError(f"state_bits {state_bits!r} is not allowed; choose 32 or 8")
        for name, budget in (("device_budget", device_budget), ("host_budget", host_budget)):
            if not (budget is None or (name, budget) == ("device_budget", "auto") or is_count(budget)):
                raise ValueError(f"{name} {budget!r} is not a number of bytes; give a whole number of 0 or more")
        if page_size is not None and (not is_count(page_size) or page_size == 0 or page_size % 4096):
            raise ValueError(f"page_size {page_size!r} is not allowed; give a multiple of 4096 bytes")
        # torch's constructor checks the settings shared with AdamW and gives the groups the keys its state_dict has
        reference = torch.optim.AdamW([torch.empty(0)], lr, betas, eps, weight_decay, maximize=maximize)
        self._store: PageStore | None = None
        super().__init__(params, reference.defaults)
        self._layout = Layout(state_bits)
        tensors = [p for group in self.param_groups for p in group["params"]]
        device = tensors[0].device
        fixed = device_budget if isinstance(device_budget, int) else None
        wanted = [p for p in tensors if p.requires_grad]
        self._layout.page_size = page_size or page_size_for(self._layout.bytes_of(wanted), fixed)
        if host_budget is None and device.type != "cuda":
            host_budget = 0
        self._auto = device_budget == "auto"
        if self._auto and directory is None and host_budget == 0:
            raise ValueError('device_budget="auto" needs somewhere to put pages: give directory= or host_budget=')
        store = PageStore(self._layout.page_size, device, fixed, host_budget, directory, event_limit)
        self._closer = weakref.finalize(self, store.close)
        try:
            self._add(store, wanted)
        except BaseException:
            self._closer()
            raise
        self._store = store
        self._sweeps = 0

    # What torch.optim.Optimizer offers

    @torch.no_grad()
    def step(self, closure=None):
        """One update. Raises before anything is changed if the page file is gone or cut short."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        store = self._store
        store.check()
        records = self._with_gradients()
        store.step += 1
        store.moved.clear()
        if self._auto:
            self._follow_free_memory()
        pages = sorted({page for record, _ in records for page in record.pages}, key=lambda page: page.index)
        coefficients: dict[tuple[int, int], Coefficients] = {}
        for record, group in records:
            record.step += 1
            key = (id(group), record.step)
            if key not in coefficients:
                coefficients[key] = Coefficients.of(group, record.step)
            record.begin(coefficients[key], group["maximize"])
        self._sweeps += 1
        try:
            for batch in store.sweep(
                pages[:: 1 if self._sweeps % 2 else -1], GPU_RUN if store.device.type != "cpu" else 1
            ):
                self._update(batch)
        except BaseException as error:  # some parameters are updated and some are not
            store.copier.failure = store.copier.failure or error
            raise
        finally:
            for record, _ in records:
                record.end()
        return loss

    def add_param_group(self, param_group) -> None:
        super().add_param_group(param_group)
        if self._store is not None:
            try:
                self._add(self._store, [p for p in self.param_groups[-1]["params"] if p.requires_grad])
            except BaseException:
                self.param_groups.pop()
                raise

    def state_dict(self) -> dict:
        """As `torch.optim.AdamW`'s, readable by it; moves no page. All state is copied into the memory of the CPU."""
        result = super().state_dict()
        records = {key: moments.record for key, moments in result["state"].items()}
        gathered = self._layout.gather(list(records.values()), self._store)
        result["state"] = {key: {"step": torch.tensor(float(r.step)), **gathered[r]} for key, r in records.items()}
        return result

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over the state of a `PagedAdamW` with any budgets, or of a `torch.optim.AdamW`.

        Raises:
            ValueError: other parameters or shapes, or amsgrad. Nothing is changed then.
        """
        self._store.check()
        tensors = [p for group in self.param_groups for p in group["params"]]
        saved = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        given = {
            p: state_dict["state"][key] for p, key in zip(tensors, saved, strict=False) if key in state_dict["state"]
        }
        for index, p in enumerate(tensors):
            check_state(index, p, given.get(p))
        if any(group.get("amsgrad") for group in state_dict["param_groups"]):
            raise ValueError("PagedAdamW knows no amsgrad; this state was made with it")
        super().load_state_dict({**state_dict, "state": {}})
        self._add(self._store, [p for p in given if p not in self._layout.records])
        self.state = defaultdict(dict)
        flat: dict[Record, dict] = {}
        for p, record in self._layout.records.items():
            record.step = 0
            if p in given:
                record.step = int(given[p]["step"])
                self.state[p] = Moments(self, record)
                flat[record] = {
                    name: record.in_order(given[p][name], record.state_dtype) for name in ("exp_avg", "exp_avg_sq")
                }
        self._store.step += 1
        with torch.no_grad():
            used = [page for page in self._store.pages if page.tier != "new" or self._holds(page, flat)]
            for (page,) in self._store.sweep(used):
                for segment in self._layout.segments[page]:
                    part = slice(segment.start, segment.start + segment.length)
                    values = flat.get(segment.record)
                    segment.write(
                        page.place.memory,
                        *(values[name][part] if values else None for name in ("exp_avg", "exp_avg_sq")),
                    )

    def __reduce_ex__(self, protocol):
        raise TypeError(
            "a PagedAdamW holds a file and a thread and cannot be copied or pickled; make another one and give it this "
            "one's state_dict()"
        )

    # What only a paged optimizer offers

    @property
    def events(self):
        return self._store.events

    @property
    def bytes_moved(self) -> dict[tuple[str, str], int]:
        return {pair: count for pair, count in self._store.moved.items() if count}

    @property
    def page_size(self) -> int:
        return self._store.page_size

    @property
    def page_file(self):
        """The path of the page file, or None."""
        return self._store.file.path if self._store.file is not None else None

    def residency(self) -> dict[str, int]:
        """Bytes of pages on "device", "host" and "disk". A page is made at its first use, and then is in one tier."""
        return self._store.residency()

    def device_tensors(self) -> list[torch.Tensor]:
        """The memory that holds the pages on the device, uint8; `MemoryTrace` counts it as optimizer state."""
        return list(self._store.arenas["device"].extents)

    def set_device_budget(self, budget: int | None) -> None:
        """Give the device this many bytes of pages (as `device_budget`, not "auto") from now on.

        A smaller budget evicts at once and gives the memory back; with a larger one pages return as they are used.

        Raises:
            ValueError, PageFileError: as the constructor; nothing is changed then.
        """
        if budget is not None and not is_count(budget):
            raise ValueError(f"device_budget {budget!r} is not a number of bytes; give a whole number of 0 or more")
        self._auto = False
        self._store.resize(self._store.capacity_of(budget), budget == 0)

    def release(self, count: int) -> int:
        """Give up at least `count` bytes of device memory now, or all there is; returns the bytes given up.

        The budget stays that small until `set_device_budget` raises it.
        """
        if not is_count(count):
            raise ValueError(f"{count!r} is not a number of bytes; give a whole number of 0 or more")
        store, before = self._store, self._store.device_bytes
        if not count:
            return 0
        slots = (before - count) // store.page_size
        store.resize(max(slots, 0) if slots >= 2 else store.capacity_of(0), flush=slots < 2)
        return before - store.device_bytes

    def relieve_pressure(self, needed: int = 0) -> int:
        """Release what it takes for `needed` bytes (plus a margin of 5 %) to be free on the device; returns the bytes.

        To be called before a forward pass that needs much, or after one that ran out of memory. On a GPU "free"
        includes what torch's allocator holds and does not use.
        """
        lacking = needed - (free_bytes(self._store.device) - margin(self._store.device))
        return self.release(lacking) if lacking > 0 else 0

    def close(self) -> None:
        """Remove the page file. The optimizer cannot be used afterwards; it happens by itself when it is forgotten."""
        self._closer()

    def __enter__(self) -> "PagedAdamW":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _with_gradients(self) -> list[tuple[Record, dict]]:
        """Parameters that have a gradient, with their groups; checked before anything is changed."""
        late = [
            p for g in self.param_groups for p in g["params"] if p.grad is not None and p not in self._layout.records
        ]
        if late:
            self._add(self._store, late)
        found = []
        for group in self.param_groups:
            if group["amsgrad"] or group["capturable"] or group["differentiable"]:
                raise ValueError("PagedAdamW knows no amsgrad, capturable or differentiable; set them to False")
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise RuntimeError("PagedAdamW does not support sparse gradients; torch.optim.SparseAdam does")
                record = self._layout.records[p]
                record.check()
                if p not in self.state:
                    self.state[p] = Moments(self, record)
                found.append((record, group))
        return found

    def _add(self, store: PageStore, tensors: list[torch.Tensor]) -> None:
        """Lay out pages for parameters; all or none."""
        for p in tensors:
            if p.device != store.device:
                raise ValueError(
                    f"parameters on {p.device} and {store.device}: one PagedAdamW serves one device, make one for each"
                )
        names = {}
        for group in self.param_groups:
            names |= dict(zip(group["params"], group.get("param_names", ()), strict=False))
        order = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        before = len(store.pages)
        added = self._layout.plan([(p, str(names.get(p, order[p]))) for p in tensors], before)
        arena = store.arenas["device"]
        store.make_room(before + len(added.new_pages), arena.capacity, store.flush)
        self._layout.commit(added, store.pages)

    def _holds(self, page: Page, records) -> bool:
        return any(segment.record in records for segment in self._layout.segments[page])

    def _update(self, batch: list[Page]) -> None:
        lists: dict[tuple, tuple[list, list, list, list]] = {}
        for page in batch:
            segments = self._layout.segments[page]
            if page.views is None:
                page.views = [segment.views(page.place.memory) for segment in segments]
            for segment, views in zip(segments, page.views, strict=True):
                record = segment.record
                if record.grad is None:
                    continue
                if segment.bits == 8:
                    _update_codes(segment, page)
                    continue
                p, g = record.parts(segment)
                rows = lists.setdefault((id(record.coefficients), p.dtype), (record.coefficients, [], [], [], []))
                for row, tensor in zip(rows[1:], (p, g, *views), strict=True):
                    row.append(tensor)
        for c, p, g, m, v in lists.values():
            update(c, p, g, m, v)

    def _follow_free_memory(self) -> None:
        device = self._store.device
        spare = free_bytes(device) - margin(device)
        if device.type == "cuda":  # what the step before took at its peak, it will take again
            spare -= torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
        slots = max(2, (self._store.device_bytes + spare) // self._store.page_size)
        self._store.resize(slots if slots < len(self._store.pages) else None)


def _update_codes(segment: Segment, page: Page) -> None:
    """Decode, update in float32, encode."""
    p, g = segment.record.parts(segment)
    m, v = segment.read(page.place.memory)
    wide = p.float()  # p itself, if it is float32
    update(segment.record.coefficients, [wide], [g.float()], [m], [v])
    if wide is not p:
        p.copy_(wide)
    segment.write(page.place.memory, m, v)


__all__ = ["PageEvent", "PagedAdamW"]
