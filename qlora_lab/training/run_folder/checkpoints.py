"""Checkpoints of a training run: everything needed to go on as if nothing had happened.

A checkpoint is a folder `checkpoint-000040` with three files: the trained parameters; the optimizer's state and the
random generators' states; and a JSON file with the step, the run's identity, and the SHA-256 of each file and of what
else it says. It is written under another name, flushed, and renamed, and renamed again before it is removed: a run
killed at any moment leaves whole checkpoints only.

It is read whole, and compared with these sums and with the model and the optimizer that it is for, before anything is
restored: a flipped bit or a tensor of another shape would train on, as something else, without a word.

Several processes write theirs in parts (see `parts`). Such a checkpoint can be read by any number of processes, one
included, and they read what one process wrote.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import distribute_tensor

from qlora_lab.lora import adapted_layers
from qlora_lab.machine import processes
from qlora_lab.machine.files import load_tensors, save_tensors, sha256_of, told_writing, write_json
from qlora_lab.machine.generators import kept_random, seed_generators
from qlora_lab.models.wrappers import plain_parameters
from qlora_lab.training.run_folder.parts import EARLIER, load_parts, save_parts

_NAME = re.compile(r"checkpoint-(\d{6,})")
KEEP = 2  # newest checkpoints that stay on disk
STATE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Checkpoint:
    """A moment of a run.

    settings: the run's identity, see `identity`. scaler: the state of the gradient scaler; empty but in float16.
    validations: what was measured on validation examples so far, a dictionary each. best: the parameters of the lowest
    of them; empty where there is none, or where they are `parameters`.
    """

    step: int
    parameters: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    random: dict[str, torch.Tensor]
    settings: dict
    path: Path | None = None
    scaler: dict | None = None
    validations: list[dict] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)


def save_checkpoint(folder: str | os.PathLike, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into `folder` and remove all but the newest `KEEP`.

    Several connected processes call it together, and each writes the parts of the tensors that it holds.
    """
    folder = Path(folder)
    final = folder / f"checkpoint-{checkpoint.step:06d}"
    temporary = final.with_name(f".{final.name}.new.part")

    def prepare() -> None:
        _clear(temporary)
        temporary.mkdir(parents=True)

    def finish() -> None:
        state = {"step": checkpoint.step, "settings": checkpoint.settings, "scaler": checkpoint.scaler or {}}
        if checkpoint.validations:
            state["validations"] = checkpoint.validations
        state["files"] = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / STATE, {**state, "sha256": _sum(state)})
        hidden = _hide(final) if final.exists() else None  # the same step again
        try:
            os.rename(temporary, final)
        except BaseException:
            if hidden is not None:
                os.rename(hidden, final)
            raise
        if hidden is not None:
            _clear(hidden)
        for _, old in _checkpoints(folder)[:-KEEP]:
            _clear(_hide(old))

    with told_writing(final, "the checkpoints before it are whole; make room, and go on with resume=True (--resume)"):
        try:
            processes.from_main(prepare)
            if processes.count() < 2:
                save_tensors(temporary / "parameters.safetensors", checkpoint.parameters)
                rest = {**checkpoint.optimizer, **_prefixed("random/", checkpoint.random)}
                save_tensors(temporary / "optimizer.safetensors", rest | _prefixed("best/", checkpoint.best))
            else:
                save_parts(temporary, _named(checkpoint))
            processes.from_main(finish)
        except Exception:
            processes.from_main(lambda: _clear(temporary))  # a disk that is full has no room for half a checkpoint
            raise
    return final


def _named(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {
        **_prefixed("parameters/", checkpoint.parameters),
        **_prefixed("optimizer/", checkpoint.optimizer),
        **_prefixed("random/", checkpoint.random),
        **_prefixed("best/", checkpoint.best),
    }


def _sum(state: Mapping) -> str:
    """SHA-256 of what a state file says beside it."""
    return sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def load_checkpoint(folder: str | os.PathLike, parameters: Mapping | None = None) -> Checkpoint | None:
    """The newest checkpoint in `folder`, or None where there is none; leftovers of a killed run are removed.

    Args:
        parameters: the trained parameters by name, in the optimizer's order. Where they are sharded, so is what a
            checkpoint of several processes is read into, and each process reads its parts only.

    Raises:
        ValueError: the newest checkpoint is damaged, or is not one of these parameters (this package never leaves such
            a one); the message names what is wrong, and the newest one before it that is whole.
    """
    folder = Path(folder)
    path, problem = processes.from_main(lambda: _tidied(folder))
    if path is None:
        return None
    found = None
    if problem is None:
        try:
            found = _read(path, parameters)
        except _DAMAGE as error:
            problem = str(error)
    everyones = [p for p in processes.gathered(problem) if p is not None]
    if everyones:
        raise ValueError(f"{path} is damaged ({everyones[0]}); {_way_out(folder, path, parameters)}")
    return found


_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)


def _tidied(folder: Path) -> tuple[Path | None, str | None]:
    """The newest checkpoint, and what is wrong with its files as such; leftovers of a killed run are removed."""
    for leftover in folder.glob(".checkpoint-*.part") if folder.is_dir() else ():
        _clear(leftover)
    path = newest(folder)
    try:
        return path, None if path is None else _verify_files(path)
    except _DAMAGE as error:
        return path, str(error)


def _way_out(folder: Path, damaged: Path, parameters: Mapping | None) -> str:
    """What to do instead of resuming from a damaged checkpoint."""
    for _, path in reversed(_checkpoints(folder)):
        if path == damaged:
            continue
        with contextlib.suppress(*_DAMAGE):
            if processes.count() < 2:  # of several, each would have to read it
                _verify_files(path)
                _read(path, parameters)
            return f"delete it to resume from {path.name}, the one before"
    return "there is no whole one before it: delete it to begin anew"


def _state(path: Path) -> dict:
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    if not isinstance(state, dict) or not isinstance(state.get("settings"), dict):
        raise ValueError(f"{STATE} does not say how the run was begun")
    if path.name != f"checkpoint-{state.get('step'):06d}":
        raise ValueError(f"it says step {state['step']}")
    return state


def _verify_files(path: Path) -> None:
    """Whether the files are those that were written. Checkpoints of earlier versions do not say.

    Raises:
        ValueError: a file differs, is missing or is one too many, or the state file differs.
    """
    state = _state(path)
    if (expected := state.pop("sha256", None)) is None:
        return
    if _sum(state) != expected:
        raise ValueError(f"{STATE} was changed")
    there = {file.name for file in path.iterdir() if file.suffix == ".safetensors" or file.name == EARLIER}
    for name in sorted(there ^ set(state["files"])):
        raise ValueError(f"{name} is {'one file too many' if name in there else 'missing'}")
    for name, digest in state["files"].items():
        if sha256_of(path / name) != digest:
            raise ValueError(f"{name} is not what was written: its SHA-256 differs")


def _read(path: Path, parameters: Mapping | None) -> Checkpoint:
    """A checkpoint's tensors, compared with those that it is for."""
    state = _state(path)
    if (path / EARLIER).exists() or any(path.glob("part-*.safetensors")):
        loaded, tensors = _load_parts(path, parameters or {})
    else:
        loaded, _ = load_tensors(path / "parameters.safetensors")
        tensors, _ = load_tensors(path / "optimizer.safetensors")
    random, best = _taken("random/", tensors), _taken("best/", tensors)
    validations = state.get("validations") or []
    if not isinstance(validations, list) or not all(isinstance(values, dict) for values in validations):
        raise ValueError(f"{STATE} does not say what was measured on validation examples")
    scaler = state.get("scaler") or {}
    found = Checkpoint(state["step"], loaded, tensors, random, state["settings"], path, scaler, validations, best)
    _check_random(random)
    if problem := not_finite(found):
        raise ValueError(problem)
    if parameters is not None:
        _check_parameters(loaded, parameters)
        if best:
            _check_parameters(best, parameters)
        _check_optimizer(found, parameters)
    return found


def not_finite(checkpoint: Checkpoint) -> str | None:
    """Which tensor of a checkpoint holds NaN or infinity, in words; None if all are numbers."""
    best = _prefixed("best/", checkpoint.best)
    for name, tensor in {**checkpoint.parameters, **checkpoint.optimizer, **best}.items():
        part = processes.local(tensor)
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            return f"{name} holds NaN or infinity"
    return None


def _check_random(random: Mapping) -> None:
    if "cpu" not in random:
        raise ValueError("it holds no random state")
    like = torch.get_rng_state()
    if random["cpu"].dtype != like.dtype or random["cpu"].shape != like.shape:
        raise ValueError("its random state is none of torch's")


def _check_parameters(loaded: Mapping, parameters: Mapping) -> None:
    for name in [*parameters, *loaded]:
        if name not in loaded:
            raise ValueError(f"it lacks {name}")
        if name not in parameters:
            raise ValueError(f"it holds {name}, which is not trained here")
        here, there = parameters[name], loaded[name]
        if here.shape != there.shape or here.dtype != there.dtype:
            raise ValueError(f"{name} is {_kind(there)}, here {_kind(here)}")


def _check_optimizer(checkpoint: Checkpoint, parameters: Mapping) -> None:
    """Whether it is the state of AdamW for these parameters, with what a state that trained can hold."""
    order, states = list(parameters.items()), {}
    for key, tensor in checkpoint.optimizer.items():
        index, _, name = key.partition("/")
        if not index.isdigit() or int(index) >= len(order):
            raise ValueError(f"the optimizer's {key} belongs to no trained parameter")
        states.setdefault(int(index), {})[name] = tensor
    for index, state in states.items():
        parameter, values = order[index]
        if state.keys() != {"step", *MOMENTS}:
            raise ValueError(
                f"the optimizer's state of {parameter} is {', '.join(sorted(state))}, which is not AdamW's"
            )
        for name in MOMENTS:
            if state[name].shape != values.shape or state[name].dtype not in (values.dtype, torch.float32):
                raise ValueError(f"{name} of {parameter} is {_kind(state[name])}, the parameter {_kind(values)}")
        if bool((processes.local(state["exp_avg_sq"]) < 0).any()):
            raise ValueError(f"exp_avg_sq of {parameter}, a mean of squares, is below zero")
        if state["step"].numel() != 1 or not 0 <= float(state["step"]) <= checkpoint.step:
            raise ValueError(f"the optimizer's step of {parameter} is none of 0 to {checkpoint.step}")


def _kind(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _load_parts(path: Path, parameters: Mapping) -> tuple[dict, dict]:
    """The parameters, and all other tensors, of a checkpoint that several processes wrote; cut as `parameters` are."""
    order = list(parameters.values())

    def like(key: str) -> torch.Tensor | None:
        kind, _, name = key.partition("/")
        index = name.split("/")[0]
        if kind == "optimizer" and index.isdigit() and int(index) < len(order):
            return order[int(index)]
        return parameters.get(name) if kind in ("parameters", "best") else None

    tensors = load_parts(path, like)
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


def begun_with(folder: str | os.PathLike) -> dict:
    """The identity that the newest checkpoint in `folder` was written with; empty where there is none, or it says
    none (which `load_checkpoint` then tells)."""
    path = newest(folder)
    try:
        return {} if path is None else _state(path)["settings"]
    except _DAMAGE:
        return {}


def identity(
    settings: Mapping,
    encoded: list[tuple[torch.Tensor, torch.Tensor]],
    model: nn.Module,
    trained: dict,
    validation: list[tuple[torch.Tensor, torch.Tensor]] = (),
) -> dict:
    """What a run and its resume must have in common, as names and values for JSON.

    Args:
        settings: of the training.
        encoded: the examples, as token ids and labels.
        model: its adapters' ranks and scaling count, and a sample of every frozen tensor.
        trained: the trained parameters by name.
        validation: the validation examples, as `encoded`; without any they are not mentioned.
    """
    shapes, frozen = sha256(), sha256()
    for name, parameter in trained.items():
        shapes.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}|".encode())
    for name, parameter in plain_parameters(model):
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
        "the examples": _digest(encoded),
        **({"the validation examples": _digest(validation)} if validation else {}),
        "the trained parameters": shapes.hexdigest()[:16],
        "the base model or its data type": frozen.hexdigest()[:16],
    }


def _digest(encoded) -> str:
    examples = sha256()
    for ids, labels in encoded:
        examples.update(ids.numpy().tobytes() + labels.numpy().tobytes() + b"|")
    return examples.hexdigest()[:16]


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
    with kept_random(device):
        seed_generators(seed, device)
        yield


def seed_step(seed: int, step: int, rank: int) -> None:
    """Random numbers of one process in one step of several processes' run: they differ, and need not be saved."""
    torch.manual_seed((seed * 1_000_003 + step) * 65_537 + rank)


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


def _hide(path: Path) -> Path:
    """Rename a checkpoint, so that, killed while it is removed, it is none that looks whole."""
    hidden = path.with_name(f".{path.name}.old.part")
    _clear(hidden)
    os.rename(path, hidden)
    return hidden


def _clear(path: Path) -> None:
    """Remove what is there, if it can be: a folder, or the file or link that stands in its place."""
    if path.is_symlink() or path.is_file():
        with contextlib.suppress(OSError):
            path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _prefixed(prefix: str, tensors: dict) -> dict:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _taken(prefix: str, tensors: dict) -> dict:
    """Undo `_prefixed`: those of `tensors` that have the prefix, which are taken out of it."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
