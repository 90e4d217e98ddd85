"""Figures of several GPUs: what is on each, and what becomes of each block in the course of a step."""

from collections.abc import Sequence

from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from qlora_lab.plots.style import GREY, HALO, INK, METHOD_LOOKS, PINK, SKY, STYLE, colour_of, figure, label, look


def per_gpu(
    series: Sequence[tuple[str, Sequence[tuple[int, float]]]], cards: Sequence[tuple[str, float]], title: str
) -> Figure:
    """Memory of each GPU against their number, both logarithmic, and what cards have.

    Args:
        series: (method, [(GPUs, GB on each)]).
        cards: (name, GB), as dashed lines.
    """
    fig, (ax,) = figure(height=4.4)
    counts = sorted({count for _, points in series for count, _ in points})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    for name, size in cards:
        ax.axhline(size, color=GREY, linewidth=1, linestyle=":")
        ax.text(counts[-1] * 2.95, size * 1.04, name, fontsize=STYLE["small"], color=INK, va="bottom", ha="right")
    for k, (name, points) in enumerate(series):
        at, sizes = zip(*points, strict=True)
        ax.plot(at, sizes, **look(name, METHOD_LOOKS, k), markeredgecolor=INK, linewidth=1.8, markersize=7)
        if len(set(sizes)) == 1:  # told once, at the end of its line
            words, end = f"{name}: {sizes[0]:,.0f}", (at[-1] * 1.05, sizes[0] * 1.12)
            ax.text(*end, words, fontsize=STYLE["small"], color=INK, va="bottom", ha="right", path_effects=HALO)
            continue
        for x, y in points:
            words = f"{name}: {y:,.0f}" if x == at[0] else f"{y:,.0f}"
            ax.text(x * 1.03, y * 1.09, words, fontsize=STYLE["small"], color=INK, va="bottom", path_effects=HALO)
    ax.set_xlim(counts[0] * 0.82, counts[-1] * 3)
    low = min(y for _, points in series for _, y in points)
    high = max(y for _, points in series for _, y in points)
    ax.set_ylim(low * 0.75, high * 1.5)
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    ax.yaxis.set_minor_locator(NullLocator())
    label(ax, title, "GPUs", "GB on each GPU")
    fig.alt_text = (
        f"{title}. GB on each GPU against their number, both axes logarithmic. "
        + " ".join(
            f"{name}: " + ", ".join(f"{y:,.0f} GB with {x} GPU{'s' * (x > 1)}" for x, y in points) + "."
            for name, points in series
        )
        + f" Dashed: cards of {', '.join(f'{size:,.0f} GB' for _, size in cards)}."
    )
    return fig


_SPANS = {
    "gather": ("its parts are on their way", SKY),
    "arrived": ("arrived, in a buffer", colour_of("base weights")),
    "whole": ("whole, and computing", colour_of("gathered")),
    "reduce-scatter": ("its gradients are added up and cut", PINK),
}


def sharding_timeline(
    spans: Sequence[tuple[int, str, float, float]], layers: int, near: tuple[float, float], titles: tuple[str, str]
) -> Figure:
    """What becomes of each decoder layer over a step: above all of it, below the seconds `near`, one row a layer.

    Args:
        spans: (layer, "gather", "arrived", "whole" or "reduce-scatter", begin, end), in seconds: `Timeline.spans`.
        near: the seconds that are drawn once more, enlarged.
        titles: of the two panels.
    """
    fig, (upper, lower) = figure(height=6.4, rows=2, height_ratios=(3, 2))
    end = max(span[3] for span in spans)
    seen = [layer for layer, _, begin, until in spans if begin < near[1] and until > near[0]]
    for ax, (left, right) in ((upper, (0.0, end)), (lower, near)):
        for what, (_, colour) in _SPANS.items():
            boxes = [
                [(begin, layer - 0.5), (begin, layer + 0.5), (until, layer + 0.5), (until, layer - 0.5)]
                for layer, kind, begin, until in spans
                if kind == what and begin < right and until > left
            ]
            ax.add_collection(PolyCollection(boxes, facecolors=colour, edgecolors=INK, linewidths=0.3))
        ax.set_xlim(left, right)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(visible=False)
    upper.set_ylim(-0.7, layers - 0.3)
    lower.set_ylim(min(seen) - 0.7, max(seen) + 0.7)
    for edge in near:
        upper.axvline(edge, color=INK, linewidth=0.8, linestyle="--")
    label(upper, titles[0], "", "block")
    label(lower, titles[1], "seconds", "block")
    handles = [Patch(facecolor=colour, edgecolor=INK, linewidth=0.3, label=words) for words, colour in _SPANS.values()]
    fig.legend(handles=handles, frameon=False, fontsize=STYLE["small"], ncols=1, loc="outside lower center")
    took = {what: sum(until - begin for _, kind, begin, until in spans if kind == what) for what in _SPANS}
    times = ", ".join(f"{what} {seconds:.2f} s" for what, seconds in took.items())
    fig.alt_text = (
        f"{titles[0]}. {layers} blocks, one row each, over {end:.2f} seconds; in all {times}. "
        f"Below: the same from {near[0]:.2f} to {near[1]:.2f} seconds, with blocks {min(seen)} to {max(seen)}."
    )
    return fig
