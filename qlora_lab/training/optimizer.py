"""The optimizer of a run: AdamW, with its state in memory or in pages.

`PagedAdamW` computes the same bits wherever its pages lie, so paging is no setting of a run: one may stop with it and
go on without. 8-bit state is a setting, because it changes the result.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from qlora_lab.machine import processes
from qlora_lab.paging.paged_adamw import PagedAdamW
from qlora_lab.training.settings import Settings

PAGING = ("device_budget", "host_budget", "directory", "page_size")


def checked_paging(paging: Mapping | None, out: Path | None) -> dict | None:
    """`paging`, with the run's folder as directory where it names none. `PagedAdamW` checks the other values.

    Raises:
        ValueError: a name that is none of `PAGING`, or a directory that is not there.
    """
    if paging is None:
        return None
    unknown = [name for name in paging if name not in PAGING]
    if unknown:
        raise ValueError(f"paging has no {unknown[0]!r}; it may have {', '.join(PAGING)}")
    directory = paging.get("directory")
    if directory is not None and not Path(directory).is_dir():
        raise ValueError(f"the folder {directory} for optimizer pages does not exist; create it first")
    return {**paging, "directory": out if directory is None else directory}


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], settings: Settings, paging: dict | None
) -> torch.optim.Optimizer:
    """AdamW as `settings` want it; `paging` (see `checked_paging`) or 8-bit state make it a `PagedAdamW`.

    Raises: as `PagedAdamW`.
    """
    shared = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if paging is None and settings.state_bits == 32:
        return torch.optim.AdamW(parameters, **shared)
    return PagedAdamW(parameters, **shared, **(paging or {}), state_bits=settings.state_bits)


def close_pages(optimizer: torch.optim.Optimizer) -> None:
    """Remove the page file, where there is one."""
    if isinstance(optimizer, PagedAdamW):
        optimizer.close()


def device_bytes(parameters: Iterable[torch.nn.Parameter], settings: Settings, paging: dict | None) -> int:
    """Bytes of the moments that stay beside the model; with the budget "auto", which gives way, none are certain."""
    state = sum(2 * p.numel() * p.element_size() for p in map(processes.local, parameters)) * settings.state_bits // 32
    budget = (paging or {}).get("device_budget")
    return state if budget is None else 0 if budget == "auto" else min(state, budget)
