"""A paged parameter's state, as `torch.optim.AdamW` would show it."""

import weakref
from collections.abc import Iterator, Mapping

import torch

from qlora_lab.paging.layout import Record


class Moments(Mapping):
    """A parameter's state as `torch.optim.AdamW` keeps it; read from its pages, as a copy, when asked for."""

    def __init__(self, optimizer, record: Record):
        self._optimizer, self.record = weakref.ref(optimizer), record

    def __getitem__(self, name: str) -> torch.Tensor:
        if name == "step":
            return torch.tensor(float(self.record.step))
        if name not in ("exp_avg", "exp_avg_sq"):
            raise KeyError(name)
        optimizer = self._optimizer()
        return optimizer._layout.gather([self.record], optimizer._store)[self.record][name]

    def __iter__(self) -> Iterator[str]:
        return iter(("step", "exp_avg", "exp_avg_sq"))

    def __len__(self) -> int:
        return 3


def check_state(index: int, p: torch.Tensor, state: Mapping | None) -> None:
    if state is None:
        return
    missing = [name for name in ("step", "exp_avg", "exp_avg_sq") if name not in state]
    if missing:
        raise ValueError(f"the state of parameter {index} lacks {', '.join(missing)}; it is no state of AdamW")
    for name in ("exp_avg", "exp_avg_sq"):
        if state[name].shape != p.shape:
            raise ValueError(
                f"{name} of parameter {index} has the shape {tuple(state[name].shape)}, the parameter {tuple(p.shape)}"
            )
