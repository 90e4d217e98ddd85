"""The QLoRA layer as a drawing: what goes where in its two passes, in which dtype, and where no gradient goes."""

from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from qlora_lab.plots.style import BLUE, GREY, INK, ORANGE, PINK, STYLE, figure

# (left, bottom, width, height) of each box, in one panel of 10 by 5
_BOXES = {
    "x": (0.0, 1.55, 1.75, 1.15),
    "codes": (3.75, 4.35, 2.9, 1.05),
    "W": (3.75, 2.45, 2.9, 1.05),
    "A": (2.75, 0.35, 1.95, 1.15),
    "B": (5.65, 0.35, 1.95, 1.15),
    "y": (8.75, 1.55, 1.75, 1.15),
}
_PLUS = (8.05, 2.12)


def layer_passes(compute: str = "bfloat16", adapters: str = "float32") -> Figure:
    """Forward and backward pass of the QLoRA layer, one above the other, with shapes and dtypes.

    Args:
        compute: dtype of activations and of the decoded weight.
        adapters: dtype of A, B and their gradients.
    """
    fig, axes = figure(height=6.6, rows=2)
    for ax, backward in zip(axes, (False, True), strict=True):
        _panel(ax, backward, compute, adapters)
    fig.alt_text = (
        f"The QLoRA layer's two passes. Forward: x (n, in), {compute}, goes two ways. One is the product with W "
        f"(out, in), {compute}, decoded from codes and scales, 4.13 bits per weight, and dropped afterwards. The "
        f"other leads through A (r, in) and B (out, r), {adapters}, and is multiplied by s. The sum is y (n, out). "
        f"Backward: the gradient g of y goes both ways back, through W, decoded once more, and through B and A, and "
        f"the two shares add up to dx. dA and dB, {adapters}, are kept for the optimizer. Nothing goes to the codes: 0 "
        "gradients."
    )
    return fig


def _panel(ax, backward: bool, compute: str, adapters: str) -> None:
    ax.axis("off")
    ax.grid(False)
    ax.set_xlim(-0.05, 10.55)
    ax.set_ylim(-0.75 if backward else 0.0, 6.1)
    ax.text(
        0, 5.95, "backward: where the gradient g goes" if backward else "forward", va="top", color=INK,
        fontsize=STYLE["size"], fontweight="bold",
    )  # fmt: skip
    ends = (f"dx (n, in)\n{compute}", f"g (n, out)\n{compute}") if backward else ("x (n, in)", "y (n, out)")
    names = {
        "x": ends[0] if backward else f"{ends[0]}\n{compute}",
        "y": ends[1] if backward else f"{ends[1]}\n{compute}",
        "codes": "codes and scales\n4.13 bits/weight",
        "W": f"W (out, in)\n{compute}, dropped",
        "A": f"A (r, in)\n{adapters}",
        "B": f"B (out, r)\n{adapters}",
    }
    edges = {"codes": GREY, "W": GREY, "A": ORANGE, "B": ORANGE}
    for name, (x, y, width, height) in _BOXES.items():
        line = {"linestyle": (0, (3, 2))} if name == "W" else {}
        box = FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", facecolor="none",
            edgecolor=edges.get(name, PINK if backward else BLUE), linewidth=1.8, **line,
        )  # fmt: skip
        ax.add_patch(box)
        ax.text(x + width / 2, y + height / 2, names[name], ha="center", va="center", fontsize=STYLE["small"],
                color=INK)  # fmt: skip
    ring = 0.0 if backward else 0.26
    if not backward:
        ax.plot(*_PLUS, "o", markersize=15, markerfacecolor="none", markeredgecolor=INK)
        ax.text(*_PLUS, "+", ha="center", va="center", fontsize=STYLE["size"] + 1, color=INK)
    colour = PINK if backward else INK
    w, a = 2.97, 0.92  # heights of the two ways
    ways = [
        [(1.75, 2.12), (2.2, 2.12), (2.2, w), (3.75, w)],
        [(2.2, 2.12), (2.2, a), (2.75, a)],
        [(4.7, a), (5.65, a)],
        [(6.65, w), (_PLUS[0], w), (_PLUS[0], _PLUS[1] + ring)],
        [(7.6, a), (_PLUS[0], a), (_PLUS[0], _PLUS[1] - ring)],
        [(_PLUS[0] + ring, 2.12), (8.75, 2.12)],
    ]
    if backward:
        ways = [way[::-1] for way in ways]
    for way in ways:
        _arrow(ax, way, colour, head=way[-1] not in ((2.2, 2.12), _PLUS))
    _arrow(ax, [(5.2, 4.35), (5.2, 3.5)], GREY)
    small = {"fontsize": STYLE["small"], "color": INK}
    ax.text(5.35, 3.92, "decode once more" if backward else "decode", va="center", **small)
    ax.text(_PLUS[0] + 0.13, 1.15, "× s", va="center", **small)
    ax.text(5.17, a + 0.1, "(n, r)", ha="center", va="bottom", **small)
    if backward:
        for name, x in (("dA", 3.72), ("dB", 6.62)):
            _arrow(ax, [(x, 0.35), (x, -0.25)], PINK)
            ax.text(x + 0.15, -0.1, f"{name}, {adapters}", va="center", **small)
        ax.text(6.85, 4.87, "no gradient\ncomes here", va="center", **small)


def _arrow(ax, points: list[tuple[float, float]], colour: str, head: bool = True) -> None:
    for start, end in pairwise(points if not head else points[:-1]):
        ax.plot(*zip(start, end, strict=True), color=colour, linewidth=1.5)
    if head:
        style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", points[-1], points[-2], arrowprops=style)
