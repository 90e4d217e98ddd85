"""A box to ask a model in: one command, the answers of two models side by side, and what can be said of them.

A tick is given only to an answer that is exactly what was wanted, which is known of the examples. Of a command that the
reader types nobody has said what is wanted: there the box tells whether a program could use the answer, with a circle.

What answers is any function from a command to a text, so base and tuned model may be one model in memory whose adapters
are switched off and on (`lora.disabled`). Kernels run one thing at a time: while an answer is computed the controls are
disabled, and an error is told in the box, where the reader looks, and not lost in a log.
"""

import html
from collections.abc import Callable, Mapping, Sequence

import ipywidgets

from qlora_lab.tasks.function_calls import CORRECT, Example, classify_answer, parse_calls
from qlora_lab.tasks.function_schema import validate_calls
from qlora_lab.widgets.display import to_try

_LEFT = 'style="text-align: left"'  # Jupyter sets tables to the right, as for numbers
EXAMPLES = (
    Example("Set a timer for twelve minutes.", ({"name": "timer", "arguments": {"minutes": 12}},)),
    Example(
        "Turn off the kitchen lights, then wake me at half past six in the morning.",
        (
            {"name": "light", "arguments": {"room": "kitchen", "state": "off"}},
            {"name": "alarm", "arguments": {"time": "06:30"}},
        ),
    ),
    Example("What is the capital of France?", ()),  # no command
)


def judge_calls(text: str) -> tuple[bool, str]:
    """Whether a program could carry out an answer, and in words: it must parse as calls, and of functions there are."""
    calls = parse_calls(text)
    if calls is None:
        return False, "does not parse as calls"
    try:
        validate_calls(calls)
    except ValueError as error:
        return False, f"parses, but cannot be carried out: {str(error).partition(';')[0]}"
    return True, f"parses as {len(calls)} call{'s' if len(calls) > 1 else ''}"


def judge_example(text: str, example: Example, judge: Callable[[str], tuple[bool, str]] = judge_calls) -> str:
    """What is said of an answer to a command whose right answer is known: a tick or a cross, and why."""
    if not example.calls:
        asked = "and none was asked for"
        return f"○ no call, {asked}" if parse_calls(text) is None else f"✗ it calls a function, {asked}"
    found = classify_answer(text, example)
    if found == CORRECT:
        return "✓ exactly the calls wanted"
    words = judge(text)[1]
    return f"✗ {words}" if parse_calls(text) is None else f"✗ {words}, but not what was wanted ({found})"


class AnswerBox(ipywidgets.VBox):
    """A text field, a button, and a column with the answer of each model.

    Args:
        answerers: name -> function that answers a command. They are asked in this order, one after the other.
        examples: commands that are answered at once; the first is shown in the box, all of them stand in `fallback`.
            Plain texts, or `tasks.Example`s, whose answers are compared with the calls wanted (none for what is no
            command).
        judge: says of an answer whether it can be used, and why (see `judge_calls`).
        question: what a reader is to find out with it.

    Attributes:
        answers: of the command asked last, by name; a model that raised an error has none.
    """

    def __init__(
        self,
        answerers: Mapping[str, Callable[[str], str]],
        examples: Sequence[str | Example] = EXAMPLES,
        judge: Callable[[str], tuple[bool, str]] = judge_calls,
        question: str = "Which command do both get wrong? Try two wishes in one sentence.",
    ):
        self._answerers, self._judge, self.answers = dict(answerers), judge, {}
        self._known = {example.command: example for example in examples if isinstance(example, Example)}
        examples = [example.command if isinstance(example, Example) else example for example in examples]
        first = examples[0] if examples else ""
        self.command = ipywidgets.Text(value=first, description="command", placeholder="say it in plain English")
        self.command.layout.width = "75%"
        self.button = ipywidgets.Button(description="Ask", button_style="primary", tooltip="Let both models answer")
        self.button.on_click(self._ask)
        self.status = ipywidgets.HTML()
        self.columns = {name: ipywidgets.HTML() for name in self._answerers}
        for column in self.columns.values():
            column.layout.width = f"{96 // len(self.columns)}%"
            column.layout.margin = "0 2% 0 0"
        columns = ipywidgets.HBox([*self.columns.values()])
        super().__init__(
            [ipywidgets.HTML(to_try(question)), ipywidgets.HBox([self.command, self.button]), self.status, columns]
        )
        self._beforehand = []
        for example in reversed(examples):  # the first one last: it stays in the box
            self.ask(example)
            self._beforehand.insert(0, (example, {name: self._told(name) for name in self.columns}))

    def ask(self, command: str) -> None:
        """Let each model answer, and show the answers as they come; an error of a model is shown in its column."""
        self.command.value, self.answers, self._errors = command.strip(), {}, {}
        if not self.command.value:
            self.status.value = "Type a command first."
            return
        self._enable(False)
        try:
            for name in self.columns:
                self.columns[name].value = _column(name, "", "")
            for number, (name, answer) in enumerate(self._answerers.items(), 1):
                self.status.value = f"{html.escape(name)} is answering ({number} of {len(self._answerers)}) ..."
                try:
                    self.answers[name] = answer(self.command.value)
                except Exception as error:  # of the model or the command: told where the reader looks
                    self._errors[name] = f"{type(error).__name__}: {error}"
                self.columns[name].value = _column(name, self.answers.get(name, ""), self._told(name)[1])
        finally:
            self.status.value = ""
            self._enable(True)

    def fallback(self) -> tuple[dict, dict]:
        """The examples and their answers as a table."""
        head = "".join(f"<th {_LEFT}>{html.escape(name)}</th>" for name in ("command", *self.columns))
        rows, lines = [], []
        for command, told in self._beforehand:
            cells = "".join(
                f"<td {_LEFT}>{html.escape(_short(text))}<br><em>{html.escape(verdict)}</em></td>"
                for text, verdict in told.values()
            )
            rows.append(f"<tr><td {_LEFT}>{html.escape(command)}</td>{cells}</tr>")
            lines.append(command)
            lines += [f"    {name}: {_short(text)} ({verdict})" for name, (text, verdict) in told.items()]
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        return {"text/html": table, "text/plain": "\n".join(lines)}, {}

    def _ask(self, _button=None) -> None:
        self.ask(self.command.value)

    def _enable(self, enabled: bool) -> None:
        self.command.disabled = self.button.disabled = not enabled

    def _told(self, name: str) -> tuple[str, str]:
        """A model's answer and what is said of it."""
        if name in self._errors:
            return "", self._errors[name]
        text = self.answers[name].strip()
        if self.command.value in self._known:
            return text, judge_example(text, self._known[self.command.value], self._judge)
        usable, words = self._judge(text)
        return text, f"○ {words}; is it what you asked for?" if usable else f"✗ {words}"


def explore_answers(
    base_answer: Callable[[str], str],
    tuned_answer: Callable[[str], str],
    examples: Sequence[str | Example] = EXAMPLES,
    **words,
) -> AnswerBox:
    """A box that lets the base model and the tuned one answer the same command.

    Args:
        base_answer, tuned_answer: from a command to the model's answer.
        examples: answered at once, for pages that run no widgets; some seconds each (see `AnswerBox`).
        words: `AnswerBox`'s judge and question.
    """
    return AnswerBox({"base model": base_answer, "tuned model": tuned_answer}, examples, **words)


def _column(name: str, text: str, verdict: str) -> str:
    style = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.4; min-height: 3em"
    return (
        f'<b>{html.escape(name)}</b><div style="{style}"><code>{html.escape(text)}</code></div>'
        f"<em>{html.escape(verdict)}</em>"
    )


def _short(text: str, length: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 2] + " …"
