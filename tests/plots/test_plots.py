"""Figures: each says in words what it shows, nothing is cut off, and colours differ in grey too."""

import io
import re
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from PIL import Image

from qlora_lab import plots

MOVES = [(0, 0, "device"), (0, 1, "device"), (3, 1, "disk"), (4, 2, "host"), (5, 1, "device")]
SMALL = {"quantized base": 33.0, "base weights": 1.0, "adapters": 1.6, "gradients": 1.6, "optimizer state": 6.4}
SHARES = {name: [0.5, 0.2, 0.3] for name in ("nf4", "fp4", "int4", "int4_affine")}
HALVES = [i / 500 - 1 for i in range(1001)]
COST = "a: 250 MB; loss 0.250 (0.210 to 0.290)"
RESULT = (0.25, 0.21, 0.29, [0.24, 0.25, 0.26])
LONG = "adapter beside a base in 4 bits, after a hundred steps"


# by name; made where they are asked for, for a few milliseconds each add up
FIGURES = {
    "loss_curve": lambda: plots.loss_curve([3.0, 2.0, 0.5, 0.25], 10),
    "loss_curve with validation": lambda: plots.loss_curve(
        [3.0, 2.0, 0.5, 0.25], validations=[(0, 3.1), (2, 0.9), (4, 1.2)]
    ),
    "rate_curve": lambda: plots.rate_curve([1e-5, 1e-4, 1e-3, 1e-2, 1e-1], [3.0, 2.9, 1.5, 0.8, 40.0], 2.5e-3, 3e-3),
    "match_bars": lambda: plots.match_bars([("base model", 0.0, (0.0, 0.11)), (LONG, 1.0, (0.9, 1.0))]),
    "memory_bars": lambda: plots.memory_bars([("full", {"a": 538.0, "b": 1076.0}), (LONG, {"a": 170.0})], "T"),
    "predicted_and_measured": lambda: plots.predicted_and_measured(
        [(LONG, [(0, 8.0, 8.0), (100, 0.0, 0.5)]), ("b", [(0, 8.0, 8.0)])], "T", "percent", "MB"
    ),
    "page_timeline": lambda: plots.page_timeline([("a", MOVES), (LONG[:30], MOVES)], 3, 8, "uses", [4]),
    "memory_and_pages": lambda: plots.memory_and_pages(
        [{"weights": 5.0, "pages": 2.0 * i} for i in range(8)], MOVES, 3, 20.0, "T", [(0, "one"), (4, "two")]
    ),
    "memory_timeline": lambda: plots.memory_timeline(
        [{"base weights": 5.0, "gradients": 2.0 * i} for i in range(8)], [(0, "quantize"), (4, "-forward")], "T"
    ),
    "codebook": lambda: plots.codebook([-1.0, -0.2, 0.1, 0.4], [-1.0, 0.0, 1.0], [0.25, 0.75, 0.0], 0.09, "T"),
    "codes_of_a_number": lambda: plots.codes_of_a_number(0.65, [(0.0, 1.95), (0.0, 1.0), (-1.0, 1.0)]),
    "levels": lambda: plots.levels([("nf4", [-1.0, -0.3, 0.0, 0.2, 1.0]), ("mine", [-1.0, 0.0, 0.5])], "T"),
    "quantiles": lambda: plots.quantiles([-1.85, -0.6], [1.85, 1.0, 0.4], 0.968),
    "absmax_and_normalized": lambda: plots.absmax_and_normalized(
        [(16, [1.0, 2.0, 3.0], [0.1, 0.9, 0.1]), (64, [1.0, 2.5, 3.0], [0.1, 1.1, 0.1])], 1.848, HALVES, [-1.0, 1.0]
    ),
    "outlier_errors": lambda: plots.outlier_errors([0.3] * 64, [0.1] * 64, 16, 20),
    "code_histograms": lambda: plots.code_histograms([("Gaussian", SHARES), ("Student t, 3 degrees", SHARES)]),
    "error_by_weight": lambda: plots.error_by_weight(
        [("Gaussian", [-1.0, 0.0, 1.0], SHARES), ("real", [-1.0, 0.0, 1.0], SHARES)]
    ),
    "error_by_block_size": lambda: plots.error_by_block_size(
        [("Gaussian", [16, 64, 256], SHARES), ("real", [16, 64, 256], SHARES)]
    ),
    "error_by_bits": lambda: plots.error_by_bits(
        [("nf4", [(4.5, 0.09, 64), (5.0, 0.08, 32)]), ("int4_affine", [(4.5, 0.1, 128)])], 4.5, "T"
    ),
    "layer_errors": lambda: plots.layer_errors([[0.1, 0.09], [0.11, 0.12]], ["q", "down"], "T"),
    "error_against_scale": lambda: plots.error_against_scale(
        [("a", [(0.5, 0.1, 0.3), (1.0, 0.2, 0.0)]), (LONG[:30], [(0.5, 0.1, 0.3), (1.0, 0.5, 0.0)])], "T"
    ),
    "bits_and_error": lambda: plots.bits_and_error(
        [("a", [(32, 5.0, 0.087), (64, 4.5, 0.092)]), (LONG, [(64, 4.1, 0.092)])], "T"
    ),
    "scale_map": lambda: plots.scale_map([-1.0, -0.1, 0.0, 0.01, 0.1, 1.0], [-0.2, 0.1, 1.0], "T"),
    "decoded_scales": lambda: plots.decoded_scales([0.002, 2.0], [-0.01, 2.1], [0.001, -0.002], [-0.004, 0.01], "T"),
    "throughput": lambda: plots.throughput([(LONG[:30], 0.002), ("b", 2.5)], 3.0, "T"),
    "scale_and_error": lambda: plots.scale_and_error([0.3, -0.7], [0.25, -0.75], [(0.1, 0.2), (0.25, 0.05)], 0.25),
    "parameters_of_rank": lambda: plots.parameters_of_rank([("q", 10**6, 10**4), (LONG[:25], 10**7, 10**5)], "T"),
    "adapted_layer": lambda: plots.adapted_layer(576, 1536, 16, 32),
    "adapted_square": lambda: plots.adapted_layer(1024, 1024, 8, 8),
    "adapted_wide": lambda: plots.adapted_layer(1536, 576, 64, 16),
    "singular_energy": lambda: plots.singular_energy(
        [("a", [0.5, 0.8] + [1.0] * 8), (LONG[:24], [0.1 * i for i in range(1, 11)])], "T"
    ),
    "loss_of_rank": lambda: plots.loss_of_rank(
        [("a", [(1, 2.0), (16, 1.0)], 0.9), (LONG[:20], [(1, 2.5), (16, 2.2)], 2.1)], 3.0, "T"
    ),
    "parameters_against_rank": lambda: plots.parameters_against_rank(576, 1536, [1, 2, 4, 8, 64, 256, 1024]),
    "size_of_rank": lambda: plots.size_of_rank(
        [("one", [("a", [(4, 1.0), (64, 0.1)], -0.8)]), ("other", [("b", [(4, 2.0), (64, 2.0)], -0.01)])], "size"
    ),
    "memory_against_limit": lambda: plots.memory_against_limit(
        {"quantized base": 33.4, "adapters": 1.6}, 24, "35.0 GB: it does not fit"
    ),
    "per_gpu": lambda: plots.per_gpu(
        [("full", [(1, 784.5), (2, 398.0), (8, 104.0)]), ("QLoRA", [(1, 41.4), (2, 23.0), (8, 7.6)])],
        [("24 GB", 25.8), ("80 GB", 85.9)], "T",
    ),
    "gathered_over_step": lambda: plots.gathered_over_step(
        [50.0, 110.0, 112.0, 110.0, 112.0, 50.0], 50.0, 190.0, [(1, "forward"), (3, "backward")], "T"
    ),
    "results": lambda: plots.results(
        {"loss": {"a": (0.3, 0.1, 0.5, [0.2, 0.3, 0.4]), LONG: RESULT}, "test": {"a": RESULT, LONG: RESULT}}, "T"
    ),
    "against_rank": lambda: plots.against_rank({1: RESULT, 16: RESULT}, {1: 4.9, 16: 78.2, 64: 313.0}, "T", "loss"),
    "decoding_share": lambda: plots.decoding_share(
        [(8, 0.4), (2048, 0.02)], [(8, 0.41), (100, 0.2), (2048, 0.01)], "T"
    ),
    "quality_and_memory": lambda: plots.quality_and_memory(
        {"a": (250.0, RESULT), LONG: (1e3, RESULT)}, "a", COST, "loss"
    ),
    "no_quality": lambda: plots.quality_and_memory({"a": (250.0, RESULT)}, None, COST, "loss", at=400.0),
    "method_squares": lambda: plots.method_squares(
        [("full", {"base weights": 130.0, "gradients": 130.0, "optimizer state": 520.0}), ("QLoRA", SMALL)],
        "T", limit=("one GPU of 48 GB", 48.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_each_has_an_alternative_text_with_its_numbers(name):
    text = FIGURES[name]().alt_text
    assert len(text) > 60 and re.search(r"\d", text) and text.endswith(".")


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_cut_off(name):
    fig = FIGURES[name]()
    FigureCanvasAgg(fig).draw()
    width, height = fig.canvas.get_width_height()
    for ax in fig.axes:
        box = ax.get_tightbbox()
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, (name, box)


@pytest.mark.parametrize("name", FIGURES)
def test_renders_to_a_png_that_is_the_same_every_time(name):
    one, other = plots.png(FIGURES[name]()), plots.png(FIGURES[name]())
    assert one.startswith(b"\x89PNG") and one == other


def test_the_pixels_are_those_of_savefig():
    for name in ("levels", "results", "memory_timeline"):
        saved = io.BytesIO()
        FIGURES[name]().savefig(saved, format="png")
        one, other = (np.asarray(Image.open(file)) for file in (saved, io.BytesIO(plots.png(FIGURES[name]()))))
        assert np.array_equal(one, other), name


def test_a_page_is_drawn_where_it_was():
    fig = plots.page_timeline([("a", MOVES)], 3, 8, "uses")
    drawn = {}
    for collection, tier in zip(fig.axes[0].collections, plots.TIERS, strict=True):
        assert np.allclose(collection.get_facecolor()[0, :3], to_rgb(plots.TIERS[tier]))
        for path in collection.get_paths():
            (left, top), (right, bottom) = path.vertices.min(0), path.vertices.max(0)
            drawn[int((top + bottom) / 2), left] = (tier, right)
    assert drawn == {
        (0, 0): ("device", 8), (1, 0): ("device", 3), (1, 3): ("disk", 5), (1, 5): ("device", 8), (2, 4): ("host", 8),
    }  # fmt: skip
    assert "3 moves to device, 1 moves to host, 1 moves to disk" in fig.alt_text


def test_areas_are_true():
    fig = plots.method_squares([("full", {"base weights": 130.0, "optimizer state": 520.0}), ("QLoRA", SMALL)], "T")
    squares = [patch for patch in fig.axes[0].patches if isinstance(patch, Rectangle) and patch.get_fill()]
    assert all(patch.get_width() == patch.get_height() for patch in squares)
    areas = sorted(round(patch.get_width() * patch.get_height(), 6) for patch in squares)
    assert areas == [1.6, 1.6, 6.4, 34.0, 130.0, 520.0]


def test_the_colours_differ_in_grey():
    def lightness(colour):  # CIE L*
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        y = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
        return 116 * y ** (1 / 3) - 16

    tiers = list(plots.TIERS.values())
    for one, other in (
        *pairwise(tiers),
        (plots.BLUE, plots.ORANGE),
        (plots.BLUE, plots.SKY),
        (plots.INK, plots.BLUE),
    ):
        assert abs(lightness(one) - lightness(other)) > 15


def test_smoothing_starts_at_the_first_value_and_follows():
    assert plots.smooth([4.0]) == [4.0]
    assert plots.smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    assert plots.smooth([0.0, 1.0], weight=0.5) == pytest.approx([0.0, 2 / 3])


def test_show_gives_the_text_to_screen_readers(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **options: shown.append((data, options)))
    plots.show(FIGURES["loss_curve"]())
    (data, options), = shown  # fmt: skip
    assert data["image/png"].startswith(b"\x89PNG")
    assert options["metadata"]["image/png"]["alt"].startswith("Training loss") and "Training loss" in data["text/plain"]


def test_the_lowest_validation_loss_is_told():
    fig = plots.loss_curve([3.0, 2.0, 0.5, 0.25], validations=[(0, 3.1), (2, 0.9), (4, 1.2)])
    assert "its lowest, 0.900, after step 2" in fig.alt_text and "1.200 after step 4" in fig.alt_text
    (ax,) = fig.axes
    (ring,) = [line for line in ax.lines if "kept" in line.get_label()]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([2], [0.9])


def test_a_loss_that_broke_does_not_flatten_the_rest():
    fig = plots.rate_curve([1e-5, 1e-4, 1e-3, 1e-2, 1e-1], [3.0, 2.9, 1.5, 0.8, 40.0], 2.5e-3)
    assert fig.axes[0].get_ylim()[1] < 6 and "suggested rate is 2.5e-03" in fig.alt_text
