"""Figures of an optimizer that pages: where each page is as time goes on."""

from collections import Counter
from collections.abc import Sequence

from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from qlora_lab.plots.memory_categories import draw_areas
from qlora_lab.plots.style import BLUE, INK, ORANGE, STYLE, figure, label

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
    categories = list(memory[0])
    draw_areas(upper, memory)
    totals = [sum(at.values()) for at in memory]
    upper.axhline(limit, color=INK, linewidth=1.5, linestyle="--")
    upper.text(len(memory), limit, f"limit {limit:,.0f} MB ", ha="right", va="bottom", fontsize=STYLE["size"] - 1)
    upper.set_ylim(0, 1.12 * max(limit, *totals))
    upper.set_xlim(0, len(memory))
    label(upper, title, "", "MB")
    upper.legend(frameon=False, fontsize=STYLE["size"] - 2, ncols=5, loc="upper center", bbox_to_anchor=(0.45, -0.02))
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
