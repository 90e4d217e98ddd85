"""Notebook 06: the training loop.

Read `loop` (`finetune`), `settings` (what decides its result, and the learning rate of a step) and `optimizer`; then
`validation`, and `learning_rate` with its test. `run_plan` says what a run was, for whoever opens it afterwards.
`run_folder` keeps a run on disk, so that it can be killed and resumed, and can be skipped.
"""

from qlora_lab.training.learning_rate import default_rate
from qlora_lab.training.loop import FinetuneResult, NonFiniteLoss, finetune
from qlora_lab.training.rate_test import RateTest, find_rate
from qlora_lab.training.run_folder.metrics import StepRecord
from qlora_lab.training.run_plan import RunPlan, load_run, plan_of, read_plan
from qlora_lab.training.settings import Settings
from qlora_lab.training.tensorboard_events import EventWriter
from qlora_lab.training.validation import ValidationRecord

__all__ = [
    "EventWriter",
    "FinetuneResult",
    "NonFiniteLoss",
    "RateTest",
    "RunPlan",
    "Settings",
    "StepRecord",
    "ValidationRecord",
    "default_rate",
    "find_rate",
    "finetune",
    "load_run",
    "plan_of",
    "read_plan",
]
