"""The adapter folded into a base: plain weights that need neither this package nor PEFT.

Which base, is a choice. "trained" is the one that the adapter was trained beside: what the 4-bit codes decode to. The
merged model then computes what was trained and measured, up to one rounding of each weight. "original" is the base
before it was quantized: its weights are better, but the adapter has never met them, and what it learned to make up for
is not there. Neither is right everywhere (`benchmarks/ways_home.py` measures both); "trained" is the default, because
the results in the model card are then those of the model beside it.
"""

from pathlib import Path

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from qlora_lab.export.chat_format import Stop
from qlora_lab.export.trained_run import TrainedRun
from qlora_lab.lora import LoRALayer, merge_and_unload, output_head
from qlora_lab.models.adapters import load_adapter

BASES = ("trained", "original")


def merge_into_base(run: TrainedRun, base: str = "trained") -> nn.Module:
    """The run's model with its adapters folded in, without any 4-bit layer; the merged weights are float32, on the CPU.

    Args:
        base: "trained" or "original".

    Raises:
        ValueError: "trained" for an adapter of which nothing says what it was trained beside; a merged weight that is
            not finite.
    """
    model = run.load_trained("cpu") if base == "trained" else load_adapter(run.load_base("cpu"), run.adapter)
    with_own_head = isinstance(output_head(model), LoRALayer)
    merge_and_unload(model, torch.float32)
    if with_own_head:  # the embedding it shared a weight with has not changed
        model.config.tie_word_embeddings = False
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ValueError(f"{name} is not finite with its adapter folded in; go back to a checkpoint before that")
    return model.requires_grad_(False).eval()


def choose_dtype(model: nn.Module) -> torch.dtype:
    """The 16-bit dtype for a model's weights: bfloat16 where its embeddings came in it, else float16 where all fit.

    float16 has three bits more than bfloat16, which is what keeps a small change of a weight from being rounded away.
    """
    came = model.get_input_embeddings().weight.detach()
    largest = max((float(p.detach().abs().max()) for p in model.parameters() if p.numel()), default=0.0)
    came_in_bfloat16 = torch.equal(came, came.bfloat16().to(came.dtype))
    return torch.bfloat16 if came_in_bfloat16 or largest > torch.finfo(torch.float16).max else torch.float16


def save_merged(model: nn.Module, tokenizer, stop: Stop, dtype: torch.dtype, folder: Path) -> None:
    """Write `model` in `dtype` with its tokenizer as transformers does, so that generation stops where it should.

    The model is cast in place.
    """
    model.to(dtype)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    settings = model.generation_config
    ends = settings.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    known = dict.fromkeys(token for token in (stop.token, tokenizer.eos_token_id, *ends) if token is not None)
    if known:
        settings.eos_token_id = list(known) if len(known) > 1 else next(iter(known))
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
