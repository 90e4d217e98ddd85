"""Which learning rate, where none is given: one that fits the size of the base.

What trains 135 million parameters well ruins seven billion. The default falls along a power of the number of
parameters, from 3e-3 at the default model (the rate of the recorded run, data/recorded/finetune-cpu.json) to the 2e-4
with which QLoRA trained 7 and 13 billion (Dettmers et al. 2023, table 9), and not below the 1e-4 of its 33 and 65
billion. `rate_test` finds out about the model and the examples at hand.
"""

import math

from torch import nn

from qlora_lab.lora import adapted_layers, count_parameters

SMALL = 135e6, 3e-3  # parameters, rate
LARGE = 7e9, 2e-4
LEAST = 1e-4


def base_size(model: nn.Module) -> int:
    """How many parameters the model has without its adapters."""
    adapters = (p.numel() for _, layer in adapted_layers(model) if layer.rank for p in (layer.lora_A, layer.lora_B))
    return count_parameters(model).total - sum(adapters)


def default_rate(model: nn.Module | int) -> float:
    """The peak learning rate of adapters on a base of this size (a model, whose adapters do not
    count, or its number of parameters).

    3e-3 up to 135 million parameters, 2e-4 at 7 billion, on a straight line between them where both are logarithms; two
    digits are enough of it, and 1e-4 is the least.
    """
    count = base_size(model) if isinstance(model, nn.Module) else model
    if count <= SMALL[0]:
        return SMALL[1]
    slope = math.log(LARGE[1] / SMALL[1]) / math.log(LARGE[0] / SMALL[0])
    return max(LEAST, float(f"{SMALL[1] * (count / SMALL[0]) ** slope:.1e}"))


def why_rate(count: int) -> str:
    """Why `default_rate` is what it is for a base of so many parameters, in words."""
    if count <= SMALL[0]:
        return "the default up to 135 million parameters; it falls with size, to 2e-4 at 7 billion"
    size = f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.0f} million"
    return (
        f"the default for {size} parameters; it falls from 3e-3 at 135 million to the QLoRA paper's 2e-4 at 7 billion"
    )
