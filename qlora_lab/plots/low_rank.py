"""Figures of low-rank updates: the layer drawn to scale, how low the rank is, and what a rank costs and changes."""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qlora_lab.plots.memory_categories import CATEGORY_COLOURS
from qlora_lab.plots.style import BLUE, GREEN, GREY, INK, ORANGE, PINK, STYLE, figure, label

LINES = tuple(zip((BLUE, ORANGE, GREEN, PINK, INK), "osD^v", ("-", "-", "-", "--", "-."), strict=True))


def adapted_layer(n_in: int, n_out: int, rank: int, alpha: float) -> Figure:
    """A frozen weight with its adapter beside it, every matrix in its true shape and all at one scale.

    A matrix is as wide as its input and as tall as its output: (out, in). Data flow from the bottom to the top.
    """
    unit = max(n_in, n_out)
    gap, low = 0.16 * unit, 0.34 * unit
    top = low + max(n_out, rank + gap + n_out)
    left, right = 0.5 * n_in, 0.5 * n_in + max(n_in, 0.55 * unit) + 0.62 * unit  # the middles of the two columns
    fig, (ax,) = figure(width=7.6, height=7.6 * (top + 0.85 * unit) / (right + 1.0 * unit))
    ax.set_aspect("equal")
    ax.axis("off")
    boxes = {
        "W": (left - n_in / 2, top - n_out, n_in, n_out),
        "A": (right - n_in / 2, low, n_in, rank),
        "B": (right - rank / 2, top - n_out, rank, n_out),
    }
    for name, (x, y, width, height) in boxes.items():
        frozen = name == "W"
        colour = CATEGORY_COLOURS["base weights" if frozen else "adapters"]
        edge = {"edgecolor": INK, "hatch": "//", "linewidth": 1} if frozen else {"edgecolor": "none"}
        ax.add_patch(Rectangle((x, y), width, height, facecolor=colour, **edge))
    middle = (left + right) / 2
    ax.add_patch(Rectangle((middle - n_in / 2, 0), n_in, 0.025 * unit, facecolor=INK))  # x
    total = top + 1.15 * gap
    ax.add_patch(Rectangle((middle - n_out / 2, total + 0.9 * gap), n_out, 0.025 * unit, facecolor=INK))  # y

    def arrow(*points):
        for start, end in pairwise(points[:-1]):
            ax.plot(*zip(start, end, strict=True), color=INK, linewidth=1.2)
        style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", points[-1], points[-2], arrowprops=style)

    fork = 0.13 * unit
    arrow((middle, 0.025 * unit), (middle, fork), (left, fork), (left, top - n_out))
    arrow((middle, fork), (right, fork), (right, low))
    arrow((right, low + rank), (right, top - n_out))
    ring = 0.045 * unit
    arrow((left, top), (left, total), (middle - ring, total))
    arrow((right, top), (right, total), (middle + ring, total))
    arrow((middle, total + ring), (middle, total + 0.9 * gap))
    words = {"fontsize": STYLE["size"], "color": INK}
    ax.text(middle, total, "+", ha="center", va="center", fontsize=STYLE["size"] + 4, color=INK)
    ax.plot([middle], [total], "o", markersize=17, markerfacecolor="none", markeredgecolor=INK)
    ax.text(middle, -0.03 * unit, f"x: {n_in:,} numbers", ha="center", va="top", **words)
    ax.text(middle, total + 0.9 * gap + 0.05 * unit, f"y: {n_out:,} numbers", ha="center", va="bottom", **words)
    ax.text(right + 0.02 * unit, total + 0.02 * unit, f"× α/r = {alpha:g}/{rank} = {alpha / rank:g}", **words)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 3}
    ax.text(
        left, top - n_out / 2, f"W₀  frozen\n{n_out:,} × {n_in:,}\n{n_out * n_in:,}", ha="center", va="center",
        bbox=white, **words,
    )  # fmt: skip
    beside = right + max(rank / 2, 0.01 * unit) + 0.04 * unit
    ax.text(
        beside, top - n_out / 2, f"B  trained, starts at 0\n{n_out:,} × {rank}\n{n_out * rank:,}", va="center", **words
    )
    ax.text(beside, low + rank + 0.35 * gap, f"h: {rank} numbers", va="bottom", **words)
    ax.text(
        right + 0.04 * unit, low - 0.02 * unit, f"A  trained, starts at random\n{rank} × {n_in:,} = {rank * n_in:,}",
        va="top", **words,
    )  # fmt: skip
    ax.set_xlim(
        min(0, middle - n_out / 2) - 0.05 * unit, max(right + n_in / 2, middle + n_out / 2, right + 0.95 * unit)
    )
    ax.set_ylim(-0.12 * unit, total + 0.9 * gap + 0.14 * unit)
    both = rank * (n_in + n_out)
    label(ax, f"LoRA beside a frozen weight, rank {rank}: {both:,} trained, {both / (n_in * n_out):.2%}")
    fig.alt_text = (
        f"LoRA beside a frozen weight, every matrix in its true shape and at one scale. An input x of {n_in:,} numbers "
        f"goes two ways. Left: the frozen weight, {n_out:,} by {n_in:,}, {n_out * n_in:,} numbers. Right: A, {rank} by "
        f"{n_in:,}, a thin strip, gives {rank} numbers; B, {n_out:,} by {rank}, starting at zero, makes {n_out:,} of "
        f"them, times alpha / r = {alpha / rank:g}. The two are added. A and B hold {both:,} numbers, "
        f"{both / (n_in * n_out):.2%} of the weight's."
    )
    return fig


def singular_energy(curves: Sequence[tuple[str, Sequence[float]]], title: str, at: int = 8) -> Figure:
    """How much of a matrix lies in its first r singular directions, for several matrices.

    Args:
        curves: (name, share of the energy (sum of squared singular values) in the first 1, 2, ... directions).
        at: the rank that is marked, and told in words to the nearest 2 %.
    """
    fig, (ax,) = figure(width=8.0, height=4.2)
    for (_, shares), (colour, marker, line) in zip(curves, LINES, strict=False):
        ranks = [r for r in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if r <= len(shares)]
        ax.plot(range(1, len(shares) + 1), [100 * s for s in shares], line, color=colour, linewidth=1.8)
        ax.plot(
            ranks, [100 * shares[r - 1] for r in ranks], marker, color=colour, markeredgecolor=INK, markersize=5.5,
            markeredgewidth=0.6,
        )  # fmt: skip
    heights = _spread([100 * shares[0] for _, shares in curves], 8.0, 4.0)
    for (name, shares), height, (colour, marker, _) in zip(curves, heights, LINES, strict=False):
        ax.plot([0.78, 0.97], [height, 100 * shares[0]], color=GREY, linewidth=0.7)
        ax.plot([0.72], [height], marker, color=colour, markeredgecolor=INK, markersize=5.5, markeredgewidth=0.6)
        ax.text(0.64, height, name, ha="right", va="center", fontsize=STYLE["size"] - 1)
    most = max(len(shares) for _, shares in curves)
    ax.set_xscale("log", base=2)
    ax.minorticks_off()
    ticks = [r for r in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if r <= most]
    ax.set_xticks(ticks, [str(r) for r in ticks])
    ax.set_xlim(0.022, most * 1.1)
    ax.set_ylim(0, 104)
    ax.axvline(at, color=INK, linewidth=0.9, linestyle=":")
    label(ax, title, f"first r singular directions (logarithmic; dotted: r = {at})", "% of the energy")
    fig.alt_text = f"{title}. Share of the energy in the first {at} singular directions, to the nearest 2 %: " + (
        "; ".join(f"{name} {_nearest(100 * shares[at - 1])} %" for name, shares in curves) + "."
    )
    return fig


def loss_of_rank(runs: Sequence[tuple[str, Sequence[tuple[int, float]], float]], base: float, title: str) -> Figure:
    """The loss when each weight's update is cut to its best rank-r approximation.

    Args:
        runs: (name, [(rank, loss)], loss with the whole update).
        base: loss without any update.
    """
    fig, (ax,) = figure(width=8.0, height=3.9)
    text = []
    most = max(rank for _, points, _ in runs for rank, _ in points)
    heights = _spread([whole for *_, whole in runs], 0.075 * base, 0.0)
    for (name, points, whole), height, (colour, marker, line) in zip(runs, heights, LINES, strict=False):
        ranks, losses = zip(*points, strict=True)
        ax.plot(ranks, losses, line, marker=marker, color=colour, markeredgecolor=INK, markersize=6.5)
        ax.plot([most, most * 2.2], [losses[-1], whole], ":", color=colour)
        ax.plot([most * 2.2], [whole], marker, color=colour, markeredgecolor=INK, markersize=6.5)
        ax.plot([most * 2.3, most * 2.75], [whole, height], color=GREY, linewidth=0.7)
        ax.text(most * 2.85, height, name, va="center", fontsize=STYLE["size"] - 1)
        text.append(
            f"{name}: " + ", ".join(f"{v:.1f} at rank {r}" for r, v in points) + f", {whole:.1f} with all of it"
        )
    ax.axhline(base, color=INK, linewidth=1, linestyle="--")
    ax.text(most * 2.85, base, "no update", va="bottom", fontsize=STYLE["size"] - 1)
    ax.set_xscale("log", base=2)
    ax.minorticks_off()
    ticks = sorted({rank for _, points, _ in runs for rank, _ in points})
    ax.set_xticks([*ticks, most * 2.2], [*map(str, ticks), "all"])
    ax.set_xlim(0.85, most * 12)
    ax.set_ylim(0, 1.12 * base)
    label(ax, title, "rank that each update is cut to (logarithmic)", "nats per answer token")
    fig.alt_text = f"{title}. Loss without any update: {base:.1f} nats. " + "; ".join(text) + "."
    return fig


def parameters_against_rank(n_in: int, n_out: int, ranks: Sequence[int]) -> Figure:
    """Parameters of an adapter against its rank, the weight's as a line, and where the two meet."""
    fig, (ax,) = figure(height=3.8)
    whole, meet = n_in * n_out, n_in * n_out / (n_in + n_out)
    ax.plot(ranks, [r * (n_in + n_out) for r in ranks], "o-", color=ORANGE, markeredgecolor=INK)
    ax.axhline(whole, color=INK, linewidth=1.5, linestyle="--")
    ax.text(ranks[0], whole * 1.12, f"the weight itself: {whole:,}", va="bottom", fontsize=STYLE["size"] - 1)
    ax.plot([meet], [whole], "D", color=BLUE, markeredgecolor=INK, markersize=8, zorder=3)
    ax.annotate(
        f"break-even at r = {meet:,.1f}", (meet, whole), (1.4 * ranks[-1], 0.12 * whole), ha="right",
        fontsize=STYLE["size"] - 1, arrowprops={"arrowstyle": "-", "color": GREY, "shrinkB": 5},
    )  # fmt: skip
    ax.text(ranks[2] * 1.15, ranks[2] * (n_in + n_out) * 0.9, f"adapter: r × {n_in + n_out:,}", va="top",
            fontsize=STYLE["size"] - 1)  # fmt: skip
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
    fig, axes = figure(width=8.6, height=3.9, columns=len(panels), sharey=True)
    text = []
    for ax, (title, lines) in zip(axes, panels, strict=True):
        for (name, points, slope), (colour, marker, line) in zip(lines, LINES, strict=False):
            ranks, sizes = zip(*points, strict=True)
            ax.plot(ranks, sizes, line, marker=marker, color=colour, markeredgecolor=INK, markersize=6)
            ax.text(
                ranks[-1] * 1.25, sizes[-1], f"{name}\nslope {_signed(slope)}", va="center", fontsize=STYLE["size"] - 1
            )
            text.append(f"{title}, {name}: slope {_signed(slope)}")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.minorticks_off()
        ax.set_xticks(ranks, [str(r) for r in ranks])
        ax.set_xlim(ranks[0] * 0.8, ranks[-1] * 8)
        label(ax, title, "rank r (logarithmic)")
    axes[0].set_ylabel(y, fontsize=STYLE["size"])
    fig.alt_text = f"{y} against rank, from {ranks[0]} to {ranks[-1]}, on logarithmic axes. " + "; ".join(text) + "."
    return fig


def _nearest(percent: float, step: int = 2) -> int:
    return step * round(percent / step)


def _signed(slope: float) -> str:
    """To one decimal; zero without a sign."""
    text = f"{slope:+.1f}"
    return "0" if text in ("+0.0", "-0.0") else text


def _spread(heights: Sequence[float], apart: float, low: float) -> list[float]:
    """The heights, moved up where needed so that no two are closer than `apart` and none is below `low`."""
    placed, last = [0.0] * len(heights), low - apart
    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        placed[i] = last = max(heights[i], last + apart)
    return placed
