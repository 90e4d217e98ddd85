"""Checkpoints of a training run: everything needed to go on as if nothing had happened.

A checkpoint is a folder `checkpoint-000040` with three files: the trained parameters and the optimizer's state as
safetensors, and a JSON file with the step, the settings and the random generators' states. It is written under another
name, flushed, and renamed: a run killed at any moment leaves whole checkpoints only.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from qlora_lab.files import load_tensors, save_tensors, write_json

_NAME = re.compile(r"checkpoint-(\d{6,})")
KEEP = 2  # newest checkpoints that stay on disk


@dataclass
class Checkpoint:
    step: int
    parameters: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    random: dict[str, torch.Tensor]
    settings: dict
    path: Path | None = None


def save_checkpoint(folder: str | os.PathLike, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into `folder` and remove all but the newest `KEEP`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"checkpoint-{checkpoint.step:06d}"
    temporary = folder / f".{final.name}.{os.getpid()}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_tensors(temporary / "parameters.safetensors", checkpoint.parameters)
    save_tensors(
        temporary / "optimizer.safetensors", {**checkpoint.optimizer, **_prefixed("random/", checkpoint.random)}
    )
    write_json(temporary / "state.json", {"step": checkpoint.step, "settings": checkpoint.settings})
    if final.exists():  # the same step again, after a resume: what it holds is what is about to be written
        shutil.rmtree(final)
    os.rename(temporary, final)
    for _, old in _checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(folder: str | os.PathLike) -> Checkpoint | None:
    """The newest checkpoint in `folder`, or None where there is none; leftovers of a killed run are removed.

    Raises:
        ValueError: the newest checkpoint is damaged (this package never leaves such a one).
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    for leftover in folder.glob(".checkpoint-*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    found = _checkpoints(folder)
    if not found:
        return None
    step, path = found[-1]
    parameters, _ = load_tensors(path / "parameters.safetensors")
    optimizer, _ = load_tensors(path / "optimizer.safetensors")
    random = {
        name.removeprefix("random/"): optimizer.pop(name) for name in list(optimizer) if name.startswith("random/")
    }
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        settings = state["settings"]
        if state["step"] != step:
            raise ValueError(f"it says step {state['step']}")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to resume from the one before") from error
    return Checkpoint(step, parameters, optimizer, random, settings, path)


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the random generators that training uses, as uint8 tensors."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimizer's state as named tensors: "3/exp_avg" belongs to its fourth parameter."""
    state = optimizer.state_dict()["state"]
    return {f"{index}/{name}": torch.as_tensor(value) for index, s in state.items() for name, value in s.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Undo `optimizer_tensors`; learning rates and the like stay as `optimizer` has them."""
    state: dict[int, dict] = {}
    for key, tensor in tensors.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(found)


def _prefixed(prefix: str, tensors: dict) -> dict:
    return {prefix + name: tensor for name, tensor in tensors.items()}
