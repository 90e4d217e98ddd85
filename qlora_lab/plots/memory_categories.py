"""Figures of memory: by category, over a step, and beside what a formula predicted."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qlora_lab.plots.style import BLUE, GREEN, GREY, INK, ORANGE, PINK, SKY, STYLE, figure, label

# one colour a category, in every figure
CATEGORY_COLOURS = {
    "quantized base": GREY,
    "base weights": "#c4c4c4",
    "adapters": ORANGE,
    "gradients": PINK,
    "activations": GREEN,
    "temporary": SKY,
    "optimizer state": BLUE,
    "gathered": "#F0E442",
}


def memory_bars(rows: Sequence[tuple[str, dict[str, float]]], title: str, unit: str = "MB") -> Figure:
    """Stacked horizontal bars of memory by category.

    Args:
        rows: (name, {category: amount in `unit`}); categories keep the order of the first row.
    """
    fig, (ax,) = figure(height=1.6 + 0.55 * len(rows))
    colours = [BLUE, ORANGE, GREEN, PINK, SKY, GREY]
    hatches = ["", "//", "..", "xx", "", "\\\\"]
    categories = list(dict.fromkeys(c for _, parts in rows for c in parts))
    y, left = range(len(rows)), [0.0] * len(rows)
    for k, category in enumerate(categories):
        values = [parts.get(category, 0) for _, parts in rows]
        ax.barh(
            y,
            values,
            left=left,
            height=0.6,
            color=CATEGORY_COLOURS.get(category, colours[k % 6]),
            hatch=hatches[k % 6],
            edgecolor="white",
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
    ax.legend(frameon=False, fontsize=STYLE["size"] - 1, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.28))
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
    fig, (ax,) = figure()
    text = []
    for (name, points), colour, marker in zip(series, (BLUE, ORANGE, GREEN, PINK), "osD^", strict=False):
        points = sorted(points)
        at, predicted, measured = zip(*points, strict=True)
        ax.plot(at, predicted, color=colour, linewidth=1.5, label=f"{name}: predicted")
        ax.plot(at, measured, marker, color=colour, markeredgecolor=INK, markersize=7, label=f"{name}: measured")
        text.append(name + ": " + ", ".join(f"{b:,.0f} predicted and {c:,.0f} measured at {a:g}" for a, b, c in points))
    ax.set_ylim(bottom=0)
    label(ax, title, x, y)
    ax.legend(frameon=False, fontsize=STYLE["size"] - 1)
    fig.alt_text = f"{title}. Horizontal: {x}; vertical: {y}. " + "; ".join(text) + "."
    return fig


def draw_areas(ax, memory: Sequence[dict[str, float]], x: Sequence[float] | None = None) -> None:
    """Stacked areas of memory by category, one dictionary a moment, all with the same categories."""
    categories = list(memory[0])
    ax.stackplot(
        range(len(memory)) if x is None else x,
        [[at[name] for at in memory] for name in categories],
        labels=categories,
        colors=[CATEGORY_COLOURS.get(name, SKY) for name in categories],
        step="post",
        linewidth=0,
    )


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
    fig.legend(
        handles[::-1], names[::-1], frameon=False, fontsize=STYLE["size"] - 1, ncols=4, loc="outside lower center"
    )
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
        merged.append((name, sizes, base))
    side = {row: max(math.sqrt(sizes[row]) for _, sizes, _ in merged) for row in rows}
    widest = max(side.values())
    gap = 0.16 * widest
    height = {row: max(side[row], 0.30 * widest) for row in rows}
    bottom, at = {}, 0.0
    for row in rows:
        bottom[row] = at
        at += height[row] + gap
    column = 1.15 * widest + 1.25 * widest  # the squares, and their labels to the right
    fig, (ax,) = figure(width=8.6, height=8.6 * (at + 2 * gap) / (column * len(merged)) + 0.7)
    ax.set_aspect("equal")
    for k, (name, sizes, base) in enumerate(merged):
        middle = k * column + 0.6 * widest
        for row in rows:
            length, y = math.sqrt(sizes[row]), bottom[row] + height[row] / 2
            colour = CATEGORY_COLOURS[base if row == "base" else row]
            if sizes[row]:
                ax.add_patch(
                    Rectangle((middle - length / 2, y - length / 2), length, length, facecolor=colour, edgecolor=INK)
                )
            words = {"base": "4-bit base" if base == "quantized base" else "weights"}.get(row, row)
            amount = _amount(sizes[row], unit) if sizes[row] else "none"
            ax.text(middle + 0.56 * widest, y, f"{words}\n{amount}", va="center", fontsize=STYLE["size"] - 1.5)
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
                arrowprops={"arrowstyle": "<|-|>", "color": INK, "linewidth": 1.0},
            )
            ax.text(left, y + length / 2 + 0.04 * widest, "host: pages", fontsize=STYLE["size"] - 2.5)
        ax.text(middle - 0.55 * widest, at, name, fontsize=STYLE["size"] + 2, weight="bold")
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
    ax.set_xlim(-0.1 * widest, column * len(merged))
    ax.set_ylim(-0.5 * gap - (0.1 * widest if limit else 0), at + gap)
    ax.axis("off")
    label(ax, title)
    if limit is not None:
        ax.text(0, -0.5 * gap, f"dashed: {limit[0]}, at the same scale", fontsize=STYLE["size"] - 1.5, va="top")
    fig.alt_text = (
        f"{title}. Squares whose areas are memory. "
        + " ".join(
            f"{name}: "
            + ", ".join(f"{'weights' if row == 'base' else row} {_amount(sizes[row], unit)}" for row in rows)
            + "."
            for name, sizes, _ in merged
        )
        + (f" For scale, {limit[0]}: {_amount(limit[1], unit)}." if limit else "")
    )
    return fig


def _amount(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 10 else f"{value:,.1f} {unit}"
