"""The LoRA layer: a frozen linear layer and the low-rank update beside it; `lora` puts them into models.

y = W x + (alpha / r) B A x        A: (r, in), B: (out, r)
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class LoRALayer(nn.Module):
    """The trainable half of an adapted linear layer: A, B, their scaling and the dropout before A.

    Args:
        in_features, out_features: of the linear layer it belongs to.
        rank: r; 0 for no adapter.
        alpha: numerator of the scaling: alpha / r, or alpha / sqrt(r) with `use_rslora`.
        dropout: probability of dropping an input of A while training.
        device: where A and B live; None is torch's default device. They are float32 whatever the base is: an update
            of 1e-4 relative to a weight is lost in bfloat16.

    Raises:
        ValueError: a rank, alpha or dropout that makes no sense.
    """

    def __init__(self, in_features, out_features, rank, alpha, dropout=0.0, use_rslora=False, device=None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.switched_off = False  # inside `lora.disabled`: forward computes the base alone
        self.reset_adapter(rank, alpha, dropout, use_rslora, device)

    def reset_adapter(self, rank, alpha, dropout=0.0, use_rslora=False, device=None) -> None:
        """Replace the adapter by a fresh one: B = 0, so the layer again equals its base."""
        check_adapter_arguments(rank, alpha, dropout)
        self.rank, self.alpha, self.use_rslora, self.dropout = rank, alpha, bool(use_rslora), float(dropout)
        self.scaling = (alpha / math.sqrt(rank) if use_rslora else alpha / rank) if rank else 0.0
        if not rank:
            self.lora_A = self.lora_B = None
            return
        device = torch.device(device or torch.get_default_device())
        bound = 1 / math.sqrt(self.in_features)
        drawn_on = device if device.type == "meta" else "cpu"  # one seed gives one adapter, on whatever device
        a = torch.empty(rank, self.in_features, dtype=torch.float32, device=drawn_on).uniform_(-bound, bound)
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=torch.float32, device=device))

    def delta(self) -> torch.Tensor:
        """scaling * B A: what the adapter adds to the weight. float32 (out, in)."""
        if not self.rank:
            raise ValueError("this layer has no adapter (rank 0)")
        return self.scaling * (self.lora_B @ self.lora_A)

    @torch.no_grad()
    def merged_linear(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """A plain linear layer whose weight is base + delta, computed in float32 and rounded once to `dtype`."""
        weight = self.base_weight().float()
        dtype = dtype or self.base_dtype
        if self.rank and not getattr(self, "merged", False):
            weight = weight + self.delta()
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.to(dtype), requires_grad=False)
        return linear

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, alpha={self.alpha}"


class LoRALinear(LoRALayer):
    """A frozen `nn.Linear` with a trainable low-rank update beside it.

    Args:
        base: the linear layer; its parameters are frozen in place.
        rank, alpha, dropout, use_rslora: see `LoRALayer`.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0, use_rslora: bool = False):
        super().__init__(base.in_features, base.out_features, rank, alpha, dropout, use_rslora, base.weight.device)
        self.base = base.requires_grad_(False)
        self.merged = False

    @property
    def bias(self):
        return self.base.bias

    @property
    def base_dtype(self) -> torch.dtype:
        return self.base.weight.dtype

    def base_weight(self) -> torch.Tensor:
        """The frozen weight. (out, in)

        Raises:
            ValueError: it is stored as packed integers by another library (bitsandbytes), whose codec is not here.
        """
        if not self.base.weight.is_floating_point():
            kind, dtype = type(self.base).__name__, self.base.weight.dtype
            raise ValueError(f"a {kind} keeps its weight as packed {dtype}; dequantize it with its own library first")
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., in) -> (..., out)
        y = self.base(x)
        if self.merged or self.switched_off or not self.rank:
            return y
        h = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A.to(x.dtype))  # (..., in) -> (..., r)
        return y + self.scaling * F.linear(h, self.lora_B.to(x.dtype))

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the adapter into the base weight, in place; forward then costs what the base alone does."""
        if not self.merged and self.rank:
            self.base.weight.copy_(self.base_weight().float() + self.delta())  # rounded once, after the sum
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the adapter out of the weight again: equal to before up to one rounding of the weight's dtype."""
        if self.merged:
            self.base.weight.copy_(self.base.weight.float() - self.delta())
            self.merged = False


def check_adapter_arguments(rank, alpha, dropout) -> None:
    """Raises ValueError for a rank, alpha or dropout that makes no sense, with what would."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
        raise ValueError(f"rank {rank!r} is not allowed; give a whole number of at least 1 (usual: 8 to 64)")
    if rank and not (isinstance(alpha, int | float) and math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha {alpha!r} is not allowed; give a positive number (usual: the rank or twice it)")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout!r} is not a probability below 1")
