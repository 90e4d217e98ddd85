"""Figures of 4-bit data types: where their levels lie, what a code means, and how they are built.

`quantization_error` holds the figures of what quantizing costs.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from qlora_lab.plots.style import BLUE, GREY, HALO, INK, ORANGE, SKY, STYLE, figure, label, look, tint


def codes_of_a_number(number: float, ranges: Sequence[tuple[float, float]]) -> Figure:
    """One number line for each range: its sixteen integers, and the one nearest to the number.

    Args:
        ranges: (low, high) of codes 0 and 15.
    """
    fig, (ax,) = figure(height=1.2 + 0.8 * len(ranges))
    told = []
    for row, (low, high) in enumerate(ranges):
        step = (high - low) / 15
        code = min(15, max(0, round((number - low) / step)))
        values = [low + step * k for k in range(16)]
        ax.plot([low, high], [row, row], color=GREY, linewidth=1)
        ax.plot(values, [row] * 16, "|", color=INK, markersize=11)
        ax.plot([values[code]], [row], "o", color=ORANGE, markeredgecolor=INK, markersize=9)
        small = {"fontsize": STYLE["small"], "color": INK}
        ax.text(values[0], row + 0.34, "0", ha="center", va="center", **small)
        ax.text(values[15], row + 0.34, "15", ha="center", va="center", **small)
        words = {
            "fontsize": STYLE["small"],
            "fontweight": "bold",
            "path_effects": HALO,
        }
        ax.text(values[code], row - 0.36, f"code {code}: {values[code]:.4g}", ha="center", va="center", **words)
        told.append(f"from {low:g} to {high:g} code {code}, which decodes to {values[code]:.4g}")
    ax.axvline(number, color=BLUE, linewidth=1.4, linestyle="--", zorder=0)
    ax.set_yticks(
        range(len(ranges)), [f"{low:g} to {high:g}".replace("-", "−") for low, high in ranges], fontsize=STYLE["size"]
    )
    ax.set_ylim(len(ranges) - 0.45, -0.75)
    ax.grid(axis="y", visible=False)
    label(ax, f"{number:g} (dashed) in {len(ranges)} ranges of fifteen equal steps", "value", "range")
    fig.alt_text = f"The number {number:g} on number lines of fifteen equal steps: " + "; ".join(told) + "."
    return fig


def levels(rows: Sequence[tuple[str, Sequence[float]]], title: str) -> Figure:
    """Number lines of data types, all levels as ticks, each with what rounding to them costs above it.

    Args:
        rows: (name, levels), a block's scale being 1.
    """
    fig, axes = figure(height=0.8 + 1.2 * len(rows), rows=len(rows), sharex=True)
    told = []
    for ax, (name, table) in zip(axes, rows, strict=True):
        table = np.unique(np.asarray(table, dtype=float))
        x = np.unique(np.concatenate((np.linspace(-1, 1, 801), table, (table[1:] + table[:-1]) / 2)))
        x = x[(x >= -1) & (x <= 1)]
        error = np.abs(x[:, None] - table).min(1)
        colour = look(name)["color"]
        ax.fill_between(x, error, color=colour, alpha=0.35, linewidth=0)
        ax.plot(x, error, color=colour, linewidth=1.2)
        ax.plot(table, np.full(len(table), -0.022), "|", color=INK, markersize=9, clip_on=False)
        ax.set_ylim(-0.045, 0.28)
        ax.set_yticks([0, 0.1, 0.2])
        ax.text(-1.13, 0.275, name, fontsize=STYLE["size"], fontweight="bold", va="top", ha="left")
        told.append(
            f"{name} has {len(table)} different levels from {table[0]:.2f} to {table[-1]:.2f}, the widest gap "
            f"{np.diff(table).max():.3f}, the narrowest {np.diff(table).min():.3f}"
        )
    label(axes[0], title)
    axes[-1].set_xlabel("weight / scale of its block (ticks: the levels)", fontsize=STYLE["size"])
    fig.supylabel("rounding error / scale", fontsize=STYLE["size"])
    axes[-1].set_xlim(-1.15, 1.05)
    fig.alt_text = f"{title}. " + "; ".join(told) + "."
    return fig


def quantiles(negative: Sequence[float], positive: Sequence[float], edge: float) -> Figure:
    """How NF4 is built: a bell curve cut at quantiles, the negative and the positive side each for itself.

    Args:
        negative, positive: quantiles in standard deviations, zero not among them.
        edge: probability below the largest positive quantile.
    """
    fig, (ax,) = figure(height=3.1)
    x = np.linspace(-3.2, 3.2, 641)

    def bell(at):
        return np.exp(-np.square(at) / 2) / math.sqrt(2 * math.pi)

    ax.plot(x, bell(x), color=INK, linewidth=1.5)
    for side, colours in (
        (sorted([*negative, 0.0]), (ORANGE, tint(ORANGE, 0.5))),
        ([0.0, *sorted(positive)], (BLUE, tint(BLUE, 0.5))),
    ):
        for k, (low, high) in enumerate(pairwise(side)):
            within = np.linspace(low, high, 30)
            ax.fill_between(within, bell(within), color=colours[k % 2], linewidth=0)
    for at in (*negative, 0.0, *positive):
        ax.plot([at, at], [0, bell(at)], color=INK, linewidth=1)
        ax.plot([at], [-0.013], "|", color=INK, markersize=8, clip_on=False)
    text = {"fontsize": STYLE["small"], "ha": "center"}
    ax.text(-1.75, 0.3, f"{len(negative)} slices\nof equal area", color=INK, **text)
    ax.text(1.75, 0.3, f"{len(positive)} slices\nof equal area", color=INK, **text)
    tail = {"arrowprops": {"arrowstyle": "-", "color": INK}, "va": "center"}
    ax.annotate(f"{1 - edge:.1%} left out", (2.2, 0.012), (2.65, 0.12), **text, **tail)
    ax.set_ylim(-0.025, 0.43)
    ax.set_yticks([])
    label(ax, "NF4: cut the bell curve into slices of equal area", "standard deviations", "density")
    top = max(positive)
    fig.alt_text = (
        f"A bell curve cut at quantiles: {len(negative)} slices of equal area left of zero and {len(positive)} right "
        f"of it, from {min(negative):.3f} to {top:.3f} standard deviations; {1 - edge:.1%} of the area lies beyond "
        f"each end. Divided by {top:.3f} the cuts are NF4's levels: dense near zero, sparse at the ends."
    )
    return fig


def absmax_and_normalized(
    absmax: Sequence[tuple[int, Sequence[float], Sequence[float]]],
    assumed: float,
    normalized: Sequence[float],
    table: Sequence[float],
) -> Figure:
    """Why NF4's codes are not used equally: the scale of a block is random, and larger than the table assumes.

    Args:
        absmax: (block size, values in standard deviations, density at each).
        assumed: where the table's outermost quantile lies, in standard deviations.
        normalized: weights divided by their blocks' scales.
        table: NF4's levels.
    """
    fig, (ax, right) = figure(height=5.2, rows=2)
    told = []
    for (size, x, y), colour, line in zip(absmax, (SKY, BLUE, INK), ("--", "-", "-."), strict=False):
        ax.plot(x, y, color=colour, linestyle=line, linewidth=1.8)
        top = int(np.argmax(y))
        ax.text(x[top], y[top] + 0.03, f"{size}", ha="center", fontsize=STYLE["small"])
        told.append(f"{x[top]:.2f} for blocks of {size}")
    ax.axvline(assumed, color=ORANGE, linewidth=2)
    ax.set_ylim(0, 1.15 * max(max(y) for _, _, y in absmax))
    ax.text(assumed - 0.06, 1.1 * max(max(y) for _, _, y in absmax), "assumed", ha="right", va="top",
            fontsize=STYLE["small"])  # fmt: skip
    label(ax, "Largest of 16, 64, 256 weights", "absmax of a block, standard deviations", "density")
    counts, edges = np.histogram(np.asarray(normalized), bins=80, range=(-1, 1), density=True)
    right.stairs(counts[1:-1], edges[1:-1], fill=True, color=SKY)
    x = np.linspace(-1, 1, 201)
    inside = math.erf(assumed / math.sqrt(2))
    curve = assumed * np.exp(-np.square(assumed * x) / 2) / math.sqrt(2 * math.pi) / inside
    right.plot(x, curve, color=ORANGE, linewidth=2, linestyle="--")
    right.plot(table, [-0.03] * len(table), "|", color=INK, markersize=8, clip_on=False)
    right.set_ylim(-0.06, 1.35 * counts[1:-1].max())
    right.set_xlim(-1.03, 1.03)
    right.text(0.98, 0.97, "bars: blocks of 64\ndashed: what NF4 assumes", ha="right", va="top",
               transform=right.transAxes, fontsize=STYLE["small"])  # fmt: skip
    label(right, "Weights / their block's absmax", "ticks: NF4's levels", "density")
    fig.alt_text = (
        f"Above, the density of a block's largest magnitude among Gaussian weights, most likely {', '.join(told)} "
        f"standard deviations, while NF4's outermost quantile lies at {assumed:.3f}. Below, weights divided by their "
        f"block's absmax are narrower than assumed: density {counts[39:41].mean():.2f} at zero instead of "
        f"{curve[100]:.2f}, and {counts[5:8].mean():.2f} instead of {curve[17]:.2f} around -0.83. The spikes at -1 "
        "and 1, where the largest weight of each block lies, are not drawn."
    )
    return fig


def grids(weights: Sequence[float], rows: Sequence[tuple[str, Sequence[float]]], title: str) -> Figure:
    """The weights of a matrix, and the numbers that each of several ways lets them be.

    Args:
        weights: any number of them.
        rows: (name and what it costs, the numbers it allows, in units of the weights).
    """
    fig, axes = figure(height=0.9 + 1.25 * len(rows), rows=len(rows), sharex=True)
    weights = np.asarray(weights)
    end = float(np.quantile(np.abs(weights), 0.9995))
    counts, edges = np.histogram(weights, bins=120, range=(-end, end), density=True)
    told = []
    for ax, (name, allowed) in zip(axes, rows, strict=True):
        ax.stairs(counts, edges, fill=True, color=SKY)
        inside = [level for level in allowed if -end <= level <= end]
        ax.vlines(inside, 0, 1.05 * counts.max(), color=INK, linewidth=1.3)
        ax.set_ylim(0, 1.45 * counts.max())
        ax.set_yticks([])
        ax.text(0.01, 0.97, name, transform=ax.transAxes, va="top", fontsize=STYLE["small"], fontweight="bold")
        told.append(f"{name.rstrip('.')}, with {len(inside)} of its levels where the weights are")
    axes[-1].set_xlim(-end, end)
    label(axes[0], title)
    axes[-1].set_xlabel("weight (area: how many there are; lines: what they may become)", fontsize=STYLE["small"])
    fig.alt_text = f"{title}. A histogram of {len(weights):,} weights under the levels of each way: " + "; ".join(told)
    fig.alt_text += "."
    return fig


def decision_regions(rows: Sequence[tuple[str, Sequence[float]]], scale: float, title: str) -> Figure:
    """The bell curve cut where a weight changes from one level to the next; each piece has its level as a tick.

    Args:
        rows: (name, levels).
        scale: standard deviations that a level of 1 stands for.
    """
    fig, axes = figure(height=0.8 + 1.75 * len(rows), rows=len(rows), sharex=True)

    def bell(at):
        return np.exp(-np.square(at) / 2) / math.sqrt(2 * math.pi)

    told = []
    for ax, (name, table) in zip(axes, rows, strict=True):
        table = scale * np.unique(np.asarray(table, dtype=float))
        cuts = [-3.6, *((table[1:] + table[:-1]) / 2), 3.6]
        shares = np.diff([0.5 * (1 + math.erf(cut / math.sqrt(2))) for cut in cuts])
        for k, (low, high) in enumerate(pairwise(cuts)):
            within = np.linspace(low, high, 40)
            ax.fill_between(within, bell(within), color=(ORANGE, BLUE)[k % 2], linewidth=0)
        ax.plot(table, np.full(len(table), -0.018), "|", color=INK, markersize=9, clip_on=False)
        ax.set_ylim(-0.035, 0.47)
        ax.set_yticks([])
        words = f"{name}: {100 * shares.min():.1f} to {100 * shares.max():.0f} % of the weights in a piece"
        ax.text(0.01, 0.97, words, transform=ax.transAxes, va="top", fontsize=STYLE["small"])
        told.append(words)
    axes[-1].set_xlim(-3.6, 3.6)
    label(axes[0], title)
    axes[-1].set_xlabel("standard deviations (ticks: the level of each piece)", fontsize=STYLE["small"])
    fig.alt_text = f"{title}. With a scale of {scale:.2f} standard deviations, " + "; ".join(told) + "."
    return fig
