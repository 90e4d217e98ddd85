"""Notebooks 06, 07 and 10: how good a model is, and how sure one can be of it.

`exact_match` generates answers and counts the right ones, `intervals` says how far a figure can be trusted,
`recorded_runs` reads the runs that compare methods, `formats_record` what formats do before a run, `conclusions` says
what follows from them.
"""

from qlora_lab.evaluation.exact_match import Answer, Evaluation, evaluate, generate, loss_per_token
from qlora_lab.evaluation.formats_record import HARM, UNROUNDED, FormatsRecord
from qlora_lab.evaluation.intervals import Interval, mean_interval, paired_difference, student_quantile
from qlora_lab.evaluation.recorded_runs import BEFORE, LOSS, MEASURES, PROSE, SCALINGS, CostRecord, fit_line

__all__ = [
    "BEFORE",
    "HARM",
    "LOSS",
    "MEASURES",
    "PROSE",
    "SCALINGS",
    "UNROUNDED",
    "Answer",
    "CostRecord",
    "Evaluation",
    "FormatsRecord",
    "Interval",
    "evaluate",
    "fit_line",
    "generate",
    "loss_per_token",
    "mean_interval",
    "paired_difference",
    "student_quantile",
]
