"""Figures of memory: by category, over a step, and beside what a formula predicted."""

import math
import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qlora_lab.plots.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PINK,
    STYLE,
    colour_of,
    figure,
    label,
)


def memory_bars(rows: Sequence[tuple[str, dict[str, float]]], title: str, unit: str = "MB") -> Figure:
    """Stacked horizontal bars of memory by category.

    Args:
        rows: (name, {category: amount in `unit`}); categories keep the order of the first row.
    """
    fig, (ax,) = figure(height=1.6 + 0.55 * len(rows))
    categories = list(dict.fromkeys(c for _, parts in rows for c in parts))
    y, left = range(len(rows)), [0.0] * len(rows)
    for k, category in enumerate(categories):
        values = [parts.get(category, 0) for _, parts in rows]
        ax.barh(
            y,
            values,
            left=left,
            height=0.6,
            color=colour_of(category, k),
            edgecolor=INK,
            linewidth=0.5,
            label=category,
        )
        left = [a + b for a, b in zip(left, values, strict=True)]
    for i, total in enumerate(left):
        ax.text(total + max(left) * 0.012, i, f"{total:,.0f} {unit}", va="center", fontsize=STYLE["size"])
    ax.set_yticks(list(y), [name for name, _ in rows], fontsize=STYLE["size"])
    ax.invert_yaxis()
    ax.set_xlim(0, max(left) * 1.18)
    ax.grid(axis="x", color=STYLE["grid"], linewidth=0.8)
    ax.grid(axis="y", visible=False)
    label(ax, title, unit)
    fig.legend(frameon=False, fontsize=STYLE["small"], ncols=3, loc="outside lower center")
    fig.alt_text = (
        title
        + ". "
        + " ".join(
            f"{name}: {sum(parts.values()):,.0f} {unit} in all ("
            + ", ".join(f"{c} {v:,.0f}" for c, v in parts.items())
            + ")."
            for name, parts in rows
        )
    )
    return fig


def predicted_and_measured(
    series: Sequence[tuple[str, Sequence[tuple[float, float, float]]]], title: str, x: str, y: str
) -> Figure:
    """What a formula says as a line, and what was measured as marks on it (or beside it).

    Args:
        series: (name, [(x, predicted, measured)]).
        x, y: what the axes show, with their units.
    """
    fig, (ax,) = figure(height=3.9)
    text = []
    looks = zip((BLUE, ORANGE, GREEN, PINK), "osD^", ("-", "--", ":", "-."), strict=True)
    for (name, points), (colour, marker, line) in zip(series, looks, strict=False):
        points = sorted(points)
        at, predicted, measured = zip(*points, strict=True)
        ax.plot(at, predicted, line, color=colour, linewidth=1.5, label=textwrap.fill(f"{name}: predicted", 28))
        ax.plot(
            at, measured, marker, color=colour, markeredgecolor=INK, markersize=7, clip_on=False,
            label=textwrap.fill(f"{name}: measured", 28),
        )  # fmt: skip
        text.append(name + ": " + ", ".join(f"{b:,.0f} predicted and {c:,.0f} measured at {a:g}" for a, b, c in points))
    ax.set_ylim(bottom=0)
    label(ax, title, x, y)
    fig.legend(frameon=False, fontsize=STYLE["small"], ncols=2, loc="outside lower center")
    fig.alt_text = f"{title}. Horizontal: {x}; vertical: {y}. " + "; ".join(text) + "."
    return fig


def draw_areas(ax, memory: Sequence[dict[str, float]], x: Sequence[float] | None = None) -> None:
    """Stacked areas of memory by category, one dictionary a moment, all with the same categories."""
    categories = list(memory[0])
    ax.stackplot(
        range(len(memory)) if x is None else x,
        [[at[name] for at in memory] for name in categories],
        labels=categories,
        colors=[colour_of(name, k) for k, name in enumerate(categories)],
        step="post",
        linewidth=0,
    )
    totals = [sum(at.values()) for at in memory[:-1]]
    ax.stairs(totals, range(len(memory)) if x is None else x, baseline=None, color=INK, linewidth=0.5, alpha=0.5)


def memory_timeline(
    memory: Sequence[dict[str, float]], marks: Sequence[tuple[float, str]], title: str, x: Sequence[float] | None = None
) -> Figure:
    """Memory by category over the operations of a run, stacked, with the beginnings of its phases marked.

    Args:
        memory: {category: MB} at each moment, in order; all with the same categories.
        marks: (position, name of the phase that begins there); a name that begins with "-" goes a line lower.
        x: positions of the moments; None for their numbers.
    """
    fig, (ax,) = figure(height=4.4)
    x = list(range(len(memory))) if x is None else list(x)
    draw_areas(ax, memory, x)
    ax.set_xlim(x[0], x[-1])
    totals = [sum(at.values()) for at in memory]
    ax.set_ylim(0, 1.05 * max(totals))
    for position, _ in marks:
        ax.axvline(position, color=INK, linewidth=0.8)
    labels = ["\n" + name[1:] if name.startswith("-") else name for _, name in marks]
    ax.set_xticks([position for position, _ in marks], labels, ha="left")
    label(ax, title, "operations of PyTorch, from left to right", "MB")
    handles, names = ax.get_legend_handles_labels()
    fig.legend(handles[::-1], names[::-1], frameon=False, fontsize=STYLE["small"], ncols=3, loc="outside lower center")
    top = totals.index(max(totals))
    after = [
        f"{name.lstrip('-')} begins at {total:,.0f} MB"
        for (position, name) in marks
        for total in [next(t for at, t in zip(x, totals, strict=True) if at >= position)]
    ]
    fig.alt_text = (
        f"{title}. Memory by category, stacked, in MB. Highest: {totals[top]:,.0f} MB ("
        + ", ".join(f"{name} {value:,.0f}" for name, value in memory[top].items() if abs(value) >= 0.5)
        + f"); at the end {totals[-1]:,.0f} MB. "
        + "; ".join(after)
        + "."
    )
    return fig


def method_squares(
    methods: Sequence[tuple[str, dict[str, float]]],
    title: str,
    unit: str = "GB",
    limit: tuple[str, float] | None = None,
) -> Figure:
    """Methods side by side; each category is a square whose area is its memory, all at one scale.

    An arrow leads from the gradients to what they change. The optimizer's state of the last method also has a dashed
    square beside it, of the same size: the host memory that its pages can go to.

    A 4-bit base shares its square with the weights that are not quantized, which lie on top.

    Args:
        methods: (name, {category: amount in `unit`}), with the ledger's categories.
        limit: (name, amount) of a reference square, drawn dashed under each column.
    """
    rows = ["base", "adapters", "activations", "gradients", "optimizer state"]  # from the bottom up
    merged = []
    for name, parts in methods:
        base = "quantized base" if parts.get("quantized base") else "base weights"
        sizes = {row: parts.get(row, 0.0) for row in rows[1:]}
        sizes["base"] = parts.get("quantized base", 0.0) + parts.get("base weights", 0.0)
        merged.append((name, sizes, base, parts.get("base weights", 0.0) if base == "quantized base" else 0.0))
    side = {row: max(math.sqrt(sizes[row]) for _, sizes, *_ in merged) for row in rows}
    widest = max(side.values())
    gap = 0.16 * widest
    height = {row: max(side[row], (0.75 if row == "base" else 0.5) * widest) for row in rows}
    bottom, at = {}, 0.0
    for row in rows:
        bottom[row] = at
        at += height[row] + gap
    column = 1.2 * widest + 1.25 * widest  # the squares, and their amounts to the right
    names = 2.5 * widest  # of the rows, at the left
    fig, (ax,) = figure(height=5.6 * (at + 2 * gap) / (names + column * len(merged)) + 0.75)
    ax.set_aspect("equal")
    for row in rows:
        words = {"base": "weights"}.get(row, row)
        ax.text(0, bottom[row] + height[row] / 2, words, va="center", color=INK, fontsize=STYLE["small"])
    for k, (name, sizes, base, others) in enumerate(merged):
        middle = names + k * column + 0.6 * widest
        for row in rows:
            length, y = math.sqrt(sizes[row]), bottom[row] + height[row] / 2
            colour = colour_of(base if row == "base" else row)
            if sizes[row]:
                ax.add_patch(
                    Rectangle((middle - length / 2, y - length / 2), length, length, facecolor=colour, edgecolor=INK)
                )
            amount = _amount(sizes[row], unit) if sizes[row] else "none"
            if row == "base" and others:
                rest = length * others / sizes[row]
                place = (middle - length / 2, y + length / 2 - rest)
                lighter = colour_of("base weights")
                ax.add_patch(Rectangle(place, length, rest, facecolor=lighter, edgecolor=INK))
                amount = f"4 bits: {_amount(sizes[row] - others, unit)}\nothers: {_amount(others, unit)}"
            ax.text(middle + 0.56 * widest, y, amount, va="center", color=INK, fontsize=STYLE["small"])
        target = "adapters" if sizes["adapters"] else "base"
        between = rows[rows.index(target) : rows.index("gradients") + 1]
        left = middle - max(math.sqrt(sizes[row]) for row in between) / 2 - 0.08 * widest
        (x_end, y_end), (x_start, y_start) = (
            (middle - math.sqrt(sizes[row]) / 2 - 0.015 * widest, bottom[row] + height[row] / 2)
            for row in (target, "gradients")
        )
        ax.plot([x_start, left, left], [y_start, y_start, y_end], color=INK, linewidth=1.3)
        ax.annotate("", (x_end, y_end), (left, y_end), arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.3})
        if k == len(merged) - 1:
            length = max(math.sqrt(sizes["optimizer state"]), 0.05 * widest)
            y, left = bottom["optimizer state"] + height["optimizer state"] / 2, middle - 0.62 * widest
            ax.add_patch(
                Rectangle((left, y - length / 2), length, length, fill=False, edgecolor=INK, linestyle=(0, (2, 1)))
            )
            ax.annotate(
                "",
                (left + length + 0.02 * widest, y),
                (middle - length / 2 - 0.02 * widest, y),
                arrowprops={"arrowstyle": "<|-|>", "color": INK, "linewidth": 1.0, "mutation_scale": 6},
            )
            above = max(length / 2 + 0.04 * widest, 0.25 * widest)
            ax.text(left, y + above, "host: pages", color=INK, fontsize=STYLE["small"])
        ax.text(middle - 0.55 * widest, at, name, fontsize=STYLE["size"], weight="bold", color=INK)
        if limit is not None:
            length = math.sqrt(limit[1])
            ax.add_patch(
                Rectangle(
                    (middle - length / 2, bottom["base"] + (height["base"] - length) / 2),
                    length,
                    length,
                    fill=False,
                    edgecolor=INK,
                    linestyle="--",
                    linewidth=1.2,
                )
            )
    ax.set_xlim(0, names + column * len(merged))
    ax.set_ylim(-0.5 * gap - (0.1 * widest if limit else 0), at + gap)
    ax.axis("off")
    label(ax, title)
    if limit is not None:
        ax.text(0, -0.5 * gap, f"dashed: {limit[0]}, at the same scale", fontsize=STYLE["small"], va="top")
    fig.alt_text = (
        f"{title}. Squares whose areas are memory. "
        + " ".join(
            f"{name}: "
            + ", ".join(f"{'weights' if row == 'base' else row} {_amount(sizes[row], unit)}" for row in rows)
            + (f" (of the weights {_amount(others, unit)} are not in 4 bits)." if others else ".")
            for name, sizes, _, others in merged
        )
        + (f" For scale, {limit[0]}: {_amount(limit[1], unit)}." if limit else "")
    )
    return fig


def _amount(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 10 else f"{value:,.1f} {unit}"
