"""Wrong answers to the exercises of notebook 04."""

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


@wrong("pages-of", says="ends with its page")
def one_too_many(first, count, per_page):
    return [*range(first // per_page, (first + count) // per_page + 1)]


@wrong("pages-of", says="ends before its end")
def one_too_few(first, count, per_page):
    return [*range(first // per_page, (first + count - 1) // per_page)]


@wrong("pages-of", says="begin in the middle")
def as_if_it_began_with_a_page(first, count, per_page):
    start = first // per_page
    return [start + i for i in range(-(-count // per_page))]


@wrong("pages-of", says="instead of")
def elements_not_pages(first, count, per_page):
    return list(range(first, first + count))


@wrong("sweep-order", says="Always forward")
def a_loop(step, pages):
    return list(range(pages))


@wrong("sweep-order", says="first one goes forward")
def begins_backwards(step, pages):
    return list(range(pages)) if step % 2 == 0 else list(reversed(range(pages)))


@wrong("sweep-order", says="Every step goes backwards")
def always_backwards(step, pages):
    return sorted(range(pages), reverse=True)


@wrong("sweep-order", says="visit every page")
def skips_the_turning_page(step, pages):
    if step == 1:
        return list(range(pages))
    return list(range(1, pages)) if step % 2 else list(range(pages - 2, -1, -1))


@wrong("evict", says="used last")
def most_recent(last_used, due):
    return sorted((p for p in last_used if p not in due), key=lambda p: -last_used[p])[0]


@wrong("evict", says="still due")
def forgets_what_is_due(last_used, due):
    return sorted(last_used, key=lambda p: last_used[p])[0]


@wrong("evict", says="That is a time")
def a_time(last_used, due):
    return min(last_used[p] for p in last_used if p not in due)


@wrong("evict", says="KeyError")
def breaks(last_used, due):
    return last_used[max(last_used) + 1]


@wrong("bytes-moved", says="moves twice")
def one_way(pages, resident, page_bytes):
    return max(pages - resident, 0) * page_bytes


@wrong("bytes-moved", says="need not move")
def all_pages(pages, resident, page_bytes):
    return page_bytes * pages * 2


@wrong("bytes-moved", says="cannot be negative")
def negative(pages, resident, page_bytes):
    return (pages - resident) * page_bytes * 2


@wrong("evict", says="without asking which ones")
def passes_over_as_many(last_used, due):
    return sorted(last_used, key=last_used.get)[len(due)]


@wrong("evict", says="the dictionary's order")
def first_not_due(last_used, due):
    return next(page for page in last_used if page not in due)


@wrong("evict", says="instead of")
def second_oldest_if_the_oldest_is_due(last_used, due):
    first, second, *_ = sorted(last_used, key=last_used.get)
    return second if first in due else first


@wrong("evict", says="instead of")
def times_looked_up_in_due(last_used, due):
    return min((page for page, time in last_used.items() if time not in due), key=last_used.get)
