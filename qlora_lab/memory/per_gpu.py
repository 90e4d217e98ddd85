"""The closed form for several GPUs: bytes of a training step on each, where every one keeps a part of the model.

With n of them, the blocks' weights, adapters, gradients and optimizer state are cut into n parts. Whole on each are:

    root          embeddings, last norm and head: where they are frozen they are not cut, and count as base weights
    gathered      at the peak: the block that computes now; the next one, which is on its way; the gradients of one
                  block, before they are cut; and the root where it is trained, and so cut too
    activations, temporary    of the GPU's own rows: they are not shared, and n GPUs compute n times as many rows

The moment is the first block's backward pass, when nearly all gradients are there: what the one-GPU budget calls
"gradients". Padding of parts (less than a row for each) is left out. See `distributed` for what is cut, and how.
"""

from dataclasses import dataclass
from math import prod

from qlora_lab.memory.closed_form import _adapted, _moments, _shape, _stored, budget
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
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes {processes!r} is not allowed; give a whole number of at least 1")
    plan = TrainingPlan(config, method, rank, batch_size, sequence_length, **plan)
    alone = budget(plan)
    if processes == 1:
        return ShardedBudget(plan, 1, alone.by_category | {"gathered": 0})
    shape, adapted = _shape(plan), _adapted(plan, _shape(plan))
    trained = shape.parameters if method == "full" else _adapter_elements(plan, shape, adapted)
    gradients = plan.trained_dtype.itemsize * trained
    _, activations, temporary = _moments(plan, shape, adapted, gradients)["gradients"]
    block, root = group_bytes(plan)
    of_block = gradients // shape.layers
    kept = {
        name: -(-alone.by_category[name] // processes)
        for name in ("quantized base", "base weights", "adapters", "optimizer state")
    }
    if method != "full":
        kept["base weights"] = root + -(-(alone.by_category["base weights"] - root) // processes)
    return ShardedBudget(
        plan,
        processes,
        kept
        | {
            "gradients": -(-gradients // processes),
            "gathered": 2 * block + of_block + (root if method == "full" else 0),
            "activations": activations,
            "temporary": temporary,
        },
    )


def group_bytes(plan: TrainingPlan) -> tuple[int, int]:
    """Bytes of one block's parameters (codes, scales, norms, adapters), and of all that is in no block."""
    shape, adapted, size = _shape(plan), _adapted(plan, _shape(plan)), plan.dtype.itemsize
    linears = [prod(pair) for pair in shape.linears.values()]
    block = sum(_stored(plan, n) if plan.method == "qlora" else size * n for n in linears) + size * 2 * shape.hidden
    if plan.method != "full":
        block += plan.adapter_dtype.itemsize * _adapter_elements(plan, shape, adapted) // shape.layers
    root = size * (shape.parameters - shape.layers * (sum(linears) + 2 * shape.hidden))
    return block, root


def step_traffic(plan: TrainingPlan) -> dict[str, int]:
    """Bytes of a step's collectives: {"all-gather", "reduce-scatter"}; (n - 1) / n of them reach each of n GPUs.

    Blocks are gathered twice (three times with reentrant checkpointing, which computes each once more), the root once
    where it is trained, and else never; gradients are scattered once.
    """
    shape = _shape(plan)
    block, root = group_bytes(plan)
    trained = shape.parameters if plan.method == "full" else _adapter_elements(plan, shape, _adapted(plan, shape))
    times = 3 if plan.checkpointing == "reentrant" else 2
    return {
        "all-gather": times * shape.layers * block + (root if plan.method == "full" else 0),
        "reduce-scatter": plan.trained_dtype.itemsize * trained,
    }


def _adapter_elements(plan: TrainingPlan, shape, adapted: dict) -> int:
    return shape.layers * plan.rank * sum(i + o for i, o in adapted.values())
