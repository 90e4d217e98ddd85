"""Answers are found by the names of their functions, with what they need, whatever else is in the notebook."""

import math

import pytest
import torch

from qlora_lab.classroom.inside.answers import find_answers


def find(*cells, name="f"):
    return find_answers(list(cells), [name])[name]


def value(found, *arguments, name="f"):
    assert found["status"] == "answer", found
    names: dict = {}
    exec(compile(found["code"], "<answer>", "exec"), names)
    return names[name](*arguments)


STUB = 'def f(x: int) -> int:\n    """What it does."""\n    raise NotImplementedError'


@pytest.mark.parametrize(
    "stub",
    [
        STUB,
        "def f(x):\n    raise NotImplementedError()",
        "def f(x):\n    pass",
        "def f(x):\n    ...",
        "def f(x): 'text'",
    ],
)
def test_a_stub_is_no_answer(stub):
    assert find(stub)["status"] == "stub"
    assert value(find(stub, "def f(x):\n    return 1"), 0) == 1
    assert value(find("def f(x):\n    return 1", stub), 0) == 1


def test_nothing_there_or_something_else():
    assert find("x = 1", "def g(): return f")["status"] == "missing"
    assert find("from somewhere import f")["status"] == "missing"


def test_the_last_definition_counts():
    assert value(find("def f(x): return 1", "def f(x): return 2", "check('f', f)"), 0) == 2


def test_what_it_needs_comes_along_and_nothing_else():
    found = find(
        "import math\nimport torch\nimport os",
        "boom = 1 / 0",
        "def helper(x):\n    # squares\n    return other(x) ** 2",
        "LIMIT = 7",
        "def other(x): return x + LIMIT + math.floor(0.5)",
        "def f(x):\n    return helper(x)",
        "print(f(3))\ncheck('f', f)",
    )
    assert value(found, 1) == 64
    assert "# squares" in found["code"]
    for word in ("boom", "check", "print", "os", "torch"):
        assert word not in found["code"]


def test_definitions_after_the_answer_and_in_any_order():
    assert value(find("def f(x): return g(x)", "g = lambda x: h(x) + 1", "def h(x): return 2 * x"), 3) == 7


def test_tables_that_are_filled_later():
    found = find(
        "table = {}",
        "table['a'] = 1\nnames = []",
        "names.append('b')\nfor i in range(3):\n    table[i] = i",
        "def f(x): return table, names",
    )
    assert value(found, 0) == ({"a": 1, 0: 0, 1: 1, 2: 2}, ["b"])


def test_a_solved_helper_wins_over_its_stub():
    stub = "def g(x):\n    raise NotImplementedError"
    assert value(find(stub, "def g(x): return 5", "def f(x): return g(x)", stub), 0) == 5


def test_functions_made_by_assignment_and_decorated_ones():
    assert value(find("f = lambda x: x + 1"), 1) == 2
    assert value(find("import functools", "@functools.cache\ndef f(x):\n    return x * 3"), 2) == 6
    assert value(find("def f(x): return 1", "def twice(g): return lambda x: 2 * g(x)", "f = twice(f)"), 0) == 2


def test_star_imports_and_conditional_ones():
    assert (
        value(
            find(
                "from math import *",
                "try:\n    import numpy as np\nexcept ImportError:\n    np = None",
                "def f(x): return floor(x) if np else 0",
            ),
            1.5,
        )
        == 1
    )


def test_magics_are_passed_over():
    cell = "%%time\n!pip install x\n%matplotlib inline\ndef f(x):\n    %timeit 1\n    return x % 2\nf?\n"
    assert value(find(cell), 3) == 1


@pytest.mark.parametrize(
    "line",
    [
        "files = !ls *.txt",
        "r = %timeit -o f(1)",
        "first, rest = !ls",
        "seen['files'] = !ls",
        "!pip install one \\\n    two",
        "files = !ls \\\n    *.txt",
    ],
)
def test_what_ipython_assigns_from_a_magic_costs_no_points(line):
    assert value(find(f"seen = {{}}\n{line}\ndef f(x):\n    return x + 1"), 3) == 4


def test_a_magic_assigned_to_a_name_still_binds_it():
    assert value(find("files = !ls\ndef f(x):\n    r = %timeit -o 1\n    return files, r"), 3) == ([], None)


def test_what_looks_like_an_assigned_magic_inside_a_text_is_left_alone():
    assert value(find("%time 1\ndef f(x): return 'a = !b', x == 3, x % 2"), 3) == ("a = !b", True, 1)


def test_a_percent_sign_at_the_beginning_of_a_line_is_no_magic():
    assert value(find("def f(x):\n    return (x\n% 3)"), 5) == 2


def test_a_cell_that_is_no_python_costs_only_itself():
    found = find("def broken(:\n", "def f(x): return 1")
    assert value(found, 0) == 1
    found = find(STUB, "def f(x):\n    return (1")
    assert found["status"] == "broken" and "SyntaxError" in found["problem"] and "return (1" in found["code"]


def test_several_statements_on_a_line():
    assert value(find("import math; K = 2\ndef g(): return K", "a = 1; f = lambda x: x + a + g()"), 1) == 4


def test_what_was_found_is_found_again_as_it_is():
    cells = [
        "import torch",
        "K = 3\nx = K",
        "def g(a):\n    return a * K",
        "def f(a):\n\n    # a comment\n    return g(a)\n",
    ]
    once = find(*cells)
    assert find(once["code"]) == once


def test_types_of_signatures_come_along():
    found = find("import torch", "def f(x: torch.Tensor, k: 'int' = int(2)) -> torch.Tensor:\n    return x + k")
    assert value(found, torch.tensor(1)).item() == 3 and math
