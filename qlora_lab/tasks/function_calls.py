"""The fine-tuning task: a command in plain English becomes a JSON list of function calls.

A data file holds one example a line; an `Example` renders it as a ChatML prompt and a target, of which `encoding` makes
token ids whose labels cover the target only; `parse_calls`, `exact_match` and `classify_answer` judge what a model
generated. The functions themselves stand in `function_schema`.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_lab.tasks.function_schema import INSTRUCTION

SPLITS = ("train", "validation", "test", "paraphrases")

TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
_END_TOKENS = re.compile(rf"(?:\s|{re.escape(TURN_END)}|{re.escape('<|endoftext|>')})*")


@dataclass(frozen=True)
class Example:
    """One command, the calls it asks for in the order of carrying out, and tags that say what makes it hard."""

    command: str
    calls: tuple[dict[str, Any], ...] = field(hash=False)
    tags: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The ChatML prompt up to where the assistant begins to speak."""
        return prompt_text(self.command)

    @property
    def target(self) -> str:
        """What the assistant should say: compact JSON and the end of the turn."""
        return json.dumps(list(self.calls), ensure_ascii=False, separators=(",", ":")) + TURN_END


def prompt_text(command: str, instruction: str | None = None) -> str:
    """The ChatML prompt for `command`; `instruction`, if given, becomes the system message (by default there is none).

    Raises:
        ValueError: the command or the instruction holds a ChatML marker, which would end its turn early.
    """
    for text in (command, instruction or ""):
        if TURN_START in text or TURN_END in text:
            raise ValueError(f"a command must not contain {TURN_START} or {TURN_END}: {text!r}")
    system = f"{TURN_START}system\n{instruction}{TURN_END}\n" if instruction else ""
    return f"{system}{TURN_START}user\n{command}{TURN_END}\n{TURN_START}assistant\n"


def few_shot(examples: Iterable[Example], instruction: str = INSTRUCTION) -> str:
    """`instruction` followed by solved examples: what a model that was not fine-tuned needs for a fair chance."""
    shots = [f"Command: {example.command}\nAnswer: {example.target.removesuffix(TURN_END)}" for example in examples]
    return "\n\n".join([instruction, *shots])


def data_directory() -> Path:
    """The folder with the task's data: `_data` inside an installed package, `data` beside it in a checkout.

    Raises:
        FileNotFoundError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    places = [package / "_data", package.parent / "data"]
    for place in places:
        if (place / "function_calls").is_dir():
            return place
    raise FileNotFoundError(
        f"the data of qlora_lab is missing: no folder function_calls in {places[0]} (installed) "
        f"or {places[1]} (checkout); reinstall the package or restore data/ from the repository"
    )


def load_examples(split: str) -> list[Example]:
    """The examples of one split, in file order.

    Raises:
        ValueError: no such split, or a line that is not an example (the message says which).
        FileNotFoundError: the split's file is missing.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
    path = data_directory() / "function_calls" / f"{split}.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; restore it from the repository")
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            examples.append(Example(row["command"], tuple(row["calls"]), tuple(row["tags"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not an example with command, calls and tags ({error})") from error
    return examples


def spread(examples: list[Example], count: int) -> list[Example]:
    """`count` of `examples` at even distances, so a file sorted by function stays mixed; 0: all."""
    if count == 0 or count >= len(examples):
        return examples
    return [examples[place * len(examples) // count] for place in range(count)]


def evaluation_text() -> str:
    """The prose on which loss per token is measured.

    Raises:
        FileNotFoundError: the text is missing.
    """
    path = data_directory() / "evaluation_text.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; restore it from the repository")
    return path.read_text(encoding="utf-8")


def _reject(_: object) -> Any:
    raise ValueError("not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that gives a key twice has no clear meaning."""
    result = dict(pairs)
    return result if len(result) == len(pairs) else _reject(pairs)


_DECODER = json.JSONDecoder(parse_constant=_reject, object_pairs_hook=_object)


def parse_calls(text: str) -> list[dict[str, Any]] | None:
    """The list of calls in a generated text, or None where the text is anything but one JSON list of objects.

    Whitespace around it and end tokens after it are allowed. Never raises, whatever the model wrote.
    """
    start = len(text) - len(text.lstrip())
    try:
        calls, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    if not _END_TOKENS.fullmatch(text, end):
        return None
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return None
    return calls


def same_json(one: Any, other: Any) -> bool:
    """JSON equality: 5 equals 5.0, true does not equal 1, the order of keys does not matter."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def exact_match(text: str, example: Example) -> bool:
    """Whether the generated text is JSON for exactly the calls of the example, in their order."""
    return classify_answer(text, example) == CORRECT


CORRECT = "correct"


def classify_answer(text: str, example: Example) -> str:
    """What is wrong with a generated text, in a few words that can be counted.

    One of "correct", "not JSON", "missing call", "extra call", "wrong order", "wrong function",
    "missing argument: <name>", "extra argument: <name>", "wrong argument: <name>". The first fault found is named.
    """
    calls = parse_calls(text)
    if calls is None:
        return "not JSON"
    expected = list(example.calls)
    if same_json(calls, expected):
        return CORRECT
    if len(calls) != len(expected):
        return "missing call" if len(calls) < len(expected) else "extra call"
    if len(expected) == 2 and same_json(calls[::-1], expected):
        return "wrong order"
    for call, wanted in zip(calls, expected, strict=True):
        if not same_json(call.get("name"), wanted["name"]):
            return "wrong function"
        arguments = call.get("arguments")
        if not isinstance(arguments, dict) or call.keys() != wanted.keys():
            return "not a call"
        for name, value in wanted["arguments"].items():
            if name not in arguments:
                return f"missing argument: {name}"
            if not same_json(arguments[name], value):
                return f"wrong argument: {name}"
        for name in arguments:
            if name not in wanted["arguments"]:
                return f"extra argument: {name}"
    raise AssertionError("calls differ, yet no difference was found")
