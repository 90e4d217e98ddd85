"""Checkpoints of a training run: everything needed to go on as if nothing had happened.

A checkpoint is a folder `checkpoint-000040` with three files: the trained parameters; the optimizer's state and the
random generators' states; and a JSON file with the step and the run's identity. It is written under another name,
flushed, and renamed, and renamed again before it is removed: a run killed at any moment leaves whole checkpoints only.

Several processes write theirs through torch's distributed checkpoint, each its own part. Such a checkpoint can be read
by any number of processes, one included, and they read what one process wrote.
"""

import contextlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import distribute_tensor

from qlora_lab.lora import adapted_layers
from qlora_lab.machine import processes
from qlora_lab.machine.files import load_tensors, save_tensors, write_json

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
    """Write a checkpoint into `folder` and remove all but the newest `KEEP`.

    Several connected processes call it together, and each writes the parts of the tensors that it holds.
    """
    folder = Path(folder)
    final = folder / f"checkpoint-{checkpoint.step:06d}"
    temporary = final.with_name(f".{final.name}.new.part")

    def prepare() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def finish() -> None:
        state = {"step": checkpoint.step, "settings": checkpoint.settings, "scaler": checkpoint.scaler or {}}
        write_json(temporary / "state.json", state)
        if final.exists():  # the same step again: what it holds is what is about to be written
            _remove(final)
        os.rename(temporary, final)
        for _, old in _checkpoints(folder)[:-KEEP]:
            _remove(old)

    processes.from_main(prepare)
    if processes.count() < 2:
        _save_whole(temporary, checkpoint)
    else:
        _save_parts(temporary, checkpoint)
    processes.from_main(finish)
    return final


def _save_whole(folder: Path, checkpoint: Checkpoint) -> None:
    save_tensors(folder / "parameters.safetensors", checkpoint.parameters)
    save_tensors(folder / "optimizer.safetensors", {**checkpoint.optimizer, **_prefixed("random/", checkpoint.random)})


def _save_parts(folder: Path, checkpoint: Checkpoint) -> None:
    """This process's part of every tensor; returns when all processes have written theirs."""
    import torch.distributed.checkpoint as dcp  # takes a second, which a single process need not wait

    tensors = {
        **_prefixed("parameters/", checkpoint.parameters),
        **_prefixed("optimizer/", checkpoint.optimizer),
        **_prefixed("random/", checkpoint.random),
    }
    dcp.save(tensors, checkpoint_id=folder)


def load_checkpoint(folder: str | os.PathLike, parameters: Mapping | None = None) -> Checkpoint | None:
    """The newest checkpoint in `folder`, or None where there is none; leftovers of a killed run are removed.

    Args:
        parameters: the trained parameters by name, in the optimizer's order. Where they are sharded, so is what a
            checkpoint of several processes is read into, and each process reads its parts only.

    Raises:
        ValueError: the newest checkpoint is damaged (this package never leaves such a one).
    """
    path = processes.from_main(lambda: _tidied(Path(folder)))
    if path is None:
        return None
    try:
        if (path / ".metadata").exists():
            loaded, tensors = _load_parts(path, parameters or {})
        else:
            loaded, _ = load_tensors(path / "parameters.safetensors")
            tensors, _ = load_tensors(path / "optimizer.safetensors")
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        step, settings, scaler = state["step"], state["settings"], state.get("scaler", {})
        if path.name != f"checkpoint-{step:06d}":
            raise ValueError(f"it says step {step}")
        if "random/cpu" not in tensors:
            raise ValueError("it holds no random state")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to resume from the one before") from error
    random = {name.removeprefix("random/"): tensors.pop(name) for name in list(tensors) if name.startswith("random/")}
    return Checkpoint(step, loaded, tensors, random, settings, path, scaler)


def _tidied(folder: Path) -> Path | None:
    for leftover in folder.glob(".checkpoint-*.part") if folder.is_dir() else ():
        shutil.rmtree(leftover, ignore_errors=True)
    return newest(folder)


def _load_parts(path: Path, parameters: Mapping) -> tuple[dict, dict]:
    """The parameters, and all other tensors, of a checkpoint that several processes wrote; cut as `parameters` are."""
    import torch.distributed.checkpoint as dcp

    order = list(parameters.values())
    found = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {}
    for key, metadata in found.items():
        kind, _, name = key.partition("/")
        like = parameters.get(name)
        if kind == "optimizer" and (index := int(name.split("/")[0])) < len(order):
            like = order[index]
        if like is None or like.shape != metadata.size:
            tensors[key] = torch.empty(metadata.size, dtype=metadata.properties.dtype)
        else:
            tensors[key] = torch.empty_like(like, dtype=metadata.properties.dtype, requires_grad=False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process reads: as meant
            dcp.load(tensors, checkpoint_id=path, no_dist=processes.count() < 2)
    except dcp.api.CheckpointException as error:
        raise ValueError(f"not all of it can be read: {error}") from error
    loaded = {key.removeprefix("parameters/"): tensors.pop(key) for key in list(tensors) if key.startswith("param")}
    return loaded, {key.removeprefix("optimizer/"): tensor for key, tensor in tensors.items()}


def cut_alike(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`tensor`, or this process's part of it where `like` is sharded and it is not yet."""
    if not processes.is_part(like) or processes.is_part(tensor) or tensor.shape != like.shape:
        return tensor
    mesh, placements = like.device_mesh, like.placements
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)


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
            values = processes.whole(parameter.detach()).reshape(-1)[:64].contiguous().view(torch.uint8).cpu()
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


def seed_step(seed: int, step: int, rank: int) -> None:
    """Random numbers of one process in one step of several processes' run: they differ, and need not be saved."""
    torch.manual_seed((seed * 1_000_003 + step) * 65_537 + rank)


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
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = cut_alike(tensor, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    return sorted((int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def _remove(path: Path) -> None:
    """Remove a checkpoint; killed on the way, it leaves none that looks whole."""
    hidden = path.with_name(f".{path.name}.old.part")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _prefixed(prefix: str, tensors: dict) -> dict:
    return {prefix + name: tensor for name, tensor in tensors.items()}
