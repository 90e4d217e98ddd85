"""Wrong answers to the exercises of notebook 05 about the layer."""

from wrong_answers import wrong


@wrong("qlora-forward", says="without its factor")
def no_scaling(x, w, a, b, s):
    return x @ w.T + x @ a.T @ b.T


@wrong("qlora-forward", says="the adapter's share only")
def all_scaled(x, w, a, b, s):
    return s * (x @ (w + b @ a).T)


@wrong("qlora-forward", says="base alone")
def no_adapter(x, w, a, b, s):
    return x @ w.transpose(0, 1)


@wrong("qlora-forward", says="nothing complains")
def not_transposed(x, w, a, b, s):
    return x @ w + s * (x @ a.T) @ b.T


@wrong("qlora-forward", says="x goes through A first")
def wrong_order(x, w, a, b, s):
    return x @ w.T + s * x @ (a @ b)


@wrong("qlora-backward", says="only the base's share")
def base_only(g, x, w, a, b, s):
    return g @ w, s * (g @ b).T @ x, s * g.T @ (x @ a.T)


@wrong("qlora-backward", says="missing in dA and dB")
def unscaled(g, x, w, a, b, s):
    return g @ w + s * g @ b @ a, (g @ b).T @ x, g.T @ (x @ a.T)


@wrong("qlora-backward", says="are transposed")
def transposed(g, x, w, a, b, s):
    return g @ w + s * g @ b @ a, (s * (g @ b).T @ x).T, (s * g.T @ (x @ a.T)).T


@wrong("qlora-backward", says="y = x W^T, so dx = g W")
def weight_turned(g, x, w, a, b, s):
    return g @ w.T + s * g @ b @ a, s * (g @ b).T @ x, s * g.T @ (x @ a.T)


@wrong("qlora-backward", says="2 values instead of 3")
def forgets_dx(g, x, w, a, b, s):
    return s * (g @ b).T @ x, s * g.T @ (x @ a.T)


@wrong("qlora-forward", says="One of A and B is not transposed")
def a_as_it_is(x, w, a, b, s):
    return x @ w.T + s * (x @ a) @ b.T


@wrong("qlora-forward", says="One of A and B is not transposed")
def b_as_it_is(x, w, a, b, s):
    return x @ w.T + s * (x @ a.T) @ b
