"""Figures of an optimizer that pages: where each page is as time goes on."""

from collections import Counter
from collections.abc import Sequence

from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from qlora_lab.plots.memory_categories import draw_areas
from qlora_lab.plots.style import HALO, INK, STYLE, TIERS, figure, label


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
    fig, axes = figure(height=0.9 + 2 * len(panels), rows=len(panels), sharex=True)
    text = []
    for ax, (title, moves) in zip(axes, panels, strict=True):
        tiers = _draw_pages(ax, moves, pages, end, marks)
        label(ax, title, x if ax is axes[-1] else "", "page")
        into = Counter(tier for _, _, tier in moves)
        text.append(f"{title}: " + ", ".join(f"{into[tier]} moves to {tier}" for tier in tiers))
    fig.legend(handles=_tier_legend(tiers), frameon=False, fontsize=STYLE["small"], ncols=3, loc="outside lower center")
    fig.alt_text = (
        f"Place of {pages} pages over {end:g} positions ({x}), one row a page, coloured by tier. "
        + "; ".join(text)
        + "."
    )
    return fig


def memory_under_limit(
    memory: Sequence[dict[str, float]], limit: float, title: str, marks: Sequence[tuple[float, str]] = ()
) -> Figure:
    """Memory by category over a run, stacked, and a limit, which it may break.

    Args: as `memory_and_pages`.
    """
    fig, (ax,) = figure(height=3.8)
    _draw_memory(ax, memory, limit, title)
    for position, _ in marks:
        ax.axvline(position, color=INK, linewidth=0.6)
    ax.set_xticks([position for position, _ in marks], [name for _, name in marks], ha="left")
    fig.legend(frameon=False, fontsize=STYLE["small"], ncols=3, loc="outside lower center")
    highest = [
        max(sum(at.values()) for at in memory[int(begin) : int(end)])
        for (begin, _), (end, _) in zip(marks, [*marks[1:], (len(memory), "")], strict=True)
    ]
    steps = ", ".join(f"{name} {top:,.0f} MB" for (_, name), top in zip(marks, highest, strict=True))
    fig.alt_text = (
        f"{title}. Memory by category in MB, stacked, with a limit at {limit:,.0f} MB. Highest in each step: {steps}. "
        f"{_highest(memory)}"
    )
    return fig


def memory_and_pages(
    memory: Sequence[dict[str, float]],
    moves: Sequence[tuple[float, int, str]],
    pages: int,
    limit: float,
    title: str,
    marks: Sequence[tuple[float, str]] = (),
    other: tuple[str, Sequence[tuple[float, float]]] | None = None,
) -> Figure:
    """Memory by category over a run, stacked, under a limit; below it, on the same axis, where each page is.

    Args:
        memory: {category: MB} after each birth and death of a ledger, in order; all with the same categories.
        moves: (position in `memory`, page, tier it moved to).
        limit: MB, drawn as a line.
        marks: (position, name) of the beginnings of steps.
        other: (name, [(position, MB)]), the whole of another run to compare with, drawn as a line.
    """
    fig, (upper, lower) = figure(height=5.4, rows=2, sharex=True, height_ratios=(3, 2))
    categories = list(memory[0])
    _draw_memory(upper, memory, limit, title, other)
    tiers = _draw_pages(lower, moves, pages, len(memory), [position for position, _ in marks])
    lower.set_xticks([position for position, _ in marks], [name for _, name in marks], ha="left")
    label(lower, "", "", "page")
    handles = [*upper.get_legend_handles_labels()[0], *_tier_legend(tiers)]
    fig.legend(handles=handles, frameon=False, fontsize=STYLE["small"], ncols=3, loc="outside lower center")
    state = categories[-1]
    beside = f"The line {other[0]} reaches {max(total for _, total in other[1]):,.0f} MB. " if other is not None else ""
    fig.alt_text = (
        f"{title}. Above: memory by category in MB, stacked, with a limit at {limit:,.0f} MB. {_highest(memory)} "
        f"{beside}{state}: at most {max(at[state] for at in memory):,.0f} MB, at the end {memory[-1][state]:,.0f} MB. "
        f"Below: the tier of each of {pages} pages at the same moments, {len(moves)} moves in all."
    )
    return fig


def _draw_memory(ax, memory: Sequence[dict[str, float]], limit: float, title: str, other=None) -> None:
    """Areas of memory by category, the limit, and another run's total as a line."""
    draw_areas(ax, memory)
    top = max(limit, *(sum(at.values()) for at in memory))
    if other is not None:
        name, points = other
        ax.plot(*zip(*points, strict=True), color=INK, linewidth=1.1, linestyle=":", label=name)
        top = max(top, *(total for _, total in points))
    ax.axhline(limit, color=INK, linewidth=1.5, linestyle="--")
    ax.text(
        len(memory),
        limit,
        f"limit {limit:,.0f} MB ",
        ha="right",
        va="bottom",
        color=INK,
        fontsize=STYLE["small"],
        path_effects=HALO,
    )
    ax.set_ylim(0, 1.12 * top)
    ax.set_xlim(0, len(memory))
    label(ax, title, "", "MB")


def _highest(memory: Sequence[dict[str, float]]) -> str:
    """A sentence on the highest point."""
    top = max(memory, key=lambda at: sum(at.values()))
    parts = ", ".join(f"{name} {abs(amount):,.0f}" for name, amount in top.items())
    return f"The highest point is {sum(top.values()):,.0f} MB ({parts})."


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
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(visible=False)
    return [tier for tier in TIERS if spans[tier]]


def _tier_legend(tiers: Sequence[str]) -> list[Patch]:
    return [Patch(facecolor=TIERS[tier], label=f"on {tier}") for tier in tiers]
