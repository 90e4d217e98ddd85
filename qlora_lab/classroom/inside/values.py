"""Arguments and results as bytes that are safe to read, whoever wrote them: JSON for structure, safetensors inside.

Nothing is ever unpickled. What is neither a number, a text, a tensor nor made of such arrives as a `Foreign` object
that has only the name of its type.
"""

import functools
import json
import re
import struct
from typing import Any

import safetensors.torch
import torch

LENGTH = struct.Struct("<Q")
DEEPEST = 50  # levels of lists in lists; nothing that is asked for has more than three
LARGEST = 2**200  # whole numbers beyond are nobody's answer, and slow to read
MOST_KEYS = 5_000  # of a dictionary or set from untrusted bytes: keys may be chosen so that their hashes collide
MOST_TYPES = 100  # whose names stand in untrusted bytes: a class of its own for each takes 20 kB


class TooMany(ValueError):
    """Untrusted bytes hold more values than are worth building. The message says more than how many of what."""


class Foreign:
    """Stands for something that cannot be sent. Its class has the name that the real one had."""


def foreign(name: str) -> Foreign:
    """A `Foreign` whose class is called `name` (letters, digits and _, 40 at most)."""
    return _foreign_class(re.sub(r"\W", "_", str(name))[:40] or "_")()


@functools.lru_cache(maxsize=1024)
def _foreign_class(name: str) -> type[Foreign]:
    return type(name, (Foreign,), {})


def pack(value: Any) -> bytes:
    """A value as bytes. Tensors are detached, moved to the CPU and copied."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_plain(value, tensors, 0)).encode()
    return LENGTH.pack(len(text)) + text + safetensors.torch.save(tensors)


def unpack(data: bytes, most: int | None = None) -> Any:
    """What `pack` was given.

    Args:
        most: values, those within lists and the like included, where the bytes are not trusted. None: any number.

    Raises:
        TooMany: there are more, or more keys or types than `MOST_KEYS` and `MOST_TYPES`; with `most` only.
        ValueError: these bytes do not come from `pack`.
    """
    try:
        (length,) = LENGTH.unpack_from(data)
        text = data[LENGTH.size : LENGTH.size + length]
        if most is not None and text.count(b"[") > most:  # each value has at least one, so nothing is built for more
            raise TooMany(f"more than {most:,} values")
        tensors = safetensors.torch.load(bytes(data[LENGTH.size + length :]))
        return _value(json.loads(text), tensors, None if most is None else set())
    except TooMany:
        raise
    except Exception as error:  # damaged on purpose, perhaps: whatever goes wrong here, it is unreadable
        raise ValueError(f"not a packed value ({type(error).__name__})") from error


def _plain(value: Any, tensors: dict, depth: int) -> list:
    if value is None:
        return ["n"]
    if isinstance(value, bool):
        return ["b", bool(value)]
    if isinstance(value, int):
        number = int(value)
        return ["i", str(number)] if abs(number) < LARGEST else ["o", "int"]
    if isinstance(value, float):
        return ["f", float(value)]  # json writes the shortest text that reads back as the same float
    if isinstance(value, str):
        return ["s", str(value)]
    if isinstance(value, torch.Tensor):
        return _tensor(value, tensors)
    if depth < DEEPEST:
        for letter, kind in (("l", list), ("u", tuple), ("e", set)):
            if isinstance(value, kind):
                items = [_plain(item, tensors, depth + 1) for item in value]
                return [letter, sorted(items, key=json.dumps) if kind is set else items]  # equal sets, equal bytes
        if isinstance(value, dict):
            pairs = [[_plain(k, tensors, depth + 1), _plain(v, tensors, depth + 1)] for k, v in value.items()]
            return ["d", pairs]
    return ["o", type(value).__name__]


def _tensor(value: torch.Tensor, tensors: dict) -> list:
    name = f"t{len(tensors)}"
    try:
        plain = value.detach().as_subclass(torch.Tensor).cpu().clone(memory_format=torch.contiguous_format)
        safetensors.torch.save({name: plain})  # a sparse, quantized or meta tensor says here that it cannot be sent
    except (RuntimeError, ValueError, KeyError, TypeError, NotImplementedError):
        return ["o", type(value).__name__]
    tensors[name] = plain
    return ["t", name]


def _value(plain: list, tensors: dict, names: set[str] | None) -> Any:
    """names: of foreign types met so far. None: the bytes are trusted."""
    letter, *rest = plain
    if letter == "n":
        return None
    (content,) = rest
    if letter == "t":
        return tensors.pop(
            content
        )  # each stands for one value; what was written by others may name one again and again
    if letter == "i":
        return int(content)
    if letter in "bfs":
        kind = {"b": bool, "f": float, "s": str}[letter]
        if not isinstance(content, kind):
            raise TypeError(letter)
        return content
    if letter in "ed" and names is not None and len(content) > MOST_KEYS:
        raise TooMany(f"more than {MOST_KEYS:,} keys in a set or dictionary")
    if letter in "lue":
        kind = {"l": list, "u": tuple, "e": set}[letter]
        return kind(_value(item, tensors, names) for item in content)
    if letter == "d":
        return {_value(key, tensors, names): _value(item, tensors, names) for key, item in content}
    if names is not None:
        names.add(str(content))
        if len(names) > MOST_TYPES:
            raise TooMany(f"more than {MOST_TYPES:,} types")
    return foreign(content)
