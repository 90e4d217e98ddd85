"""The memory ledger: every tensor storage of a piece of PyTorch code, from its birth to its death.

Tensors are views of storages, and storages are what costs memory. A dispatch mode sees each operation that PyTorch
carries out (`aten.mm`, `qlora_lab.dequantize_4bit`, ...), below autograd. A storage that an operation returns and that
none of its inputs lies in has been born; a weak reference reports the moment it dies. Views, aliases and results in
place lie in storages known already and count nothing. Only shapes are needed, so fake and meta tensors serve as well as
real ones, and the same step gives the same bytes on every machine.

What is not seen: memory that an operation takes and gives back within itself, and what an allocator keeps or rounds up.
"""

import weakref
from bisect import bisect_right
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils.weak import WeakTensorKeyDictionary

from qlora_lab.memory.records import MemoryRecord, Replay, highest_points, replay
from qlora_lab.quantization.undecoded import UndecodedTensor

_PASSES_ON = {torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default}  # torch.tensor([...])
_SEEDS = {torch.ops.aten.ones_like.default}  # the gradient of a loss that backward() starts from
_running: list["MemoryTrace"] = []  # innermost last


class Storage:
    """What a ledger notes of a storage; it refers to it weakly."""

    __slots__ = ("category", "forward", "module", "nbytes", "operation", "reference")

    def __init__(self, nbytes: int, category: str, operation: str = "", module: str = "", forward: bool = True):
        self.nbytes, self.category, self.operation, self.module = nbytes, category, operation, module
        self.forward = forward  # made by a forward pass, also a recomputed one, and not by a gradient
        self.reference = None


def tensors_in(value) -> Iterator[torch.Tensor]:
    """The tensors with a storage in nested lists, tuples and dictionaries; a wrapper's or a sparse tensor's parts."""
    if isinstance(value, torch.Tensor):
        if is_traceable_wrapper_subclass(value):
            for name in value.__tensor_flatten__()[0]:
                yield from tensors_in(getattr(value, name))
        elif value.layout == torch.strided:
            yield value
        elif value.layout == torch.sparse_coo:
            yield from (value._indices(), value._values())
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def address_of(tensor: torch.Tensor) -> int:
    """Of its storage: the same for all views of one."""
    return tensor.untyped_storage()._cdata


class _Reporter:
    """Hook of a parameter: its gradient has been accumulated. It does not keep the trace alive."""

    def __init__(self, trace: "MemoryTrace"):
        self.trace = weakref.ref(trace)

    def __call__(self, parameter: torch.Tensor) -> None:
        if (trace := self.trace()) is not None:
            trace._mark_gradient(parameter)


def _pack(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    for trace in _running:  # PyTorch calls only the innermost trace's hooks
        trace._mark_saved(tensor)
    return tensor, tensor._version


def _unpack(saved: tuple[torch.Tensor, int]) -> torch.Tensor:
    tensor, version = saved
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"{tensor.dtype} {list(tensor.shape)} is at version {tensor._version}; expected version {version} instead"
        )
    return tensor


class MemoryTrace(TorchDispatchMode):
    """Inside `with MemoryTrace() as trace:` all storages are counted, in bytes.

    Args:
        model: counted from the start; also gives modules their paths and its parameters' gradients their category.
        optimizer: its state is counted from the start.

    What was there before and is not named here counts if it belongs to a module called inside or to an optimizer
    stepped inside (as if it had been named); other tensors made outside, such as a batch, do not.

    A storage has one category for all its life:
        quantized base      codes and scales of 4-bit layers and experts
        base weights        other parameters that are no adapters, trained or not, and buffers
        adapters            parameters named lora_...
        gradients           of parameters, from the moment the backward pass makes them
        optimizer state     all tensors in it; of a paged optimizer the memory of its pages on the device
        activations         what a forward pass makes and the backward pass reads; also what checkpointing recomputes
        temporary           everything else

    A trace records once; traces nest, and an exception inside leaves a trace that ends there. PyTorch does not notice
    saved tensors that are changed in place while hooks look at what is saved; the trace looks for that itself and
    raises the same RuntimeError. The transforms of `torch.func` refuse to run under such hooks.

    Every operation costs some time in Python, which shows where tensors are small: time the code with and without.
    """

    def __init__(self, model: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None):
        super().__init__()
        self._alive: dict[int, Storage] = {}  # by address of the storage
        self._before: list[tuple[int, Storage, int]] = []  # what was there from the start, whenever found
        self._events: list[tuple[int, Storage, int]] = []  # operation, storage, bytes added
        self._step = 0
        self._state = "new"
        self._paths = weakref.WeakKeyDictionary()  # module -> path
        self._stack: list[str] = []  # paths of the modules whose forward is running
        self._boundaries: list[tuple[int, str]] = [(0, "")]  # autograd node number from which on nodes are a module's
        self._hooked = WeakTensorKeyDictionary()  # parameters that report their gradients
        self._handles = []
        self._replayed = None
        self.watch(model, optimizer)

    def watch(self, model: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None) -> "MemoryTrace":
        """Count a model (parameters, buffers, gradients) and an optimizer's state, which exist already.

        Returns:
            the trace.

        Raises:
            TypeError: not a module or not an optimizer.
        """
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
        if model is not None:
            self._name_modules(model)
            for module in model.modules():
                self._mark_module(module)
        if optimizer is not None:
            self._mark_optimizer(optimizer)
        return self

    @property
    def peak(self) -> int:
        """The most bytes that were alive at once."""
        return self._replay().peak

    @property
    def by_category(self) -> dict[str, int]:
        """Bytes of each category at the (first) peak; they add up to it."""
        return dict(self._replay().by_category)

    @property
    def records(self) -> list[MemoryRecord]:
        """All births and deaths in order; what was there before comes first, as born at step 0."""
        return list(self._replay().records)

    @property
    def timeline(self) -> list[tuple[int, dict[str, int]]]:
        """(operation, bytes by category) at the highest point of each operation that changed something."""
        return highest_points(self._replay().records)

    @property
    def live(self) -> int:
        """Bytes alive now, or at the end of the trace."""
        return sum(added for _, _, added in (*self._before, *self._events))

    # -- entering and leaving

    def __enter__(self):
        if self._state != "new":
            raise RuntimeError("a MemoryTrace records once; make another one")
        self._state = "running"
        _running.append(self)
        self._handles += [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        self._resize, trace = torch.UntypedStorage.resize_, weakref.proxy(self)

        def resize(storage, size, _original=self._resize):
            _original(storage, size)
            trace._note_size(storage)

        torch.UntypedStorage.resize_ = resize  # not an operation, so no dispatch mode sees it (FSDP frees memory by it)
        for module in list(self._paths):  # now that it will be left again, also watch for gradients
            self._mark_module(module)
        self._saving = torch.autograd.graph.saved_tensors_hooks(_pack, _unpack)
        self._saving.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._saving.__exit__(*exception)
        torch.UntypedStorage.resize_ = self._resize
        for handle in self._handles:
            handle.remove()
        self._state = "finished"
        for module in list(self._paths):  # parameters may have been given other storages, or gradients by hand
            self._mark_module(module)
        _running.remove(self)
        for storage in self._alive.values():
            storage.reference = None
        self._alive, self._handles, self._stack = {}, [], []
        self._hooked.clear()

    # -- what happens inside

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if UndecodedTensor in types:  # first it does what it does; what that takes is seen then
            return NotImplemented
        kwargs = kwargs or {}
        self._step += 1
        result = function(*args, **kwargs)
        in_backward = torch._C._current_graph_task_id() != -1
        forward = not in_backward or bool(self._stack) or torch.is_grad_enabled()
        if not forward:
            for tensor in tensors_in((args, kwargs)):
                storage = self._alive.get(address_of(tensor))
                if storage is not None and storage.forward and storage.category == "temporary":
                    self._categorize(storage, "activations")  # kept for a gradient by a closure or checkpointing
        inputs = None
        for tensor in tensors_in(result):
            known = self._alive.get(address_of(tensor))
            if known is not None:
                if known.nbytes != tensor.untyped_storage().nbytes():
                    self._note_size(tensor.untyped_storage())
                continue
            if inputs is None:
                inputs = set() if function in _PASSES_ON else {address_of(t) for t in tensors_in((args, kwargs))}
            if address_of(tensor) not in inputs:  # else: a view of, or a change to, a tensor made outside
                seed = function in _SEEDS and not self._stack and not in_backward
                self._bear(tensor, str(function.overloadpacket), forward and not seed)
        return result

    def _bear(self, tensor: torch.Tensor, operation: str, forward: bool) -> None:
        module = self._stack[-1] if self._stack else self._differentiated()
        storage = Storage(tensor.untyped_storage().nbytes(), "temporary", operation, module, forward)
        self._events.append((self._step, storage, storage.nbytes))
        self._follow(tensor, storage)

    def _adopt(self, tensors, category: str) -> None:
        """Give the storages of tensors their category; one not known was there before."""
        for part in tensors_in(tensors):
            storage = self._alive.get(address_of(part))
            if storage is None:
                storage = Storage(part.untyped_storage().nbytes(), category)
                self._before.append((0, storage, storage.nbytes))
                self._follow(part, storage)
            elif storage.category != category:
                self._categorize(storage, category)

    def _categorize(self, storage: Storage, category: str) -> None:
        storage.category, self._replayed = category, None

    def _follow(self, tensor: torch.Tensor, storage: Storage) -> None:
        address, trace = address_of(tensor), weakref.ref(self)

        def died(_):
            if (ledger := trace()) is not None:
                ledger._bury(address, storage)

        storage.reference = weakref.ref(tensor.untyped_storage(), died)
        self._alive[address] = storage

    def _bury(self, address: int, storage: Storage) -> None:
        if self._alive.get(address) is storage:
            del self._alive[address]
        if self._state == "new":  # watched, but gone before the trace began
            self._before = [event for event in self._before if event[1] is not storage]
        elif self._state == "running":
            self._events.append((self._step, storage, -storage.nbytes))

    def _note_size(self, untyped: torch.UntypedStorage) -> None:
        storage = self._alive.get(untyped._cdata)
        if storage is not None and untyped.nbytes() != storage.nbytes:
            self._events.append((self._step, storage, untyped.nbytes() - storage.nbytes))
            storage.nbytes = untyped.nbytes()

    # -- modules and optimizers

    def _name_modules(self, root: nn.Module) -> None:
        for name, module in root.named_modules():
            path = ".".join(part for part in (self._stack[-1] if self._stack else "", name) if part)
            self._paths.setdefault(module, path or type(root).__name__)

    def _enter_module(self, module: nn.Module, inputs) -> None:
        if module not in self._paths:
            self._name_modules(module)
        self._mark_module(module)
        self._stack.append(self._paths[module])
        self._bound()

    def _leave_module(self, module: nn.Module, inputs, output) -> None:
        if self._paths.get(module) in self._stack:
            while self._stack.pop() != self._paths[module]:  # an exception went through without its hook
                pass
        self._bound()

    def _bound(self) -> None:
        number, path = torch.autograd._get_sequence_nr(), self._stack[-1] if self._stack else ""
        if number > self._boundaries[-1][0]:
            self._boundaries.append((number, path))
        elif number == self._boundaries[-1][0]:
            self._boundaries[-1] = (number, path)
        # else another thread (CUDA's backward pass), whose nodes have numbers of their own

    def _differentiated(self) -> str:
        """The module that made the node which the backward pass is at."""
        node = torch._C._current_autograd_node()
        if node is None or node.name() == "torch::autograd::AccumulateGrad":
            return ""
        return self._boundaries[bisect_right(self._boundaries, node._sequence_nr(), key=lambda b: b[0]) - 1][1]

    def _mark_module(self, module: nn.Module) -> None:
        quantized = hasattr(module, "encoded_elements")
        for name, parameter in module.named_parameters(recurse=False):
            path = self._paths.get(module, "")
            adapter = "lora_" in f"{path}.{name}"
            packed = not parameter.is_floating_point() or (quantized and name != "bias")
            self._adopt(parameter, "adapters" if adapter else "quantized base" if packed else "base weights")
            if (state := getattr(parameter, "quant_state", None)) is not None:  # bitsandbytes' scales
                for part in (state, getattr(state, "state2", None)):
                    self._adopt([getattr(part, name, None) for name in ("absmax", "code", "offset")], "quantized base")
            self._mark_gradient(parameter)
            if (
                self._state == "running"
                and parameter.requires_grad
                and parameter.is_leaf
                and parameter not in self._hooked
            ):
                self._hooked[parameter] = True
                self._handles.append(parameter.register_post_accumulate_grad_hook(_Reporter(self)))
        for _, buffer in module.named_buffers(recurse=False):
            self._adopt(buffer, "base weights")

    def _mark_gradient(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self._adopt(parameter.grad, "gradients")

    def _before_step(self, optimizer, args, kwargs) -> None:
        self._mark_optimizer(optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self._mark_gradient(parameter)

    def _after_step(self, optimizer, args, kwargs) -> None:
        self._mark_optimizer(optimizer)

    def _mark_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        for state in optimizer.state.values():
            self._adopt(state, "optimizer state")
        if (pages := getattr(optimizer, "device_tensors", None)) is not None:  # a paged optimizer's
            self._adopt(pages(), "optimizer state")

    def _mark_saved(self, tensor: torch.Tensor) -> None:
        for part in tensors_in(tensor):
            storage = self._alive.get(address_of(part))
            if storage is not None and storage.category == "temporary":
                self._categorize(storage, "activations")

    def _replay(self) -> Replay:
        """From the events, once categories have settled."""
        key = (self._state, len(self._events), len(self._before))
        if self._replayed is None or self._replayed[0] != key:
            self._replayed = (key, replay((*self._before, *self._events)))
        return self._replayed[1]
