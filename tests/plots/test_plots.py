"""Figures: each says in words what it shows, nothing is cut off, and colours differ in grey too."""

import functools
import io
import math
import re
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from qlora_lab import plots
from qlora_lab.memory.records import CATEGORIES
from qlora_lab.plots import style
from qlora_lab.plots.style import CARD

MOVES = [(0, 0, "device"), (0, 1, "device"), (3, 1, "disk"), (4, 2, "host"), (5, 1, "device")]
SMALL = {"quantized base": 33.0, "base weights": 1.0, "adapters": 1.6, "gradients": 1.6, "optimizer state": 6.4}
SHARES = {name: [0.5, 0.2, 0.3] for name in ("nf4", "fp4", "int4", "int4_affine")}
HALVES = [i / 500 - 1 for i in range(1001)]
COST = "a: 250 MB; loss 0.250 (0.210 to 0.290)"
RESULT = (0.25, 0.21, 0.29, [0.24, 0.25, 0.26])
LONG = "adapter beside a base in 4 bits, after a hundred steps"


# by name; made where they are asked for, for a few milliseconds each add up
FIGURES = {
    "power_of_two_scales": lambda: plots.power_of_two_scales(
        [4, 5, 6, 7, 8], [0.3, 0.3, 0.2, 0.2], {LONG: [0.11, 0.12, 0.13, 0.2], "b": [0.1, 0.1, 0.1, 0.1]}, 6, "T"
    ),
    "input_energy": lambda: plots.input_energy(
        {LONG: [0.7, 0.9, 1.0], "b": [0.2, 0.4, 1.0], "c": [0.4, 0.5, 1.0], "d": [0.3, 1.0]}, "T"
    ),
    "errors_moved": lambda: plots.errors_moved(
        [("q_proj", (0.09, 0.15), (0.12, 0.03)), ("k_proj", (0.09, 0.1), (0.121, 0.029)),
         ("gate_proj", (0.095, 0.09), (0.14, 0.06))], ("nearest level", "GPTQ"), "T",
    ),
    "error_by_exponent": lambda: plots.error_by_exponent(
        [0, 0.5, 1], {LONG: ([0.1, 0.05, 0.2], 0.5), "b": ([0.1, 0.2, 0.3], 0.0), "c": ([0.1, 0.2, 0.1], 1.0)}, "T"
    ),
    "loss_curve": lambda: plots.loss_curve([3.0, 2.0, 0.5, 0.25], 10),
    "loss_curve with validation": lambda: plots.loss_curve(
        [3.0, 2.0, 0.5, 0.25], validations=[(0, 3.1), (2, 0.9), (4, 1.2)]
    ),
    "rate_curve": lambda: plots.rate_curve([1e-5, 1e-4, 1e-3, 1e-2, 1e-1], [3.0, 2.9, 1.5, 0.8, 40.0], 2.5e-3, 3e-3),
    "kept_by_merging": lambda: plots.kept_by_merging([(0.01, 0.02), (0.1, 0.6)], [(0.03, 0.2), (0.02, 0.1)]),
    "shares_by_row": lambda: plots.shares_by_row(
        {"merged, Q4_1": {LONG: (0.5, (0.4, 0.6)), "b": (1.0, (0.9, 1.0))}, LONG: {"b": (0.0, (0.0, 0.1))}},
        "Ways",
        "percent right",
    ),
    "formats_by_error": lambda: plots.formats_by_error(
        {"nf4": (4.5, 0.09), LONG[:30]: (4.25, 0.08), "mxfp4": (4.25, 0.11), "q4_1": (5.0, 0.08)}, "nf4", "T"
    ),
    "harm_by_error": lambda: plots.harm_by_error(
        {
            "weights": {"nf4": (0.09, 0.2), "mxfp4 + GPTQ": (0.15, 0.1), "q4_0": (0.095, 0.21), "fp4": (0.12, 0.4)},
            "outputs": {"nf4": (0.08, 0.2), "mxfp4 + GPTQ": (0.06, 0.1), "q4_0": (0.085, 0.21), "fp4": (0.12, 0.4)},
        },
        {"nf4": "rounding alone", "mxfp4 + GPTQ": "GPTQ", "q4_0": "rounding alone", "fp4": "rounding alone"},
        "nats above float32", "T", ["nf4", "mxfp4 + GPTQ", "q4_0", "fp4"],
    ),
    "error_by_rounds": lambda: plots.error_by_rounds(
        {"LoftQ, rank 16": [0.08, 0.07], "LoftQ, rank 64": [0.06, 0.05]},
        {"rounding alone": 0.09, "PiSSA, rank 16": 0.075, "PiSSA, rank 64": 0.05, LONG[:30]: 0.04}, "T", "rounds",
    ),
    "row_in_measures": lambda: plots.row_in_measures(
        {LONG: {"nf4": 0.1, "b": 0.12}, "loss": {"nf4": 0.2}, "c": {"nf4": 0.3, "b": 0.1}}, "b", "nf4", "T"
    ),
    "match_bars": lambda: plots.match_bars([("base model", 0.0, (0.0, 0.11)), (LONG, 1.0, (0.9, 1.0))]),
    "memory_bars": lambda: plots.memory_bars([("full", {"a": 538.0, "b": 1076.0}), (LONG, {"a": 170.0})], "T"),
    "predicted_and_measured": lambda: plots.predicted_and_measured(
        [(LONG, [(0, 8.0, 8.0), (100, 0.0, 0.5)]), ("b", [(0, 8.0, 8.0)])], "T", "percent", "MB"
    ),
    "page_timeline": lambda: plots.page_timeline([("a", MOVES), (LONG[:30], MOVES)], 3, 8, "uses", [4]),
    "memory_and_pages": lambda: plots.memory_and_pages(
        [{"weights": 5.0, "pages": 2.0 * i} for i in range(8)], MOVES, 3, 20.0, "T", [(0, "one"), (4, "two")]
    ),
    "memory_and_pages beside another run": lambda: plots.memory_and_pages(
        [{"weights": 5.0, "optimizer state": 2.0 * i} for i in range(8)], MOVES, 3, 20.0, "T", [(0, "one")],
        ("without paging", [(0, 5.0), (3.5, 31.0), (8, 9.0)]),
    ),
    "memory_under_limit": lambda: plots.memory_under_limit(
        [{"weights": 5.0, "activations": 2.0 * i} for i in range(8)], 12.0, "T", [(0, "one"), (4, "two")]
    ),
    "memory_timeline": lambda: plots.memory_timeline(
        [{"base weights": 5.0, "gradients": 2.0 * i} for i in range(8)], [(0, "quantize"), (4, "-forward")], "T"
    ),
    "codebook": lambda: plots.codebook([-1.0, -0.2, 0.1, 0.4], [-1.0, 0.0, 1.0], [0.25, 0.75, 0.0], 0.09, "T"),
    "codes_of_a_number": lambda: plots.codes_of_a_number(0.65, [(0.0, 1.95), (0.0, 1.0), (-1.0, 1.0)]),
    "levels": lambda: plots.levels([("nf4", [-1.0, -0.3, 0.0, 0.2, 1.0]), ("mine", [-1.0, 0.0, 0.5])], "T"),
    "grids": lambda: plots.grids(HALVES, [("INT4, one scale: 69 % are 0", [-0.9, 0.0, 0.9]), ("b", [0.1, 0.2])], "T"),
    "decision_regions": lambda: plots.decision_regions([("nf4", [-1.0, 0.0, 1.0]), ("b", HALVES[::99])], 2.6, "T"),
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
    "signed_scales": lambda: plots.signed_scales(
        [16, 64, 256], [("INT4, absmax", [0.08, 0.1, 0.12]), ("INT4, signed absmax", [0.07, 0.09, 0.11])], "T"
    ),
    "weights_and_outputs": lambda: plots.weights_and_outputs(
        [("INT4", [0.11, 0.13], [0.05, 0.16]), ("NF4", [0.09, 0.1], [0.04, 0.12])], "T"
    ),
    "layer_errors": lambda: plots.layer_errors([[0.1, 0.09], [0.11, 0.12]], ["q", "down"], "T"),
    "error_against_scale": lambda: plots.error_against_scale(
        [("a", [(0.5, 0.1, 0.3), (1.0, 0.2, 0.0)]), (LONG[:30], [(0.5, 0.1, 0.3), (1.0, 0.5, 0.0)])], "T"
    ),
    "bits_and_error": lambda: plots.bits_and_error(
        [("a", [(32, 5.0, 0.087), (64, 4.5, 0.092)]), (LONG, [(64, 4.1, 0.092)])], "T"
    ),
    "byte_map": lambda: plots.byte_map(
        [
            ("codes", 442_368, 1, list("c0b26899"), 0, "level[12] = 0.4407"),
            ("scales", 13_824, 2, ["106", "44"], 1, "map[44] = -0.0480"),
            ("offset", 4, 8, ["0.5252"], 0, "of the whole tensor"),
        ],
        "(-0.0480 × 0.4357 + 0.5252) × 0.4407 = 0.2223   (the weight was 0.2192)",
        "T",
    ),
    "scale_map": lambda: plots.scale_map([-1.0, -0.1, 0.0, 0.01, 0.1, 1.0], [-0.2, 0.1, 1.0], "T"),
    "decoded_scales": lambda: plots.decoded_scales([0.002, 2.0], [-0.01, 2.1], [0.001, -0.002], [-0.004, 0.01], "T"),
    "throughput": lambda: plots.throughput([(LONG[:30], 0.002), ("b", 2.5)], 3.0, "T"),
    "scale_and_error": lambda: plots.scale_and_error([0.3, -0.7], [0.25, -0.75], [(0.1, 0.2), (0.25, 0.05)], 0.25),
    "parameters_of_rank": lambda: plots.parameters_of_rank([("q", 10**6, 10**4), (LONG[:25], 10**7, 10**5)], "T"),
    "parameters_of_rank above the weight": lambda: plots.parameters_of_rank(
        [("q", 10**6, 0), ("k", 10**5, 10**5), ("v", 10**5, 212_288)], "T"
    ),
    "update_and_directions": lambda: plots.update_and_directions(
        [1 / n for n in range(1, 101)], [("all", [[0.5, -0.5], [1.0, -1.0]]), ("1 direction", [[0.0, 1.0]] * 2)], "T"
    ),
    "adapted_layer": lambda: plots.adapted_layer(576, 1536, 16, 32),
    "adapted_square": lambda: plots.adapted_layer(1024, 1024, 8, 8),
    "adapted_wide": lambda: plots.adapted_layer(1536, 576, 64, 16),
    "singular_energy": lambda: plots.singular_energy(
        [("a", [0.5, 0.8] + [1.0] * 8), (LONG[:24], [0.1 * i for i in range(1, 11)])], "T"
    ),
    "loss_of_rank": lambda: plots.loss_of_rank(
        [("a", [(1, 2.0), (16, 1.0)], 0.9), (LONG[:20], [(1, 2.5), (16, 2.2)], 2.1)], 3.0, "T"
    ),
    "loss_of_rank cut and trained": lambda: plots.loss_of_rank(
        [("cut", [(1, 2.0), (16, 1.0)], 0.9), ("trained", [(1, 1.2), (16, 1.0)], None)], 3.0, "T", "rank"
    ),
    "parameters_against_rank": lambda: plots.parameters_against_rank(576, 1536, [1, 2, 4, 8, 64, 256, 1024]),
    "size_of_rank": lambda: plots.size_of_rank(
        [("one", [("a", [(4, 1.0), (64, 0.1)], -0.8)]), ("other", [("b", [(4, 2.0), (64, 2.0)], -0.01)])], "size"
    ),
    "memory_against_limit": lambda: plots.memory_against_limit(
        {"quantized base": 33.4, "adapters": 1.6}, 24, "35.0 GB: it does not fit"
    ),
    "memory_against_limit, reserve": lambda: plots.memory_against_limit(
        {"quantized base": 22.0, "adapters": 1.6}, 24, "23.6 GB: it does not fit", 1.5
    ),
    "per_gpu": lambda: plots.per_gpu(
        [("full", [(1, 784.5), (2, 398.0), (8, 104.0)]), ("QLoRA", [(1, 41.4), (2, 23.0), (8, 7.6)])],
        [("24 GB", 25.8), ("80 GB", 85.9)], "T",
    ),
    "sharding_timeline": lambda: plots.sharding_timeline(
        [(0, "gather", 0.0, 0.1), (0, "arrived", 0.1, 0.2), (0, "whole", 0.2, 0.6), (0, "reduce-scatter", 0.6, 0.7),
         (1, "gather", 0.3, 0.4), (1, "arrived", 0.4, 0.6), (1, "whole", 0.7, 1.0)], 2, (0.2, 0.7), ("T", LONG),
    ),
    "results": lambda: plots.results(
        {"loss": {"a": (0.3, 0.1, 0.5, [0.2, 0.3, 0.4]), LONG: RESULT}, "test": {"a": RESULT, LONG: RESULT}}, "T"
    ),
    "against_rank": lambda: plots.against_rank({1: RESULT, 16: RESULT}, {1: 4.9, 16: 78.2, 64: 313.0}, "T", "loss"),
    "method_table": lambda: plots.method_table(
        ["MB", LONG, "answered, of 100"],
        {
            "full": [("2,152", "", ""), ("0.061", "0.048–0.074", ""), ("54", "51–57", "")],
            "LoRA": [("616", "", "better"), ("0.075", "0.054–0.095", "no clear difference"), ("50", "27–72", "worse")],
            "LoRA − full": [("−71 %", "", "better"), ("0.01", "−0.02 to 0.05", "no clear difference"), ("5", "", "")],
        },
        LONG,
        f"LoRA had one rate. {LONG}.",
    ),
    "losses_by_rate": lambda: plots.losses_by_rate(
        {"full": {5e-5: 0.1, 1e-4: 0.08, 2e-4: 0.09, 4e-4: math.inf}, LONG: {4e-3: 0.08}}, {"full": 1e-4}, "T"
    ),
    "decoding_share": lambda: plots.decoding_share(
        [(8, 0.4), (2048, 0.02)], [(8, 0.41), (100, 0.2), (2048, 0.01)], "T"
    ),
    "quality_and_memory": lambda: plots.quality_and_memory(
        {"a": (250.0, RESULT), LONG: (1e3, RESULT)}, "a", COST, "loss"
    ),
    "no_quality": lambda: plots.quality_and_memory({"a": (250.0, RESULT)}, None, COST, "loss", at=400.0),
    "layer_passes": plots.layer_passes,
    "method_squares": lambda: plots.method_squares(
        [("full", {"base weights": 130.0, "gradients": 130.0, "optimizer state": 520.0}), ("QLoRA", SMALL)],
        "T", limit=("one GPU of 48 GB", 48.0),
    ),
}  # fmt: skip


@functools.cache
def drawn(name):
    fig = FIGURES[name]()
    FigureCanvasAgg(fig).draw()
    return fig


@pytest.mark.parametrize("name", FIGURES)
def test_each_has_an_alternative_text_with_its_numbers(name):
    text = drawn(name).alt_text
    assert len(text) > 60 and re.search(r"\d", text) and text.endswith(".")


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_cut_off(name):
    fig = drawn(name)
    width, height = fig.canvas.get_width_height()
    for part in (*fig.axes, *fig.texts, *fig.legends):
        box = part.get_tightbbox()
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, (name, part, box)


def luminance(colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one, other) -> float:
    """As WCAG 2 defines it, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def on_card(colour) -> tuple:
    """What a colour that lets something through looks like on the card."""
    *rgb, alpha = to_rgba(colour)
    return tuple(alpha * np.array(rgb) + (1 - alpha) * np.array(to_rgb(CARD)))


def areas(ax):
    """(colour, outline or None, contains a point of the picture) of everything filled."""
    for patch in ax.patches:
        if patch.get_fill() and patch.get_facecolor()[3]:
            outline = patch.get_edgecolor() if patch.get_linewidth() and patch.get_edgecolor()[3] else None
            yield (
                patch.get_facecolor(),
                outline,
                lambda at, patch=patch: ax.bbox.contains(*at) and patch.contains_point(at),
            )
    for collection in ax.collections:
        if isinstance(collection, PolyCollection):
            for path in collection.get_paths():
                seen = path.transformed(collection.get_transform())
                yield collection.get_facecolor()[0], None, lambda at, seen=seen: seen.contains_point(at)


def texts(fig):
    legends = [legend for ax in fig.axes if (legend := ax.get_legend())] + fig.legends
    for parent in (fig, *fig.axes, *legends):
        yield from (text for text in parent.findobj(Text) if text.get_text().strip() and text.get_visible())


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_and_line_stands_out_from_the_card(name):
    """4.5 to 1 for texts, also where they lie on an area; 3 to 1 for lines and marks."""
    fig = drawn(name)
    grounds = [area for ax in fig.axes for area in areas(ax)]
    for text in texts(fig):
        assert contrast(text.get_color(), CARD) >= 4.5, text
        if not text.get_path_effects():  # a text with a halo brings the card along
            box = text.get_window_extent()
            middle = (box.y0 + box.y1) / 2
            for at in ((box.x0, middle), ((box.x0 + box.x1) / 2, middle), (box.x1, middle)):
                for colour, _, contains in grounds:
                    assert not contains(at) or contrast(text.get_color(), on_card(colour)) >= 4.5, (text, colour)
    for ax in fig.axes:
        for line in ax.lines:
            marked = line.get_marker() not in ("", "None", None)
            colour = line.get_markeredgecolor() if marked and line.get_linestyle() == "None" else line.get_color()
            assert contrast(on_card(colour), CARD) >= 3, line
        for collection in ax.collections:
            if isinstance(collection, LineCollection):
                assert all(contrast(on_card(colour), CARD) >= 3 for colour in collection.get_colors())
    for colour, outline, _ in grounds:
        assert max(contrast(on_card(colour), CARD), contrast(on_card(outline or CARD), CARD)) >= 1.5


@pytest.mark.parametrize("name", FIGURES)
def test_type_can_be_read_on_a_phone(name):
    """On 350 of a phone's 390 pixels no letter is smaller than nine, the size of a caption."""
    fig = drawn(name)
    points_to_pixels = 350 / (72 * fig.get_figwidth())
    assert min(text.get_fontsize() for text in texts(fig)) * points_to_pixels >= 9


def test_a_figure_is_a_card_with_round_corners():
    picture = Image.open(io.BytesIO(plots.png(FIGURES["loss_curve"]()))).convert("RGBA")
    width, height = picture.size
    corners = [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)]
    assert all(picture.getpixel(at)[3] == 0 for at in corners)
    inside = [(width // 2, 2), (2, height // 2), (width - 3, height // 2), (width // 2, height - 3)]
    assert {picture.getpixel(at) for at in inside} == {(*(round(255 * c) for c in to_rgb(CARD)), 255)}


def test_one_colour_for_each_category():
    """Under all its names; and those that are stacked on each other differ in grey."""
    assert style.colour_of("optimizer") == style.colour_of("moments") == style.colour_of("optimizer state")
    assert style.colour_of("weights") == style.colour_of("base weights") != style.colour_of("4-bit base")
    assert style.colour_of("first moments") != style.colour_of("second moments")
    ledger = [name for name in CATEGORIES if name != "other"]
    assert set(ledger) <= set(style.CATEGORY_COLOURS)
    assert len(set(style.CATEGORY_COLOURS.values())) == len(style.CATEGORY_COLOURS)
    bars = plots.memory_bars([("a", dict.fromkeys(ledger, 1.0))], "T")
    areas_ = plots.memory_timeline([dict.fromkeys(ledger, 1.0)] * 2, [(0, "a")], "T")
    in_bars = [to_hex(container.patches[0].get_facecolor()) for container in bars.axes[0].containers]
    in_areas = [to_hex(collection.get_facecolor()[0]) for collection in areas_.axes[0].collections]
    assert in_bars == in_areas == [style.colour_of(name) for name in ledger]


@pytest.mark.parametrize("name", FIGURES)
def test_renders_to_a_png_that_is_the_same_every_time(name):
    one, other = plots.png(FIGURES[name]()), plots.png(FIGURES[name]())
    assert one.startswith(b"\x89PNG") and one == other


def test_the_palette_takes_nothing_from_what_savefig_draws():
    for name in ("levels", "results", "memory_timeline", "layer_errors"):
        saved = io.BytesIO()
        FIGURES[name]().savefig(saved, format="png")
        drawn_png = plots.png(FIGURES[name]())
        one, other = (
            np.asarray(Image.open(file).convert("RGBA")).astype(int) for file in (saved, io.BytesIO(drawn_png))
        )
        off = np.abs(one - other).max(-1)
        assert one.shape == other.shape and off.max() <= 40 and (off > 16).mean() < 0.005, name
        assert len(drawn_png) < 0.6 * len(saved.getvalue()), name


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


def test_a_curve_over_the_limit_is_inside_the_figure_and_in_its_text():
    fig = FIGURES["memory_and_pages beside another run"]()
    assert fig.axes[0].get_ylim()[1] > 31 and "The line without paging reaches 31 MB." in fig.alt_text
    assert "Highest in each step: one 11 MB, two 19 MB." in FIGURES["memory_under_limit"]().alt_text


def test_no_two_categories_of_bars_have_one_colour():
    parts = {name: 1.0 for name in ("weights", "gradients", "first moments", "second moments", "temporary")}
    bars = plots.memory_bars([("a", parts)], "T").axes[0].patches
    assert len({to_rgb(bar.get_facecolor()) for bar in bars}) == len(parts)


def test_areas_are_true():
    fig = plots.method_squares([("full", {"base weights": 130.0, "optimizer state": 520.0}), ("QLoRA", SMALL)], "T")
    drawn = [patch for patch in fig.axes[0].patches if isinstance(patch, Rectangle) and patch.get_fill()]
    areas = sorted(round(p.get_width() * p.get_height(), 6) for p in drawn if p.get_width() == p.get_height())
    assert areas == [1.6, 1.6, 6.4, 34.0, 130.0, 520.0]
    (others,) = (p for p in drawn if p.get_width() != p.get_height())  # of the 4-bit base's square
    assert round(others.get_width() * others.get_height(), 6) == SMALL["base weights"]


def test_the_colours_differ_in_grey():
    def lightness(colour):  # CIE L*
        return 116 * luminance(colour) ** (1 / 3) - 16

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


def test_the_line_through_losses_has_as_many_above_as_below():
    """Where they fall evenly on the axis they are drawn on; a mean of past ones lies above them all."""
    losses = [3 * 0.9**step for step in range(40)]
    assert plots.trend(losses)[:-4] == pytest.approx(losses[:-4])
    assert plots.trend([2.0]) == pytest.approx([2.0]) and plots.trend([]) == []


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
