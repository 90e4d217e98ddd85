"""What a model can do: greedy answers in batches, exact match with an interval, loss per token on a text."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from qlora_lab.loss import supervised_loss_sum
from qlora_lab.machine import processes
from qlora_lab.machine.free_memory import free_memory
from qlora_lab.models.inputs import input_device, padding_token
from qlora_lab.qlora import QLoRALinear
from qlora_lab.tasks.chat import stop_tokens
from qlora_lab.tasks.function_calls import CORRECT, classify_answer

KEPT_SHARE = 0.5  # of the free memory, which decoded weights may take; the rest is for the key-value cache and others


@dataclass(frozen=True)
class Answer:
    """One generated answer, and `CORRECT` or what is wrong with it (see `tasks.classify_answer`)."""

    example: object
    text: str
    verdict: str

    @property
    def correct(self) -> bool:
        return self.verdict == CORRECT


@dataclass(frozen=True)
class Evaluation:
    """Answers to a list of examples and how many are exactly right."""

    answers: list[Answer] = field(repr=False)
    seconds: float

    @property
    def correct(self) -> int:
        return sum(answer.correct for answer in self.answers)

    @property
    def exact_match(self) -> float:
        """Share of answers that are exactly right, 0 to 1."""
        return self.correct / len(self.answers)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the share: what other examples of the same kind might have given."""
        return wilson_interval(self.correct, len(self.answers))

    @property
    def errors(self) -> Counter:
        """How often each kind of error occurs."""
        return Counter(answer.verdict for answer in self.answers if not answer.correct)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson score interval for a share; unlike mean ± 2 standard errors it stays inside [0, 1]."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials make no share")
    z, p = 1.959964, successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return (max(0.0, centre - half) if successes else 0.0), (min(1.0, centre + half) if successes < trials else 1.0)


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int = 96,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Greedy continuations of `prompts`, in their order, in batches of similar length with a key-value cache.

    Equal to transformers' `generate(do_sample=False)`. An answer that has ended leaves its batch at once, with its part
    of the cache: on a CPU a batch takes as long as it has rows, and the longest answer is often twice the mean.

    Args:
        max_new_tokens: where an answer is cut that does not end by itself.
        batch_size: prompts decoded together.
        progress: called with (prompts done, prompts in all).

    Weights in 4 bits are decoded once, where memory allows (`keep_decoded`). The model is left in the mode (train or
    eval) it was in.

    Raises:
        ValueError: a prompt without a token.
    """
    device = input_device(model) or next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    encoded = {i: tokenizer(prompts[i], add_special_tokens=False)["input_ids"] for i in order}
    empty = next((i for i in range(len(prompts)) if not encoded[i]), None)
    if empty is not None:
        raise ValueError(f"prompt {empty} has no token, so there is nothing to go on from: {prompts[empty]!r}")
    pad = padding_token(tokenizer, model)
    texts = [""] * len(prompts)
    ends = stop_tokens(tokenizer, model)
    training = model.training
    model.eval()
    try:
        with keep_decoded(model):
            for start in range(0, len(order), batch_size):
                part = order[start : start + batch_size]
                length = max(len(encoded[i]) for i in part)
                ids = torch.full((len(part), length), pad)
                for row, i in zip(ids, part, strict=True):
                    row[length - len(encoded[i]) :] = torch.tensor(encoded[i])
                mask = torch.tensor([[0] * (length - len(encoded[i])) + [1] * len(encoded[i]) for i in part])
                answers = _greedy(model, ids.to(device), mask.to(device), max_new_tokens, ends)
                for i, answer in zip(part, answers, strict=True):
                    texts[i] = tokenizer.decode(answer, skip_special_tokens=True)
                if progress is not None:
                    progress(start + len(part), len(prompts))
    finally:
        model.train(training)
    return texts


def _greedy(model, input_ids, attention_mask, max_new_tokens: int, ends: set[int]) -> list[list[int]]:
    """New tokens of each row, without the one that ended it. input_ids, attention_mask: (rows, length), padded left."""
    answers = [[] for _ in input_ids]
    rows = list(range(len(answers)))  # the answers still growing
    positions = (attention_mask.cumsum(-1) - 1).clamp_(min=0)
    cache = None
    for _ in range(max_new_tokens):
        out = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        tokens = out.logits[:, -1].argmax(-1)  # (rows,)
        going = [n for n, token in enumerate(tokens.tolist()) if token not in ends]
        for n in going:
            answers[rows[n]].append(int(tokens[n]))
        if not going:
            break
        if len(going) < len(rows):
            kept = torch.tensor(going, device=tokens.device)
            cache.batch_select_indices(kept)
            tokens, positions, attention_mask = tokens[kept], positions[kept], attention_mask[kept]
            rows = [rows[n] for n in going]
        input_ids, positions = tokens[:, None], positions[:, -1:] + 1
        attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
    return answers


def evaluate(
    model: nn.Module,
    tokenizer,
    examples: Sequence,
    max_new_tokens: int = 96,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    judge: Callable[[str, object], str] = classify_answer,
) -> Evaluation:
    """Let the model answer every example's prompt and judge the answers.

    Args:
        judge: says of an answer and its example `CORRECT`, or what is wrong in a few words.

    Raises:
        ValueError: no examples.
    """
    if not examples:
        raise ValueError("there are no examples to evaluate on")
    start = time.perf_counter()
    texts = generate(model, tokenizer, [e.prompt for e in examples], max_new_tokens, batch_size, progress)
    answers = [Answer(e, text, judge(text, e)) for e, text in zip(examples, texts, strict=True)]
    return Evaluation(answers, time.perf_counter() - start)


@torch.no_grad()
def loss_per_token(model: nn.Module, tokenizer, text: str, window: int = 256, batch_size: int = 8) -> float:
    """Mean cross-entropy in nats per token of `text`, cut into windows of `window` tokens each seen on its own.

    exp of it is the perplexity. Every token but the first of each window is predicted once.
    """
    device = next(model.parameters()).device
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    training, total, count = model.training, 0.0, 0
    model.eval()
    try:
        windows = [part for part in ids.split(window) if len(part) > 1]
        if not windows:
            raise ValueError("the text is shorter than two tokens")
        whole = [part for part in windows if len(part) == window]
        groups = [torch.stack(whole[i : i + batch_size]) for i in range(0, len(whole), batch_size)]
        groups += [part[None] for part in windows if len(part) < window]
        for group in groups:
            group = group.to(device)
            total += supervised_loss_sum(model, group, torch.ones_like(group), group).item()
            count += group.shape[0] * (group.shape[1] - 1)
    finally:
        model.train(training)
    return total / count


@contextlib.contextmanager
def keep_decoded(model: nn.Module) -> Iterator[bool]:
    """Inside, the 4-bit layers of `model` keep their weights decoded; yields whether there was memory for it.

    Generation runs one short forward pass per token, and with a few dozen rows in a batch decoding the weights costs
    about as much as the products with them. Kept, a weight takes 2 or 4 bytes, which is what quantizing saved: so only
    where that much memory is free, and never in training. The results are the same to the bit.

    The weights must not change inside. Decoded weights are given back at the end, also after an exception. Layers that
    are sharded between processes at this moment decode as ever.
    """
    layers = [module for module in model.modules() if isinstance(module, QLoRALinear) and module.kept is None]
    layers = [layer for layer in layers if not processes.is_part(layer.codes)]
    wanted: dict[torch.device, int] = {}
    for layer in layers:
        size = (layer.compute_dtype or layer.base_dtype).itemsize
        wanted[layer.codes.device] = wanted.get(layer.codes.device, 0) + size * layer.encoded_elements
    fits = all(count <= KEPT_SHARE * free_memory(device) for device, count in wanted.items())
    try:
        for layer in layers if fits else ():
            layer.kept = _Kept(layer.quantized)
        yield fits
    finally:
        for layer in layers:
            layer.kept = None


class _Kept:
    """A quantized tensor that decodes once for each dtype asked for."""

    def __init__(self, quantized):
        self._quantized, self._decoded = quantized, {}

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        if dtype not in self._decoded:
            self._decoded[dtype] = self._quantized.dequantize(dtype)
        return self._decoded[dtype]
