"""Data of one's own: files in the formats that people have become records that know how to encode themselves.

A record is a conversation, a prompt and what follows it, or a text. Which, the names in the first row say; what was
guessed is said aloud (`Dataset.guess`), and `format` says otherwise. Conversations, questions with answers and
instructions are written in the tokenizer's own chat template; where it has none, prompt and completion stand one after
the other, and instructions under headings.

Read are JSONL, JSON, CSV and TSV, each also as .gz, a folder of these, and rows that are already in memory. For Parquet
and folders of the library `datasets`, that library is asked.
"""

import contextlib
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qlora_lab.machine.arguments import check_choice
from qlora_lab.tasks import chat
from qlora_lab.tasks.chat import Conversation
from qlora_lab.tasks.encoding import Encoded, Tokens, encode_record, tokenize_continuations
from qlora_lab.tasks.function_calls import Example

FORMATS = ("chat", "prompt-completion", "completion", "instruction", "text", "function-calls")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
ROLES = ("system", "developer", "user", "assistant", "tool")

# what the same thing is called elsewhere; the first name is the one that messages use
_MESSAGES = ("messages", "conversations", "conversation")
_PROMPT = ("prompt", "question", "query")
_COMPLETION = ("completion", "response", "answer")
_INPUT = ("input", "context")
_OUTPUT = ("output", "response", "completion", "answer")
_SHAREGPT = {"human": "user", "gpt": "assistant", "observation": "tool", "function_response": "tool"}


@dataclass(slots=True)
class Record:
    """One example of one's own data: `messages`, or `prompt` and `completion`, or `text`; the others are None.

    Attributes:
        tools: JSON schemas of functions that may be called, beside `messages`.
        learned: indices of the messages that are learned; None: all of the assistant's.
        input: beside an instruction in `prompt`, what it is about; "" where there is nothing.
        plain: prompt and completion as they stand, whether or not there is a chat template.
        origin: "file.jsonl, line 12".
    """

    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    tools: list[dict] | None = None
    learned: tuple[int, ...] | None = None
    input: str | None = None
    plain: bool = False
    origin: str = "a record"

    def encode(self, tokenizer: Any, max_length: int | None = None) -> Encoded:
        """Token ids and labels, cut at `max_length`; see `tasks.encode`.

        Raises:
            ValueError: the template does not take it, or nothing that is learned is left; names `origin`.
        """
        return encode_record(self, tokenizer, max_length)

    @classmethod
    def encode_many(cls, records: Sequence["Record"], tokenizer: Any) -> list[Tokens]:
        """All of them at once, which is several times faster."""
        found: list[Tokens | None] = [None] * len(records)
        templated = chat.has_template(tokenizer)
        talks = [i for i, record in enumerate(records) if record.speaks(templated)]
        others = [i for i, record in enumerate(records) if not record.speaks(templated)]
        if talks:
            conversations = [records[i].conversation() for i in talks]
            for i, tokens in zip(talks, chat.tokenize_conversations(conversations, tokenizer), strict=True):
                found[i] = tokens
        if others:
            for i, tokens in zip(
                others, tokenize_continuations([records[i].continuation() for i in others], tokenizer), strict=True
            ):
                found[i] = tokens
        return found

    def speaks(self, templated: bool) -> bool:
        """Whether it is written in the chat template, for a tokenizer that has one or not."""
        return self.messages is not None or (templated and self.text is None and not self.plain)

    def conversation(self) -> Conversation:
        """As messages; not for a text."""
        if self.messages is not None:
            return Conversation(self.messages, self.tools, self.learned, self.origin)
        asked = f"{self.prompt}\n\n{self.input}" if self.input else self.prompt
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": self.completion}]
        return Conversation(messages, origin=self.origin, plain_too=True)

    def continuation(self) -> tuple[str, str]:
        """As two texts, of which the second is learned; not for messages."""
        if self.text is not None:
            return "", self.text
        if self.input is None:
            return self.prompt, self.completion
        about = f"### Input:\n{self.input}\n\n" if self.input else ""
        return f"### Instruction:\n{self.prompt}\n\n{about}### Response:\n", self.completion

    def question_and_answer(self, tokenizer: Any) -> tuple[str, str]:
        """The text to generate from, special tokens and all, and the answer that the data gives (the last one).

        A text has no question: it is ("", text).

        Raises:
            ValueError: messages that do not end with the assistant's, or that the template refuses.
        """
        if self.speaks(chat.has_template(tokenizer)):
            messages, tools, *_ = self.conversation()
            if messages[-1]["role"] != "assistant":
                raise ValueError(f"{self.origin}: the last message is not the assistant's, so there is no answer")
            return chat.generation_prompt(messages[:-1], tokenizer, tools, self.origin), messages[-1]["content"]
        prompt, completion = self.continuation()
        begins = str(getattr(tokenizer, "bos_token", None) or "")
        if begins and not prompt.startswith(begins) and _adds_beginning(tokenizer):
            prompt = begins + prompt
        return prompt, completion


def _adds_beginning(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == getattr(tokenizer, "bos_token_id", None)


class Dataset(list):
    """The records of one file or folder, in order.

    Attributes:
        format: what they were read as, one of `FORMATS`, or several of these joined by ", ".
        guess: the same as a sentence, to be said aloud.
        columns: what each row has and is not used.
    """

    def __init__(self, records: Iterable = (), format: str = "", guess: str = "", columns: tuple[str, ...] = ()):
        super().__init__(records)
        self.format, self.guess, self.columns = format, guess, columns


def load_dataset(source: str | os.PathLike | Iterable[Mapping], format: str = "auto", encoding: str | None = None):
    """Read a file, a folder of files, or rows that are in memory.

    Formats: "chat" (`messages`, several turns, system, `tools`), "prompt-completion" (a question and its answer, in the
    chat template where there is one), "completion" (prompt and completion as they stand), "instruction" (`instruction`,
    `input`, `output`), "text" (all of it is learned), "function-calls" (`command`, `calls`: `Example`s).

    Args:
        source: a path; or dicts, such as the rows of a `datasets.Dataset`.
        format: one of `FORMATS`; "auto" goes by the names in the first row of each file.
        encoding: of the files; None: UTF-8, or UTF-16 where they begin with its mark.

    Returns:
        `Dataset`, a list of `Record`s (of `Example`s for "function-calls").

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: nothing in it, or a row that is wrong: the message says which file and line, what is wrong and what
            would be right.
        ImportError: Parquet, and the library `datasets` is not installed.
    """
    check_choice("format", format, ("auto", *FORMATS))
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        parts = [_read(name, rows, format) for name, rows in _sources(path, encoding)]
        name = path.name or str(path)
    else:
        name = "the rows"
        parts = [_read(name, _in_memory(source), format)]
    if not any(parts):
        raise ValueError(f"{name} holds no examples; each line should be one, such as {_SHOWN['chat']}")
    parts = [part for part in parts if part]
    formats = list(dict.fromkeys(part.format for part in parts))
    guesses = list(dict.fromkeys(part.guess for part in parts))
    whole = Dataset([], ", ".join(formats), f"{name}: {'; '.join(guesses)}", parts[0].columns)
    for part in parts:
        whole.extend(part)
    return whole


# From files to rows: (origin, dict)

Rows = Iterator[tuple[str, Any]]


def _sources(path: Path, encoding: str | None) -> Iterator[tuple[str, Rows]]:
    """(name, rows) of each file."""
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            yield path.name, _by_datasets(path)
            return
        files = sorted(f for f in path.iterdir() if f.is_file() and _suffix(f) and not f.name.startswith("."))
        if not files:
            raise ValueError(f"{path} holds no file that ends in {', '.join(SUFFIXES)} or .parquet")
        _check_splits(path, files)
        for file in files:
            yield file.name, _rows(file, encoding)
    elif path.is_file():
        yield path.name, _rows(path, encoding)
    elif path.exists():
        raise ValueError(f"{path} is neither a file nor a folder; give a file such as train.jsonl")
    else:
        raise FileNotFoundError(f"no file or folder {path}")


def _check_splits(folder: Path, files: list[Path]) -> None:
    """A folder of training and validation files is not one data set: read as one, it would train on what it judges."""
    kept_back = [f.name for f in files if re.search(r"(^|[-_.])(valid|validation|val|dev|test|eval)([-_.]|\d)", f.name)]
    if kept_back and len(kept_back) < len(files):
        other = next(f.name for f in files if f.name not in kept_back)
        raise ValueError(
            f"{folder} holds {kept_back[0]} beside {other}, which are not to be mixed; give the file to train on "
            f"({other}), and the other as validation"
        )


def _suffix(path: Path) -> str | None:
    """The format of a file by its name, without .gz; None for one that is not data."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in (*SUFFIXES, ".parquet", ".arrow") if name.endswith(suffix)), None)


def _rows(path: Path, encoding: str | None) -> Rows:
    suffix = _suffix(path)
    if suffix in (".parquet", ".arrow"):
        return _by_datasets(path)
    if suffix is None:
        raise ValueError(f"{path.name} ends in none of {', '.join(SUFFIXES)}, .parquet; rename it to what it is")
    text = _text_of(path, encoding)
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path.name, text, "\t" if suffix == ".tsv" else None)
    return _json_rows(path.name, text, lines=suffix != ".json")


def _text_of(path: Path, encoding: str | None) -> str:
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except PermissionError as error:
        raise PermissionError(f"{path} may not be read ({error.strerror})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error
    if encoding is None:
        encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except LookupError:
        raise ValueError(f"unknown encoding {encoding!r}; one is cp1252, another latin-1") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path.name}, line {line}: byte 0x{content[error.start]:02x} is not {error.encoding.upper()}; save the "
            "file as UTF-8, or say what it is (--encoding cp1252 is Windows')"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path.name}, line {line}: a zero byte, so this is no text in UTF-8; is it UTF-16?")
    return text


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'"{twice}" stands in it twice')
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_reject_constant)


def _json_rows(name: str, text: str, lines: bool) -> Rows:
    """Rows of JSONL, or of one document: a list, or an object with one list in it; whatever the file is called."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # inside of a JSON text there are none
    begins = text.lstrip()[:1]
    if begins == "[":
        return _document_rows(name, text)
    if begins != "{":
        return _line_rows(name, text)
    start = text.index(begins)
    end = text.find("\n", start)
    first, more = (text[start:], False) if end < 0 else (text[start:end], bool(text[end:].strip()))
    if isinstance(_parsed(first), _Wrong):  # an object over several lines, or one that is wrong
        return _line_rows(name, text) if lines and isinstance(_parsed(text), _Wrong) else _document_rows(name, text)
    return _line_rows(name, text) if lines or more else _document_rows(name, text)


def _line_rows(name: str, text: str) -> Rows:
    # not str.splitlines: a JSON text may hold U+2028, at which that would break
    number, start = 0, 0
    while start <= len(text):  # a line at a time, where all at once would hold the file in memory twice
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        line, number, start = text[start:end], number + 1, end + 1
        if line.strip():
            yield f"{name}, line {number}", _parsed(line)


@dataclass(frozen=True)
class _Wrong:
    """A row that could not be read, and why."""

    reason: str


def _parsed(line: str) -> Any:
    try:
        return _DECODER.decode(line.strip())
    except json.JSONDecodeError as error:
        more = "one whole object {…} on a line"
        if error.msg.startswith("Extra data"):
            return _Wrong(f"more than one JSON value ({error.msg} at column {error.colno}); write {more}")
        return _Wrong(f"not JSON ({error.msg} at column {error.colno}); write {more}")
    except (ValueError, RecursionError) as error:
        return _Wrong(f"not usable JSON ({error}); write {'each name once' if 'twice' in str(error) else 'plain JSON'}")


def _document_rows(name: str, text: str) -> Rows:
    """The entries of a JSON list, each with the line it begins on."""
    place, alone = text.index(text.lstrip()[:1]), True
    if text[place] == "{":
        place, alone = _only_list(name, text, place), False
        if place is None:
            yield f"{name}, line 1", _parsed(text)
            return
    line, counted, place = 1, 0, place + 1
    first = True
    while True:
        place = _after_space(text, place)
        if text[place : place + 1] == "]" and first:
            break
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = _DECODER.raw_decode(text, place)
            yield f"{name}, line {line}", value
            place, first = _after_space(text, place), False
            if text[place : place + 1] == "]":
                break
            if text[place : place + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
            place += 1
        except (ValueError, RecursionError) as error:
            raise _no_list(name, error, line) from error
    rest = _after_space(text, place + 1)
    if alone and rest < len(text):
        raise _no_list(name, json.JSONDecodeError("something after the list", text, rest), line)


def _no_list(name: str, error: Exception, line: int) -> ValueError:
    where, said = getattr(error, "lineno", line), getattr(error, "msg", str(error))
    return ValueError(f"{name}, line {where}: not JSON ({said}); a .json file is one list of objects, [{{…}}, {{…}}]")


def _after_space(text: str, place: int) -> int:
    return re.compile(r"\s*").match(text, place).end()


def _only_list(name: str, text: str, place: int) -> int | None:
    """Where the one list of objects in a JSON object begins; None for an object that is an example itself."""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        at = getattr(error, "lineno", 1)
        raise ValueError(f"{name}, line {at}: not JSON ({getattr(error, 'msg', error)})") from error
    if _guess(value) is not None:
        return None
    lists = [key for key, entry in value.items() if isinstance(entry, list) and entry and isinstance(entry[0], dict)]
    if len(lists) != 1:
        held = f"the lists {', '.join(lists)}" if lists else f"no list, but {', '.join(map(str, value)) or 'nothing'}"
        raise ValueError(f"{name} is an object that holds {held}; it should be one list of objects, [{{…}}, {{…}}]")
    for ascii_only in (True, False):
        key = re.escape(json.dumps(lists[0], ensure_ascii=ascii_only))
        for found in re.finditer(rf"{key}\s*:\s*\[", text):
            with contextlib.suppress(ValueError):
                if _DECODER.raw_decode(text, found.end() - 1)[0] == value[lists[0]]:
                    return found.end() - 1
    raise ValueError(f"{name}: write the list of examples alone, [{{…}}, {{…}}]")  # its name has other escapes


def _csv_rows(name: str, text: str, delimiter: str | None) -> Rows:
    head = text.lstrip("\r\n").split("\n", 1)[0]
    if delimiter is None:
        delimiter = max((",", ";", "\t"), key=lambda d: len(_known(head.replace('"', "").strip().split(d))))
    limit = csv.field_size_limit(2**31 - 1)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names: list[str] | None = None
        began = 1
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise ValueError(
                    f"{name}, line {began}: not CSV ({error}); a text with quotes in it stands in quotes, and each of "
                    'them is written twice ("")'
                ) from error
            origin, began = f"{name}, line {began}", reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if names is None:
                names = [cell.strip() for cell in row]
                twice = [n for n in names if names.count(n) > 1]
                if twice:
                    raise ValueError(f"{origin}: two columns are named {twice[0]!r}; give each a name of its own")
                continue
            if len(row) != len(names):
                yield (
                    origin,
                    _Wrong(
                        f"{len(row)} fields, where the first line names {len(names)} ({', '.join(names)}); put a text "
                        f"that holds {delimiter!r} into quotes"
                    ),
                )
                continue
            yield origin, dict(zip(names, row, strict=True))
    finally:
        csv.field_size_limit(limit)


def _known(names: list[str]) -> set[str]:
    known = {*_MESSAGES, *_PROMPT, *_COMPLETION, *_INPUT, *_OUTPUT, "instruction", "text", "tools"}
    return {name.strip() for name in names} & known


def _by_datasets(path: Path) -> Rows:
    if find_spec("datasets") is None:
        raise ImportError(
            f"{path.name} is read by the library datasets, which is not installed: pip install datasets, or save it as "
            "JSONL"
        )
    import datasets

    if path.is_dir():
        rows = datasets.load_from_disk(str(path))
    else:
        rows = datasets.load_dataset(path.suffix[1:], data_files=str(path), split="train")
    if isinstance(rows, Mapping):
        raise ValueError(
            f"{path.name} holds the splits {', '.join(rows)}; give the folder of one, {path / next(iter(rows))}"
        )
    return ((f"{path.name}, row {number}", row) for number, row in enumerate(rows, start=1))


def _in_memory(rows: Iterable[Mapping]) -> Rows:
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", dict(row) if isinstance(row, Mapping) else row


# From rows to records

_SHOWN = {
    "chat": '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
    "prompt-completion": '{"prompt": "…", "completion": "…"}',
    "completion": '{"prompt": "…", "completion": "…"}',
    "instruction": '{"instruction": "…", "input": "…", "output": "…"}',
    "text": '{"text": "…"}',
    "function-calls": '{"command": "…", "calls": [{"name": "…", "arguments": {…}}], "tags": []}',
}
_ALOUD = {
    "chat": "conversations ({0}), of which the assistant's turns are learned",
    "prompt-completion": "questions ({0}) and answers ({1}), in the chat template where the tokenizer has one",
    "completion": "texts ({0}) and what follows them ({1}), as they stand",
    "instruction": "instructions ({0}) and answers ({1}), in the chat template where the tokenizer has one",
    "text": "texts ({0}), all of which is learned",
    "function-calls": "commands and function calls",
}


def _read(name: str, rows: Rows, format: str) -> Dataset:
    """All rows of one file as records, or one error for what is wrong in it."""
    found, wrong, chosen, used, columns = [], [], None, (), ()
    for origin, row in rows:
        try:
            if isinstance(row, _Wrong):
                raise ValueError(row.reason)
            if not isinstance(row, dict):
                raise ValueError(f"{_kind(row)}, where an object {{…}} should be, such as {_SHOWN['chat']}")
            if chosen is None:
                chosen = _choose(row, format)
                used = _used(row, chosen)
                columns = tuple(key for key in row if key not in used)
            found.append(_MAKE[chosen](row, origin))
        except ValueError as error:
            wrong.append(f"{origin}: {error}")
            if chosen is None or len(wrong) > 100:
                break
    if wrong:
        more = f" ({len(wrong) - 1} more after it)" if len(wrong) > 1 else ""
        raise ValueError(wrong[0] + more)
    if chosen is None:
        return Dataset()
    shown = [str(key) for key in used]
    aloud = _ALOUD[chosen].format(*shown, "", "")
    if columns:
        aloud += f"; not used: {', '.join(map(str, columns))}"
    return Dataset(found, chosen, f"{'read as' if format == 'auto' else 'taken as'} {aloud}", columns)


def _choose(row: dict, format: str) -> str:
    if format != "auto":
        return format
    guessed = _guess(row)
    if guessed is None:
        names = ", ".join(map(str, row)) or "nothing"
        if {"chosen", "rejected"} <= row.keys():
            raise ValueError(
                "pairs of a better and a worse answer, which are for preference training; keep the better ones as "
                f"{_SHOWN['prompt-completion']}"
            )
        raise ValueError(f"it has {names}, which is no format known here; write {_choices()}")
    return guessed


def _choices() -> str:
    return " or ".join(_SHOWN[name] for name in ("chat", "prompt-completion", "instruction", "text"))


def _guess(row: dict) -> str | None:
    if _first(row, _MESSAGES):
        return "chat"
    if "command" in row and "calls" in row:
        return "function-calls"
    if "instruction" in row and _first(row, _OUTPUT):
        return "instruction"
    if (prompt := _first(row, _PROMPT)) and (completion := _first(row, _COMPLETION)):
        return "prompt-completion" if not _listed(row[prompt]) and not _listed(row[completion]) else "chat"
    return "text" if "text" in row else None


def _first(row: dict, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _listed(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith('[{"role"'))


def _used(row: dict, format: str) -> tuple[str, ...]:
    """The columns that a format takes from rows like this, in the order in which they are told."""
    if format == "chat":
        names = [_first(row, _MESSAGES)] if _first(row, _MESSAGES) else [_first(row, _PROMPT), _first(row, _COMPLETION)]
        names += [name for name in ("tools",) if name in row]
    elif format in ("prompt-completion", "completion"):
        names = [_first(row, _PROMPT), _first(row, _COMPLETION)]
    elif format == "instruction":
        names = ["instruction", _first(row, _OUTPUT), _first(row, _INPUT)]
    elif format == "text":
        names = ["text"]
    else:
        names = ["command", "calls", "tags"]
    return tuple(name for name in names if name is not None)


def _kind(value: Any) -> str:
    kinds = {type(None): "nothing (null)", bool: "true or false", int: "a number", float: "a number", str: "a text"}
    kinds |= {list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _string(row: Mapping, names: Sequence[str] | str, format: str, where: str = "") -> str:
    """The text under the first of `names` that the row has."""
    names = (names,) if isinstance(names, str) else names
    name = _first(row, names)
    if name is None:
        raise ValueError(f"{where}no {names[0]}; write {_SHOWN[format]}")
    value = row[name]
    if not isinstance(value, str):
        raise ValueError(f'{where}{name} is {_kind(value)}, where a text should be: "{name}": "…"')
    return _sound(value, f"{where}{name}")


def _sound(text: str, name: str) -> str:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name} holds half a character (\\u{ord(text[error.start]):04x}, a lone surrogate); write the whole "
                "character, or take it out"
            ) from None
    return text


def _make_text(row: dict, origin: str) -> Record:
    return Record(text=_string(row, "text", "text"), origin=origin)


def _make_pair(row: dict, origin: str, plain: bool = False) -> Record:
    prompt = _string(row, _PROMPT, "prompt-completion")
    return Record(prompt=prompt, completion=_string(row, _COMPLETION, "prompt-completion"), plain=plain, origin=origin)


def _make_plain(row: dict, origin: str) -> Record:
    return _make_pair(row, origin, plain=True)


def _make_instruction(row: dict, origin: str) -> Record:
    prompt, completion = _string(row, "instruction", "instruction"), _string(row, _OUTPUT, "instruction")
    name = _first(row, _INPUT)
    about = _string(row, name, "instruction") if name is not None and row[name] is not None else ""
    return Record(prompt=prompt, completion=completion, input=about, origin=origin)


def _make_example(row: dict, origin: str) -> Example:
    command, calls, tags = _string(row, "command", "function-calls"), row.get("calls"), row.get("tags") or ()
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(
            f"calls is {_kind(calls)}, where a list of objects should be; write {_SHOWN['function-calls']}"
        )
    return Example(command, tuple(calls), tuple(tags))


def _make_chat(row: dict, origin: str) -> Record:
    name = _first(row, _MESSAGES)
    learned_from = 0
    if name is not None:
        messages = _messages(row[name], name)
    else:
        asked = _messages(_value(row, _PROMPT), "prompt")
        answer = _messages(_value(row, _COMPLETION), "completion")
        messages, learned_from = [*asked, *answer], len(asked)
    speaks = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    learned = [i for i in speaks if i >= learned_from and messages[i].pop("weight", 1) != 0]
    for message in messages:
        message.pop("weight", None)
    if not speaks:
        raise ValueError(f"none of its {len(messages)} messages is the assistant's, so there is nothing to learn")
    if not learned:
        raise ValueError("all of the assistant's messages have weight 0 or belong to the prompt: nothing to learn")
    return Record(
        messages=messages,
        tools=_tools(row.get("tools")),
        learned=None if learned == speaks else tuple(learned),
        origin=origin,
    )


def _value(row: dict, names: Sequence[str]) -> Any:
    name = _first(row, names)
    if name is None:
        raise ValueError(f"no messages; write {_SHOWN['chat']}")
    return row[name]


def _from_json(value: Any, name: str) -> Any:
    """What is written as JSON inside a text, as in a CSV file."""
    if not isinstance(value, str):
        return value
    parsed = _parsed(value)
    if isinstance(parsed, _Wrong):
        raise ValueError(f"{name} is a text that is {parsed.reason.split(';')[0]}; write a list of messages")
    return parsed


def _messages(value: Any, name: str) -> list[dict]:
    value = _from_json(value, name)
    if not isinstance(value, list) or not value:
        kind = "an empty list" if isinstance(value, list) else _kind(value)
        raise ValueError(f"{name} is {kind}, where a list of messages should be; write {_SHOWN['chat']}")
    return [_message(message, f"message {number}") for number, message in enumerate(value, start=1)]


def _message(message: Any, where: str) -> dict:
    if not isinstance(message, Mapping):
        raise ValueError(f'{where} is {_kind(message)}; write {{"role": "user", "content": "…"}}')
    message = {key: value for key, value in message.items() if value is not None}
    if "from" in message and "role" not in message:
        speaker, content = message.pop("from"), message.pop("value", None)
        message = {"role": _SHAREGPT.get(speaker, speaker) if isinstance(speaker, str) else speaker} | message
        if content is not None:
            message["content"] = content
    role = message.get("role")
    if role not in ROLES if isinstance(role, str) else True:
        said = f"the role {role!r}" if role is not None else "no role"
        raise ValueError(f"{where} has {said}; the roles are {', '.join(ROLES)}")
    if "tool_calls" in message:
        message["tool_calls"] = _calls(message["tool_calls"], where)
        if not message["tool_calls"]:
            del message["tool_calls"]
    content = message.get("content", "" if message.get("tool_calls") else None)
    if isinstance(content, list):
        content = "".join(_block(block, where) for block in content)
    if not isinstance(content, str):
        kind = "no content" if content is None else f"content that is {_kind(content)}"
        raise ValueError(f'{where}, the {role}\'s, has {kind}; write "content": "…"')
    message["content"] = _sound(content, f"{where}, content")
    return message


def _block(block: Any, where: str) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, Mapping) and isinstance(block.get("text"), str) and block.get("type", "text") == "text":
        return block["text"]
    kind = block.get("type") if isinstance(block, Mapping) else _kind(block)
    raise ValueError(f"{where} holds a part of type {kind!r}; only text can be trained on here")


def _calls(calls: Any, where: str) -> list[dict]:
    calls = _from_json(calls, f"{where}, tool_calls,")
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise ValueError(
            f'{where} has tool_calls that are no list of objects; write [{{"type": "function", "function": {{"name": '
            '"…", "arguments": {…}}]'
        )
    made = []
    for call in calls:
        call = {key: value for key, value in call.items() if value is not None}
        function = dict(call.get("function", call))
        if isinstance(function.get("arguments"), str):  # as OpenAI has it; templates want the object
            arguments = _parsed(function["arguments"])
            if not isinstance(arguments, dict):
                raise ValueError(f"{where} has a call whose arguments are no JSON object: {function['arguments']!r}")
            function["arguments"] = arguments
        made.append({**call, "function": function} if "function" in call else function)
    return made


def _tools(tools: Any) -> list[dict] | None:
    tools = _from_json(tools, "tools") if tools else None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError('tools is no list of objects; write [{"type": "function", "function": {"name": "…", …}}]')
    return [dict(tool) for tool in tools]


_MAKE: dict[str, Callable[[dict, str], Any]] = {
    "chat": _make_chat,
    "prompt-completion": _make_pair,
    "completion": _make_plain,
    "instruction": _make_instruction,
    "text": _make_text,
    "function-calls": _make_example,
}
