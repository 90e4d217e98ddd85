"""Exercises of notebook 03: how many parameters adapters have, and which layers get one."""

import re

import torch

from qlora_lab.checks.exercise import Exercise, Misconception


def _numbers(generator: torch.Generator, low: int, high: int, count: int) -> list[int]:
    return torch.randint(low, high, (count,), generator=generator).tolist()


def adapter_parameters(n_in: int, n_out: int, rank: int) -> int:
    return rank * (n_in + n_out)


def break_even_rank(n_in: int, n_out: int) -> int:
    return (n_in * n_out - 1) // (n_in + n_out)


def _break_even_case(generator: torch.Generator, number: int):
    ties = (
        (1024, 1024),
        (3, 6),
        (7, 7),
        (1, 1),
        (1, 40),
        (576, 192),
    )  # an exact tie, odd squares, and where no rank is
    return ties[number] if number < len(ties) else tuple(_numbers(generator, 2, 5000, 2))


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
    groups, kv_heads, size, layers = _numbers(generator, 1, 9, 4)
    heads = groups * kv_heads
    return heads * 8 * size, heads * 20 * size, layers, heads, kv_heads, 1 + number


EXERCISES = (
    Exercise(
        "adapter-parameters",
        lambda generator, number: tuple(_numbers(generator, 1, 5000, 2) + _numbers(generator, 1, 65, 1)),
        adapter_parameters,
        (
            Misconception(
                "That is 2 r d, the chapter's formula, which holds for square weights only. A is as wide as the input, "
                "B as tall as the output. Open hint 1.",
                lambda i, o, r: 2 * r * i,
            ),
            Misconception(
                "That is 2 r d with the output's size for d; it holds for square weights only. Open hint 1.",
                lambda i, o, r: 2 * r * o,
            ),
            Misconception("That is A alone; B has r numbers for each output. Open hint 1.", lambda i, o, r: r * i),
            Misconception("That is B alone; A has r numbers for each input. Open hint 1.", lambda i, o, r: r * o),
            Misconception(
                "That counts the product B A, or the weight, r times over: only A and B are stored. Open hint 1.",
                lambda i, o, r: r * i * o,
            ),
            Misconception(
                "That includes the frozen weight; the question is what is trained. Open hint 1.",
                lambda i, o, r: i * o + r * (i + o),
            ),
        ),
    ),
    Exercise(
        "break-even-rank",
        _break_even_case,
        break_even_rank,
        (
            Misconception(
                "At exactly in * out / (in + out) both have equally many parameters, which is not fewer: with 1024 x "
                "1024 the answer is 511. Open hint 2.",
                lambda i, o: i * o // (i + o),
            ),
            Misconception(
                "min(in, out) is the largest rank a matrix can have; an adapter stops being smaller long before. "
                "Open hint 1.",
                lambda i, o: min(i, o),
            ),
            Misconception(
                "Half of the smaller side is right for squares only. Open hint 1.", lambda i, o: min(i, o) // 2
            ),
            Misconception(
                "Half of the smaller side is right for squares only, and at that rank it is a tie. Open hint 1.",
                lambda i, o: (min(i, o) - 1) // 2,
            ),
            Misconception(
                "The answer is a whole number, the largest rank that satisfies it: round down. Open hint 2.",
                lambda i, o: i * o / (i + o),
            ),
            Misconception(
                "That is the first rank at which LoRA is no longer smaller; the last one at which it is comes before. "
                "Open hint 2.",
                lambda i, o: -(-i * o // (i + o)),
            ),
        ),
        draw_more=lambda generator, number: tuple(_numbers(generator, 1, 5000 if number % 2 else 12, 2)),
    ),
    Exercise(
        "find-targets",
        _targets_case,
        find_targets,
        (
            Misconception(
                "A target has to be the end of a path: you look for it anywhere inside, which also finds what only "
                "contains the word. Open hint 1.",
                lambda paths, targets: [p for p in paths if any(t in p for t in targets)],
            ),
            Misconception(
                "The end has to begin after a dot: gate_up_proj also ends in up_proj. Open hint 2.",
                lambda paths, targets: [p for p in paths if p.endswith(tuple(targets))],
            ),
            Misconception(
                "You compare the last name only; a target may be several names long, as in self_attn.q_proj. "
                "Open hint 2.",
                lambda paths, targets: [p for p in paths if p.rpartition(".")[2] in targets],
            ),
            Misconception(
                "A module at the top has no dot before its name: its whole path is the target. Open hint 2.",
                lambda paths, targets: [p for p in paths if any(p.endswith("." + t) for t in targets)],
            ),
            Misconception(
                "These are the right paths in the order of the targets, or twice where two targets mean the same one. "
                "Go through the paths, and ask for each whether `any` target stands for it. Open hint 2.",
                lambda paths, targets: [path for target in targets for path in find_targets(paths, [target])],
            ),
            Misconception(
                "Only the first target counts in your answer; a path needs any one of them. Open hint 1.",
                lambda paths, targets: find_targets(paths, targets[:1]),
            ),
            Misconception(
                "You want every target to stand for a path; any one is enough: `any`, not `all`. Open hint 1.",
                lambda paths, targets: [p for p in paths if all(find_targets([p], [target]) for target in targets)],
            ),
            Misconception(
                "In a regular expression a dot stands for any character: self_attn.q_proj then finds self_attn_q_proj "
                "as well. Open hint 2.",
                lambda paths, targets: [p for p in paths if any(re.search(rf"(^|\.){t}$", p) for t in targets)],
            ),
            Misconception(
                "You look at the beginning of a path; a target has to be its end. Open hint 1.",
                lambda paths, targets: [p for p in paths if p.startswith(tuple(targets))],
            ),
            Misconception(
                "You compare with any one of the names in the path, not with its end. Open hint 1.",
                lambda paths, targets: [p for p in paths if set(p.split(".")) & set(targets)],
            ),
            Misconception(
                "Only whole paths are matched; a target stands for every path that ends in it. Open hint 1.",
                lambda paths, targets: [p for p in paths if p in targets],
            ),
        ),
    ),
    Exercise(
        "predict-trainable",
        _model_case,
        predict_trainable,
        (
            Misconception(
                "Keys and values have kv_heads heads only: k_proj and v_proj are narrower than q_proj. Open hint 1.",
                lambda d, m, n, h, k, r: n * r * (8 * d + 3 * (d + m)),
            ),
            *(
                Misconception(
                    "k and v put out kv_heads heads of hidden // heads numbers each, not one number or one head. "
                    "Open hint 1.",
                    lambda d, m, n, h, k, r, out=out: n * r * (4 * d + 2 * (d + out(d // h, k)) + 3 * (d + m)),
                )
                for out in (lambda size, kv_heads: kv_heads, lambda size, kv_heads: size)
            ),
            Misconception(
                "That is one block; a model has `layers` of them. Open hint 3.",
                lambda d, m, n, h, k, r: predict_trainable(d, m, 1, h, k, r),
            ),
            Misconception(
                "That is the attention alone; the MLP has three linear layers more. Open hint 2.",
                lambda d, m, n, h, k, r: predict_trainable(d, m, n, h, k, r) - 3 * n * r * (d + m),
            ),
            Misconception(
                "The MLP of these models has three linear layers, not two: gate, up and down. Open hint 2.",
                lambda d, m, n, h, k, r: predict_trainable(d, m, n, h, k, r) - n * r * (d + m),
            ),
            Misconception(
                "Those are the frozen weights as well; an adapter has r (in + out) numbers. Open hint 3.",
                lambda d, m, n, h, k, r: (
                    predict_trainable(d, m, n, h, k, r) + n * (2 * d * d + 2 * d * (d // h * k) + 3 * d * m)
                ),
            ),
            Misconception(
                "The output projection is missing: q, k, v and o. Open hint 2.",
                lambda d, m, n, h, k, r: predict_trainable(d, m, n, h, k, r) - 2 * n * r * d,
            ),
        ),
    ),
)
