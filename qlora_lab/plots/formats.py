"""Figures of what came after NF4: scales that are powers of two, and rounding that looks at inputs."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from qlora_lab.plots.style import BLUE, GREEN, GREY, HALO, INK, ORANGE, PINK, STYLE, figure, label, tint

LOOKS = (
    {"color": BLUE, "marker": "o", "linestyle": "-"},
    {"color": ORANGE, "marker": "s", "linestyle": "--"},
    {"color": GREEN, "marker": "^", "linestyle": ":"},
    {"color": PINK, "marker": "D", "linestyle": "-."},
)


def power_of_two_scales(
    edges: Sequence[float], shares: Sequence[float], errors: Mapping[str, Sequence[float]], top: float, title: str
) -> Figure:
    """Where the largest weight of a block comes to lie, and the error of the blocks by that.

    Args:
        edges: of n bins of the largest weight divided by its scale, (n + 1,), equally wide.
        shares: of the blocks, 0 to 1, in each bin.
        errors: {rule for the scale: relative error, 0 to 1, of the weights of the blocks in each bin}.
        top: the largest level.
    """
    fig, (above, below) = figure(height=5.0, rows=2, sharex=True)
    width = edges[1] - edges[0]
    middles = [edge + width / 2 for edge in edges[:-1]]
    colours = [tint(ORANGE, 0.75) if middle > top else tint(BLUE, 0.55) for middle in middles]
    percent = [100 * share for share in shares]
    above.bar(middles, percent, width=0.9 * width, color=colours, edgecolor=INK, linewidth=0.6)
    beyond = sum(share for middle, share in zip(middles, shares, strict=True) if middle > top)
    above.set_ylim(0, 1.3 * max(percent))
    words = {"transform": above.get_xaxis_transform(), "fontsize": STYLE["small"], "va": "top"}
    above.text(top + 0.06, 0.99, f"cut off: {beyond:.0%} of the blocks", **words)
    told = [f"{beyond:.0%} of the blocks have their largest weight beyond {top:g} and lose what is above it"]
    for (name, values), look in zip(errors.items(), LOOKS, strict=False):
        below.plot(middles, [100 * value for value in values], linewidth=1.7, markersize=5, label=name, **look)
        told.append(
            f"{name}: error {100 * values[0]:.1f} % at {edges[0]:g}, {100 * min(values):.1f} % at the least, "
            f"{100 * values[-1]:.1f} % at {edges[-1]:g}"
        )
    for ax in (above, below):
        ax.axvline(top, color=INK, linewidth=1.2, linestyle="--")
    below.set_ylim(0, 112 * max(map(max, errors.values())))
    below.legend(frameon=False, fontsize=STYLE["small"], loc="lower left")
    label(above, title, "", "% of the blocks")
    label(below, "", "largest weight of a block / its scale", "error of weights, %")
    fig.alt_text = f"{title}. " + "; ".join(told) + "."
    return fig


def input_energy(curves: Mapping[str, Sequence[float]], title: str) -> Figure:
    """How few directions hold most of what inputs are.

    Args:
        curves: {input: share, 0 to 1, of its mean square that its 1, 2, … strongest directions hold together}.
    """
    fig, (ax,) = figure(height=3.6)
    told = []
    for (name, shares), look in zip(curves.items(), LOOKS, strict=False):
        line = look | {"marker": ""}
        ax.plot(range(1, len(shares) + 1), [100 * share for share in shares], linewidth=1.8, label=name, **line)
        ax.plot([1], [100 * shares[0]], color=look["color"], marker=look["marker"], markersize=6)
        half = sum(share < 0.5 for share in shares) + 1
        told.append(f"{name}: the first of {len(shares)} has {shares[0]:.0%}, half is reached with {half}")
    ax.axhline(50, color=GREY, linewidth=1.2, linestyle="--", zorder=0)
    ax.set_xscale("log")
    ax.set_ylim(0, 104)
    ax.set_xlim(left=0.85)
    ax.minorticks_off()
    ax.get_xaxis().set_major_formatter(lambda value, _: f"{value:.0f}")
    ax.legend(frameon=False, fontsize=STYLE["small"], loc="lower right")
    label(ax, title, "directions, the strongest first", "% of the inputs' mean square")
    fig.alt_text = f"{title}. " + "; ".join(told) + "."
    return fig


def errors_moved(
    layers: Sequence[tuple[str, tuple[float, float], tuple[float, float]]], names: tuple[str, str], title: str
) -> Figure:
    """An arrow a layer, from its two errors with one way to round to those with another.

    Args:
        layers: (name, (error of weights, of outputs), the same with the other way), 0 to 1.
        names: of the two ways.
    """
    fig, (ax,) = figure(height=4.2)
    for _, start, end in layers:
        (x, y), (to, down) = ([100 * each for each in pair] for pair in (start, end))
        arrow = {"arrowstyle": "-|>", "color": GREY, "shrinkA": 4, "shrinkB": 4, "linewidth": 1.3}
        ax.annotate("", (to, down), (x, y), arrowprops=arrow)
    for name, pairs, look in zip(names, list(zip(*layers, strict=True))[1:], LOOKS, strict=False):
        x, y = ([100 * pair[k] for pair in pairs] for k in (0, 1))
        ax.plot(x, y, linestyle="", marker=look["marker"], color=look["color"], markersize=6, label=name)
    tops = [100 * start[1] for _, start, _ in layers]
    every = [100 * pair[0] for _, *pairs in layers for pair in pairs]
    wide, high = max(every) - min(every), max(tops)
    ends = [(100 * end[0], 100 * end[1]) for _, _, end in layers]
    for (name, *_), (x, y) in zip(layers, ends, strict=True):  # where two are close, the lower one's name hangs lower
        below = any(0 <= other - y < 0.05 * high and 0 < abs(to - x) < 0.2 * wide for to, other in ends)
        words = {"fontsize": STYLE["small"], "va": "center", "path_effects": HALO}
        ax.annotate(name, (x, y), xytext=(8, -8 if below else 1), textcoords="offset points", **words)
    ax.set_xlim(min(every) - 0.1 * wide, max(every) + 0.38 * wide)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=STYLE["small"], loc="upper right")
    label(ax, title, "error of the weights, %", "error of the outputs, %")
    told = (
        f"{name}: weights {100 * a[0]:.1f} to {100 * b[0]:.1f} %, outputs {100 * a[1]:.1f} to {100 * b[1]:.1f} %"
        for name, a, b in layers
    )
    fig.alt_text = f"{title}, from {names[0]} to {names[1]}. " + "; ".join(told) + "."
    return fig


def error_by_exponent(
    exponents: Sequence[float], curves: Mapping[str, tuple[Sequence[float], float]], title: str
) -> Figure:
    """Error of outputs against the exponent of AWQ's scales.

    Args:
        curves: {place in the model: (error of outputs, 0 to 1, at each exponent, the exponent that was chosen)}.
    """
    fig, (ax,) = figure(height=3.7)
    told = []
    for (name, (errors, chosen)), look in zip(curves.items(), LOOKS, strict=False):
        line = look | {"marker": ""}
        ax.plot(exponents, [100 * error for error in errors], linewidth=1.8, label=name, **line)
        at = min(range(len(exponents)), key=lambda k: abs(exponents[k] - chosen))
        ax.plot([exponents[at]], [100 * errors[at]], color=look["color"], marker=look["marker"], markersize=8)
        told.append(
            f"{name}: {100 * errors[0]:.1f} % at 0, {1 - errors[at] / errors[0]:.0%} less at {chosen:.1f}, chosen, and "
            f"{100 * errors[-1]:.1f} % at 1"
        )
    ax.set_ylim(0, 145 * max(max(errors) for errors, _ in curves.values()))
    ax.legend(frameon=False, fontsize=STYLE["small"], loc="upper left")
    label(ax, title, "exponent (mark: the one chosen)", "error of the outputs, %")
    fig.alt_text = f"{title}. " + "; ".join(told) + "."
    return fig
