"""A training step of any model, in full, over tensors that have shapes but no memory.

The model is the real transformers class, the layers, the loss and the optimizer are the real ones, and PyTorch carries
out every operation of a step: on fake tensors, which know their shape, dtype and device and hold nothing. The memory
ledger counts the bytes that they would have. So a 65B step can be looked at on a laptop.
"""

import contextlib
import gc

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM
from transformers.utils import import_utils

from qlora_lab.lora import cast_adapters, find_targets, inject_lora, output_head, replace_module
from qlora_lab.loss import supervised_loss_sum
from qlora_lab.memory.ledger import MemoryTrace
from qlora_lab.memory.plan import TrainingPlan
from qlora_lab.models.base_model import with_sdpa
from qlora_lab.models.gradient_checkpointing import enable_checkpointing
from qlora_lab.paging.adamw import Coefficients, update_moments, update_parameter
from qlora_lab.qlora import QLoRALinear
from qlora_lab.quantization.parameters import find_stacks, keep_parameter
from qlora_lab.quantization.tensor import QuantizedTensor

_aten = torch.ops.aten


def simulate_training(
    config,
    method: str = "full",
    rank: int = 16,
    batch_size: int = 1,
    sequence_length: int = 512,
    *,
    device="cpu",
    **plan,
) -> MemoryTrace:
    """The memory ledger of one optimizer step in the middle of a training run; nothing is allocated.

    The model and the optimizer's state are there from the start. The step is forward and backward pass (twice with
    accumulation: all further ones need the same), clipping of the gradient, the update, and dropping the gradients.

    Args:
        config: name of one of `plan.PRESETS`, a transformers configuration, a config.json or its folder, a hub id.
        method, rank, batch_size, sequence_length, **plan: see `TrainingPlan` (alpha, dropout, target_modules,
            accumulation, supervised_tokens, optimizer, checkpointing, dtype, adapter_dtype, moments_dtype, datatype,
            block_size, double_quant, chunked_loss).
        device: kernels are chosen as on this device: "cpu", or "cuda" where there is one.

    Returns:
        the finished `MemoryTrace`.

    Raises:
        ValueError, TypeError: a plan that makes no sense; the message says what would.
        RuntimeError: of torch, for a mixture of experts whose shapes depend on values (config._experts_implementation
            "eager") or whose grouped products are in float32: torch knows these products of tensors without values only
            in bfloat16. "batched_mm" can be simulated in every dtype.
    """
    plan = TrainingPlan(config, method, rank, batch_size, sequence_length, **plan)
    device = torch.device(device)
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device {str(device)!r} cannot be simulated here; use 'cpu', or 'cuda' where there is a GPU")
    with _without_collection(), _as_if_real(), _Unfilled(plan.supervised_tokens), device:
        model = build_model(plan)
        optimizer = build_optimizer(plan, model)
        _make_state(optimizer)
        with MemoryTrace(model, optimizer) as trace:
            train_step(plan, model, optimizer)
    return trace


def build_model(plan: TrainingPlan) -> nn.Module:
    """The plan's model, in training mode, from its configuration: without values where tensors have none.

    Raises:
        ValueError: rank above a layer's smaller dimension, or targets that match nothing.
    """
    options = {"dtype": plan.dtype}
    model = with_sdpa(lambda way: AutoModelForCausalLM.from_config(plan.config, attn_implementation=way, **options))
    if plan.method == "full":
        model.requires_grad_(True)
    else:
        targets = find_targets(model, plan.target_modules)
        plan.check_rank({name: (layer.in_features, layer.out_features) for name, layer in targets.items()})
        if plan.method == "lora":
            inject_lora(model, plan.rank, plan.alpha, plan.target_modules, plan.dropout)
        else:
            _replace_linears(plan, model, set(targets))
        cast_adapters(model, plan.adapter_dtype)
    model.train()
    enable_checkpointing(model, plan.checkpointing)
    return model


def build_optimizer(plan: TrainingPlan, model: nn.Module) -> torch.optim.Optimizer:
    """torch's own AdamW or SGD; moments of another dtype than the parameters' need `MixedAdamW`."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=1e-4)
    if plan.moments_dtype == plan.trained_dtype:
        # the default would look at the type of the tensors, and fake ones are of another
        return torch.optim.AdamW(trained, lr=1e-4, foreach=trained[0].is_cuda)
    return MixedAdamW(trained, 1e-4, plan.moments_dtype)


def train_step(plan: TrainingPlan, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One optimizer step as `training.finetune` takes it, on tokens that are all zero, where the model is.

    Without `plan.chunked_loss` the model's own loss stands in the place of ours.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trained[0].device
    for _ in range(min(plan.accumulation, 2)):
        tokens = torch.zeros(plan.batch_size, plan.sequence_length, dtype=torch.int64, device=device)
        labels = tokens.clone()
        mask = torch.ones_like(tokens)
        if plan.chunked_loss:
            loss = supervised_loss_sum(model, tokens, mask, labels) / plan.supervised_tokens
        else:
            loss = model(tokens, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        del tokens, labels, mask, loss
    torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)  # the default for real tensors
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class MixedAdamW(torch.optim.Optimizer):
    """AdamW whose moments have a dtype of their own, one parameter at a time.

    torch's AdamW keeps moments in the parameters' dtype. Training 16-bit weights usually keeps them in float32.
    """

    def __init__(
        self, parameters, lr: float, moments_dtype: torch.dtype, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01
    ):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.moments_dtype = moments_dtype

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(parameter, dtype=self.moments_dtype)
                    state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=self.moments_dtype)
                state["step"] += 1
                c, moments = Coefficients.of(group, state["step"]), (state["exp_avg"], state["exp_avg_sq"])
                update_moments(c, parameter.grad.to(self.moments_dtype), *moments)  # the copy goes before the next one
                update_parameter(c, parameter, *moments)
        return loss


class _Unfilled(FakeTensorMode):
    """Fake tensors that answer the two questions a training step asks of values.

    How many elements of a mask are set: as many as tokens are supervised. What number a tensor holds (an optimizer's
    count of steps, whether a mask has no gap): one, or true.
    """

    def __init__(self, supervised_tokens: int):
        super().__init__()
        self.supervised_tokens = supervised_tokens

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is _aten._local_scalar_dense.default:
            return _one(args[0].dtype)
        if function is _aten.index.Tensor and len(args[1]) == 1 and args[1][0].dtype == torch.bool:
            tensor, (mask,) = args
            shape = (self.supervised_tokens, *tensor.shape[mask.ndim :])
            return super().__torch_dispatch__(_aten.new_empty.default, types, (tensor, shape), {})
        return super().__torch_dispatch__(function, types, args, kwargs)


def _one(dtype: torch.dtype) -> bool | int | float:
    return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1


def _replace_linears(plan: TrainingPlan, model: nn.Module, adapted: set[str]) -> None:
    """`quantize_model` without values: the same layers, with codes and scales of the same shapes and dtypes."""
    head = output_head(model)
    model.requires_grad_(False)
    for name, linear in list(model.named_modules()):
        if not isinstance(linear, nn.Linear) or (linear is head and name not in adapted):
            continue
        weight = QuantizedTensor.empty(
            linear.weight.shape, plan.dtype, plan.datatype, plan.block_size, plan.double_quant
        )
        rank = plan.rank if name in adapted else 0
        replace_module(model, name, QLoRALinear(weight, linear.bias, rank, plan.alpha, plan.dropout))
    for path, name in find_stacks(model):
        module = model.get_submodule(path)
        shape = getattr(module, name).shape
        keep_parameter(
            module, name, QuantizedTensor.empty(shape, plan.dtype, plan.datatype, plan.block_size, plan.double_quant)
        )


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer make its state, as the run's first step did."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def _as_if_real():
    """Inside, transformers treats fake tensors as real ones.

    It would take them for a sign of tracing and build a mask of all positions although no token is masked.
    """
    is_fake = import_utils.is_fake_tensor
    import_utils.is_fake_tensor = lambda tensor: False
    try:
        yield
    finally:
        import_utils.is_fake_tensor = is_fake


@contextlib.contextmanager
def _without_collection():
    """Inside, no garbage collection: when it runs depends on what else the process does."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
