"""Notebook 06: what the model is to learn, plain English in and function calls out.

Read `function_calls` (the examples, the prompt, what makes an answer right), then `batches` (examples as tensors).
`function_schema` says which functions there are and what their arguments may be.
"""

from qlora_lab.tasks.batches import IGNORED, Batch, Batches, pad_batch
from qlora_lab.tasks.function_calls import (
    CORRECT,
    Example,
    classify_answer,
    data_directory,
    encode,
    evaluation_text,
    exact_match,
    few_shot,
    load_examples,
    parse_calls,
    prompt_text,
    spread,
)
from qlora_lab.tasks.function_schema import FUNCTIONS, INSTRUCTION, validate_calls

__all__ = [
    "CORRECT",
    "FUNCTIONS",
    "IGNORED",
    "INSTRUCTION",
    "Batch",
    "Batches",
    "Example",
    "classify_answer",
    "data_directory",
    "encode",
    "evaluation_text",
    "exact_match",
    "few_shot",
    "load_examples",
    "pad_batch",
    "parse_calls",
    "prompt_text",
    "spread",
    "validate_calls",
]
