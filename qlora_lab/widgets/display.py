"""Showing a widget together with what stands in for it where no widget runs, and the question above it."""

import html
from typing import Protocol


class Shown(Protocol):
    """What `show` asks of a widget, beside being one."""

    def fallback(self) -> tuple[dict, dict]:
        """Its state now without a widget, as (data by MIME type, metadata by MIME type)."""


def show(widget: Shown) -> None:
    """Display a widget, and its state as it is now for pages that run no widgets."""
    from IPython.display import display

    data, metadata = widget.fallback()
    display(_view(widget) | data, metadata=metadata, raw=True)


def to_try(question: str) -> str:
    """The markup of the question that a widget's controls answer."""
    return f'<div style="line-height: 1.5"><b>Try it:</b> {html.escape(question)}</div>'


def _view(widget) -> dict:
    """What makes a front end draw the widget. ipywidgets 7, which Colab has, only knows how to display it at once."""
    if hasattr(widget, "_repr_mimebundle_"):
        return widget._repr_mimebundle_()
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"text/plain": repr(widget), "application/vnd.jupyter.widget-view+json": view}
