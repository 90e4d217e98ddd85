"""Interactive explorers for the notebooks: move a control or ask a question, and the picture or the answer changes.

Each `explore_...` function makes one; `show` displays it, with a static picture of its first state beside it in the
output, which is what a page that runs no widgets (a repository's preview, a printed book) shows. `explorers` are
controls above a figure, `recorded` has those over records, `answers` is a box to ask a model in.
"""

from qlora_lab.widgets.answer_box import AnswerBox, explore_answers
from qlora_lab.widgets.display import show
from qlora_lab.widgets.explorers import (
    Explorer,
    explore_codebook,
    explore_fit,
    explore_gpus,
    explore_pages,
    explore_rank,
    explore_scale,
    least_recently_used,
)
from qlora_lab.widgets.recorded import explore_costs, explore_formats

__all__ = [
    "AnswerBox",
    "Explorer",
    "explore_answers",
    "explore_codebook",
    "explore_costs",
    "explore_fit",
    "explore_formats",
    "explore_gpus",
    "explore_pages",
    "explore_rank",
    "explore_scale",
    "least_recently_used",
    "show",
]
