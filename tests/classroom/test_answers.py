"""Answers are found by the names of their functions, with what they need, whatever else is in the notebook."""

import math
import sys

import hypothesis
import pytest
import torch
from hypothesis import assume, given, settings

from qlora_lab.classroom.inside.answers import find_answers
from qlora_lab.classroom.inside.running import DefinedAnswer


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


# What the notebook itself would do, run from top to bottom

LIVE = {
    "a constant set by a call": ["K = 3", "def g():\n    global K\n    K = 7", "g()", "def f(): return K"],
    "a constant made by a call": ["def setup():\n    global STEPS; STEPS = 7\nsetup()", "def f(): return STEPS"],
    "by a call of a call": [
        "def inner():\n    global STEPS; STEPS = 7\ndef setup(): inner()",
        "for i in range(1):\n    setup()",
        "def f(): return STEPS",
    ],
    "a table that a function writes to": [
        "import torch\nT = torch.zeros(1)",
        "torch.add(torch.tensor([5]), 2, out=T)",
        "def f(): return int(T)",
    ],
    "a table that is added to at places": [
        "import numpy as np\nT = np.zeros(1)",
        "np.add.at(T, 0, 7)",
        "def f(): return T[0]",
    ],
    "by a function given by name": [
        "T = []\ndef key(x):\n    T.append(7)\n    return x",
        "sorted([1], key=key)",
        "def f(): return T[0]",
    ],
    "an old try under what is not": ["OLD = False", "def f(): return 7", "if OLD:\n    def f(): return 3"],
    "an old try in a loop over nothing": ["def f(): return 7", "for _ in []:\n    def f(): return 3"],
    "an old try in a branch": [
        "OLD = False",
        "if OLD:\n    def f(): return 3\nelse:\n    def f(): return 7",
        "while OLD:\n    def f(): return 4",
    ],
    "an old try that is not come to": [
        "def f(): return 7",
        "try:\n    import no_such_module\n    def f(): return 3\nexcept ImportError:\n    pass",
    ],
    "the last of two in one place": ["def f(): return 3", "NEW = 1", "if NEW:\n    def f(): return 7"],
    "a table filled by a call": ["T = []\ndef add(): T.append(7)", "add()", "def f(): return T[0]"],
    "a table given to a call": ["T = []\ndef add(t): t.append(7)", "add(T)", "def f(): return T[0]"],
    "handed on": ["T = []\ndef add(t): t.append(7)\ndef outer(u): add(u)", "outer(T)", "def f(): return T[0]"],
    "by another name": ["T = []", "U = T; U.append(7)", "def f(): return T[0]"],
    "in rows": ["T = [[]]\nfor row in T: row.append(7)", "def f(): return T[0][0]"],
    "by a decorator": ["R = []\ndef r(g):\n    R.append(g)", "@r\ndef g(): return 7", "def f(): return R[0]()"],
    "a default that grows": ["T = []\ndef add(x, t=T): t.append(x)", "add(7)", "def f(): return T[0]"],
    "global in the answer": ["def f():\n    global COUNT\n    COUNT += 1\n    return COUNT", "COUNT = 6"],
    "a class's attribute": ["class C:\n    K = 3", "C.K = 7", "def f(): return C.K"],
    "an attribute of a module": ["import math\nmath.tau2 = 7", "def f(): return math.tau2"],
    "by globals()": ["globals()['K'] = 7", "def f(): return K"],
    "by exec": ["exec('K = 7')", "def f(): return globals()['K']"],
    "read by eval": ["K = 6", "def f(): return eval('K + 1')"],
    "a function of Python's, written anew": ["def sum(x): return 7", "def f(): return sum([1])"],
    "made by an earlier try": ["def f(): return 6", "A = f()", "def f(): return A + 1"],
    "annotations of the future": ["from __future__ import annotations", "def f(x: Nope = 7): return x"],
    "a seed": ["import random", "random.seed(1)", "N = random.random()", "def f(): return int(52.1 * N)"],
    "match": ["match 7:\n    case K: pass", "def f(): return K"],
    "in a branch": ["try:\n    import nothing_like_this\nexcept ImportError:\n    K = 7", "def f(): return K"],
    "dataclass, enum, partial": [
        "import dataclasses, enum, functools",
        "@dataclasses.dataclass\nclass P:\n    x: int = 3\nclass E(enum.Enum):\n    A = 4",
        "add = functools.partial(lambda a, b: a + b, P().x)",
        "def f(): return add(E.A.value)",
    ],
    "a closure": ["def make(k):\n    def f(): return k\n    return f", "f = make(7)"],
    "check gives it back": ["def f():\n    return 7", "f = check('f', f)"],
    # No definition that is run
    "%%script": ["def f():\n    return 7", "%%script false --no-raise-error\ndef f():\n    return 8"],
    "%%timeit": ["def f():\n    return 7", "%%timeit\ndef f():\n    return 8"],
    "if False": ["def f():\n    return 7", "if False:\n    def f():\n        return 8"],
    "if 0, else": ["def f():\n    return 7", "if 0:\n    def f(): return 8\nelse:\n    x = 3"],
    "not __main__": ["def f():\n    return 7", "if __name__ == 'x':\n    def f(): return 8"],
    "after raise": ["def f():\n    return 7", "raise SystemExit\ndef f():\n    return 8"],
    "in a text": ["def f():\n    return 7", "'''\ndef f():\n    return 8\n'''"],
    "a variable of a comprehension": ["def f(): return 7", "[f for f in range(3)]"],
    # As it stands in cells
    "__main__": ["if __name__ == '__main__':\n    def f():\n        # hm\n        return 7"],
    "if True": ["if True:\n    K = '''a\n  b'''\n    def f(): return len(K) + 2"],
    "indented": ["    def f():\n        return 7"],
    "prompts": [">>> def f():\n...     return 7\n"],
    "prompts of IPython": ["In [3]: def f():\n   ...:     return 7\n"],
    "%time binds": ["%time K = 6\nL = %time K + 1\ndef f(): return L"],
    "a byte order mark": ["\ufeffdef f(): return 7"],
    "old ends of lines": ["x = 1\rdef f():\r    return 7"],
    "a text like a magic": ["T = '''\n%matplotlib\n!x\n'''\n!ls\ndef f(): return 7 if '#' not in T else T"],
    "await elsewhere": ["async def g(): return 7\nawait g()\ndef f(): return 7"],
    # Syntax of newer Pythons that the answer does not need
    "f-string of 3.12": ["y = f\"{x[\"a\"]}\"\ndef f(): return 7"],
    "type parameters": ["type X = int\ndef g[T](x: T): return x\ndef f(): return 7"],
    "except of 3.14": ["try:\n    1 / 0\nexcept ValueError, ZeroDivisionError:\n    pass\ndef f(): return 7"],
    "t-string": ["x = t'a{3}'\ndef f(): return 7"],
    "a Python to come": [{"python": "3.99"}, "new syntax\ndef f():\n    return 7\n\ny = new syntax"],
}  # fmt: skip


@pytest.mark.parametrize("cells", LIVE.values(), ids=LIVE)
def test_the_answer_is_what_the_notebook_would_have(cells):
    found = find(*cells)
    assert found["status"] == "answer" and "aside" not in found
    assert DefinedAnswer(found["code"], "f").function() == 7
    again = find(found["code"])
    assert again["code"] == found["code"]


def test_what_it_was_when_its_cell_had_run_comes_along_where_later_cells_change_it():
    found = find("K = 7", "def f(): return max(K, 1)", "K = 8", "max = 3")
    assert DefinedAnswer(found["then"], "f").function() == 7
    assert "then" not in find("K = 7", "def f(): return K", "x = 8")


FRAGMENTS = r"""K = 2
K += 10
T.append(K)
T = T + [5]
D["b"] = len(T)
def set_k(): global K; K = 77
set_k()
put(T)
def outer(t): put(t)
outer(T)
note()
def twice(): note(); note()
twice()
[note() for _ in range(2)]
def reg(g): D[g.__name__] = g(); return g
@reg\ndef h(): return K
def g(): return (K, list(T))
S = [g() for i in range(2)]
C.v = K
class C:\n    v = 9\n    def __init__(self): T.append("init")
c = C()
lam = lambda: D.update(z=1)
lam()
from functools import partial\nq = partial(put, T)\nq()
if K > 3:\n    T = ["if"]
for i in range(3):\n    D[i] = K
del D["a"]
try:\n    import nothing_like_this\nexcept ImportError:\n    K = 5
if False:\n    K = 1000
if True:\n    D = {"fresh": 1}
X, *Y = T or [0]
(W := K + 1)
OLD = f()
def f(): global N; N = globals().get("N", 0) + 1; return N
f()
globals()["K"] = 55
exec("T = ['exec']")
setattr(C, "v", 44)
import random as rnd; rnd.seed(3)\nR = rnd.random()
T.sort(key=str)
T2 = T; T2.append("alias")
match K:\n    case M: pass
for row in [T]:\n    row.append("row")
def dflt(x, t=T): t.append(x)
dflt(3)
def local():\n    t = T\n    t.append("local")
local()
def rows():\n    for d in [D]: d["rows"] = 1
rows()
inner = D.setdefault("in", [])
inner.append(4)
for v in D.values():\n    if isinstance(v, list): v.append(0)""".replace("\\n", "\0").split("\n")
BASE = [
    "K = 1",
    "T = []",
    "D = {'a': 0}",
    "def put(t): t.append('p')",
    "def note(): T.append('n')",
    "def h(): return T",
]
BASE += ["def g(): return K", "def f(): return 'older'", "class C: v = 3", "X, Y, M, W, R, S, OLD = range(7)"]
ANSWERS = [
    "def f(): return K, T, D",
    "def f(): return g()",
    "def f(): return S",
    "def f(): return C.v, T",
    "f = lambda: (K, Y)",
]
ANSWERS += [
    "def f(): return R, K",
    "def f(): return h(), D",
    "def f(): return M, W",
    "def f(): return OLD",
    "def f(k=K): return k",
]


def run_whole(cells):
    """The names of a notebook that was run; None where something in it fails."""
    names = {"__name__": "__main__"}
    try:
        for cell in cells:
            exec(compile(cell, "<cell>", "exec"), names)
    except Exception:
        return None
    return names


@given(hypothesis.strategies.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None)
def test_any_notebook_that_runs_through_has_the_answer_that_is_graded(random):
    lines = [*random.sample(BASE, len(BASE)), *random.choices(FRAGMENTS, k=random.randint(2, 12))]
    lines.insert(random.randint(len(BASE), len(lines)), random.choice(ANSWERS))
    cells = ["\n".join(lines[i : i + 2]).replace("\0", "\n") for i in range(0, len(lines), 2)]
    names = run_whole(cells)
    assume(names is not None)
    found = find(*cells)
    assert repr(DefinedAnswer(found["code"], "f").function()) == repr(names["f"]()), found["code"]


# What the notebook would not have

LOST = {
    "a text cell that is no Python": [{"text": "My answer:\n```python\ndef f():\n    return 7\n```"}],
    "a comment": ["# def f():\n#     return 7"],
    "a text": ["'''\ndef f():\n    return 7\n'''"],
    "a class": ["class A:\n    def f(self): return 7"],
    "another function": [STUB, "def g():\n    def f(x): return 7\n    return f"],
    "dead code": ["if False:\n    def f(): return 7"],
    "a cell of another language": [STUB, "%%script false\ndef f(): return 7"],
    "a file": ["%%writefile my.py\ndef f(): return 7", "from my import f"],
    "another file": ["from my_answers import f"],
    "after exit": ["exit()\ndef f(): return 7"],
}


@pytest.mark.parametrize("cells", LOST.values(), ids=LOST)
def test_an_answer_that_may_be_lost_is_told(cells):
    found = find(*cells)
    assert found["status"] in ("missing", "stub") and found["aside"] and not found["code"]


@pytest.mark.parametrize(
    "cells",
    [
        [STUB],
        ["# def f():\n#     raise NotImplementedError"],
        ["from qlora_lab.quantization import f"],
        [{"text": "<details><summary>Solution</summary>\n\n```python\ndef f(): return 7\n```\n</details>"}],
        ["if False:\n    def f():\n        raise NotImplementedError"],
        [{"text": "def f is what is asked"}],
    ],
)
def test_what_was_not_answered_is_not_told_as_lost(cells):
    assert "aside" not in find(*cells)


def test_a_code_cell_that_became_a_text_cell_is_an_answer_and_told():
    found = find("K = 6", {"text": "def f(x): return K + x"}, STUB)
    assert value(found, 1) == 7 and found["aside"] == "in a text cell"
    assert "aside" not in find({"text": "def f(x): return 8"}, "def f(x): return 7")


@pytest.mark.parametrize(
    ("cells", "python"),
    [
        (['def f(): return f"{names["a"]}"'], "3.12"),
        (["def f():\n    return f'{x:{'>'}10}'"], "3.12"),
        (['x = f"{n["a"]}"', "def f(): return x"], "3.12"),
        (["def f[T](x: T): return x"], "3.12"),
        (["class A[T]: pass", "def f(): return A"], "3.12"),
        (["def f[T = int](x: T): return x"], "3.13"),
        (["def f():\n    return t'{1}'"], "3.14"),
        (["def f():\n    try: pass\n    except A, B: pass"], "3.14"),
        ([{"python": "3.99.1"}, "def f():\n    return new syntax"], "3.99"),
    ],
)
def test_an_answer_for_a_newer_python_says_which(cells, python):
    if tuple(map(int, python.split("."))) <= sys.version_info[:2]:
        pytest.skip("this Python reads it")
    found = find(*cells)
    assert found["status"] == "newer" and found["python"].startswith(python)
    assert find(*[c for c in cells if isinstance(c, str)])["status"] in ("newer", "broken")


def test_a_mistake_is_none_of_a_newer_python():
    assert find({"python": "3.11"}, "def f():\n    return (1")["status"] == "broken"
    assert find("def f(x):\n    return f'{x' + 1")["status"] == "broken"


@pytest.mark.parametrize(
    "source",
    [
        "a = 1\n" * 4000,
        "[" * 9000 + "=!x",
        "a[" * 9000 + "]=!x",
        "\n" * 28_000 + "def f(:",
        "".join(f"a{n} = a{n + 1}\n" for n in range(2000)),
        "".join(f"def a{n}():\n    global b{n}; b{n} = a{n + 1}()\n" for n in range(700)),
        "# def f(\n" * 3000,
        "import torch\n" + "torch.manual_seed(0)\n" * 1000 + "def f(): return torch.rand(a0)",
        "%time " * 4000,
        "x = f'" + "{f'" * 5000,
        "a = 1;" * 4000,
    ],
    ids=range(11),
)
def test_a_small_notebook_is_searched_with_little_work(source):
    """Counted in calls of Python functions: an hour of them would be no fewer on a faster machine."""
    calls = 0

    def count(frame, event, _):
        nonlocal calls
        calls += event == "call"

    cells = [source, "def f(): return a0"]
    sys.setprofile(count)
    try:
        find_answers(cells, ["f", *(f"f{n}" for n in range(40))])
    finally:
        sys.setprofile(None)
    assert calls < 4_000_000
