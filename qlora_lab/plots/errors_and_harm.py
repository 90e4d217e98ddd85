"""Figures of what formats and methods since NF4 do: errors, and what comes of them."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qlora_lab.plots.style import (
    BLUE,
    GREEN,
    GREY,
    HALO,
    INK,
    ORANGE,
    PINK,
    STYLE,
    figure,
    heading,
    held_apart,
    label,
    wrapped,
)

SMALL = STYLE["small"]


def formats_by_error(rows: Mapping[str, tuple[float, float]], reference: str, title: str) -> Figure:
    """A dot for each format, least error on top; those of less error and no more bits than one of them stand out.

    Args:
        rows: {name: (bits per weight, relative error 0 to 1)}.
        reference: the row to compare with.
    """
    bits, error = rows[reference]
    names = sorted(rows, key=lambda name: rows[name][1])
    fig, (ax,) = figure(height=1.0 + 0.25 * len(names))
    ax.axvline(100 * error, color=BLUE, linewidth=1.4, linestyle="--", zorder=1)
    told = []
    for y, name in enumerate(names):
        cost, wrong = rows[name]
        better = wrong < error and cost <= bits + 0.01
        colour, marker = (BLUE, "o") if name == reference else (GREEN, "D") if better else (GREY, "s")
        ax.plot(100 * wrong, y, marker, color=colour, markeredgecolor=INK, markersize=7, zorder=3)
        told.append(f"{name} {100 * wrong:.2f} % at {cost:.2f} bits")
    ax.set_yticks(range(len(names)), [f"{name} · {rows[name][0]:.2f} bits" for name in names], fontsize=SMALL)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.margins(x=0.06)
    ax.grid(axis="x", color=STYLE["grid"], linewidth=0.8)
    handles = [
        _mark(colour, marker, words)
        for colour, marker, words in (
            (GREEN, "D", f"less error than {reference}, no more bits"),
            (BLUE, "o", reference),
            (GREY, "s", "no less error, or more bits"),
        )
    ]
    fig.legend(handles=handles, loc="outside lower left", ncols=1, frameon=False, fontsize=SMALL)
    label(ax, title, "error of the weights, %")
    fig.alt_text = f"{title}. From the least error to the largest: {'; '.join(told)}."
    return fig


GROUPS = ((BLUE, "o"), (ORANGE, "D"), (GREEN, "s"), (PINK, "^"))


def harm_by_error(
    panels: Mapping[str, Mapping[str, tuple[float, float]]],
    groups: Mapping[str, str],
    harm: str,
    title: str,
    named: Sequence[str] = (),
) -> Figure:
    """What an error adds to a loss, or to a distance, against the error: a panel for each kind of error, below another.

    Args:
        panels: {what the error is of: {row: (error 0 to 1, harm)}}.
        groups: {row: its kind}, four kinds at most; each has a look of its own.
        harm: words for the axis.
        named: rows whose names stand beside their dots.
    """
    looks = dict(zip(dict.fromkeys(groups.values()), GROUPS, strict=False))
    shown = {groups[name] for points in panels.values() for name in points}
    fig, axes = figure(height=1.0 + 2.6 * len(panels), rows=len(panels))
    told = []
    for ax, (what, points) in zip(axes, panels.items(), strict=True):
        for name, (error, added) in points.items():
            colour, marker = looks[groups[name]]
            ax.plot(100 * error, added, marker, color=colour, markeredgecolor=INK, markersize=7, zorder=3)
        ax.margins(0.14, 0.12)
        written = sorted((name for name in named if name in points), key=lambda name: points[name][1])
        low, high = ax.get_ylim()
        heights = held_apart([points[name][1] for name in written], 0.085 * (high - low), low)
        wide = ax.get_xlim()[1] - ax.get_xlim()[0]
        for name, height in zip(written, heights, strict=True):
            error, added = points[name]
            near = [100 * (e - error) / wide for e, y in points.values() if abs(y - height) < 0.06 * (high - low)]
            crowd = [sum(0 < side * x < 0.2 for x in near) for side in (1, -1)]
            place = (100 * error - ax.get_xlim()[0]) / wide  # from the left end, 0, to the right one, 1
            left = place > 0.75 or (place > 0.3 and (crowd[1], place < 0.5) < (crowd[0], place >= 0.5))
            at = (-12 if left else 12, 72 * 2.0 * (height - added) / (high - low))
            words = {"fontsize": SMALL, "color": INK, "va": "center", "path_effects": HALO, "zorder": 4}
            ha = "right" if left else "left"
            line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4}
            ax.annotate(name, (100 * error, added), at, textcoords="offset points", ha=ha, arrowprops=line, **words)
        ax.grid(axis="x", color=STYLE["grid"], linewidth=0.8)
        label(ax, "", f"error of the {what}, %", harm)
        told += [f"{what}: " + "; ".join(f"{n} {100 * e:.1f} % and {y:.3f}" for n, (e, y) in points.items())]
    handles = [_mark(colour, marker, kind) for kind, (colour, marker) in looks.items() if kind in shown]
    fig.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=SMALL)
    heading(fig, title)
    fig.alt_text = f"{title}, {harm}, against the error of {'. Of '.join(told)}."
    return fig


def error_by_rounds(
    curves: Mapping[str, Sequence[float]], levels: Mapping[str, float], title: str, across: str
) -> Figure:
    """A relative error after each round, and errors without rounds as lines across.

    Args:
        curves: {name: [error 0 to 1 after round 1, 2, ...]}, two at most.
        levels: {name: error}, four at most.
        across: words for the axis of rounds.
    """
    fig, (ax,) = figure(height=3.2 + 0.25 * (len(curves) + len(levels)))
    for (name, errors), (colour, marker) in zip(curves.items(), ((ORANGE, "D"), (BLUE, "o")), strict=False):
        rounds = range(1, len(errors) + 1)
        ax.plot(rounds, [100 * e for e in errors], color=colour, marker=marker, linewidth=1.8, label=name)
    for (name, error), (colour, line) in zip(
        levels.items(), ((INK, "-"), (ORANGE, ":"), (BLUE, "--"), (GREY, "-.")), strict=False
    ):
        ax.axhline(100 * error, color=colour, linestyle=line, linewidth=1.6, label=name)
    ax.set_xticks(range(1, 1 + max(map(len, curves.values()))))
    label(ax, title, across, "error, % of W's RMS")
    fig.legend(loc="outside lower left", ncols=1, frameon=False, fontsize=SMALL)
    told = [f"{name}: {', '.join(f'{100 * e:.2f}' for e in errors)} %" for name, errors in curves.items()]
    told += [f"{name}: {100 * error:.2f} %" for name, error in levels.items()]
    fig.alt_text = f"{title}, by {across}. {'; '.join(told)}."
    return fig


def row_in_measures(measures: Mapping[str, Mapping[str, float]], chosen: str, reference: str, title: str) -> Figure:
    """One row in several measures, each divided by another row's; all others as small marks.

    Args:
        measures: {words: {row: value}}; the chosen row may be missing in one, or in all.
    """
    fig, (ax,) = figure(height=1.1 + 0.62 * len(measures))
    ax.axvline(1, color=BLUE, linewidth=1.4, linestyle="--", zorder=1)
    told = []
    for y, (words, values) in enumerate(measures.items()):
        base = values[reference]
        ax.plot([v / base for v in values.values()], [y] * len(values), "|", color=GREY, markersize=13, zorder=2)
        if chosen in values:
            times = values[chosen] / base
            ax.plot(times, y, "D", color=ORANGE, markeredgecolor=INK, markersize=9, zorder=4)
            more = {"fontsize": SMALL, "color": INK, "ha": "center", "va": "bottom", "path_effects": HALO, "zorder": 5}
            ax.annotate(f"× {times:.2f}", (times, y), (0, 8), textcoords="offset points", **more)
            told.append(f"{words} {times:.2f}")
        else:
            told.append(f"{words} not recorded")
    ax.set_yticks(range(len(measures)), [wrapped(words, 120, SMALL) for words in measures], fontsize=SMALL)
    ax.set_ylim(len(measures) - 0.5, -0.7)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color=STYLE["grid"], linewidth=0.8)
    label(ax, title, f"times {reference}'s (dashed); small marks: other rows")
    fig.alt_text = f"{title}. Times {reference}'s: {'; '.join(told)}."
    return fig


def _mark(colour: str, marker: str, words: str) -> Line2D:
    """An entry of a legend: a mark without a line."""
    style = {"markerfacecolor": colour, "markeredgecolor": INK, "markersize": 7}
    return Line2D([], [], color="none", marker=marker, label=words, **style)
