"""The closed form for several GPUs: bytes of a training step on each, where every one keeps a part of the model.

With n of them, the decoder layers' weights, adapters, gradients and optimizer state are cut into n parts. Whole on
each are:

    root          embeddings, last norm and head: where they are frozen they are not cut, and count as base weights
    gathered      at the peak: the layer that computes now; the next one, which is on its way; the gradients of one
                  layer, before they are cut; and the root where it is trained, and so cut too
    activations, temporary    of the GPU's own rows: they are not shared, and n GPUs compute n times as many rows

The moments are the one-GPU budget's, and the peak is the largest of them: with few tokens the first layer's backward
pass, when nearly all gradients are there, and with many the loss or the last layer. Padding of parts (less than a row
for each) is left out. See `distributed` for what is cut, and how.
"""

from dataclasses import dataclass
from math import prod

from qlora_lab.machine.arguments import check_count
from qlora_lab.memory.closed_form import (
    adapter_elements,
    bytes_by_moment,
    predict_plan,
    quantized_bytes,
    shape_of,
    trained_elements,
)
from qlora_lab.memory.plan import TrainingPlan


@dataclass(frozen=True)
class ShardedBudget:
    """Bytes on each of `processes` GPUs, by category: the ledger's, and "gathered"."""

    plan: TrainingPlan
    processes: int
    by_category: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.by_category.values())


def predict_per_process(
    config,
    method: str = "full",
    processes: int = 1,
    rank: int = 16,
    batch_size: int = 1,
    sequence_length: int = 512,
    **plan,
) -> ShardedBudget:
    """The budget of a step on each of `processes` GPUs; the other arguments as `predict_training`'s.

    Args:
        batch_size: rows that each GPU computes.

    Raises:
        ValueError, TypeError: as `predict_training`, or fewer than one process.
    """
    check_count("processes", processes)
    plan = TrainingPlan(config, method, rank, batch_size, sequence_length, **plan)
    alone = predict_plan(plan)
    if processes == 1:
        return ShardedBudget(plan, 1, alone.by_category | {"gathered": 0})
    trained = plan.trained_dtype.itemsize * trained_elements(plan)
    of_layer = trained // shape_of(plan).layers
    layer, root = group_bytes(plan)
    kept = {
        name: -(-alone.by_category[name] // processes)
        for name in ("quantized base", "base weights", "adapters", "optimizer state")
    }
    if method != "full":
        kept["base weights"] = root + -(-(alone.by_category["base weights"] - root) // processes)
    found = []
    for moment, (gradients, activations, temporary) in bytes_by_moment(plan).items():
        gathered = 2 * layer + (root if method == "full" else 0)
        if moment in ("backward", "gradients"):
            gathered += of_layer
        if moment == "update":  # of one's own part
            gathered, temporary = 0, -(-temporary // processes)
        gradients = trained if moment == "gradients" else gradients
        by_category = {"gradients": -(-gradients // processes), "gathered": gathered}
        found.append(by_category | {"activations": activations, "temporary": temporary})
    return ShardedBudget(plan, processes, kept | max(found, key=lambda by_category: sum(by_category.values())))


def group_bytes(plan: TrainingPlan) -> tuple[int, int]:
    """Bytes of one decoder layer's parameters (codes, scales, norms, adapters), and of all that is in none."""
    shape, size = shape_of(plan), plan.dtype.itemsize
    linears = [prod(pair) for pair in shape.linears.values()]
    layer = sum(quantized_bytes(plan, n) if plan.method == "qlora" else size * n for n in linears)
    layer += size * 2 * shape.hidden + plan.adapter_dtype.itemsize * adapter_elements(plan) // shape.layers
    root = size * (shape.parameters - shape.layers * (sum(linears) + 2 * shape.hidden))
    return layer, root


def step_traffic(plan: TrainingPlan) -> dict[str, int]:
    """Bytes of a step's collectives: {"all-gather", "reduce-scatter"}; (n - 1) / n of them reach each of n GPUs.

    Decoder layers are gathered twice (three times with reentrant checkpointing, which computes each once more), the
    root once where it is trained, and else never; gradients are scattered once.
    """
    layer, root = group_bytes(plan)
    times = 3 if plan.checkpointing == "reentrant" else 2
    return {
        "all-gather": times * shape_of(plan).layers * layer + (root if plan.method == "full" else 0),
        "reduce-scatter": plan.trained_dtype.itemsize * trained_elements(plan),
    }
