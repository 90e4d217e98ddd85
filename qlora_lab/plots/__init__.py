"""Every figure, from plain numbers, in one visual language (`style`).

Each function takes numbers, returns a matplotlib figure and sets an alternative text on it (`figure.alt_text`): what
there is to see. `png` renders a figure to bytes, `show` displays it in a notebook with that text.
"""

from qlora_lab.plots.codebooks import (
    absmax_and_normalized,
    codes_of_a_number,
    decision_regions,
    grids,
    levels,
    quantiles,
)
from qlora_lab.plots.data_flow import layer_passes
from qlora_lab.plots.errors_and_harm import error_by_rounds, formats_by_error, harm_by_error, row_in_measures
from qlora_lab.plots.formats import error_by_exponent, errors_moved, input_energy, power_of_two_scales
from qlora_lab.plots.interactive import codebook, memory_against_limit, parameters_of_rank, scale_and_error
from qlora_lab.plots.learning_curves import kept_by_merging, loss_curve, match_bars, rate_curve, smooth, trend
from qlora_lab.plots.low_rank import (
    adapted_layer,
    loss_of_rank,
    parameters_against_rank,
    singular_energy,
    size_of_rank,
    update_and_directions,
)
from qlora_lab.plots.memory_categories import (
    memory_bars,
    memory_timeline,
    method_squares,
    predicted_and_measured,
)
from qlora_lab.plots.methods_compared import (
    against_rank,
    decoding_share,
    losses_by_rate,
    method_table,
    quality_and_memory,
    results,
    shares_by_row,
)
from qlora_lab.plots.page_moves import memory_and_pages, memory_under_limit, page_timeline
from qlora_lab.plots.quantization_error import (
    code_histograms,
    error_by_bits,
    error_by_block_size,
    error_by_weight,
    layer_errors,
    outlier_errors,
    signed_scales,
    weights_and_outputs,
)
from qlora_lab.plots.scales import (
    bits_and_error,
    byte_map,
    decoded_scales,
    error_against_scale,
    scale_map,
    throughput,
)
from qlora_lab.plots.sharding import per_gpu, sharding_timeline
from qlora_lab.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    SKY,
    TIERS,
    displayed_width,
    figure,
    label,
    png,
    show,
)

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PINK",
    "SKY",
    "TIERS",
    "absmax_and_normalized",
    "adapted_layer",
    "against_rank",
    "bits_and_error",
    "byte_map",
    "code_histograms",
    "codebook",
    "codes_of_a_number",
    "decision_regions",
    "decoded_scales",
    "decoding_share",
    "displayed_width",
    "error_against_scale",
    "error_by_bits",
    "error_by_block_size",
    "error_by_exponent",
    "error_by_rounds",
    "error_by_weight",
    "errors_moved",
    "figure",
    "formats_by_error",
    "grids",
    "harm_by_error",
    "input_energy",
    "kept_by_merging",
    "label",
    "layer_errors",
    "layer_passes",
    "levels",
    "loss_curve",
    "loss_of_rank",
    "losses_by_rate",
    "match_bars",
    "memory_against_limit",
    "memory_and_pages",
    "memory_bars",
    "memory_timeline",
    "memory_under_limit",
    "method_squares",
    "method_table",
    "outlier_errors",
    "page_timeline",
    "parameters_against_rank",
    "parameters_of_rank",
    "per_gpu",
    "png",
    "power_of_two_scales",
    "predicted_and_measured",
    "quality_and_memory",
    "quantiles",
    "rate_curve",
    "results",
    "row_in_measures",
    "scale_and_error",
    "scale_map",
    "sharding_timeline",
    "shares_by_row",
    "show",
    "signed_scales",
    "singular_energy",
    "size_of_rank",
    "smooth",
    "throughput",
    "trend",
    "update_and_directions",
    "weights_and_outputs",
]
