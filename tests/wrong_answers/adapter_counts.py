"""Wrong answers to the exercises of notebook 03 on counts and targets."""

import math
import re

from wrong_answers import wrong


@wrong("adapter-parameters", says="square weights only")
def as_in_the_theorem(n_in, n_out, rank):
    return 2 * rank * n_in


@wrong("adapter-parameters", says="A alone")
def only_a(n_in, n_out, rank):
    return n_in * rank


@wrong("adapter-parameters", says="B A, or the weight")
def of_the_product(n_in, n_out, rank):
    return n_in * rank * n_out


@wrong("adapter-parameters", says="includes the frozen weight")
def frozen_too(n_in, n_out, rank):
    return n_in * n_out + n_in * rank + rank * n_out


@wrong("break-even-rank", says="not fewer")
def tie_counts(n_in, n_out):
    return (n_in * n_out) // (n_in + n_out)


@wrong("break-even-rank", says="largest rank a matrix can have")
def full_rank(n_in, n_out):
    return min(n_in, n_out)


@wrong("break-even-rank", says="squares only")
def half_of_a_side(n_in, n_out):
    return min(n_in, n_out) // 2


@wrong("break-even-rank", says="round down")
def not_whole(n_in, n_out):
    return n_in * n_out / (n_in + n_out)


@wrong("break-even-rank", says="comes before")
def first_that_is_not(n_in, n_out):
    return math.ceil(n_in * n_out / (n_in + n_out))


@wrong("find-targets", says="anywhere inside")
def substring(paths, targets):
    return [path for path in paths if any(target in path for target in targets)]


@wrong("find-targets", says="gate_up_proj")
def any_end(paths, targets):
    return [path for path in paths if any(path.endswith(target) for target in targets)]


@wrong("find-targets", says="last name only")
def leaf(paths, targets):
    return [path for path in paths if path.split(".")[-1] in targets]


@wrong("find-targets", says="no dot before")
def forgets_the_top(paths, targets):
    return [path for path in paths if path.endswith(tuple("." + target for target in targets))]


@wrong("predict-trainable", says="narrower")
def all_heads_alike(hidden, mlp, layers, heads, kv_heads, rank):
    return layers * rank * (4 * 2 * hidden + 3 * (hidden + mlp))


@wrong("predict-trainable", says="attention alone")
def no_mlp(hidden, mlp, layers, heads, kv_heads, rank):
    kv = hidden // heads * kv_heads
    return layers * rank * (2 * 2 * hidden + 2 * (hidden + kv))


@wrong("predict-trainable", says="one block")
def one_block(hidden, mlp, layers, heads, kv_heads, rank):
    kv = hidden // heads * kv_heads
    return rank * (2 * 2 * hidden + 2 * (hidden + kv) + 3 * (hidden + mlp))


@wrong("predict-trainable", says="three linear layers, not two")
def two_in_the_mlp(hidden, mlp, layers, heads, kv_heads, rank):
    kv = hidden // heads * kv_heads
    return layers * rank * (2 * 2 * hidden + 2 * (hidden + kv) + 2 * (hidden + mlp))


@wrong("find-targets", says="in the order of the targets")
def for_each_target(paths, targets):
    found = []
    for target in targets:
        found += [path for path in paths if path == target or path.endswith("." + target)]
    return found


@wrong("find-targets", says="Only the first target")
def first_target(paths, targets):
    return [path for path in paths if ("." + path).endswith("." + targets[0])]


@wrong("find-targets", says="`any`, not `all`")
def all_targets(paths, targets):
    return [path for path in paths if all(("." + path).endswith("." + target) for target in targets)]


@wrong("find-targets", says="stands for any character")
def regular_expression(paths, targets):
    return [path for path in paths if re.search(r"(^|\.)(" + "|".join(targets) + ")$", path)]


@wrong("find-targets", says="beginning of a path")
def beginnings(paths, targets):
    return [path for path in paths if any(path.startswith(target) for target in targets)]


@wrong("find-targets", says="instead of")
def names_inside(paths, targets):
    return [path for path in paths if any(f".{target}." in f".{path}." for target in targets)]


@wrong("predict-trainable", says="not one number or one head")
def one_number_a_head(hidden, mlp, layers, heads, kv_heads, rank):
    return layers * rank * (2 * 2 * hidden + 2 * (hidden + kv_heads) + 3 * (hidden + mlp))
