"""The visual language of all figures: one palette that grey and colour-blind eyes can tell apart, one size of type.

`png` renders a figure to bytes, `show` displays it in a notebook with its alternative text.
"""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito's colours, in an order whose lightness steps are visible in grey
INK, BLUE, ORANGE, GREEN, PINK, SKY = "#1a1a1a", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
GREY = "#999999"
STYLE = {"size": 11, "grid": "#d9d9d9"}


def figure(width: float = 7.5, height: float = 3.6, columns: int = 1, rows: int = 1, **ratios) -> tuple[Figure, list]:
    """A figure in the house style and its axes, row by row from left to right."""
    fig = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = list(fig.subplots(rows, columns, squeeze=False, **ratios).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=STYLE["size"] - 1)
        ax.grid(axis="y", color=STYLE["grid"], linewidth=0.8)
        ax.set_axisbelow(True)
    return fig, axes


def label(ax, title: str, x: str = "", y: str = "") -> None:
    ax.set_title(title, fontsize=STYLE["size"] + 1, loc="left", color=INK)
    ax.set_xlabel(x, fontsize=STYLE["size"])
    ax.set_ylabel(y, fontsize=STYLE["size"])


def png(fig: Figure) -> bytes:
    """The figure as PNG: the pixels of `savefig`, which would draw it twice, once to lay it out."""
    canvas, buffer = FigureCanvasAgg(fig), io.BytesIO()
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).save(buffer, "png", dpi=(fig.dpi, fig.dpi))
    return buffer.getvalue()


def show(fig: Figure, display_id: str | None = None, update: bool = False) -> None:
    """Display a figure in a notebook, with its alternative text where a screen reader finds it."""
    from IPython.display import display

    data = {"image/png": png(fig), "text/plain": f"Figure: {getattr(fig, 'alt_text', '')}"}
    metadata = {"image/png": {"alt": getattr(fig, "alt_text", "")}}
    display(data, metadata=metadata, raw=True, display_id=display_id, update=update)
