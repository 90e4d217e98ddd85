"""Weights in 4 bits as parameters of modules: moved, copied, saved and described as one encoding.

`Quantized` is what a module with one 4-bit weight is: its codes and scales are parameters that need no gradient, so
that they move, save and shard with the model, and its state says what they mean.

A mixture of experts keeps its weights as stacks of matrices, three-dimensional parameters of a module that says itself
what is computed with them. `quantize_parameter` stores such a parameter in 4 bits and leaves the module as it is:
whoever reads the attribute gets an `UndecodedTensor`, which is decoded by what computes with it.
"""

import functools
import math
from collections.abc import Iterator

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from qlora_lab.machine.dtypes import FLOAT_DTYPES
from qlora_lab.quantization.tensor import QuantizedTensor, as_record, find_wrong_state, quantize
from qlora_lab.quantization.undecoded import UndecodedTensor

KEPT_IN = "in_four_bits"  # name of the submodule that holds a module's parameters in 4 bits
_LEAST = 16  # rows and columns of what is a matrix and not a table of biases


class Quantized(nn.Module):
    """A module that holds one 4-bit weight; `hold` puts it there. `path` is its place in a model, for messages."""

    path = "this layer"

    def hold(self, weight: QuantizedTensor) -> None:
        """Register codes and scales as parameters that need no gradient."""
        self.weight_shape, self.base_dtype = weight.shape, weight.dtype
        self.merged_dtype = weight.dtype  # of the plain weight it stands for: follows a cast of the model
        self.datatype, self.block_size, self.double_quant = weight.datatype, weight.block_size, weight.double_quant
        self.stored_names = tuple(weight.stored)
        with torch.inference_mode(False):
            tensors = {"codes": weight.codes, **weight.stored}
            for name, tensor in tensors.items():  # at least one dimension each: FSDP shards no scalars
                tensor = torch.atleast_1d(tensor.clone() if tensor.is_inference() else tensor)
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    @property
    def quantized(self) -> QuantizedTensor:
        """The weight as a `QuantizedTensor` that shares this module's storage."""
        stored = {name: getattr(self, name).data for name in self.stored_names}
        if self.double_quant:
            stored["scale_offset"] = stored["scale_offset"].view(())
        how = self.datatype, self.block_size, self.double_quant
        return QuantizedTensor(self.codes.data, stored, self.weight_shape, self.base_dtype, *how)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def encoded_elements(self) -> int:
        """How many weights the 4-bit codes stand for."""
        return math.prod(self.weight_shape)

    def _apply(self, fn, recurse=True):
        """`model.to(...)`, `.half()`, `.cuda()`: move codes and scales, but never change their dtype.

        Only `merged_dtype` follows the model's dtype.
        """
        self.merged_dtype = fn(torch.empty(0, dtype=self.merged_dtype, device=self.codes.device)).dtype
        exact = {name: getattr(self, name).data for name in ("codes", *self.stored_names)}
        super()._apply(fn, recurse)
        for name, tensor in exact.items():
            moved = getattr(self, name)
            if moved.dtype != tensor.dtype:
                moved.data = tensor.to(moved.device)
        return self

    # -- its state

    def _record_name(self, prefix: str) -> str:
        """Where the record stands in a state: where the weight did, so that a layer of another kind refuses it."""
        return f"{prefix}weight"

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[self._record_name(prefix)] = as_record(self.quantized.description)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        problem = self.find_wrong_state(state_dict, prefix)
        if problem is not None:
            errors.append(problem)
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        if (record := self._record_name(prefix)) in unexpected:
            unexpected.remove(record)

    def find_wrong_state(self, state_dict, prefix: str) -> str | None:
        """Why the part of a model's state that begins with `prefix` is not this module's; None where it is."""
        record = self._record_name(prefix)
        names = ("codes", "scales", "scale_codes", "scale_scales", "scale_offset", "offsets")
        state = {name: state_dict[f"{prefix}{name}"] for name in names if f"{prefix}{name}" in state_dict}
        base = state_dict.get(f"{prefix}base.weight")  # of a LoRALinear
        if record in state_dict or base is not None:
            state[""] = state_dict.get(record, base)
        return find_wrong_state(self.quantized, "", state, prefix.rstrip(".") or self.path)


def refuse_wrong_state(model: nn.Module, state_dict, prefix: str, *_) -> None:
    """A hook that runs before a model loads a state: looks at all of its 4-bit weights before anything is changed.

    Raises:
        RuntimeError: the state is of a model that was quantized in another way, or not at all.
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, Quantized):
            found.append(module.find_wrong_state(state_dict, f"{prefix}{name}." if name else prefix))
    wrong = [problem for problem in found if problem is not None]
    if wrong:
        more = f" (and {len(wrong) - 1} others like it)" if len(wrong) > 1 else ""
        raise RuntimeError(f"{wrong[0]}{more}. Nothing was loaded")


# -- parameters of other people's modules


class QuantizedParameter(Quantized):
    """One parameter of another module, in 4 bits."""

    def __init__(self, weight: QuantizedTensor):
        super().__init__()
        self.hold(weight)

    def tensor(self) -> torch.Tensor:
        """What the module sees: of the parameter's shape and dtype, decoded when something computes with it."""
        if torch.compiler.is_compiling():  # a graph holds no tensors of our own kind: decoded each time, as a whole
            return self.quantized.dequantize(self.merged_dtype)
        return UndecodedTensor(self.quantized, self.merged_dtype)

    def _record_name(self, prefix: str) -> str:
        return prefix.replace(f"{KEPT_IN}.", "").rstrip(".")

    def extra_repr(self) -> str:
        double = ", double_quant" if self.double_quant else ""
        return f"{tuple(self.weight_shape)}, {self.datatype}, block_size={self.block_size}{double}"


class _ReadsQuantized:
    """Put before the class of a module that has parameters in 4 bits: attributes of their names give tensors."""

    def __getattr__(self, name):
        if name not in self.__dict__["_parameters"]:
            kept = self.__dict__["_modules"].get(KEPT_IN)
            if kept is not None and name in kept._modules:
                return kept._modules[name].tensor()
        return super().__getattr__(name)

    def __setattr__(self, name, value):
        kept = self._modules.get(KEPT_IN)
        if kept is not None and name in kept._modules:
            if not isinstance(value, nn.Parameter):
                raise TypeError(f"{name} is stored in 4 bits; what takes its place has to be a torch.nn.Parameter")
            delattr(kept, name)
        super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        kept = dict(self._modules[KEPT_IN].named_children())
        for name, parameter in kept.items():  # here, since it is this module whose names the records have
            if problem := parameter.find_wrong_state(state_dict, f"{prefix}{KEPT_IN}.{name}."):
                raise RuntimeError(problem)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        for name in kept:
            if f"{prefix}{name}" in unexpected:
                unexpected.remove(f"{prefix}{name}")

    def __reduce_ex__(self, protocol):  # a class made below cannot be found by its name
        make, (cls, *args), *rest = super().__reduce_ex__(protocol)
        return _made, (make, cls.__mro__[2], *args), *rest


@functools.cache
def _reading(cls: type) -> type:
    return type(cls.__name__, (_ReadsQuantized, cls), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})


def _made(make, cls, *args):
    return make(_reading(cls), *args)


def find_stacks(model: nn.Module) -> list[tuple[str, str]]:
    """(path of the module, name) of every parameter that is a stack of matrices, as a mixture of experts has them.

    That is: three dimensions or more, at least two matrices of at least 16 x 16, of 16 or 32 bits, in a module that is
    none of torch's own (whose convolutions have three and four dimensions) and none of embeddings or a head; and, where
    a module's class is called experts, matrices of all of them in one. Biases, and what several modules share, are not.
    """
    users = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    found = []
    for path, module in model.named_modules():
        kind = type(module).__name__.lower()
        if (
            type(module).__module__.startswith("torch.")
            or isinstance(module, Quantized)
            or "embed" in kind
            or kind.endswith("head")
        ):
            continue
        for name, parameter in module._parameters.items():
            if (
                type(parameter) in (nn.Parameter, FakeTensor)
                and parameter.dtype in FLOAT_DTYPES.values()
                and users[id(parameter)] == 1
                and min(parameter.shape[-2:], default=0) >= _LEAST
                and (math.prod(parameter.shape[:-2]) > 1 or (parameter.ndim == 2 and "expert" in kind))
                and not any(word in name.lower() for word in ("bias", "embed", "position", "token"))
            ):
                found.append((path, name))
    return found


def quantize_parameter(
    module: nn.Module, name: str, datatype="nf4", block_size: int | None = None, double_quant: bool = True, device=None
) -> None:
    """Store the parameter `name` of `module` in 4 bits, in place; `dequantize_parameters` undoes it.

    Args:
        device: move it there first.

    Raises:
        ValueError, TypeError: as `quantize`.
    """
    weight = module._parameters[name]
    keep_parameter(
        module, name, quantize(weight if device is None else weight.to(device), datatype, block_size, double_quant)
    )


def keep_parameter(module: nn.Module, name: str, weight: QuantizedTensor) -> None:
    """Put `weight` in the place of the parameter `name` of `module`."""
    if not isinstance(module, _ReadsQuantized):
        module.add_module(KEPT_IN, nn.Module())
        module.__class__ = _reading(type(module))
    module._modules[KEPT_IN].add_module(name, QuantizedParameter(weight))
    module._modules[KEPT_IN].train(module.training)
    del module._parameters[name]


def quantized_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, QuantizedParameter]]:
    """(module, name, parameter) of everything that `quantize_parameter` stored in 4 bits."""
    for module in model.modules():
        if isinstance(module, _ReadsQuantized):
            for name, kept in module._modules[KEPT_IN].named_children():
                yield module, name, kept


def dequantize_parameters(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Give modules plain parameters back, decoded, in place.

    Args:
        dtype: of these; None: the dtype that their model has now.
    """
    for module, name, kept in list(quantized_parameters(model)):
        with torch.inference_mode(False):
            weight = UndecodedTensor(kept.quantized, dtype or kept.merged_dtype).decode()
            module._parameters[name] = nn.Parameter(weight, requires_grad=False)
        delattr(module._modules[KEPT_IN], name)
        if not module._modules[KEPT_IN]._modules:
            delattr(module, KEPT_IN)
            module.__class__ = type(module).__mro__[2]
