"""Conversations in the words a model was made with: the tokenizer's own chat template, and which tokens are learned.

The token ids are those of `tokenizer.apply_chat_template`, always. Learned is what the model will have to write itself:
each assistant's turn from where the generation prompt ends to the token that ends the turn. Where that is in the
rendered text is found in one of three ways, the first that holds:

1. the template says so (`{% generation %}`);
2. by prefixes: what is rendered up to the turn, with the generation prompt, is how the whole text begins;
3. by a stand-in: the conversation is rendered once more with a word in the turn's place that occurs nowhere else. What
   stands before and after it is what stands before and after the turn, also where a template trims a text, takes the
   thinking out of earlier turns, or appends something at the end, so that prefixes do not agree.

What no way finds is refused by its file and line: a wrong mask would train without a word.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qlora_lab.tasks.encoding import Tokens

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_STAND_IN = "Qlabstandsin"  # letters only, and cased: templates trim, split and test for punctuation

SHOWN_OTHERWISE = "the template shows an answer otherwise than the data has it (thinking or text taken out)"
NOT_SHOWN = "the template does not show what a message says (that is not an answer), or not as it says it"
PROMPT_DIFFERS = "the generation prompt writes something that the data's answer does not begin with (such as <think>)"
NO_END_INSIDE = "an earlier answer is not followed by a token that ends it"
NO_END = "no token ends the answer, and the tokenizer has none to add"
MARKER_INSIDE = "a message holds a special token, such as one that begins a text, which the tokenizer reads as that"
STRADDLED = "a token holds the end of the prompt and the beginning of the answer"


class Conversation(NamedTuple):
    """What a template is given.

    Attributes:
        messages: dicts with role and content.
        tools: JSON schemas of functions that may be called, or None.
        learned: indices of the assistant's messages that are learned; None: all of them.
        origin: where it came from, for messages ("train.jsonl, line 12").
        plain_too: whether the data could be taken without a template, which a refusal then says.
    """

    messages: list[dict[str, Any]]
    tools: list[dict] | None = None
    learned: tuple[int, ...] | None = None
    origin: str = "a conversation"
    plain_too: bool = False


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def set_template(tokenizer: Any, template: str | os.PathLike) -> None:
    """Give the tokenizer a chat template: Jinja text, or a file with it. It is saved with the tokenizer from then on.

    Raises:
        FileNotFoundError: it looks like a path, and there is no such file.
        ValueError: it is not Jinja, or makes nothing of a question and its answer; the tokenizer is as it was.
    """
    text, name = _template_text(template)
    before = getattr(tokenizer, "chat_template", None)
    tokenizer.chat_template = text
    try:
        _Template(tokenizer).probed  # noqa: B018  (renders, and raises)
    except ValueError as error:
        tokenizer.chat_template = before
        raise ValueError(f"{name} is no chat template to train with: {error}") from error


def _template_text(template: str | os.PathLike) -> tuple[str, str]:
    if isinstance(template, str) and ("{{" in template or "{%" in template):
        return template, "the template given"
    path = Path(template).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give a Jinja template (it has {{{{ … }}}} in it) or a file with one")
    return path.read_text(encoding="utf-8-sig"), path.name


def stop_tokens(tokenizer: Any, model: Any = None) -> set[int]:
    """Where generation ends: the tokenizer's end, those of the model's generation settings, the template's turn end.

    The last of these is often missing from the first two, in a tokenizer that was given a template afterwards: a model
    that has learned to end its turn then goes on, and speaks for the user too.
    """
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = more if isinstance(more, list | tuple) else [more]
    found = [getattr(tokenizer, "eos_token_id", None), *more]
    if has_template(tokenizer):
        with contextlib.suppress(ValueError):  # a template for something else than a question and its answer
            found.append(turn_end(tokenizer))
    return {int(token) for token in found if token is not None}


def turn_end(tokenizer: Any) -> int | None:
    """The token with which the chat template ends an assistant's turn; None where it ends with none.

    Raises:
        ValueError: the template makes nothing of a question and its answer.
    """
    return _Template(tokenizer).end


def generation_prompt(messages: Sequence[Mapping], tokenizer: Any, tools=None, origin: str = "a conversation") -> str:
    """The text after which the assistant speaks.

    Raises:
        ValueError: the template refuses the messages; names `origin`.
    """
    return _Template(tokenizer).render(messages, tools, True, origin)


def tokenize_conversations(conversations: Sequence[Conversation], tokenizer: Any) -> list[Tokens]:
    """Token ids as `apply_chat_template` gives them, and which of them are learned.

    Where a template ends no answer, the tokenizer's end token is added after the last one, and learned; a note says so.

    Raises:
        ValueError: there is no template, it refuses a conversation, a text holds a token that ends a turn, or a turn
            cannot be found in what the template makes of it. Names the conversation's origin.
    """
    template = _Template(tokenizer)
    odd = [template.check(conversation) for conversation in conversations]
    texts = template.render_all(conversations)
    found = []
    for conversation, (text, marked), notes, encoding in zip(
        conversations, texts, odd, _tokenize([text for text, _ in texts], tokenizer), strict=True
    ):
        turns = template.turns(conversation, text, marked, notes)
        found.append(template.tokens(conversation, turns, notes, encoding))
    return found


class _Turn(NamedTuple):
    """A learned turn in the rendered text: characters from `start` to `stop`, and whether an end token is the last."""

    start: int
    stop: int
    ended: bool


@dataclass
class _Probed:
    """What a template makes of a question and an answer: what it writes between them, after them, and in the
    generation prompt after the question's turn."""

    between: str
    tail: str
    begins: str


class _Pattern(NamedTuple):
    """What a template writes round the messages of a conversation with these roles, whatever they say.

    Attributes:
        pieces: before, between and after the contents.
        turns: for each assistant's message, how far before its content the turn begins, how far after it it ends, and
            whether with an end token.
    """

    pieces: list[str]
    turns: dict[int, tuple[int, int, bool]]


class _Template:
    """A tokenizer's chat template, for the length of one call."""

    def __init__(self, tokenizer: Any):
        if not has_template(tokenizer):
            name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
            raise ValueError(
                f"{name} has no chat template, so there is no telling how a conversation is written for it; give one "
                "(--template FILE), or data with prompt and completion"
            )
        self.tokenizer = tokenizer
        self._patterns: dict[tuple[str, ...], _Pattern | None] = {}
        self.marked = bool(_MARKED.search(self.source(None)))

    def source(self, tools) -> str:
        return self.tokenizer.get_chat_template(None, tools)

    @cached_property
    def specials(self) -> dict[str, int]:
        """Texts of the tokens that are no text: what begins and ends turns, and the text itself."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        found = {str(token): number for number, token in added.items() if token.special}
        for token in getattr(self.tokenizer, "all_special_tokens", ()):
            found.setdefault(str(token), self.tokenizer.convert_tokens_to_ids(str(token)))
        return {text: number for text, number in found.items() if text}

    @cached_property
    def added(self) -> set[int]:
        return set(getattr(self.tokenizer, "added_tokens_decoder", {})) | set(self.specials.values())

    @cached_property
    def _special(self) -> re.Pattern | None:
        texts = sorted(self.specials, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    @cached_property
    def probed(self) -> _Probed:
        """Raises ValueError where the template is not Jinja or does not show an answer."""
        ask, answer = f"{_STAND_IN}ask", f"{_STAND_IN}say"
        question = [{"role": "user", "content": ask}]
        where = "a question and its answer"
        whole = self.render([*question, {"role": "assistant", "content": answer}], None, False, where)
        if whole.count(answer) != 1:
            raise ValueError(f"its chat template shows an answer {whole.count(answer)} times")
        before, tail = whole.split(answer)
        try:
            prompt, asked = (self.render(question, None, generation, where) for generation in (True, False))
        except ValueError:  # a template that wants every question answered
            prompt = asked = before
        begins = prompt[len(asked) :] if prompt.startswith(asked) else ""
        return _Probed(before.split(ask)[-1], tail, begins)

    @cached_property
    def end(self) -> int | None:
        found = self.ending(self.probed.tail, 0)
        return None if found is None else self.specials[found.group()]

    @cached_property
    def stops(self) -> set[int]:
        return {token for token in (getattr(self.tokenizer, "eos_token_id", None), self.end) if token is not None}

    @cached_property
    def markers(self) -> list[str]:
        """Tokens that may not stand in a message: they would end its turn, or begin another."""
        written = self.probed.between + self.probed.tail
        return [text for text, number in self.specials.items() if number in self.stops or text in written]

    def ending(self, text: str, start: int) -> re.Match | None:
        """The special token that ends what stands before `start`, with nothing but white space before it.

        Of several without anything between them it is the tokenizer's own end, if that is one of them; else the first.
        """
        first = match = self._special.search(text, start) if self._special else None
        if match is None or text[start : match.start()].strip():
            return None
        while match is not None:
            if match.group() == getattr(self.tokenizer, "eos_token", None):
                return match
            match = self._special.match(text, match.end())
        return first

    def render(self, messages, tools, generation: bool, origin: str) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tools=tools, add_generation_prompt=generation, tokenize=False
            )
        except Exception as error:  # a template may raise anything
            raise ValueError(f"{origin}: {self._refused(messages, tools, error)}") from error

    def _refused(self, messages, tools, error: Exception) -> str:
        """The refusal, and what helps, where leaving that out makes the template take it."""
        roles = [message.get("role") for message in messages]
        said = f"the chat template does not take this conversation ({error})"
        if roles and roles[0] in ("system", "developer") and self._takes(messages[1:], tools):
            return f"{said}; it has no place for a system message: put its text at the beginning of the first question"
        twice = next((i for i in range(1, len(roles)) if roles[i] == roles[i - 1]), None)
        if twice is not None:
            return f"{said}; messages {twice} and {twice + 1} are both the {roles[twice]}'s: join them"
        talk = [role for role in roles if role not in ("system", "developer")]
        if talk and talk[0] == "assistant":
            return f"{said}; the assistant speaks first: begin with a user's message"
        if "tool" in roles or tools or any(message.get("tool_calls") for message in messages):
            return f"{said}; it may have no place for tools: choose a base whose template has, or --template"
        return f"{said}; change the messages, or give another template (--template)"

    def _takes(self, messages, tools) -> bool:
        try:
            self.tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False)
        except Exception:
            return False
        return True

    def render_all(self, conversations: Sequence[Conversation]) -> list[tuple[str, list | None]]:
        """The text of each, and the spans that the template marks, where it does."""
        if not self.marked and all(c.tools is None for c in conversations):
            try:  # together: a fifth faster
                texts = self.tokenizer.apply_chat_template([c.messages for c in conversations], tokenize=False)
                return [(text, None) for text in texts]
            except Exception:  # which of them, the loop below says
                pass
        return [self._rendered(c) for c in conversations]

    def _rendered(self, conversation: Conversation) -> tuple[str, list | None]:
        messages, tools, origin = conversation.messages, conversation.tools, conversation.origin
        text = self.render(messages, tools, False, origin)
        if not _MARKED.search(self.source(tools)):
            return text, None
        from transformers.utils.chat_template_utils import render_jinja_template

        [again], [spans] = render_jinja_template(
            conversations=[[{k: v for k, v in message.items() if v is not None} for message in messages]],
            tools=tools,
            chat_template=self.source(tools),
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return text, list(spans) if again == text else None

    def check(self, conversation: Conversation) -> set[str]:
        """What is odd about it. Raises ValueError for what a template would show wrongly without a word."""
        messages, tools, origin = conversation.messages, conversation.tools, conversation.origin
        notes: set[str] = set()
        for number, message in enumerate(messages, start=1):
            content = message.get("content")
            held = self._special.findall(content) if self._special and isinstance(content, str) else ()
            if held:
                notes.add(MARKER_INSIDE)
            for marker in held:
                if marker in self.markers:
                    plain = ", or take the texts as they stand (--format completion)" if conversation.plain_too else ""
                    raise ValueError(
                        f"{origin}: message {number} holds {marker}, which the tokenizer reads as the end or beginning "
                        f"of a turn; take it out (the template writes it where it belongs){plain}"
                    )
            if message.get("tool_calls") and "tool_calls" not in self.source(tools):
                raise ValueError(
                    f"{origin}: message {number} has tool_calls, of which the chat template says nothing; write the "
                    "call into its content, or give another template (--template)"
                )
        if tools and "tools" not in self.source(tools):
            raise ValueError(
                f"{origin}: it has tools, of which the chat template says nothing; describe them in a system message, "
                "or give another template (--template)"
            )
        return notes

    # Where the turns are

    def turns(self, conversation: Conversation, text: str, marked: list | None, notes: set[str]) -> list[_Turn]:
        """The learned turns in the text, in order; what is odd about them is added to `notes`."""
        messages = conversation.messages
        speaks = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        wanted = [i for i in speaks if conversation.learned is None or i in conversation.learned]
        if marked is not None and len(marked) == len(speaks):
            spans = [self._ended(text, *span) for i, span in zip(speaks, marked, strict=True) if i in wanted]
        else:
            spans = self._as_patterned(conversation, wanted, text)
            if spans is None:
                others = (message for message in messages if message.get("role") != "assistant")
                if any(isinstance(m.get("content"), str) and m["content"].strip() not in text for m in others):
                    notes.add(NOT_SHOWN)
                spans = [self._turn(conversation, i, text, notes) for i in wanted]
        for i, turn in zip(wanted, spans, strict=True):
            content = messages[i].get("content")
            if isinstance(content, str) and content.strip() not in text[turn.start : turn.stop]:
                notes.add(SHOWN_OTHERWISE)
            if not turn.ended and i != len(messages) - 1:
                notes.add(NO_END_INSIDE)
        for one, after in pairwise(spans):
            if after.start < one.stop:
                raise self._lost(conversation, wanted[0])
        return spans

    def _ended(self, text: str, start: int, stop: int) -> _Turn:
        """The turn with the end token that follows it, or that it has as its last."""
        ended, inside = None, text[start:stop].rstrip()
        while special := next((special for special in self.specials if special and inside.endswith(special)), None):
            if self.specials[special] in self.stops:
                ended = start + len(inside)  # the first of several that stand together
            inside = inside.removesuffix(special).rstrip()
        if ended is not None:
            return _Turn(start, ended, True)
        after = self.ending(text, stop)
        if after is not None and self.specials[after.group()] in self.stops:
            return _Turn(start, after.end(), True)
        return _Turn(start, stop, False)

    def _as_patterned(self, conversation: Conversation, wanted: list[int], text: str) -> list[_Turn] | None:
        """The turns, where the text is, to the character, what the template writes round such messages, and these.

        Nothing more has to be rendered then. None where it is not: the template looks at what they say.
        """
        messages = conversation.messages
        if conversation.tools or not all(
            message.keys() <= {"role", "content"} and isinstance(message.get("content"), str) for message in messages
        ):
            return None
        pattern = self._pattern(tuple(message["role"] for message in messages))
        if pattern is None:
            return None
        contents = [message["content"] for message in messages]
        for shown in (contents, [content.strip() for content in contents]):
            if _interleaved(pattern.pieces, shown) == text:
                break
        else:
            return None
        turns, place = [], 0
        for i, content in enumerate(shown):
            place += len(pattern.pieces[i])
            if i in wanted:
                before, after, ended = pattern.turns[i]
                turns.append(_Turn(place - before, place + len(content) + after, ended))
            place += len(content)
        return turns

    def _pattern(self, roles: tuple[str, ...]) -> _Pattern | None:
        """Found once for each order of roles, with words in the messages' places."""
        if roles not in self._patterns:
            self._patterns[roles] = self._found_pattern(roles)
        return self._patterns[roles]

    def _found_pattern(self, roles: tuple[str, ...]) -> _Pattern | None:
        if len(roles) > 26 * 26:
            return None
        words = [f"{_STAND_IN}{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(len(roles))]
        conversation = Conversation([{"role": role, "content": w} for role, w in zip(roles, words, strict=True)])
        try:
            text = self.render(conversation.messages, None, False, "")
            notes: set[str] = set()
            turns = {i: self._turn(conversation, i, text, notes) for i, role in enumerate(roles) if role == "assistant"}
        except ValueError:
            return None
        pieces, rest = [], text
        for word in words:
            piece, found, rest = rest.partition(word)
            if not found or word in rest:
                return None
            pieces.append(piece)
        pieces.append(rest)
        places = {i: text.index(word) for i, word in enumerate(words)}
        if notes or _interleaved(pieces, words) != text:
            return None
        return _Pattern(
            pieces,
            {
                i: (places[i] - turn.start, turn.stop - places[i] - len(words[i]), turn.ended)
                for i, turn in turns.items()
            },
        )

    def _turn(self, conversation: Conversation, i: int, text: str, notes: set[str]) -> _Turn:
        messages, tools = conversation.messages, conversation.tools
        before, after = self._around(messages, i, tools, text)
        start = self._start(messages, i, tools, text, before, notes)
        calls = bool(messages[i].get("tool_calls"))
        if start is not None and after is not None and not calls and start <= after:
            return self._ended(text, start, after)
        if start is None:
            raise self._lost(conversation, i)
        return self._upto(conversation, i, text, start) or self._between(conversation, i, text, start)

    def _upto(self, conversation: Conversation, i: int, text: str, start: int) -> _Turn | None:
        """By prefixes: to where the text ends that is made of the messages up to this one."""
        try:
            upto = self.render(conversation.messages[: i + 1], conversation.tools, False, "")
        except ValueError:
            return None
        if not text.startswith(upto) or len(upto) < start:
            return None
        tail = self.probed.tail  # which may hold a header that the template appends in any case
        if upto.endswith(tail) and len(upto) - len(tail) >= start:
            return self._ended(text, start, len(upto) - len(tail))
        turn = self._ended(text, start, len(upto))
        if not turn.ended and self._special:  # a call may be ended by another token than an answer is
            shown = text[start : len(upto)].rstrip()
            last = [match.end() for match in self._special.finditer(shown)][-1:]
            if last == [len(shown)]:
                return _Turn(start, start + len(shown), True)
        return turn

    def _between(self, conversation: Conversation, i: int, text: str, start: int) -> _Turn:
        """To the first end token before the content of the next message."""
        until: int | None = len(text)
        if i + 1 < len(conversation.messages):
            until, _ = self._around(conversation.messages, i + 1, conversation.tools, text)
        shown = text[start:until] if until is not None else ""
        ends = [shown.index(special) + len(special) for special in self._stop_texts if special in shown]
        if not ends:
            raise self._lost(conversation, i)
        return _Turn(start, start + min(ends), True)

    @cached_property
    def _stop_texts(self) -> list[str]:
        return [text for text, number in self.specials.items() if number in self.stops]

    def _around(self, messages, i: int, tools, text: str) -> tuple[int | None, int | None]:
        """Where the content of message i begins and ends, by a stand-in; None, None where that does not tell."""
        word = _STAND_IN
        while word in text:
            word += "x"
        stood = [*messages[:i], {**messages[i], "content": word}, *messages[i + 1 :]]
        try:
            shown = self.render(stood, tools, False, "")
        except ValueError:
            return None, None
        if shown.count(word) != 1:
            return None, None
        before, after = shown.split(word)
        if not (text.startswith(before) and text.endswith(after) and len(before) + len(after) <= len(text)):
            return None, None
        return len(before), len(text) - len(after)

    def _start(self, messages, i: int, tools, text: str, before: int | None, notes: set[str]) -> int | None:
        """Where the model begins to write: after the generation prompt, as far as the text has it."""
        if not i:
            return before
        try:
            prompt = self.render(messages[:i], tools, True, "")
            if text.startswith(prompt):
                return len(prompt)
            asked = self.render(messages[:i], tools, False, "")
        except ValueError:
            return before
        if text.startswith(asked) and self.probed.begins:
            shared = _shared_start(text[len(asked) :], self.probed.begins)
            if shared and (before is None or len(asked) + shared <= before):
                notes.add(PROMPT_DIFFERS)
                return len(asked) + shared
        if before is not None and self.probed.begins:
            # the turn's own beginning, with what the template itself writes after it
            begins = text.rfind(self.probed.begins, 0, before)
            gap = text[begins + len(self.probed.begins) : before] if begins >= 0 else None
            if gap is not None and (self._special is None or not self._special.search(gap)):
                return before - len(gap)
        return before

    def _lost(self, conversation: Conversation, i: int) -> ValueError:
        return ValueError(
            f"{conversation.origin}: message {i + 1}, the assistant's, cannot be found in what the chat template makes "
            "of the conversation; give a template that marks it ({% generation %} … {% endgeneration %}) with "
            "--template"
        )

    # Which tokens that is

    def tokens(self, conversation, spans: list[_Turn], notes: set[str], encoding: "_Encoding") -> Tokens:
        learned = np.zeros(len(encoding.ids), bool)
        for start, stop, _ in spans:
            first, last, straddled = encoding.between(start, stop, self.added)
            learned[first:last] = True
            if straddled:
                notes = notes | {STRADDLED}
        ids = np.array(encoding.ids, np.int32)
        if spans and not spans[-1].ended and conversation.messages[-1].get("role") == "assistant":
            end = getattr(self.tokenizer, "eos_token_id", None)
            if end is None:
                notes = notes | {NO_END}
            elif learned[-1]:
                ids, learned = np.append(ids, np.int32(end)), np.append(learned, True)
                notes = notes | {added_end(self.tokenizer)}
            else:  # white space after it: the end stands right behind the answer
                last = int(np.flatnonzero(learned)[-1]) + 1
                ids = np.append(ids[:last], np.int32(end))
                learned = np.append(learned[:last], True)
                notes = notes | {added_end(self.tokenizer)}
        return Tokens(ids, learned, tuple(sorted(notes)))


def _interleaved(pieces: list[str], contents: list[str]) -> str:
    """p0 c0 p1 c1 … pn."""
    return "".join(part for pair in zip(pieces, [*contents, ""], strict=True) for part in pair)


def _shared_start(one: Sequence, other: Sequence) -> int:
    """How many characters or tokens both have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def added_end(tokenizer: Any) -> str:
    """The note on examples to which an end token was added."""
    return f"nothing ended the answer, so {tokenizer.eos_token} was added after it, and is learned"


class _Encoding:
    """A tokenized text: ids, and which of them lie between two characters."""

    def __init__(self, ids: list[int], fast=None, tokenize=None, text: str = ""):
        self.ids, self._fast, self._tokenize, self._text = ids, fast, tokenize, text

    def between(self, start: int, stop: int, added: set[int]) -> tuple[int, int, bool]:
        """First token, the one after the last, and whether the first also holds characters from before `start`."""
        if start >= stop:
            return 0, 0, False
        if self._fast is None:
            return self._by_prefixes(start, stop)
        first = self._fast.char_to_token(start)
        last = len(self.ids) if stop == len(self._text) else self._fast.char_to_token(stop)
        if first is None or last is None:  # white space that belongs to no token's characters
            return self._by_offsets(start, stop, added)
        begins = self._fast.token_to_chars(first)[0]
        if stop < len(self._text) and self._fast.token_to_chars(last)[0] < stop:
            last += 1
        if begins < start and self.ids[first] in added:  # a marker that swallows the white space behind it
            return first + 1, last, False
        return first, last, begins < start

    def _by_offsets(self, start: int, stop: int, added: set[int]) -> tuple[int, int, bool]:
        """The same from all offsets: a token reaches from where the one before it ends."""
        begins, ends = np.array(self._fast.offsets, np.int64).reshape(-1, 2).T
        reached = np.maximum.accumulate(ends)
        previous = np.concatenate([[0], reached[:-1]])
        begins = np.where(begins == ends, previous, np.maximum(begins, previous))
        inside = (reached > start) & (begins < stop) & (ends > start)
        marker = np.fromiter((token in added for token in self.ids), bool, len(self.ids))
        inside &= ~marker | (begins >= start)
        found = np.flatnonzero(inside)
        if not len(found):
            return 0, 0, False
        return int(found[0]), int(found[-1]) + 1, bool(previous[found[0]] < start)

    def _by_prefixes(self, start: int, stop: int) -> tuple[int, int, bool]:
        """The same for a tokenizer that does not say which characters a token stands for."""
        first, exact = self._shared(start)
        last, whole = self._shared(stop)
        return first, last if whole else last + 1, not exact

    def _shared(self, place: int) -> tuple[int, bool]:
        """How many tokens the text up to `place` has in common with the whole, and whether these are all it has."""
        part = self._tokenize(self._text[:place])
        same = _shared_start(part, self.ids)
        return same, same == len(part)


def _tokenize(texts: list[str], tokenizer: Any) -> Iterable[_Encoding]:
    options = {"add_special_tokens": False}
    if getattr(tokenizer, "is_fast", False):
        batch = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False, **options)
        return [
            _Encoding(encoding.ids, encoding, None, text) for encoding, text in zip(batch.encodings, texts, strict=True)
        ]
    plain = lambda text: list(tokenizer(text, **options)["input_ids"])  # noqa: E731
    return [_Encoding(plain(text), None, plain, text) for text in texts]
