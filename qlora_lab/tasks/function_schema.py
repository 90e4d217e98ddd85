"""The functions of the home assistant, as plain data in JSON Schema's words, and the check of calls against them."""

import re
from collections.abc import Sequence
from typing import Any

from qlora_lab.machine.arguments import is_number

_TEXT = {"type": "string", "minLength": 1}
_TIME = {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}
_WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_DAY = {"type": "string", "enum": ["today", "tomorrow", *_WEEKDAYS]}
_MINUTES = {"type": "integer", "minimum": 1}
_UNIT = {"type": "string", "enum": ["km", "mi", "m", "ft", "cm", "in", "kg", "lb", "g", "oz", "l", "gal", "cup"]}
_COLORS = ["red", "blue", "green", "purple", "orange", "yellow", "pink", "white", "turquoise"]


def _function(description: str, properties: dict[str, Any], required: Sequence[str] = (), one_of: Sequence[str] = ()):
    parameters: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    parameters["required"] = list(required)
    if one_of:
        parameters["oneOf"] = [{"required": [name]} for name in one_of]
    return {"description": description, "parameters": parameters}


# The order of properties is the order in which a target lists its arguments. An argument that was not said is left out.
FUNCTIONS: dict[str, dict[str, Any]] = {
    "timer": _function("count down some minutes", {"minutes": _MINUTES, "label": _TEXT}, ["minutes"]),
    "alarm": _function(
        "ring at a time of day",
        {"time": _TIME, "day": {"type": "string", "enum": [*_DAY["enum"], "daily", "weekdays", "weekends"]}},
        ["time"],
    ),
    "light": _function(
        'set lights; room "all" means every room',
        {
            "room": _TEXT,
            "state": {"type": "string", "enum": ["on", "off"]},
            "brightness": {"type": "integer", "minimum": 0, "maximum": 100},
            "color": {"type": "string", "enum": _COLORS},
        },
        one_of=["state", "brightness", "color"],
    ),
    "heat": _function(
        "heat to some degrees, or by a change in degrees (negative: colder)",
        {"room": _TEXT, "degrees": {"type": "number"}, "change": {"type": "number"}},
        one_of=["degrees", "change"],
    ),
    "play": _function("play music", {"title": _TEXT, "artist": _TEXT, "genre": _TEXT, "room": _TEXT}),
    "message": _function("send a text", {"to": _TEXT, "text": _TEXT}, ["to", "text"]),
    "add": _function(
        "put an item on a list",
        {"list": _TEXT, "item": _TEXT, "count": {"type": "integer", "minimum": 1}},
        ["list", "item"],
    ),
    "remind": _function(
        "remind of something at a time, or some minutes from now",
        {"text": _TEXT, "time": _TIME, "day": _DAY, "minutes": _MINUTES},
        ["text"],
        one_of=["time", "minutes"],
    ),
    "weather": _function("forecast", {"place": _TEXT, "day": _DAY}),
    "convert": _function(
        "convert a value between units",
        {"value": {"type": "number"}, "from": _UNIT, "to": _UNIT},
        ["value", "from", "to"],
    ),
}


def _signature(name: str) -> str:
    """One line of the instruction: light(room?, state? on|off, ...): what it does."""
    parameters = FUNCTIONS[name]["parameters"]
    parts = []
    for argument, kind in parameters["properties"].items():
        allowed = " HH:MM" if kind is _TIME else " " + "|".join(kind["enum"]) if "enum" in kind else ""
        parts.append(f"{argument}{'' if argument in parameters['required'] else '?'}{allowed}")
    return f"{name}({', '.join(parts)}): {FUNCTIONS[name]['description']}"


INSTRUCTION = (
    'Answer with a JSON list of one or two calls, each {"name": ..., "arguments": {...}}, in the order in which '
    "they are to be carried out. Leave out what was not said. Names and free text are copied as written; "
    "numbers are digits.\nFunctions (? marks an optional argument):\n"
    + "\n".join(_signature(name) for name in FUNCTIONS)
)


def validate_calls(calls: Sequence[dict[str, Any]]) -> None:
    """Checks one or two calls against `FUNCTIONS`.

    Raises:
        ValueError: the reason, with the call it is about.
    """
    if not isinstance(calls, list | tuple) or not 1 <= len(calls) <= 2:
        raise ValueError(f"expected a list of one or two calls, got {calls!r}")
    for call in calls:
        if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
            raise ValueError(f'expected {{"name": ..., "arguments": {{...}}}}, got {call!r}')
        name, arguments = call["name"], call["arguments"]
        if not isinstance(name, str) or name not in FUNCTIONS:
            raise ValueError(f"no function {name!r}; the functions are {', '.join(FUNCTIONS)}")
        if not isinstance(arguments, dict):
            raise ValueError(f"{name}: arguments must be an object, got {arguments!r}")
        parameters = FUNCTIONS[name]["parameters"]
        for argument, value in arguments.items():
            if argument not in parameters["properties"]:
                known = ", ".join(parameters["properties"])
                raise ValueError(f"{name} has no argument {argument!r}; it has {known}")
            if reason := _fault(value, parameters["properties"][argument]):
                raise ValueError(f"{name}: {argument} {reason}, got {value!r}")
        for argument in parameters["required"]:
            if argument not in arguments:
                raise ValueError(f"{name}: argument {argument!r} is missing")
        choices = [choice["required"][0] for choice in parameters.get("oneOf", [])]
        if choices and sum(choice in arguments for choice in choices) != 1:
            raise ValueError(
                f"{name}: exactly one of {', '.join(choices)} is needed, got {', '.join(arguments) or 'none'}"
            )


def _fault(value: Any, kind: dict[str, Any]) -> str | None:
    """Why a value does not fit the JSON Schema `kind` (only the words used in `FUNCTIONS`), or None if it fits."""
    if kind["type"] == "string":
        if not isinstance(value, str) or len(value) < kind.get("minLength", 0):
            return "must be a text that is not empty"
    elif not is_number(value):
        return "must be a finite number"
    elif kind["type"] == "integer" and value != int(value):
        return "must be a whole number"
    elif not kind.get("minimum", value) <= value <= kind.get("maximum", value):
        return f"must lie between {kind['minimum']} and {kind.get('maximum', 'any size')}"
    if "enum" in kind and value not in kind["enum"]:
        return f"must be one of {', '.join(kind['enum'])}"
    if "pattern" in kind and not re.search(kind["pattern"], value):
        return 'must be a time "HH:MM" from 00:00 to 23:59'
    return None
