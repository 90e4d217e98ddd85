"""The QLoRA layer: a frozen base in 4 bits, a LoRA adapter beside it, and one autograd function for both.

    forward     W = dequantize(codes, scales);  y = x W^T + s (x A^T) B^T;  W is dropped
    backward    W = dequantize(codes, scales) once more;  dx = g W + s (g B) A;  dA, dB;  W is dropped

Between the two nothing of the size of W is kept: what is saved for backward is the input x, which LoRA needs anyway, and
x A^T with r numbers per token. Gradients flow *through* the quantized weight and never *into* it: there is no
quantization-aware training here.

Source: QLoRA (Dettmers et al. 2023), section 3, equation 5.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from qlora_lab.datatypes import get_datatype
from qlora_lab.lora import LoRALayer, check_adapter_arguments, find_targets, output_head, replace_module
from qlora_lab.quantization import FLOAT_DTYPES, QuantizedTensor, quantize


class QLoRALinear(LoRALayer):
    """A linear layer whose weight is stored in 4 bits, with a LoRA adapter.

    Args:
        weight: the quantized weight, (out, in).
        bias: kept as it is, frozen; or None.
        rank, alpha, dropout, use_rslora: see `LoRALayer`; rank 0 for a 4-bit layer without an adapter.
        compute_dtype: dtype of the matrix products; None follows autocast where it is on, else the input.

    The codes and scales are parameters that need no gradient, so that they move, save and shard with the model. Scales
    stay float32 when the model is cast (`model.half()`): they are part of the encoding.
    """

    def __init__(self, weight: QuantizedTensor, bias, rank, alpha, dropout=0.0, use_rslora=False, compute_dtype=None):
        if len(weight.shape) != 2:
            raise ValueError(f"a linear layer's weight has two dimensions, not {tuple(weight.shape)}")
        if compute_dtype not in (None, *FLOAT_DTYPES.values()):
            raise TypeError(f"compute_dtype {compute_dtype} is not allowed; choose {', '.join(FLOAT_DTYPES)} or None")
        super().__init__(weight.shape[1], weight.shape[0], rank, alpha, dropout, use_rslora, weight.device)
        self.datatype, self.block_size, self.double_quant = weight.datatype, weight.block_size, weight.double_quant
        self.base_dtype, self.compute_dtype = weight.dtype, compute_dtype
        self.path = "this layer"  # its place in the model, for error messages; quantize_model fills it in
        self.codes = nn.Parameter(weight.codes, requires_grad=False)
        self.stored_names = tuple(weight.stored)
        for name, tensor in weight.stored.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank, alpha, datatype="nf4", block_size=64, double_quant=True, **options):
        """Quantize a linear layer; `options` are `dropout`, `use_rslora` and `compute_dtype`."""
        weight = quantize(linear.weight, datatype, block_size, double_quant)
        return cls(weight, linear.bias, rank, alpha, **options).train(linear.training)

    @property
    def quantized(self) -> QuantizedTensor:
        """The weight as a `QuantizedTensor` that shares this layer's storage."""
        stored = {name: getattr(self, name).data for name in self.stored_names}
        shape = torch.Size((self.out_features, self.in_features))
        return QuantizedTensor(
            self.codes.data, stored, shape, self.base_dtype, self.datatype, self.block_size, self.double_quant
        )

    @property
    def encoded_elements(self) -> int:
        """How many weights the 4-bit codes stand for: in * out."""
        return self.in_features * self.out_features

    def base_weight(self) -> torch.Tensor:
        """The decoded weight, in the dtype it was quantized from. (out, in)"""
        return self.quantized.dequantize()

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., in) -> (..., out)
        dtype = self.compute_dtype
        if dtype is None:
            kind = x.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        flat = x.reshape(-1, self.in_features).to(dtype)
        dropped = None
        if self.rank and self.dropout and self.training:
            dropped = nn.functional.dropout(flat, self.dropout)
        y = _QLoRAFunction.apply(
            flat, dropped, self.lora_A, self.lora_B, self.bias, self.quantized, self.scaling, dtype
        )
        if dtype == torch.float16 and not bool(y.isfinite().all()):
            raise FloatingPointError(
                f"{self.path} left the range of float16 (largest finite value 65504); compute in bfloat16 where the "
                "hardware has it, else in float32: compute_dtype=torch.float32"
            )
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _apply(self, fn, recurse=True):
        """`model.to(...)`, `.half()`, `.cuda()`: move the scales, but never change their dtype."""
        exact = {name: getattr(self, name).data for name in self.stored_names}
        super()._apply(fn, recurse)
        for name, tensor in exact.items():
            moved = getattr(self, name)
            if moved.dtype != tensor.dtype:
                moved.data = tensor.to(moved.device)
        return self

    def extra_repr(self) -> str:
        double = ", double_quant" if self.double_quant else ""
        return f"{super().extra_repr()}, {self.datatype}, block_size={self.block_size}{double}"


class _QLoRAFunction(torch.autograd.Function):
    """y = x W^T + bias + s (x' A^T) B^T with W in 4 bits; x' is x, or x after dropout.

    x, x': (n, in) of the compute dtype; A (r, in), B (out, r) float32, cast to it; y: (n, out).
    """

    @staticmethod
    def forward(ctx, x, dropped, a, b, bias, weight, scaling, dtype):
        with torch.autocast(x.device.type, enabled=False):
            y = x @ weight.dequantize(dtype).t()
            if bias is not None:
                y += bias.to(dtype)
            h = None
            if a is not None:
                h = (x if dropped is None else dropped) @ a.to(dtype).t()  # (n, in) -> (n, r)
                y.addmm_(h, b.to(dtype).t(), alpha=scaling)
        ctx.weight, ctx.scaling, ctx.dtype = weight, scaling, dtype
        # dx needs only W, A and B: where there is nothing to train, not even x is kept
        ctx.save_for_backward(x if dropped is None and a is not None else dropped, a, b, h)
        ctx.has_dropped = dropped is not None
        return y

    @staticmethod
    def backward(ctx, g):
        inputs, a, b, h = ctx.saved_tensors
        need_x, need_dropped, need_a, need_b = ctx.needs_input_grad[:4]
        dx = d_dropped = da = db = None
        with torch.autocast(g.device.type, enabled=False):
            if need_x:
                dx = g @ ctx.weight.dequantize(ctx.dtype)  # (n, out) -> (n, in)
            if a is not None:
                gb = g @ b.to(ctx.dtype)  # (n, out) -> (n, r)
                if ctx.has_dropped and need_dropped:
                    d_dropped = (gb @ a.to(ctx.dtype)).mul_(ctx.scaling)
                elif need_x and not ctx.has_dropped:
                    dx.addmm_(gb, a.to(ctx.dtype), alpha=ctx.scaling)
                if need_a:
                    da = (gb.t() @ inputs).to(a.dtype).mul_(ctx.scaling)
                if need_b:
                    db = (g.t() @ h).to(b.dtype).mul_(ctx.scaling)
        return dx, d_dropped, da, db, None, None, None, None


def quantize_model(
    model: nn.Module,
    datatype: str = "nf4",
    block_size: int = 64,
    double_quant: bool = True,
    rank: int = 16,
    alpha: float = 32,
    target_modules: str | Iterable[str] = "all-linear",
    compute_dtype: torch.dtype | None = None,
    dropout: float = 0.0,
    use_rslora: bool = False,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Freeze `model`, store its linear layers in 4 bits and give the targeted ones LoRA adapters, in place.

    Every `nn.Linear` is quantized but the output head, which, like the embeddings, stays as it is unless
    `target_modules` names it. One layer at a time is replaced, so the peak is the model plus one layer.

    Args:
        target_modules: which layers get adapters; the forms of `inject_lora`.
        rank: 0 quantizes without adding adapters.
        device: move each layer there before quantizing it, and the rest of the model at the end: a model too large for
            the device in 16 bits can come from the CPU.
        progress: called with (layers done, layers in all).

    Returns:
        the same model.

    Raises:
        ValueError, TypeError: as `quantize` and `inject_lora`; everything but the weights' values is checked before
            the first layer is touched.
    """
    check_adapter_arguments(rank, alpha, dropout)
    datatype = get_datatype(datatype).name
    if compute_dtype not in (None, *FLOAT_DTYPES.values()):
        raise TypeError(f"compute_dtype {compute_dtype} is not allowed; choose {', '.join(FLOAT_DTYPES)} or None")
    quantize(torch.zeros(1), datatype, block_size, double_quant)  # raises for a block size that is not allowed
    adapted = find_targets(model, target_modules)
    head = output_head(model)
    everything = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (module is not head or name in adapted)
    }
    model.requires_grad_(False)
    options = {"dropout": dropout, "use_rslora": use_rslora, "compute_dtype": compute_dtype}
    for done, (name, linear) in enumerate(everything.items(), 1):
        try:
            layer = QLoRALinear.from_linear(
                linear.to(device) if device is not None else linear,
                rank if name in adapted else 0,
                alpha,
                datatype,
                block_size,
                double_quant,
                **options,
            )
        except (ValueError, TypeError) as error:
            raise type(error)(f"{name}: {error}") from error
        layer.path = name
        replace_module(model, name, layer)
        if progress is not None:
            progress(done, len(everything))
    return model if device is None else model.to(device)
