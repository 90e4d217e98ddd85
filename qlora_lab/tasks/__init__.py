"""Notebook 06: what the model is to learn, plain English in and function calls out.

Read `function_calls` (the examples, the prompt, what makes an answer right), `encoding` (what is a label), then
`batches` (examples as tensors). `function_schema` says which functions there are and what their arguments may be. With
data of one's own `own_data` takes the place of `function_calls`, and `chat` that of its prompt;
`inspection` tells what is in it before a step is taken.
"""

from qlora_lab.tasks.batches import IGNORED, Batch, Batches, pad_batch
from qlora_lab.tasks.chat import generation_prompt, has_template, set_template, stop_tokens
from qlora_lab.tasks.encoding import Encoded, EncodedExamples, encode, encode_all
from qlora_lab.tasks.function_calls import (
    CORRECT,
    Example,
    classify_answer,
    data_directory,
    evaluation_text,
    exact_match,
    few_shot,
    load_examples,
    parse_calls,
    prompt_text,
    spread,
)
from qlora_lab.tasks.function_schema import FUNCTIONS, INSTRUCTION, validate_calls
from qlora_lab.tasks.inspection import Inspection, inspect
from qlora_lab.tasks.own_data import Dataset, Record, load_dataset

__all__ = [
    "CORRECT",
    "FUNCTIONS",
    "IGNORED",
    "INSTRUCTION",
    "Batch",
    "Batches",
    "Dataset",
    "Encoded",
    "EncodedExamples",
    "Example",
    "Inspection",
    "Record",
    "classify_answer",
    "data_directory",
    "encode",
    "encode_all",
    "evaluation_text",
    "exact_match",
    "few_shot",
    "generation_prompt",
    "has_template",
    "inspect",
    "load_dataset",
    "load_examples",
    "pad_batch",
    "parse_calls",
    "prompt_text",
    "set_template",
    "spread",
    "stop_tokens",
    "validate_calls",
]
