"""The QLoRA layer: a frozen base in 4 bits, a LoRA adapter beside it, and one autograd function for both.

    forward     W = dequantize(codes, scales);  y = x W^T + s (x A^T) B^T;  W is dropped
    backward    W = dequantize(codes, scales) once more;  dx = g W + s (g B) A;  dA, dB;  W is dropped

Between the two nothing of the size of W is kept: what is saved for backward is the input x, which LoRA needs anyway,
and x A^T with r numbers per token. Gradients flow *through* the quantized weight and never *into* it: there is no
quantization-aware training here. What it gives up: the time to decode W twice a step, and the rounding of W to 4 bits.

In which order and in which dtype the two shares are added up decides what of a small adapter is left, and how fast it
is; `QLoRAFunction` says how.

Source: QLoRA (Dettmers et al. 2023), section 3, equation 5.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from qlora_lab.lora import (
    LoRALayer,
    cast_adapters,
    check_adapter_arguments,
    check_adapter_dtype,
    computes,
    find_targets,
    ordinary_tensors,
    output_head,
    replace_module,
)
from qlora_lab.machine.dtypes import FLOAT_DTYPES, autocast_dtype, without_autocast
from qlora_lab.machine.matmul import matmul, prefers_onednn
from qlora_lab.quantization.parameters import Quantized, find_stacks, quantize_parameter, refuse_wrong_state
from qlora_lab.quantization.tensor import QuantizedTensor, quantize

# -- the arithmetic


def _narrow(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x @ w where w has few columns, computed as the transpose: a CPU's matrix product is up to three times as fast."""
    return matmul(w.t(), x.t()).t()


def _product(x, w, wide: torch.dtype, share, scaling: float, bias=None) -> torch.Tensor:
    """x @ w + bias + scaling * (share[0] @ share[1]), in dtype `wide`, which may be wider than x's."""
    if wide != x.dtype or prefers_onednn(x):
        y = matmul(x, w).to(wide)
        if bias is not None:
            y += bias.to(wide)
        return y if share is None else y.addmm_(*share, alpha=scaling)
    bias = None if bias is None else bias.to(wide)
    if share is None:
        return x @ w if bias is None else torch.addmm(bias, x, w)
    if bias is None:
        return torch.addmm(share[0] @ share[1], x, w, beta=scaling)
    return torch.addmm(torch.addmm(bias, *share, alpha=scaling), x, w)


class QLoRAFunction(torch.autograd.Function):
    """y = x W^T + bias + s (x' A^T) B^T with W in 4 bits; x' is x, or x after dropout (None: no dropout).

    x, x': (n, in); y: (n, out), of x's dtype. A (r, in), B (out, r). The products with W are computed in `dtype`.

    The adapter's share is small beside the base's: added to a 16-bit sum that has been rounded already, most of it
    would be lost. So where x is wider than `dtype`, the share is computed and added in x's dtype; where it is not, the
    product with W is accumulated on top of the share and rounded once. The same holds for dx.

    In float32, W + s B A itself loses no more than the product with it does. For many tokens that is less work: s B A
    is added to the decoded weight while it is there, and no (n, out) of the share's own is made (`merge` allows it).
    """

    @staticmethod
    def forward(ctx, x, dropped, a, b, bias, weight, scaling, dtype, merge):
        wide = torch.promote_types(x.dtype, dtype)
        inputs = h = share = None
        ctx.merge = merge and a is not None and wide == dtype == torch.float32 and 2 * len(x) >= x.shape[1]
        with without_autocast(x.device.type):
            if a is not None:
                inputs = (x if dropped is None else dropped).to(wide)
                h = _narrow(inputs, a.to(wide).t())  # (n, in) -> (n, r)
                share = None if ctx.merge else (h, b.to(wide).t())
            w = weight.dequantize(dtype)  # (out, in)
            if ctx.merge:
                w.addmm_(b.to(wide), a.to(wide), alpha=scaling)
            y = _product(x.to(dtype), w.t(), wide, share, scaling, bias)  # (n, in) -> (n, out)
        ctx.weight, ctx.scaling, ctx.dtype, ctx.input_dtype = weight, scaling, dtype, x.dtype
        ctx.save_for_backward(inputs, a, b, h)  # without an adapter nothing at all: dx needs only the codes
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        inputs, a, b, h = ctx.saved_tensors
        need_x, need_dropped, need_a, need_b = ctx.needs_input_grad[:4]
        dx = d_dropped = da = db = share = None
        wide = torch.promote_types(g.dtype, ctx.dtype)
        with without_autocast(g.device.type):
            if a is not None:
                gw = g.to(wide)
                gb = _narrow(gw, b.to(wide))  # (n, out) -> (n, r)
                if need_dropped:
                    d_dropped = matmul(gb, a.to(wide)).mul_(ctx.scaling).to(ctx.input_dtype)
                elif not ctx.merge:  # no dropout: the adapter's share joins the base's
                    share = gb, a.to(wide)
                if need_a:
                    da = matmul(gb.t(), inputs).to(a.dtype).mul_(ctx.scaling)  # (r, in)
                if need_b:
                    db = _narrow(gw.t(), h).to(b.dtype).mul_(ctx.scaling)  # (out, r)
            if need_x:
                w = ctx.weight.dequantize(ctx.dtype)  # (out, in)
                if ctx.merge:
                    w.addmm_(b.to(wide), a.to(wide), alpha=ctx.scaling)
                dx = _product(g.to(ctx.dtype), w, wide, share, ctx.scaling).to(ctx.input_dtype)  # (n, out) -> (n, in)
        return dx, d_dropped, da, db, None, None, None, None, None


# -- the layer


# An operator of its own, so that fake tensors (which have no values to look at) pass through.
@torch.library.custom_op("qlora_lab::check_finite", mutates_args=())
def _check_finite(y: torch.Tensor, layer: str) -> None:
    # A float32 sum is finite exactly if every float16 in it is: 1e33 of them would fit. One pass, nothing allocated.
    if not bool(y.sum(dtype=torch.float32).isfinite()):
        raise FloatingPointError(
            f"{layer} left the range of float16 (largest finite value 65504); compute in bfloat16 where the hardware "
            "has it, else in float32: compute_dtype=torch.float32"
        )


@_check_finite.register_fake
def _(y, layer):
    return None


def _check_compute_dtype(dtype) -> None:
    if dtype not in (None, *FLOAT_DTYPES.values()):
        raise TypeError(f"compute_dtype {dtype} is not allowed; choose torch.{', torch.'.join(FLOAT_DTYPES)} or None")


class QLoRALinear(Quantized, LoRALayer):
    """A linear layer whose weight is stored in 4 bits, with a LoRA adapter.

    Args:
        weight: the quantized weight, (out, in).
        bias: kept as it is, frozen; or None.
        rank, alpha, dropout, use_rslora: see `LoRALayer`; rank 0 for a 4-bit layer without an adapter.
        compute_dtype: dtype of the matrix products with the base; the output has the input's dtype, and the adapter is
            computed in the wider of the two. None does as `nn.Linear` does: products and output in autocast's dtype
            where it is on, else in the input's.

    The codes and scales are parameters that need no gradient, so that they move, save and shard with the model. They
    keep their dtypes when the model is cast (`model.half()`): they are one encoding. A and B are cast.

    The state says what the codes mean (data type, block size, double quantization, shape, the dtype before, a version):
    a record of bytes, under the name "weight". Another layer's state is refused, strict or not, also that of a layer in
    full precision and the other way round. States of earlier versions have no record; where shapes and dtypes are right
    they load.

    Its backward pass is an autograd function of its own, which `torch.func` (grad, vmap), `torch.jit.trace` and
    `torch.export` cannot look into: they raise. `merge_and_unload(model)` gives layers that they know. Its codes are
    nothing for `from_pretrained` either, which refuses a model that `save_pretrained` wrote from such layers; save what
    was trained with `save_adapter`.

    Raises:
        ValueError: the weight is not two-dimensional, or a rank, alpha or dropout that makes no sense.
        TypeError: compute_dtype is not float32, float16, bfloat16 or None.
    """

    def __init__(self, weight: QuantizedTensor, bias, rank, alpha, dropout=0.0, use_rslora=False, compute_dtype=None):
        if len(weight.shape) != 2:
            raise ValueError(f"a linear layer's weight has two dimensions, not {tuple(weight.shape)}")
        _check_compute_dtype(compute_dtype)
        super().__init__(weight.shape[1], weight.shape[0], rank, alpha, dropout, use_rslora, weight.device)
        self.compute_dtype = compute_dtype
        self.path = "this layer"  # its place in the model, for error messages; quantize_model fills it in
        self.kept = None  # the weight decoded already, inside `keep_decoded`
        self.hold(weight)
        with torch.inference_mode(False):
            bias = None if bias is None else bias.detach()
            bias = bias.clone() if bias is not None and bias.is_inference() else bias
            self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank, alpha, datatype="nf4", block_size=None, double_quant=True, **options):
        """Quantize a linear layer; `options` are `dropout`, `use_rslora` and `compute_dtype`."""
        with torch.inference_mode(False):  # tensors made in inference mode cannot take part in training
            weight = quantize(linear.weight.detach(), datatype, block_size, double_quant)
            return cls(weight, linear.bias, rank, alpha, **options).train(linear.training)

    def base_weight(self) -> torch.Tensor:
        """The decoded weight, in the dtype it was quantized from. (out, in)"""
        return self.quantized.dequantize()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input: (..., in) -> (..., out).

        Raises:
            ValueError: its last dimension is not `in_features`.
            TypeError: it is of integers.
            FloatingPointError: computing in float16, and the output has an infinity or NaN. (Not under torch.compile.)
        """
        x = input
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"{self.path} takes (..., {self.in_features}), not {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"{self.path} takes floating-point numbers, not {x.dtype}")
        flat = x.reshape(x.shape[:-1].numel(), self.in_features)  # (..., in) -> (n, in)
        if self.compute_dtype is None and (autocast := autocast_dtype(x.device.type)):
            flat = flat.to(autocast)
        dtype = self.compute_dtype or flat.dtype
        a, b = (None, None) if self.switched_off else (self.lora_A, self.lora_B)
        dropped = None
        if a is not None and self.dropout and self.training:
            dropped = nn.functional.dropout(flat, self.dropout)
        merge = self.training and self.kept is None and dropped is None
        y = QLoRAFunction.apply(flat, dropped, a, b, self.bias, self.kept or self.quantized, self.scaling, dtype, merge)
        if dtype == torch.float16:
            _check_finite(y.detach(), self.path)
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        double = ", double_quant" if self.double_quant else ""
        return f"{super().extra_repr()}, {self.datatype}, block_size={self.block_size}{double}"


# -- in a model


def _check_weight(name, weight, datatype, block_size, double_quant) -> None:
    """Raise what `quantize` would raise, with the layer's name."""
    if weight.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values to quantize; load the model's weights first")
    try:
        quantize(weight.detach()[:0], datatype, block_size, double_quant)
        low, high = weight.detach().aminmax() if weight.numel() else (0, 0)
        if not (low > -1e30 and high < 1e30):  # NaN, infinity, or so large that scales could overflow: find out
            quantize(weight, datatype, block_size, double_quant)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from error


SHARE_TOLD = 0.2  # of the weights that neither embeddings nor the head hold


def _warn_of_the_rest(model: nn.Module, names: list[str], stacks: list, head: nn.Module | None) -> None:
    """Warn where much of a model lies in weights that are no linear layers' nor experts' and stay in full precision."""
    linear = {id(model.get_submodule(name)) for name in names}
    experts = {f"{path}.{name}" for path, name in stacks}
    kept, quantized, stayed, seen = 0, 0, {}, set()
    for module in model.modules():
        if isinstance(module, nn.Embedding) or module is head:
            seen.update(map(id, module.parameters(False)))
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or parameter.ndim < 2:
                continue
            seen.add(id(parameter))
            if id(module) in linear or f"{path}.{name}" in experts:
                quantized += parameter.numel()
                continue
            kept += parameter.numel()
            stayed[f"{path}.{name}".removeprefix(".")] = parameter.numel()
    if kept > SHARE_TOLD * (kept + quantized):
        largest = ", ".join(sorted(stayed, key=stayed.get, reverse=True)[:3])
        warnings.warn(
            f"{kept / (kept + quantized):.0%} of the weights (embeddings and head aside) belong to neither nn.Linear "
            f"layers nor stacks of experts, and stay in full precision ({len(stayed)} parameters, the largest are "
            f"{largest}): 4 bits save little of this model's memory",
            stacklevel=4,
        )


def _let_go_of_files(model: nn.Module) -> None:
    """Copy what was not quantized just now, tensor by tensor, on a CPU.

    A model loaded just now lies in a file that is mapped into memory, and one tensor left there keeps all pages of it.
    """
    others = [module for module in model.modules() if not isinstance(module, Quantized)]
    tensors = {t: None for module in others for t in (*module.parameters(False), *module.buffers(False))}
    tensors = [t for t in tensors if type(t) in (nn.Parameter, torch.Tensor) and t.layout == torch.strided]
    tensors = [t for t in tensors if t.device.type == "cpu"]
    shared = Counter(t.untyped_storage().data_ptr() for t in tensors)
    for tensor in tensors:
        if shared[tensor.untyped_storage().data_ptr()] == 1:  # else tensors tied to each other would come apart
            tensor.data = tensor.data.clone()


@torch.inference_mode(False)  # tensors made in inference mode cannot take part in training
def quantize_model(
    model: nn.Module,
    datatype: str = "nf4",
    block_size: int | None = None,
    double_quant: bool = True,
    rank: int = 16,
    alpha: float = 32,
    target_modules: str | Iterable[str] = "all-linear",
    compute_dtype: torch.dtype | None = None,
    dropout: float = 0.0,
    use_rslora: bool = False,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    adapter_dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Freeze `model`, store its linear layers in 4 bits and give the targeted ones LoRA adapters, in place.

    Every `nn.Linear` is quantized but the output head, which, like the embeddings, stays as it is unless
    `target_modules` names it. Other weights (convolutions, Conv1D, recurrent layers, matrices that are parameters of a
    module of one's own) stay too; a warning says how much that is where it is much. One layer at a time is replaced, so
    the peak is the model plus one layer.

    Quantized too are the experts of a mixture where they are stacks of matrices, three-dimensional parameters (Mixtral,
    Qwen-MoE, DeepSeek, GPT-OSS and others in transformers 5): their modules stay, and read weights that are decoded by
    what computes with them (`quantization.parameters`), in the model's dtype. They carry no adapters, as with PEFT
    unless it is told `target_parameters`. Routers stay as they are. Under torch.compile a stack is decoded as a whole.

    Args:
        datatype, block_size, double_quant: as `quantize`; a data type whose scales are no float32, or have a minimum
            beside them, takes double_quant=False.
        target_modules: which layers get adapters; the forms of `inject_lora`.
        rank: 0 quantizes without adding adapters.
        device: move each layer there before quantizing it, and the rest of the model at the end: a model too large for
            the device in 16 bits can come from the CPU.
        progress: called with (layers done, layers in all).
        adapter_dtype: float32 or bfloat16; see `inject_lora`.

    Returns:
        the same model.

    Raises:
        ValueError, TypeError: as `quantize` and `inject_lora`. Nothing is changed then.

    Warns:
        UserWarning: a notable share of the weights stays as it was.
    """
    check_adapter_arguments(rank, alpha, dropout)
    check_adapter_dtype(adapter_dtype)
    _check_compute_dtype(compute_dtype)
    stacks = find_stacks(model)
    kinds = {type(module) for module in model.modules()}
    only_experts = not any(issubclass(kind, nn.Linear | LoRALayer) for kind in kinds) and (
        stacks or any(issubclass(kind, Quantized) for kind in kinds)
    )
    adapted = set() if only_experts and not rank else set(find_targets(model, target_modules))
    head = output_head(model)
    names = [  # names only: a layer referred to here would keep its memory until the last one is done
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (module is not head or name in adapted)
    ]
    others = [name for name in names if computes(model.get_submodule(name)) != "linear"]
    if isinstance(target_modules, str) and target_modules == "all-linear":
        adapted.difference_update(others)  # they stay as they are, and a warning names them
    elif adapted.intersection(others):
        name = next(name for name in others if name in adapted)
        raise ValueError(
            f"{name} is a {type(model.get_submodule(name)).__name__} that computes something else than nn.Linear and "
            "cannot be stored in 4 bits; leave it out of target_modules, or use inject_lora"
        )
    names = [name for name in names if name not in others]
    if not names and not stacks:
        raise ValueError("this model has no nn.Linear layers to quantize; is it quantized already?")
    for name in names:
        _check_weight(name, model.get_submodule(name).weight, datatype, block_size, double_quant)
    for path, name in stacks:
        weight = getattr(model.get_submodule(path), name)
        _check_weight(f"{path}.{name}".lstrip("."), weight, datatype, block_size, double_quant)
    model.requires_grad_(False)
    _warn_of_the_rest(model, names, stacks, head)
    ordinary_tensors(model)
    if others:
        warnings.warn(
            f"{len(others)} linear layers compute something else than nn.Linear and stay as they are: "
            f"{', '.join(others[:3])}{', ...' if len(others) > 3 else ''}",
            stacklevel=3,
        )
    for done, name in enumerate(names, 1):
        linear = model.get_submodule(name)
        layer = QLoRALinear.from_linear(
            linear if device is None else linear.to(device),
            rank if name in adapted else 0,
            alpha,
            datatype,
            block_size,
            double_quant,
            dropout=dropout,
            use_rslora=use_rslora,
            compute_dtype=compute_dtype,
        )
        layer.path = name
        cast_adapters(layer, adapter_dtype)
        replace_module(model, name, layer)
        del linear
        if progress is not None:
            progress(done, len(names) + len(stacks))
    for done, (path, name) in enumerate(stacks, len(names) + 1):
        quantize_parameter(model.get_submodule(path), name, datatype, block_size, double_quant, device)
        if progress is not None:
            progress(done, len(names) + len(stacks))
    _let_go_of_files(model)
    model.register_load_state_dict_pre_hook(refuse_wrong_state)
    return model if device is None else model.to(device)
