"""Notebook 09: the model taken home, where it is wanted: as an adapter, merged, or in GGUF.

Read `home` (what is checked, and the four forms), then `merged` (into which base) and `gguf_files`, with
`architectures` (names, and rows that change places) and `gguf_vocabulary`. `trained_run` reads what a run trained,
`chat_format` takes a chat template apart, `ollama` and `model_card` write what stands beside the weights.
"""

from qlora_lab.export.home import TARGETS, Exported, export
from qlora_lab.export.trained_run import TrainedRun, read_run

__all__ = ["TARGETS", "Exported", "TrainedRun", "export", "read_run"]
