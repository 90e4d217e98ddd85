"""Every figure, from plain numbers. One palette that grey and colour-blind eyes can tell apart.

Each function takes numbers, returns a matplotlib figure and sets an alternative text on it (`figure.alt_text`): what
there is to see. `png` renders a figure to bytes, `show` displays it in a notebook with that text.
"""

import io
import textwrap
from collections import Counter
from collections.abc import Sequence

from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

# Okabe and Ito's colours, in an order whose lightness steps are visible in grey
INK, BLUE, ORANGE, GREEN, PINK, SKY = "#1a1a1a", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"
_STYLE = {"size": 11, "grid": "#d9d9d9"}


def figure(width: float = 7.5, height: float = 3.6, columns: int = 1, rows: int = 1, **ratios) -> tuple[Figure, list]:
    """A figure in the house style and its axes, row by row from left to right."""
    fig = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = list(fig.subplots(rows, columns, squeeze=False, **ratios).flat)
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


def predicted_and_measured(
    series: Sequence[tuple[str, Sequence[tuple[float, float, float]]]], title: str, x: str, y: str
) -> Figure:
    """What a formula says as a line, and what was measured as marks on it (or beside it).

    Args:
        series: (name, [(x, predicted, measured)]).
        x, y: what the axes show, with their units.
    """
    fig, (ax,) = figure()
    text = []
    for (name, points), colour, marker in zip(series, (BLUE, ORANGE, GREEN, PINK), "osD^", strict=False):
        points = sorted(points)
        at, predicted, measured = zip(*points, strict=True)
        ax.plot(at, predicted, color=colour, linewidth=1.5, label=f"{name}: predicted")
        ax.plot(at, measured, marker, color=colour, markeredgecolor=INK, markersize=7, label=f"{name}: measured")
        text.append(name + ": " + ", ".join(f"{b:,.0f} predicted and {c:,.0f} measured at {a:g}" for a, b, c in points))
    ax.set_ylim(bottom=0)
    label(ax, title, x, y)
    ax.legend(frameon=False, fontsize=_STYLE["size"] - 1)
    fig.alt_text = f"{title}. Horizontal: {x}; vertical: {y}. " + "; ".join(text) + "."
    return fig


TIERS = {"device": BLUE, "host": ORANGE, "disk": "#dcdcdc"}  # dark, medium and light in grey


def page_timeline(
    panels: Sequence[tuple[str, Sequence[tuple[float, int, str]]]],
    pages: int,
    end: float,
    x: str,
    marks: Sequence[float] = (),
) -> Figure:
    """Where each page is as time goes on, one panel for each run: a row is a page, its colour the tier it is in.

    Args:
        panels: (title, [(position, page, tier it moved to)]), in order.
        end: where the last position ends. marks: positions of thin lines, the ends of steps.
        x: what positions count.
    """
    fig, axes = figure(height=3.8, columns=len(panels), sharey=True)
    text = []
    for i, (ax, (title, moves)) in enumerate(zip(axes, panels, strict=True)):
        tiers = _draw_pages(ax, moves, pages, end, marks)
        label(ax, title, x, "" if i else "page")
        into = Counter(tier for _, _, tier in moves)
        text.append(f"{title}: " + ", ".join(f"{into[tier]} moves to {tier}" for tier in tiers))
    fig.legend(handles=_tier_legend(tiers), frameon=False, ncols=3, loc="outside lower center")
    fig.alt_text = (
        f"Place of {pages} pages over {end:g} positions ({x}), one row a page, coloured by tier. "
        + "; ".join(text)
        + "."
    )
    return fig


def memory_and_pages(
    memory: Sequence[dict[str, float]],
    moves: Sequence[tuple[float, int, str]],
    pages: int,
    limit: float,
    title: str,
    marks: Sequence[tuple[float, str]] = (),
) -> Figure:
    """Memory by category over a run, stacked, under a limit; below it, on the same axis, where each page is.

    Args:
        memory: {category: MB} after each birth and death of a ledger, in order; all with the same categories.
        moves: (position in `memory`, page, tier it moved to).
        limit: MB, drawn as a line.
        marks: (position, name) of the beginnings of steps.
    """
    fig, (upper, lower) = figure(height=5.2, rows=2, sharex=True, height_ratios=(3, 2))
    colours = ["#999999", PINK, GREEN, SKY, BLUE]
    categories = list(memory[0])
    upper.stackplot(
        range(len(memory)),
        [[at[name] for at in memory] for name in categories],
        labels=categories,
        colors=colours,
        step="post",
        linewidth=0,
    )
    totals = [sum(at.values()) for at in memory]
    upper.axhline(limit, color=INK, linewidth=1.5, linestyle="--")
    upper.text(len(memory), limit, f"limit {limit:,.0f} MB ", ha="right", va="bottom", fontsize=_STYLE["size"] - 1)
    upper.set_ylim(0, 1.12 * max(limit, *totals))
    upper.set_xlim(0, len(memory))
    label(upper, title, "", "MB")
    upper.legend(frameon=False, fontsize=_STYLE["size"] - 2, ncols=5, loc="upper center", bbox_to_anchor=(0.45, -0.02))
    tiers = _draw_pages(lower, moves, pages, len(memory), [position for position, _ in marks])
    lower.set_xticks([position for position, _ in marks], [name for _, name in marks], ha="left")
    label(lower, "", "", "page")
    fig.legend(handles=_tier_legend(tiers), frameon=False, ncols=3, loc="outside lower center")
    top, state = totals.index(max(totals)), categories[-1]
    fig.alt_text = (
        f"{title}. Above: memory by category in MB, stacked, with a limit at {limit:,.0f} MB; the highest point is "
        f"{totals[top]:,.0f} MB ({', '.join(f'{name} {abs(memory[top][name]):,.0f}' for name in categories)}). "
        f"{state}: at most {max(at[state] for at in memory):,.0f} MB, at the end {memory[-1][state]:,.0f} MB. "
        f"Below: the tier of each of {pages} pages at the same moments, {len(moves)} moves in all."
    )
    return fig


def _draw_pages(ax, moves: Sequence[tuple[float, int, str]], pages: int, end: float, marks) -> list[str]:
    """Draw a row for each page; returns the tiers that occur, from top to bottom."""
    spans: dict[str, list] = {tier: [] for tier in TIERS}
    since: dict[int, tuple[float, str]] = {}
    for position, page, tier in [*moves, *((end, page, "") for page in range(pages))]:
        if page in since:
            begin, before = since[page]
            spans[before].append(
                [(begin, page - 0.5), (begin, page + 0.5), (position, page + 0.5), (position, page - 0.5)]
            )
        since[page] = position, tier
    for tier, boxes in spans.items():
        ax.add_collection(PolyCollection(boxes, facecolors=TIERS[tier], edgecolors="none"))
    for mark in marks:
        ax.axvline(mark, color=INK, linewidth=0.6)
    ax.set_xlim(0, end)
    ax.set_ylim(pages - 0.5, -0.5)
    ax.grid(visible=False)
    return [tier for tier in TIERS if spans[tier]]


def _tier_legend(tiers: Sequence[str]) -> list[Patch]:
    return [Patch(facecolor=TIERS[tier], label=f"on {tier}") for tier in tiers]


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
