"""Tensors that several processes write together, each its own part, and that any number of processes reads.

Process number 2 writes `part-00002.safetensors`: its pieces of all tensors, and in the file's header, as JSON, of which
shape the whole tensors are and where in them its pieces begin. Tensors that are not cut the main process writes.

Earlier versions left this to torch's distributed checkpoint, whose `.metadata` is a pickle, and a pickle can run any
code. Theirs are read too, by an unpickler that makes plain values and knows no function to call.
"""

import io
import json
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from qlora_lab.machine import processes
from qlora_lab.machine.files import save_tensors

EARLIER = ".metadata"  # the file by which a folder of torch's distributed checkpoint is known


@dataclass(frozen=True)
class Piece:
    """A block of a tensor: of `whole` (its shape) the elements from `start` on, as many as `read()` has."""

    whole: tuple[int, ...]
    start: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


def save_parts(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write this process's part of every tensor; returns when all processes have written theirs.

    Raises: what any of the processes could not write, in all of them.
    """
    pieces, places = {}, {}
    for name, tensor in tensors.items():
        start = (0,) * tensor.ndim
        if processes.is_part(tensor):
            _, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        elif not processes.is_main():
            continue
        pieces[name] = processes.local(tensor)
        places[name] = {"whole": list(tensor.shape), "start": list(start)}
    problem = None
    try:
        save_tensors(folder / f"part-{processes.rank():05d}.safetensors", pieces, {"places": json.dumps(places)})
    except Exception as error:
        problem = error
    raise_first(problem)


def raise_first(problem: Exception | None) -> None:
    """Raise, in all processes, what one of them met: else the others would wait for it."""
    found = next((p for p in processes.gathered(problem) if p is not None), None)
    if found is not None:
        raise found


def load_parts(folder: Path, like: Callable[[str], torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """All tensors by name, put together from everyone's parts.

    Args:
        like: gives, for a name, a tensor that the result is to be cut as, where that is sharded; each process then
            reads its part only.

    Raises:
        ValueError, KeyError, TypeError, OSError: the folder does not hold whole tensors.
    """
    found: dict[str, list[Piece]] = {}
    for name, piece in _earlier_pieces(folder) if (folder / EARLIER).exists() else _pieces(folder):
        found.setdefault(name, []).append(piece)
    return {name: _assembled(name, pieces, like(name)) for name, pieces in found.items()}


def _pieces(folder: Path) -> Iterator[tuple[str, Piece]]:
    for path in sorted(folder.glob("part-*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                places = json.loads(file.metadata()["places"])
                names = list(file.keys())
                shapes = {name: file.get_slice(name) for name in names}
                shapes = {name: (tuple(s.get_shape()), file.get_tensor(name).dtype) for name, s in shapes.items()}
        except Exception as error:  # safetensors raises its own class, and plain ones for some damage
            raise ValueError(f"{path.name} is not a whole file of parts ({error})") from error
        for name in names:
            place, (shape, dtype) = places[name], shapes[name]
            whole, start = tuple(map(int, place["whole"])), tuple(map(int, place["start"]))
            yield name, Piece(whole, start, shape, dtype, lambda path=path, name=name: _tensor(path, name))


def _tensor(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def _assembled(name: str, pieces: list[Piece], like: torch.Tensor | None) -> torch.Tensor:
    whole, dtype = pieces[0].whole, pieces[0].dtype
    if any((piece.whole, piece.dtype) != (whole, dtype) for piece in pieces):
        raise ValueError(f"the parts of {name} do not belong together")
    cut = like is not None and processes.is_part(like) and tuple(like.shape) == whole
    shape, start = whole, (0,) * len(whole)
    if cut:
        shape, start = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    result, filled = torch.empty(shape, dtype=dtype), 0
    for piece in pieces:
        first = [max(a, b) for a, b in zip(start, piece.start, strict=True)]
        last = [
            min(a + n, b + m, w) for a, n, b, m, w in zip(start, shape, piece.start, piece.shape, whole, strict=True)
        ]
        if any(e <= b for b, e in zip(first, last, strict=True)):
            continue
        theirs = tuple(slice(b - s, e - s) for b, e, s in zip(first, last, piece.start, strict=True))
        ours = tuple(slice(b - s, e - s) for b, e, s in zip(first, last, start, strict=True))
        result[ours] = piece.read()[theirs]
        filled += math.prod(e - b for b, e in zip(first, last, strict=True))
    if filled != result.numel():
        raise ValueError(f"of {name} {filled:,} of {result.numel():,} elements are there")
    if not cut:
        return result
    local = result.to(like.device)
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


# -- what earlier versions wrote


class _Record:
    """Stands for any class of torch's in the metadata: its fields, and nothing that could be called."""

    def __setstate__(self, state):
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


_RECORDS = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
    )
} | {("torch.distributed.checkpoint.filesystem", "_StorageInfo")}
_VALUES = {
    ("torch", "Size"): tuple,
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): int,
    ("torch.serialization", "_get_layout"): str,
    ("pathlib", "PosixPath"): lambda *parts: None,
    ("pathlib", "WindowsPath"): lambda *parts: None,
    ("pathlib._local", "PosixPath"): lambda *parts: None,
    ("pathlib._local", "WindowsPath"): lambda *parts: None,
}


class _PlainValues(pickle.Unpickler):
    """Makes records, tuples and dtypes, and refuses every other name: nothing that a file names is run."""

    def find_class(self, module, name):
        if (module, name) in _RECORDS:
            return type(name, (_Record,), {})
        if (module, name) in _VALUES:
            return _VALUES[module, name]
        found = getattr(torch, name, None) if module == "torch" and "." not in name else None
        if isinstance(found, torch.dtype):
            return found
        raise ValueError(f"{EARLIER} names {module}.{name}, which is no part of a checkpoint; it was not run")

    def persistent_load(self, pid):
        raise ValueError(f"{EARLIER} refers to something outside of it")


def _earlier_pieces(folder: Path) -> Iterator[tuple[str, Piece]]:
    try:
        metadata = _PlainValues(io.BytesIO((folder / EARLIER).read_bytes())).load()
        tensors, places = metadata.state_dict_metadata, metadata.storage_data
        found = [(index.fqn, index, info, tensors[index.fqn]) for index, info in places.items()]
        if set(tensors) != {name for name, *_ in found}:
            raise ValueError("a tensor has no place in its files")
        for name, index, info, tensor in found:
            file = info.relative_path
            if not isinstance(file, str) or Path(file).name != file:
                raise ValueError(f"{name} lies outside of the checkpoint")
            dtype, start = tensor.properties.state[0], tuple(map(int, index.offset or ()))
            shape = next(tuple(map(int, c.sizes)) for c in tensor.chunks if tuple(map(int, c.offsets)) == start)
            piece = Piece(
                tuple(map(int, tensor.size)),
                start,
                shape,
                dtype,
                lambda path=folder / file, info=info, shape=shape, dtype=dtype: _earlier_tensor(
                    path, info, shape, dtype
                ),
            )
            if not isinstance(dtype, torch.dtype) or len(shape) != len(piece.whole):
                raise ValueError(f"{name} is no tensor")
            yield name, piece
    except (AttributeError, IndexError, pickle.UnpicklingError, EOFError, StopIteration, RecursionError) as error:
        raise ValueError(f"{EARLIER} is not what an earlier version wrote ({error})") from error


def _earlier_tensor(path: Path, info, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    with open(path, "rb") as file:
        file.seek(info.offset)
        content = io.BytesIO(file.read(info.length))
    try:
        tensor = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path.name} is damaged ({str(error).splitlines()[0][:200]})") from error
    if not isinstance(tensor, torch.Tensor) or (tuple(tensor.shape), tensor.dtype) != (shape, dtype):
        raise ValueError(f"{path.name} holds something else than its metadata says")
    return tensor
