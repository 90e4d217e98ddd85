"""Checks for the workbook's exercises: `check("id", function)` says not attempted, right, or what looks wrong.

One or two modules a notebook hold its exercises; `exercise` judges, `differences` describes.
"""

from collections.abc import Callable

from qlora_lab.checks import (
    adamw,
    adapter_counts,
    beyond_one_gpu,
    costs,
    counterexamples,
    double_quantization,
    fine_tuning,
    four_bit_types,
    four_bits,
    layer_memory,
    low_rank,
    node_bytes,
    paged_optimizers,
    qlora_layer,
    quantized_bytes,
    right_calls,
    scale_factors,
    seeds,
    start_here,
    training_step,
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
