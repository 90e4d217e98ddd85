"""Exercises of notebook 03: a low-rank update counted, truncated, multiplied, differentiated, put in place, merged."""

import math

import torch
from torch import nn

from qlora_lab.checks.exercise import Exercise, Misconception, draw_integers, draw_normal, edits


def lora_forward(x, w, a, b, alpha, use_rslora):
    rank = a.shape[0]
    factor = alpha / math.sqrt(rank) if use_rslora else alpha / rank
    return x @ w.T + factor * (x @ a.T @ b.T)


def _forward_case(generator: torch.Generator, number: int):
    """x (batch, n, in), w (out, in), a (r, in), b (out, r). The first case is square."""
    batch, n, n_in, n_out, r = draw_integers(generator, 2, 7 + 2 * number, 5)
    if number == 0:
        batch, n, n_in, n_out, r = 2, 6, 6, 6, 6
    tensors = draw_normal(generator, (batch, n, n_in), (n_out, n_in), (r, n_in), (n_out, r))
    return (*tensors, 1.5 + number, bool(number % 2))


def adapter_gradients(gradient, a, b, s):
    return s * b.T @ gradient, s * gradient @ a.T


def _gradients_case(generator: torch.Generator, number: int):
    n_in, n_out, r = draw_integers(generator, 2, 8 + 3 * number, 3)
    if number == 0:
        n_in = n_out = r = 5
    gradient, a, b = draw_normal(generator, (n_out, n_in), (r, n_in), (n_out, r))
    return gradient, a, torch.zeros_like(b) if number == 3 else b, 0.5 + number


def merge_adapter(w, a, b, alpha):
    update = alpha / a.shape[0] * (b @ a)
    return (w.float() + update).to(w.dtype)


def _merge_case(generator: torch.Generator, number: int):
    """Whole numbers over a power of two, so that every order of float32 operations gives the same bits."""
    r = (1, 2, 4, 8)[number % 4]
    n_in, n_out = (r, r) if number == 3 else draw_integers(generator, 3, 40, 2)
    w = (torch.randn(n_out, n_in, generator=generator) * 64).round() / 256
    a, b = (torch.randint(-511, 512, shape, generator=generator) / 1024 for shape in ((r, n_in), (n_out, r)))
    return (
        w.to((torch.bfloat16, torch.float16, torch.bfloat16, torch.float32)[number % 4]),
        a,
        b,
        (2.0, 0.5, 2.0, 4.0)[number % 4] * r,
    )


def best_rank_r(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank]


def _square_factors(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix)
    s[rank:] = 0
    return u @ torch.diag(s) @ vh


def _matrix_case(generator: torch.Generator, number: int):
    rows, columns = draw_integers(generator, 4, 12 + 3 * number, 2) if number else (8, 8)
    rank = 1 + draw_integers(generator, 0, min(rows, columns) - 2, 1)[0]
    return torch.randn(rows, columns, generator=generator), rank


def adapter_parameters(n_in: int, n_out: int, rank: int) -> int:
    return rank * (n_in + n_out)


def break_even_rank(n_in: int, n_out: int) -> int:
    return (n_in * n_out - 1) // (n_in + n_out)


def _break_even_case(generator: torch.Generator, number: int):
    """An exact tie, odd squares, where no rank is, and where little is left of the division."""
    ties = ((1024, 1024), (3, 6), (7, 7), (1, 1), (1, 40), (576, 192))
    while number >= len(ties):
        n_in, n_out = draw_integers(generator, 2, 5000, 2)
        rank, rest = divmod(n_in * n_out, n_in + n_out)
        if number == len(ties) or 0 < rest < rank // 2:
            return n_in, n_out
    return ties[number]


def find_targets(paths: list[str], targets: list[str]) -> list[str]:
    return [p for p in paths if any(p == t or p.endswith("." + t) for t in targets)]


_PATHS = [
    "model.embed_tokens",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.kv_proj",
    "model.layers.0.self_attn.v_proj",
    "model.layers.0.mlp.up_proj",
    "model.layers.0.mlp.gate_up_proj",
    "model.layers.10.mlp.up_proj",
    "model.layers.10.self_attn.v_proj.gate",
    "model.up_proj_norm",
    "model.self_attn_q_proj",
    "lm_head_norm",
    "up_proj",
    "lm_head",
]
_TARGETS = (["v_proj"], ["up_proj"], ["self_attn.q_proj"], ["proj"], ["lm_head", "v_proj"], ["0.mlp.up_proj"],
            ["mlp.up_proj", "up_proj"], ["v_proj", "lm_head", "self_attn.q_proj"])  # fmt: skip


def _targets_case(generator: torch.Generator, number: int):
    """Neither paths nor targets are sorted; some paths are meant by two targets."""
    paths = [_PATHS[i] for i in torch.randperm(len(_PATHS), generator=generator).tolist()]
    if number == 7:  # in the opposite order of the targets
        paths.sort(key=lambda path: not path.endswith("self_attn.q_proj"))
    return paths, list(_TARGETS[number])


def replace_module(model, path, module):
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _wherever_the_name_stands(model, path, module):
    leaf = path.rpartition(".")[2]
    for parent in list(model.modules()):
        if leaf in parent._modules:
            setattr(parent, leaf, module)


_PLACES = (
    ("up_proj", "down_proj"),
    ("mlp.up_proj", "mlp.down_proj", "up_proj"),
    ("layers.0.q_proj", "layers.1.q_proj", "layers.10.q_proj", "q_proj"),
    ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "lm_head"),
)


def _replacement_case(generator: torch.Generator, number: int):
    """(paths of the linear layers of a model, the one to replace). The first is at the top."""
    paths = _PLACES[number % len(_PLACES)]
    if number < 2 * len(_PLACES):
        return list(paths), paths[(0, 0, 1, 2, 1, 2, 3, 0)[number % 8]]
    return list(paths), paths[torch.randint(len(paths), (1,), generator=generator).item()]


class _Parent(nn.Module):
    """Holds modules under names and, like a ModuleList, under numbers."""

    def __getitem__(self, number: int) -> nn.Module:
        return self._modules[str(number)]


def _model_of(paths: list[str]) -> nn.Module:
    """A model with a linear layer at each path."""
    model = _Parent()
    for path in paths:
        *parents, leaf = path.split(".")
        place = model
        for name in parents:
            if name not in place._modules:
                place.add_module(name, _Parent())
            place = place._modules[name]
        place.add_module(leaf, nn.Linear(2, 2))
    return model


def _replaced(function, arguments: tuple) -> dict[str, str]:
    """Which module stands at each place of a model once `function` has replaced one, the old one being part of the new.

    Places are told as "mlp > up_proj", modules as "new", "old" with the path where it stood before, or "another".
    """
    paths, path = arguments
    model = _model_of(paths)
    new = nn.Module()
    new.base = model.get_submodule(path)
    words = {id(new): "new"} | {id(model.get_submodule(each)): f"old {each}" for each in paths}

    def places(module: nn.Module, above: tuple[str, ...] = ()):
        for name, child in module._modules.items():
            place = (*above, name)
            if id(child) in words or not child._modules:
                yield " > ".join(place), words.get(id(child), "another")
            if child is not new:
                yield from places(child, place)

    function(model, path, new)
    return dict(places(model))


def _called_with(arguments: tuple) -> str:
    paths, path = arguments
    return f"called with the path {path!r}, in a model with linear layers at {', '.join(paths)}"


def _describe_places(arguments: tuple, result: dict[str, str], expected: dict[str, str]) -> str | None:
    paths, path = arguments
    for place in {**expected, **result}:
        found, wanted = (places.get(place, "nothing") for places in (result, expected))
        if found != wanted:
            return (
                f"In a model with linear layers at {', '.join(paths)}, called with the path {path}: at {place} there "
                f"is then {found}, and there should be {wanted}."
            )
    return None


def predict_trainable(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, rank: int) -> int:
    kv = hidden // heads * kv_heads
    return layers * rank * (2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + mlp))


def _model_case(generator: torch.Generator, number: int):
    models = (
        (4096, 11_008, 32, 32, 32, 64),  # LLaMA-7B
        (4096, 14_336, 32, 32, 8, 16),  # Llama-3-8B
        (576, 1536, 30, 9, 3, 8),  # the default model
    )
    if number < len(models):
        return models[number]
    groups, kv_heads, size, layers = draw_integers(generator, 1, 9, 4)
    heads = groups * kv_heads
    return heads * 8 * size, heads * 20 * size, layers, heads, kv_heads, 1 + number


def _parts_of_forward(x, w, a, b, alpha, use_rslora):
    base = x @ w.T
    return {"base": base, "adapter": lora_forward(x, w, a, b, alpha, use_rslora) - base}


def _parts_of_adapter(n_in, n_out, rank):
    return {"A": rank * n_in, "B": rank * n_out}


def _parts_of_model(hidden, mlp, layers, heads, kv_heads, rank):
    return {
        "q and o": layers * rank * 4 * hidden,
        "k and v": layers * rank * 2 * (hidden + hidden // heads * kv_heads),
        "the MLP": layers * rank * 3 * (hidden + mlp),
    }


EXERCISES = (
    Exercise(
        "best-rank-r",
        _matrix_case,
        best_rank_r,
        (
            *edits("""
            u[:, :rank] * s[:rank] @ vh[:rank] → u[:, -rank:] * s[-rank:] @ vh[-rank:]
            2: That keeps the smallest singular values; they come sorted from large to small.

            u[:, :rank] * s[:rank] @ vh[:rank] → u[:, :rank] @ vh[:rank]
            2: The singular values are missing: without them all directions count the same.

            s[:rank] → s[:rank].square()
            2: The singular values are squared. Their squares are the energy; the matrix has them once.

            vh[:rank] → vh.T[:rank]
            vh[:rank] → vh[:, :rank].T
            vh[:rank] → torch.linalg.svd(matrix)[2][:, :rank].T
            2: torch.linalg.svd returns the third factor transposed already: take its first r rows as they are.
               With a square matrix nothing complains.

            u[:, :rank] * s[:rank] @ vh[:rank] → u[:, : rank - 1] * s[: rank - 1] @ vh[: rank - 1]
            2: That is one singular value too few.

            u[:, :rank] * s[:rank] @ vh[:rank] → matrix * (torch.arange(matrix.shape[1]) < rank)
            u[:, :rank] * s[:rank] @ vh[:rank] → matrix * (torch.arange(matrix.shape[0]) < rank)[:, None]
            1: That cuts off rows or columns. Such a matrix has rank r, but is not the nearest one.

            u[:, :rank] * s[:rank] @ vh[:rank] → matrix - u[:, :rank] * s[:rank] @ vh[:rank]
            2: That is what is left over, the part that a matrix of this rank cannot give.

            u[:, :rank] * s[:rank] → u[:, :rank] * s[:rank].sqrt()
            2: The matrix has the singular values once; you take their roots. (A and B may have one root each.)

            u[:, :rank] * s[:rank] @ vh[:rank] → u[:, rank - 1 : rank] * s[rank - 1] @ vh[rank - 1 : rank]
            1: That is one term alone, number r. The first r of them are to be summed.

            u[:, :rank] * s[:rank] @ vh[:rank] → u[:, :rank] @ (s[:rank] * vh[:rank])
            2: `s * vh` scales the columns of vh; its terms are the rows. Scale the columns of u, or write `s[:, None]`.

            u[:, :rank] * s[:rank] @ vh[:rank] → u[:, :1] * s[0] @ vh[:1]
            1: That is the first term alone. The first r of them are to be summed.
        """),
            Misconception(
                "If the matrix is not square, torch.linalg.svd gives a square u and a square vh, with more columns or "
                "rows than there are singular values. `full_matrices=False` leaves these out.",
                1,
                function=_square_factors,
            ),
        ),
        any_float=True,
        tolerance=1e-4,
    ),
    Exercise(
        "adapter-parameters",
        lambda generator, number: (*draw_integers(generator, 1, 5000, 2), *draw_integers(generator, 1, 65, 1)),
        adapter_parameters,
        edits("""
            rank * (n_in + n_out) → 2 * rank * n_in
            1: That is 2 r d, the chapter's formula, which holds for square weights only. A is as wide as the input,
               B as tall as the output.

            rank * (n_in + n_out) → 2 * rank * n_out
            1: That is 2 r d with the output's size for d; it holds for square weights only.

            rank * (n_in + n_out) → rank * n_in
            1: That is A alone; B has r numbers for each output.

            rank * (n_in + n_out) → rank * n_out
            1: That is B alone; A has r numbers for each input.

            rank * (n_in + n_out) → rank * n_in * n_out
            1: That counts the product B A, or the weight, r times over: only A and B are stored.

            rank * (n_in + n_out) → n_in * n_out + rank * (n_in + n_out)
            1: That includes the frozen weight; the question is what is trained.

            rank * (n_in + n_out) → 2 * rank * max(n_in, n_out)
            rank * (n_in + n_out) → 2 * rank * min(n_in, n_out)
            1: That takes one of the two sides twice, as for a square weight. A is as wide as the input, B as tall as
               the output.

            rank * (n_in + n_out) → rank * n_in + n_out
            rank * (n_in + n_out) → n_in + rank * n_out
            1: Only one of A and B is counted with the rank; both have r numbers for each input or output.

            rank * (n_in + n_out) → rank * n_in * rank * n_out
            2: The numbers of A and of B are multiplied together; they stand side by side.
        """),
        parts=_parts_of_adapter,
    ),
    Exercise(
        "break-even-rank",
        _break_even_case,
        break_even_rank,
        edits("""
            (n_in * n_out - 1) // (n_in + n_out) → n_in * n_out // (n_in + n_out)
            2: At exactly in * out / (in + out) both have equally many parameters, which is not fewer: with 1024 x
               1024 the answer is 511.

            (n_in * n_out - 1) // (n_in + n_out) → min(n_in, n_out)
            1: min(in, out) is the largest rank a matrix can have; an adapter stops being smaller long before.

            (n_in * n_out - 1) // (n_in + n_out) → min(n_in, n_out) // 2
            1: Half of the smaller side is right for squares only.

            (n_in * n_out - 1) // (n_in + n_out) → (min(n_in, n_out) - 1) // 2
            1: Half of the smaller side is right for squares only, and at that rank it is a tie.

            (n_in * n_out - 1) // (n_in + n_out) → n_in * n_out / (n_in + n_out)
            2: The answer is a whole number, the largest rank that satisfies it: round down.

            (n_in * n_out - 1) // (n_in + n_out) → math.ceil(n_in * n_out / (n_in + n_out))
            2: That is the first rank at which LoRA is no longer smaller; the last one at which it is comes before.

            (n_in * n_out - 1) // (n_in + n_out) → (n_in * n_out) // (n_in + n_out) - 1
            (n_in * n_out - 1) // (n_in + n_out) → max(0, (n_in * n_out) // (n_in + n_out) - 1)
            2: One is always subtracted. Only at an exact tie is that right: elsewhere rounding down is enough.

            (n_in * n_out - 1) // (n_in + n_out) → n_in // 2
            (n_in * n_out - 1) // (n_in + n_out) → (n_in - 1) // 2
            1: Half of the input's size is right for squares only, and at half of it both have equally many numbers.
        """),
        draw_more=lambda generator, number: tuple(draw_integers(generator, 1, 5000 if number % 2 else 12, 2)),
    ),
    Exercise(
        "lora-forward",
        _forward_case,
        lora_forward,
        edits("""
            alpha / math.sqrt(rank) if use_rslora else alpha / rank → alpha
            2: The adapter is multiplied by alpha; the factor is alpha / r.

            alpha / math.sqrt(rank) if use_rslora else alpha / rank → 1.0
            2: The factor is missing.

            alpha / math.sqrt(rank) if use_rslora else alpha / rank → alpha / rank
            2: use_rslora is ignored: with it the factor is alpha / sqrt(r).

            if use_rslora else → if not use_rslora else
            2: The two factors are swapped: plain LoRA has alpha / r, rsLoRA alpha / sqrt(r).

            a.shape[0] → a.shape[1]
            2: r is the number of rows of A, (r, in); you divide by its number of columns.

            x @ w.T + factor * (x @ a.T @ b.T) → factor * (x @ w.T + x @ a.T @ b.T)
            2: The factor belongs to the adapter only; you scale the base with it as well.

            x @ a.T @ b.T → x @ b.T @ a.T
            1: A and B are multiplied in the wrong order: the product is B A, and x meets A first. With square
               matrices nothing complains.

            x @ w.T + factor * (x @ a.T @ b.T) → x @ w + factor * (x @ a @ b)
            1: A weight is (out, in), so x needs its transpose. With square matrices nothing complains.

            x @ a.T @ b.T → x @ a @ b.T
            x @ a.T @ b.T → x @ a.T @ b
            1: One of A and B is not transposed: x meets the transpose of each. With square matrices nothing
               complains.

            alpha / math.sqrt(rank) if use_rslora else alpha / rank → alpha / math.sqrt(rank) if use_rslora else alpha
            2: Without rsLoRA the factor is alpha / r; you take alpha itself.

            alpha / math.sqrt(rank) if use_rslora else alpha / rank → alpha / math.sqrt(rank)
            2: The factor is that of rsLoRA in both cases; plain LoRA has alpha / r.

            alpha / math.sqrt(rank) if use_rslora else alpha / rank → alpha * rank ** (1 - use_rslora / 2)
            2: The adapter is multiplied by the rank instead of divided by it.

            alpha / math.sqrt(rank) if use_rslora else alpha / rank → rank ** (1 - use_rslora / 2) / alpha
            2: The factor is upside down: alpha / r.

            a.shape[0] → w.shape[0]
            2: r is the number of rows of A, (r, in); you divide by the number of outputs.

            x @ a.T @ b.T → x @ b @ a
            1: A and B are multiplied in the wrong order: the product is B A, and x meets A first. With square matrices
               nothing complains.

            x @ a.T @ b.T → x @ a @ b
            1: A and B are not transposed: x meets the transpose of each. With square matrices nothing complains.

            x @ w.T + factor → x @ w + factor
            1: A weight is (out, in), so x needs its transpose. With square matrices nothing complains.

            x @ w.T + factor * (x @ a.T @ b.T) → x @ (w + factor * (b @ a))
            1: The merged weight is (out, in) as well, so x needs its transpose. With square matrices nothing complains.

            x @ w.T + factor * (x @ a.T @ b.T) → w @ x + factor * (b @ a @ x)
            1: x is on the wrong side: its last dimension is the inputs, so it stands before the transposes. With
               square matrices nothing complains.
        """),
        parts=_parts_of_forward,
        any_float=True,
        tolerance=1e-5,
    ),
    Exercise(
        "find-targets",
        _targets_case,
        find_targets,
        edits("""
            p == t or p.endswith("." + t) → t in p
            1: A target has to be the end of a path: you look for it anywhere inside, which also finds what only
               contains the word.

            p == t or p.endswith("." + t) → p.endswith(t)
            2: The end has to begin after a dot: gate_up_proj also ends in up_proj.

            p == t or p.endswith("." + t) → p.rpartition(".")[2] == t
            2: You compare the last name only; a target may be several names long, as in self_attn.q_proj.

            p == t or p.endswith("." + t) → p.endswith("." + t)
            2: A module at the top has no dot before its name: its whole path is the target.

            return → return sum((find_targets(paths, [t]) for t in targets[1:]), find_targets(paths, targets[:1])) or
            2: These are the right paths in the order of the targets, or twice where two targets mean the same one.
               Go through the paths, and ask for each whether `any` target stands for it.

            for t in targets → for t in targets[:1]
            1: Only the first target counts in your answer; a path needs any one of them.

            any( → all(
            1: You want every target to stand for a path; any one is enough: `any`, not `all`.

            p == t or p.endswith("." + t) → re.search(rf"(^|\\.){t}$", p)
            2: In a regular expression a dot stands for any character: self_attn.q_proj then finds self_attn_q_proj
               as well.

            p == t or p.endswith("." + t) → p.startswith(t)
            1: You look at the beginning of a path; a target has to be its end.

            p == t or p.endswith("." + t) → t in p.split(".")
            1: You compare with any one of the names in the path, not with its end.

            p == t or p.endswith("." + t) → p == t
            1: Only whole paths are matched; a target stands for every path that ends in it.
        """),
    ),
    Exercise(
        "replace-module",
        _replacement_case,
        replace_module,
        (
            *edits("""
                setattr(model.get_submodule(parent), leaf, module) → setattr(model, path, module)
                1: You give the whole model an attribute with dots in its name. The module that holds the layer, its
                   parent, has to get it, under the last name.

                setattr(model.get_submodule(parent), leaf, module) → setattr(model, leaf, module)
                1: You put it at the top of the model. Its place is in the module that held the old one, the parent.

                setattr(model.get_submodule(parent), leaf, module) → leaf = module
                2: The model is as it was. Giving a variable another value changes no module, nor does changing a copy
                   of the model: set an attribute of the parent.

                setattr(model.get_submodule(parent), leaf, module) → setattr(model.get_submodule(path), leaf, module)
                2: You put the new one inside the old one, which stays where it is. Go one level up, to the parent.

                model.get_submodule(parent) → next(m for m in model.modules() if leaf in m._modules)
                2: You put it in the place of the first module of that last name. The path says which one is meant.

                path.rpartition(".") → path.partition(".")
                1: You cut the path at its first dot; what is before the last dot is the parent.

                leaf, module) → leaf, nn.Module())
                2: Something other than `module` stands there now.

                setattr(model.get_submodule(parent), leaf, module) → delattr(model.get_submodule(parent), leaf)
                2: The old one is gone and the new one is nowhere: set the parent's attribute after removing it.

                parent, _, leaf = path.rpartition(".") → parent, leaf = path.rsplit(".", 1)
                1: A path without a dot has one part only: then the model itself is the parent.
            """),
            Misconception(
                "You replace every module of that last name. Only the one at this path is meant.",
                hint=2,
                function=_wherever_the_name_stands,
            ),
        ),
        call=_replaced,
        situation=_called_with,
        describe=_describe_places,
    ),
    Exercise(
        "adapter-gradients",
        _gradients_case,
        adapter_gradients,
        edits("""
            s * b.T @ gradient, s * gradient @ a.T → b.T @ gradient, gradient @ a.T
            2: The factor s is missing: W = W0 + s B A, so both gradients carry it.

            s * b.T @ gradient, s * gradient @ a.T → s * gradient @ a.T, s * b.T @ gradient
            1: dA and dB are swapped: return A's first.

            s * b.T @ gradient, s * gradient @ a.T → (s * b.T @ gradient).T, (s * gradient @ a.T).T
            1: These are the transposes: a gradient has the shape of what it belongs to, A (r, in) and B (out, r).

            s * b.T @ gradient, s * gradient @ a.T → s * b @ gradient, s * gradient @ a
            2: A transpose is missing: dA = s B^T G and dB = s G A^T. With square matrices nothing complains.

            s * b.T @ gradient → s * a
            2: dA does not depend on B in your answer. For the product B A, A's gradient passes through B.

            s * b.T @ gradient → s * b @ gradient
            s * gradient @ a.T → s * gradient @ a
            2: A transpose is missing: dA = s B^T G and dB = s G A^T. With square matrices nothing complains.

            s * b.T @ gradient, s * gradient @ a.T → s * gradient @ b.T, s * a.T @ gradient
            s * b.T @ gradient, s * gradient @ a.T → s * gradient @ b, s * a @ gradient
            s * b.T @ gradient, s * gradient @ a.T → s * b @ gradient, s * a @ gradient
            s * b.T @ gradient, s * gradient @ a.T → s * gradient.T @ b.T, s * a.T @ gradient.T
            2: The factors are in the wrong order: dA = s B^T G and dB = s G A^T. With square matrices nothing
               complains.

            s * b.T @ gradient, s * gradient @ a.T → s * a @ gradient, s * gradient @ b
            s * b.T @ gradient, s * gradient @ a.T → s * a.T @ gradient, s * gradient @ b.T
            2: Each half gets its gradient through itself; A's passes through B, and B's through A.
        """),
        any_float=True,
        tolerance=1e-5,
    ),
    Exercise(
        "merge-adapter",
        _merge_case,
        merge_adapter,
        edits("""
            alpha / a.shape[0] * (b @ a) → b @ a
            1: The factor alpha / r is missing.

            alpha / a.shape[0] * (b @ a) → alpha * (b @ a)
            1: You multiply by alpha instead of alpha / r.

            (w.float() + update).to(w.dtype) → w + update.to(w.dtype)
            2: The update is rounded to the weight's dtype before the sum and the sum once more: two roundings where
               one is enough. Add in float32.

            (w.float() + update).to(w.dtype) → w + alpha / len(a) * (b.to(w.dtype) @ a.to(w.dtype))
            2: A and B are rounded to the weight's dtype before they are multiplied. Compute in float32 and round
               once, at the end.

            (w.float() + update).to(w.dtype) → w.float() + update
            2: The merged weight should have the dtype of the base, so that it costs no more.

            w.float() + update → w.float() - update
            1: That takes the adapter out (unmerge).

            a.shape[0] → a.shape[1]
            1: r is the number of rows of A, (r, in); you divide by its number of columns.

            a.shape[0] → b.shape[0]
            1: r is the number of rows of A, and of columns of B, (out, r); you divide by B's number of rows.

            alpha / a.shape[0] → alpha / math.sqrt(a.shape[0])
            1: That is rsLoRA's factor; here it is alpha / r.

            w.float() + update → (w.float() + update).bfloat16()
            w.float() + update → (w.float() + update).half()
            (w.float() + update).to(w.dtype) → (w.float() + update).bfloat16()
            (w.float() + update).to(w.dtype) → (w.float() + update).half()
            2: The merged weight is rounded to one 16-bit dtype, whatever that of the base is: `.to(w.dtype)`.

            w.float() + update → update
            1: The base is missing: this is the update alone.

            w.float() + update → alpha / a.shape[0] * (w.float() + b @ a)
            1: The factor belongs to the update only; you scale the base with it as well.

            b @ a → a @ b
            1: The product is B A: B is (out, r) and A (r, in), which makes (out, in).
        """),
    ),
    Exercise(
        "predict-trainable",
        _model_case,
        predict_trainable,
        edits("""
            hidden // heads * kv_heads → hidden
            1: Keys and values have kv_heads heads only: k_proj and v_proj are narrower than q_proj.

            hidden // heads * kv_heads → kv_heads
            hidden // heads * kv_heads → hidden // heads
            1: k and v put out kv_heads heads of hidden // heads numbers each, not one number or one head.

            layers * rank → rank
            3: That is one block; a model has `layers` of them.

            2 * (hidden + kv) + 3 * (hidden + mlp) → 2 * (hidden + kv)
            2: That is the attention alone; the MLP has three linear layers more.

            3 * (hidden + mlp) → 2 * (hidden + mlp)
            2: The MLP of these models has three linear layers, not two: gate, up and down.

            return → return layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * mlp) +
            3: Those are the frozen weights as well; an adapter has r (in + out) numbers.

            2 * (hidden + hidden) → hidden + hidden
            2: The output projection is missing: q, k, v and o.

            hidden // heads * kv_heads → hidden // kv_heads
            hidden // heads * kv_heads → hidden * kv_heads
            1: Every head has hidden // heads numbers, for keys and values too; there are kv_heads of those.

            2 * (hidden + kv) + 3 → 2 * (kv + kv) + 3
            1: k and v read `hidden` numbers; only what they put out is narrower.

            return → return layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * mlp) + 0 *
            3: Those are the frozen weights; an adapter has r (in + out) numbers.

            2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + mlp) → (hidden + hidden) + (hidden + kv)
            2: That is two of the seven layers, q and v.

            return layers * rank * → return layers * rank * hidden * (2 * hidden + 2 * kv + 3 * mlp) + 0 *
            3: A layer's two sizes are multiplied; an adapter has r numbers for each input and r for each output.

            2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + mlp) → 7 * (hidden + hidden)
            2: That takes all seven layers to be square. The MLP's are wider, k and v may be narrower.
        """),
        parts=_parts_of_model,
    ),
)
