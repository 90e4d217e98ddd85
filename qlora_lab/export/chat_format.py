"""A chat template taken apart into the texts before and after each turn, and the token at which an answer stops.

A template is a program in Jinja. Ollama has a language of its own for the same, and GGUF wants to know which token ends
a turn; neither can be read off a program. So it is asked: a few conversations with marked contents go through it, what
stands between the marks are the pieces, and the pieces, put together again, must give what the template gives for other
conversations. A template that is no such frame (it changes contents, forbids turns) is not taken apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

_MARKS = {"system": "QsystemQ", "user": "QuserQ", "assistant": "QassistantQ"}


@dataclass(frozen=True)
class ChatFormat:
    """A conversation as text: `opening`, then each turn's content between `before` and `after`, then `start`.

    Attributes:
        bos: the token that begins a text, where the template writes it; "" where it does not.
        opening: what stands before the first turn where there is no system message, such as a default one.
        before, after: by role ("system" only where the template takes one).
        start: what comes after the last turn for the model to go on from.
    """

    bos: str
    opening: str
    before: dict[str, str]
    after: dict[str, str]
    start: str

    def render(self, messages: list[dict]) -> str:
        """The prompt for the next answer."""
        first = "" if messages and messages[0]["role"] == "system" else self.opening
        turns = (f"{self.before[m['role']]}{m['content']}{self.after[m['role']]}" for m in messages)
        return f"{self.bos}{first}{''.join(turns)}{self.start}"


def take_apart(tokenizer) -> ChatFormat | None:
    """The frame of a tokenizer's chat template; None where it has none or is no plain frame."""
    if not tokenizer.chat_template:
        return None
    render = _renderer(tokenizer)
    found = None
    try:
        found = _pieces(render, tokenizer.bos_token or "")
        conversations = [[("user", "one")], [("user", "a\nb"), ("assistant", "two"), ("user", "three")]]
        if "system" in found.before:
            conversations += [[("system", "be kind"), *turns] for turns in conversations]
        for turns in conversations:
            messages = [{"role": role, "content": content} for role, content in turns]
            if found.render(messages) != render(messages, True):
                return None
    except Exception:  # whatever a template does with a conversation that it was not made for
        return None
    return found


def _renderer(tokenizer) -> Callable[[list[dict], bool], str]:
    def render(messages: list[dict], go_on: bool) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=go_on)

    return render


def _pieces(render, bos: str) -> ChatFormat:
    """Raises ValueError, or what the template raises, where a mark does not come back once."""

    def parts(roles: list[str], go_on: bool) -> list[str]:
        numbered = [f"{_MARKS[role]}{i}" for i, role in enumerate(roles)]
        rest = render([{"role": r, "content": c} for r, c in zip(roles, numbered, strict=True)], go_on)
        found = []
        for mark in numbered:
            before, here, rest = rest.partition(mark)
            if not here or mark in rest:
                raise ValueError(f"{mark} does not stand once in what the template gives")
            found.append(before)
        return [*found, rest]

    first, asked = parts(["user"], True)
    _, answering, answered = parts(["user", "assistant"], False)
    _, _, between, _ = parts(["user", "assistant", "user"], True)
    if not between.startswith(answered):  # some end a conversation otherwise than a turn
        answered = _common_start(between, answered)
    before = {"user": between.removeprefix(answered)}
    after = {"assistant": answered}
    if not first.endswith(before["user"]):
        raise ValueError("the first turn begins otherwise than later ones")
    # of what stands between a question and its answer, the end of the turn is what is left without the start
    start = _common_end(asked, answering)
    closing = parts(["user"], False)[1]
    if asked.startswith(closing) and closing:
        start = asked.removeprefix(closing)
    after["user"], before["assistant"] = asked.removesuffix(start), start
    if after["user"] + before["assistant"] != answering:
        before["assistant"] = answering.removeprefix(after["user"])
    opening = first.removesuffix(before["user"])
    marks_turns = bos in first.removeprefix(bos) or bos in asked or bos in between  # as SmolLM2's does
    given = bos if bos and opening.startswith(bos) and not marks_turns else ""
    try:
        told, after_system, _ = parts(["system", "user"], True)
        if not after_system.endswith(before["user"]):
            raise ValueError("a system message changes the turn after it")
        before["system"] = told.removeprefix(given)
        after["system"] = after_system.removesuffix(before["user"])
    except Exception:  # a template without system messages says so in its own way
        before.pop("system", None)
    return ChatFormat(given, opening.removeprefix(given), before, after, start)


def _common_start(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


@dataclass(frozen=True)
class Stop:
    """What ends an answer.

    Attributes:
        text: what the model writes at the end of its turn.
        token: the one token that is, or None where it takes several.
    """

    text: str
    token: int | None


def find_stop(tokenizer, chat: ChatFormat | None) -> Stop:
    """What ends an assistant's turn by the chat template; without one, the tokenizer's end of text."""
    after = chat.after["assistant"] if chat is not None else ""
    special = sorted(tokenizer.get_added_vocab().items(), key=lambda item: (after.find(item[0]), -len(item[0])))
    for text, token in special:
        if text and text in after:
            return Stop(text, token)
    if after.strip():
        ids = tokenizer(after.strip(), add_special_tokens=False)["input_ids"]
        return Stop(after.strip(), ids[0] if len(ids) == 1 else None)
    return Stop(tokenizer.eos_token or "", tokenizer.eos_token_id)
