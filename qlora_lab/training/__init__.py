"""Notebook 06: the training loop.

Read `loop` (`finetune`), `settings` (what decides its result, and the learning rate of a step) and `optimizer`.
`run_folder` keeps a run on disk, so that it can be killed and resumed, and can be skipped.
"""

from qlora_lab.training.loop import FinetuneResult, NonFiniteLoss, finetune
from qlora_lab.training.run_folder.metrics import StepRecord
from qlora_lab.training.settings import Settings

__all__ = ["FinetuneResult", "NonFiniteLoss", "Settings", "StepRecord", "finetune"]
