"""Figures of a training run: its loss, the test of its learning rate, and what was learned."""

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from qlora_lab.plots.style import BLUE, INK, ORANGE, SKY, STYLE, figure, label


def loss_curve(
    losses: Sequence[float], total_steps: int | None = None, validations: Sequence[tuple[int, float]] = ()
) -> Figure:
    """Training loss against step: each step as a faint dot, and an exponential mean that shows the trend.

    Args:
        losses: nats per supervised token, one a step.
        total_steps: right end of the axis, for a curve that is still growing.
        validations: (step, loss) on examples that are not trained on, as a second curve; its lowest point is marked.
    """
    fig, (ax,) = figure()
    steps = range(1, len(losses) + 1)
    ax.plot(steps, losses, ".", color=SKY, markersize=4, label="each step")
    ax.plot(steps, smooth(losses), color=BLUE, linewidth=2, label="running mean")
    ax.set_yscale("log")
    ax.set_xlim(0, (total_steps or len(losses)) + 1)
    title = "Training and validation loss" if validations else "Training loss"
    label(ax, title, "optimizer step", "nats per answer token (log)")
    if validations:
        _add_validation(ax, validations)
    ax.legend(frameon=False, fontsize=STYLE["size"] - 1)
    if losses:
        last = smooth(losses)[-1]
        fig.alt_text = (
            f"Training loss on a logarithmic axis over {len(losses)} steps: from {losses[0]:.2f} at the first step "
            f"to a running mean of {last:.3f} at the last."
        )
        if validations:
            (first, best), end = (validations[0], min(validations, key=lambda point: point[1])), validations[-1]
            fig.alt_text += (
                f" Validation loss, dashed: from {first[1]:.2f} before the first step to its lowest, {best[1]:.3f}, "
                f"after step {best[0]}, and {end[1]:.3f} after step {end[0]}."
            )
    return fig


def _add_validation(ax, validations: Sequence[tuple[int, float]]) -> None:
    places, values = zip(*validations, strict=True)
    ax.plot(places, values, "o--", color=ORANGE, markersize=5, linewidth=1.6, label="validation")
    step, least = min(validations, key=lambda point: point[1])
    ring = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.5}
    lowest = f"its lowest, {least:.3f}: these weights are kept"
    ax.plot([step], [least], "o", linestyle="none", clip_on=False, zorder=5, label=lowest, **ring)


def rate_curve(rates: Sequence[float], losses: Sequence[float], chosen: float, usual: float | None = None) -> Figure:
    """Loss against learning rate, as a range test found it: where it falls, and where it breaks.

    Args:
        rates, losses: of each step; losses in nats per supervised token.
        chosen: the rate that follows from it.
        usual: the default for a base of this size, to compare.
    """
    fig, (ax,) = figure()
    means = smooth(losses, 0.8)
    ax.plot(rates, losses, ".", color=SKY, markersize=4, label="each step")
    ax.plot(rates, means, color=BLUE, linewidth=2, label="running mean")
    ax.axvline(chosen, color=ORANGE, linewidth=2, label=f"suggested: {chosen:.1e}")
    if usual is not None:
        ax.axvline(usual, color=INK, linewidth=1.2, linestyle=":", label=f"default for this size: {usual:.1e}")
    ax.set_xscale("log")
    low, high = min(means), means[0]
    ax.set_ylim(
        low - 0.15 * (high - low) - 0.01, high + 0.6 * (high - low) + 0.05
    )  # a loss that broke leaves the picture
    label(ax, "Learning rate range test", "learning rate (log), rising from step to step", "nats per answer token")
    ax.legend(frameon=False, fontsize=STYLE["size"] - 1, loc="upper left")
    fig.alt_text = (
        f"Loss against the learning rate, which rises from {rates[0]:.0e} to {rates[-1]:.0e} over {len(rates)} steps. "
        f"The loss begins at {losses[0]:.2f}, its running mean is lowest, {low:.2f}, at {rates[means.index(low)]:.1e}. "
        f"The suggested rate is {chosen:.1e}."
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
