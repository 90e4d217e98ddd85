"""Wrong answers to the exercises of notebook 04."""

import math
from concurrent.futures import ThreadPoolExecutor

from wrong_answers import edit, wrong


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


@wrong("state-bytes", says="no remainder")
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


@wrong("read-page", says="counts bytes, not pages")
def goes_to_the_byte_of_that_number(path, number, page_bytes):
    with open(path, "rb") as file:
        file.seek(number)
        return bytearray(file.read(page_bytes))


@wrong("read-page", says="cannot be changed in place")
def bytes_of_a_page(path, number, page_bytes):
    with open(path, "rb") as file:
        file.seek(page_bytes * number)
        return file.read(page_bytes)


@wrong("read-page", says="Only one page is to come into RAM")
def all_that_follows(path, number, page_bytes):
    return bytearray(path.read_bytes()[number * page_bytes :])


@wrong("read-page", says="always the first page")
def first_page(path, number, page_bytes):
    with open(path, "rb") as file:
        return bytearray(file.read(page_bytes))


@wrong("read-page", says="begins at byte")
def page_before(path, number, page_bytes):
    whole = path.read_bytes()
    start = max(0, number - 1) * page_bytes
    return bytearray(whole[start : start + page_bytes])


@wrong("read-page", says="It returned None. Is there a `return`?")
def returns_nothing(path, number, page_bytes):
    with open(path, "rb") as file:
        file.seek(number * page_bytes)
        bytearray(file.read(page_bytes))


@wrong("write-page", says="all other pages are gone")
def empties_the_file(path, number, page):
    with open(path, "wb") as file:
        file.seek(number * len(page))
        file.write(page)


@wrong("write-page", says="at the end of the file")
def appends(path, number, page):
    with open(path, "ab") as file:
        file.seek(number * len(page))
        file.write(page)


@wrong("write-page", says="overwrites the first page")
def goes_nowhere(path, number, page):
    with open(path, "r+b") as file:
        file.write(page)


@wrong("write-page", says="counts bytes, not pages")
def writes_at_the_byte_of_that_number(path, number, page):
    with open(path, "r+b") as file:
        file.seek(number)
        file.write(page)


@wrong("write-page", says="The page itself has changed")
def clears_the_page(path, number, page):
    with open(path, "r+b") as file:
        file.seek(number * len(page))
        file.write(page)
    page[:] = bytes(len(page))


def in_turn(pages, order, change, evict):
    """A right `paged-sweep`, put otherwise than the solution; the wrong ones are edits of it."""
    for place, number in enumerate(order):
        page = pages.ram.get(number)
        if page is None:
            while len(pages.ram) >= pages.slots:
                leaves = evict(pages.last_used, set(order[place:]))
                pages.write(leaves, pages.ram.pop(leaves))
            page = pages.read(number)
            pages.ram[number] = page
        change(number, page)
        pages.touch(number)


forgets_to_write = edit(
    "paged-sweep", in_turn, "pages.write(leaves, pages.ram.pop(leaves))", "del pages.ram[leaves]",
    says="not written to the file first",
)  # fmt: skip
takes_one_more = edit("paged-sweep", in_turn, ">= pages.slots", "> pages.slots", says="one page too many in RAM")
reads_before_it_evicts = edit(
    "paged-sweep", in_turn,
    "page = pages.read(number)", "page = page or pages.read(number)",
    "leaves = evict(", "page = pages.read(number); leaves = evict(",
    says="Has one left before another is read",
)  # fmt: skip
by_number = edit("paged-sweep", in_turn, "enumerate(order)", "enumerate(order := sorted(order))", says="by number")
reads_always = edit(
    "paged-sweep", in_turn,
    "if page is None:", "if True:",
    "while len(", "while number not in pages.ram and len(",
    says="read from the file once more",
)  # fmt: skip
nothing_is_due = edit("paged-sweep", in_turn, "set(order[place:])", "set()", says="which pages this sweep still needs")
writes_at_once = edit(
    "paged-sweep", in_turn, "change(number, page)", "change(number, page); pages.write(number, page)",
    says="as soon as it was changed",
)  # fmt: skip
forgets_all_at_the_end = edit(
    "paged-sweep", in_turn, "pages.touch(number)", "pages.touch(number)\n    pages.ram.clear()",
    says="hold something other than they should",
)  # fmt: skip
due_as_a_list = edit(
    "paged-sweep", in_turn, "set(order[place:])", "order[place:]", says="due, has to be a set of pages, and is a list"
)
empties_the_ram = edit(
    "paged-sweep", in_turn,
    "pages.touch(number)",
    "pages.touch(number)\n    for number in list(pages.ram):\n        pages.write(number, pages.ram.pop(number))",
    says="They stay in RAM for the next sweep",
)  # fmt: skip
result_of_change = edit(
    "paged-sweep", in_turn,
    "change(number, page)", "pages.ram[number] = change(number, page)",
    says="`change` changes the page itself",
)  # fmt: skip
writes_each_page = edit(
    "paged-sweep", in_turn,
    "pages.write(leaves, pages.ram.pop(leaves))", "pages.ram.pop(leaves)",
    "change(number, page)", "change(number, page); pages.write(number, page)",
    says="as soon as it was changed",
)  # fmt: skip


class Ready:
    """What `submit` gives, without a thread."""

    def __init__(self, work, *given):
        self.value = work(*given)

    def result(self):
        return self.value


def ahead(pages, order, change, evict):
    """A right `prefetch-sweep`, put otherwise than the solution: it begins one place before the first page."""

    def exchange(leaves, page, comes):
        if leaves is not None:
            pages.write(leaves, page)
        return pages.read(comes)

    coming = None
    with ThreadPoolExecutor(1) as thread:
        for place in range(-1, len(order)):
            if coming is not None:
                pages.ram[order[place]] = coming.result()
            coming = None
            following = order[place + 1] if place + 1 < len(order) else None
            if following is not None and following not in pages.ram:
                full, due = len(pages.ram) >= pages.slots, set(order[max(place, 0) :])
                leaves = evict(pages.last_used, due) if full else None
                coming = thread.submit(exchange, leaves, pages.ram.pop(leaves, None), following)
            if place >= 0:
                change(order[place], pages.ram[order[place]])
                pages.touch(order[place])


reads_when_needed = edit("prefetch-sweep", in_turn, says="`change` waits for that")
without_a_thread = edit("prefetch-sweep", ahead, "thread.submit(", "Ready(", says="by the same thread")
joins_at_once = edit(
    "prefetch-sweep", ahead, "None), following)", "None), following); coming.result()",
    says="is waited for before `change` is called",
)  # fmt: skip
drops_what_leaves = edit(
    "prefetch-sweep", ahead, "pages.write(leaves, page)", "pass", says="not written to the file first"
)
forgets_the_one_on_its_way = edit(
    "prefetch-sweep", ahead, ">= pages.slots", "> pages.slots", says="the one that is on its way needs a slot"
)
reads_the_page_that_is_being_changed = edit(
    "prefetch-sweep", ahead, "following not in pages.ram", "(place >= 0 or following not in pages.ram)",
    says="is read from the file once more",
)  # fmt: skip
reads_first = edit(
    "prefetch-sweep", ahead,
    "return pages.read(comes)", "return came",
    "if leaves is not None:", "came = pages.read(comes)\n        if leaves is not None:",
    says="before the one that leaves is written",
)  # fmt: skip
loses_the_last_page = edit(
    "prefetch-sweep", ahead, "range(-1, len(order))", "range(-1, len(order) - 1)", says="never changed"
)


@wrong("evict-best", says="asked for soonest")
def soonest(there, coming):
    return min(there, key=lambda page: coming.index(page) if page in coming else len(coming))


@wrong("evict-best", says="Next use, not last use")
def last_use(there, coming):
    last = {page: place for place, page in enumerate(coming)}
    return max(there, key=lambda page: last.get(page, len(coming)))


@wrong("evict-best", says="A page that is never asked for again")
def keeps_what_nobody_wants(there, coming):
    return max((page for page in there if page in coming), key=coming.index, default=there[0])


@wrong("evict-best", says="the page is wanted")
def how_long(there, coming):
    return max(coming.index(page) if page in coming else len(coming) for page in there)


@wrong("evict-best", says="-1, which is no page of")
def not_in_ram(there, coming):
    return -1


@wrong("state-bytes", says="beside the two moments")
def something_beside_the_moments(parameters, bits):
    b = 3 * parameters * bits // 8
    return b + (8 * math.ceil(parameters / 256) if bits == 8 else 0)


@wrong("adamw-step", says="It shrinks before it moves")
def shrinks_after_it_moves(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = m * beta1 + gradient * (1 - beta1)
    v = v * beta2 + gradient**2 * (1 - beta2)
    p = p - lr * (m / (1 - beta1**step)) / ((v / (1 - beta2**step)) ** 0.5 + eps)
    p = p * (1 - lr * weight_decay)
    return p, m, v


@wrong("adamw-step", says="not times the step")
def beta_times_step(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient**2
    mh = m / (1 - beta1 * step)
    vh = v / (1 - beta2 * step)
    return p - lr * weight_decay * p - lr * mh / (vh.sqrt() + eps), m, v


@wrong("adamw-step", says="The same is taken from every weight")
def the_same_from_all(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient**2
    mh = m / (1 - beta1**step)
    vh = v / (1 - beta2**step)
    return p - lr * (mh / (vh.sqrt() + eps) + weight_decay), m, v


@wrong("adamw-step", says="`math.sqrt` takes one number")
def root_of_one_number(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient**2
    return p * (1 - lr * weight_decay) - lr * (m / (1 - beta1**step)) / (math.sqrt(v / (1 - beta2**step)) + eps), m, v


@wrong("pages-of", says="except where the parameter ends with a page")
def end_left_out(first, count, per_page):
    return list(range(first // per_page, (first + count) // per_page))


@wrong("read-page", says="much more of the file is read")
def all_of_the_file(path, number, page_bytes):
    data = path.read_bytes()
    return bytearray(data[number * page_bytes : (number + 1) * page_bytes])


@wrong("read-page", says="a file is read as text")
def as_text(path, number, page_bytes):
    with open(path) as f:
        f.seek(number * page_bytes)
        return bytearray(f.read(page_bytes))


@wrong("write-page", says="for reading only")
def opened_for_reading(path, number, page):
    with open(path, "rb") as f:
        f.seek(number * len(page))
        f.write(page)


@wrong("write-page", says='Without the "b" a file takes text')
def opened_for_text(path, number, page):
    with open(path, "r+") as f:
        f.seek(number * len(page))
        f.write(page)


@wrong("sweep-order", says="goes from `pages` down to 1")
def from_pages_to_one(step, pages):
    if step % 2 == 1:
        return list(range(pages))
    return list(range(pages, 0, -1))


@wrong("sweep-order", says="`reverse` turns the list itself")
def reverse_gives_none(step, pages):
    order = list(range(pages))
    return order if step % 2 else order.reverse()


@wrong("evict-best", says="so that `index` stops")
def index_of_what_is_not_there(there, coming):
    return max(there, key=lambda p: coming.index(p))
