"""The function schema, and validate_calls against the jsonschema library."""

import copy

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_lab.tasks.function_schema import FUNCTIONS, INSTRUCTION, validate_calls

# A busy machine is not a failure.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

CALLS_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "maxItems": 2,
    "items": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": function["parameters"]},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name, function in FUNCTIONS.items()
        ]
    },
}

TEXT = st.text(min_size=1, max_size=20)
NUMBER = st.integers(-1000, 1000) | st.floats(-1000, 1000)


def values(kind: dict) -> st.SearchStrategy:
    """Values that fit one argument of the schema."""
    if "enum" in kind:
        return st.sampled_from(kind["enum"])
    if "pattern" in kind:
        return st.builds("{:02d}:{:02d}".format, st.integers(0, 23), st.integers(0, 59))
    if kind["type"] == "integer":
        return st.integers(kind["minimum"], kind.get("maximum", 10_000))
    return NUMBER if kind["type"] == "number" else TEXT


@st.composite
def valid_calls(draw) -> list[dict]:
    """One or two calls that fit the schema."""
    calls = []
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(list(FUNCTIONS)))
        parameters = FUNCTIONS[name]["parameters"]
        choices = [choice["required"][0] for choice in parameters.get("oneOf", [])]
        chosen = {draw(st.sampled_from(choices))} if choices else set()
        arguments = {}
        for argument, kind in parameters["properties"].items():
            optional = argument not in parameters["required"] and argument not in choices
            if argument in parameters["required"] or argument in chosen or (optional and draw(st.booleans())):
                arguments[argument] = draw(values(kind))
        calls.append({"name": name, "arguments": arguments})
    return calls


def accepts(calls: object) -> bool:
    try:
        validate_calls(calls)
    except ValueError:
        return False
    return True


def test_the_schema_is_json_schema():
    jsonschema.Draft202012Validator.check_schema(CALLS_SCHEMA)


@unhurried
@given(valid_calls())
def test_valid_calls_pass_here_and_in_jsonschema(calls):
    validate_calls(calls)
    jsonschema.validate(calls, CALLS_SCHEMA)


ODD = st.none() | st.booleans() | NUMBER | st.sampled_from(["", "24:00", "7:15", "on", "monday"]) | st.lists(st.none())


@unhurried
@given(valid_calls(), st.data())
def test_damaged_calls_are_judged_as_jsonschema_judges_them(calls, data):
    calls = copy.deepcopy(calls)
    call = data.draw(st.sampled_from(calls))
    arguments = call["arguments"]
    damage = data.draw(st.sampled_from(["drop", "replace", "add", "rename", "strip", "repeat"]))
    if damage == "drop" and arguments:
        del arguments[data.draw(st.sampled_from(list(arguments)))]
    elif damage == "replace" and arguments:
        arguments[data.draw(st.sampled_from(list(arguments)))] = data.draw(ODD)
    elif damage == "add":
        every = sorted({name for function in FUNCTIONS.values() for name in function["parameters"]["properties"]})
        arguments[data.draw(st.sampled_from(every))] = data.draw(ODD)
    elif damage == "rename":
        call["name"] = data.draw(st.sampled_from([*FUNCTIONS, "oven", 3]))
    elif damage == "strip":
        del call[data.draw(st.sampled_from(["name", "arguments"]))]
    elif damage == "repeat":
        calls = calls * 2
    assert accepts(calls) == jsonschema.Draft202012Validator(CALLS_SCHEMA).is_valid(calls)


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([], "one or two calls"),
        ({"name": "timer"}, "one or two calls"),
        ([{"name": "oven", "arguments": {}}], "the functions are timer, alarm"),
        ([{"name": "timer", "arguments": {}}], "'minutes' is missing"),
        ([{"name": "timer", "arguments": {"minutes": 2.5}}], "whole number"),
        ([{"name": "timer", "arguments": {"minutes": True}}], "finite number"),
        ([{"name": "heat", "arguments": {"degrees": float("inf")}}], "finite number"),
        (
            [{"name": "timer", "arguments": {"minutes": 5, "room": "attic"}}],
            "no argument 'room'; it has minutes, label",
        ),
        ([{"name": "alarm", "arguments": {"time": "24:00"}}], "HH:MM"),
        ([{"name": "light", "arguments": {"room": "attic"}}], "exactly one of state, brightness, color"),
        ([{"name": "light", "arguments": {"state": "on", "color": "red"}}], "exactly one of"),
        ([{"name": "light", "arguments": {"brightness": 101}}], "between 0 and 100"),
        ([{"name": "message", "arguments": {"to": "Ben", "text": ""}}], "not empty"),
    ],
)
def test_an_error_names_the_reason(calls, reason):
    with pytest.raises(ValueError, match=reason):
        validate_calls(calls)


def test_the_instruction_names_every_function_and_argument():
    for name, function in FUNCTIONS.items():
        line = next(line for line in INSTRUCTION.splitlines() if line.startswith(f"{name}("))
        for argument in function["parameters"]["properties"]:
            assert argument in line
