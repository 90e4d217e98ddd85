"""The arithmetic of the QLoRA layer: one autograd function for the 4-bit base and the adapter beside it.

    forward     W = dequantize(codes, scales);  y = x W^T + s (x A^T) B^T;  W is dropped
    backward    W = dequantize(codes, scales) once more;  dx = g W + s (g B) A;  dA, dB;  W is dropped

In which order and in which dtype that is added up decides what of a small adapter is left, and how fast it is.
"""

import contextlib

import torch
from torch.autograd.function import once_differentiable

from qlora_lab.machine.matmul import matmul, prefers_onednn


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
        with _no_autocast(x.device.type):
            if a is not None:
                inputs = (x if dropped is None else dropped).to(wide)
                h = _narrow(inputs, a.to(wide).t())  # (n, in) -> (n, r)
                share = None if ctx.merge else (h, b.to(wide).t())
            w = weight.dequantize(dtype)
            if ctx.merge:
                w.addmm_(b.to(wide), a.to(wide), alpha=scaling)
            y = _product(x.to(dtype), w.t(), wide, share, scaling, bias)
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
        with _no_autocast(g.device.type):
            if a is not None:
                gw = g.to(wide)
                gb = _narrow(gw, b.to(wide))  # (n, out) -> (n, r)
                if need_dropped:
                    d_dropped = matmul(gb, a.to(wide)).mul_(ctx.scaling).to(ctx.input_dtype)
                elif not ctx.merge:  # no dropout: the adapter's share joins the base's
                    share = gb, a.to(wide)
                if need_a:
                    da = matmul(gb.t(), inputs).to(a.dtype).mul_(ctx.scaling)
                if need_b:
                    db = _narrow(gw.t(), h).to(b.dtype).mul_(ctx.scaling)
            if need_x:  # (n, out) -> (n, in)
                w = ctx.weight.dequantize(ctx.dtype)
                if ctx.merge:
                    w.addmm_(b.to(wide), a.to(wide), alpha=ctx.scaling)
                dx = _product(g.to(ctx.dtype), w, wide, share, ctx.scaling)
                dx = dx.to(ctx.input_dtype)
        return dx, d_dropped, da, db, None, None, None, None, None


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


def autocast_dtype(device: str) -> torch.dtype | None:
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def _no_autocast(device: str):
    """Inside, products are computed in the dtypes given."""
    return torch.autocast(device, enabled=False) if autocast_dtype(device) else contextlib.nullcontext()


# An operator of its own, so that fake tensors (which have no values to look at) pass through.
@torch.library.custom_op("qlora_lab::check_finite", mutates_args=())
def check_finite(y: torch.Tensor, layer: str) -> None:
    # A float32 sum is finite exactly if every float16 in it is: 1e33 of them would fit. One pass, nothing allocated.
    if not bool(y.sum(dtype=torch.float32).isfinite()):
        raise FloatingPointError(
            f"{layer} left the range of float16 (largest finite value 65504); compute in bfloat16 where the hardware "
            "has it, else in float32: compute_dtype=torch.float32"
        )


@check_finite.register_fake
def _(y, layer):
    return None
