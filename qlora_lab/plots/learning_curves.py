"""Figures of a training run: its loss, the test of its learning rate, what was learned, what merging keeps."""

import math
import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from qlora_lab.plots.style import BLUE, GREEN, HALO, INK, ORANGE, SKY, STYLE, figure, label, log_losses

WINDOW = 9  # steps whose mean is drawn


def loss_curve(
    losses: Sequence[float], total_steps: int | None = None, validations: Sequence[tuple[int, float]] = ()
) -> Figure:
    """Training loss against step: each step as a faint dot, and a line through their midst.

    Args:
        losses: nats per supervised token, one a step.
        total_steps: right end of the axis, for a curve that is still growing.
        validations: (step, loss) on examples that are not trained on, as a second curve; its lowest point is marked.
    """
    fig, (ax,) = figure()
    steps = range(1, len(losses) + 1)
    ax.plot(steps, losses, ".", color=SKY, markersize=4, label="each step")
    line = trend(losses)
    ax.plot(steps, line, color=BLUE, linewidth=2, label=f"geometric mean of {WINDOW} steps")
    log_losses(ax)
    ax.set_xlim(0, (total_steps or len(losses)) + 1)
    title = "Training and validation loss" if validations else "Training loss"
    label(ax, title, "optimizer step", "nats per answer token (log)")
    if validations:
        _add_validation(ax, validations)
    ax.legend(frameon=False, fontsize=STYLE["small"])
    if losses:
        fig.alt_text = (
            f"Training loss on a logarithmic axis over {len(losses)} steps: from {losses[0]:.2f} at the first step "
            f"to a mean of {line[-1]:.3f} at the last."
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
    ax.legend(frameon=False, fontsize=STYLE["small"], loc="upper left")
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
    colours = [ORANGE if name.startswith(("base", "without")) else BLUE for name in names]
    ax.barh(y, [100 * s for s in shares], color=colours, height=0.6)
    for i, (share, (low, high)) in enumerate(zip(shares, intervals, strict=True)):
        ax.plot([100 * low, 100 * high], [i, i], color=INK, linewidth=1.5, path_effects=HALO)
        ax.text(100 * high + 1.5, i, f"{100 * share:.0f} %", va="center", fontsize=STYLE["size"])
    ax.set_yticks(list(y), [textwrap.fill(name, 28) for name in names], fontsize=STYLE["size"])
    ax.invert_yaxis()
    ax.set_xlim(0, 118)
    ax.set_xticks([0, 25, 50, 75, 100])
    ax.grid(axis="x", color=STYLE["grid"], linewidth=0.8)
    ax.grid(axis="y", visible=False)
    label(ax, title, "percent of commands answered exactly\n(line: 95 % interval)")
    fig.alt_text = (
        title.replace("\n", " ")
        + ": "
        + "; ".join(f"{n} {100 * s:.0f} % (95 % interval {100 * lo:.0f} to {100 * hi:.0f})" for n, s, (lo, hi) in rows)
        + "."
    )
    return fig


def kept_by_merging(
    curve: Sequence[tuple[float, float]], layers: Sequence[tuple[float, float]] = (), title: str = "Merged into 4 bits"
) -> Figure:
    """How much of an update is left in a merged weight, against how large the update is.

    Args:
        curve: (size of the update relative to the weight, share kept 0..1), one direction at several sizes.
        layers: the same of each layer of a trained model, as dots.
    """
    fig, (ax,) = figure()
    sizes, shares = zip(*curve, strict=True)
    if layers:
        ax.plot(
            [100 * size for size, _ in layers],
            [100 * share for _, share in layers],
            ".",
            color=SKY,
            markersize=5,
            label=f"the {len(layers)} layers of this run",
        )
    ax.plot(
        [100 * size for size in sizes], [100 * share for share in shares], "o-", color=BLUE, label="one layer, scaled"
    )
    ax.axhline(100, color=GREEN, linewidth=1.8, label="in 16 bits")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    ax.set_ylim(0, 108)
    label(ax, title, "size of the update, percent of the weight's norm (log)", "percent of the update kept")
    ax.legend(frameon=False, fontsize=STYLE["small"], loc="upper left", bbox_to_anchor=(0, 0.93))
    fig.alt_text = f"{title}: of an update, " + "; ".join(
        f"{share:.0%} is kept at {size:.1%} of the weight" for size, share in curve
    )
    fig.alt_text += ". In 16 bits all of it is kept."
    return fig


def trend(values: Sequence[float]) -> list[float]:
    """Geometric means of `WINDOW` values, as many before as after each; at the end, of those that there are.

    A running mean of the past lies above a curve that falls, most of all on a logarithmic axis.
    """
    half, logs = WINDOW // 2, [math.log(max(value, 1e-12)) for value in values]
    near = [logs[max(0, i - half) : i + min(half, i) + 1] for i in range(len(logs))]
    return [math.exp(math.fsum(part) / len(part)) for part in near]


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential running mean, corrected for its start."""
    result, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        result.append(total / norm)
    return result
