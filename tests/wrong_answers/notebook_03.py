"""Wrong answers to the exercises of notebook 03."""

import copy
import math
import re

import torch

from wrong_answers import wrong


@wrong("lora-forward", says="multiplied by alpha")
def alpha_alone(x, w, a, b, alpha, use_rslora):
    return x @ w.T + alpha * (x @ a.T) @ b.T


@wrong("lora-forward", says="ignored")
def always_plain(x, w, a, b, alpha, use_rslora):
    return x @ (w + alpha / a.shape[0] * b @ a).T


@wrong("lora-forward", says="number of columns")
def rank_from_the_wrong_side(x, w, a, b, alpha, use_rslora):
    rank = a.shape[-1]
    return x @ w.T + alpha / (rank**0.5 if use_rslora else rank) * x @ a.T @ b.T


@wrong("lora-forward", says="wrong order")
def product_a_b(x, w, a, b, alpha, use_rslora):
    rank = a.shape[0]
    return x @ (w + alpha / (rank**0.5 if use_rslora else rank) * a @ b).T


@wrong("lora-forward", says="scale the base")
def everything_scaled(x, w, a, b, alpha, use_rslora):
    rank = a.shape[0]
    return (x @ w.T + x @ a.T @ b.T) * alpha / (rank**0.5 if use_rslora else rank)


@wrong("adapter-gradients", says="s is missing")
def unscaled(gradient, a, b, s):
    return b.T @ gradient, gradient @ a.T


@wrong("adapter-gradients", says="are swapped")
def swapped(gradient, a, b, s):
    return s * gradient @ a.T, s * b.T @ gradient


@wrong("adapter-gradients", says="are the transposes")
def transposed(gradient, a, b, s):
    return s * gradient.T @ b, s * a @ gradient.T


@wrong("adapter-gradients", says="transpose is missing")
def not_turned(gradient, a, b, s):
    return s * b @ gradient, s * gradient @ a


@wrong("merge-adapter", says="alpha / r is missing")
def no_factor(w, a, b, alpha):
    return (w.float() + b @ a).to(w.dtype)


@wrong("merge-adapter", says="two roundings")
def rounded_twice(w, a, b, alpha):
    delta = (b @ a) * (alpha / a.shape[0])
    return w + delta.to(w.dtype)


@wrong("merge-adapter", says="dtype of the base")
def left_in_float32(w, a, b, alpha):
    return w + (b @ a) * (alpha / a.shape[0])


@wrong("merge-adapter", says="changes its arguments")
def in_place(w, a, b, alpha):
    return w.add_((b @ a) * (alpha / a.shape[0]))


@wrong("best-rank-r", says="smallest singular values")
def from_the_wrong_end(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s.clone()
    s[:-rank] = 0
    return u @ torch.diag(s) @ vh


@wrong("best-rank-r", says="without them")
def no_singular_values(matrix, rank):
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ vh[:rank]


@wrong("best-rank-r", says="transposed already")
def turned_again(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ torch.diag(s[:rank]) @ vh.T[:rank]


@wrong("best-rank-r", says="cuts off")
def first_columns(matrix, rank):
    kept = matrix.clone()
    kept[:, rank:] = 0
    return kept


@wrong("lora-forward", says="One of A and B is not transposed")
def b_not_turned(x, w, a, b, alpha, use_rslora):
    rank = a.shape[0]
    return x @ w.T + alpha / (rank**0.5 if use_rslora else rank) * (x @ a.T @ b)


@wrong("adapter-gradients", says="value 2 of 2 differs")
def s_in_one_only(gradient, a, b, s):
    return s * b.T @ gradient, gradient @ a.T


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


@wrong("replace-module", says="dots in its name")
def on_the_whole_model(model, path, module):
    model._modules[path] = module


@wrong("replace-module", says="at the top of the model")
def last_name_at_the_top(model, path, module):
    setattr(model, path.split(".")[-1], module)


@wrong("replace-module", says="changes no module")
def a_variable(model, path, module):
    place = model.get_submodule(path)
    place = module  # noqa: F841
    return model


@wrong("replace-module", says="inside the old one")
def in_the_old_one(model, path, module):
    model.get_submodule(path).add_module(path.split(".")[-1], module)


@wrong("replace-module", says="every module of that last name")
def wherever_the_name_stands(model, path, module):
    leaf = path.split(".")[-1]
    for name, _ in list(model.named_modules()):
        if name.split(".")[-1] == leaf:
            setattr(model.get_submodule(name.rpartition(".")[0]), leaf, module)


@wrong("replace-module", says="changes no module")
def in_a_copy(model, path, module):
    model = copy.deepcopy(model)
    setattr(model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], module)
    return model


@wrong("replace-module", says="ValueError")
def no_parent_at_the_top(model, path, module):
    parent, leaf = path.rsplit(".", 1)
    setattr(model.get_submodule(parent), leaf, module)


@wrong("best-rank-r", says="the third factor transposed already")
def transposed_twice(matrix, rank):
    u, s, v = torch.linalg.svd(matrix)
    return u[:, :rank] @ torch.diag(s[:rank]) @ v[:, :rank].T


@wrong("best-rank-r", says="`full_matrices=False` leaves these out")
def square_factors(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix)
    s[rank:] = 0
    return u @ torch.diag(s) @ vh


@wrong("best-rank-r", says="one term alone, number r")
def one_term(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return s[rank - 1] * torch.outer(u[:, rank - 1], vh[rank - 1])


@wrong("best-rank-r", says="scales the columns of vh")
def columns_of_vh_scaled(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ (s[:rank] * vh[:rank])


@wrong("adapter-parameters", says="multiplied together")
def a_times_b(n_in, n_out, rank):
    return rank * n_in * n_out * rank


@wrong("break-even-rank", says="Half of the input's size")
def half_of_the_input(n_in, n_out):
    return n_in // 2


@wrong("lora-forward", says="x is on the wrong side")
def x_on_the_right(x, w, a, b, alpha, use_rslora):
    s = alpha / a.shape[0]
    return w @ x + s * (b @ a @ x)


@wrong("replace-module", says="the model itself is the parent")
def two_parts_expected(model, path, module):
    parent, name = path.rsplit(".", 1)
    setattr(model.get_submodule(parent), name, module)


@wrong("replace-module", says="nor does changing a copy")
def a_copy_is_changed(model, path, module):
    model = copy.deepcopy(model)
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
    return model


@wrong("adapter-gradients", says="in the wrong order")
def no_transposes_and_the_wrong_order(gradient, a, b, s):
    return s * b @ gradient, s * a @ gradient


@wrong("merge-adapter", says="The product is B A")
def a_times_b_in_the_update(w, a, b, alpha):
    return (w.float() + alpha / a.shape[0] * (a @ b)).to(w.dtype)


@wrong("merge-adapter", says="rounded to one 16-bit dtype")
def always_half(w, a, b, alpha):
    return (w.float() + alpha / a.shape[0] * b @ a).half()


@wrong("predict-trainable", says="takes all seven layers to be square")
def seven_squares(hidden, mlp, layers, heads, kv_heads, rank):
    return layers * 7 * 2 * rank * hidden


@wrong("predict-trainable", says="Every head has hidden // heads numbers")
def heads_as_wide_as_the_model(hidden, mlp, layers, heads, kv_heads, rank):
    kv = kv_heads * hidden
    return layers * rank * (4 * hidden + 2 * (hidden + kv) + 3 * (hidden + mlp))
