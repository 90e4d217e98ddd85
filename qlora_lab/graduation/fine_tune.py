"""Fine-tuning by the reader's pieces, and by nothing else: where they meet.

What stands here puts the pieces together and holds none of the package's arithmetic. PyTorch multiplies matrices inside
of the pieces, transformers' model is what the layers are put into, and the examples are the workbook's.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn

from qlora_lab.quantization.datatypes import dynamic_map
from qlora_lab.tasks import Example
from qlora_lab.tasks.batches import Batches
from qlora_lab.training.settings import Settings

BLOCK, TARGETS = 64, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Recipe:
    """What is to be done: steps of `accumulation` parts of `batch_size` examples; the rate's peak; rank and alpha of
    every adapter; the seed of the order and of A."""

    steps: int = 30
    batch_size: int = 6
    accumulation: int = 2
    peak: float = 3e-3
    rank: int = 16
    alpha: float = 32
    seed: int = 0

    @property
    def settings(self) -> dict[str, float]:
        """The same for the package's `finetune`, which else would clip gradients; the pieces do not."""
        return {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "accumulation": self.accumulation,
            "learning_rate": self.peak,
            "seed": self.seed,
            "max_grad_norm": 1e9,
        }


class PiecesLinear(nn.Module):
    """A linear layer whose weight is kept in 4 bits by the pieces, with an adapter beside it.

    Attributes:
        packed, scale_codes: uint8. scale_absmax, offset: float32. a (r, in), b (out, r): float32, trained.
    """

    def __init__(self, linear: nn.Linear, pieces: SimpleNamespace, recipe: Recipe, generator: torch.Generator):
        super().__init__()
        self.pieces, self.shape, self.s = pieces, linear.weight.shape, recipe.alpha / recipe.rank
        self.decoded = None  # while it answers, see `answering`
        weight = linear.weight.detach().float()
        device = weight.device
        self.levels = pieces.normal_float(4).to(device)
        self.scale_levels = torch.tensor(dynamic_map(), device=device)
        scales = pieces.block_absmax(weight, BLOCK)
        x = weight.reshape(-1) * (1 / scales.clamp(min=1e-38)).repeat_interleave(BLOCK)[: weight.numel()]
        self.packed = pieces.pack_nibbles(pieces.nearest_code(x, self.levels))
        self.scale_codes, self.scale_absmax, self.offset = pieces.double_quantize(scales, self.scale_levels)
        bound = 1 / math.sqrt(self.shape[1])
        a = torch.empty(recipe.rank, self.shape[1]).uniform_(-bound, bound, generator=generator)
        self.a = nn.Parameter(a.to(device))
        self.b = nn.Parameter(torch.zeros(self.shape[0], recipe.rank, device=device))

    @torch.no_grad()
    def decode(self) -> torch.Tensor:
        """The weight, float32 (out, in), decoded anew."""
        if self.decoded is not None:
            return self.decoded
        scales = self.pieces.decode_scales(self.scale_codes, self.scale_absmax, self.offset, self.scale_levels)
        n = self.shape[0] * self.shape[1]
        return self.pieces.dequantize_packed(self.packed, scales, self.levels, BLOCK, n).view(self.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        return ForwardBackward.apply(flat, self.a, self.b, self).view(*x.shape[:-1], -1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain layer of base and adapter together."""
        linear = nn.Linear(self.shape[1], self.shape[0], bias=False, device=self.a.device)
        linear.weight.copy_(self.pieces.merge_adapter(self.decode(), self.a, self.b, self.s * len(self.a)))
        return linear


class ForwardBackward(torch.autograd.Function):
    """The reader's forward and backward; the weight is decoded in both, and kept in neither."""

    @staticmethod
    def forward(ctx, x, a, b, layer: PiecesLinear):
        ctx.save_for_backward(x, a, b)
        ctx.layer = layer
        return layer.pieces.qlora_forward(x, layer.decode(), a, b, layer.s)

    @staticmethod
    def backward(ctx, gradient):
        x, a, b = ctx.saved_tensors
        dx, da, db = ctx.layer.pieces.qlora_backward(gradient, x, ctx.layer.decode(), a, b, ctx.layer.s)
        return dx, da, db, None


def build(model: nn.Module, pieces: SimpleNamespace, recipe: Recipe) -> dict[str, PiecesLinear]:
    """Put the reader's layers in the places of the targets; path -> layer."""
    linears = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    generator, layers = torch.Generator().manual_seed(recipe.seed), {}
    model.requires_grad_(False)
    for path in pieces.find_targets(list(linears), list(TARGETS)):
        layers[path] = PiecesLinear(linears[path], pieces, recipe, generator)
        pieces.replace_module(model, path, layers[path])
    return layers


def fine_tune(
    model: nn.Module,
    layers: dict[str, PiecesLinear],
    tokenizer,
    examples: Sequence[Example],
    pieces: SimpleNamespace,
    recipe: Recipe,
    progress: Callable[[int, float], None] = lambda parts, loss: None,
) -> list[float]:
    """Train the adapters with the reader's loop; the loss of each step, in nats per learned token.

    Args:
        progress: called after each part of a batch with (parts done, its loss).
    """
    parameters = [parameter for layer in layers.values() for parameter in (layer.a, layer.b)]
    device, done = parameters[0].device, 0

    def gradients_of(values: list[torch.Tensor], part: tuple) -> tuple[float, int, list[torch.Tensor]]:
        nonlocal done
        ids, mask, prompts, lengths = (tensor.to(device) for tensor in part)
        _set(parameters, values)
        labels = pieces.build_labels(ids, prompts, lengths)
        loss = pieces.supervised_loss(model(input_ids=ids, attention_mask=mask).logits, labels)
        gradients = torch.autograd.grad(loss, parameters)
        done += 1
        progress(done, loss.item())
        return loss.item(), int((labels[:, 1:] != -100).sum()), list(gradients)

    def rate_at(step: int) -> float:
        return pieces.learning_rate(step, recipe.steps, recipe.peak, Settings.of(**recipe.settings).warmup_steps)

    def update(p, g, m, v, step, lr):
        return pieces.adamw_step(p, g, m, v, step, lr, 0.9, 0.999, 1e-8, 0.0)

    model.eval()  # there is no dropout to switch on
    values = [parameter.detach().clone() for parameter in parameters]
    batches = list(step_batches(tokenizer, examples, recipe))
    values, losses = pieces.train(values, batches, gradients_of, rate_at, pieces.accumulate, update)
    _set(parameters, values)
    return [float(loss) for loss in losses]


def _set(parameters: list[nn.Parameter], values: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def step_batches(tokenizer, examples: Sequence[Example], recipe: Recipe) -> Iterator[list[tuple[torch.Tensor, ...]]]:
    """For each step its parts: ids int64 (b, t) and mask, padded on the right; lengths of prompts, and in all, (b,).

    The order is that of `finetune`, so that the losses can be compared step by step.
    """
    encoded, prompt_length = [], {}
    for example in examples:
        texts = example.prompt, example.target
        prompt, target = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        ids = torch.tensor(prompt + target)
        encoded.append((ids, ids))
        prompt_length[tuple(prompt + target)] = len(prompt)
    batches = Batches(encoded, recipe.batch_size, tokenizer.pad_token_id, recipe.seed)
    for step in range(recipe.steps):
        parts = []
        for batch in (batches[step * recipe.accumulation + part] for part in range(recipe.accumulation)):
            ids, mask = batch.input_ids, batch.attention_mask
            lengths = mask.sum(1)
            rows = [tuple(row[:length].tolist()) for row, length in zip(ids, lengths, strict=True)]
            parts.append((ids, mask, torch.tensor([prompt_length[row] for row in rows]), lengths))
        yield parts


@contextlib.contextmanager
def answering(layers: dict[str, PiecesLinear]) -> Iterator[None]:
    """Inside, weights stay decoded: an answer is one short pass per token, and each would decode all of them."""
    try:
        for layer in layers.values():
            layer.decoded = layer.decode()
        yield
    finally:
        for layer in layers.values():
            layer.decoded = None
