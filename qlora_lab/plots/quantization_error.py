"""Figures of what quantizing costs: against the weight, the block size, the bits, and layer by layer."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from qlora_lab.plots.codebooks import style_of
from qlora_lab.plots.style import BLUE, GREY, INK, ORANGE, STYLE, figure, label


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
    ax.text(outlier, 1.12 * top, " the outlier", fontsize=STYLE["size"] - 1)
    label(ax, "One outlier, and who pays for it", "place of the weight (dotted: blocks)", "|error|")
    ax.legend(frameon=False, fontsize=STYLE["size"] - 1, loc="upper left", ncols=2, bbox_to_anchor=(0, 1.02))
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
    fig, axes = figure(
        width=8.2, height=0.8 + 1.35 * len(rows), rows=len(rows), columns=len(kinds), sharex=True, sharey=True
    )
    told = []
    for r, (weights, by_type) in enumerate(rows):
        for c, name in enumerate(kinds):
            ax, shares = axes[r * len(kinds) + c], np.asarray(by_type[name], dtype=float)
            colour = style_of(name)["color"]
            ax.bar(range(len(shares)), 100 * shares, color=colour, edgecolor="white", linewidth=0.3, width=0.9)
            ax.axhline(100 / 16, color=INK, linewidth=0.9, linestyle="--")
            used = shares[shares > 0]
            entropy = -(used * np.log2(used)).sum()
            ax.text(0.98, 0.95, f"{entropy:.2f} bits", transform=ax.transAxes, ha="right", va="top",
                    fontsize=STYLE["size"] - 2)  # fmt: skip
            ax.tick_params(labelsize=STYLE["size"] - 3)
            ax.set_xticks([0, 5, 10, 15])
            if not r:
                ax.set_title(name, fontsize=STYLE["size"], fontweight="bold")
            if not c:
                ax.set_ylabel(weights, fontsize=STYLE["size"] - 1)
            told.append(f"{weights}, {name}: entropy {entropy:.2f} bits, most used {100 * shares.max():.0f} %")
    top = max(max(shares) for _, by_type in rows for shares in by_type.values())
    axes[0].set_ylim(0, 125 * top)
    fig.supxlabel("level, from the lowest to the highest (dashed: all equally often)", fontsize=STYLE["size"] - 1)
    fig.supylabel("% of the weights", fontsize=STYLE["size"] - 1)
    fig.alt_text = "Histograms of codes. " + "; ".join(told) + "."
    return fig


def _shared_legend(fig: Figure, ax, columns: int) -> None:
    handles, names = ax.get_legend_handles_labels()
    fig.legend(handles, names, frameon=False, fontsize=STYLE["size"] - 1, ncols=columns, loc="outside lower center")


def error_by_weight(panels: Sequence[tuple[str, Sequence[float], Mapping[str, Sequence[float]]]]) -> Figure:
    """Root mean square error of weights of about one size, against that size.

    Args:
        panels: (kind of weights, sizes in standard deviations, {data type: error in standard deviations at each}).
    """
    fig, axes = figure(width=8.2, height=3.6, columns=len(panels), sharex=True, sharey=True)
    told = []
    for ax, (weights, sizes, by_type) in zip(axes, panels, strict=True):
        for name, errors in by_type.items():
            look = style_of(name) | {"marker": ""}
            ax.plot(sizes, errors, linewidth=1.8, label=name, **look)
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
    fig, axes = figure(width=8.2, height=3.7, columns=len(panels), sharex=True, sharey=True)
    told = []
    for ax, (weights, sizes, by_type) in zip(axes, panels, strict=True):
        for name, errors in by_type.items():
            look = style_of(name)
            ax.plot(sizes, [100 * e for e in errors], linewidth=1.6, markersize=4.5, label=name, **look)
        ax.set_xscale("log", base=4)
        ax.set_xticks([size for size in (16, 64, 256, 1024, 4096) if min(sizes) <= size <= max(sizes)])
        ax.get_xaxis().set_major_formatter(lambda value, _: f"{value:.0f}")
        ax.minorticks_off()
        ax.tick_params(labelsize=STYLE["size"] - 2)
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
    """Relative error against all bits a weight takes, its share of the constants included.

    Args:
        lines: (data type, [(bits, error 0 to 1, block size)]).
        mark: bits at which to compare.
    """
    fig, (ax,) = figure(height=4.0)
    told, small = [], {"fontsize": STYLE["size"] - 2, "bbox": {"color": "white", "pad": 0.5}}
    at_mark = {name: e for name, points in lines for b, e, _ in points if b == mark}
    for name, points in lines:
        bits, errors, _ = zip(*points, strict=True)
        ax.plot(bits, [100 * e for e in errors], linewidth=1.6, markersize=5, label=name, **style_of(name))
        for b, e, size in points:
            if b == mark:
                told.append(f"{name} {100 * e:.2f} % (block {size})")
                words, below = f"{name}, block {size}", name == min(at_mark, key=at_mark.get)
                ax.annotate(words, (b, 100 * e), (7, -14 if below else 5), textcoords="offset points", **small)
    ax.axvline(mark, color=GREY, linewidth=1.2, linestyle="--", zorder=0)
    ax.legend(frameon=False, fontsize=STYLE["size"] - 1, loc="upper right")
    label(ax, title, "bits a weight, constants included", "RMSE, % of the weights' RMS")
    fig.alt_text = f"{title}. At {mark:g} bits a weight: " + ", ".join(told) + "."
    return fig


def layer_errors(errors: Sequence[Sequence[float]], names: Sequence[str], title: str) -> Figure:
    """A map of relative errors: layers from left to right, kinds of linear layers from top to bottom.

    Args:
        errors: [layer][kind], 0 to 1.
        names: of the kinds.
    """
    fig, (ax,) = figure(width=8.2, height=1.2 + 0.3 * len(names))
    table = 100 * np.asarray(errors, dtype=float).T
    picture = ax.imshow(table, aspect="auto", cmap="cividis")
    ax.set_yticks(range(len(names)), names, fontsize=STYLE["size"] - 1)
    ax.set_xticks(range(0, table.shape[1], 5))
    ax.grid(visible=False)
    bar = fig.colorbar(picture, ax=ax, pad=0.01)
    bar.ax.tick_params(labelsize=STYLE["size"] - 2)
    bar.set_label("RMSE, %", fontsize=STYLE["size"] - 1)
    label(ax, title, "layer")
    kind, layer = np.unravel_index(table.argmax(), table.shape)
    fig.alt_text = (
        f"{title}, {table.shape[1]} layers by {len(names)} linears: from {table.min():.1f} % to {table.max():.1f} %, "
        f"median {np.median(table):.1f} %. The largest is {names[kind]} of layer {layer}."
    )
    return fig
