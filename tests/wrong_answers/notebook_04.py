"""Wrong answers to the exercises of notebook 04."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

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


@wrong("read-page", says="Is there a `return`")
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


@wrong("paged-sweep", says="not written to the file first")
def forgets_to_write(pages, order, change, evict):
    for place, number in enumerate(order):
        if number not in pages.ram and len(pages.ram) >= pages.slots:
            del pages.ram[evict(pages.last_used, set(order[place:]))]
        if number not in pages.ram:
            pages.ram[number] = pages.read(number)
        change(number, pages.ram[number])
        pages.touch(number)


@wrong("paged-sweep", says="one page too many in RAM")
def takes_one_more(pages, order, change, evict):
    for place, number in enumerate(order):
        if number not in pages.ram:
            if len(pages.ram) == pages.slots + 1:
                leaves = evict(pages.last_used, set(order[place:]))
                pages.write(leaves, pages.ram.pop(leaves))
            pages.ram[number] = pages.read(number)
        change(number, pages.ram[number])
        pages.touch(number)


@wrong("paged-sweep", says="Has one left before another is read")
def reads_before_it_evicts(pages, order, change, evict):
    for place, number in enumerate(order):
        if number not in pages.ram:
            pages.ram[number] = pages.read(number)
            if len(pages.ram) > pages.slots:
                leaves = evict({k: v for k, v in pages.last_used.items() if k != number}, set(order[place:]))
                pages.write(leaves, pages.ram.pop(leaves))
        change(number, pages.ram[number])
        pages.touch(number)


@wrong("paged-sweep", says="visited by number")
def by_number(pages, order, change, evict):
    order = sorted(order)
    for place, number in enumerate(order):
        if number not in pages.ram:
            if len(pages.ram) == pages.slots:
                leaves = evict(pages.last_used, set(order[place:]))
                pages.write(leaves, pages.ram.pop(leaves))
            pages.ram[number] = pages.read(number)
        change(number, pages.ram[number])
        pages.touch(number)


@wrong("paged-sweep", says="read from the file once more")
def reads_always(pages, order, change, evict):
    for place, number in enumerate(order):
        if len(pages.ram) == pages.slots and number not in pages.ram:
            leaves = evict(pages.last_used, set(order[place:]))
            pages.write(leaves, pages.ram.pop(leaves))
        pages.ram[number] = pages.read(number)
        change(number, pages.ram[number])
        pages.touch(number)


@wrong("paged-sweep", says="which pages this sweep still needs")
def nothing_is_due(pages, order, change, evict):
    for number in order:
        if number not in pages.ram:
            if len(pages.ram) == pages.slots:
                leaves = evict(pages.last_used, set())
                pages.write(leaves, pages.ram.pop(leaves))
            pages.ram[number] = pages.read(number)
        change(number, pages.ram[number])
        pages.touch(number)


@wrong("paged-sweep", says="11 writes; with the page that `evict` names leaving each time, there are 4")
def writes_at_once(pages, order, change, evict):
    for place, number in enumerate(order):
        if number not in pages.ram:
            if len(pages.ram) == pages.slots:
                leaves = evict(pages.last_used, set(order[place:]))
                pages.write(leaves, pages.ram.pop(leaves))
            pages.ram[number] = pages.read(number)
        change(number, pages.ram[number])
        pages.write(number, pages.ram[number])
        pages.touch(number)


@wrong("paged-sweep", says="hold something else than they should")
def forgets_all_at_the_end(pages, order, change, evict):
    for place, number in enumerate(order):
        if number not in pages.ram:
            if len(pages.ram) == pages.slots:
                leaves = evict(pages.last_used, set(order[place:]))
                pages.write(leaves, pages.ram.pop(leaves))
            pages.ram[number] = pages.read(number)
        change(number, pages.ram[number])
        pages.touch(number)
    pages.ram.clear()


def ahead(pages, order, change, evict, start, exchange, in_ram=True, count=0):
    """A sweep that reads ahead, with what can be wrong about it as arguments."""
    coming = None
    for place in range(-1, len(order)):
        if coming is not None:
            pages.ram[order[place]] = coming.result()
            coming = None
        if place + 1 < len(order) and not ((in_ram or place < 0) and order[place + 1] in pages.ram):
            leaves = None
            if len(pages.ram) >= pages.slots + count:
                leaves = evict(pages.last_used, set(order[max(place, 0) :]))
            coming = start(exchange, leaves, pages.ram.pop(leaves, None), order[place + 1])
        if place >= 0:
            change(order[place], pages.ram[order[place]])
            pages.touch(order[place])


def moves(pages, write=True):
    def exchange(leaves, page, comes):
        if write and leaves is not None:
            pages.write(leaves, page)
        return pages.read(comes)

    return exchange


class Ready:
    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value


@wrong("prefetch-sweep", says="`change` waits for that")
def reads_when_needed(pages, order, change, evict):
    for place, number in enumerate(order):
        if number not in pages.ram:
            if len(pages.ram) == pages.slots:
                leaves = evict(pages.last_used, set(order[place:]))
                pages.write(leaves, pages.ram.pop(leaves))
            pages.ram[number] = pages.read(number)
        change(number, pages.ram[number])
        pages.touch(number)


@wrong("prefetch-sweep", says="by the same thread")
def without_a_thread(pages, order, change, evict):
    ahead(pages, order, change, evict, lambda work, *given: Ready(work(*given)), moves(pages))


@wrong("prefetch-sweep", says="is waited for before `change` is called")
def joins_at_once(pages, order, change, evict):
    def start(work, *given):
        found = []
        thread = threading.Thread(target=lambda: found.append(work(*given)))
        thread.start()
        thread.join()
        return Ready(found[0])

    ahead(pages, order, change, evict, start, moves(pages))


@wrong("prefetch-sweep", says="not written to the file first")
def drops_what_leaves(pages, order, change, evict):
    with ThreadPoolExecutor(1) as thread:
        ahead(pages, order, change, evict, thread.submit, moves(pages, write=False))


@wrong("prefetch-sweep", says="the one that is on its way needs a slot")
def forgets_the_one_on_its_way(pages, order, change, evict):
    with ThreadPoolExecutor(1) as thread:
        ahead(pages, order, change, evict, thread.submit, moves(pages), count=1)


@wrong("prefetch-sweep", says="is read from the file once more")
def reads_the_page_that_is_being_changed(pages, order, change, evict):
    with ThreadPoolExecutor(1) as thread:
        ahead(pages, order, change, evict, thread.submit, moves(pages), in_ram=False)


@wrong("prefetch-sweep", says="before the one that leaves is written")
def reads_first(pages, order, change, evict):
    def exchange(leaves, page, comes):
        came = pages.read(comes)
        if leaves is not None:
            pages.write(leaves, page)
        return came

    with ThreadPoolExecutor(1) as thread:
        ahead(pages, order, change, evict, thread.submit, exchange)


@wrong("prefetch-sweep", says="never changed")
def loses_the_last_page(pages, order, change, evict):
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(pages.read, order[0]) if order[0] not in pages.ram else None
        for place, (number, following) in enumerate(pairwise(order)):
            if coming is not None:
                pages.ram[number], coming = coming.result(), None
            if following not in pages.ram:
                leaves = evict(pages.last_used, set(order[place:])) if len(pages.ram) == pages.slots else None
                coming = thread.submit(moves(pages), leaves, pages.ram.pop(leaves, None), following)
            change(number, pages.ram[number])
            pages.touch(number)


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
