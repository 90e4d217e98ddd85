"""What makes an answer to one's own question right: the same text, the same JSON, or a function of one's own."""

import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qlora_lab.tasks.function_calls import CORRECT, TURN_END, Example, same_json

METRICS = ("exact", "json")


@dataclass(frozen=True)
class OwnQuestion:
    """What a model is asked, and the answer that the data gives.

    Attributes:
        prompt: the text to generate from, special tokens and all.
        expected: the answer.
        command: the question as a person reads it, without the template.
        origin: where it came from.
    """

    prompt: str
    expected: str
    command: str
    origin: str


def question_of(record: Any, tokenizer: Any) -> OwnQuestion | None:
    """The question in a record of one's own data (or an `Example`), and its answer.

    None for a text, which asks nothing, and for messages that do not end with the assistant's words.

    Raises:
        ValueError: the template refuses its messages.
    """
    if isinstance(record, Example):
        return OwnQuestion(record.prompt, record.target.removesuffix(TURN_END), record.command, record.command)
    if record.text is not None or (record.messages and record.messages[-1].get("role") != "assistant"):
        return None
    prompt, expected = record.question_and_answer(tokenizer)
    if record.messages is None:
        command = f"{record.prompt}\n{record.input or ''}".strip()
    else:
        command = str(record.messages[-2].get("content", "")) if len(record.messages) > 1 else ""
    return OwnQuestion(prompt, expected, command, record.origin) if prompt and expected else None


def metric_of(name: str) -> Callable[[str, OwnQuestion], str]:
    """A function of an answer and its `OwnQuestion` that says "correct", or what is wrong in a few words.

    Args:
        name: "exact" (the same text but for white space at both ends), "json" (the same JSON value), or
            "module:function", which is called with the answer and the expected one, both texts, and returns whether it
            is right. The module is looked for in the working directory too.

    Raises:
        ValueError: no such metric, module or function.
    """
    if name == "exact":
        return _exact
    if name == "json":
        return _json
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise ValueError(f"unknown metric {name!r}; choose one of {', '.join(METRICS)}, or give module:function")
    return _of_ones_own(name, module, function)


def _exact(answer: str, question: OwnQuestion) -> str:
    return CORRECT if answer.strip() == question.expected.strip() else "another text"


def _json(answer: str, question: OwnQuestion) -> str:
    try:
        expected = json.loads(question.expected)
    except ValueError as error:
        raise ValueError(
            f"{question.origin}: the answer is no JSON ({error}), which the metric json compares; choose exact"
        ) from error
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return "not JSON"
    return CORRECT if same_json(found, expected) else "another value"


def _of_ones_own(name: str, module: str, function: str) -> Callable[[str, OwnQuestion], str]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        own = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise ValueError(f"metric {name!r}: the module {module} cannot be imported ({error})") from error
    except AttributeError as error:
        raise ValueError(f"metric {name!r}: there is no {function} in {module}") from error
    except Exception as error:
        raise ValueError(f"metric {name!r}: {module} fails as it is imported ({error!r})") from error
    finally:
        sys.path.remove(here)
    if not callable(own):
        raise ValueError(f"metric {name!r}: {function} is no function")

    def judged(answer: str, question: OwnQuestion) -> str:
        try:
            right = own(answer, question.expected)
        except Exception as error:
            raise ValueError(f"metric {name!r} failed on the answer to {question.origin} ({error!r})") from error
        if right not in (True, False):
            raise ValueError(f"metric {name!r} returned {right!r}; it should say True or False")
        return CORRECT if right else "wrong"

    return judged
