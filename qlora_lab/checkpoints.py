"""Checkpoints of a training run: everything needed to go on as if nothing had happened.

A checkpoint is a folder `checkpoint-000040` with three files: the trained parameters; the optimizer's state and the
random generators' states; and a JSON file with the step and the run's identity. It is written under another name,
flushed, and renamed, and renamed again before it is removed: a run killed at any moment leaves whole checkpoints only.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

from qlora_lab.files import load_tensors, save_tensors, write_json
from qlora_lab.lora import adapted_layers

_NAME = re.compile(r"checkpoint-(\d{6,})")
KEEP = 2  # newest checkpoints that stay on disk


@dataclass
class Checkpoint:
    """A moment of a run.

    settings: the run's identity, see `identity`. scaler: the state of the gradient scaler; empty but in float16.
    """

    step: int
    parameters: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    random: dict[str, torch.Tensor]
    settings: dict
    path: Path | None = None
    scaler: dict | None = None


def save_checkpoint(folder: str | os.PathLike, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into `folder` and remove all but the newest `KEEP`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"checkpoint-{checkpoint.step:06d}"
    temporary = _hidden(final)
    temporary.mkdir()
    save_tensors(temporary / "parameters.safetensors", checkpoint.parameters)
    save_tensors(
        temporary / "optimizer.safetensors", {**checkpoint.optimizer, **_prefixed("random/", checkpoint.random)}
    )
    state = {"step": checkpoint.step, "settings": checkpoint.settings, "scaler": checkpoint.scaler or {}}
    write_json(temporary / "state.json", state)
    if final.exists():  # the same step again: what it holds is what is about to be written
        _remove(final)
    os.rename(temporary, final)
    for _, old in _checkpoints(folder)[:-KEEP]:
        _remove(old)
    return final


def load_checkpoint(folder: str | os.PathLike) -> Checkpoint | None:
    """The newest checkpoint in `folder`, or None where there is none; leftovers of a killed run are removed.

    Raises:
        ValueError: the newest checkpoint is damaged (this package never leaves such a one).
    """
    path = newest(folder)
    if Path(folder).is_dir():
        for leftover in Path(folder).glob(".checkpoint-*.part"):
            shutil.rmtree(leftover, ignore_errors=True)
    if path is None:
        return None
    try:
        parameters, _ = load_tensors(path / "parameters.safetensors")
        tensors, _ = load_tensors(path / "optimizer.safetensors")
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        step, settings, scaler = state["step"], state["settings"], state.get("scaler", {})
        if path.name != f"checkpoint-{step:06d}":
            raise ValueError(f"it says step {step}")
        if "random/cpu" not in tensors:
            raise ValueError("optimizer.safetensors holds no random state")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to resume from the one before") from error
    random = {name.removeprefix("random/"): tensors.pop(name) for name in list(tensors) if name.startswith("random/")}
    return Checkpoint(step, parameters, tensors, random, settings, path, scaler)


def newest(folder: str | os.PathLike) -> Path | None:
    """The newest checkpoint's path, or None."""
    found = _checkpoints(Path(folder))
    return found[-1][1] if found else None


def identity(
    settings: Mapping, encoded: list[tuple[torch.Tensor, torch.Tensor]], model: nn.Module, trained: dict
) -> dict:
    """What a run and its resume must have in common, as names and values for JSON.

    Args:
        settings: of the training.
        encoded: the examples, as token ids and labels.
        model: its adapters' ranks and scaling count, and a sample of every frozen tensor.
        trained: the trained parameters by name.
    """
    examples, shapes, frozen = sha256(), sha256(), sha256()
    for ids, labels in encoded:
        examples.update(ids.numpy().tobytes() + labels.numpy().tobytes() + b"|")
    for name, parameter in trained.items():
        shapes.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}|".encode())
    for name, parameter in model.named_parameters():
        if name not in trained:  # the first few values tell models and data types apart; all of them take seconds
            values = parameter.detach().reshape(-1)[:64].contiguous().view(torch.uint8).cpu()
            frozen.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}|".encode() + values.numpy().tobytes())
    kinds = {
        f"rank {layer.rank}, alpha {layer.alpha:g}, dropout {layer.dropout:g}{', rsLoRA' * layer.use_rslora}"
        f", products in {str(getattr(layer, 'compute_dtype', None) or 'the model’s dtype').removeprefix('torch.')}"
        for _, layer in adapted_layers(model)
        if layer.rank
    }
    return {
        **settings,
        "adapters": "; ".join(sorted(kinds)) or "none",
        "the examples": examples.hexdigest()[:16],
        "the trained parameters": shapes.hexdigest()[:16],
        "the base model or its data type": frozen.hexdigest()[:16],
    }


def differences(before: Mapping, now: Mapping) -> list[str]:
    """How two identities differ, in words; an empty list if they do not."""
    said = []
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name):
            digest = name.startswith("the ")
            said.append(f"{name} changed" if digest else f"{name} was {before.get(name)}, now {now.get(name)}")
    return said


@contextlib.contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that training draws from, and give them back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


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
    if not folder.is_dir():
        return []
    return sorted((int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def _hidden(path: Path) -> Path:
    """A name beside `path` that no checkpoint has, and that nothing has now."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(hidden, ignore_errors=True)
    return hidden


def _remove(path: Path) -> None:
    """Remove a checkpoint; killed on the way, it leaves none that looks whole."""
    hidden = path.with_name(f".{path.name}.old.part")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _prefixed(prefix: str, tensors: dict) -> dict:
    return {prefix + name: tensor for name, tensor in tensors.items()}
