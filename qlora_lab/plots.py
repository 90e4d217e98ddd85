"""Every figure, from plain numbers. One palette that grey and colour-blind eyes can tell apart.

Each function takes numbers, returns a matplotlib figure and sets an alternative text on it (`figure.alt_text`): what
there is to see. `png` renders a figure to bytes, `show` displays it in a notebook with that text.
"""

import io
import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

# Okabe and Ito's colours, in an order whose lightness steps are visible in grey
INK, BLUE, ORANGE, GREEN, PINK, SKY = "#1a1a1a", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
_STYLE = {"size": 11, "grid": "#d9d9d9"}


def figure(width: float = 7.5, height: float = 3.6, columns: int = 1, **ratios) -> tuple[Figure, list]:
    """A figure in the house style and its axes from left to right."""
    fig = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = list(fig.subplots(1, columns, squeeze=False, **ratios)[0])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=_STYLE["size"] - 1)
        ax.grid(axis="y", color=_STYLE["grid"], linewidth=0.8)
        ax.set_axisbelow(True)
    return fig, axes


def label(ax, title: str, x: str = "", y: str = "") -> None:
    ax.set_title(title, fontsize=_STYLE["size"] + 1, loc="left", color=INK)
    ax.set_xlabel(x, fontsize=_STYLE["size"])
    ax.set_ylabel(y, fontsize=_STYLE["size"])


def loss_curve(losses: Sequence[float], total_steps: int | None = None) -> Figure:
    """Training loss against step: each step as a faint dot, and an exponential mean that shows the trend.

    Args:
        losses: nats per supervised token, one a step.
        total_steps: right end of the axis, for a curve that is still growing.
    """
    fig, (ax,) = figure()
    steps = range(1, len(losses) + 1)
    ax.plot(steps, losses, ".", color=SKY, markersize=4, label="each step")
    ax.plot(steps, smooth(losses), color=BLUE, linewidth=2, label="running mean")
    ax.set_yscale("log")
    ax.set_xlim(0, (total_steps or len(losses)) + 1)
    label(ax, "Training loss", "optimizer step", "nats per answer token (log)")
    ax.legend(frameon=False, fontsize=_STYLE["size"] - 1)
    if losses:
        last = smooth(losses)[-1]
        fig.alt_text = (
            f"Training loss on a logarithmic axis over {len(losses)} steps: from {losses[0]:.2f} at the first step "
            f"to a running mean of {last:.3f} at the last."
        )
    return fig


def match_bars(rows: Sequence[tuple[str, float, tuple[float, float]]], title: str = "Exact match") -> Figure:
    """Horizontal bars of shares with 95 % intervals.

    Args:
        rows: (name, share 0..1, (low, high)) from top to bottom.
    """
    fig, (ax,) = figure(height=1.1 + 0.5 * len(rows))
    names, shares, intervals = zip(*rows, strict=True)
    y = range(len(rows))
    colours = [ORANGE if "base" in name else BLUE for name in names]
    ax.barh(y, [100 * s for s in shares], color=colours, height=0.6)
    for i, (share, (low, high)) in enumerate(zip(shares, intervals, strict=True)):
        ax.plot([100 * low, 100 * high], [i, i], color=INK, linewidth=1.5)
        ax.text(100 * high + 1.5, i, f"{100 * share:.0f} %", va="center", fontsize=_STYLE["size"])
    ax.set_yticks(list(y), [textwrap.fill(name, 28) for name in names], fontsize=_STYLE["size"])
    ax.invert_yaxis()
    ax.set_xlim(0, 118)
    ax.set_xticks([0, 25, 50, 75, 100])
    ax.grid(axis="x", color=_STYLE["grid"], linewidth=0.8)
    ax.grid(axis="y", visible=False)
    label(ax, title, "percent of commands answered exactly (line: 95 % interval)")
    fig.alt_text = (
        title
        + ": "
        + "; ".join(f"{n} {100 * s:.0f} % (95 % interval {100 * lo:.0f} to {100 * hi:.0f})" for n, s, (lo, hi) in rows)
        + "."
    )
    return fig


def memory_bars(rows: Sequence[tuple[str, dict[str, float]]], title: str, unit: str = "MB") -> Figure:
    """Stacked horizontal bars of memory by category.

    Args:
        rows: (name, {category: amount in `unit`}); categories keep the order of the first row.
    """
    fig, (ax,) = figure(height=1.6 + 0.55 * len(rows))
    colours = [BLUE, ORANGE, GREEN, PINK, SKY, "#999999"]
    hatches = ["", "//", "..", "xx", "", "\\\\"]
    categories = list(dict.fromkeys(c for _, parts in rows for c in parts))
    y, left = range(len(rows)), [0.0] * len(rows)
    for k, category in enumerate(categories):
        values = [parts.get(category, 0) for _, parts in rows]
        ax.barh(
            y,
            values,
            left=left,
            height=0.6,
            color=colours[k % 6],
            hatch=hatches[k % 6],
            edgecolor="white",
            label=category,
        )
        left = [a + b for a, b in zip(left, values, strict=True)]
    for i, total in enumerate(left):
        ax.text(total + max(left) * 0.012, i, f"{total:,.0f} {unit}", va="center", fontsize=_STYLE["size"])
    ax.set_yticks(list(y), [name for name, _ in rows], fontsize=_STYLE["size"])
    ax.invert_yaxis()
    ax.set_xlim(0, max(left) * 1.18)
    ax.grid(axis="x", color=_STYLE["grid"], linewidth=0.8)
    ax.grid(axis="y", visible=False)
    label(ax, title, unit)
    ax.legend(frameon=False, fontsize=_STYLE["size"] - 1, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.28))
    fig.alt_text = (
        title
        + ". "
        + " ".join(
            f"{name}: {sum(parts.values()):,.0f} {unit} in all ("
            + ", ".join(f"{c} {v:,.0f}" for c, v in parts.items())
            + ")."
            for name, parts in rows
        )
    )
    return fig


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential running mean, corrected for its start."""
    result, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        result.append(total / norm)
    return result


def png(fig: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def show(fig: Figure, display_id: str | None = None, update: bool = False) -> None:
    """Display a figure in a notebook, with its alternative text where a screen reader finds it."""
    from IPython.display import display

    data = {"image/png": png(fig), "text/plain": f"Figure: {getattr(fig, 'alt_text', '')}"}
    metadata = {"image/png": {"alt": getattr(fig, "alt_text", "")}}
    display(data, metadata=metadata, raw=True, display_id=display_id, update=update)
