"""A tensor in 4 bits that any operation of PyTorch takes: it is decoded by what computes with it, and dropped again.

A linear layer decodes its weight itself, forward and backward. The experts of a mixture are stacks of matrices that
other people's code slices, transposes and multiplies, each model in its own way. So here the tensor does it: views of
an `UndecodedTensor` (one expert, a transpose) stay undecoded and only note which part they mean; an operation that
computes gets the decoded part, and no more of it than that. What autograd keeps for the backward pass is the undecoded
tensor, which is decoded once more there. The operations are those that the decoded weights would meet, in the same
order, and so are their results, bit for bit.

What it gives up: it has no gradient and cannot be changed in place, and each operation on it passes through Python.
"""

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from qlora_lab.machine.dtypes import FLOAT_DTYPES
from qlora_lab.quantization.tensor import QuantizedTensor

_aten = torch.ops.aten


class UndecodedTensor(torch.Tensor):
    """`weight`, or a part of it, as a tensor of its shape whose values are made when they are needed.

    Args:
        weight: what is decoded.
        dtype: float dtype to decode to. None: that of the tensor that was quantized.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, weight: QuantizedTensor, dtype: torch.dtype | None = None):
        dtype = dtype or weight.dtype
        shape = tuple(weight.shape)
        strides = torch.empty(shape, dtype=dtype, device="meta").stride() if shape else ()
        return cls._of(weight, dtype, (shape, strides, 0), (), (shape, strides, dtype))

    @classmethod
    def _of(cls, weight, dtype, place, then, seen) -> "UndecodedTensor":
        """place: (shape, strides, offset) in the decoded weight. then: what to do with that part, once it is decoded.

        seen: (shape, strides, dtype) of the result.
        """
        shape, strides, seen_dtype = seen
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, shape, strides=strides, dtype=seen_dtype, device=weight.device, requires_grad=False
        )
        tensor.weight, tensor._decoded_dtype, tensor._place, tensor._then = weight, dtype, place, then
        return tensor

    def __init__(self, *args, **kwargs):
        pass

    def decode(self) -> torch.Tensor:
        """The values, as an ordinary tensor of this shape and these strides."""
        shape, strides, offset = self._place
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        part, start = self.weight.part(offset, max(offset, last + 1))
        direct = self._decoded_dtype in FLOAT_DTYPES.values()
        decoded = part.dequantize(self._decoded_dtype if direct else torch.float32).to(self._decoded_dtype)
        decoded = decoded.as_strided(shape, strides, offset - start)
        for function, args, kwargs in self._then:
            decoded = function(decoded, *args, **kwargs)
        return decoded

    def data_ptr(self) -> int:
        """0, as of any tensor without memory; transformers asks whether it is aligned."""
        return 0

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"UndecodedTensor({self.weight.datatype}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo):
        return self.decode()

    def __reduce_ex__(self, protocol):
        return self.decode().__reduce_ex__(protocol)

    def __tensor_flatten__(self):
        names = ["codes", *self.weight.stored]
        return names, (self.weight, self._decoded_dtype, self._place, self._then, self.dtype)

    def __getattr__(self, name):
        weight = self.__dict__.get("weight")
        if weight is not None and (name == "codes" or name in weight.stored):
            return weight.codes if name == "codes" else weight.stored[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @staticmethod
    def __tensor_unflatten__(inner, context, outer_size, outer_stride):
        weight, dtype, place, then, seen_dtype = context
        stored = {name: tensor for name, tensor in inner.items() if name != "codes"}
        weight = QuantizedTensor(
            inner["codes"], stored, weight.shape, weight.dtype, weight.datatype, weight.block_size, weight.double_quant
        )
        return UndecodedTensor._of(weight, dtype, place, then, (outer_size, outer_stride, seen_dtype))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, UndecodedTensor) and _stays_undecoded(function, args, kwargs):
            return first._after(function, args[1:], kwargs)
        for number, argument in enumerate(function._schema.arguments):
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            if isinstance(value, UndecodedTensor) and argument.alias_info is not None and argument.alias_info.is_write:
                raise RuntimeError(
                    f"{function} would change a weight that is stored in 4 bits; change a decoded copy, weight.clone()"
                )
        args, kwargs = tree_map_only(UndecodedTensor, UndecodedTensor.decode, (args, kwargs))
        return function(*args, **kwargs)

    def _after(self, function, args, kwargs):
        """What a view, a selection or a cast of this tensor is."""
        shape, strides, offset = self._place
        with _disable_current_modes():  # only shapes are asked for: nobody has to see these tensors
            if self._then:
                shadow = torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device="meta")
            else:
                whole = torch.empty(self.weight.shape.numel(), dtype=self.dtype, device="meta")
                shadow = whole.as_strided(shape, strides, offset)
            on_meta = tree_map_only(torch.Tensor, _on_meta, args)
            results = function(shadow, *on_meta, **kwargs)
        several = isinstance(results, list | tuple)
        parts = []
        for number, result in enumerate(results if several else [results]):
            seen = (result.shape, result.stride(), result.dtype)
            if function.is_view and not self._then:
                place, then = (tuple(result.shape), result.stride(), result.storage_offset()), ()
            else:
                own = tree_map_only(torch.Tensor, torch.clone, args)  # indices, which may be changed later
                step = (_numbered(function, number) if several else function, own, kwargs)
                place, then = self._place, (*self._then, step)
            parts.append(UndecodedTensor._of(self.weight, self._decoded_dtype, place, then, seen))
        return parts if several else parts[0]


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """One of the same shape; made from numbers, since what is made from a fake tensor would be fake again."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _numbered(function, number: int):
    return lambda *args, **kwargs: function(*args, **kwargs)[number]


def _stays_undecoded(function, args, kwargs) -> bool:
    """Whether the result is a part of the weight, or the same in another float dtype: noted, and not computed yet."""
    if function.is_view:
        return function is not _aten.view.dtype
    if function is _aten.index.Tensor:  # experts chosen for each token
        chosen = [index for index in args[1] if index is not None]
        return all(not index.is_floating_point() and index.dtype != torch.bool for index in chosen)
    if function is _aten._to_copy.default:  # autocast does it before each product
        said = {name: value for name, value in kwargs.items() if value is not None and name != "non_blocking"}
        return said.keys() == {"dtype"} and said["dtype"].is_floating_point
    return False
