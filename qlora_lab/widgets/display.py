"""Showing a widget together with what stands in for it where no widget runs."""

from typing import Protocol


class Shown(Protocol):
    """What `show` asks of a widget, beside being one."""

    def fallback(self) -> tuple[dict, dict]:
        """Its state now without a widget, as (data by MIME type, metadata by MIME type)."""


def show(widget: Shown) -> None:
    """Display a widget, and its state as it is now for pages that run no widgets."""
    from IPython.display import display

    data, metadata = widget.fallback()
    display(widget._repr_mimebundle_() | data, metadata=metadata, raw=True)
