"""What a run trains on and is judged by: the task of function calls, or data of one's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_lab.tasks.answer_metrics import OwnQuestion, metric_of, question_of
from qlora_lab.tasks.chat import set_template
from qlora_lab.tasks.function_calls import classify_answer, load_examples, spread
from qlora_lab.tasks.holding_back import hold_back
from qlora_lab.tasks.inspection import Inspection, inspect
from qlora_lab.tasks.own_data import load_dataset
from qlora_lab.training.run_plan import RunPlan, tokenizer_of
from qlora_lab.training.settings import Settings

MAX_NEW_TOKENS = 96
SHOWN = 3  # questions whose answers are shown


@dataclass
class RunData:
    """The examples of a run, and the questions that it is asked.

    Attributes:
        train, validation, mix: as `finetune` takes them.
        asked: questions after training, by the name under which their results stand.
        first: questions that the base model is asked before.
        judge: says of an answer and its question what is wrong with it.
        judged: whether its verdicts are to be counted; else answers are only shown.
        shown: questions asked again at each validation.
        max_new_tokens: where answers are cut.
        said: what to say aloud about the data.
        format: what it was read as; of several the first.
        inspection: of one's own data, what is to be known of it before a step is taken.
    """

    tokenizer: Any
    train: Sequence
    validation: Sequence | None = None
    mix: list | None = None
    asked: dict[str, list] = field(default_factory=dict)
    first: list = field(default_factory=list)
    judge: Callable[[str, Any], str] = classify_answer
    judged: bool = True
    shown: list = field(default_factory=list)
    max_new_tokens: int = MAX_NEW_TOKENS
    said: list[str] = field(default_factory=list)
    format: str = "auto"
    inspection: Inspection | None = None


def read_data(plan: RunPlan, tokenizer=None) -> RunData:
    """All that a plan names, read and looked at; nothing is written.

    Raises:
        ValueError, FileNotFoundError: a file that is not there or not what it should be, a template, a metric, or a
            validation that cannot be made; names the file and line where there is one.
    """
    tokenizer = tokenizer_of(plan) if tokenizer is None else tokenizer
    if plan.template is not None:
        set_template(tokenizer, plan.template)
    mix = None if plan.mix is None else load_dataset(plan.mix, "text")
    if plan.data is None:
        return _function_calls(plan, tokenizer, mix)
    metric = metric_of(plan.metric or "exact")
    data = load_dataset(plan.data, plan.format)
    said = [data.guess]
    train, validation = list(data), None
    if plan.validation is not None:
        validation = list(load_dataset(plan.validation, plan.format))
        said.append(
            f"{len(train):,} examples to train on, {len(validation):,} of {Path(plan.validation).name} held back"
        )
    elif plan.validation_share:
        train, validation = hold_back(train, plan.validation_share, plan.settings.get("seed", 0))
        said.append(f"{len(train):,} examples to train on, {len(validation):,} held back")
    else:
        said.append(f"{len(train):,} examples to train on, none held back")
        chosen = Settings.of(**plan.settings)
        if plan.metric or chosen.patience or chosen.validate_every:
            raise ValueError("a metric and patience need validation examples; give --validation or --validation-share")
    train = train[: plan.train_examples or None]
    calls = plan.metric is None and data.format == "function-calls"  # which have a judge of their own
    questions = list(validation or ()) if calls else _questions(validation or (), tokenizer)
    judge, judged = classify_answer if calls else metric, bool(questions) and (calls or plan.metric is not None)
    if plan.metric is not None and not questions:
        raise ValueError(f"metric {plan.metric!r} judges answers, and there is no question in the validation examples")
    expected = [question.target if calls else question.expected for question in questions]
    if plan.metric is not None:
        for answer, question in zip(expected, questions, strict=True):  # can it be asked of these, before hours of work
            metric(answer, question)
    inspection = inspect(train, tokenizer, plan.settings.get("max_length"), validation)
    longest = max((len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in expected), default=0)
    questions = spread(questions, plan.test_examples)
    shown = spread(questions, min(SHOWN, len(questions)))
    first = shown
    if judged:
        first = spread(questions, plan.baseline_examples) if plan.baseline_examples else []
    return RunData(
        tokenizer,
        inspection.training.encoded,
        None if inspection.validation is None else inspection.validation.encoded,
        mix,
        {"validation": questions if judged else shown} if questions else {},
        first,
        judge,
        judged,
        shown,
        min(512, 32 + longest),
        said,
        data.format if "," not in data.format else plan.format,
        inspection,
    )


def _questions(records: Sequence, tokenizer) -> list[OwnQuestion]:
    found = (question_of(record, tokenizer) for record in records)
    return [question for question in found if question is not None]


def read_template(path: Path | None) -> str | None:
    """The text of a file with a chat template.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds none.
    """
    if path is None:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; --template takes a file with a chat template in Jinja")
    text = path.read_text(encoding="utf-8-sig")
    if "{{" not in text:
        raise ValueError(f"{path} is no chat template: in Jinja, what is to be written stands in {{{{ }}}}")
    return text


def _function_calls(plan: RunPlan, tokenizer, mix) -> RunData:
    splits = {name: load_examples(name) for name in ("train", "test", "paraphrases")}
    test = splits["test"][: plan.test_examples or None]
    chosen = Settings.of(**plan.settings)
    validation = load_examples("validation") if chosen.validate_every or chosen.patience else None
    return RunData(
        tokenizer,
        splits["train"][: plan.train_examples or None],
        validation,
        mix,
        {"test": test, "paraphrases": spread(splits["paraphrases"], plan.paraphrase_examples)},
        test[: plan.baseline_examples],
        shown=spread(validation, SHOWN) if validation else [],
    )


__all__ = ["MAX_NEW_TOKENS", "RunData", "read_data", "read_template"]
