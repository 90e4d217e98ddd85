"""Checks for the workbook's exercises: `check("id", function)` says not attempted, right, or what looks wrong.

One or two modules a notebook hold its exercises; `exercise` judges, `differences` describes.
"""

from collections.abc import Callable

from qlora_lab.checks import (
    adapter_counts,
    costs,
    counterexamples,
    double_quantization,
    four_bit_types,
    layer_memory,
    node_bytes,
    paged_optimizers,
    quantized_bytes,
    right_calls,
    training_step,
)
from qlora_lab.checks import (
    notebook_00 as start_here,
)
from qlora_lab.checks import (
    notebook_01 as four_bits,
)
from qlora_lab.checks import (
    notebook_02 as scale_factors,
)
from qlora_lab.checks import (
    notebook_03 as low_rank,
)
from qlora_lab.checks import (
    notebook_04 as adamw,
)
from qlora_lab.checks import (
    notebook_05 as qlora_layer,
)
from qlora_lab.checks import (
    notebook_06 as fine_tuning,
)
from qlora_lab.checks import (
    notebook_07 as seeds,
)
from qlora_lab.checks import (
    notebook_08 as beyond_one_gpu,
)
from qlora_lab.checks.exercise import Exercise, Misconception, Verdict, judge

MODULES = (  # in the order of the notebooks
    start_here,
    four_bits,
    four_bit_types,
    counterexamples,
    scale_factors,
    double_quantization,
    quantized_bytes,
    low_rank,
    adapter_counts,
    adamw,
    paged_optimizers,
    qlora_layer,
    layer_memory,
    fine_tuning,
    training_step,
    right_calls,
    seeds,
    costs,
    beyond_one_gpu,
    node_bytes,
)
EXERCISES: dict[str, Exercise] = {exercise.id: exercise for module in MODULES for exercise in module.EXERCISES}


def check(exercise: str, function: Callable) -> None:
    """Judge an answer and print the verdict.

    Args:
        exercise: its id, as in the notebook.
        function: the answer.

    Raises:
        ValueError: no exercise of that id.
    """
    print(verdict(exercise, function))


def verdict(exercise: str, function: Callable, seed: int = 0) -> Verdict:
    """As `check`, returned instead of printed; another seed gives other inputs."""
    if exercise not in EXERCISES:
        raise ValueError(f"unknown exercise {exercise!r}; there are {', '.join(EXERCISES)}")
    return judge(EXERCISES[exercise], function, seed)


__all__ = ["EXERCISES", "Exercise", "Misconception", "Verdict", "check", "judge", "verdict"]
