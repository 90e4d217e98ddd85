"""A notebook's cell as Python: IPython's own lines taken out, syntax newer than this Python told from mistakes.

What IPython does to a cell before Python sees it is done here as well: prompts and a common indentation go, `%time x`
is `x`, and a cell that begins with `%%script` is none of Python's.
"""

import ast
import re
import sys

# Cells that begin with these are not run as Python of the notebook, or bind no names in it.
NOT_PYTHON = {"script", "bash", "sh", "ruby", "perl", "python", "python2", "python3", "pypy", "cmd", "powershell"}
NOT_PYTHON |= {"html", "HTML", "javascript", "js", "latex", "markdown", "svg", "SVG", "writefile", "file", "system"}
NOT_PYTHON |= {"sx", "!", "timeit", "R", "sql", "cython", "shell", "bigquery", "skip", "false"}
LINE_MAGIC = re.compile(r"[ \t]*(?:[%!?]|[\w.]+\?{1,2}[ \t]*$)")
RUNS = re.compile(r"[ \t]*%(?:time|prun)[ \t]+((?!-)\S.*)$")  # `%time x = f(3)` binds x
ASSIGNS = re.compile(r"=[ \t]*([%!])(?!=)")
PROMPTS = (
    (re.compile(r">>>(?: |$)"), re.compile(r"^(?:>>>|\.\.\.)(?: |$)")),
    (re.compile(r"In ?\[\d*\]: ?"), re.compile(r"^(?:In ?\[\d*\]: ?| *\.{3,}: ?)")),
)
BEGINS = re.compile(r"(?:def|class|async|import|from|@|type)\b|@")
CONTINUES = re.compile(r"(?:else|elif|except|finally|case)\b")
PREFIX = re.compile(r"(?<![\w])([rbfutRBFUT]{1,2})$")
PARAMETERS = re.compile(r"([ \t]*(?:async[ \t]+def|def|class|type)[ \t]+\w+)[ \t]*(?=\[)")
ALIAS = re.compile(r"([ \t]*)type[ \t]+(\w+)[ \t]*=(?!=)")
SEVERAL = re.compile(r"([ \t]*except[ \t]+)([\w.]+(?:[ \t]*,[ \t]*[\w.]+)+)[ \t]*:")
LAZY = re.compile(r"([ \t]*)lazy[ \t]+(?=(?:import|from)\b)")


class Cell:
    """A code cell.

    Attributes:
        text, tree: as Python, and parsed. newer: line of the text -> the Python whose syntax stood there, where that is
            newer than this one; something else that can be parsed stands in its place. aside: why the notebook does not
            run the cell, or nothing.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it cannot be parsed.
    """

    def __init__(self, source: str):
        source = _plain(source)
        self.aside, self.newer = "", {}
        first, _, rest = source.lstrip("\n").partition("\n")
        if first.startswith("%%"):
            magic = first[2:].split()[:1]
            if magic and magic[0] in NOT_PYTHON:
                self.aside = f"in a cell that begins with `{first[:40]}`"
            # The line stays as a comment, so that what is found is found again.
            source = f"# {first}\n{rest}"
        self.text = source
        try:
            self.tree = ast.parse(source)
            return
        except SyntaxError as error:
            problem = error
        try:
            lines = [_as_python(line) for line in logical_lines(source)]
            self.text = "\n".join(lines)
            try:
                self.tree = ast.parse(self.text)
                return
            except SyntaxError as error:
                problem = error
            self._older(lines)
        except SyntaxError:
            if self.aside:  # no Python, and not meant to be
                self.text, self.tree = "", ast.parse("")
                return
            raise problem from None

    def _older(self, lines: list[str]) -> None:
        """Put what this Python reads in the place of what only newer ones do."""
        text, number = [], 1
        for line in lines:
            older, version = _older(line)
            text.append(older)
            count = older.count("\n") + 1
            if version:
                self.newer |= dict.fromkeys(range(number, number + count), version)
            number += count
        if not self.newer:
            raise SyntaxError
        self.text = "\n".join(text)
        self.tree = ast.parse(self.text)


def parts(source: str) -> list[str]:
    """A cell in parts, each a statement with all that is indented below it."""
    found: list[list[str]] = []
    decorated = False
    for line in logical_lines(_plain(source)):
        top = bool(line.strip()) and not line[0].isspace() and not line.startswith(("#", ")", "]", "}"))
        if not found or (top and not decorated and not CONTINUES.match(line)):
            found.append([])
        found[-1].append(line)
        decorated = line.startswith("@") or (decorated and not top)
    return ["\n".join(lines) for lines in found]


def without_folded(text: str) -> str:
    """A text cell without what is folded away: hints and solutions."""
    return re.sub(r"<details\b.*?(?:</details>|\Z)", "", text, flags=re.DOTALL | re.IGNORECASE)


def logical_lines(text: str) -> list[str]:
    """The lines of a program, each with those that its brackets, quotes and backslashes take in."""
    found, begin, place, depth = [], 0, 0, 0
    fresh = True
    size = len(text)
    while place < size:
        if fresh:
            end = _magic_end(text, place)
            if end > place:
                place = end
            fresh = False
            if place >= size:
                break
        c = text[place]
        if c == "\n":
            if depth and not BEGINS.match(text, place + 1):
                place += 1
                continue
            found.append(text[begin:place])
            begin, depth, fresh = place + 1, 0, True
            place += 1
        elif c == "#":
            end = text.find("\n", place)
            place = size if end < 0 else end
        elif c in "\"'":
            place = string_end(text, place)[0]
        elif c == "\\":
            place += 2
        else:
            depth = depth + 1 if c in "([{" else max(depth - 1, 0) if c in ")]}" else depth
            place += 1
    found.append(text[begin:])
    return found


def string_end(text: str, place: int) -> tuple[int, bool]:
    """(where the text ends whose quotes begin at a place, whether only Python 3.12 reads it).

    In an f-string of Python 3.12, braces may hold any expression, quotes of the same kind included.
    """
    found = PREFIX.search(text[max(place - 3, 0) : place])
    prefix = found[1].lower() if found else ""
    quote = text[place]
    mark = quote * 3 if text.startswith(quote * 3, place) else quote
    formatted, newer = "f" in prefix or "t" in prefix, False
    place += len(mark)
    braces: list[int] = []  # for each replacement field: depth of brackets in it; -1 after its colon
    while place < len(text):
        c = text[place]
        inside = braces and braces[-1] >= 0
        if inside:
            if c in "\"'":
                newer |= c == quote and not (len(mark) == 3 and not text.startswith(mark, place))
                end, more = string_end(text, place)
                newer |= more or "\\" in text[place:end] or ("\n" in text[place:end] and len(mark) == 1)
                place = end
                continue
            if c == "#" or c == "\\" or (c == "\n" and len(mark) == 1):
                newer = True
                if c == "#":
                    end = text.find("\n", place)
                    place = len(text) if end < 0 else end
                    continue
            if c in "([{":
                braces[-1] += 1
            elif c in ")]" or (c == "}" and braces[-1]):
                braces[-1] = max(braces[-1] - 1, 0)
            elif c == "}":
                braces.pop()
            elif c == ":" and not braces[-1]:
                braces[-1] = -1
            place += 1
            continue
        if text.startswith(mark, place):
            return place + len(mark), newer
        if c == "\n" and len(mark) == 1:
            return place, newer
        if c == "\\" and ("r" not in prefix or text[place + 1 : place + 2] in (quote, "\\")):
            place += 2
            continue
        if formatted and c == "{":
            if text.startswith("{{", place) and not braces:
                place += 2
                continue
            braces.append(0)
        elif formatted and c == "}" and braces:
            braces.pop()
        place += 1
    return len(text), False  # without an end in any Python


def _plain(source: str) -> str:
    """With Python's ends of lines, and without a byte order mark, prompts and a common indentation."""
    source = source.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    lines = source.split("\n")
    first = next((line for line in lines if line.strip()), "")
    for begins, prompt in PROMPTS:
        if begins.match(first):
            return "\n".join(prompt.sub("", line) for line in lines)
    indent = first[: len(first) - len(first.lstrip())]
    if indent:
        return "\n".join(line.removeprefix(indent) for line in lines)
    return source


def _magic_end(text: str, place: int) -> int:
    """Where the line of IPython's ends that begins at a place; the place itself, if none does."""
    end = text.find("\n", place)
    end = len(text) if end < 0 else end
    line = text[place:end]
    if not (LINE_MAGIC.match(line) or _assigned(line)):
        return place
    while end < len(text) and text[end - 1] == "\\":
        more = text.find("\n", end + 1)
        end = len(text) if more < 0 else more
    return end


def _assigned(line: str) -> tuple[str, str, str] | None:
    """(targets with `=`, `%` or `!`, the rest) of `files = !ls`; None of anything else."""
    for number, found in enumerate(ASSIGNS.finditer(line)):
        if number == 3:
            break
        targets = line[: found.start() + 1]
        try:
            ast.parse(targets.strip() + " 0")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return targets, found[1], line[found.end() :]
    return None


def _as_python(line: str) -> str:
    """A logical line, as a comment where it is IPython's own (`!pip`, `%matplotlib`, `help?`).

    What one assigns (`files = !ls`, `r = %timeit -o f(1)`) stays bound: to no lines, or to nothing.
    """
    first, *more = line.split("\n")
    if found := _assigned(first):
        targets, kind, rest = found
        if kind == "%" and (run := RUNS.match(f"%{rest}")) and not more:
            return f"{targets} {run[1]}"
        value = "[]" if kind == "!" else "None"
        return "\n".join([f"{targets} {value}  # {kind}{rest}", *(f"# {other}" for other in more)])
    if not LINE_MAGIC.match(first):
        return line
    indent = first[: len(first) - len(first.lstrip())]
    if (run := RUNS.match(first)) and not more:
        return indent + run[1]
    commented = [f"{indent}pass  # {first.strip()}" if indent else f"# {first}"]
    return "\n".join([*commented, *(f"# {other}" for other in more)])


def _older(line: str) -> tuple[str, str]:
    """A logical line in older syntax, which may mean something else; and the Python that reads it as it was."""
    version = ""
    if sys.version_info < (3, 15) and LAZY.match(line):
        line, version = LAZY.sub(r"\1", line, count=1), "3.15"
    if sys.version_info < (3, 14) and SEVERAL.match(line):
        line, version = SEVERAL.sub(r"\1(\2):", line, count=1), version or "3.14"
    if sys.version_info < (3, 12):
        if found := PARAMETERS.match(line):
            end = _bracket_end(line, found.end())
            line, version = found[1] + line[end:], version or "3.12"
            if "=" in found.string[found.end() : end]:
                version = max(version, "3.13")
        if ALIAS.match(line):
            line, version = ALIAS.sub(r"\1\2 =", line, count=1), version or "3.12"
    line, strings = _older_strings(line)
    return line, max(version, strings)


def _bracket_end(line: str, place: int) -> int:
    depth = 0
    while place < len(line):
        c = line[place]
        if c in "\"'":
            place = string_end(line, place)[0]
            continue
        depth += (c in "([{") - (c in ")]}")
        place += 1
        if depth == 0:
            break
    return place


def _older_strings(line: str) -> tuple[str, str]:
    """With another f-string in the place of each that only a newer Python reads."""
    found, version, begin, place = [], "", 0, 0
    while place < len(line):
        c = line[place]
        if c == "#":
            end = line.find("\n", place)
            place = len(line) if end < 0 else end
        elif c in "\"'":
            prefix = PREFIX.search(line[max(place - 3, 0) : place])
            start = place - len(prefix[1]) if prefix else place
            place, newer = string_end(line, place)
            template = bool(prefix) and "t" in prefix[1].lower()
            if (newer and sys.version_info < (3, 12)) or (template and sys.version_info < (3, 14)):
                found += [line[begin:start], 'f"{_}"']
                begin, version = place, max(version, "3.14" if template else "3.12")
        else:
            place += 2 if c == "\\" else 1
    return "".join([*found, line[begin:]]), version
