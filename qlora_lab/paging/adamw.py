"""The arithmetic of AdamW, operation by operation as `torch.optim.AdamW` does it, on lists of tensors.

Every operation is per element and rounds once, so the result does not depend on how the elements are cut into tensors.
That torch's vector instructions and its loop for the last few elements round alike is not promised anywhere; the tests
compare them. Source: torch/optim/adam.py, decoupled weight decay (Loshchilov & Hutter 2019).
"""

from dataclasses import dataclass

import torch


@dataclass(eq=False, slots=True)
class Coefficients:
    """The numbers of one update, as torch.optim.AdamW computes them: Python floats, from the group and the step."""

    decay: float
    beta1: float
    beta2: float
    eps: float
    root: float  # of the second moment's bias correction
    rate: float  # minus the learning rate, over the first moment's bias correction

    @classmethod
    def of(cls, group: dict, step: int) -> "Coefficients":
        lr, (beta1, beta2) = group["lr"], group["betas"]
        beta1, beta2 = float(beta1), float(beta2)
        step = float(step)
        return cls(
            float(1 - lr * group["weight_decay"]) if group["weight_decay"] != 0 else 1.0,
            beta1,
            beta2,
            group["eps"],
            (1 - beta2**step) ** 0.5,
            -float(lr / (1 - beta1**step)),
        )


def update(c: Coefficients, params: list, grads: list, exp_avgs: list, exp_avg_sqs: list) -> None:
    """The operations of torch's AdamW, one by one (torch/optim/adam.py). It decays the weights first, which is the
    same: they meet the moments in the last operation only.

    On a CPU torch takes tensor by tensor, and the operations on lists are no substitute in 16 bits: they round a factor
    to bfloat16 before they multiply by it. In 32 bits they do the same with less work between the operations.
    """
    if params[0].is_cpu and (len(params) == 1 or params[0].element_size() < 4):
        for param, grad, exp_avg, exp_avg_sq in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
            update_moments(c, grad, exp_avg, exp_avg_sq)
            update_parameter(c, param, exp_avg, exp_avg_sq)
        return
    torch._foreach_lerp_(exp_avgs, grads, 1 - c.beta1)
    torch._foreach_mul_(exp_avg_sqs, c.beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - c.beta2)
    if c.decay != 1.0:
        torch._foreach_mul_(params, c.decay)
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, c.root)
    torch._foreach_add_(denominators, c.eps)
    torch._foreach_addcdiv_(params, exp_avgs, denominators, c.rate)


def update_moments(c: Coefficients, grad: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor) -> None:
    """The first half of the update, of one tensor: running means of the gradient and of its square."""
    exp_avg.lerp_(grad, 1 - c.beta1)
    exp_avg_sq.mul_(c.beta2).addcmul_(grad, grad, value=1 - c.beta2)


def update_parameter(c: Coefficients, param: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor) -> None:
    """The second half: decay, and a step along the first moment over the root of the second."""
    if c.decay != 1.0:
        param.mul_(c.decay)
    param.addcdiv_(exp_avg, exp_avg_sq.sqrt().div_(c.root).add_(c.eps), value=c.rate)
