"""Wrong answers to the exercises of notebook 04 about AdamW."""

from wrong_answers import wrong


@wrong("state-bytes", says="two moments")
def only_m(parameters, bits):
    return parameters * bits // 8 + (4 * -(-parameters // 256) if bits == 8 else 0)


@wrong("state-bytes", says="has a scale of four bytes")
def no_scales(parameters, bits):
    return parameters * bits // 4


@wrong("state-bytes", says="a byte has eight")
def bits_for_bytes(parameters, bits):
    return parameters * bits * 2


@wrong("state-bytes", says="instead of")
def forgets_16_bits(parameters, bits):
    return 2 * (parameters + 4 * -(-parameters // 256)) if bits == 8 else 8 * parameters


@wrong("adamw-step", says="corrections by 1 - beta^step")
def no_correction(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    p = p - lr * weight_decay * p
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    return p - lr * m / (v**0.5 + eps), m, v


@wrong("adamw-step", says="Adam with L2")
def adam_with_l2(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    gradient = gradient + weight_decay * p
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    return p - lr * (m / (1 - beta1**step)) / ((v / (1 - beta2**step)) ** 0.5 + eps), m, v


@wrong("adamw-step", says="not inside it")
def eps_under_the_root(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    p = p * (1 - lr * weight_decay)
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    return p - lr * (m / (1 - beta1**step)) / (v / (1 - beta2**step) + eps) ** 0.5, m, v


@wrong("adamw-step", says="changes its arguments in place")
def in_place(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m.mul_(beta1).add_(gradient, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (v / (1 - beta2**step)).sqrt().add_(eps)
    return p * (1 - lr * weight_decay) - lr / (1 - beta1**step) * m / root, m, v


@wrong("adamw-step", says="Return all three")
def only_the_weight(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    return p * (1 - lr * weight_decay) - lr * (m / (1 - beta1**step)) / ((v / (1 - beta2**step)) ** 0.5 + eps)


@wrong("state-bytes", says="leaves no rest")
def a_block_more(parameters, bits):
    return 2 * (parameters * bits // 8 + (4 * (parameters // 256 + 1) if bits == 8 else 0))


@wrong("adamw-step", says="come back corrected")
def corrected_moments(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = (beta1 * m + (1 - beta1) * gradient) / (1 - beta1**step)
    v = (beta2 * v + (1 - beta2) * gradient * gradient) / (1 - beta2**step)
    return p * (1 - lr * weight_decay) - lr * m / (v**0.5 + eps), m, v


@wrong("adamw-step", says="have changed places")
def betas_swapped(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta2 * m + (1 - beta2) * gradient
    v = beta1 * v + (1 - beta1) * gradient * gradient
    p = p * (1 - lr * weight_decay)
    return p - lr * (m / (1 - beta2**step)) / ((v / (1 - beta1**step)) ** 0.5 + eps), m, v


@wrong("adamw-step", says="differ")
def usual_betas(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = 0.9 * m + 0.1 * gradient
    v = 0.99 * v + 0.01 * gradient * gradient
    return p * (1 - lr * weight_decay) - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.99**step)) ** 0.5 + eps), m, v


@wrong("adamw-step", says="differ")
def usual_decay(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    return p * (1 - lr * 0.1) - lr * (m / (1 - beta1**step)) / ((v / (1 - beta2**step)) ** 0.5 + eps), m, v


@wrong("state-bytes", says="Only in 8 bits are there scales")
def scales_always(parameters, bits):
    return 2 * (parameters * bits // 8 + 4 * -(-parameters // 256))


@wrong("state-bytes", says="blocks of its own")
def blocks_across_moments(parameters, bits):
    return parameters * bits // 4 + (4 * -(-2 * parameters // 256) if bits == 8 else 0)


@wrong("adamw-step", says="weight decay is missing")
def adam(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    return p - lr * (m / (1 - beta1**step)) / ((v / (1 - beta2**step)) ** 0.5 + eps), m, v


@wrong("adamw-step", says="Only one of the two moments is corrected")
def v_uncorrected(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    return p * (1 - lr * weight_decay) - lr * (m / (1 - beta1**step)) / (v**0.5 + eps), m, v


@wrong("adamw-step", says="those of the first step")
def step_ignored(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    return p * (1 - lr * weight_decay) - lr * (m / (1 - beta1)) / ((v / (1 - beta2)) ** 0.5 + eps), m, v
