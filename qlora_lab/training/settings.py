"""What decides a training run's result beside the model and the examples, and the learning-rate schedule."""

import math
from dataclasses import dataclass, fields

from qlora_lab.machine.arguments import check_choice, check_count, check_positive, is_count, is_number
from qlora_lab.models.gradient_checkpointing import CHECKPOINTING


@dataclass(frozen=True)
class Settings:
    """What decides a run's result, beside the model and the examples. A resumed run must have the same.

    steps: optimizer steps. batch_size: examples per forward. accumulation: forwards per step. learning_rate: the peak;
    it rises linearly over the first `warmup` share of the steps and falls to a tenth along a cosine. max_grad_norm: the
    gradient's 2-norm is scaled down to it. seed: decides order and dropout. checkpointing: "reentrant" or
    "non-reentrant" computes activations again in the backward pass instead of keeping them: slower, the same gradients.
    state_bits: of the optimizer's two moments: 32 is AdamW; 8 keeps them block-wise in 8 bits (see `PagedAdamW`).
    validate_every: steps between two measurements on the validation examples, if there are any; None: a tenth of the
    steps. patience: so many of them in a row without a new lowest loss end the run; None: it goes to its last step.
    max_length: most tokens of an example; see `tasks.encode_all` for what becomes of longer ones. packing: several
    examples in a row, as many as fit into `max_length` (None: the longest example), which do not see each other.
    mix_share: of the learned tokens, where general text is mixed in.

    Raises:
        ValueError: a value that makes no sense; the message says what would.
    """

    steps: int = 190
    batch_size: int = 12
    accumulation: int = 1
    learning_rate: float = 3e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    checkpointing: str = "none"
    state_bits: int = 32
    validate_every: int | None = None
    patience: int | None = None
    max_length: int | None = None
    packing: bool = False
    mix_share: float = 0.1

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulation"):
            check_count(name, getattr(self, name))
        for name, least in (("validate_every", 1), ("patience", 1), ("max_length", 2)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least)
        if not isinstance(self.packing, bool):
            raise ValueError(f"packing {self.packing!r} is neither True nor False")
        if not (is_number(self.mix_share) and 0 < self.mix_share < 1):
            raise ValueError(f"mix_share {self.mix_share!r} is not a share of the learned tokens, above 0 and below 1")
        for name in ("learning_rate", "max_grad_norm"):
            check_positive(name, getattr(self, name))
        if not (is_number(self.warmup) and 0 <= self.warmup < 1):
            raise ValueError(f"warmup {self.warmup!r} is not a share of the steps, 0 to below 1")
        if not (is_number(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay {self.weight_decay!r} is not allowed; give 0 or a positive number")
        if not is_count(self.seed, least=0) or self.seed >= 2**32:
            raise ValueError(f"seed {self.seed!r} is not allowed; give a whole number from 0 to {2**32 - 1}")
        check_choice("checkpointing", self.checkpointing, CHECKPOINTING)
        if self.state_bits not in (8, 32):
            raise ValueError(f"state_bits {self.state_bits!r} is not allowed; choose 32 or 8")

    @classmethod
    def of(cls, **values) -> "Settings":
        """Settings from keyword arguments; a name that is none of them is a ValueError that lists them."""
        names = [f.name for f in fields(cls)]
        unknown = [name for name in values if name not in names]
        if unknown:
            raise ValueError(f"there is no setting {unknown[0]!r}; the settings are {', '.join(names)}")
        return cls(**values)

    @property
    def warmup_steps(self) -> int:
        """The step at which the learning rate is at its peak, 1 at least."""
        return max(1, round(self.warmup * self.steps))

    def rate(self, step: int) -> float:
        """The learning rate of step 1 .. steps: the peak at the end of the warm-up, or at step 1 without one."""
        peak = self.warmup_steps
        if step <= peak:
            return self.learning_rate * step / peak
        progress = (step - peak) / (self.steps - peak)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))
