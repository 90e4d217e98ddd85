"""Find the answers in a notebook's cells by the names of their functions, with what each needs of the other cells.

Cells may be copied, reordered, renamed, without metadata: only the text of the code counts. Nothing is run here; but
parsing a text made for it can crash Python, so this runs inside the sandbox as well.
"""

import ast
import builtins
import re
import symtable

BUILTINS = frozenset(dir(builtins))
# `name =` before a `%` or a `!`: no Python. Subscripts may hold texts; elsewhere a quote ends it, as it may be in one.
ASSIGNED = re.compile(r"((?:[\w., \t]|\[[^\]]*\])+=)[ \t]*([%!])")
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def find_answers(cells: list[str], names: list[str]) -> dict[str, dict]:
    """For each name what was found of a function of that name.

    Args:
        cells: the sources of the code cells, in their order.
        names: of the functions.

    Returns:
        name -> {"status", "code"}. status: "answer"; "stub" (as it was handed out); "missing"; or "broken" (only in a
        cell that is no Python: `code` is that cell, and "problem" says what is wrong). code: the answer's last
        definition, after the other statements of the notebook that it needs, directly or not: imports, functions,
        classes and variables.
    """
    statements: list[Statement] = []
    broken: list[tuple[str, str]] = []
    for cell in cells:
        try:
            statements += _statements(cell)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            broken.append((cell, _tell(error)))
    return {name: _find(name, statements, broken) for name in names}


class Statement:
    """A statement at the top of a cell: its text, the names that it binds and those that it uses."""

    def __init__(self, node: ast.stmt, text: str):
        self.node, self.text = node, text
        self.binds = frozenset(_bound(node))
        self.imports = isinstance(node, ast.Import | ast.ImportFrom)
        self.star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        self.uses = frozenset(_used(symtable.symtable(text, "<cell>", "exec"), top=True)) - BUILTINS
        # `table.append(3)` or `table[0] = 3` adds to what `table` is; `torch.manual_seed(0)` is told apart later.
        self.changes = frozenset(_changed(node))
        self.stub = isinstance(node, ast.FunctionDef) and _is_stub(node)


def _find(name: str, statements: list[Statement], broken: list[tuple[str, str]]) -> dict:
    defining = [s for s in statements if name in s.binds and not s.imports]
    answers = [s for s in defining if not s.stub]
    if not answers:
        for cell, problem in broken:
            if re.search(rf"^\s*(?:def\s+{name}\b|{name}\s*=)", cell, re.MULTILINE):
                return {"status": "broken", "code": cell, "problem": problem}
        return {"status": "stub" if defining else "missing", "code": ""}
    answer = answers[-1]
    plain = isinstance(answer.node, SCOPES) and not answer.node.decorator_list
    without = {id(s) for s in defining if s is not answer and (plain or s.stub)}
    solved = {n for s in statements if not s.stub for n in s.binds}
    without |= {id(s) for s in statements if s.stub and s.binds & solved}
    modules = {n for s in statements if s.imports for n in s.binds}
    taken = [s for s in statements if s.star and id(s) not in without]
    needed = set(answer.uses)
    chosen = {id(answer), *map(id, taken)}
    while True:
        more = [
            s
            for s in statements
            if id(s) not in chosen | without and (s.binds & needed or (s.changes - modules) & needed)
        ]
        if not more:
            break
        chosen |= set(map(id, more))
        needed |= {n for s in more for n in s.uses}
    return {"status": "answer", "code": "\n\n".join(s.text for s in statements if id(s) in chosen)}


def _statements(cell: str) -> list[Statement]:
    try:
        tree = ast.parse(cell)
    except SyntaxError:
        cell = _without_magics(cell)
        tree = ast.parse(cell)
    lines = cell.split("\n")
    found = []
    for place, node in enumerate(tree.body):
        first, last = _lines(node)
        before = _lines(tree.body[place - 1])[1] if place else 0
        after = _lines(tree.body[place + 1])[0] if place + 1 < len(tree.body) else last + 1
        alone = before < first and last < after
        found.append(Statement(node, "\n".join(lines[first - 1 : last]).rstrip() if alone else ast.unparse(node)))
    return found


def _lines(node: ast.stmt) -> tuple[int, int]:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]), node.end_lineno


def _without_magics(cell: str) -> str:
    """IPython's own lines (`%time`, `!pip`, `%%capture`, `help?`) made comments, also where they are continued.

    What one assigns (`files = !ls`, `r = %timeit -o f(1)`) stays bound: to no lines, or to nothing.
    """
    lines, continued = [], False
    for line in cell.split("\n"):
        magic = True
        if continued:
            lines.append(f"# {line}")
        elif assigned := ASSIGNED.match(line):
            lines.append(f"{assigned[1]} {'[]' if assigned[2] == '!' else 'None'}  # {line.strip()}")
        elif re.match(r"\s*[%!?]", line) or re.match(r"\s*[\w.]+\?{1,2}\s*$", line):
            indent = re.match(r"\s*", line)[0]
            lines.append(f"{indent}pass  # {line.strip()}" if indent else f"# {line}")
        else:
            lines.append(line)
            magic = False
        continued = magic and line.endswith("\\")
    return "\n".join(lines)


def _bound(node: ast.stmt) -> set[str]:
    """Names that a statement binds in the scope it stands in."""
    if isinstance(node, SCOPES):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case | ast.withitem | ast.expr):
            found |= _bound(child)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        found.add(node.id)
    return found


def _used(scope: symtable.SymbolTable, top: bool = False) -> set[str]:
    """Names of the notebook that a statement uses; arguments and local variables of its functions are none."""
    found = {s.get_name() for s in scope.get_symbols() if (top or s.is_global()) and s.is_referenced()}
    return found.union(*map(_used, scope.get_children()))


def _changed(node: ast.stmt) -> set[str]:
    """Names of what a statement outside functions changes in place."""
    if isinstance(node, SCOPES):
        return set()
    if isinstance(node, ast.Expr):
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            return _root(call.func)
        return set()
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    found = {n for t in targets if isinstance(t, ast.Subscript | ast.Attribute) for n in _root(t)}
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            found |= _changed(child)
    return found


def _root(node: ast.expr) -> set[str]:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def _is_stub(node: ast.FunctionDef) -> bool:
    body = node.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):  # the docstring, or `...`
        body = body[1:]
    if not body:
        return True
    if len(body) > 1:
        return False
    if isinstance(body[0], ast.Raise):
        raised = body[0].exc.func if isinstance(body[0].exc, ast.Call) else body[0].exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    return isinstance(body[0], ast.Pass)


def _tell(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        line = (error.text or "").strip()[:80]
        return f"SyntaxError: {error.msg}" + (f", in `{line}`" if line else "")
    return f"{type(error).__name__}: it cannot be parsed"
