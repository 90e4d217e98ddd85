"""Whether a model keeps packed examples apart: asked of the model itself, before anything is trained.

A state-space or convolution layer carries what it has read into the next example, whatever the positions say; a model
without positions counts on; some attention masks know nothing of blocks. None of that raises an error: the loss is a
little lower, since the next example is seen through the one before, and what was learned is not what was meant.
"""

import inspect

import torch
from torch import nn

from qlora_lab.machine.generators import kept_random
from qlora_lab.models.inputs import input_device, known_tokens

LENGTHS = 6, 9  # tokens of the two examples that are tried


def check_packing(model: nn.Module) -> None:
    """Raise ValueError where the answer to a packed example is not the one it gets alone."""
    name = type(model).__name__
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        raise ValueError(f"{_cannot(name)}: it takes no position_ids, from which it would know where examples begin")
    first, other, second = _trial(model)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), kept_random(second.device):
            alone = _logits(model, [second], [second])
            packed = _logits(model, [first, second], [other, second])
    except (TypeError, RuntimeError, ValueError, IndexError, NotImplementedError) as error:
        raise ValueError(f"{_cannot(name)}: {str(error).splitlines()[0][:200]}") from error
    finally:
        model.train(training)
    scale = alone.abs().max().item()
    tolerance = scale * (1e-4 if alone.dtype == torch.float32 else 2e-2)
    packed = packed[:, len(first) :].float()
    seen, moved = (packed[0] - packed[1]).abs().max().item(), (packed - alone.float()).abs().max().item()
    if not seen <= tolerance:
        raise ValueError(
            f"{_cannot(name)}: the same example gets other logits (by up to {seen:.2g}) after another one, so "
            f"{_who(model)} lets examples see each other"
        )
    if not moved <= tolerance:
        raise ValueError(f"{_cannot(name)}: an example gets other logits (by up to {moved:.2g}) in a row than alone")


def _cannot(name: str) -> str:
    return f"packing=True (--packing) is not for a {name}"


def _trial(model: nn.Module) -> list[torch.Tensor]:
    """Two examples that may come first, and one that follows."""
    generator = torch.Generator().manual_seed(0)
    most = min(known_tokens(model) or 100, 30_000)
    device = input_device(model) or next(model.parameters()).device
    first, second = LENGTHS
    return [torch.randint(most, (n,), generator=generator).to(device) for n in (first, first, second)]


def _logits(model: nn.Module, *rows: list[torch.Tensor]) -> torch.Tensor:
    ids = torch.stack([torch.cat(row) for row in rows])
    positions = torch.stack([torch.cat([torch.arange(len(part), device=part.device) for part in row]) for row in rows])
    return model(input_ids=ids, attention_mask=None, position_ids=positions, use_cache=False).logits


def _who(model: nn.Module) -> str:
    """The first layer whose name says that it carries a state along, or the model's attention."""
    words = ("mamba", "ssm", "conv", "recurrent", "rwkv", "deltanet", "delta_net", "mixer", "lstm")
    for path, module in model.named_modules():
        if path and any(word in type(module).__name__.lower() for word in words) and len(list(module.parameters())):
            return f"its {type(module).__name__} ({path})"
    return "its attention"
