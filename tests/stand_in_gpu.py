"""A stand-in for a GPU: which tensors would lie on it, and an error where one meets a tensor that would not.

Under `stand_in_gpu()` torch says that there is one GPU, and code takes its branches for it. Every tensor stays in the
memory of the CPU and every operation is computed there; but what is made on "cuda", moved there or computed from such
tensors is marked as lying there (its storage is), says so in `.device`, and raises PyTorch's error in an operation with
a tensor that is not. Two things are watched for that: calls from Python (a TorchFunctionMode), which name devices, and
the operations that reach a backend, those of the backward pass among them (a TorchDispatchMode).

It proves nothing about a GPU but this: no tensor of the CPU meets one of the GPU. Compiled kernels do not run, autocast
on "cuda" changes nothing, streams order nothing, and memory counters count roughly.

`stand_in_gpu("mps")` is one for Apple's GPUs, and refuses two things more: float64, and operators for which PyTorch's
list of kernels has none for mps. Whether a kernel that is listed takes these dtypes, and what it computes, only such a
GPU shows.
"""

import contextlib
import functools
import re
from importlib import resources
from unittest import mock

import torch
import torch.utils._device
import torch.utils.checkpoint
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qlora_lab.quantization.fast.operator import _dequantize

CPU = torch.device("cpu")
MEMORY = 80 * 10**9  # bytes that the GPU is said to have
MIXED = "Expected all tensors to be on the same device, but found at least two devices, {} and cpu!"
NO_DOUBLES = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"
NO_KERNEL = "The operator '{}' is not currently implemented for the MPS device"

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._foreach_copy_.default, aten._copy_from.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
NO_SCALARS = {aten.cat.default, aten.stack.default, aten.equal.default}  # not even scalars of the CPU


def is_real(value) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and not isinstance(value, FakeTensor)
        and value.layout == torch.strided
        and not value.is_meta
    )


def among_fakes() -> bool:
    """Whether tensors have no values now, as in a simulation of a training step."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


@functools.cache
def without_kernel_for_mps() -> set[str]:
    """Names of the operators that have kernels, but none for Apple's GPUs, as PyTorch's own list says."""
    listed = resources.files("torchgen") / "packaged" / "ATen" / "native" / "native_functions.yaml"
    functions = {}
    for entry in listed.read_text(encoding="utf-8").split("\n- func: ")[1:]:
        kinds = set(re.findall(r"\w+", " ".join(re.findall(r"^ {4}([\w, ]+):", entry, re.MULTILINE))))
        delegate = re.search(r"^ {2}structured_delegate: (\S+)", entry, re.MULTILINE)
        functions[entry.partition("(")[0]] = kinds, delegate and delegate[1]

    def has_one(name: str) -> bool:
        kinds, delegate = functions[name]
        if "MPS" in kinds or any(kind.startswith("Composite") for kind in kinds):
            return True
        return has_one(delegate) if delegate else not kinds  # without any it is made of others

    # attention has a kernel for each kind of device, and here the CPU's is taken
    return {f"aten::{name}" for name in functions if not has_one(name) and "_for_cpu" not in name}


class Marks:
    """The storages that lie on the GPU. A weak reference keeps a storage's address from being used again."""

    def __init__(self):
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.limit = 4096
        self.peak = 0

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.storages:
            if len(self.storages) >= self.limit:
                self.bytes()
                self.limit = max(4096, 2 * len(self.storages))
            self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.storages

    def bytes(self) -> int:
        self.storages = {key: entry for key, entry in self.storages.items() if not entry[0].expired()}
        total = sum(size for _, size in self.storages.values())
        self.peak = max(self.peak, total)
        return total


MARKS = Marks()  # one for all: caches keep tensors from one stand-in to the next


class Operations(TorchDispatchMode):
    """What reaches a backend: results of tensors on the GPU lie there."""

    def __init__(self, marks: Marks, gpu: torch.device):
        super().__init__()
        self.marks, self.gpu = marks, gpu
        self.place = None  # where the results of the call that is running have to be, if it names a device
        self.home = CPU  # where it makes new tensors, as its arguments do

    @contextlib.contextmanager
    def during(self, **changes):
        before = {name: getattr(self, name) for name in changes}
        vars(self).update(changes)
        try:
            yield
        finally:
            vars(self).update(before)

    def home_of(self, *arguments) -> torch.device:
        return self.gpu if any(is_real(value) and value in self.marks for value in tree_leaves(arguments)) else CPU

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if among_fakes():
            return func(*args, **kwargs)
        tensors = [value for value in tree_leaves((args, kwargs)) if is_real(value)]
        there = [tensor for tensor in tensors if tensor in self.marks]
        if there and self.place is None and func not in COPIES:
            self.check(func, args, tensors)
        if func is torch.ops.qlora_lab.dequantize_4bit.default:
            with self, Calls(self):  # our own operator: look into it
                return _dequantize(*args, **kwargs)
        mps = self.gpu.type == "mps"
        if mps and there and func._schema.name.startswith("aten::"):
            name = ".".join(filter(None, (func._schema.name, func._schema.overload_name)))
            if name in without_kernel_for_mps():
                raise NotImplementedError(NO_KERNEL.format(name))
        result = func(*args, **kwargs)
        place = self.place or (self.gpu if there and func not in COPIES else None)
        place = place or (self.home if not tensors else None)
        if place == self.gpu:
            for value in tree_leaves(result):
                if is_real(value):
                    if mps and value.dtype == torch.float64:
                        raise TypeError(NO_DOUBLES)
                    self.marks.add(value)
        return result

    def check(self, func, args, tensors) -> None:
        here = [tensor for tensor in tensors if tensor not in self.marks]
        if func in INDEXED and is_real(args[0]) and args[0] in self.marks:
            here = [tensor for tensor in here if not any(tensor is index for index in tree_leaves(args[1]))]
        written = func._schema.is_mutable and is_real(args[0]) and args[0] not in self.marks if args else False
        if written or any(tensor.ndim or func in NO_SCALARS for tensor in here):
            shapes = ", ".join(f"{tuple(t.shape)} on {self.gpu.type if t in self.marks else 'cpu'}" for t in tensors)
            raise RuntimeError(f"{MIXED.format(self.gpu)} ({func}: {shapes})")


class Calls(TorchFunctionMode):
    """What Python asks of torch: where tensors are, and where they have to go."""

    def __init__(self, operations: Operations):
        super().__init__()
        self.marks, self.operations, self.gpu = operations.marks, operations, operations.gpu
        self.kinds = "cpu", self.gpu.type

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        first = args[0] if args else None
        if among_fakes():
            return func(*args, **kwargs)
        if isinstance(func, torch._ops.OpOverload):  # somebody else who watches operations passes one on
            return func(*args, **kwargs)
        if name == "__get__" and is_real(first):
            where = getattr(owner, "__name__", "")
            if where in ("device", "is_cuda", "is_mps", "is_cpu") and first in self.marks:
                return self.gpu if where == "device" else where == f"is_{self.gpu.type}"
            return func(*args, **kwargs)
        if is_real(first):
            if func is torch.Tensor.get_device:
                return 0 if first in self.marks else -1
            if func in (torch.Tensor.numpy, torch.Tensor.__array__) and first in self.marks:
                raise TypeError(f"can't convert {self.gpu} device type tensor to numpy. Use Tensor.cpu() first")
            if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
                return self.move(func, first, args[1:], kwargs)
            if func is torch.Tensor.pin_memory:
                return first.clone()
        device = kwargs.get("device")
        if device is None or torch.device(device).type not in self.kinds:
            self.check_generator(kwargs.get("generator"), is_real(first) and first in self.marks)
            with self.operations.during(home=self.operations.home_of(args, kwargs)):
                return func(*args, **kwargs)
        device = torch.device(device)
        on_gpu = device.type == self.gpu.type
        self.check_generator(kwargs.get("generator"), on_gpu)
        kwargs["device"] = CPU
        with self.operations.during(place=self.gpu if on_gpu else CPU):
            result = func(*args, **kwargs)
            if on_gpu and is_real(result) and result not in self.marks:
                self.marks.add(result)
            return result

    def move(self, func, tensor, args, kwargs):
        if func is not torch.Tensor.to:
            target = CPU if func is torch.Tensor.cpu else self.gpu
            result = tensor
        elif isinstance(other := args[0] if args else kwargs.get("other"), torch.Tensor):
            target = self.gpu if other in self.marks else other.device
            if target.type not in self.kinds:
                return func(tensor, *args, **kwargs)
            result = tensor.to(other.dtype)
        else:
            copy = kwargs.pop("copy", False)
            target, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
            if target is not None and target.type not in self.kinds:
                return func(tensor, *args, **kwargs)
            options = {"memory_format": layout} if layout is not None else {}
            result = func(tensor, dtype=dtype or tensor.dtype, copy=copy, **options)
        if target is None or (target.type == self.gpu.type) == (tensor in self.marks):
            return result
        with self.operations.during(place=self.gpu if target.type == self.gpu.type else CPU):
            return result.clone()

    def check_generator(self, generator, on_gpu: bool) -> None:
        if generator is not None and getattr(generator, "on_gpu", False) != on_gpu:
            wanted, found = self.kinds[::-1] if on_gpu else self.kinds
            raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{found}'")


class Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        made.on_gpu = torch.device(device).type != "cpu"
        return made


class Stream:
    def __init__(self, *args, **kwargs):
        pass

    def record_event(self, event=None):
        return event or Stream()

    def query(self) -> bool:
        return True

    def _nothing(self, *args, **kwargs):
        return None

    wait_event = wait_stream = synchronize = record = wait = _nothing


@contextlib.contextmanager
def stand_in_gpu(kind: str = "cuda"):
    """Inside, torch has one GPU, of NVIDIA ("cuda") or Apple ("mps"); see the module."""
    marks = MARKS
    operations = Operations(marks, torch.device(kind, 0))

    def nothing(*args, **kwargs):
        return None

    def reset():
        marks.peak = 0

    shared = {
        "device_count": lambda: 1,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        **dict.fromkeys(("synchronize", "empty_cache", "manual_seed"), nothing),
    }
    apple = shared | {
        "driver_allocated_memory": marks.bytes,
        "current_allocated_memory": marks.bytes,
        "recommended_max_memory": lambda: MEMORY,
    }
    nvidia = shared | {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "a stand-in for a GPU",
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda *args, **kwargs: True,
        "mem_get_info": lambda device=None: (MEMORY - marks.bytes(), MEMORY),
        "memory_allocated": lambda device=None: marks.bytes(),
        "memory_reserved": lambda device=None: marks.bytes(),
        "max_memory_allocated": lambda device=None: max(marks.bytes(), marks.peak),
        "reset_peak_memory_stats": lambda device=None: reset(),
        "get_per_process_memory_fraction": lambda device=None: 1.0,
        "current_stream": lambda device=None: Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "device": lambda device: contextlib.nullcontext(),
        "Stream": Stream,
        "Event": Stream,
        **dict.fromkeys(("manual_seed_all", "set_device", "set_per_process_memory_fraction"), nothing),
    }
    empty, run_backward = torch.empty, torch.autograd._engine_run_backward

    def empty_anywhere(*args, pin_memory=False, **kwargs):
        if pin_memory and kind == "mps":
            raise RuntimeError("page-locked memory is CUDA's")
        return empty(*args, **kwargs)

    def run_backward_watched(roots, *args, **kwargs):
        # this is asked for inside a call, where calls are not watched
        with operations.during(place=None, home=operations.home_of(roots)), Calls(operations):
            return run_backward(roots, *args, **kwargs)

    torch.utils._device._device_constructors()  # `with torch.device(...)` remembers them: before one is replaced
    with contextlib.suppress(ImportError):  # it looks for GPUs when it is imported, and has to find none
        import bitsandbytes  # noqa: F401
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "empty", empty_anywhere))
        stack.enter_context(mock.patch.object(torch.autograd, "_engine_run_backward", run_backward_watched))
        module, replaced = (torch.cuda, nvidia) if kind == "cuda" else (torch.mps, apple)
        for name, value in replaced.items():
            stack.enter_context(mock.patch.object(module, name, value))
        if kind == "mps":
            stack.enter_context(mock.patch.object(torch.backends.mps, "is_available", lambda: True))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        # hooks for saved tensors are called inside calls, too: what is said there of devices is not to be compared
        checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
        stack.enter_context(mock.patch.dict(checks, default=lambda tensor: (tensor.shape, tensor.dtype)))
        stack.enter_context(operations)
        stack.enter_context(Calls(operations))
        yield


# As a plugin (`pytest -p stand_in_gpu -m cuda`): the CUDA tests on the stand-in

ONLY_ON_A_GPU = {
    "test_torch_compile_of_a_model": "torch.compile looks through tensors that are marked",
    "test_a_gpu_decodes_to_the_same_bits": "compiled kernels do not run",
    "test_it_is_one_launch": "compiled kernels do not run",
    "test_more_than_four_thousand_million_weights": "compiled kernels do not run",
    "test_autocast": "autocast for a GPU changes nothing on a CPU",
    "test_auto_gives_way_to_activations_on_a_gpu": "the memory of a GPU",
    "test_the_peak_agrees_with_what_cuda_says": "the memory of a GPU",
    "test_peak_memory_on_a_gpu": "the memory of a GPU",
    "test_a_model_goes_to_the_gpu_layer_by_layer": "the memory of a GPU",
    "test_free_memory_of_a_gpu_counts_what_the_allocator_could_give_back": "the memory of a GPU",
}


def pytest_configure(config):
    stack = contextlib.ExitStack()
    stack.enter_context(stand_in_gpu())
    config.add_cleanup(stack.close)


def pytest_collection_modifyitems(items):
    import pytest

    for item in items:
        if reason := ONLY_ON_A_GPU.get(item.originalname):
            item.add_marker(pytest.mark.skip(reason=f"a stand-in cannot show it: {reason}"))
