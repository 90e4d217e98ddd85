"""The visual language of all figures: a card with dark ink on it, one colour for each thing, one size of type.

Jupyter shows a figure on white or on nearly black, and a picture cannot ask which. No colour of text has a contrast of
4.5 to 1 on both, so a figure brings its own ground: a soft card with round corners, which looks meant on either. Every
line has a contrast of 3 to 1 to it, and what is lighter than that has an outline. A figure is as wide as a phone can
show with its type still readable; it has more pixels than it takes up, so that it is sharp there and when enlarged.

`png` renders a figure to bytes, `show` displays it in a notebook with its alternative text.
"""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

CARD = "#eef1f4"
# Inks for lines and fills. Hues like Okabe and Ito's, which colour-blind eyes can tell apart, but darker: each has 3 to
# 1 on the card, ORANGE and SKY carry INK at 4.5 to 1, and those that stand for opposites differ in grey too.
INK, BLUE, ORANGE, GREEN, PINK, SKY = "#1b1f24", "#06529a", "#d86500", "#14805a", "#b34a8e", "#2c8dcb"
GREY = "#707780"
STYLE = {"size": 11.5, "small": 10.5, "grid": "#d3d8de"}
DPI = 144
PIXELS_PER_INCH = 96  # of a page: what a figure's inches take up where it is shown
PAD = 0.13  # inches from the card's edge
HALO = [withStroke(linewidth=3, foreground=CARD)]  # around a text that lies on lines


def tint(colour: str, share: float) -> str:
    """A colour mixed with the card's: all of it at 1, nothing of it at 0. For areas that have an outline, or text."""
    return to_hex(share * np.array(to_rgb(colour)) + (1 - share) * np.array(to_rgb(CARD)))


# --- one colour for each thing, in every figure

# Memory. Dark and light take turns in the order in which a ledger stacks them, so neighbours differ in grey too.
CATEGORY_COLOURS = {
    "quantized base": GREY,
    "base weights": tint(GREY, 0.42),
    "adapters": ORANGE,
    "gradients": tint(PINK, 0.6),
    "activations": GREEN,
    "temporary": tint(SKY, 0.5),
    "optimizer state": BLUE,
    "gathered": "#d9b92f",
}
# What else they are called, and the parts that some figures split them into
_SAME = {
    "weights": "base weights",
    "4-bit base": "quantized base",
    "logits": "temporary",
    "optimizer": "optimizer state",
    "moments": "optimizer state",
    "first moments": "optimizer state",
    "pages": "optimizer state",
}
_PARTS = {"second moments": tint(BLUE, 0.55)}
METHOD_LOOKS = {
    "full": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "lora": {"color": GREEN, "marker": "s", "linestyle": "--"},
    "qlora": {"color": ORANGE, "marker": "D", "linestyle": "-."},
}
DATATYPE_LOOKS = {
    "nf4": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "fp4": {"color": ORANGE, "marker": "s", "linestyle": "--"},
    "int4": {"color": GREEN, "marker": "^", "linestyle": ":"},
    "int4_affine": {"color": INK, "marker": "D", "linestyle": "-."},
}
# Pages are the optimizer's state, so they have its hue: dark where it is near, light where it is far
TIERS = {"device": BLUE, "host": tint(SKY, 0.8), "disk": tint(GREY, 0.38)}
_OTHERS = (
    {"color": PINK, "marker": "v", "linestyle": (0, (5, 1))},
    {"color": SKY, "marker": "P", "linestyle": (0, (1, 1))},
    {"color": GREY, "marker": "X", "linestyle": (0, (3, 1, 1, 1))},
)


def colour_of(category: str, other: int = 0) -> str:
    """The colour of a category of memory by any of its names; of another, the `other`-th of three."""
    found = CATEGORY_COLOURS.get(_SAME.get(category, category)) or _PARTS.get(category)
    return found or _OTHERS[other % len(_OTHERS)]["color"]


def look(name: str, looks: Mapping[str, dict] = DATATYPE_LOOKS, other: int = 0) -> dict:
    """Colour, marker and line of a data type or a method by its name; of another, the `other`-th of three."""
    words = name.lower().replace("-", "").split()
    found = next((look for key, look in looks.items() if key in (name, *words)), None)
    return found or _OTHERS[other % len(_OTHERS)]


def figure(width: float = 5.6, height: float = 3.1, columns: int = 1, rows: int = 1, **ratios) -> tuple[Figure, list]:
    """A figure in the house style and its axes, row by row from left to right; sizes in inches."""
    fig = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="none")
    across, up = PAD / width, PAD / height
    fig.get_layout_engine().set(rect=(across, up, 1 - 2 * across, 1 - 2 * up))
    card = FancyBboxPatch(
        (0, 0), 1, 1, boxstyle=f"round,pad=0,rounding_size={0.1 / width}", mutation_aspect=width / height,
        transform=fig.transFigure, facecolor=CARD, edgecolor="none", zorder=-1,
    )  # fmt: skip
    card.set_in_layout(False)
    fig.add_artist(card)
    axes = list(fig.subplots(rows, columns, squeeze=False, **ratios).flat)
    for ax in axes:
        ax.set_facecolor("none")
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(GREY)
        ax.tick_params(labelsize=STYLE["small"], color=GREY, labelcolor=INK)
        ax.grid(axis="y", color=STYLE["grid"], linewidth=0.8)
        ax.set_axisbelow(True)
    return fig, axes


def label(ax, title: str, x: str = "", y: str = "") -> None:
    """Name a panel and its axes; the topmost title of a figure of one column begins at the card's edge."""
    fig, grid = ax.figure, ax.get_subplotspec()
    columns = grid.get_gridspec().ncols if grid is not None else 1
    room = 72 * (fig.get_figwidth() - 2 * PAD) / columns
    if title and columns == 1 and grid is not None and grid.is_first_row():
        heading(fig, title)
    else:
        ax.set_title(wrapped(title, 0.86 * room), fontsize=STYLE["size"], loc="left", color=INK, fontweight="bold")
    ax.set_xlabel(wrapped(x, 0.86 * room, STYLE["small"]), fontsize=STYLE["small"], color=INK)
    ax.set_ylabel(y, fontsize=STYLE["small"], color=INK)


def log_losses(ax) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5, for what spans one or two powers of ten."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def heading(fig: Figure, title: str) -> None:
    """The title of a whole figure, wrapped to its width."""
    width, height = fig.get_size_inches()
    text = wrapped(title, 72 * (width - 2 * PAD))
    words = {"fontsize": STYLE["size"], "fontweight": "bold", "color": INK, "ha": "left", "va": "top"}
    fig.suptitle(text, x=PAD / width, y=1 - PAD / height, **words)
    if fig.get_layout_engine() is not None:  # room for it: the layout makes some only where it may choose the place
        taken = (text.count("\n") + 1) * 1.4 * STYLE["size"] / 72
        fig.get_layout_engine().set(
            rect=(PAD / width, PAD / height, 1 - 2 * PAD / width, 1 - (2 * PAD + taken) / height)
        )


def wrapped(text: str, points: float, size: float = STYLE["size"]) -> str:
    """Text broken into lines of no more than so many points; breaks that it has stay."""
    font = FontProperties(size=size, weight="bold" if size == STYLE["size"] else "normal")
    lines = []
    for line in text.split("\n"):
        kept = ""
        for word in line.split(" "):
            longer = f"{kept} {word}" if kept else word
            if kept and text_to_path.get_text_width_height_descent(longer.replace("$", ""), font, False)[0] > points:
                lines.append(kept)
                longer = word
            kept = longer
        lines.append(kept)
    return "\n".join(lines)


def held_apart(heights: Sequence[float], apart: float, low: float) -> list[float]:
    """The heights, moved up where needed so that no two are closer than `apart` and none is below `low`."""
    placed, last = [0.0] * len(heights), low - apart
    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        placed[i] = last = max(heights[i], last + apart)
    return placed


def png(fig: Figure) -> bytes:
    """The figure as PNG: what `savefig` draws (twice, once to lay it out), in a palette of 256 colours.

    A picture is a third as large with a palette, and looks the same: what it rounds are shades at edges.
    """
    canvas, buffer = FigureCanvasAgg(fig), io.BytesIO()
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    picture = picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = np.array(picture.getpalette("RGBA")).reshape(-1, 4)
    palette[palette[:, 3] >= 250, 3], palette[palette[:, 3] <= 5, 3] = 255, 0
    for colour in (CARD, INK, BLUE, ORANGE, GREEN, PINK, SKY, GREY):  # these, which areas are filled with, exactly
        exact = np.array([*(round(255 * part) for part in to_rgb(colour)), 255])
        off = np.abs(palette - exact).max(1)
        if off.min() <= 6:
            palette[off.argmin()] = exact
    picture.putpalette(palette.flatten().tolist(), "RGBA")
    picture.save(buffer, "png", dpi=(fig.dpi, fig.dpi))
    return buffer.getvalue()


def displayed_width(fig: Figure) -> int:
    """Pixels of a page, not of the picture, that a figure takes up."""
    return round(PIXELS_PER_INCH * fig.get_figwidth())


def show(fig: Figure, display_id: str | None = None, update: bool = False) -> None:
    """Display a figure in a notebook, with its alternative text where a screen reader finds it."""
    from IPython.display import display

    data = {"image/png": png(fig), "text/plain": f"Figure: {getattr(fig, 'alt_text', '')}"}
    metadata = {"image/png": {"alt": getattr(fig, "alt_text", ""), "width": displayed_width(fig)}}
    display(data, metadata=metadata, raw=True, display_id=display_id, update=update)
