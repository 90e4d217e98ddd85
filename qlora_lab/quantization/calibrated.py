"""Rounding that looks at data: GPTQ and AWQ, with any of the data types.

Rounding to the nearest level makes the error of each weight small. What a layer hands on is not its weights but their
products with inputs, and inputs are far from alike: some are large all the time, some go together. All that the error
of outputs depends on is the second moments of the inputs, M = mean of x x^T over many tokens,

    mean of |(W - W') x|^2 = tr((W - W') M (W - W')^T)

    GPTQ    rounds column by column, and moves the columns not yet rounded so that the outputs change least
    AWQ     multiplies columns with large inputs by a factor before rounding, and divides the inputs by it: in a
            block of theirs they then sit on a finer grid. The layer before does the division, so it costs nothing.

Both only choose other codes and scales of the same format: what is stored, and how it is decoded, stays the same. They
give up the freedom from data: rounded for one kind of text, a model may be worse on another.

Sources: GPTQ (Frantar et al. 2022), algorithm 1, after Optimal Brain Surgeon (Hassibi, Stork 1993); AWQ (Lin et al.
2023), section 3.2.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from qlora_lab.machine.arguments import is_count
from qlora_lab.quantization.blockwise import decode_scales, pack_codes
from qlora_lab.quantization.datatypes import DataType, get_datatype
from qlora_lab.quantization.tensor import QuantizedTensor, check_options, quantize

COLUMNS = 128  # of GPTQ that are rounded before the rest of the matrix hears of it


@torch.no_grad()
def input_moments(model: nn.Module, batches: Iterable, layers: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """Second moments of what reaches each linear layer: the mean of x x^T over all tokens.

    Args:
        model: in eval mode while this runs.
        batches: what the model is called with: token ids (batch, length), or a mapping of arguments by name.
        layers: paths of linear layers; None: all but the output head.

    Returns:
        {path: float32 (in, in)}, on the layer's device.

    Raises:
        ValueError: no batch, a layer that is not there or that no token reached, or inputs that are not finite.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linears = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if layers is not None:
        layers = list(layers)
        if unknown := [path for path in layers if path not in linears]:
            raise ValueError(f"{unknown[0]!r} is no linear layer of this model; there are {', '.join(linears)}")
        linears = {path: linears[path] for path in layers}
    sums, counts = {}, dict.fromkeys(linears, 0)

    def add(path: str, x: torch.Tensor) -> None:
        x = x.reshape(-1, x.shape[-1]).float()
        moments = x.T @ x
        sums[path] = sums[path] + moments if path in sums else moments
        counts[path] += len(x)

    handles = [m.register_forward_pre_hook(lambda _, given, path=p: add(path, given[0])) for p, m in linears.items()]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            model(**batch) if isinstance(batch, Mapping) else model(batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    for path in linears:
        if not counts[path]:
            raise ValueError(f"no token reached {path}: give batches that the model uses all its layers for")
        if not sums[path].isfinite().all():
            raise ValueError(f"inputs of {path} are not finite; its moments would be NaN")
    return {path: sums[path] / counts[path] for path in linears}


def output_error(error: torch.Tensor, moments: torch.Tensor, weight: torch.Tensor) -> float:
    """The error of outputs relative to the outputs, both as root mean squares over the tokens of `moments`.

    Args:
        error: W - W', (out, in).
        moments: of the inputs, (in, in), see `input_moments`.
        weight: W, (out, in).
    """

    def power(w: torch.Tensor) -> float:
        return ((w.float() @ moments) * w.float()).sum(dtype=torch.float64).clamp(min=0).item()

    whole = power(weight)
    return math.sqrt(power(error) / whole) if whole else 0.0


@torch.no_grad()
def gptq(
    weight: torch.Tensor,
    moments: torch.Tensor,
    datatype: str | DataType = "nf4",
    block_size: int | None = None,
    damping: float = 0.01,
) -> QuantizedTensor:
    """Round a linear layer's weight column by column, each error made good by the columns not yet rounded.

    A column rounded with error e changes the outputs; of all changes of the columns after it, the one that makes up for
    that best is -e times a row of the inverse of the moments (the columns before it left out), which is a row of its
    Cholesky factor. A block's scale is found when its first column is reached, from the weights as they are then.

    Args:
        weight: (out, in), in a multiple of the block size: no block runs from one row into the next.
        moments: (in, in), see `input_moments`.
        datatype, block_size: as `quantize`; not data types with one number for the whole tensor (nvfp4).
        damping: this share of the moments' mean diagonal is added to it. Inputs that are never seen, or always go
            together, leave the moments without an inverse. The paper's 0.01 is for moments of a hundred thousand
            tokens; of a few thousand give ten or twenty times as much, or errors are pushed into noise.

    Returns:
        as `quantize`, without double quantization.

    Raises:
        ValueError: shapes that do not go together, blocks across rows, a data type that is out of reach, moments that
            are not finite, or without an inverse in spite of the damping.
    """
    datatype = get_datatype(datatype)
    size = check_options(datatype, block_size, False)
    if weight.ndim != 2:
        raise ValueError(f"a linear layer's weight has two dimensions, not {tuple(weight.shape)}")
    out, width = weight.shape
    if moments.shape != (width, width):
        raise ValueError(f"a weight of {width} inputs needs moments ({width}, {width}), not {tuple(moments.shape)}")
    if width % size:
        raise ValueError(f"{width} inputs are no multiple of {size}: a block would run from one row into the next")
    if datatype.scales == "e4m3":
        raise ValueError(f"{datatype.name} has one number for all of a tensor's scales; GPTQ finds scales one by one")
    inverse = _root_of_inverse(moments, damping)  # (in, in), upper
    w = weight.detach().float().clone()
    codes = torch.empty(out, width, dtype=torch.uint8, device=w.device)
    stored: dict[str, list[torch.Tensor]] = {}
    step = size * max(1, COLUMNS // size)
    for start in range(0, width, step):
        stop = min(width, start + step)
        errors = torch.zeros(out, stop - start, device=w.device)
        for column in range(start, stop):
            if column % size == 0:
                block = quantize(w[:, column : column + size].contiguous(), datatype, size)
                for name, tensor in block.stored.items():
                    stored.setdefault(name, []).append(tensor)
            codes[:, column], rounded = _round_column(w[:, column], block, datatype)
            error = (w[:, column] - rounded) / inverse[column, column]
            w[:, column + 1 : stop] -= error[:, None] * inverse[column, column + 1 : stop]
            errors[:, column - start] = error
        w[:, stop:] -= errors @ inverse[start:stop, stop:]
    tensors = {name: torch.stack(parts, 1).reshape(-1) for name, parts in stored.items()}
    packed = pack_codes(codes).view(-1)
    return QuantizedTensor(packed, tensors, weight.shape, weight.dtype, datatype.name, size)


def _root_of_inverse(moments: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper triangular U with U^T U = inverse of the damped moments. float32 (in, in)

    Row i of it, divided by its diagonal, is row i of the inverse of the moments of columns i and after.
    """
    damped = moments.double()
    diagonal = damped.diagonal()
    if not damped.isfinite().all():
        raise ValueError("the moments are not finite")
    mean = diagonal.mean()
    damped = damped + torch.diag(torch.full_like(diagonal, float(damping * mean) if mean > 0 else 1.0))
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True).float()
    except torch.linalg.LinAlgError as error:
        raise ValueError(f"the moments have no inverse with a damping of {damping}; give more") from error


def _round_column(w: torch.Tensor, block: QuantizedTensor, datatype: DataType) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 (out,) and decoded weights float32 (out,) of one column, with the scales of the block it is in."""
    scales = decode_scales(block.stored.get("scales", block.stored.get("scale_codes")), datatype)
    offsets = block.offsets
    x = w if offsets is None else w - offsets
    x = x / torch.where(scales == 0, 1.0, scales)
    rank = torch.bucketize(x, torch.tensor(datatype.thresholds, device=w.device))
    codes = torch.tensor(datatype.order, dtype=torch.uint8, device=w.device)[rank]
    rounded = datatype.table(w.device)[codes.int()] * scales
    return codes, rounded if offsets is None else rounded + offsets


@torch.no_grad()
def awq_scales(
    weights: Sequence[torch.Tensor],
    moments: torch.Tensor,
    datatype: str | DataType = "nf4",
    block_size: int | None = None,
    grid: int = 20,
    double_quant: bool = False,
) -> tuple[torch.Tensor, float]:
    """Factors for the columns of layers that share an input, so that rounding W s leaves W x best as it was.

    Factors are powers of the inputs' root mean squares, s = rms^e; the exponent e is tried from 0 (nothing changes) to
    1 (all inputs alike afterwards), and the one of least squared error of outputs is taken. (The paper takes the mean
    magnitude in place of the root mean square.)

    Args:
        weights: (out, in) each.
        moments: (in, in), of the input they share.
        grid: how many steps from 0 to 1.

    Returns:
        s, float32 (in,), with a geometric middle of 1 between its extremes; and e.

    Raises:
        ValueError: a grid of less than one step, or what `quantize` raises.
    """
    if not is_count(grid, least=1):
        raise ValueError(f"grid {grid!r} is not allowed; give a whole number of steps, 1 at least (usual: 20)")
    rms = moments.diagonal().clamp(min=0).sqrt()
    rms = rms.clamp(min=1e-4 * float(rms.max()) or 1.0)
    found = []
    for number in range(grid + 1):
        exponent = number / grid
        s = rms**exponent
        s = s / (s.max() * s.min()).sqrt()
        squares = 0.0
        for w in weights:
            scaled = quantize((w.float() * s).contiguous(), datatype, block_size, double_quant)
            error = w.float() - scaled.dequantize(torch.float32) / s
            squares += ((error @ moments) * error).sum(dtype=torch.float64).item()
        found.append((squares, exponent, s))
    _, exponent, s = min(found, key=lambda each: each[0])
    return s, exponent


@torch.no_grad()
def scale_inputs(
    model: nn.Module,
    moments: Mapping[str, torch.Tensor],
    datatype: str | DataType = "nf4",
    block_size: int | None = None,
    grid: int = 20,
    double_quant: bool = False,
) -> dict[str, float]:
    """AWQ for a model of the Llama family, before it is quantized, in place: the model computes the same as before.

    Three places of each layer: the norm before attention divides for q, k and v; the norm before the MLP for gate and
    up; the rows of up for down. (Before o stands v, whose heads are shared by several of o's: left out, as in AWQ.)

    Args:
        moments: of `input_moments` of this model.

    Returns:
        {path of the first layer of a place: the exponent that was chosen}.

    Raises:
        ValueError: a model of another layout.
    """
    places = _places(model)
    if not places:
        raise ValueError(
            "this model has no layers of the Llama family (input_layernorm, self_attn.q_proj, mlp.up_proj)"
        )
    chosen = {}
    for before, paths in places:
        linears = [model.get_submodule(path) for path in paths]
        s, chosen[paths[0]] = awq_scales(
            [linear.weight for linear in linears], moments[paths[0]], datatype, block_size, grid, double_quant
        )
        divided = model.get_submodule(before).weight
        shape = (-1, 1) if divided.ndim == 2 else (-1,)  # rows of a linear layer, or elements of a norm
        divided.div_(s.to(divided.dtype).view(shape))
        for linear in linears:
            linear.weight.mul_(s.to(linear.weight.dtype))
    return chosen


def _places(model: nn.Module) -> list[tuple[str, tuple[str, ...]]]:
    """(what can divide, the linear layers that take what it gives), three for each layer."""
    modules = dict(model.named_modules())
    found = []
    for path in modules:
        if f"{path}.input_layernorm" in modules and f"{path}.self_attn.q_proj" in modules:
            found.append((f"{path}.input_layernorm", tuple(f"{path}.self_attn.{n}_proj" for n in "qkv")))
        if f"{path}.post_attention_layernorm" in modules and f"{path}.mlp.up_proj" in modules:
            found.append((f"{path}.post_attention_layernorm", (f"{path}.mlp.gate_proj", f"{path}.mlp.up_proj")))
            found.append((f"{path}.mlp.up_proj", (f"{path}.mlp.down_proj",)))
    return found
