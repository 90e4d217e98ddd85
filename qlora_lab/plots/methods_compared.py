"""Figures of what ranks, data types and methods cost and give: results over seeds with their intervals."""

import math
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullLocator

from qlora_lab.plots.style import (
    BLUE,
    GREEN,
    GREY,
    HALO,
    INK,
    ORANGE,
    PAD,
    PINK,
    SKY,
    STYLE,
    figure,
    heading,
    held_apart,
    label,
    log_losses,
    tint,
    wrapped,
)

Result = tuple[float, float, float, Sequence[float]]  # mean, low, high, the seeds' values


def results(panels: Mapping[str, Mapping[str, Result]], title: str) -> Figure:
    """A row for each condition, a panel for each measure: seeds as dots, their mean and its interval.

    Args:
        panels: {measure: {condition: (mean, low, high, values)}}, the same conditions in each.
    """
    names = list(next(iter(panels.values())))
    fig, axes = figure(height=0.5 + len(panels) * (0.75 + 0.34 * len(names)), rows=len(panels), sharey=True)
    for ax, (measure, rows) in zip(axes, panels.items(), strict=True):
        for y, (mean, low, high, values) in enumerate(rows.values()):
            ax.plot([low, high], [y, y], color=INK, linewidth=1.6)
            ax.plot(
                values, [y] * len(values), "o", color=ORANGE, markeredgecolor=INK, markersize=5, markeredgewidth=0.6
            )
            ax.plot([mean], [y], "|", color=INK, markersize=13, markeredgewidth=2)
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", color=STYLE["grid"], linewidth=0.8)
        label(ax, "", measure)
    axes[0].set_yticks(range(len(names)), [textwrap.fill(name, 24) for name in names], fontsize=STYLE["small"])
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    heading(fig, title)
    fig.alt_text = f"{title}. " + " ".join(
        f"{measure.capitalize()}: " + "; ".join(f"{name} {_words(result)}" for name, result in rows.items()) + "."
        for measure, rows in panels.items()
    )
    return fig


VERDICTS = {"better": GREEN, "worse": ORANGE}  # others have no colour


def method_table(
    columns: Sequence[str], rows: Mapping[str, Sequence[tuple[str, str, str]]], title: str, note: str = ""
) -> Figure:
    """Methods by measures, to be read at a glance: a number in each cell, and a colour for better or worse.

    Args:
        columns: words above each measure, four at most.
        rows: {method: [(number, its interval or other small words, verdict) for each column]}. A verdict is "better",
            "worse", or other words, which have no colour. Where a row's name holds a minus sign (a row of differences)
            it is written out.
        note: a line below.
    """
    first, width = 1.0, 5.6 - 2 * PAD
    each = (width - first) / len(columns)
    columns_in_lines = [wrapped(column, 72 * each - 6, STYLE["small"]) for column in columns]
    note_in_lines = wrapped(note, 72 * width - 6, STYLE["small"]) if note else ""
    header = 0.12 + 0.18 * max(text.count("\n") + 1 for text in columns_in_lines)
    heights = [1.02 if _is_difference(name) else 0.58 for name in rows]
    below = 0.1 + 0.18 * (note_in_lines.count("\n") + 1) if note else 0.0
    tall = header + sum(heights) + below
    fig, (ax,) = figure(height=tall + 2 * PAD + 0.3 + 0.23 * wrapped(title, 72 * width).count("\n"))
    ax.set_axis_off()
    ax.set_xlim(0, width)
    ax.set_ylim(tall, 0)

    def write(x: float, y: float, text: str, size: float = STYLE["small"], weight="normal", **where) -> None:
        where = {"ha": "center", "va": "center", "linespacing": 1.15} | where
        ax.text(x, y, text, fontsize=size, color=INK, fontweight=weight, **where).set_in_layout(False)

    for place, text in enumerate(columns_in_lines):
        write(first + (place + 0.5) * each, header - 0.07, text, va="bottom")
    y = header
    for height, (name, cells) in zip(heights, rows.items(), strict=True):
        ax.plot([0, width], [y, y], color=GREY, linewidth=0.8)
        write(0.04, y + height / 2, wrapped(name, 72 * first - 6), STYLE["size"], "bold", ha="left")
        for place, (number, small, verdict) in enumerate(cells):
            left, middle = first + place * each, first + (place + 0.5) * each
            if verdict in VERDICTS:
                fill = {"facecolor": tint(VERDICTS[verdict], 0.35), "edgecolor": VERDICTS[verdict], "linewidth": 1}
                ax.add_patch(Rectangle((left + 0.03, y + 0.03), each - 0.06, height - 0.06, **fill))
            rest = [wrapped(small, 72 * each - 8, STYLE["small"])] if small else []
            rest += [wrapped(verdict, 72 * each - 8, STYLE["small"])] if verdict and _is_difference(name) else []
            write(middle, y + (0.18 if rest else height / 2), number, STYLE["size"], "bold")
            write(middle, y + 0.3, "\n".join(rest), va="top")
        y += height
    write(0.04, y + 0.08, note_in_lines, va="top", ha="left")
    heading(fig, title)
    told = "; ".join(
        f"{name}: "
        + ", ".join(
            " ".join(filter(None, (column, number, small and f"({small})", verdict)))
            for column, (number, small, verdict) in zip(columns, cells, strict=True)
        )
        for name, cells in rows.items()
    )
    fig.alt_text = f"{title}. {told}." + (f" {note.replace(chr(10), ' ')}" if note else "")
    return fig


def _is_difference(name: str) -> bool:
    return "−" in name


def losses_by_rate(curves: Mapping[str, Mapping[float, float]], chosen: Mapping[str, float], title: str) -> Figure:
    """The loss after training against the learning rate, a curve for each way to train; what was chosen is ringed.

    Args:
        curves: {way: {rate: loss}}, six at most; infinite losses (training broke down) are left out.
        chosen: {way: rate}; ways without one may be missing.
    """
    looks = zip((BLUE, GREEN, ORANGE, PINK, INK, SKY), "osD^vP", strict=True)
    columns = 2 if max(map(len, curves)) < 20 else 1  # of the legend
    fig, (ax,) = figure(height=3.5 + 0.2 * math.ceil(len(curves) / columns))
    told = []
    for (name, losses), (colour, marker) in zip(curves.items(), looks, strict=False):
        points = [(rate, loss) for rate, loss in sorted(losses.items()) if math.isfinite(loss)]
        ax.plot(*zip(*points, strict=True), color=colour, marker=marker, linewidth=1.8, markersize=6, label=name)
        words = f"{name}: " + ", ".join(f"{loss:.3f} at {rate:g}" for rate, loss in points)
        if name in chosen:
            at = chosen[name], losses[chosen[name]]
            ax.plot(*at, "o", color="none", markeredgecolor=INK, markersize=14, markeredgewidth=1.6)
            words += f", of which {at[0]:g} is chosen"
        told.append(words)
    ax.set_xscale("log")
    rates = sorted({rate for losses in curves.values() for rate in losses})
    ticks = [10.0**power for power in range(-6, 1) if rates[0] / 2 < 10.0**power < 2 * rates[-1]]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xlim(rates[0] / 1.5, rates[-1] * 1.5)
    log_losses(ax)  # a rate that is far too high would press all others flat
    label(ax, title, "learning rate", "validation loss, nats (log)")
    fig.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=STYLE["small"])
    fig.alt_text = f"{title}, validation loss in nats (logarithmic) by learning rate. {'; '.join(told)}."
    return fig


def shares_by_row(
    rows: Mapping[str, Mapping[str, tuple[float, tuple[float, float]]]], title: str, measure: str
) -> Figure:
    """Shares with their intervals, a row for each thing that was done, a look for each thing that it was done to.

    Args:
        rows: {row: {name: (share 0..1, (low, high))}}, from top to bottom; a name may be missing in a row. Five names
            at most.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    looks = dict(zip(names, (BLUE, ORANGE, GREEN, PINK, INK), strict=False))
    markers = dict(zip(names, "oDs^v", strict=False))
    fig, (ax,) = figure(height=1.2 + 0.28 * len(names) + sum(0.22 + 0.17 * len(row) for row in rows.values()))
    top, ticks, between = 0.0, [], []
    for row in rows.values():
        for place, name in enumerate(row):
            share, (low, high) = row[name]
            y = top + 0.17 * place
            ax.plot([100 * low, 100 * high], [y, y], color=looks[name], linewidth=1.6)
            ax.plot(100 * share, y, markers[name], color=looks[name], markeredgecolor=INK, markersize=7)
        ticks.append(top + 0.17 * (len(row) - 1) / 2)
        top += 0.17 * len(row) + 0.22
        between.append(top - 0.195)
    ax.set_yticks(ticks, [textwrap.fill(name, 26) for name in rows], fontsize=STYLE["small"])
    ax.set_ylim(top - 0.2, -0.2)
    ax.set_yticks(between[:-1], minor=True)
    ax.tick_params(axis="y", which="minor", length=0)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="y", which="minor", color=STYLE["grid"], linewidth=0.8)
    ax.grid(axis="x", color=STYLE["grid"], linewidth=0.8)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f} %"))
    label(ax, title, textwrap.fill(measure, 38))
    handles = [
        Line2D([], [], color=looks[name], marker=markers[name], markeredgecolor=INK, linewidth=1.6, label=name)
        for name in names
    ]
    fig.legend(handles=handles, loc="outside lower left", ncols=1, frameon=False, fontsize=STYLE["small"])
    fig.alt_text = f"{title}; {measure}. " + " ".join(
        f"{row}: "
        + "; ".join(
            f"{name} {100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
            for name, (share, (low, high)) in found.items()
        )
        + "."
        for row, found in rows.items()
    )
    return fig


def against_rank(points: Mapping[int, Result], megabytes: Mapping[int, float], title: str, measure: str) -> Figure:
    """A result against the rank, with intervals, and the memory that training the adapters takes.

    Args:
        points: {rank: (mean, low, high, values)}.
        megabytes: {rank: MB}.
    """
    fig, (left, right) = figure(height=5.4, rows=2)
    ranks = sorted(points)
    means, lows, highs = zip(*(points[rank][:3] for rank in ranks), strict=True)
    left.fill_between(ranks, lows, highs, color=tint(BLUE, 0.3), linewidth=0)
    left.plot(ranks, means, "-", color=BLUE, linewidth=1.8)
    for rank in ranks:
        values = points[rank][3]
        left.plot(
            [rank] * len(values), values, "o", color=ORANGE, markeredgecolor=INK, markersize=5, markeredgewidth=0.6
        )
        left.plot([rank], points[rank][0], "_", color=INK, markersize=13, markeredgewidth=2)
    label(left, title, "rank", measure)
    right.plot(
        sorted(megabytes), [megabytes[rank] for rank in sorted(megabytes)], "s-", color=GREEN, markeredgecolor=INK
    )
    for rank in sorted(megabytes):
        right.text(rank, 1.12 * megabytes[rank], f"{megabytes[rank]:,.0f}", fontsize=STYLE["small"], ha="right")
    right.set_yscale("log")
    right.set_ylim(min(megabytes.values()) / 1.5, max(megabytes.values()) * 1.6)
    right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    right.yaxis.set_minor_locator(NullLocator())
    label(right, "adapters, their gradients and moments", "rank", "MB")
    for ax, ticks in ((left, ranks), (right, sorted(megabytes))):
        ax.set_xscale("log", base=2)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(ticks, [str(rank) for rank in ticks])
    fig.alt_text = (
        f"{title}, {measure} against the rank: "
        + "; ".join(f"rank {rank} {_words(points[rank])}" for rank in ranks)
        + ". Memory of adapters, gradients and moments: "
        + "; ".join(f"rank {rank} {megabytes[rank]:,.1f} MB" for rank in sorted(megabytes))
        + "."
    )
    return fig


def decoding_share(rows: Sequence[tuple[int, float]], fitted: Sequence[tuple[float, float]], title: str) -> Figure:
    """Share of a step that decoding the weights takes, against the tokens of a step.

    Args:
        rows: (tokens, share 0..1) as measured.
        fitted: the same by a formula, as a curve.
    """
    fig, (ax,) = figure(height=3.9)
    ax.plot(*zip(*((x, 100 * y) for x, y in fitted), strict=True), "--", color=BLUE, linewidth=1.8)
    for tokens, share in rows:
        ax.plot([tokens], [100 * share], "o", color=ORANGE, markeredgecolor=INK, markersize=7)
        words = {"fontsize": STYLE["small"], "va": "bottom", "path_effects": HALO}
        ax.text(tokens * 1.08, 100 * share, f"{100 * share:.0f} %", **words)
    ax.set_xscale("log", base=2)
    ax.set_xticks([tokens for tokens, _ in rows], [f"{tokens:,}" for tokens, _ in rows])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(rows[0][0] / 1.4, rows[-1][0] * 1.9)
    ax.set_ylim(0, 1.18 * 100 * max(share for _, share in rows))
    label(ax, title, "tokens in a step", "percent of the step's time")
    measured = "; ".join(f"{tokens:,} tokens {100 * share:.0f} %" for tokens, share in rows)
    fig.alt_text = f"{title}. Measured: {measured}. The dashed curve is decoding over (fixed + per token) seconds."
    return fig


def quality_and_memory(
    points: Mapping[str, tuple[float, Result]], chosen: str | None, title: str, measure: str, at: float | None = None
) -> Figure:
    """Every condition as a dot, megabytes across and quality up, with one of them marked.

    Args:
        points: {condition: (MB, (mean, low, high, values))}.
        chosen: the one to mark; None for one that has no quality, whose MB are `at`: a line.
    """
    fig, (ax,) = figure(height=3.8)
    for name, (size, (mean, low, high, _)) in points.items():
        mine = name == chosen
        colour = ORANGE if mine else GREY
        style = {"color": colour, "markeredgecolor": INK, "markersize": 9 if mine else 6, "zorder": 4 if mine else 3}
        ax.plot([size, size], [low, high], color=INK if mine else GREY, linewidth=2 if mine else 1)
        ax.plot([size], [mean], "D" if mine else "o", **style)
    low = min(result[1] for _, result in points.values())
    apart = 0.08 * (max(result[2] for _, result in points.values()) - low)
    for group in _beside_each_other(points):
        heights = held_apart([points[name][1][0] for name in group], apart, low)
        for name, height in zip(group, heights, strict=True):
            size, (mean, *_) = points[name]
            words = {"fontsize": STYLE["small"], "color": INK, "va": "center", "path_effects": HALO}
            weight = "bold" if name == chosen else "normal"
            ax.plot([size * 1.02, size * 1.08], [mean, height], color=GREY, linewidth=0.7)
            ax.text(size * 1.1, height, wrapped(name, 100, STYLE["small"]), fontweight=weight, **words)
    if chosen is None:
        ax.axvline(at, color=ORANGE, linewidth=2, linestyle="--")
    sizes = [size for size, _ in points.values()] + ([] if at is None else [at])
    ticks = [tick for tick in (100, 200, 300, 500, 1000, 2000, 3000, 5000) if min(sizes) / 2 < tick < 2 * max(sizes)]
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.set_xlim(min(sizes) / 1.2, max(sizes) * 2.6)
    label(ax, title, "MB: weights, adapters, gradients and moments (logarithmic)", measure)
    where = f"marked: {chosen}" if chosen else f"a line at {at:,.0f} MB"
    fig.alt_text = f"{title}. {measure} against memory for {len(points)} conditions; {where}."
    return fig


def _beside_each_other(points: Mapping[str, tuple[float, Result]]) -> list[list[str]]:
    """The names of points in groups whose labels would lie on each other, from left to right."""
    groups: list[list[str]] = []
    for name in sorted(points, key=lambda name: points[name][0]):
        if groups and points[name][0] < 2.2 * points[groups[-1][0]][0]:  # a name of a dozen letters reaches as far
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _words(result: Result) -> str:
    mean, low, high, values = result
    return f"{mean:.3f} ({low:.3f} to {high:.3f}, {len(values)} seeds)"
