"""Figures of low-rank updates: the layer drawn to scale, how low the rank is, and what a rank costs and changes."""

import math
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatterSciNotation, LogLocator

from qlora_lab.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    STYLE,
    colour_of,
    figure,
    heading,
    label,
)

LINES = tuple(zip((BLUE, ORANGE, GREEN, PINK, INK), "osD^v", ("-", "-", "-", "--", "-."), strict=True))


def update_and_directions(
    values: Sequence[float], pictures: Sequence[tuple[str, Sequence[Sequence[float]]]], title: str
) -> Figure:
    """One matrix and its singular value decomposition: how large each value is, and what the first directions draw.

    Args:
        values: all singular values, largest first.
        pictures: (name, the same corner of a matrix), shown with one scale of colours.
    """
    fig, axes = figure(height=3.9, rows=2, columns=len(pictures), height_ratios=(1.3, 1))
    for ax in axes[1 : len(pictures)]:
        ax.remove()
    first = axes[0]
    first.set_subplotspec(first.get_gridspec()[0, :])
    shown = min(len(values), 64)
    first.bar(range(1, shown + 1), values[:shown], color=BLUE, width=0.8)
    first.set_xlim(0.3, shown + 0.7)
    first.set_xticks([1, *range(8, shown + 1, 8)])
    heading(fig, title)
    first.set_xlabel(f"singular direction (the first {shown} of {len(values)})", fontsize=STYLE["small"], color=INK)
    first.set_ylabel("singular value", fontsize=STYLE["small"], color=INK)
    limit = max(abs(number) for row in pictures[0][1] for number in row) / 2
    colours = LinearSegmentedColormap.from_list("", [BLUE, STYLE["grid"], ORANGE])
    for ax, (name, matrix) in zip(axes[len(pictures) :], pictures, strict=True):
        ax.imshow(matrix, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        ax.set_title(name, fontsize=STYLE["small"], loc="left", color=INK)
    squares = [value**2 for value in values]
    parts = [(r, sum(squares[:r]) / sum(squares)) for r in (1, 4, 16) if r <= len(values)]
    fig.alt_text = (
        f"{title}. Bars: its first {shown} of {len(values)} singular values, falling steadily, the largest "
        f"{values[0] / values[min(15, shown - 1)]:.0f} times the {min(16, shown)}th. Below, a corner of "
        f"{len(pictures[0][1])} by {len(pictures[0][1][0])} numbers as colours, orange above zero and blue below: "
        + ", ".join(name for name, _ in pictures)
        + ". Share of the squares in the first directions: "
        + ", ".join(f"{share:.0%} in {r}" for r, share in parts)
        + "."
    )
    return fig


def adapted_layer(n_in: int, n_out: int, rank: int, alpha: float) -> Figure:
    """A frozen weight with its adapter beside it: left, every matrix in its true shape and all at one scale; right, the
    same with an adapter wide enough to be seen.

    A matrix is as wide as its input and as tall as its output: (out, in). Data flow from the bottom to the top.
    """
    fig, axes = figure(height=4.9, columns=2, width_ratios=(1, 2))
    unit = max(n_in, n_out)
    for ax, title, width in zip(axes, ("to scale", "not to scale"), (rank, 0.22 * unit), strict=True):
        _draw_layer(ax, (n_in / unit, n_out / unit) if width == rank else (0.62, 0.8), width / unit)
        ax.set_title(title, fontsize=STYLE["small"], loc="left", color=INK)
    words = {"fontsize": STYLE["small"], "color": INK, "ha": "center"}
    schematic = axes[1]
    for name, text in {
        "W": f"W₀\nfrozen\n{n_out:,} × {n_in:,}",
        "B": f"B\nzero\n{n_out:,}\n× {rank}",
        "A": f"A  random\n{rank} × {n_in:,}",
        "h": f"h: {rank}",
        "x": f"x: {n_in:,} numbers",
        "y": f"y: {n_out:,} numbers",
    }.items():
        x, y, alignment = schematic.places[name]
        schematic.text(x, y, text, va=alignment, **words)
    x, y, alignment = schematic.places["s"]
    schematic.text(x, y, f"× α/r\n= {alpha:g}/{rank}\n= {alpha / rank:g}", va=alignment, **(words | {"ha": "left"}))
    both = rank * (n_in + n_out)
    share = f"{both:,} numbers to train beside {n_in * n_out:,}: {both / (n_in * n_out):.2%}"
    heading(fig, f"LoRA at its start, beside a frozen weight. Rank {rank}: {share}")
    fig.alt_text = (
        f"LoRA beside a frozen weight, drawn twice: every matrix in its true shape and at one scale, where the adapter "
        f"is two hairlines, and with the adapter widened. An input x of {n_in:,} numbers goes two ways. Left: the "
        f"frozen weight, {n_out:,} by {n_in:,}, {n_out * n_in:,} numbers. Right: A, {rank} by {n_in:,}, gives {rank} "
        f"numbers; B, {n_out:,} by {rank}, starting at zero, makes {n_out:,} of them, times alpha / r = "
        f"{alpha / rank:g}. The two are added. A and B hold {both:,} numbers, {both / (n_in * n_out):.2%} of the "
        "weight's."
    )
    return fig


def _draw_layer(ax, sides: tuple[float, float], rank: float) -> None:
    """The boxes and arrows of `adapted_layer`; leaves in `ax.places` where its words go, as (x, y, vertical alignment).

    Args:
        sides: width of the weight (its inputs) and its height (its outputs).
        rank: how thick A and B are drawn.
    """
    n_in, n_out = sides
    gap, low = 0.16, 0.3
    top = low + max(n_out, rank + gap + n_out)
    left = n_in / 2
    right = n_in + 0.22 + max(n_in, n_out if rank < 0.1 else 0.0) / 2
    ax.set_aspect("equal")
    ax.set_anchor("N")
    ax.axis("off")
    boxes = {
        "W": (left - n_in / 2, top - n_out, n_in, n_out),
        "A": (right - n_in / 2, low, n_in, rank),
        "B": (right - rank / 2, top - n_out, rank, n_out),
    }
    for name, (x, y, width, height) in boxes.items():
        frozen = name == "W"
        colour = colour_of("weights" if frozen else "adapters")
        ax.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor=INK, linewidth=0.6 * frozen))
    middle = (left + right) / 2
    ax.add_patch(Rectangle((middle - n_in / 2, 0), n_in, 0.025, facecolor=INK))  # x
    total = top + 1.15 * gap
    ax.add_patch(Rectangle((middle - n_out / 2, total + 0.9 * gap), n_out, 0.025, facecolor=INK))  # y

    def arrow(*points):
        for start, end in pairwise(points[:-1]):
            ax.plot(*zip(start, end, strict=True), color=INK, linewidth=1.2)
        style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", points[-1], points[-2], arrowprops=style)

    fork, ring = 0.13, 0.05
    arrow((middle, 0.025), (middle, fork), (left, fork), (left, top - n_out))
    arrow((middle, fork), (right, fork), (right, low))
    arrow((right, low + rank), (right, top - n_out))
    arrow((left, top), (left, total), (middle - ring, total))
    arrow((right, top), (right, total), (middle + ring, total))
    arrow((middle, total + ring), (middle, total + 0.9 * gap))
    ax.text(middle, total, "+", ha="center", va="center", fontsize=STYLE["size"] + 4, color=INK)
    ax.plot([middle], [total], "o", markersize=16, markerfacecolor="none", markeredgecolor=INK)
    ax.set_xlim(min(0, middle - n_out / 2) - 0.03, max(right + n_in / 2, middle + n_out / 2) + 0.2)
    ax.set_ylim(-0.1, total + 0.9 * gap + 0.12)
    ax.places = {
        "W": (left, top - n_out / 2, "center"),
        "B": (right, top - n_out / 2, "center"),
        "A": (right, low + rank / 2, "center"),
        "h": (right + 0.14, low + rank + gap / 2, "center"),
        "x": (middle, -0.02, "top"),
        "y": (middle, total + 0.9 * gap + 0.04, "bottom"),
        "s": (right + 0.03, top + 0.01, "bottom"),
    }


def singular_energy(curves: Sequence[tuple[str, Sequence[float]]], title: str, at: int = 8) -> Figure:
    """How much of a matrix lies in its first r singular directions, for several matrices.

    Args:
        curves: (name, share of the energy (sum of squared singular values) in the first 1, 2, ... directions).
        at: the rank that is marked, and told in words to the nearest 2 %.
    """
    fig, (ax,) = figure(height=4.4)
    marks = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    for (name, shares), (colour, marker, line) in zip(curves, LINES, strict=False):
        ax.plot(
            range(1, len(shares) + 1), [100 * s for s in shares], line, color=colour, linewidth=1.8, marker=marker,
            markevery=[r - 1 for r in marks if r <= len(shares)], markeredgecolor=INK, markersize=5.5,
            markeredgewidth=0.6, label=name,
        )  # fmt: skip
    most = max(len(shares) for _, shares in curves)
    ax.set_xscale("log", base=2)
    ax.minorticks_off()
    ticks = [r for r in marks if r <= most]
    ax.set_xticks(ticks, [str(r) for r in ticks])
    ax.set_xlim(0.9, most * 1.1)
    ax.set_ylim(0, 104)
    ax.axvline(at, color=INK, linewidth=0.9, linestyle=":")
    label(ax, title, f"first r singular directions (logarithmic; dotted: r = {at})", "% of the energy")
    _legend_below(fig, ax)
    fig.alt_text = f"{title}. Share of the energy in the first {at} singular directions, to the nearest 2 %: " + (
        "; ".join(f"{name} {_nearest(100 * shares[at - 1])} %" for name, shares in curves) + "."
    )
    return fig


def loss_of_rank(
    runs: Sequence[tuple[str, Sequence[tuple[int, float]], float | None]],
    base: float,
    title: str,
    x: str = "rank that each update is cut to (logarithmic)",
) -> Figure:
    """The loss against the rank of each weight's update, cut to it or trained with it.

    Args:
        runs: (name, [(rank, loss)], loss with the whole update, None where there is none).
        base: loss without any update.
        x: what the rank is.
    """
    fig, (ax,) = figure(height=4.0)
    text = []
    most = max(rank for _, points, _ in runs for rank, _ in points)
    for (name, points, whole), (colour, marker, line) in zip(runs, LINES, strict=False):
        ranks, losses = zip(*points, strict=True)
        ax.plot(ranks, losses, line, marker=marker, color=colour, markeredgecolor=INK, markersize=6.5, label=name)
        text.append(f"{name}: " + ", ".join(f"{v:.1f} at rank {r}" for r, v in points))
        if whole is not None:
            ax.plot([ranks[-1], most * 2.2], [losses[-1], whole], ":", color=colour)
            ax.plot([most * 2.2], [whole], marker, color=colour, markeredgecolor=INK, markersize=6.5)
            text[-1] += f", {whole:.1f} with all of it"
    ax.axhline(base, color=INK, linewidth=1, linestyle="--")
    ax.text(most * 2.6, base, "no update", va="bottom", ha="right", fontsize=STYLE["small"])
    ax.set_xscale("log", base=2)
    ax.minorticks_off()
    ticks = sorted({rank for _, points, _ in runs for rank, _ in points})
    ax.set_xticks([*ticks, most * 2.2], [*map(str, ticks), "all"])
    ax.set_xlim(0.85, most * 2.7)
    ax.set_ylim(0, 1.12 * base)
    label(ax, title, x, "nats per answer token")
    _legend_below(fig, ax)
    fig.alt_text = f"{title}. Loss without any update: {base:.1f} nats. " + "; ".join(text) + "."
    return fig


def parameters_against_rank(n_in: int, n_out: int, ranks: Sequence[int]) -> Figure:
    """Parameters of an adapter against its rank, the weight's as a line, and where the two meet."""
    fig, (ax,) = figure(height=3.8)
    whole, meet = n_in * n_out, n_in * n_out / (n_in + n_out)
    ax.plot(ranks, [r * (n_in + n_out) for r in ranks], "o-", color=ORANGE, markeredgecolor=INK)
    ax.axhline(whole, color=INK, linewidth=1.5, linestyle="--")
    ax.text(ranks[0], whole * 1.12, f"the weight itself: {whole:,}", va="bottom", fontsize=STYLE["small"])
    ax.plot([meet], [whole], "D", color=BLUE, markeredgecolor=INK, markersize=8, zorder=3)
    ax.annotate(
        f"break-even at r = {meet:,.1f}", (meet, whole), (1.4 * ranks[-1], 0.12 * whole), ha="right",
        fontsize=STYLE["small"], arrowprops={"arrowstyle": "-", "color": GREY, "shrinkB": 5},
    )  # fmt: skip
    ax.text(ranks[2] * 1.15, ranks[2] * (n_in + n_out) * 0.9, f"adapter: r × {n_in + n_out:,}", va="top",
            fontsize=STYLE["small"])  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.minorticks_off()
    ax.set_xticks(ranks, [str(r) for r in ranks])
    ax.set_ylim(top=3.5 * max(whole, ranks[-1] * (n_in + n_out)))
    title = f"A weight of {n_out:,} × {n_in:,} and its adapter"
    label(ax, title, "rank r (logarithmic)", "parameters (logarithmic)")
    fig.alt_text = (
        f"{title}: parameters against rank, both axes logarithmic. The adapter's line rises from "
        f"{ranks[0] * (n_in + n_out):,} at rank {ranks[0]} to {ranks[-1] * (n_in + n_out):,} at rank {ranks[-1]} and "
        f"crosses the weight's {whole:,} at rank {meet:,.1f}."
    )
    return fig


def size_of_rank(
    panels: Sequence[tuple[str, Sequence[tuple[str, Sequence[tuple[int, float]], float]]]], y: str
) -> Figure:
    """How large something is against the rank, with the slope of each line on logarithmic axes.

    Args:
        panels: (title, [(name, [(rank, size)], slope)]).
        y: what the size is, with its unit.
    """
    fig, axes = figure(height=0.6 + 2.4 * len(panels), rows=len(panels), sharex=True)
    text = []
    for ax, (title, lines) in zip(axes, panels, strict=True):
        for (name, points, slope), (colour, marker, line) in zip(lines, LINES, strict=False):
            ranks, sizes = zip(*points, strict=True)
            ax.plot(ranks, sizes, line, marker=marker, color=colour, markeredgecolor=INK, markersize=6)
            ax.text(
                ranks[-1] * 1.25, sizes[-1], f"{name}\nslope {_signed(slope)}", va="center", fontsize=STYLE["small"]
            )
            text.append(f"{title}, {name}: slope {_signed(slope)}")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.minorticks_off()
        ax.set_xticks(ranks, [str(r) for r in ranks])
        ax.set_xlim(ranks[0] * 0.8, ranks[-1] * 8)
        ax.margins(y=0.15)
        low, high = (bound(size for _, points, _ in lines for _, size in points) for bound in (min, max))
        if high < 30 * low:
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # powers of ten alone would be one or two
            ax.yaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(math.inf, math.inf)))  # all labelled
        label(ax, title, "rank r (logarithmic)" if ax is axes[-1] else "")
    fig.supylabel(y, fontsize=STYLE["small"], color=INK)
    fig.alt_text = f"{y} against rank, from {ranks[0]} to {ranks[-1]}, on logarithmic axes. " + "; ".join(text) + "."
    return fig


def _nearest(percent: float, step: int = 2) -> int:
    return step * round(percent / step)


def _signed(slope: float) -> str:
    """To one decimal; zero without a sign."""
    text = f"{slope:+.1f}"
    return "0" if text in ("+0.0", "-0.0") else text


def _legend_below(fig: Figure, ax) -> None:
    """Below the axis, where a legend hides no line and takes no width."""
    handles, names = ax.get_legend_handles_labels()
    columns = 2 if max(map(len, names)) > 16 else 3
    fig.legend(handles, names, loc="outside lower left", ncols=columns, frameon=False, fontsize=STYLE["small"])
