"""Figures of notebook 02: what a scale does to the error, what it costs, and how fast a tensor can be decoded."""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qlora_lab.plots.style import BLUE, GREEN, GREY, INK, ORANGE, SKY, STYLE, figure, heading, label, tint, wrapped

SMALL = STYLE["small"]


def error_against_scale(panels: Sequence[tuple[str, Sequence[tuple[float, float, float]]]], title: str) -> Figure:
    """Mean square error against the scale, and the two parts it is made of: rounding and clipping.

    Args:
        panels: (name, [(scale relative to absmax, rounding part, clipping part)]), one panel each.
    """
    fig, axes = figure(height=3.6, columns=len(panels))
    words = []
    for ax, (name, curve) in zip(axes, panels, strict=True):
        factors = [factor for factor, _, _ in curve]
        total = [rounding + clipping for _, rounding, clipping in curve]
        for values, colour, line, words_ in (
            (total, INK, "-", "both"),
            ([rounding for _, rounding, _ in curve], BLUE, "--", "rounding"),
            ([clipping for _, _, clipping in curve], ORANGE, ":", "clipping"),
        ):
            ax.plot(factors, values, color=colour, linestyle=line, linewidth=2.2, label=words_)
        best = min(range(len(total)), key=total.__getitem__)
        one = min(range(len(total)), key=lambda i: abs(factors[i] - 1))
        top = 1.9 * total[one]
        ax.plot(factors[best], total[best], "o", color=INK, markersize=8, label="best")
        ax.plot(
            factors[one],
            total[one],
            "s",
            color=INK,
            fillstyle="none",
            markeredgewidth=1.8,
            markersize=9,
            label="absmax",
        )
        ax.set_ylim(0, top)
        label(ax, name, "scale / absmax", "mean square error" if ax is axes[0] else "")
        words.append(
            f"{name}: least at {factors[best]:.2f} of absmax, {total[best] / total[one]:.0%} of the error at absmax. "
            f"Rounding is {curve[0][1] / total[one]:.0%} of that at {factors[0]:.2f} and "
            f"{curve[-1][1] / total[one]:.0%} at {factors[-1]:.2f}, clipping {curve[0][2] / total[one]:.0%} and "
            f"{curve[-1][2] / total[one]:.0%}."
        )
    handles, names = axes[0].get_legend_handles_labels()
    fig.legend(handles, names, frameon=False, fontsize=SMALL, ncols=3, loc="outside lower center")
    heading(fig, title)
    fig.alt_text = f"{title}. Mean square error against the scale. " + " ".join(words)
    return fig


def bits_and_error(
    curves: Sequence[tuple[str, Sequence[tuple[int, float, float]]]], title: str, mark: float | None = None
) -> Figure:
    """Root mean square error against bits per weight, one curve each way of storing the scales.

    Args:
        curves: (name, [(block size, bits per weight, error)]), the dearest way first.
        mark: bits per weight at which to compare.
    """
    fig, (ax,) = figure(height=4.0)
    looks = ((ORANGE, "s", "--"), (GREEN, "D", ":"), (BLUE, "o", "-"))
    for (name, points), (colour, marker, line) in zip(curves, looks, strict=False):
        ax.plot([p[1] for p in points], [p[2] for p in points], line, color=colour, marker=marker, label=name)
    for size in sorted({size for _, points in curves for size, _, _ in points}):
        points = [point for _, points in curves for point in points if point[0] == size]  # of about one height
        _, bits, error = min(points, key=lambda point: point[1])
        ax.plot([p[1] for p in points], [p[2] for p in points], color=GREY, linewidth=0.8, zorder=0)
        ax.annotate(
            f"{size}", (bits, error), (-8, -4), textcoords="offset points", ha="right", fontsize=SMALL, color=INK
        )
    if mark is not None:
        ax.axvline(mark, color=GREY, linewidth=1.4, linestyle="--", zorder=0)
    ax.margins(x=0.04, y=0.08)
    ax.set_xlim(left=min(p[1] for _, points in curves for p in points) - 0.09)
    ax.grid(axis="x", color=STYLE["grid"], linewidth=0.8)
    label(ax, title, "bits per weight (beside the points: weights in a block)", "root mean square error")
    ax.legend(frameon=False, fontsize=STYLE["small"], loc="upper right")
    fig.alt_text = f"{title}. " + " ".join(
        f"{name}: "
        + ", ".join(f"block {size} takes {bits:.3f} bits and errs by {error:.4f}" for size, bits, error in points)
        + "."
        for name, points in curves
    )
    return fig


def byte_map(rows: Sequence[tuple[str, int, int, Sequence[str], int, str]], result: str, title: str) -> Figure:
    """The bytes that one weight comes back from: of each stored tensor a few cells, the ones used marked.

    Args:
        rows: (name, bytes of all of it, nibbles a cell takes, what the cells hold, which of them is used, what that
            one stands for), from the codes to the last constant. Cells are as wide as the nibbles they take.
        result: the line below, which puts the marked ones together.
    """
    fig, (ax,) = figure(height=1.1 + 0.85 * len(rows))
    ax.axis("off")
    whole, told, marked = sum(nbytes for _, nbytes, *_ in rows), [], []
    for number, (name, nbytes, nibbles, cells, used, meaning) in enumerate(rows):
        y = -2.3 * number
        for place, text in enumerate(cells):
            x, chosen = place * nibbles, place == used
            face = {"facecolor": ORANGE, "alpha": 0.5} if chosen else {"facecolor": "none"}
            edge = {"edgecolor": INK, "linewidth": 1.4} if chosen else {"edgecolor": GREY, "linewidth": 0.7}
            ax.add_patch(Rectangle((x, y), nibbles, 1, zorder=2 + chosen, **face, **edge))
            ax.text(x + nibbles / 2, y + 0.47, text, ha="center", va="center", fontsize=SMALL, color=INK, zorder=4)
        end = len(cells) * nibbles
        if nibbles == 1:  # the borders of bytes, heavier than those between nibbles
            ax.vlines(range(0, end + 1, 2), y, y + 1, color=INK, linewidth=1.4, zorder=3)
        share = f", {100 * nbytes / whole:.0f} %" if nbytes >= 0.005 * whole else ""
        ax.text(0, y + 1.4, f"{name}: {nbytes:,} bytes{share}", va="center", fontsize=SMALL, color=INK, zorder=4)
        ax.text(16, y + 1.4, meaning, ha="right", va="center", fontsize=SMALL, color=INK, zorder=4)
        marked.append((y, end, used * nibbles, (used + 1) * nibbles))
        told.append(f"{name}, {nbytes:,} bytes in all: {', '.join(cells)}; the one used is {cells[used]}, {meaning}")
    for (upper, end, *_), (lower, _, left, right) in pairwise(marked):  # all cells above share the marked one below
        ax.fill([0, end, right, left], [upper, upper, lower + 1, lower + 1], color=tint(GREY, 0.42), linewidth=0)
    bottom = marked[-1][0] - 1.0
    ax.text(0, bottom, wrapped(result, 370, SMALL), va="top", fontsize=SMALL, color=INK)
    ax.set_xlim(-0.1, 16.1)
    ax.set_ylim(bottom - 1.4, 1.8)
    label(ax, title)
    fig.alt_text = f"{title}. " + ". ".join(told) + ". " + " ".join(result.split()) + "."
    return fig


def scale_map(levels: Sequence[float], deviations: Sequence[float], title: str) -> Figure:
    """Where the scales of a tensor lie on the signed dynamic map, and how far its levels are apart.

    Args:
        levels: sorted, from -1 to 1. deviations: scales minus their mean, divided by the largest magnitude.
    """
    fig, (ax, right) = figure(height=5.0, rows=2)
    counts, _, _ = ax.hist(deviations, bins=60, range=(-1, 1), color=SKY)
    ax.vlines(levels, 0, -0.09 * max(counts), color=INK, linewidth=0.5)
    ax.set_ylim(-0.11 * max(counts), None)
    ax.set_yticks([])
    label(ax, title, "(scale - mean) / largest (strokes: the 256 levels)", "scales")
    positive = [level for level in levels if level > 0]
    gaps = [high - low for low, high in pairwise(positive)]
    right.plot(positive[:-1], gaps, ".", color=BLUE, markersize=4)
    right.plot(positive, [2 / 255] * len(positive), "--", color=GREY)
    right.text(positive[0], 2 / 255 * 1.3, "256 equal steps", fontsize=SMALL, color=INK)
    right.set_xscale("log")
    right.set_yscale("log")
    right.minorticks_off()
    label(right, "Distance to the next level", "positive level (logarithmic)", "")
    inside = sum(abs(d) < 0.5 for d in deviations) / len(deviations)
    fig.alt_text = (
        f"{title}: {len(deviations):,} scales minus their mean, divided by the largest; {inside:.0%} lie between -0.5 "
        f"and 0.5. Under them {len(levels)} levels from {min(levels):.4f} to {max(levels):.4f}, dense around zero. "
        f"Below: the distance from a positive level to the next grows from {min(gaps):.1e} to {max(gaps):.3f}; 256 "
        f"equal steps would all be {2 / 255:.4f}."
    )
    return fig


def decoded_scales(
    scales: Sequence[float], decoded: Sequence[float], weights: Sequence[float], after: Sequence[float], title: str
) -> Figure:
    """Small scales and what they decode to; below, weights of a block whose scale turned negative.

    Args:
        weights: of that block, and `after`: what they decode to.
    """
    fig, (ax, right) = figure(height=5.2, rows=2)
    ax.axhline(0, color=INK, linewidth=0.8)
    low, high = min(scales), max(scales)
    line = [low * (high / low) ** (i / 60) for i in range(61)]
    ax.plot(line, line, color=GREY, linewidth=1.2)
    ax.text(line[35], 1.6 * line[35], "exact", ha="right", fontsize=SMALL, color=INK)
    for below, marker, colour, words in ((False, "o", BLUE, "positive"), (True, "X", ORANGE, "negative")):
        points = [(s, d) for s, d in zip(scales, decoded, strict=True) if (d < 0) == below]
        if points:
            style = {"markeredgecolor": INK, "markeredgewidth": 0.5, "markersize": 7}
            ax.plot(*zip(*points, strict=True), marker, color=colour, label=f"{words} ({len(points)})", **style)
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=0.01)
    ax.set_yticks([-0.1, -0.01, 0, 0.01, 0.1, 1, 10], ["-0.1", "-0.01", "0", "0.01", "0.1", "1", "10"])
    ax.minorticks_off()
    ax.set_ylim(-0.1, 20)
    ax.legend(frameon=False, fontsize=SMALL, loc="upper left")
    label(ax, title, "scale (logarithmic)", "decoded scale")
    places = range(len(weights))
    right.axhline(0, color=INK, linewidth=0.8)
    right.vlines(places, weights, after, color=GREY, linewidth=1)
    right.plot(places, weights, "o", color=INK, markersize=4, label="weight")
    right.plot(
        places, after, "X", color=ORANGE, markersize=6, markeredgecolor=INK, markeredgewidth=0.4, label="decoded"
    )
    label(right, "A block with a negative scale", f"{len(weights)} weights", "value")
    right.set_xticks([])
    right.margins(y=0.2)
    right.legend(frameon=False, fontsize=SMALL, ncols=2, loc="upper center")
    flipped = sum(w * a < 0 for w, a in zip(weights, after, strict=True))
    fig.alt_text = (
        f"{title}: {len(scales)} scales between {min(scales):.3f} and {max(scales):.3f}, of which "
        f"{sum(d < 0 for d in decoded)} decode to negative numbers, the lowest to {min(decoded):.3f}. Below: "
        f"{len(weights)} weights of such a block and what they decode to; {flipped} have the opposite sign."
    )
    return fig


def throughput(rows: Sequence[tuple[str, float]], copy: float, title: str) -> Figure:
    """Dots at GB per second on a logarithmic axis, and a copy of as many bytes as a line.

    Args:
        rows: (name, GB per second). copy: GB per second.
    """
    fig, (ax,) = figure(height=1.6 + 0.42 * len(rows))
    y, rates = list(range(len(rows))), [rate for _, rate in rows]
    ax.axvline(copy, color=INK, linewidth=2, linestyle="--")
    ax.plot(rates, y, "o", color=BLUE, markersize=9)
    ax.set_xscale("log")
    ax.minorticks_off()
    ax.set_xlim(min(rates) / 2, copy * 1.1)
    ax.set_ylim(len(rows) - 0.4, -1.1)
    ax.text(copy * 0.85, -0.72, f"a copy: {copy:.3g} GB/s", ha="right", va="center", fontsize=SMALL, color=INK)
    for at, rate in zip(y, rates, strict=True):
        words = f"{rate:.2g} ({100 * rate / copy:.2g} %)"
        ax.text(copy * 1.35, at, words, va="center", fontsize=SMALL, color=INK)
    ax.set_yticks(y, [name for name, _ in rows], fontsize=STYLE["small"])
    ax.grid(axis="x", color=STYLE["grid"], linewidth=0.8)
    label(ax, title, "GB read and written per second, logarithmic\n(in brackets: % of a copy)")
    fig.alt_text = (
        f"{title}, in GB read and written per second: "
        + ", ".join(f"{name} {rate:.3g}" for name, rate in rows)
        + f"; a copy that moves as many bytes reaches {copy:.3g}."
    )
    return fig
