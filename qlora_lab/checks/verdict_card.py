"""A verdict as it is seen in a notebook: a card with a colour, a mark and a sentence; elsewhere, a line of text."""

import html
import re

from qlora_lab.checks.exercise import Verdict

# Mark, words and colour of the edge. The colours stand out from a light page and from a dark one.
LOOKS = {
    "right": ("✓", "right", "#009E73"),
    "wrong": ("✗", "not yet", "#D55E00"),
    "not attempted": ("○", "not attempted", "#8c8c8c"),
}


def show_verdict(verdict: Verdict, what_follows: str) -> None:
    """Show a verdict, and what the cells below it go on with."""
    text = f"{verdict}\n{what_follows}"
    if not _in_a_notebook():
        print(text)
        return
    from IPython.display import display

    display({"text/plain": text, "text/html": card(verdict, what_follows)}, raw=True)


def card(verdict: Verdict, what_follows: str) -> str:
    """The same as HTML that inherits the page's ink."""
    mark, words, colour = LOOKS[verdict.status]
    return (
        f'<div style="border-left: 5px solid {colour}; padding: 0.3em 0.9em; margin: 0.3em 0; max-width: 46em">'
        f'<b><span style="color: {colour}">{mark} {words}</span> · {verdict.exercise}</b><br>'
        f"{_marked_up(verdict.message)}"
        f'<br><span style="opacity: 0.75">{_marked_up(what_follows)}</span></div>'
    )


def _marked_up(text: str) -> str:
    """Text as HTML, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _in_a_notebook() -> bool:
    """Whether the cell's output is shown by a front end that draws HTML."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")
