"""Notebooks 05 and 08: where every byte of a training step goes, measured and predicted.

`ledger` measures a real step, and `records` is what it measured. `plan` says what is to be trained; `closed_form`
predicts its bytes from a formula, `per_gpu` those of each of several GPUs, `simulation` by running the step on tensors
that have no memory. `fit` compares a prediction with what is free, and knows what to change.
"""

from qlora_lab.memory.closed_form import ModelShape, predict_training
from qlora_lab.memory.fit import DoesNotFit, StepMemory, check_fits, fit_to_gpu, predict_step
from qlora_lab.memory.ledger import MemoryTrace
from qlora_lab.memory.per_gpu import group_bytes, predict_per_process, step_traffic
from qlora_lab.memory.plan import TrainingPlan, find_config
from qlora_lab.memory.simulation import simulate_training

__all__ = [
    "DoesNotFit",
    "MemoryTrace",
    "ModelShape",
    "StepMemory",
    "TrainingPlan",
    "check_fits",
    "find_config",
    "fit_to_gpu",
    "group_bytes",
    "predict_per_process",
    "predict_step",
    "predict_training",
    "simulate_training",
    "step_traffic",
]
