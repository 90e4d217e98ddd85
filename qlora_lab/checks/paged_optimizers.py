"""Exercises of notebook 04: AdamW's step and state, pages, and who has to leave."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def _numbers(generator: torch.Generator, low: int, high: int, count: int) -> list[int]:
    return torch.randint(low, high, (count,), generator=generator).tolist()


def state_bytes(parameters: int, bits: int) -> int:
    if bits == 8:
        return 2 * (parameters + 4 * math.ceil(parameters / 256))
    return 2 * parameters * bits // 8


def _state_case(generator: torch.Generator, number: int):
    """One in 8 bits has whole blocks, after which none begins."""
    parameters = 256 * _numbers(generator, 2, 4000, 1)[0] if number == 4 else _numbers(generator, 300, 10**6, 1)[0]
    return parameters, (32, 8, 16)[number % 3]


def adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    p = p * (1 - lr * weight_decay)
    m = m + (1 - beta1) * (gradient - m)
    v = beta2 * v + (1 - beta2) * gradient**2
    root = (v / (1 - beta2**step)).sqrt()
    return p - lr / (1 - beta1**step) * m / (root + eps), m, v


def _coupled(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    return adamw_step(p, gradient + weight_decay * p, m, v, step, lr, beta1, beta2, eps, 0.0)


def _uncorrected(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    _, m, v = adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay)
    return p * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps), m, v


def _eps_inside(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    _, m, v = adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay)
    root = (v / (1 - beta2**step) + eps).sqrt()
    return p * (1 - lr * weight_decay) - lr / (1 - beta1**step) * m / root, m, v


def _corrected_kept(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    p, m, v = adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay)
    return p, m / (1 - beta1**step), v / (1 - beta2**step)


def _no_root(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    _, m, v = adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay)
    return p * (1 - lr * weight_decay) - lr / (1 - beta1**step) * m / (v / (1 - beta2**step) + eps), m, v


def _no_rate_on_decay(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    return adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay / lr)


def _step_case(generator: torch.Generator, number: int):
    n = 3 + 5 * number
    p, gradient, m = (torch.randn(n, generator=generator) for _ in range(3))
    v = torch.rand(n, generator=generator) * 1e-2
    beta1, beta2, decay = (0.9, 0.8, 0.95)[number % 3], (0.99, 0.999)[number // 2 % 2], (0.1, 0.01, 0.05)[number % 3]
    return p, gradient, m, v, 1 + number, 10 ** -(1 + number % 3), beta1, beta2, (1e-8, 1e-3)[number % 2], decay


def pages_of(first: int, count: int, per_page: int) -> list[int]:
    return list(range(first // per_page, (first + count - 1) // per_page + 1))


def _span(generator: torch.Generator, number: int):
    per_page = 2 ** (2 + number % 4)
    first, count = _numbers(generator, 1, 6 * per_page, 2)
    if number == 1:
        first = per_page  # exactly at the beginning of a page ...
        count = 2 * per_page  # ... to exactly the end of one
    return first, count, per_page


def sweep_order(step: int, pages: int) -> list[int]:
    forth = list(range(pages))
    return forth if step % 2 else forth[::-1]


def page_to_evict(last_used: dict, due: set) -> int:
    return min((page for page in last_used if page not in due), key=lambda page: last_used[page])


def _eviction(generator: torch.Generator, number: int):
    pages = torch.randperm(6 + 3 * number, generator=generator).tolist()
    times = torch.randperm(100, generator=generator).tolist()
    last_used = dict(zip(pages, times, strict=False))
    oldest = sorted(last_used, key=last_used.get)
    due = {page for page in oldest[1:] if _numbers(generator, 0, 3, 1)[0] == 0}  # any of them ...
    if number:
        due |= set(oldest[: number % 4])  # ... and in most cases the oldest ones
    return last_used, due - {oldest[-1 - number % 3]}  # at least one is not


def bytes_moved(pages: int, resident: int, page_bytes: int) -> int:
    return 2 * max(0, pages - resident) * page_bytes


def _traffic(generator: torch.Generator, number: int):
    pages = _numbers(generator, 4, 200, 1)[0]
    resident = pages + 5 if number == 3 else 0 if number == 2 else _numbers(generator, 1, pages, 1)[0]
    return pages, resident, 2 ** (12 + number)


EXERCISES = (
    Exercise(
        "state-bytes",
        _state_case,
        state_bytes,
        (
            Misconception(
                "AdamW keeps two moments, m and v; that is one. Open hint 1.", lambda n, bits: state_bytes(n, bits) // 2
            ),
            Misconception(
                "In 8 bits each block of 256 numbers has a scale of four bytes, for both moments. Open hint 2.",
                lambda n, bits: 2 * n * bits // 8,
            ),
            Misconception("These are bits; a byte has eight. Open hint 1.", lambda n, bits: 2 * n * bits),
            Misconception(
                "The last block of 256 may be shorter and has a scale all the same: round up. Open hint 2.",
                lambda n, bits: 2 * (n + 4 * (n // 256)) if bits == 8 else state_bytes(n, bits),
            ),
            Misconception(
                "One is added to a number of blocks that leaves no rest: `n // 256 + 1` is one too many there; "
                "-(-n // 256) rounds up. Open hint 2.",
                lambda n, bits: 2 * (n + 4 * (n // 256 + 1)) if bits == 8 else state_bytes(n, bits),
            ),
            Misconception(
                "There are scales for both moments; you count them for one. Open hint 2.",
                lambda n, bits: 2 * n + 4 * math.ceil(n / 256) if bits == 8 else state_bytes(n, bits),
            ),
        ),
    ),
    Exercise(
        "adamw-step",
        _step_case,
        adamw_step,
        (
            Misconception(
                "Both moments start at zero and are too small at first; their corrections by 1 - beta^step are "
                "missing. Open hint 2.",
                _uncorrected,
            ),
            Misconception(
                "Weight decay goes into the gradient here, which is Adam with L2. The W in AdamW means that the weight "
                "is made smaller by itself, beside the gradient. Open hint 1.",
                _coupled,
            ),
            Misconception(
                "m and v come back corrected. They are running means that go on with the next step: correct them only "
                "where the weight is moved. Open hint 2.",
                _corrected_kept,
            ),
            Misconception(
                "beta1 and beta2 have changed places: beta1 belongs to m, beta2 to v. Open hint 2.",
                lambda p, g, m, v, step, lr, beta1, beta2, eps, decay: adamw_step(
                    p, g, m, v, step, lr, beta2, beta1, eps, decay
                ),
            ),
            Misconception("eps is added after the square root, not inside it. Open hint 3.", _eps_inside),
            Misconception("m is divided by the square root of v, not by v. Open hint 3.", _no_root),
            Misconception(
                "The decay is lr * weight_decay, so that a schedule of the learning rate scales both. Open hint 1.",
                _no_rate_on_decay,
            ),
            Misconception(
                "Return all three: the new p, m and v, in this order.",
                lambda *arguments: adamw_step(*arguments)[0],
            ),
        ),
        tolerance=1e-5,
    ),
    Exercise(
        "pages-of",
        _span,
        pages_of,
        (
            Misconception(
                "The last element is first + count - 1; you ask for the page of the element after it, which is one "
                "page too many where a parameter ends with its page. Open hint 2.",
                lambda first, count, size: list(range(first // size, (first + count) // size + 1)),
            ),
            Misconception(
                "The page of the last element is missing: a range in Python ends before its end. Open hint 2.",
                lambda first, count, size: list(range(first // size, (first + count - 1) // size)),
            ),
            Misconception(
                "The number of pages is not ceil(count / per_page): a parameter may begin in the middle of a page and "
                "touch one more. Open hint 1.",
                lambda first, count, size: list(range(first // size, first // size + math.ceil(count / size))),
            ),
            Misconception(
                "The parameter does not begin at page 0 but at the page of its first element. Open hint 1.",
                lambda first, count, size: list(range(math.ceil(count / size))),
            ),
        ),
    ),
    Exercise(
        "sweep-order",
        lambda generator, number: (1 + number, _numbers(generator, 3, 9, 1)[0]),
        sweep_order,
        (
            Misconception(
                "Always forward: with room for half of the pages, LRU then has none of those that are needed. "
                "Open hint 1.",
                lambda step, pages: list(range(pages)),
            ),
            Misconception(
                "Steps count from 1, and the first one goes forward. Open hint 2.",
                lambda step, pages: sweep_order(step + 1, pages),
            ),
            Misconception(
                "Every step goes backwards; that is a loop as well. Open hint 1.",
                lambda step, pages: list(range(pages))[::-1],
            ),
            Misconception(
                "Each sweep has to visit every page; the one on which the order turns is missing. Open hint 2.",
                lambda step, pages: sweep_order(step, pages)[(0 if step == 1 else 1) :],
            ),
        ),
    ),
    Exercise(
        "evict",
        _eviction,
        page_to_evict,
        (
            Misconception(
                "That is the page used last, which LRU keeps: the smallest time is the longest ago. Open hint 1.",
                lambda last_used, due: max((p for p in last_used if p not in due), key=last_used.get),
            ),
            Misconception(
                "That page is the oldest, but it is still due in this sweep and would have to come back at once. "
                "Open hint 2.",
                lambda last_used, due: min(last_used, key=last_used.get),
            ),
            Misconception(
                "You pass over as many of the oldest pages as there are in `due`, without asking which ones. Open hint "
                "2.",
                lambda last_used, due: sorted(last_used, key=last_used.get)[len(due)],
            ),
            Misconception(
                "You pass over as many of the oldest pages as there are in `due`, without asking which ones. Open hint "
                "2.",
                lambda last_used, due: sorted(last_used, key=last_used.get)[max(0, len(due) - 1)],
            ),
            Misconception(
                "That is the first page that is not due, in the dictionary's order, not by time. Open hint 1.",
                lambda last_used, due: next(page for page in last_used if page not in due),
            ),
            Misconception(
                "That is the page of `due` used longest ago; these have to stay. Open hint 2.",
                lambda last_used, due: min((p for p in last_used if p in due), key=last_used.get, default=None),
            ),
            Misconception(
                "That is a time; the page is wanted. Open hint 1.",
                lambda last_used, due: min(t for p, t in last_used.items() if p not in due),
            ),
            Misconception(
                "That is the page with the smallest number, not the one that was used longest ago. Open hint 1.",
                lambda last_used, due: min(p for p in last_used if p not in due),
            ),
        ),
    ),
    Exercise(
        "bytes-moved",
        _traffic,
        bytes_moved,
        (
            Misconception(
                "What comes in has to go out again: each page that is not resident moves twice in a step. Open hint 1.",
                lambda n, k, size: max(0, n - k) * size,
            ),
            Misconception(
                "These are all pages; the resident ones need not move. Open hint 1.", lambda n, k, size: 2 * n * size
            ),
            Misconception(
                "If there is room for more pages than there are, nothing moves; bytes cannot be negative. Open hint 2.",
                lambda n, k, size: 2 * (n - k) * size,
            ),
            Misconception("These are pages; the answer is in bytes.", lambda n, k, size: 2 * max(0, n - k)),
        ),
    ),
)
