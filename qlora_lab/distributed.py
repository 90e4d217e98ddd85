"""Sharded QLoRA: every process keeps a part of the model, and all work on one step together.

torch's own FSDP (`torch.distributed.fsdp.fully_shard`) cuts each parameter along its first dimension. A QLoRA layer's
codes and scales are parameters, of bytes and of float32, so they are cut as they are: nothing is decoded to be sent.

    forward     layer by layer: all-gather the layer's codes, scales and adapters; compute; drop what is not one's own
    backward    the same from the last layer to the first; then reduce-scatter the gradients of its adapters
    update      each process updates its part of the adapters, with its part of the optimizer's state

Layers are decoder layers here. What is frozen and in none (embeddings, last norm, head) stays whole in every process:
it is needed at the beginning and at the end of both passes, so it would be whole for all of the step, and a part would
only come on top of it.

Each process takes its own rows of the step's batch. Its loss is the sum over its tokens divided by the tokens of the
*whole* batch, and gradients are added up, not averaged: that is the one-process step, whatever the rows' lengths.

Sources: ZeRO (Rajbhandari et al. 2020), stage 3; PyTorch FSDP (Zhao et al. 2023).
"""

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from qlora_lab.machine import processes
from qlora_lab.tasks.batches import Batch


def shard(model: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """Cut the model's parameters into one part for each connected process, in place.

    Every decoder layer is gathered and dropped on its own. What is in none stays whole if it is frozen; if it is
    trained (a full fine-tune) it is cut too, and gathered from the forward pass to the end of the backward pass.

    Args:
        model: the same in all processes, with its adapters; on the CPU, or on `device` already.
        device: where the parts are kept. From the CPU a layer at a time is moved there and cut, so that a model may be
            larger than a device. None: where the model is.

    Returns:
        the same model; as it was, where this process is alone.

    Raises:
        ValueError: the processes' trained parameters differ (another seed?), or the model is sharded already.
    """
    if processes.count() < 2:
        return model
    if is_sharded(model):
        raise ValueError("this model is sharded already")
    values = [(name, p.detach().double().sum().item()) for name, p in model.named_parameters() if p.requires_grad]
    everyones = processes.gathered(values)
    if any(other != everyones[0] for other in everyones):
        raise ValueError("the processes' models differ; give all of them the same seed before adapters are added")
    device = next(model.parameters()).device if device is None else torch.device(device)
    mesh = init_device_mesh(device.type, (processes.count(),))
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    root = [p for p in model.parameters() if not processes.is_part(p)]
    frozen = {p for p in root if not p.requires_grad}
    for parameter in frozen:
        parameter.data = parameter.data.to(device)
    fully_shard(model, mesh=mesh, ignored_params=frozen)
    for group in _groups(model):
        group.set_gradient_divide_factor(1.0)  # a sum: each loss is divided by the tokens of all processes already
        group.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return model


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that a model repeats: the members of its outermost `nn.ModuleList`s."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [layer for name in outer for layer in model.get_submodule(name)]


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def share_of_batch(batch: Batch, number: int | None = None, of: int | None = None) -> Batch:
    """The rows of `batch` that process `number` of `of` computes (None: this one), without columns of padding only.

    Raises:
        ValueError: fewer rows than processes.
    """
    of = processes.count() if of is None else of
    if of == 1:
        return batch
    rows = len(batch.input_ids)
    if rows < of:
        raise ValueError(f"a batch of {rows} examples cannot be split between {of} processes; raise batch_size")
    return batch.rows(processes.rank() if number is None else number, of)


@contextlib.contextmanager
def whole_model(model: nn.Module) -> Iterator[None]:
    """Inside, every process has the whole model (its 4-bit base: as codes), and may run it on its own inputs."""
    groups = _groups(model)
    try:
        for group in groups:
            group.set_reshard_after_forward(False, recurse=False)
            group.unshard()
        yield
    finally:
        for group in groups:
            group.set_reshard_after_forward(group is not model, recurse=False)  # the root's stay, for the loss
            group.reshard()


def part_bytes(tensors) -> int:
    """Bytes that this process holds of tensors (parameters, gradients, an optimizer's state), sharded or not."""
    return sum(t.numel() * t.element_size() for t in map(processes.local, tensors))


class Traffic(TorchDispatchMode):
    """Inside, counts what this process exchanges with the others.

    by_kind: {"all-gather": bytes, "reduce-scatter": bytes, "all-reduce": bytes}, of the whole tensors: of S bytes that
    are gathered or scattered between n processes, (n - 1) / n cross the wire to each. calls: how often.
    """

    KINDS: ClassVar = {
        "_allgather_base_": "all-gather",
        "_reduce_scatter_base_": "reduce-scatter",
        "allreduce_": "all-reduce",
    }

    def __init__(self):
        super().__init__()
        self.by_kind, self.calls = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.namespace == "c10d":
            name = function._schema.name.split("::")[1]
            kind = self.KINDS.get(name, name)
            given = args[0] if isinstance(args[0], torch.Tensor | list | tuple) else []
            tensors = [given] if isinstance(given, torch.Tensor) else list(given)
            if kind == "reduce-scatter":  # (output, input): the input is whole
                tensors = [args[1]]
            self.by_kind[kind] += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
            self.calls[kind] += 1
        return result


class Timeline(Traffic):
    """Inside, also writes down what becomes of each decoder layer of a sharded model: looked at before every operation.

    spans: [(layer, what, begin, end)], in seconds since it was made. What: "gather" (its all-gather is under way),
    "arrived" (in a buffer, while another layer computes), "whole" (in the place of its parts, until it is dropped),
    "reduce-scatter" (of its gradients). A collective operation that waits for another process seems to last longer.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.spans: list[tuple[int, str, float, float]] = []
        self._firsts = [next((m, n) for m in layer.modules() for n in m._parameters) for layer in decoder_layers(model)]
        self._whole: dict[int, float] = {}  # since when
        self._arrived: deque[tuple[float, float]] = deque()  # gathered from, to
        self._open: tuple[str, float] | None = None  # a collective operation, and when it was called
        self._dropped = -1  # the layer that was dropped last
        self._began = time.perf_counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._look()
        result = super().__torch_dispatch__(function, types, args, kwargs)
        if function.namespace == "c10d":
            kind = self.KINDS.get(function._schema.name.split("::")[1])
            if kind in ("all-gather", "reduce-scatter"):
                self._open = kind, self._now()
        return result

    def __exit__(self, *problem):
        self._look()
        return super().__exit__(*problem)

    def _now(self) -> float:
        return time.perf_counter() - self._began

    def _look(self) -> None:
        now = self._now()
        if self._open is not None:
            (kind, began), self._open = self._open, None
            if kind == "all-gather":
                self._arrived.append((began, now))
            else:
                self.spans.append((self._dropped, kind, began, now))
        for layer, (module, name) in enumerate(self._firsts):
            whole = not processes.is_part(module._parameters[name])
            if whole and layer not in self._whole:
                began, ended = self._arrived.popleft()  # they are put in place in the order in which they were gathered
                self.spans += [(layer, "gather", began, ended), (layer, "arrived", ended, now)]
                self._whole[layer] = now
            elif not whole and layer in self._whole:
                self.spans.append((layer, "whole", self._whole.pop(layer), now))
                self._dropped = layer


def gathered_bytes(parameters, of: int | None = None) -> int:
    """Bytes of one all-gather of these parameters: each is padded so that its first dimension divides by `of`."""
    of = processes.count() if of is None else of
    total = 0
    for p in parameters:
        rows = p.shape[0]
        total += (p.numel() // rows if rows else 0) * of * -(-rows // of) * p.element_size()
    return total


def _groups(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


__all__ = [
    "Timeline",
    "Traffic",
    "decoder_layers",
    "gathered_bytes",
    "is_sharded",
    "part_bytes",
    "shard",
    "share_of_batch",
    "whole_model",
]
