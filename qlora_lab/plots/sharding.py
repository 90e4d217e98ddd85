"""Figures of several GPUs: what is on each, and what is whole at which moment of a step."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from qlora_lab.plots.style import GREY, HALO, INK, METHOD_LOOKS, STYLE, colour_of, figure, label, look


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
        ax.text(counts[-1] * 2.35, size * 1.04, name, fontsize=STYLE["small"], color=INK, va="bottom", ha="right")
    for k, (name, points) in enumerate(series):
        at, sizes = zip(*points, strict=True)
        ax.plot(at, sizes, **look(name, METHOD_LOOKS, k), markeredgecolor=INK, linewidth=1.8, markersize=7)
        for x, y in points:
            words = f"{name}: {y:,.0f}" if x == at[0] else f"{y:,.0f}"
            ax.text(x * 1.03, y * 1.09, words, fontsize=STYLE["small"], color=INK, va="bottom", path_effects=HALO)
    ax.set_xlim(counts[0] * 0.82, counts[-1] * 2.4)
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


def gathered_over_step(
    moments: Sequence[float], held: float, whole: float, marks: Sequence[tuple[int, str]], title: str
) -> Figure:
    """Parameters of blocks that a process has in memory, moment by moment of a step, between its part and all.

    Args:
        moments: MB at each moment.
        held, whole: MB of its own part, and of all blocks: lines.
        marks: (moment, name of the phase that begins there).
    """
    fig, (ax,) = figure(height=3.9)
    ax.fill_between(range(len(moments)), moments, held, step="post", color=colour_of("gathered"), linewidth=0)
    ax.fill_between(range(len(moments)), held, 0, step="post", color=colour_of("quantized base"), linewidth=0)
    ax.step(range(len(moments)), moments, where="post", color=INK, linewidth=0.8)
    end = len(moments) - 1
    for value, words in ((whole, f"all blocks: {whole:,.1f} MB"), (held, f"own part: {held:,.1f} MB")):
        ax.axhline(value, color=INK, linewidth=1.2, linestyle="--")
        ax.text(
            end,
            value - 0.02 * whole,
            words,
            ha="right",
            va="top",
            fontsize=STYLE["small"],
            color=INK,
            path_effects=HALO,
        )
    ax.set_xlim(0, end)
    ax.set_ylim(0, 1.12 * max(whole, *moments))
    ax.set_xticks([position for position, _ in marks], [name for _, name in marks], ha="left")
    for position, _ in marks:
        ax.axvline(position, color=INK, linewidth=0.8)
    label(ax, title, "moments of a step: before and after each block", "MB of blocks' parameters")
    fig.alt_text = (
        f"{title}. Blocks' parameters in a process's memory over a step, in MB: own part {held:,.1f}, all blocks "
        f"{whole:,.1f}; the most at one moment is {max(moments):,.1f}, the least {min(moments):,.1f}."
    )
    return fig
