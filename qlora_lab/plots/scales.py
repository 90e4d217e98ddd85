"""Figures of notebook 02: what a scale does to the error, what it costs, and how fast a tensor can be decoded."""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.figure import Figure

from qlora_lab.plots.style import BLUE, GREY, INK, ORANGE, SKY, STYLE, figure, label

SMALL = STYLE["size"] - 2


def error_against_scale(panels: Sequence[tuple[str, Sequence[tuple[float, float, float]]]], title: str) -> Figure:
    """Mean square error against the scale, and the two parts it is made of: rounding and clipping.

    Args:
        panels: (name, [(scale relative to absmax, rounding part, clipping part)]), one panel each.
    """
    fig, axes = figure(width=8.2, height=3.6, columns=len(panels))
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
        ax.plot(factors[one], total[one], "s", color="white", markeredgecolor=INK, markersize=8, label="absmax")
        ax.set_ylim(0, top)
        label(ax, name, "scale / absmax", "mean square error" if ax is axes[0] else "")
        words.append(
            f"{name}: least at {factors[best]:.2f} of absmax, {total[best] / total[one]:.0%} of the error at absmax. "
            f"Rounding is {curve[0][1] / total[one]:.0%} of that at {factors[0]:.2f} and "
            f"{curve[-1][1] / total[one]:.0%} at {factors[-1]:.2f}, clipping {curve[0][2] / total[one]:.0%} and "
            f"{curve[-1][2] / total[one]:.0%}."
        )
    handles, names = axes[0].get_legend_handles_labels()
    fig.legend(handles, names, frameon=False, fontsize=SMALL, ncols=5, loc="outside lower center")
    fig.suptitle(title, fontsize=STYLE["size"] + 1, x=0.01, ha="left")
    fig.alt_text = f"{title}. Mean square error against the scale. " + " ".join(words)
    return fig


def bits_and_error(curves: Sequence[tuple[str, Sequence[tuple[int, float, float]]]], title: str) -> Figure:
    """Root mean square error against bits per weight, one curve each way of storing the scales.

    Args:
        curves: (name, [(block size, bits per weight, error)]).
    """
    fig, (ax,) = figure(height=4.0)
    styles = ((ORANGE, "s", "--", (6, 5), "left"), (BLUE, "o", "-", (-7, -13), "right"))
    for (name, points), (colour, marker, line, offset, side) in zip(curves, styles, strict=False):
        ax.plot([p[1] for p in points], [p[2] for p in points], line, color=colour, marker=marker, label=name)
        for size, bits, error in points:
            ax.annotate(
                f"{size}", (bits, error), xytext=offset, textcoords="offset points", ha=side, fontsize=SMALL, color=INK
            )
    ax.margins(x=0.06, y=0.1)
    ax.grid(axis="x", color=STYLE["grid"], linewidth=0.8)
    label(ax, title, "bits per weight, scales included (numbers: weights in a block)", "root mean square error")
    ax.legend(frameon=False, fontsize=STYLE["size"] - 1, loc="upper right")
    fig.alt_text = f"{title}. " + " ".join(
        f"{name}: "
        + ", ".join(f"block {size} takes {bits:.3f} bits and errs by {error:.4f}" for size, bits, error in points)
        + "."
        for name, points in curves
    )
    return fig


def scale_map(levels: Sequence[float], deviations: Sequence[float], title: str) -> Figure:
    """Where the scales of a tensor lie on the signed dynamic map, and how far its levels are apart.

    Args:
        levels: sorted, from -1 to 1. deviations: scales minus their mean, divided by the largest magnitude.
    """
    fig, (ax, right) = figure(width=8.2, height=3.5, columns=2)
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
        f"and 0.5. Below, {len(levels)} levels from {min(levels):.4f} to {max(levels):.4f}, dense around zero. Right: "
        f"the distance from a positive level to the next grows from {min(gaps):.1e} to {max(gaps):.3f}; 256 equal "
        f"steps would all be {2 / 255:.4f}."
    )
    return fig


def decoded_scales(
    scales: Sequence[float], decoded: Sequence[float], weights: Sequence[float], after: Sequence[float], title: str
) -> Figure:
    """Small scales and what they decode to, on the left; on the right, weights of a block whose scale turned negative.

    Args:
        weights: of that block, and `after`: what they decode to.
    """
    fig, (ax, right) = figure(width=8.2, height=3.6, columns=2)
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
    label(right, "One of the negative ones", f"{len(weights)} weights", "value")
    right.set_xticks([])
    right.margins(y=0.2)
    right.legend(frameon=False, fontsize=SMALL, ncols=2, loc="upper center")
    flipped = sum(w * a < 0 for w, a in zip(weights, after, strict=True))
    fig.alt_text = (
        f"{title}: {len(scales)} scales between {min(scales):.3f} and {max(scales):.3f}, of which "
        f"{sum(d < 0 for d in decoded)} decode to negative numbers, the lowest to {min(decoded):.3f}. Right: "
        f"{len(weights)} weights of such a block and what they decode to; {flipped} have the opposite sign."
    )
    return fig


def throughput(rows: Sequence[tuple[str, float]], copy: float, title: str) -> Figure:
    """Bars of GB per second on a logarithmic axis, and a copy of as many bytes as a line.

    Args:
        rows: (name, GB per second). copy: GB per second.
    """
    fig, (ax,) = figure(width=8.2, height=1.6 + 0.42 * len(rows))
    y = list(range(len(rows)))
    ax.barh(y, [rate for _, rate in rows], height=0.62, color=SKY, edgecolor=INK, linewidth=0.6)
    ax.axvline(copy, color=INK, linewidth=2, linestyle="--")
    ax.set_xscale("log")
    ax.minorticks_off()
    least = min(rate for _, rate in rows)
    ax.set_xlim(least / 2, copy * 6)
    ax.set_ylim(len(rows) - 0.4, -1.1)
    ax.text(copy * 0.92, -0.72, f"a copy: {copy:.3g} GB/s", ha="right", va="center", fontsize=SMALL)
    for at, (_, rate) in zip(y, rows, strict=True):
        inside = rate > 3 * least
        ax.text(
            rate * (0.93 if inside else 1.08),
            at,
            f"{rate:.3g}",
            ha="right" if inside else "left",
            va="center",
            fontsize=SMALL,
        )
        ax.text(copy * 1.2, at, f"{100 * rate / copy:.2g} % of a copy", va="center", fontsize=SMALL)
    ax.set_yticks(y, [name for name, _ in rows], fontsize=STYLE["size"] - 1)
    ax.grid(axis="y", visible=False)
    label(ax, title, "GB read and written per second (logarithmic)")
    fig.alt_text = (
        f"{title}, in GB read and written per second: "
        + ", ".join(f"{name} {rate:.3g}" for name, rate in rows)
        + f"; a copy that moves as many bytes reaches {copy:.3g}."
    )
    return fig
