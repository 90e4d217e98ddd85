"""Exercises of notebook 04: AdamW's step, what it remembers, pages, their order, who has to leave, and what moves."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, draw_integers, edits


def state_bytes(parameters: int, bits: int) -> int:
    blocks = 2 * math.ceil(parameters / 256)
    return 2 * parameters * bits // 8 + (4 * blocks if bits == 8 else 0)


def _state_case(generator: torch.Generator, number: int):
    """In 8 bits, one has whole blocks, after which none begins, and one less than half of a last one."""
    limits = ((2, 4000), (1, 129), (300, 10**6))
    blocks, rest, parameters = (draw_integers(generator, low, high, 1)[0] for low, high in limits)
    parameters = {4: 256 * blocks, 1: 256 * blocks + rest}.get(number, parameters)
    return parameters, (32, 8, 16)[number % 3]


def adamw_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    p = p * (1 - lr * weight_decay)
    m = m + (1 - beta1) * (gradient - m)
    v = beta2 * v + (1 - beta2) * gradient**2
    root = (v / (1 - beta2**step)).sqrt()
    return p - lr / (1 - beta1**step) * m / (root + eps), m, v


def _old_moments(p, gradient, m, v, lr, beta1, beta2, eps, step):
    """The step of `adamw_step`'s new m and v as if it were one of those before."""
    m_old = (m - (1 - beta1) * gradient) / beta1
    v_old = (v - (1 - beta2) * gradient**2) / beta2
    return p - lr / (1 - beta1**step) * m_old / ((v_old / (1 - beta2**step)).clamp(min=0).sqrt() + eps)


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
    first, count = draw_integers(generator, 1, 6 * per_page, 2)
    if number == 1:
        first = per_page  # exactly at the beginning of a page ...
        count = 2 * per_page  # ... to exactly the end of one
    return first, count, per_page


def sweep_order(step: int, pages: int) -> list[int]:
    forth = list(range(pages))
    return forth if step % 2 else forth[::-1]


def page_to_evict(last_used: dict, due: set) -> int:
    candidates = [page for page in last_used if page not in due]
    return min(candidates, key=last_used.get)


def _eviction(generator: torch.Generator, number: int):
    pages = torch.randperm(6 + 3 * number, generator=generator).tolist()
    times = torch.randperm(100, generator=generator).tolist()
    last_used = dict(zip(pages, times, strict=False))
    oldest = sorted(last_used, key=last_used.get)
    due = {page for page in oldest[1:] if draw_integers(generator, 0, 3, 1)[0] == 0}  # any of them ...
    if number:
        due |= set(oldest[: number % 4])  # ... and in most cases the oldest ones
    return last_used, due - {oldest[-1 - number % 3]}  # at least one is not


def bytes_moved(pages: int, resident: int, page_bytes: int) -> int:
    return 2 * max(0, pages - resident) * page_bytes


def _traffic(generator: torch.Generator, number: int):
    pages = draw_integers(generator, 4, 200, 1)[0]
    resident = pages + 5 if number == 3 else 0 if number == 2 else draw_integers(generator, 1, pages, 1)[0]
    return pages, resident, 2 ** (12 + number)


def _parts_of_state(parameters, bits):
    return {
        "moments": 2 * parameters * bits // 8,
        "scales": 8 * math.ceil(parameters / 256) if bits == 8 else 0,
    }


EXERCISES = (
    Exercise(
        "state-bytes",
        _state_case,
        state_bytes,
        edits("""
            2 * parameters * bits // 8 + (4 * blocks if → parameters * bits // 8 + (2 * blocks if
            1: AdamW keeps two moments, m and v; that is one.

            4 * blocks if bits == 8 else 0 → 0
            2: In 8 bits each block of 256 numbers has a scale of four bytes, for both moments.

            2 * parameters * bits // 8 + (4 * blocks if bits == 8 else 0) → 2 * parameters * bits
            1: These are bits; a byte has eight.

            math.ceil(parameters / 256) → (parameters // 256)
            2: The last block of 256 may be shorter and has a scale all the same: round up.

            math.ceil(parameters / 256) → (parameters // 256 + 1)
            2: One is added to a number of blocks that leaves no rest: `n // 256 + 1` is one too many there;
               -(-n // 256) rounds up.

            4 * blocks if bits == 8 else 0 → 4 * blocks
            2: Only in 8 bits are there scales; 16 and 32 bits hold the numbers as they are.

            2 * math.ceil(parameters / 256) → math.ceil(2 * parameters / 256)
            2: Each moment has blocks of its own, so round up for each.

            2 * math.ceil(parameters / 256) → math.ceil(parameters / 256)
            2: There are scales for both moments; you count them for one.

            4 * blocks if bits == 8 else 0 → blocks if bits == 8 else 0
            2: A scale has four bytes.

            math.ceil(parameters / 256) → parameters / 256
            2: The last block of 256 may be shorter and has a whole scale all the same: round up.
        """),
        parts=_parts_of_state,
    ),
    Exercise(
        "adamw-step",
        _step_case,
        adamw_step,
        edits("""
            lr / (1 - beta1**step) * m / (root + eps) → lr * m / (v.sqrt() + eps)
            2: Both moments start at zero and are too small at first; their corrections by 1 - beta^step are missing.

            p = p * (1 - lr * weight_decay) → gradient = gradient + weight_decay * p
            1: Weight decay goes into the gradient here, which is Adam with L2. The W in AdamW means that the weight is
               made smaller by itself, beside the gradient.

            (root + eps), m, v → (root + eps), m / (1 - beta1**step), v / (1 - beta2**step)
            2: m and v come back corrected. They are running means that go on with the next step: correct them only
               where the weight is moved.

            beta1, beta2 → beta2, beta1
            2: beta1 and beta2 have changed places: beta1 belongs to m, beta2 to v.

            p = p * (1 - lr * weight_decay) → p = p
            1: The weight decay is missing: the W in AdamW.

            (v / (1 - beta2**step)).sqrt() → v.sqrt()
            lr / (1 - beta1**step) * m → lr * m
            2: Only one of the two moments is corrected; both start at zero.

            lr / (1 - beta1**step) * m / (root + eps) → lr / (1 - beta1) * m / ((v / (1 - beta2)).sqrt() + eps)
            2: The corrections are those of the first step at every step: 1 - beta**step.

            (root + eps) → (root**2 + eps).sqrt()
            3: eps is added after the square root, not inside it.

            (root + eps) → (root**2 + eps)
            3: m is divided by the square root of v, not by v.

            lr * weight_decay → weight_decay
            1: The decay is lr * weight_decay, so that a schedule of the learning rate scales both.

            (root + eps), m, v → (root + eps)
            -: Return all three: the new p, m and v, in this order.

            (1 - beta2) * gradient**2 → (1 - beta2) * gradient.abs()
            2: v is the running mean of the gradient's *square*.

            (1 - beta2) * gradient**2 → (1 - beta2) * m**2
            2: v is the running mean of the gradient's square, not of m's.

            return p - lr → return p + lr
            1: The weight moves along the gradient, uphill; the step is subtracted.

            return p - lr / (1 - beta1**step) * m / (root + eps), m, v → return p - lr * gradient / (root + eps), m, v
            2: The weight is moved by the gradient itself; the mean of gradients, m, moves it.

            beta2 * v + (1 - beta2) * gradient**2 → (1 - beta2) * v + beta2 * gradient**2
            m + (1 - beta1) * (gradient - m) → m + beta1 * (gradient - m)
            2: Old and new are weighed the wrong way round: most of a running mean is the old one, with the factor beta.

            p - lr / (1 - beta1**step) * m / (root + eps) → _old_moments(p, gradient, m, v, lr, beta1, beta2, eps, step)
            2: The weight is moved by the old moments. The new gradient goes into them first.
        """),
        any_float=True,
        tolerance=1e-5,
    ),
    Exercise(
        "pages-of",
        _span,
        pages_of,
        edits("""
            first + count - 1 → first + count
            2: The last element is first + count - 1; you ask for the page of the element after it, which is one page
               too many where a parameter ends with its page.

            (first + count - 1) // per_page + 1 → (first + count - 1) // per_page
            2: The page of the last element is missing: a range in Python ends before its end.

            (first + count - 1) // per_page + 1 → first // per_page + math.ceil(count / per_page)
            1: The number of pages is not ceil(count / per_page): a parameter may begin in the middle of a page and
               touch one more.

            first // per_page, (first + count - 1) // per_page + 1 → math.ceil(count / per_page)
            1: The parameter does not begin at page 0 but at the page of its first element.

            (first + count - 1) // per_page + 1 → first // per_page + count // per_page + 1
            1: The number of pages is not count // per_page + 1: that is right for some beginnings only. Ask for the
               page of the last element.
        """),
    ),
    Exercise(
        "sweep-order",
        lambda generator, number: (1 + number, *draw_integers(generator, 3, 9, 1)),
        sweep_order,
        edits("""
            forth if step % 2 else forth[::-1] → forth
            1: Always forward: with room for half of the pages, LRU then has none of those that are needed.

            forth if step % 2 else forth[::-1] → forth[::-1] if step % 2 else forth
            2: Steps count from 1, and the first one goes forward.

            forth if step % 2 else forth[::-1] → forth[::-1]
            1: Every step goes backwards; that is a loop as well.

            forth if step % 2 else forth[::-1] → forth[step % pages :] + forth[: step % pages]
            forth if step % 2 else forth[::-1] → forth[(step - 1) % pages :] + forth[: (step - 1) % pages]
            1: Each step begins one page further and goes round; it should go to and fro, and begin where the step
               before has ended.

            forth if step % 2 else forth[::-1] → (forth if step % 2 else forth[::-1])[step > 1 :]
            2: Each sweep has to visit every page; the one on which the order turns is missing.
        """),
    ),
    Exercise(
        "evict",
        _eviction,
        page_to_evict,
        edits("""
            min(candidates, key=last_used.get) → max(candidates, key=last_used.get)
            1: That is the page used last, which LRU keeps: the smallest time is the longest ago.

            if page not in due →
            2: That page is the oldest, but it is still due in this sweep and would have to come back at once.

            min(candidates, key=last_used.get) → sorted(last_used, key=last_used.get)[len(due)]
            min(candidates, key=last_used.get) → sorted(last_used, key=last_used.get)[max(0, len(due) - 1)]
            2: You pass over as many of the oldest pages as there are in `due`, without asking which ones.

            min(candidates, key=last_used.get) → candidates[0]
            1: That is the first page that is not due, in the dictionary's order, not by time.

            min(candidates, key=last_used.get) → min(due, key=last_used.get, default=None)
            2: That is the page of `due` used longest ago; these have to stay.

            min(candidates, key=last_used.get) → min(last_used[page] for page in candidates)
            1: That is a time; the page is wanted.

            min(candidates, key=last_used.get) → min(candidates)
            1: That is the page with the smallest number, not the one that was used longest ago.

            min(candidates, key=last_used.get) → max(last_used[page] for page in candidates)
            min(candidates, key=last_used.get) → max(last_used.values())
            1: That is the time of the page used last; the page used longest ago is wanted.
        """),
    ),
    Exercise(
        "bytes-moved",
        _traffic,
        bytes_moved,
        edits("""
            2 * max(0, pages - resident) → max(0, pages - resident)
            1: What comes in has to go out again: each page that is not resident moves twice in a step.

            max(0, pages - resident) → pages
            1: These are all pages; the resident ones need not move.

            max(0, pages - resident) → (pages - resident)
            2: If there is room for more pages than there are, nothing moves; bytes cannot be negative.

            max(0, pages - resident) * page_bytes → max(0, pages - resident)
            -: These are pages; the answer is in bytes.

            max(0, pages - resident) → abs(pages - resident)
            2: If there is room for more pages than there are, nothing moves.

            max(0, pages - resident) → min(pages, resident)
            max(0, pages - resident) → resident
            1: These are the pages that stay; the others move.

            2 * max(0, pages - resident) → max(0, 2 * pages - resident)
            1: A resident page is spared both ways, in and out.
        """),
    ),
)
