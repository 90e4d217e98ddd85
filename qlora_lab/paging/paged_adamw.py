"""AdamW whose state is paged: bit for bit `torch.optim.AdamW`, with the moments wherever there is room.

The two moments of every parameter lie flattened in pages of a fixed size (`layout`), and a step sweeps over the pages:
fetch, update, next. Arithmetic is per element, so neither the cut into pages nor their order changes a bit; small
parameters share pages, large ones span several. A page of 4 MB, the default, and the weights and gradients it belongs
to stay in a processor's last cache while the eight operations of the update pass over them, and is large enough that
the cost of starting an operation in all threads, and of starting a disk, does not show.

Sweeps alternate in direction (see `store`): with room for a share r of the state on the device, 1 - r of its bytes come
in and 1 - r go out in a step. On a machine without a GPU the "device" is RAM, up to the budget, and the rest a file.
"""

import itertools
import weakref
from collections import Counter, defaultdict

import torch

from qlora_lab.machine.arguments import is_count
from qlora_lab.machine.free_memory import free_memory
from qlora_lab.paging.adamw import Coefficients
from qlora_lab.paging.layout import Layout, PagedParameter, StateView, check_gradients, check_state, moment_bytes
from qlora_lab.paging.store import PageStore

GPU_BATCH = 32  # pages updated by one set of kernels on a GPU; a CPU takes one at a time, which fits its cache
MEMORY_MARGIN = 0.05  # share of the memory, or of what this process may take of it, that "auto" leaves alone


class PagedAdamW(torch.optim.Optimizer):
    """Drop-in for `torch.optim.AdamW` (without amsgrad) whose state may be larger than the memory it is used in.

    Args:
        params, lr, betas, eps, weight_decay, maximize: as for `torch.optim.AdamW`. Parameters are float32, float64,
            bfloat16 or float16, all on one device; those that require no gradient get no state until they have one.
        amsgrad, capturable, differentiable, fused: as for `torch.optim.AdamW`, of which only what leaves the arithmetic
            as it is: False or None. foreach: any; the bits are the same.
        device_budget: bytes of pages on the device. None: all of them. 0: none between steps, and four pages while one
            computes. "auto": what is free, less 5 % of the memory, measured before each step. On a GPU less what is
            held at the peak beside what is held now, too; that is the highest since
            `torch.cuda.reset_peak_memory_stats`, which the optimizer leaves to its user: after a step that took more
            than usual, call it, and pages come back.
        host_budget: bytes of pages in host memory, page-locked for a GPU. None: as many as needed beside a GPU; none
            beside a CPU, whose memory is the device already.
        directory: an existing folder for the file that holds the rest, reserved before the first step.
        page_size: bytes, a multiple of 4096. None: 4 MB, less where the state or the budget is small.
        state_bits: 32 keeps the moments in each parameter's dtype, as torch does. 8 keeps them in `eight_bit_state` for
            parameters of at least 4096 elements: no longer AdamW's bits, a quarter of its bytes. Codes could not keep
            NaN or infinity to one number: such a gradient is refused, FloatingPointError, before anything is changed.
        event_limit: how many `events` are kept.

    Attributes:
        events: the last `PageEvent`s, oldest first; `clear()` it to drain it.
        bytes_moved: bytes moved in the last step by (source, target).

    Raises:
        ValueError: settings that make no sense, state that fits nowhere, parameters on several devices, of another
            dtype, or given twice. PageFileError: the disk has no room. FileNotFoundError, NotADirectoryError,
            PermissionError: the folder.

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
        amsgrad: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
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
            if not (budget is None or (name, budget) == ("device_budget", "auto") or is_count(budget, 0)):
                raise ValueError(f"{name} {budget!r} is not a number of bytes; give a whole number of 0 or more")
        if page_size is not None and (not is_count(page_size) or page_size % 4096):
            raise ValueError(f"page_size {page_size!r} is not allowed; give a multiple of 4096 bytes")
        _check_arithmetic(
            {"amsgrad": amsgrad, "capturable": capturable, "differentiable": differentiable, "fused": fused}
        )
        # torch's constructor checks the settings shared with AdamW and gives the groups the keys its state_dict has
        reference = torch.optim.AdamW(
            [torch.empty(0)], lr, betas, eps, weight_decay, maximize=maximize, foreach=foreach, fused=fused
        )
        self._layout: Layout | None = None
        super().__init__(params, reference.defaults)
        self._check_groups(self.param_groups)
        self._auto = device_budget == "auto"
        self._sweeps = 0
        fixed = device_budget if isinstance(device_budget, int) else None
        self._options = page_size, fixed, host_budget, directory, event_limit, state_bits
        tensors = [p for group in self.param_groups for p in group["params"]]
        trained = [p for p in tensors if p.requires_grad]
        self._empty = not trained
        self._set_up(tensors[0].device if tensors else torch.get_default_device(), trained)
        try:
            self._add(trained)
        except BaseException:
            self._closer()
            raise

    def _set_up(self, device: torch.device, trained: list[torch.Tensor]) -> None:
        """Make a store for pages of `trained` parameters' moments on `device`, in place of one that is empty."""
        page_size, fixed, host_budget, directory, event_limit, state_bits = self._options
        page_size = page_size or page_size_for(moment_bytes(trained, state_bits), fixed)
        if host_budget is None and device.type != "cuda":
            host_budget = 0
        if self._auto and directory is None and host_budget == 0:
            raise ValueError('device_budget="auto" needs somewhere to put pages: give directory= or host_budget=')
        if self._layout is not None:
            self._closer()
        self._store = PageStore(page_size, device, fixed, host_budget, directory, event_limit)
        self._closer = weakref.finalize(self, self._store.close)
        self._layout = Layout(self._store, state_bits)

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
        parameters = self._with_gradients()
        store.step += 1
        store.moved.clear()
        if self._auto:
            self._follow_free_memory()
        coefficients: dict[tuple[int, int], Coefficients] = {}
        for p, group in parameters:
            p.step += 1
            key = (id(group), p.step)
            if key not in coefficients:
                coefficients[key] = Coefficients.of(group, p.step)
            p.begin(coefficients[key], group["maximize"])
        self._sweeps += 1
        pages = {segment.page for p, _ in parameters for segment in p.segments}
        order = sorted(pages, key=lambda page: page.index, reverse=self._sweeps % 2 == 0)
        try:
            for batch in store.sweep(order, 1 if store.device.type == "cpu" else GPU_BATCH):
                self._layout.update(batch)
        except BaseException as error:  # some parameters are updated and some are not
            store.copier.failure = store.copier.failure or error
            raise
        finally:
            for p, _ in parameters:
                p.end()
        return loss

    def add_param_group(self, param_group) -> None:
        super().add_param_group(param_group)
        if self._layout is not None:  # torch's constructor comes here before there is one
            try:
                self._check_groups(self.param_groups[-1:])
                self._add([p for p in self.param_groups[-1]["params"] if p.requires_grad])
            except BaseException:
                self.param_groups.pop()
                raise

    def state_dict(self) -> dict:
        """As `torch.optim.AdamW`'s, readable by it; moves no page. All state is copied into the memory of the CPU."""
        result = super().state_dict()
        parameters = {key: state.parameter for key, state in result["state"].items()}
        moments = self._layout.read(list(parameters.values()))
        result["state"] = {key: {"step": torch.tensor(float(p.step)), **moments[p]} for key, p in parameters.items()}
        return result

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over the state of a `PagedAdamW` with any budgets, or of a `torch.optim.AdamW`.

        Raises:
            ValueError: other parameters or shapes, the same names in another order, no state of AdamW, or amsgrad.
                Nothing is changed then.
        """
        self._store.check()
        _check_names(self.param_groups, state_dict["param_groups"])
        tensors = [p for group in self.param_groups for p in group["params"]]
        saved = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        given = {
            p: state_dict["state"][key] for p, key in zip(tensors, saved, strict=False) if key in state_dict["state"]
        }
        if len(given) < len(state_dict["state"]):
            raise ValueError("this state is of other parameters: it has more than there are here")
        for index, p in enumerate(tensors):
            check_state(index, p, given.get(p), self._layout.state_bits)
        if any(group.get("amsgrad") for group in state_dict["param_groups"]):
            raise ValueError("PagedAdamW knows no amsgrad; this state was made with it")
        super().load_state_dict({**state_dict, "state": {}})
        paged = self._layout.parameters
        self._add([p for p in given if p not in paged])
        self.state = defaultdict(dict)
        for p, parameter in paged.items():
            parameter.step = int(given[p]["step"]) if p in given else 0
            if p in given:
                self.state[p] = StateView(self._layout, parameter)
        self._store.step += 1
        with torch.no_grad():
            self._layout.write({paged[p]: state for p, state in given.items()})

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
        return dict(self._store.moved)

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
        return list(self._store.pools["device"].extents)

    def set_device_budget(self, budget: int | None) -> None:
        """Give the device this many bytes of pages (as `device_budget`, not "auto") from now on.

        A smaller budget evicts at once and gives the memory back; with a larger one pages return as they are used.

        Raises:
            ValueError, PageFileError: as the constructor; nothing is changed then.
        """
        if budget is not None and not is_count(budget, 0):
            raise ValueError(f"device_budget {budget!r} is not a number of bytes; give a whole number of 0 or more")
        self._auto = False
        self._store.resize(budget)

    def release(self, count: int) -> int:
        """Give up at least `count` bytes of device memory now, or all there is; returns the bytes given up.

        The budget stays that small until `set_device_budget` raises it.
        """
        if not is_count(count, 0):
            raise ValueError(f"{count!r} is not a number of bytes; give a whole number of 0 or more")
        store, before = self._store, self._store.device_bytes
        if not count:
            return 0
        left = before - count
        store.resize(left if left >= 2 * store.page_size else 0)
        return before - store.device_bytes

    def relieve_pressure(self, needed: int = 0) -> int:
        """Release what it takes for `needed` bytes (plus a margin of 5 %) to be free on the device; returns the bytes.

        To be called before a forward pass that needs much, or after one that ran out of memory. On a GPU "free"
        includes what torch's allocator holds and does not use.
        """
        lacking = needed - spare_bytes(self._store.device)
        return self.release(lacking) if lacking > 0 else 0

    def close(self) -> None:
        """Remove the page file. The optimizer cannot be used afterwards; it happens by itself when it is forgotten."""
        self._closer()

    def __enter__(self) -> "PagedAdamW":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _with_gradients(self) -> list[tuple[PagedParameter, dict]]:
        """Parameters that have a gradient, with their groups; checked before anything is changed."""
        for group in self.param_groups:
            _check_arithmetic(group)
            if any(p.grad is not None and p.grad.is_sparse for p in group["params"]):
                raise RuntimeError("PagedAdamW does not support sparse gradients; torch.optim.SparseAdam does")
        self._add(
            [
                p
                for group in self.param_groups
                for p in group["params"]
                if p.grad is not None and p not in self._layout.parameters
            ]
        )
        paged = self._layout.parameters
        for parameter in paged.values():
            if parameter.tensor.grad is not None:
                parameter.check()
        check_gradients(paged.values(), self._layout.state_bits)
        found = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p not in self.state:
                    self.state[p] = StateView(self._layout, paged[p])
                found.append((paged[p], group))
        return found

    def _add(self, tensors: list[torch.Tensor]) -> None:
        """Give parameters room in pages; all or none."""
        if not tensors:
            return
        if self._empty:
            self._set_up(tensors[0].device, tensors)  # the first ones say where, and how large a page is worth while
            self._empty = False
        device = self._store.device
        for p in tensors:
            if p.device != device:
                raise ValueError(
                    f"parameters on {p.device} and {device}: one PagedAdamW serves one device, make one for each"
                )
        names = {}
        for group in self.param_groups:
            names |= dict(zip(group["params"], group.get("param_names", ()), strict=False))
        order = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        self._layout.add([(p, str(names.get(p, order[p]))) for p in tensors])

    def _check_groups(self, groups: list[dict]) -> None:
        """Raise ValueError for arithmetic that is not here, and for a parameter given twice: torch updates it twice."""
        for group in groups:
            _check_arithmetic(group)
            given = group["params"]
            twice = next((p for p, count in Counter(given).items() if count > 1), None)
            if twice is not None:
                place = next(i for i, p in enumerate(given) if p is twice)
                name = group["param_names"][place] if "param_names" in group else place
                raise ValueError(f"parameter {name} is given twice; give each once")

    def _follow_free_memory(self) -> None:
        store, device = self._store, self._store.device
        spare = spare_bytes(device)
        if device.type == "cuda":  # what was taken at the peak, since somebody last reset it, will be taken again
            spare -= torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
        budget = max(2 * store.page_size, store.device_bytes + spare)
        store.resize(budget if budget // store.page_size < len(store.pages) else None)


def _check_arithmetic(group: dict) -> None:
    """Raise ValueError where a group asks for what `adamw.update` does not compute."""
    for name in ("amsgrad", "capturable", "differentiable", "fused"):
        if group.get(name):
            raise ValueError(f"PagedAdamW knows no {name}; leave it out, or take torch.optim.AdamW")


def _check_names(here: list[dict], there: list[dict]) -> None:
    """Raise ValueError where the same named parameters come in another order: states would change owners."""
    for one, other in zip(here, there, strict=False):
        ours, theirs = one.get("param_names"), other.get("param_names")
        if ours and theirs and ours != theirs and sorted(ours) == sorted(theirs):
            name = next(a for a, b in zip(ours, theirs, strict=True) if a != b)
            raise ValueError(f"this state has the parameters in another order, {name} first; give them in that order")


def page_size_for(state_bytes: int, device_budget: int | None) -> int:
    """4 MB; less where that is over a sixteenth of the state or an eighth of the budget: a power of two from 4 kB."""
    size = 2**22
    while size > 4096 and (16 * size > max(state_bytes, 1) or (device_budget and 8 * size > device_budget)):
        size //= 2
    return size


def spare_bytes(device: torch.device) -> int:
    """Bytes that are free on the device, less the margin; negative if fewer than that are free."""
    free = total = free_memory(device)
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        total = int(torch.cuda.get_per_process_memory_fraction(device) * total)  # 1 unless there is a cap
        free = min(free, total - torch.cuda.memory_allocated(device))
    return free - int(MEMORY_MARGIN * total)
