"""Where an adapter starts, and what has been built around it since: LoftQ, PiSSA, DoRA.

    LoRA     W' + s B A        A random, B zero: the first step sees the rounded base as it is
    LoftQ    Q + s B A         Q and B A found together so that their sum is close to W: the adapter begins by making
                               good part of the rounding
    PiSSA    Q(W - s B A)      A and B from the largest singular values of W, and only the rest is rounded: the adapter
                               trains the directions that matter most
    DoRA     m (W' + s B A) / |W' + s B A|    rows divided by their length, and the lengths m trained by themselves
The starts need the weights before rounding. In all of them the model computes with the same layers as ever; DoRA's
lengths ride on top. They are here to be compared (notebook 10); `finetune`'s command trains plain LoRA.

LoRA+ (Hayou et al. 2024), a learning rate for B that is c times A's, needs no code: B starts at zero, and steps of Adam
do not depend on how large gradients are, so training B at c times the rate is training B / c at the rate itself. Up to
the clipping of gradients, LoRA+ is plain LoRA with c times the alpha.

Sources: LoftQ (Li et al. 2023), algorithm 1; PiSSA (Meng et al. 2024); DoRA (Liu et al. 2024), sections 4.1 and 4.3.
"""

from collections.abc import Mapping

import torch
from torch import nn

from qlora_lab.lora import LoRALayer, adapted_layers, replace_module
from qlora_lab.machine.arguments import is_count
from qlora_lab.qlora import QLoRALinear
from qlora_lab.quantization.datatypes import DataType
from qlora_lab.quantization.tensor import QuantizedTensor, quantize

STARTS = ("loftq", "pissa")


@torch.no_grad()
def nearest_adapter(matrix: torch.Tensor, rank: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B such that scaling * B A is the nearest matrix of that rank, the singular values shared evenly.

    Args:
        matrix: (out, in).

    Returns:
        A (r, in) and B (out, r), float32. Of a rank that the matrix does not have, the rest is zeros.
    """
    u, values, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    root = (values[:rank] / scaling).sqrt()
    a, b = root[:, None] * v[:rank], u[:, :rank] * root
    missing = rank - len(root)
    return nn.functional.pad(a, (0, 0, 0, max(0, missing))), nn.functional.pad(b, (0, max(0, missing)))


@torch.no_grad()
def loftq(
    weight: torch.Tensor,
    rank: int,
    scaling: float,
    datatype: str | DataType = "nf4",
    block_size: int | None = None,
    double_quant: bool = False,
    rounds: int = 5,
) -> tuple[QuantizedTensor, torch.Tensor, torch.Tensor]:
    """Q, A and B with Q + scaling * B A close to the weight: rounding and the nearest adapter in turns.

    Returns:
        the round of the least error: its Q (of the weight's dtype), A (r, in) and B (out, r).

    Raises:
        ValueError: fewer rounds than one.
    """
    if not is_count(rounds, least=1):
        raise ValueError(f"rounds {rounds!r} is not allowed; give a whole number of at least 1 (usual: 1 to 5)")
    w, best, least = weight.float(), None, float("inf")
    a, b = w.new_zeros(rank, w.shape[1]), w.new_zeros(w.shape[0], rank)
    for _ in range(rounds):
        q = quantize((w - scaling * b @ a).to(weight.dtype).contiguous(), datatype, block_size, double_quant)
        rest = w - q.dequantize(torch.float32)
        a, b = nearest_adapter(rest, rank, scaling)
        error = (rest - scaling * b @ a).norm().item()
        if error < least:
            best, least = (q, a, b), error
    return best


@torch.no_grad()
def pissa(
    weight: torch.Tensor,
    rank: int,
    scaling: float,
    datatype: str | DataType = "nf4",
    block_size: int | None = None,
    double_quant: bool = False,
) -> tuple[QuantizedTensor, torch.Tensor, torch.Tensor]:
    """A and B from the weight's largest singular values, and the rest of it rounded.

    Returns:
        Q = rounded(W - scaling * B A) (of the weight's dtype), A (r, in) and B (out, r).
    """
    a, b = nearest_adapter(weight, rank, scaling)
    rest = (weight.float() - scaling * b @ a).to(weight.dtype)
    return quantize(rest.contiguous(), datatype, block_size, double_quant), a, b


@torch.no_grad()
def start_adapters(model: nn.Module, weights: Mapping[str, torch.Tensor], start: str) -> nn.Module:
    """Give every 4-bit layer with an adapter the base and the adapter of a start, in place.

    Args:
        model: made by `quantize_model`; data type, block size and rank of its layers are kept.
        weights: {path: the layer's weight before rounding, (out, in)}.
        start: "loftq" or "pissa".

    Returns:
        the same model. Its base is another than before: an adapter trained on it fits this base only.

    Raises:
        ValueError: another start, a model without such layers, or a layer whose weight is missing or of another shape.
            Nothing is changed then.
    """
    if start not in STARTS:
        raise ValueError(f"there is no start {start!r}; the starts are {', '.join(STARTS)}")
    layers = {path: m for path, m in adapted_layers(model) if isinstance(m, QLoRALinear) and m.rank}
    if not layers:
        raise ValueError("no 4-bit layer of this model has an adapter; make it with quantize_model")
    for path, layer in layers.items():
        shape = tuple(weights[path].shape) if path in weights else None
        if shape != (layer.out_features, layer.in_features):
            raise ValueError(f"{path} needs its weight before rounding, {tuple(layer.weight_shape)}; there is {shape}")
    find = {"loftq": loftq, "pissa": pissa}[start]
    for path, layer in layers.items():
        how = layer.datatype, layer.block_size, layer.double_quant
        weight = weights[path].to(layer.device, layer.base_dtype)
        base, a, b = find(weight, layer.rank, layer.scaling, *how)
        layer.hold(base)
        layer.lora_A.copy_(a)
        layer.lora_B.copy_(b)
    return model


class DoRA(nn.Module):
    """An adapted layer whose rows are divided by their length and multiplied by lengths that are trained.

        y = m / |W' + s B A| * (x (W' + s B A)^T) + bias

    The lengths |...| count as constants in the backward pass (the paper's section 4.3), so that gradients of A and B
    are those of the layer inside, times m / |...|. At the start m is |W'|: the model computes what it did. Each forward
    pass decodes W' and multiplies B A once more than the layer inside.

    Args:
        layer: with an adapter, without dropout; it is used as it is.

    Raises:
        ValueError: a layer without an adapter.
    """

    def __init__(self, layer: LoRALayer):
        super().__init__()
        if not layer.rank:
            raise ValueError("DoRA is for a layer with an adapter; this one has rank 0")
        self.layer = layer
        with torch.inference_mode(False):
            self.magnitude = nn.Parameter(self._lengths())  # (out,)

    @torch.no_grad()
    def _lengths(self) -> torch.Tensor:
        """Of the rows of W' + s B A, float32 (out,)."""
        return torch.addmm(
            self.layer.base_weight().float(), self.layer.lora_B.float(), self.layer.lora_A.float(),
            alpha=self.layer.scaling,
        ).norm(dim=1)  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., in) -> (..., out)
        y, bias = self.layer(x), self.layer.bias
        factor = (self.magnitude / self._lengths()).to(y.dtype)
        return y * factor if bias is None else (y - bias) * factor + bias

    @torch.no_grad()
    def merged_linear(self) -> nn.Linear:
        """A plain linear layer that computes the same: its weight is m (W' + s B A) / |W' + s B A|."""
        linear = self.layer.merged_linear()
        linear.weight.mul_((self.magnitude / self._lengths())[:, None].to(linear.weight.dtype))
        return linear


def add_dora(model: nn.Module) -> nn.Module:
    """Put `DoRA` around every layer of `model` that has an adapter, in place."""
    for path, layer in list(adapted_layers(model)):
        if layer.rank:
            replace_module(model, path, DoRA(layer))
    return model


def merge_dora(model: nn.Module) -> nn.Module:
    """Replace every `DoRA` of `model` by a plain `nn.Linear` that computes the same, in place."""
    for path, module in list(model.named_modules()):
        if isinstance(module, DoRA):
            replace_module(model, path, module.merged_linear().train(module.training))
    return model
