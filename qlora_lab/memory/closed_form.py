"""The closed form: bytes of a training step from a model's configuration alone, as one can work them out on paper.

Four kinds of memory stay the same through a step: weights, adapters, the optimizer's state, and codes and scales. Three
change, so the peak is at one of a few moments, and the budget is the largest of them:

    forward     all activations, and what the last matrix product of the last layer needs on top
    loss        all activations, and logits three times over (float32)
    head        all activations, and gradients of the logits and the head
    norm        all activations, and float32 copies of the hidden states in the last norm's backward pass
    backward    all activations, and what the last layer's backward pass needs on top
    gradients   nearly all gradients, and what the first layer's backward pass needs on top
    embedding   all gradients, and the embedding's once more
    update      all gradients, and what the optimizer computes with for one parameter

Sizes are in bytes; GB means 10^9 bytes. `simulation` counts the same step operation by operation.
"""

import contextlib
from dataclasses import dataclass
from math import prod

from qlora_lab.loss import CHUNK_BYTES
from qlora_lab.machine.arguments import is_count
from qlora_lab.memory.plan import TrainingPlan
from qlora_lab.memory.records import CATEGORIES
from qlora_lab.quantization.blockwise import SCALE_BLOCK
from qlora_lab.quantization.datatypes import SCALES

_MODELS = ("llama", "mistral")  # decoders of the shape that the formulas are about


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a Llama-like decoder: hidden size d, layers, attention and key-value heads of a size, MLP m."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    mlp: int
    vocabulary: int
    tied: bool = False

    @classmethod
    def of(cls, config) -> "ModelShape":
        """From a transformers configuration; 0 for what it does not say.

        Where layers differ (a list of sizes), the largest counts: what a step needs is then said rather too high.
        """
        with contextlib.suppress(Exception):  # several texts, or none: then what stands at the top counts
            config = config.get_text_config()

        def get(name, otherwise=0):
            try:
                value = getattr(config, name, None)
            except Exception:  # computed from what is not there
                value = None
            if isinstance(value, list | tuple):
                value = max((v for v in value if is_count(v)), default=None)
            return value if is_count(value) else otherwise

        hidden, heads = get("hidden_size"), get("num_attention_heads", 1)
        return cls(
            hidden,
            get("num_hidden_layers"),
            heads,
            get("num_key_value_heads", heads),
            get("head_dim", hidden // heads),
            get("intermediate_size", 4 * hidden),
            get("vocab_size"),
            getattr(config, "tie_word_embeddings", False) is True,
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each linear layer of a decoder layer, by name."""
        d, a, k, m = self.hidden, self.heads * self.head_size, self.key_value_heads * self.head_size, self.mlp
        return {
            "q_proj": (d, a),
            "k_proj": (d, k),
            "v_proj": (d, k),
            "o_proj": (a, d),
            "gate_proj": (d, m),
            "up_proj": (d, m),
            "down_proj": (m, d),
        }

    @property
    def parameters(self) -> int:
        """Elements of all parameters: embeddings, linear layers, norms, and the head where it is not tied."""
        ends = self.vocabulary * self.hidden * (1 if self.tied else 2)
        layer = sum(map(prod, self.linears.values())) + 2 * self.hidden
        return ends + self.layers * layer + self.hidden


def layer_activations(shape: ModelShape, size: int, mask: int = 0, inputs: int | None = None) -> int:
    """Bytes that a decoder layer keeps for its backward pass, per token, without adapters.

    In elements of `size` bytes: queries, keys, values and the attention's result; the MLP's gate, its activation, up,
    (3 m); the inputs of linear layers. In float32: the inputs of the two norms (2 d), and one number per head and per
    norm. Attention runs through torch's scaled_dot_product_attention, which keeps no weights.

    Args:
        mask: length of a sequence where the batch has padding: its mask is kept (one number for each position), and
            keys and values are repeated for every query head. 0: no padding.
        inputs: elements of the inputs of linear layers that are kept (`kept_inputs`). None: all, 2 d + m.
    """
    d, a, m = shape.hidden, shape.heads * shape.head_size, shape.mlp
    keys = a if mask else shape.key_value_heads * shape.head_size
    inputs = 2 * d + m if inputs is None else inputs
    return size * (2 * a + 2 * keys + mask + 3 * m + inputs) + 4 * (2 * d + shape.heads + 2)


def kept_inputs(shape: ModelShape, names) -> int:
    """Elements per token that a decoder layer keeps as inputs of the named linear layers; several share one.

    The output projection's is the attention's result, which is kept anyway.
    """
    attention = any(name in names for name in ("q_proj", "k_proj", "v_proj"))
    mlp = any(name in names for name in ("gate_proj", "up_proj"))
    return shape.hidden * (attention + mlp) + shape.mlp * ("down_proj" in names)


def adapter_activations(layers, size: int, dropout: bool) -> int:
    """Bytes that adapters keep, per token: r numbers each; with dropout their input's noise and its result as well.

    Args:
        layers: (in, rank) of each adapter.
    """
    return size * sum(rank + (2 * in_features if dropout else 0) for in_features, rank in layers)


def logit_bytes(supervised_tokens: int, vocabulary: int, size: int, kept: bool) -> int:
    """What the loss takes. See `loss`: with a frozen head logits are made a few rows at a time and never kept.

    Args:
        size: bytes of an element of the hidden states.
        kept: whether all logits are kept for the backward pass: float32, three times (logarithmic softmax, its
            gradient, the gradient of the logits). Else: a few rows in float32, and as the head made them; the gradient
            of the hidden states, which stays, is not counted here.
    """
    if kept:
        return 3 * 4 * supervised_tokens * vocabulary
    rows = min(supervised_tokens, max(1, CHUNK_BYTES // (4 * max(1, vocabulary))))
    return rows * vocabulary * (4 + (size if size < 4 else 0))


def shape_of(plan: TrainingPlan) -> ModelShape:
    """Of the plan's model.

    Raises:
        ValueError: not a Llama-like model.
    """
    kind = plan.config.get_text_config().model_type
    if kind not in _MODELS:
        raise ValueError(
            f"the closed form is for {' and '.join(_MODELS)} models, not {kind!r}; use simulate_training instead"
        )
    return ModelShape.of(plan.config)


def adapted_linears(plan: TrainingPlan) -> dict[str, tuple[int, int]]:
    """(in, out) of the linear layers of a decoder layer that have adapters, by name; none for full fine-tuning.

    Raises:
        ValueError: targets other than "all-linear" or names of these linear layers.
    """
    linears = shape_of(plan).linears
    if plan.method == "full":
        return {}
    if plan.target_modules == "all-linear":
        return linears
    names = () if isinstance(plan.target_modules, str) else plan.target_modules
    if not names or any(name not in linears for name in names):
        raise ValueError(
            f"target_modules {plan.target_modules!r}: the closed form knows 'all-linear' and lists of "
            f"{', '.join(linears)}; use simulate_training for others"
        )
    return {name: s for name, s in linears.items() if name in names}


def adapter_elements(plan: TrainingPlan) -> int:
    """Of all adapters: r (in + out) each."""
    return shape_of(plan).layers * plan.rank * sum(i + o for i, o in adapted_linears(plan).values())


def trained_elements(plan: TrainingPlan) -> int:
    """Of all parameters that are trained: every one, or the adapters'."""
    return shape_of(plan).parameters if plan.method == "full" else adapter_elements(plan)


def quantized_bytes(plan: TrainingPlan, count: int) -> int:
    """Bytes of `count` weights in 4 bits: codes, and scales as `quantize` lays them out."""
    blocks = -(-count // plan.block_size)
    scale = SCALES[plan.datatype.scales].itemsize
    scales = blocks + 4 * -(-blocks // SCALE_BLOCK) + 4 if plan.double_quant else scale * blocks
    scales += 4 if plan.datatype.scales == "e4m3" else 0  # one for the whole tensor
    return -(-count // 2) + scales + (scale * blocks if plan.datatype.affine else 0)


def _kept(plan: TrainingPlan) -> tuple[int, int]:
    """Bytes that a decoder layer keeps for its backward pass, and bytes kept at the end of the forward pass."""
    shape, adapted = shape_of(plan), adapted_linears(plan)
    size, n, d, full = plan.dtype.itemsize, plan.batch_size * plan.sequence_length, shape.hidden, plan.method == "full"
    # an adapter with dropout keeps what it lets through instead of its input
    inputs = kept_inputs(shape, shape.linears if full else () if plan.dropout else adapted)
    layer = n * layer_activations(shape, size, inputs=inputs)
    if full:
        layer += n * size * 2 * d  # a trained norm keeps its normalized input
    else:
        layer += n * adapter_activations([(i, plan.rank) for i, _ in adapted.values()], size, plan.dropout > 0)
    if plan.method == "lora" and plan.adapter_dtype != plan.dtype:  # adapters in the dtype they are computed in
        layer += size * plan.rank * sum(i + o for i, o in adapted.values())
    kept = n * 2 * size * shape.head_size  # sines and cosines of the positions
    if plan.checkpointing != "none":
        return layer, kept + shape.layers * n * size * d
    kept += shape.layers * layer
    if not full:  # frozen embeddings: the first layer's input needs no gradient, so less is kept for it
        noises = sum(name in adapted for name in ("q_proj", "k_proj", "v_proj")) * (plan.dropout > 0)
        kept -= n * (4 * (d + 1) + size * noises * d)
    return layer, kept


def bytes_by_moment(plan: TrainingPlan) -> dict[str, tuple[int, int, int]]:
    """Bytes of gradients, of activations and of temporary storages at each moment that can be the peak."""
    shape, adapted = shape_of(plan), adapted_linears(plan)
    size, n, d, full = plan.dtype.itemsize, plan.batch_size * plan.sequence_length, shape.hidden, plan.method == "full"
    gradients = plan.trained_dtype.itemsize * trained_elements(plan)
    head, supervised = size * shape.vocabulary * d, plan.supervised_tokens if plan.chunked_loss else n
    checkpointed = plan.checkpointing != "none"
    layer, kept = _kept(plan)
    recomputed = layer if checkpointed else 0

    # what one operation takes: a decoded weight, and what enters and leaves the MLP's matrix products
    largest = max(map(prod, shape.linears.values()))
    decoded = size * largest if plan.method == "qlora" else 0
    working = decoded + n * size * (d + 2 * shape.mlp)
    forward = decoded + n * size * (3 if full else 4) * d
    at_once = full or not plan.chunked_loss
    logits = logit_bytes(supervised, shape.vocabulary, size, kept=at_once)
    states = supervised * size * d  # hidden states where there is a label, and their gradient
    stays = logits // 3 if at_once else states
    twice = 2 * head if full and shape.tied else 0  # the head's and the embedding's gradient, before they are added
    biggest = max(shape.vocabulary * d, largest) if full else plan.rank * max(max(s) for s in adapted.values())
    # AdamW's square root and quotient, one after the other in place where the moments have a dtype of their own
    copies = 0 if plan.optimizer == "sgd" else 1 if plan.moments_dtype != plan.trained_dtype else 2
    update = copies * biggest * plan.moments_dtype.itemsize

    # gradients there are: from the batches before; the head's first, then layer by layer; the embedding's last
    before = gradients if plan.accumulation > 1 else 0
    one = size * largest if full else 0
    first = max(before, head + one) if full else before
    rest = (sum(map(prod, shape.linears.values())) * size + (0 if shape.tied else head)) if full else 0
    last = max(before, gradients - rest + one if full else gradients - gradients // shape.layers)

    positions = n * 2 * size * shape.head_size
    return {  # gradients, activations, temporary
        "loss": (
            before,
            kept + n * 4 * d + stays,
            logits - stays if at_once else logits + states,
        ),
        "head": (before, kept + n * 4 * d, supervised * size * shape.vocabulary + head if full else states),
        "norm": (first, kept, n * 5 * 4 * d),
        "forward": (before, kept + recomputed, forward),
        "backward": (first, kept + recomputed, working),
        "gradients": (last, positions + layer + (n * size * d if checkpointed else 0), working),
        "embedding": (gradients, 0, twice + (head if full and before else 0)),
        "update": (gradients, 0, update),
    }


@dataclass(frozen=True)
class Budget:
    """Predicted peak of a step: which moment it is at, and the bytes of each of the ledger's categories then."""

    plan: TrainingPlan
    moment: str
    by_category: dict[str, int]

    @property
    def peak(self) -> int:
        return sum(self.by_category.values())


def predict_plan(plan: TrainingPlan) -> Budget:
    """The budget of a plan.

    Raises:
        ValueError: as `shape_of` and `adapted_linears`, or a rank above a layer's smaller dimension.
    """
    plan.check_rank(adapted_linears(plan))
    shape, size = shape_of(plan), plan.dtype.itemsize

    # the same through the whole step
    linear = shape.layers * sum(map(prod, shape.linears.values()))
    quantized = shape.layers * sum(quantized_bytes(plan, prod(s)) for s in shape.linears.values())
    weights = size * (shape.parameters - (linear if plan.method == "qlora" else 0)) + 2 * 4 * (shape.head_size // 2)
    trained = trained_elements(plan)

    by_moment = bytes_by_moment(plan)
    moment = max(by_moment, key=lambda name: sum(by_moment[name]))
    gradients, activations, temporary = by_moment[moment]
    at_peak = dict.fromkeys(CATEGORIES, 0) | {
        "quantized base": quantized if plan.method == "qlora" else 0,
        "base weights": weights,
        "adapters": plan.adapter_dtype.itemsize * adapter_elements(plan),
        "optimizer state": 2 * plan.moments_dtype.itemsize * trained if plan.optimizer == "adamw" else 0,
        "gradients": gradients,
        "activations": activations,
        "temporary": temporary,
    }
    return Budget(plan, moment, at_peak)


def predict_training(
    config, method: str = "full", rank: int = 16, batch_size: int = 1, sequence_length: int = 512, **plan
) -> Budget:
    """The budget of a training step, from the configuration of a Llama-like model; arguments as `simulate_training`.

    Biases, which few of these models have, are left out: they are less than a thousandth.

    Raises:
        ValueError, TypeError: a plan that makes no sense (see `TrainingPlan`), a model of another kind.
    """
    return predict_plan(TrainingPlan(config, method, rank, batch_size, sequence_length, **plan))
