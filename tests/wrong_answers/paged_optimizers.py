"""Wrong answers to the exercises of notebook 04 about paging."""

from wrong_answers import wrong


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
