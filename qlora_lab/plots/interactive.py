"""Figures that the widgets redraw: one answer each to "what if?"."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from qlora_lab.plots.style import BLUE, GREY, INK, ORANGE, SKY, STYLE, colour_of, figure, label


def codebook(
    weights: Sequence[float], levels: Sequence[float], shares: Sequence[float], error: float, title: str
) -> Figure:
    """A histogram of weights divided by their blocks' scales, the levels as lines, and how often each code is used.

    Args:
        weights: between -1 and 1.
        levels: of the data type, and `shares` of the weights (0 to 1) that take each.
        error: root mean square error of the decoded weights, relative to theirs.
    """
    fig, (ax, below) = figure(height=4.2, rows=2, sharex=True, height_ratios=(3, 2))
    counts, edges = np.histogram(weights, bins=80, range=(-1.02, 1.02))
    top = 1.05 * max(counts)
    # one collection each: eighty bars and sixteen lines of their own take most of the time to draw
    ax.stairs(counts, edges, fill=True, color=SKY)
    ax.vlines(levels, 0, top, color=INK, linewidth=0.9)
    ax.set_ylim(0, top)
    ax.set_yticks([])
    label(ax, title, "", "weights")
    below.vlines(levels, 0, [100 * share for share in shares], color=BLUE, linewidth=6)
    below.set_ylim(0, 105 * max(shares))
    label(below, "", "weight / scale of its block (lines: the sixteen levels)", "% of codes")
    used = sum(share > 0 for share in shares)
    words = title.replace("\n", "; ")
    fig.alt_text = (
        f"{words}. Histogram of {len(weights):,} weights divided by their scales, with the levels "
        f"{', '.join(f'{level:.2f}' for level in levels)}; below, how often each is used: {used} of {len(levels)} "
        f"codes occur, the most frequent {100 * max(shares):.1f} % of the time. Relative error {100 * error:.1f} %; "
        f"the highest bin holds {int(max(counts)):,} weights."
    )
    return fig


def scale_and_error(
    weights: Sequence[float],
    decoded: Sequence[float],
    curve: Sequence[tuple[float, float]],
    scale: float,
    code: int = 6,
    reference: float = 0.125,
) -> Figure:
    """Weights among the levels scale * Q, one of which is marked; and the error against the scale.

    Args:
        decoded: what the weights decode to.
        curve: (scale, root mean square error), over the scales one can choose.
        scale: the chosen one. code: the marked Q, from -7 to 7. reference: a scale to compare its value with.
    """
    fig, (ax, right) = figure(height=5.4, rows=2)
    fig.set_layout_engine(None)  # finding a layout takes longer than drawing; this one is redrawn under a slider
    fig.subplots_adjust(left=0.13, right=0.975, top=0.87, bottom=0.11, hspace=0.62)
    places, value = range(len(weights)), scale * code
    ax.grid(axis="y", visible=False)
    ax.hlines([scale * q for q in range(-7, 8)], -0.7, len(weights) - 0.3, color=GREY, linewidth=0.4)
    ax.hlines(value, -0.7, len(weights) - 0.3, color=BLUE, linewidth=2.2)
    ax.text(len(weights), value, f"Q = {code}", va="center", fontsize=STYLE["small"], color=INK)
    ax.vlines(places, weights, decoded, color=ORANGE, linewidth=2, label="error")
    ax.plot(places, weights, "o", color=INK, markersize=4, label="weight")
    ax.plot(places, decoded, "_", color=BLUE, markersize=9, markeredgewidth=2.2, label="decoded")
    ax.set_xlim(-0.7, len(weights) + 2.6)
    ax.set_xticks([])
    change = value - reference * code
    beside = f" ({reference:g} gives {reference * code:g}: off by {change:+.3f})" if abs(change) > 1e-9 else ""
    words = f"Q = {code}: {scale:g} x {code} = {value:.6g}{beside}"
    label(ax, words.replace(" (", "\n("), f"{len(weights)} weights (lines: the levels scale x Q)", "value")
    ax.legend(frameon=False, fontsize=STYLE["small"], ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    scales, errors = zip(*curve, strict=True)
    right.plot(scales, errors, color=BLUE)
    error = (sum((w - d) ** 2 for w, d in zip(weights, decoded, strict=True)) / len(weights)) ** 0.5
    right.plot([scale], [error], "o", color=ORANGE, markeredgecolor=INK, markersize=9)
    right.set_ylim(bottom=0)
    for each in (ax, right):
        each.locator_params(nbins=5, axis="y")
    right.locator_params(nbins=4, axis="x")
    label(right, f"scale {scale:.3f}: error {error:.4f}", "scale", "root mean square error")
    best = min(curve, key=lambda point: point[1])
    fig.alt_text = (
        f"{words}. {len(weights)} weights and what they decode to with a scale of {scale:.3f}: root mean square error "
        f"{error:.4f}. Over all scales from {min(scales):.3f} to {max(scales):.3f} the smallest error is "
        f"{best[1]:.4f}, at {best[0]:.3f}."
    )
    return fig


def parameters_of_rank(rows: Sequence[tuple[str, int, int]], title: str) -> Figure:
    """For each kind of layer, its adapter as a share of its weight: two bars on one axis that starts at zero.

    Args:
        rows: (name, parameters of the weight, parameters of the adapter, 0 for none).
    """
    fig, (ax,) = figure(height=1.5 + 0.42 * len(rows))
    y = list(range(len(rows)))
    style = {"height": 0.36, "edgecolor": INK, "linewidth": 0.6}
    shares = [100 * lora / full for _, full, lora in rows]
    ax.barh([at - 0.2 for at in y], [100] * len(rows), color=colour_of("weights"), label="weight", **style)
    ax.barh([at + 0.2 for at in y], shares, color=colour_of("adapters"), label="adapter", **style)
    most = max(100.0, *shares)
    ax.set_xlim(0, 1.05 * most)
    for at, (_, full, lora), share in zip(y, rows, shares, strict=True):
        words = f"{lora:,} = {lora / full:.2%}" if lora else "no adapter"
        if lora >= full:
            words += ", not fewer"
        inside = share > 0.55 * most
        ax.text(
            (0.02 * most if inside else share + 0.015 * most), at + 0.2, words, va="center", color=INK,
            fontsize=STYLE["small"],
        )  # fmt: skip
    ax.set_yticks(y, [name for name, _, _ in rows], fontsize=STYLE["small"])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    label(ax, title, "% of the weight's parameters")
    fig.legend(frameon=False, fontsize=STYLE["small"], ncols=2, loc="outside lower center")
    fig.alt_text = title + ". " + " ".join(f"{n}: weight {f:,}, adapter {a:,} ({a / f:.2%})." for n, f, a in rows)
    return fig


def memory_against_limit(by_category: dict[str, float], limit: float, title: str, reserve: float = 0.0) -> Figure:
    """A step's memory as one stacked bar, what a GPU has as a line, and what is not the step's before the line.

    Args:
        by_category: GB, with the ledger's categories. limit: GB.
        title: the verdict.
        reserve: GB of the limit.
    """
    fig, (ax,) = figure(height=3.3)
    left = 0.0
    parts = {name: size for name, size in by_category.items() if size > 0}
    for name, size in parts.items():
        words, colour = f"{name} {size:,.1f}", colour_of(name)
        ax.barh([0], [size], left=left, height=0.5, color=colour, edgecolor=INK, linewidth=0.6, label=words)
        left += size
    if reserve:
        hatched = {"fill": False, "hatch": "////", "edgecolor": INK, "linewidth": 0, "zorder": 3}
        ax.barh([0], [reserve], left=limit - reserve, height=0.7, label=f"in reserve {reserve:,.1f}", **hatched)
    ax.axvline(limit, color=INK, linewidth=2, linestyle="--")
    ax.set_xlim(0, 1.12 * max(left, limit))
    ax.set_ylim(-0.4, 0.6)
    ax.text(limit, 0.58, f" {limit:g} GB ", ha="right" if limit > left else "left", va="top", fontsize=STYLE["small"])
    ax.set_yticks([])
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color=STYLE["grid"], linewidth=0.8)
    label(ax, title, "GB at the peak of a step")
    fig.legend(frameon=False, fontsize=STYLE["small"], ncols=2, loc="outside lower center")
    fig.alt_text = (
        f"{title}. Memory at the peak of a step: {left:,.1f} GB ("
        + ", ".join(f"{name} {size:,.1f}" for name, size in parts.items())
        + f"), against {limit:g} GB of a GPU"
        + (f", {reserve:g} GB of it in reserve." if reserve else ".")
    )
    return fig
