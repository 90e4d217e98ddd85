"""Find the answers in a notebook's cells by the names of their functions, with what each needs of the other cells.

Cells may be copied, reordered, renamed, without metadata: only the text of the code counts. The measure is what the
notebook itself would do, run from top to bottom: an answer is the last definition that is run, and with it comes
whatever binds or changes a name that it needs, also through calls. What a notebook does not run (`if False:`,
`%%script`, a text cell, a comment) is no definition, but is told, since an answer may have got lost there.

Nothing is run here; but parsing a text made for it can crash Python, so this runs inside the sandbox as well.
"""

import ast
import builtins
import re
import symtable
import sys
import textwrap
from collections import defaultdict

from . import reading

SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
OWN_SCOPE = (*SCOPES, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# Methods and functions that change what they are called on, or given first. Those of torch end in `_`.
MUTATORS = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "clear", "remove", "discard"}
MUTATORS |= {"sort", "reverse", "shuffle", "heappush", "heapify", "heappop", "insort", "insort_left", "insort_right"}
MUTATORS |= {"setattr", "delattr", "setitem", "put", "copyto", "fill_diagonal", "appendleft", "extendleft", "rotate"}
MUTATORS |= {"at"}  # `numpy.add.at`
# What need not come to what stands in it: a name that it binds may still be what it was before.
MAY_BIND = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar, ast.Match, ast.With, ast.AsyncWith)
# Functions of modules that change how other functions of them behave.
SETTINGS = {"seed", "manual_seed", "set_default_dtype", "set_default_tensor_type", "set_grad_enabled", "seterr"}
SEEDS = {"seed", "manual_seed"}
RANDOM = re.compile(r"rand|shuffle|normal|uniform|bernoulli|dropout|sample|choice|multinomial|init")
BY_TEXT = {"globals", "locals", "vars", "eval", "exec"}  # reach names by what stands in a text
ENDS = {"exit", "quit"}


def find_answers(cells: list, names: list[str]) -> dict[str, dict]:
    """For each name what was found of a function of that name.

    Args:
        cells: in their order, the source of a code cell, or {"text": the source of another cell}. {"python": "3.13"}
            anywhere says which Python the notebook was written with.
        names: of the functions.

    Returns:
        name -> {"status", "code"}, the status one of

        "answer": `code` has the last definition, after the other statements of the notebook that it needs, directly or
        not. "then", if that is something else: the same when only the notebook up to its cell had been run. "aside":
        where it stands, if the notebook does not run it.
        "stub": as it was handed out.
        "missing": no function of this name.
        "broken": it stands in a cell that is no Python; `code` is that cell, and "problem" says what is wrong.
        "newer": it needs a newer Python than this one, which "python" names; `code` and "problem" as above.

        "aside" beside "stub" or "missing": where an answer may have got lost.
    """
    notebook = Notebook(cells)
    return {name: notebook.find(name) for name in names}


class Statement:
    """A statement at the top of a cell: its text, the names that it binds, uses and changes.

    Args:
        cell: the number of its cell.
        aside: why the notebook does not run it, or nothing.
        newer: the Python that its syntax needs, or nothing.
    """

    def __init__(self, node: ast.stmt, text: str, cell: int, aside: str = "", newer: str = ""):
        self.node, self.text, self.cell, self.aside, self.newer = node, text, cell, aside, newer
        self.binds = _bound(node)
        self.imports = isinstance(node, ast.Import | ast.ImportFrom)
        self.star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        self.future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        compile(ast.Module([node], []), "<cell>", "exec", dont_inherit=True)  # not so: `await` outside a function
        table = symtable.symtable(text, "<cell>", "exec")
        self.uses = _used(table, top=True)
        self.stub = isinstance(node, ast.FunctionDef) and _is_stub(node)
        self.checks = _checks(node)
        # `table.append(3)`, `table[0] = 3` and `fill(table)` change what `table` is; a call may change more.
        self.changes, self.calls, self.given = _changed(node)
        if self.uses & BY_TEXT:
            named = _identifiers(node)
            self.uses |= named
            if not isinstance(node, SCOPES):
                self.changes |= named
        # What calling the function that it defines changes: names outside, and arguments (by their number).
        self.effects, self.mutates = _effects(node, table)
        self.passes = _passes(node)
        self.aliases = {pair for one in _outside(node) for pair in _aliases(one)}
        self.setting = _setting(node)
        self.sets = _sets(node)

    @property
    def plain(self) -> bool:
        """Whether it defines its name without looking at what had the name before."""
        return isinstance(self.node, SCOPES) and not self.node.decorator_list


class Notebook:
    """Its statements, and who binds, changes and uses which name."""

    def __init__(self, cells: list):
        self.python = next((cell["python"] for cell in cells if isinstance(cell, dict) and "python" in cell), "")
        self.newer = _version(self.python) > sys.version_info[:2]
        self.statements: list[Statement] = []
        self.asides: list[Statement] = []
        self.text_cells: list[tuple[int, str]] = []
        self.code_cells: dict[int, str] = {}
        self.broken: list[tuple[str, str]] = []
        self.unread: list[tuple[str, str, str]] = []  # (text, Python that it needs, problem)
        for number, cell in enumerate(cells):
            if isinstance(cell, str):
                self.code_cells[number] = cell
                self._take(cell, number)
            elif "text" in cell:
                self.text_cells.append((number, cell["text"]))
        self.live = _Program(self.statements)

    def _take(self, source: str, number: int) -> None:
        try:
            cell = reading.Cell(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if not (self.newer and isinstance(error, SyntaxError)):
                self.broken.append((source, _tell(error)))
                return
            cell = None
        if cell is not None:
            self._split(cell, number)
            return
        # The notebook's own Python may read what this one does not: what can be read in parts, is.
        for part in reading.parts(source):
            try:
                self._split(reading.Cell(part), number)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                self.unread.append((part, self.python, _tell(error)))

    def _split(self, cell: reading.Cell, number: int) -> None:
        for node, text, aside, newer in _statements(cell):
            try:
                statement = Statement(node, text, number, aside, newer)
            except (SyntaxError, ValueError, RecursionError):  # as `return` outside a function
                continue
            (self.asides if aside else self.statements).append(statement)

    def find(self, name: str) -> dict:
        """As `find_answers` tells it."""
        found = self.live.find(name)
        if found["status"] == "answer":
            return self._readable(found, name)
        defines = re.compile(rf"^[ \t]*(?:async[ \t]+)?(?:def[ \t]+{name}\b|{name}[ \t]*=)", re.MULTILINE)
        for text, python, problem in self.unread:
            if defines.search(text):
                return {"status": "newer", "code": text, "python": python, "problem": problem}
        for cell, problem in self.broken:
            if defines.search(cell):
                return {"status": "broken", "code": cell, "problem": problem}
        return self._beside(name, found)

    def _readable(self, found: dict, name: str) -> dict:
        """An answer; or that it needs a newer Python, as what it leans on does."""
        needed = [s for s in found.pop("statements") if s.newer]
        if needed:
            newest = max((s.newer for s in needed), key=_version)
            code = "\n\n".join(self.code_cells.get(cell, "") for cell in sorted({s.cell for s in needed}))
            return {"status": "newer", "code": code, "python": newest, "problem": "an older one cannot read it"}
        for text, python, problem in self.unread:
            bound = set(re.findall(r"^[ \t]*(?:def|class)[ \t]+(\w+)|^(\w+)[ \t]*=", text, re.MULTILINE))
            if {n for pair in bound for n in pair if n} & found["uses"]:
                return {"status": "newer", "code": found["code"], "python": python, "problem": problem}
        found.pop("uses")
        return found

    def _beside(self, name: str, found: dict) -> dict:
        """What was not found among what the notebook runs, where it does not run it."""
        found = {"status": found["status"], "code": ""}
        for number, text in reversed(self.text_cells):
            if (answer := self._turned(name, number, text)) is not None:
                return answer
        for statement in reversed(self.asides):
            if name in statement.binds and not statement.stub and isinstance(statement.node, SCOPES):
                return found | {"aside": statement.aside}
        texts = [("in a text cell", reading.without_folded(text)) for _, text in self.text_cells]
        texts += [("in a comment, a text or a class", cell) for cell in self.code_cells.values()]
        for place, text in reversed(texts):
            if _written(name, text):
                return found | {"aside": place}
        imported = [s for s in self.statements if s.imports and name in s.binds and not _masked(s.node)]
        if imported:
            return found | {"aside": f"imported by `{imported[-1].text.strip()[:100]}`, which is not in the notebook"}
        return found

    def _turned(self, name: str, number: int, text: str) -> dict | None:
        """An answer in a code cell that became a text cell: its whole text is Python."""
        if not re.search(rf"^[ \t]*(?:async[ \t]+)?(?:def[ \t]+{name}\b|{name}[ \t]*=)", text, re.MULTILINE):
            return None
        try:
            cell = reading.Cell(text)
            own = [Statement(node, part, number) for node, part, aside, _ in _statements(cell) if not aside]
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
        if not any(name in s.binds and not s.stub and not s.imports for s in own):
            return None
        before = [s for s in self.statements if s.cell < number]
        after = [s for s in self.statements if s.cell > number]
        answer = _Program([*before, *own, *after]).find(name)
        if answer["status"] != "answer":
            return None
        return self._readable(answer, name) | {"aside": "in a text cell"}


class _Program:
    """Statements in the order in which they are run."""

    def __init__(self, statements: list[Statement]):
        self.statements = statements
        self.binders: dict[str, list[int]] = defaultdict(list)
        self.changers: dict[str, list[int]] = defaultdict(list)
        self.callers: dict[str, list[int]] = defaultdict(list)
        self.users: dict[str, list[int]] = defaultdict(list)
        self.movers: dict[str, list[int]] = defaultdict(list)
        self.mutates: dict[str, set[int]] = defaultdict(set)
        self.aliases: dict[str, set[str]] = defaultdict(set)
        self.settings: list[int] = []
        self.modules: set[str] = set()
        self.solved = {n for s in statements if not s.stub for n in s.binds}
        # Below `f = check("f", f)` the notebook calls what was found right, or the finished version.
        self.checked = {n for s in statements if s.checks for n in s.binds}
        for place, s in enumerate(statements):
            for name in s.binds:
                self.binders[name].append(place)
            for name in s.calls:
                self.callers[name].append(place)
            for name in s.uses:
                self.users[name].append(place)
            for name in s.effects:
                self.movers[name].append(place)
            if s.setting:
                self.settings.append(place)
            for other, name in s.aliases:
                self.aliases[name].add(other)
            if s.imports:
                self.modules |= s.binds
            if s.mutates and isinstance(s.node, SCOPES):
                self.mutates[s.node.name] |= s.mutates
        for _ in range(5):  # through functions that hand it on
            for s in statements:
                for function, number, own in s.passes:
                    if number in self.mutates.get(function, ()):
                        self.mutates[s.node.name].add(own)
        for place, s in enumerate(statements):
            changed = set(s.changes)
            for function, number, name in s.given:
                if number in self.mutates.get(function, ()):
                    changed.add(name)
                    self.movers[name].append(place)
            for name in changed:
                self.changers[name].append(place)

    def find(self, name: str) -> dict:
        defining = [p for p in self.binders.get(name, []) if not self._passed_over(self.statements[p])]
        answers = [p for p in defining if not self.statements[p].stub]
        if not answers:
            return {"status": "stub" if defining else "missing", "code": ""}
        end = answers[-1]
        found = self._with_needs(name, end, defining)
        cell = self.statements[end].cell
        if self.statements[-1].cell > cell:
            last = max(p for p, s in enumerate(self.statements) if s.cell <= cell)
            then = self._with_needs(name, end, [p for p in defining if p <= last], last)
            if then["code"] != found["code"]:
                found["then"] = then["code"]
        return found

    @staticmethod
    def _passed_over(statement: Statement) -> bool:
        return statement.imports or statement.checks

    def _with_needs(self, name: str, end: int, defining: list[int], last: int | None = None) -> dict:
        """The code of an answer.

        Args:
            end: the place of its definition. defining: those of all definitions.
            last: the place of the last statement that is run. None: all are.
        """
        answer = self.statements[end]
        without = {p for p in defining if p != end and (answer.plain or self.statements[p].stub)}
        chosen, uses = self._needed(end, without, last)
        if answer.plain and any(name in self.statements[p].uses for p in chosen if p != end):
            without = {p for p in defining if p != end and self.statements[p].stub}  # something was made by an earlier
            chosen, uses = self._needed(end, without, last)
        statements = [self.statements[p] for p in sorted(chosen)]
        statements = [s for s in statements if s.future] + [s for s in statements if not s.future]
        code = "\n\n".join(s.text for s in statements)
        return {"status": "answer", "code": code, "statements": statements, "uses": uses}

    def _needed(self, end: int, without: set[int], last: int | None) -> tuple[set[int], set[str]]:
        """The places of the statements that one needs, and the names that these use.

        Each name, function and statement is looked at once.
        """
        limit = len(self.statements) if last is None else last + 1
        chosen: set[int] = set()
        needed: set[str] = set()
        moving: set[int] = set()  # statements whose functions change something that is needed
        names: list[str] = []
        places = [end, *(p for p, s in enumerate(self.statements) if (s.star or s.future) and not _masked(s.node))]

        def choose(place: int) -> None:
            s = self.statements[place]
            if place in chosen or place in without or place >= limit or s.checks or (s.stub and s.binds & self.solved):
                return
            chosen.add(place)
            for name in s.uses - needed:
                needed.add(name)
                names.append(name)

        def move(place: int) -> None:
            """Whoever calls the function that a statement defines, or one that calls it, is needed."""
            waiting = [place]
            while waiting:
                place = waiting.pop()
                if place in moving:
                    continue
                moving.add(place)
                for bound in self.statements[place].binds:
                    for user in self.users.get(bound, ()):
                        if user != place and self.statements[user].binds:
                            waiting.append(user)
                    for caller in self.callers.get(bound, ()):
                        choose(caller)

        for place in places:
            choose(place)
        if isinstance(self.statements[end].node, MAY_BIND):
            for place in {p for bound in self.statements[end].binds for p in self.binders[bound]}:
                choose(place)
        for _ in range(3):  # what sets a module up may need something itself
            while names:
                name = names.pop()
                for place in self.binders.get(name, ()):
                    choose(place)
                # `torch.cat(parts).sort()` changes nothing of torch: what a module's function gives is not the module.
                # Nor is what `zip` or `range` gives Python's own, unless a statement binds the name.
                module = name in self.modules or (hasattr(builtins, name) and name not in self.binders)
                for place in self.changers.get(name, ()):
                    if not module or name in self.statements[place].sets:
                        choose(place)
                for place in self.movers.get(name, ()):
                    s = self.statements[place]
                    if not s.binds & self.checked and (not module or name in s.sets):
                        move(place)
                for other in () if module else self.aliases.get(name, set()) - needed:
                    needed.add(other)
                    names.append(other)
            random = self.settings and any(RANDOM.search(self.statements[p].text) for p in chosen)
            for place in self.settings:
                module, function = self.statements[place].setting
                if module in needed and (random or function not in SEEDS):
                    choose(place)
        return chosen, needed


def _statements(cell: reading.Cell) -> list[tuple[ast.stmt, str, str, str]]:
    """(node, text, why it is not run, the Python that it needs) of each statement of a cell."""
    lines = cell.text.split("\n")
    found = []
    body = cell.tree.body
    for place, node in enumerate(body):
        first, last = _lines(node)
        before = _lines(body[place - 1])[1] if place else 0
        after = _lines(body[place + 1])[0] if place + 1 < len(body) else last + 1
        alone = before < first and last < after
        text = "\n".join(lines[first - 1 : last]).rstrip() if alone else ast.unparse(node)
        newer = max((v for line, v in cell.newer.items() if first <= line <= last), key=_version, default="")
        found += [(one, part, aside or cell.aside, newer) for one, part, aside in _run(node, text, lines)]
    ended = ""
    told = []
    for node, text, aside, newer in found:
        told.append((node, text, aside or ended, newer))
        if not aside and not ended and _ends_cell(node):
            ended = f"after `{text.strip().splitlines()[0][:40]}`"
    return told


def _run(node: ast.stmt, text: str, lines: list[str], aside: str = "") -> list[tuple[ast.stmt, str, str]]:
    """A statement, or those in it where an `if` is always or never true."""
    if isinstance(node, ast.If) and (test := _constant(node.test)) is not None:
        words = f"under `if {ast.unparse(node.test)[:40]}:`"
        branches = [(node.body, "" if test else words), (node.orelse, words.replace("if", "else of if", 1) * test)]
    elif isinstance(node, ast.While) and _constant(node.test) is False:
        branches = [(node.body, f"under `while {ast.unparse(node.test)[:40]}:`"), (node.orelse, "")]
    else:
        return [(node, text, aside)]
    found = []
    for body, words in branches:
        for child in body:
            first, last = _lines(child)
            part = textwrap.dedent("\n".join(lines[first - 1 : last])).rstrip()
            try:
                whole = ast.dump(ast.parse(part)) == ast.dump(ast.Module([child], []))
            except (SyntaxError, ValueError):
                whole = False
            found += _run(child, part if whole else ast.unparse(child), lines, aside or words)
    return found


def _constant(node: ast.expr) -> bool | None:
    """Whether a condition holds, if that is known beforehand: in a notebook `__name__` is "__main__"."""

    class Known(ast.NodeTransformer):
        def visit_Name(self, node):
            known = {"__name__": "__main__", "TYPE_CHECKING": False}
            return ast.Constant(known[node.id]) if node.id in known else node

    try:
        return bool(_value(Known().visit(ast.parse(ast.unparse(node), mode="eval").body)))
    except (ValueError, TypeError, SyntaxError):
        return None


def _value(node: ast.expr):
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return not _value(node.operand)
    if isinstance(node, ast.BoolOp):
        return (all if isinstance(node.op, ast.And) else any)(_value(value) for value in node.values)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = _value(node.left), _value(node.comparators[0])
        if isinstance(node.ops[0], ast.Eq | ast.Is):
            return left == right
        if isinstance(node.ops[0], ast.NotEq | ast.IsNot):
            return left != right
        raise ValueError
    return ast.literal_eval(node)


def _ends_cell(node: ast.stmt) -> bool:
    """Whether nothing after it in its cell is run."""
    if isinstance(node, ast.Assert):
        return _constant(node.test) is False
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        function = node.value.func
        return ast.unparse(function) in ("sys.exit", "os._exit", "os.abort") or (
            isinstance(function, ast.Name) and function.id in ENDS
        )
    return isinstance(node, ast.Raise)


def _lines(node: ast.stmt) -> tuple[int, int]:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]), node.end_lineno


def _bound(node: ast.AST) -> set[str]:
    """Names that a statement binds in the scope it stands in."""
    if isinstance(node, SCOPES):
        return {node.name}
    if isinstance(node, ast.Lambda) or (isinstance(node, ast.AnnAssign) and node.value is None):
        return set()
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    found = set()
    inner = isinstance(node, COMPREHENSIONS)  # their variables are their own; `:=` binds outside
    for child in ast.iter_child_nodes(node):
        if inner:
            walrus = [n for n in ast.walk(child) if isinstance(n, ast.NamedExpr)]
            found |= {n.target.id for n in walrus}
        elif not isinstance(child, ast.expr_context | ast.operator | ast.cmpop):
            found |= _bound(child)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        found.add(node.id)
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        found.add(node.name)
    if isinstance(node, ast.MatchMapping) and node.rest:
        found.add(node.rest)
    return found


def _used(scope: symtable.SymbolTable, top: bool = False) -> set[str]:
    """Names of the notebook that a statement uses; arguments and local variables of its functions are none.

    A name that a function binds by `global` is one, too: something may read it, as `COUNT += 1` does.
    """
    open_scope = top or scope.get_type() == "class"
    found = {s.get_name() for s in scope.get_symbols() if s.is_referenced() and (open_scope or s.is_global())}
    found |= {s.get_name() for s in scope.get_symbols() if not top and s.is_declared_global()}
    found = {name for name in found if name.isidentifier()}
    return found.union(*map(_used, scope.get_children()))


def _outside(node: ast.AST):
    """The nodes that are run when a statement is: not the bodies of functions that it defines."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, OWN_SCOPE):
            waiting += getattr(node, "decorator_list", [])
            if isinstance(node, ast.ClassDef):
                waiting += [*node.bases, *(k.value for k in node.keywords), *node.body]
        else:
            waiting += ast.iter_child_nodes(node)


def _changed(node: ast.stmt) -> tuple[set[str], set[str], set[tuple[str, int, str]]]:
    """(names of what a statement changes in place, functions that it calls, (function, number, name given to it))."""
    changed, calls, given = set(), set(), set()
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        changed |= _root(node.value.func)
    for one in _outside(node):
        changed |= _stored(one)
        for decorator in getattr(one, "decorator_list", []):
            calls |= _root(decorator)
        if isinstance(one, ast.Call):
            calls |= _root(one.func)
            # `list(map(note, items))` calls what it is given.
            calls |= {a.id for a in (*one.args, *(k.value for k in one.keywords)) if isinstance(a, ast.Name)}
            if isinstance(one.func, ast.Name):
                given |= {(one.func.id, n, name) for n, a in enumerate(one.args) for name in _root(a)}
            if one.args and isinstance(one.args[0], ast.Name):  # `partial(add, table)` gives it, too
                given |= {(one.args[0].id, n, name) for n, a in enumerate(one.args[1:]) for name in _root(a)}
    return changed, calls, given


def _stored(one: ast.AST) -> set[str]:
    """What a node changes in place."""
    if isinstance(one, ast.Subscript | ast.Attribute) and isinstance(one.ctx, ast.Store | ast.Del):
        return _root(one)
    if not isinstance(one, ast.Call):
        return set()
    changed = {name for k in one.keywords if k.arg == "out" for name in _root(k.value)}
    attribute = isinstance(one.func, ast.Attribute)
    name = one.func.attr if attribute else getattr(one.func, "id", "")
    if name in MUTATORS or (name.endswith("_") and not name.endswith("__")):
        changed |= _root(one.func) if attribute else set()
        changed |= {n for a in one.args for n in _root(a)}
    return changed


def _effects(node: ast.stmt, table: symtable.SymbolTable) -> tuple[set[str], set[int]]:
    """What calling the functions in a statement changes: names outside of them, and arguments of its own, by number."""
    if not any(isinstance(n, OWN_SCOPE) for n in ast.walk(node)):
        return set(), set()
    own = set()
    scopes = list(table.get_children())
    outside = {s.get_name() for s in table.get_symbols() if s.is_referenced()}  # defaults of arguments
    while scopes:
        scope = scopes.pop()
        own |= {s.get_name() for s in scope.get_symbols() if s.is_declared_global() and s.is_assigned()}
        outside |= {s.get_name() for s in scope.get_symbols() if s.is_global()}
        scopes += scope.get_children()
    stored = {name for one in ast.walk(node) for name in _stored(one)}
    pairs = {pair for one in ast.walk(node) for pair in _aliases(one)}
    stored |= {source for other, source in pairs if other in stored}
    arguments = []
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
    aug = {n.target.id for n in ast.walk(node) if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)}
    return own | (stored & outside), {n for n, name in enumerate(arguments) if name in stored | aug}


def _aliases(one: ast.AST) -> set[tuple[str, str]]:
    """(name, other) where what has the name is, or lies in, what has the other: `a = b`, `for a in b`, `def f(a=b)`."""
    if isinstance(one, ast.Assign | ast.AnnAssign | ast.NamedExpr) and one.value is not None:
        targets, value = one.targets if isinstance(one, ast.Assign) else [one.target], one.value
        part = isinstance(value, ast.Name | ast.Attribute | ast.Subscript)
        part |= isinstance(value, ast.Call) and getattr(value.func, "attr", "") in (
            "get",
            "setdefault",
            "values",
            "items",
        )
        sources = _root(value) if part else set()
    elif isinstance(one, ast.For | ast.AsyncFor | ast.comprehension):
        targets, sources = [one.target], {n.id for n in ast.walk(one.iter) if isinstance(n, ast.Name)}
    elif isinstance(one, ast.arguments):
        arguments = [*one.posonlyargs, *one.args]
        pairs = [*zip(arguments[len(arguments) - len(one.defaults) :], one.defaults, strict=True)]
        pairs += [(a, d) for a, d in zip(one.kwonlyargs, one.kw_defaults, strict=True) if d is not None]
        return {(a.arg, name) for a, default in pairs for name in _root(default)}
    else:
        return set()
    names = {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return {(name, source) for name in names for source in sources}


def _passes(node: ast.stmt) -> set[tuple[str, int, int]]:
    """(function, number, number of its own) of each argument that a function hands on."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return set()
    own = {a.arg: n for n, a in enumerate((*node.args.posonlyargs, *node.args.args))}
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return {
        (call.func.id, number, own[a.id])
        for call in calls
        for number, a in enumerate(call.args)
        if isinstance(a, ast.Name) and a.id in own
    }


def _root(node: ast.expr) -> set[str]:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Starred):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def _identifiers(node: ast.AST) -> set[str]:
    """Words in the texts of a statement, and names of arguments: `globals()["K"]`, `globals().update(K=3)`."""
    texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    words = {word for text in texts for word in re.findall(r"[^\W\d]\w*", text[:10_000])}
    return words | {n.arg for n in ast.walk(node) if isinstance(n, ast.keyword) and n.arg}


def _sets(node: ast.stmt) -> set[str]:
    """Names something of which is bound or deleted, here or in a function: `torch.pi = 3`, `del np.e`."""
    kinds = ast.Attribute | ast.Subscript
    found = [n for n in ast.walk(node) if isinstance(n, kinds) and isinstance(n.ctx, ast.Store | ast.Del)]
    return {name for n in found if not any(isinstance(part, ast.Call) for part in ast.walk(n)) for name in _root(n)}


def _setting(node: ast.stmt) -> tuple[str, str] | None:
    """(module, function) of `torch.manual_seed(0)` and the like."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        for root in _root(node.value.func):
            if node.value.func.attr in SETTINGS:
                return root, node.value.func.attr
    return None


def _checks(node: ast.stmt) -> bool:
    """Whether it is `decode = check("decode", decode)`, which gives the answer back."""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
        return False
    call = node.value
    if not isinstance(call, ast.Call) or _root(call.func) == set() or ast.unparse(call.func).split(".")[-1] != "check":
        return False
    return any(isinstance(a, ast.Name) and a.id == node.targets[0].id for a in call.args)


def _masked(node: ast.stmt) -> bool:
    """Whether it imports of the finished package."""
    module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    return module.partition(".")[0] == "qlora_lab" and module != "qlora_lab.mine"


def _written(name: str, text: str) -> bool:
    """Whether a function stands anywhere in a text, and is not as it was handed out."""
    for found in list(re.finditer(rf"^([ \t#>.\"']*)(?:async[ \t]+)?def[ \t]+{name}[ \t]*\(", text, re.MULTILINE))[
        -20:
    ]:
        mark = found[1]
        lines = text[found.start() :][:20_000].split("\n")
        # Without what stands before each line of it: spaces, or the marks of a comment.
        bare = [line[len(mark) :] if line.startswith(mark) else line.lstrip("#> ") for line in lines]
        for end in range(min(len(bare), 80), 0, -1):
            try:
                node = ast.parse("\n".join(bare[:end])).body[0]
            except (SyntaxError, ValueError, IndexError, RecursionError, MemoryError):
                continue
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if not mark and not _in_text(text, found.start()):
                    break  # at the top of a cell: found, and told, already
                if not _is_stub(node):
                    return True
                break
        else:
            return True
    return False


def _in_text(text: str, place: int) -> bool:
    """Whether a place at the begin of a line is none of a statement's: in a text cell, or within quotes."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True
    line = text.count("\n", 0, place) + 1
    return not any(
        isinstance(node, ast.stmt) and _lines(node)[0] <= line <= node.body[0].lineno
        for node in tree.body
        if isinstance(node, SCOPES)
    )


def _is_stub(node: ast.FunctionDef) -> bool:
    body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    if not body:  # the docstring, or `...`
        return True
    if len(body) > 1:
        return False
    if isinstance(body[0], ast.Raise):
        raised = body[0].exc.func if isinstance(body[0].exc, ast.Call) else body[0].exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    return isinstance(body[0], ast.Pass)


def _version(text: str) -> tuple[int, ...]:
    """(3, 12) of "3.12.4"; nothing of what is no version."""
    return tuple(map(int, re.findall(r"\d{1,4}", text)[:2])) if re.match(r"\d+\.\d+", text) else ()


def _tell(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        line = (error.text or "").strip()[:80]
        return f"SyntaxError: {error.msg}" + (f", in `{line}`" if line else "")
    return f"{type(error).__name__}: it cannot be parsed"
