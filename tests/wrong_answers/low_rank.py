"""Wrong answers to the exercises of notebook 03 on the mechanism."""

import torch

from wrong_answers import wrong


@wrong("lora-forward", says="multiplied with alpha")
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
