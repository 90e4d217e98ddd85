"""Figures of what quantizing costs: against the weight, the block size, the bits, and layer by layer."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from qlora_lab.plots.style import BLUE, CARD, GREY, INK, ORANGE, STYLE, figure, label, look, wrapped


def outlier_errors(whole: Sequence[float], blocks: Sequence[float], block_size: int, outlier: int) -> Figure:
    """Errors of weights by their place, with one scale for all and with one for each block.

    Args:
        whole, blocks: |decoded - weight| of each weight.
        outlier: the place of the outlier.
    """
    fig, (ax,) = figure(height=3.3)
    ax.plot(whole, "s", color=ORANGE, markersize=3.2, label="one scale for all")
    ax.plot(blocks, "o", color=BLUE, markersize=3, label=f"one scale for {block_size}")
    for edge in range(block_size, len(whole), block_size):
        ax.axvline(edge - 0.5, color=GREY, linewidth=0.8, linestyle=":")
    ax.axvline(outlier, color=INK, linewidth=1)
    top = max(*whole, *blocks)
    ax.set_ylim(-0.03 * top, 1.2 * top)
    ax.set_xlim(-2, len(whole) + 1)
    ax.text(outlier, 1.12 * top, " the outlier", fontsize=STYLE["small"])
    label(ax, "One outlier, and who pays for it", "place of the weight (dotted: blocks)", "|error|")
    fig.legend(frameon=False, fontsize=STYLE["small"], loc="outside lower center", ncols=2, markerscale=1.8)
    start = outlier // block_size * block_size
    away = [e for i, e in enumerate(blocks) if not start <= i < start + block_size]
    fig.alt_text = (
        f"Errors of {len(whole)} weights, one of them an outlier at place {outlier}. With one scale for all, the mean "
        f"error is {np.mean(whole):.3f}; with one for each block of {block_size} it is {np.mean(away):.3f} outside the "
        f"outlier's block and {np.mean(blocks[start : start + block_size]):.3f} inside it."
    )
    return fig


def code_histograms(rows: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """How often each code is used: a row for each kind of weights, a column for each data type.

    Args:
        rows: (kind of weights, {data type: shares 0 to 1, from the lowest level to the highest}).
    """
    kinds = list(rows[0][1])
    fig, axes = figure(height=0.8 + 1.35 * len(rows), rows=len(rows), columns=len(kinds), sharex=True, sharey=True)
    told = []
    for r, (weights, by_type) in enumerate(rows):
        for c, name in enumerate(kinds):
            ax, shares = axes[r * len(kinds) + c], np.asarray(by_type[name], dtype=float)
            colour = look(name)["color"]
            ax.bar(range(len(shares)), 100 * shares, color=colour, edgecolor=CARD, linewidth=0.3, width=0.9)
            ax.axhline(100 / 16, color=INK, linewidth=0.9, linestyle="--")
            used = shares[shares > 0]
            entropy = -(used * np.log2(used)).sum()
            ax.text(0.98, 0.95, f"{entropy:.2f} bits", transform=ax.transAxes, ha="right", va="top",
                    fontsize=STYLE["small"])  # fmt: skip
            ax.tick_params(labelsize=STYLE["small"])
            ax.set_xticks([0, 5, 10, 15])
            if not r:
                ax.set_title(name, fontsize=STYLE["size"], fontweight="bold")
            if not c:
                ax.set_ylabel(wrapped(weights, 80, STYLE["small"]), fontsize=STYLE["small"])
            told.append(f"{weights}, {name}: entropy {entropy:.2f} bits, most used {100 * shares.max():.0f} %")
    top = max(max(shares) for _, by_type in rows for shares in by_type.values())
    axes[0].set_ylim(0, 125 * top)
    fig.supxlabel("level, from the lowest to the highest (dashed: all equally often)", fontsize=STYLE["small"])
    fig.supylabel("% of the weights", fontsize=STYLE["small"])
    fig.alt_text = "Histograms of codes. " + "; ".join(told) + "."
    return fig


def _shared_legend(fig: Figure, ax, columns: int) -> None:
    handles, names = ax.get_legend_handles_labels()
    fig.legend(handles, names, frameon=False, fontsize=STYLE["small"], ncols=columns, loc="outside lower center")


def error_by_weight(panels: Sequence[tuple[str, Sequence[float], Mapping[str, Sequence[float]]]]) -> Figure:
    """Root mean square error of weights of about one size, against that size.

    Args:
        panels: (kind of weights, sizes in standard deviations, {data type: error in standard deviations at each}).
    """
    fig, axes = figure(height=3.6, columns=len(panels), sharex=True, sharey=True)
    told = []
    for ax, (weights, sizes, by_type) in zip(axes, panels, strict=True):
        for name, errors in by_type.items():
            style = look(name) | {"marker": ""}
            ax.plot(sizes, errors, linewidth=1.8, label=name, **style)
        label(ax, weights, "weight (std)", "RMS error (std)" if ax is axes[0] else "")
        near, far = len(sizes) // 2, -1
        told.append(
            f"{weights}: "
            + ", ".join(
                f"{name} {e[near]:.2f} near zero and {e[far]:.2f} at {sizes[far]:.1f}" for name, e in by_type.items()
            )
        )
    axes[0].set_ylim(bottom=0)
    _shared_legend(fig, axes[0], 4)
    fig.alt_text = "Error against the weight, both in standard deviations. " + "; ".join(told) + "."
    return fig


def error_by_block_size(panels: Sequence[tuple[str, Sequence[int], Mapping[str, Sequence[float]]]]) -> Figure:
    """Relative root mean square error against block size, one panel for each kind of weights.

    Args:
        panels: (kind of weights, block sizes, {data type: error relative to the weights, 0 to 1, at each}).
    """
    fig, axes = figure(height=3.7, columns=len(panels), sharex=True, sharey=True)
    told = []
    for ax, (weights, sizes, by_type) in zip(axes, panels, strict=True):
        for name, errors in by_type.items():
            style = look(name)
            ax.plot(sizes, [100 * e for e in errors], linewidth=1.6, markersize=4.5, label=name, **style)
        ax.set_xscale("log", base=4)
        ax.set_xticks([size for size in (16, 256, 4096) if min(sizes) <= size <= max(sizes)])
        ax.get_xaxis().set_major_formatter(lambda value, _: f"{value:.0f}")
        ax.minorticks_off()
        ax.tick_params(labelsize=STYLE["small"])
        label(ax, weights, "block size", "RMSE, % of the weights' RMS" if ax is axes[0] else "")
        told.append(
            f"{weights}: "
            + ", ".join(
                f"{name} {100 * e[0]:.1f} % at {sizes[0]} and {100 * e[-1]:.1f} % at {sizes[-1]}"
                for name, e in by_type.items()
            )
        )
    axes[0].set_ylim(bottom=0)
    _shared_legend(fig, axes[0], 4)
    fig.alt_text = "Error against block size. " + "; ".join(told) + "."
    return fig


def error_by_bits(lines: Sequence[tuple[str, Sequence[tuple[float, float, int]]]], mark: float, title: str) -> Figure:
    """Relative error against all bits per weight takes, its share of the constants included.

    Args:
        lines: (data type, [(bits, error 0 to 1, block size)]).
        mark: bits at which to compare.
    """
    fig, (ax,) = figure(height=4.0)
    told = []
    for name, points in lines:
        bits, errors, _ = zip(*points, strict=True)
        there = [(100 * e, size) for b, e, size in points if b == mark]
        words = name + "".join(f" (block {size} at {mark:g} bits)" for _, size in there)
        told += [f"{name} {error:.2f} % (block {size})" for error, size in there]
        ax.plot(bits, [100 * e for e in errors], linewidth=1.6, markersize=5, label=words, **look(name))
    ax.axvline(mark, color=GREY, linewidth=1.2, linestyle="--", zorder=0)
    ax.legend(frameon=False, fontsize=STYLE["small"], loc="upper right")
    label(ax, title, "bits per weight, constants included", "RMSE, % of the weights' RMS")
    fig.alt_text = f"{title}. At {mark:g} bits per weight: " + ", ".join(told) + "."
    return fig


def layer_errors(errors: Sequence[Sequence[float]], names: Sequence[str], title: str) -> Figure:
    """A map of relative errors: layers from left to right, kinds of linear layers from top to bottom.

    Args:
        errors: [layer][kind], 0 to 1.
        names: of the kinds.
    """
    fig, (ax,) = figure(height=1.2 + 0.3 * len(names))
    table = 100 * np.asarray(errors, dtype=float).T
    picture = ax.imshow(table, aspect="auto", cmap="cividis")
    ax.set_yticks(range(len(names)), names, fontsize=STYLE["small"])
    ax.set_xticks(range(0, table.shape[1], 5))
    ax.grid(visible=False)
    bar = fig.colorbar(picture, ax=ax, pad=0.01)
    bar.ax.tick_params(labelsize=STYLE["small"])
    bar.set_label("RMSE, %", fontsize=STYLE["small"])
    label(ax, title, "layer")
    kind, layer = np.unravel_index(table.argmax(), table.shape)
    fig.alt_text = (
        f"{title}, {table.shape[1]} layers by {len(names)} linears: from {table.min():.1f} % to {table.max():.1f} %, "
        f"median {np.median(table):.1f} %. The largest is {names[kind]} of layer {layer}."
    )
    return fig


def signed_scales(sizes: Sequence[int], lines: Sequence[tuple[str, Sequence[float]]], title: str) -> Figure:
    """Relative error against block size; what stands after a comma in a name (the scale's kind) has its own marker.

    Args:
        sizes: of blocks.
        lines: (name, error 0 to 1 at each size), two or three tables with two kinds of scale each.
    """
    fig, (ax,) = figure(height=4.2)
    colours, told = {}, []
    for name, errors in lines:
        table, _, kind = name.partition(", ")
        colour = colours.setdefault(table, (ORANGE, BLUE, INK, GREY)[len(colours) % 4])
        look = {"marker": "o", "linestyle": "--"} if kind == "absmax" else {"marker": "D", "linestyle": "-"}
        ax.plot(sizes, [100 * e for e in errors], color=colour, linewidth=1.7, markersize=5, label=name, **look)
        told.append(f"{name} {100 * errors[0]:.1f} % at {sizes[0]} and {100 * errors[-1]:.1f} % at {sizes[-1]}")
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes)
    ax.get_xaxis().set_major_formatter(lambda value, _: f"{value:.0f}")
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=STYLE["small"], loc="upper left")
    label(ax, title, "block size", "RMSE, % of the weights' RMS")
    fig.alt_text = f"{title}: " + "; ".join(told) + "."
    return fig


def weights_and_outputs(groups: Sequence[tuple[str, Sequence[float], Sequence[float]]], title: str) -> Figure:
    """A point a layer: the error of its outputs against the error of its weights.

    Args:
        groups: (name, errors of weights, errors of outputs), 0 to 1.
    """
    fig, (ax,) = figure(height=4.2)
    told = []
    for (name, weights, outputs), colour, marker in zip(groups, (ORANGE, BLUE, INK), "^os", strict=False):
        ax.plot([100 * e for e in weights], [100 * e for e in outputs], marker, color=colour, markersize=4.5,
                alpha=0.75, label=name)  # fmt: skip
        told.append(
            f"{name}: weights {100 * min(weights):.0f} to {100 * max(weights):.0f} %, outputs "
            f"{100 * min(outputs):.0f} to {100 * max(outputs):.0f} %"
        )
    low, high = (100 * f(min(w) if f is min else max(w) for _, w, _ in groups) for f in (min, max))
    ax.axline((low, low), (high, high), color=GREY, linewidth=1.2, linestyle="--")
    ax.set_xlim(low - 0.4, high + 0.4)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=STYLE["small"], loc="upper left")
    label(ax, title, "error of the weights, %", "error of the outputs, %")
    fig.alt_text = f"{title}, a point a layer (dashed: equal). " + "; ".join(told) + "."
    return fig
