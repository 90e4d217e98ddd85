"""Every figure, from plain numbers, in one visual language (`style`).

Each function takes numbers, returns a matplotlib figure and sets an alternative text on it (`figure.alt_text`): what
there is to see. `png` renders a figure to bytes, `show` displays it in a notebook with that text.
"""

from qlora_lab.plots.explorers import codebook, fit, parameters_of_rank, scale_and_error
from qlora_lab.plots.lora import adapted_layer, loss_of_rank, parameters_against_rank, singular_energy, size_of_rank
from qlora_lab.plots.memory import memory_bars, memory_timeline, method_squares, predicted_and_measured
from qlora_lab.plots.paging import TIERS, memory_and_pages, page_timeline
from qlora_lab.plots.style import BLUE, GREEN, GREY, INK, ORANGE, PINK, SKY, figure, label, png, show
from qlora_lab.plots.training import loss_curve, match_bars, smooth

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PINK",
    "SKY",
    "TIERS",
    "adapted_layer",
    "codebook",
    "figure",
    "fit",
    "label",
    "loss_curve",
    "loss_of_rank",
    "match_bars",
    "memory_and_pages",
    "memory_bars",
    "memory_timeline",
    "method_squares",
    "page_timeline",
    "parameters_against_rank",
    "parameters_of_rank",
    "png",
    "predicted_and_measured",
    "scale_and_error",
    "show",
    "singular_energy",
    "size_of_rank",
    "smooth",
]
