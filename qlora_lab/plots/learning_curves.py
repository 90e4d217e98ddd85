"""Figures of a training run: its loss, and what was learned."""

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from qlora_lab.plots.style import BLUE, INK, ORANGE, SKY, STYLE, figure, label


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
    ax.legend(frameon=False, fontsize=STYLE["size"] - 1)
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
        ax.text(100 * high + 1.5, i, f"{100 * share:.0f} %", va="center", fontsize=STYLE["size"])
    ax.set_yticks(list(y), [textwrap.fill(name, 28) for name in names], fontsize=STYLE["size"])
    ax.invert_yaxis()
    ax.set_xlim(0, 118)
    ax.set_xticks([0, 25, 50, 75, 100])
    ax.grid(axis="x", color=STYLE["grid"], linewidth=0.8)
    ax.grid(axis="y", visible=False)
    label(ax, title, "percent of commands answered exactly (line: 95 % interval)")
    fig.alt_text = (
        title.replace("\n", " ")
        + ": "
        + "; ".join(f"{n} {100 * s:.0f} % (95 % interval {100 * lo:.0f} to {100 * hi:.0f})" for n, s, (lo, hi) in rows)
        + "."
    )
    return fig


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential running mean, corrected for its start."""
    result, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        result.append(total / norm)
    return result
