"""A run from beginning to end, as the command line starts it: base model, before, training, after, report.

A run's folder holds `run.json` (how it was begun), `before.json` (the base model's answers), what `training.finetune`
writes, and at the end the adapter, `loss.png` and `report.html`. With these a killed run goes on by its name alone.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import torch

from qlora_lab import distributed, plots
from qlora_lab.cli.report import write_report
from qlora_lab.cli.run_data import MAX_NEW_TOKENS, RunData, read_data
from qlora_lab.evaluation.exact_match import Answer, Evaluation, evaluate, generate, loss_per_token
from qlora_lab.lora import ParameterCount, count_parameters
from qlora_lab.machine import processes
from qlora_lab.machine.arguments import is_number
from qlora_lab.machine.dtypes import FLOAT_DTYPES, default_compute_dtype, default_dtype
from qlora_lab.machine.environment import device_name
from qlora_lab.machine.files import told_writing, write_json, write_whole
from qlora_lab.models.base_model import load_model
from qlora_lab.tasks.answer_metrics import OwnQuestion
from qlora_lab.tasks.function_calls import evaluation_text
from qlora_lab.tasks.inspection import Inspection
from qlora_lab.training import StepRecord
from qlora_lab.training.learning_rate import base_size, why_rate
from qlora_lab.training.loop import FinetuneResult, finetune
from qlora_lab.training.rate_test import RateTest, find_rate
from qlora_lab.training.run_plan import NAME, RunPlan, quantize_as, read_plan, write_plan
from qlora_lab.training.run_plan import check_plan as check
from qlora_lab.training.settings import Settings
from qlora_lab.training.tensorboard_events import EventWriter
from qlora_lab.training.validation import ValidationRecord

RATE_STEPS = 60
PROSE = 15_000  # characters of the evaluation text on which forgetting is measured


@dataclass
class RunResult:
    training: FinetuneResult
    parameters: ParameterCount
    evaluations: dict[str, Evaluation]
    samples: list[tuple[str, str, str, str]]
    report: Path
    prose: tuple[float, float] | None = None  # loss on general text before and after, where it was measured


class Listener:
    """What a run tells while it goes on; the command line draws bars from it, a test listens, this one is silent."""

    def stage(self, text: str) -> None: ...
    def inspection(self, found: Inspection) -> None: ...
    def done(self, part: str, done: int, of: int) -> None: ...
    def step(self, record: StepRecord, steps: int) -> None: ...
    def validation(self, record: ValidationRecord, samples: list[tuple[str, str]]) -> None: ...


def begin(folder: Path, plan: RunPlan, resume: bool, given: Collection[str] = ()) -> RunPlan:
    """Make the run's folder, or find it for a resume; returns the plan to follow. Of several processes the main one's.

    Args:
        given: which values of `plan`, by name, somebody asked for; a resume must have been begun with the same.

    Raises:
        ValueError: the folder holds a run already, or there is none to resume, or it was begun otherwise.
    """
    path = folder / NAME
    if resume:
        if not path.exists():
            raise ValueError(f"{folder} holds no run to resume")
        begun = read_plan(folder)
        _check_given(folder, begun, plan, given)
        return begun
    there = [file for file in folder.iterdir() if not _is_leftover(file)] if folder.exists() else []
    if there:
        raise ValueError(f"{folder} already holds something; continue it with --resume or choose another --name")
    with told_writing(path, "nothing was begun"):
        folder.mkdir(parents=True, exist_ok=True)
    write_plan(folder, plan)
    return plan


def _is_leftover(file: Path) -> bool:
    """A file that a kill left while it was written, before there was a run."""
    return file.name.startswith(".run.json.") and file.name.endswith(".part")


def _check_given(folder: Path, begun: RunPlan, plan: RunPlan, given: Collection[str]) -> None:
    """Raise ValueError where somebody asks a run to go on otherwise than it was begun: it would not."""
    before, now = ({**asdict(p), **asdict(Settings(**p.settings)), **_left_open(p)} for p in (begun, plan))
    for name in given:
        same = now[name] == before[name]
        if name in ("model", "data", "validation", "mix") and not same and now[name] and before[name]:
            same = Path(now[name]).exists() and Path(now[name]).resolve() == Path(before[name]).resolve()
        if not same and (name, now[name]) != ("format", "auto"):
            began = f"with {name} {before[name]} and goes on with it" if before[name] is not None else f"without {name}"
            raise ValueError(
                f"{folder} was begun {began}, not with {now[name]}; leave the option out, or begin another run"
            )


def _left_open(plan: RunPlan) -> dict:
    """Settings that a plan leaves to the run: the steps that its epochs have, the rate that fits its base."""
    return {name: None for name in ("steps", "learning_rate") if name not in plan.settings and plan.settings}


def unfinished(runs: Path) -> Path:
    """The newest run that was begun and has no report yet.

    Raises:
        ValueError: there is none.
    """
    found = [path.parent for path in runs.rglob(NAME) if not (path.parent / "report.html").exists()]
    if not found:
        raise ValueError(f"no unfinished run in {runs}; start one without --resume")
    return max(found, key=lambda folder: (folder / NAME).stat().st_mtime)


def execute(
    folder: Path,
    plan: RunPlan,
    resume: bool = False,
    device: torch.device | str | None = None,
    listener: Listener | None = None,
    checkpoint_every: int = 20,
    paging: Mapping | None = None,
    data: RunData | None = None,
    tensorboard: bool = False,
) -> RunResult:
    """Carry out a plan in `folder` (after `begin`). `paging` is `training.finetune`'s; it changes no result.

    Where several processes are connected, all call this: they train one model together, answer a share of the questions
    each, and the main one writes. `listener` is the process's own.

    Args:
        data: what `read_data` made of the plan; None: it is read here.
        tensorboard: write events for TensorBoard into `folder` too.

    Raises: as `read_data`, `load_model`, `quantize_model` and `finetune`.
    """
    say = listener or Listener()
    data = read_data(plan) if data is None else data
    for sentence in data.said:
        say.stage(sentence)
    if data.inspection is not None:
        say.inspection(data.inspection)
    say.stage("loading the base model")
    model, device = _load(plan, device)
    plan = _remember_dtype(folder, plan, model.dtype)
    before = _before(folder, model, data, say)
    say.stage(f"quantizing to {plan.datatype}, adding adapters of rank {plan.rank}")
    torch.manual_seed(plan.settings.get("seed", 0))
    quantize_as(plan, model, progress=lambda done, of: say.done("quantizing", done, of))
    compute_dtype = default_compute_dtype(device) if plan.compute_dtype == "auto" else FLOAT_DTYPES[plan.compute_dtype]
    parameters, size = count_parameters(model), base_size(model)
    own = plan.data is not None or data.mix is not None
    prose = [_prose(model, data.tokenizer, say)] if own and processes.count() < 2 else []
    distributed.shard(model, device)
    told = _Told(folder, plan, model, data, size, say, tensorboard)
    with told:
        training = finetune(
            model,
            data.tokenizer,
            data.train,
            out=folder,
            resume=resume,
            checkpoint_every=checkpoint_every,
            on_begin=told.begin,
            on_step=told.step,
            on_validation=told.validation,
            paging=paging,
            validation=data.validation,
            mix=data.mix,
            epochs=plan.epochs,
            **plan.settings,
        )
    asked = {}
    with distributed.whole_model(model):
        for name, questions in data.asked.items():
            say.stage(f"answering {name}")
            asked[name] = _evaluate(model, data, questions, say)
    if prose:
        prose.append(_prose(model, data.tokenizer, say))
    samples = _samples(before, next(iter(asked.values()), None))
    evaluations = {}
    if data.judged:
        first = next(iter(data.asked), "")
        evaluations = {f"base model ({len(before.answers)} of {first})": before} if before is not None else {}
        evaluations |= asked
    facts = {
        "run": folder.name,
        "model": plan.model,
        "base": plan.base,
        "adapters": f"rank {plan.rank}, alpha {plan.alpha:g}",
        "trained": f"{parameters.trainable:,} of {parameters.total:,} parameters",
        "device": device_name(device),
        "products in": str(compute_dtype or model.dtype).removeprefix("torch."),
        "finished": datetime.now().astimezone().isoformat(timespec="minutes"),
    }
    if plan.data is not None:
        facts["data"] = "; ".join(data.said)
        facts["metric"] = plan.metric or "none"
    if processes.count() > 1:
        facts["processes"] = str(processes.count())
    report = processes.from_main(
        lambda: write_report(folder, training, evaluations, samples, facts, tuple(prose), data.inspection)
    )
    return RunResult(training, parameters, evaluations, samples, report, tuple(prose) or None)


def try_rates(
    folder: Path, plan: RunPlan, device=None, listener: Listener | None = None, data: RunData | None = None
) -> tuple[RateTest, Path]:
    """What learning rate the plan's model and examples want, and a picture of it beside `folder`; nothing is trained.

    Raises: as `read_data`, `load_model`, `quantize_model` and `training.find_rate`.
    """
    say = listener or Listener()
    data = read_data(plan) if data is None else data
    for sentence in data.said:
        say.stage(sentence)
    say.stage("loading the base model")
    model, _ = _load(plan, device)
    say.stage(f"quantizing to {plan.datatype}, adding adapters of rank {plan.rank}")
    torch.manual_seed(plan.settings.get("seed", 0))
    quantize_as(plan, model, progress=lambda done, of: say.done("quantizing", done, of))
    say.stage("trying learning rates, from far too small to far too large")
    not_asked = ("steps", "learning_rate", "mix_share")
    options = {name: value for name, value in plan.settings.items() if name not in not_asked}

    def on_step(record: StepRecord) -> None:
        say.step(record, RATE_STEPS)

    found = find_rate(model, data.tokenizer, data.train, on_step=on_step, steps=RATE_STEPS, **options)
    path = folder.with_name(f"{folder.name}-rates.png")
    with told_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as temporary:
        temporary.write_bytes(plots.png(plots.rate_curve(found.rates, found.losses, found.suggested, found.usual)))
    return found, path


class _Told:
    """What a run tells while it trains: to the listener, to TensorBoard, and samples of its answers to a file."""

    def __init__(self, folder, plan, model, data: RunData, size: int, say: Listener, events: bool):
        self.folder, self.plan, self.model, self.data, self.say = folder, plan, model, data, say
        self.size, self.steps = size, 0
        self.events = EventWriter(folder / "tensorboard") if events and processes.is_main() else None

    def __enter__(self) -> "_Told":
        return self

    def __exit__(self, *_) -> None:
        if self.events is not None:
            self.events.close()

    def begin(self, settings: Settings) -> None:
        self.steps = settings.steps
        count = f", in {processes.count()} processes" if processes.count() > 1 else ""
        self.say.stage(f"training{count}")
        if "learning_rate" not in self.plan.settings or self.plan.epochs is not None:
            rate = f"learning rate {settings.learning_rate:g}"
            if "learning_rate" not in self.plan.settings:
                rate += f" ({why_rate(self.size)})"
            self.say.stage(f"{settings.steps} steps, {rate}")

    def step(self, record: StepRecord) -> None:
        self.say.step(record, self.steps)
        if self.events is not None:
            self.events.step(record)

    def validation(self, record: ValidationRecord) -> None:
        """Answers of the model as it is now, beside the loss; a sharded model is not asked."""
        answers = []
        if self.data.shown and processes.count() < 2:
            prompts = [question.prompt for question in self.data.shown]
            texts = generate(self.model, self.data.tokenizer, prompts, self.data.max_new_tokens)
            answers = [(question.command, text) for question, text in zip(self.data.shown, texts, strict=True)]
            path = self.folder / "samples.jsonl"
            with told_writing(path), open(path, "a", encoding="utf-8", newline="") as file:
                for command, text in answers:
                    file.write(json.dumps({"step": record.step, "command": command, "answer": text}) + "\n")
        self.say.validation(record, answers)
        if self.events is not None:
            self.events.validation(record, answers)


def _prose(model, tokenizer, say: Listener) -> float:
    """Loss per token on general text: what the run must not cost."""
    say.stage("measuring the loss on general text")
    window = min(256, getattr(model.config, "max_position_embeddings", None) or 256)
    return loss_per_token(model, tokenizer, evaluation_text()[:PROSE], window)


def _load(plan: RunPlan, device) -> tuple[torch.nn.Module, torch.device]:
    """The base model, and the device it will be trained on.

    Several processes without questions to the base model leave it on the CPU, from where `distributed.shard` takes it
    block by block; and they do without float16, whose gradients have to be scaled.

    Raises:
        ValueError: a run that one process began in float16, resumed by several.
    """
    begun = FLOAT_DTYPES.get(plan.dtype)  # None: not yet
    if processes.count() < 2:
        model = load_model(plan.model, dtype=begun, device=device)
        return model, next(model.parameters()).device
    if begun == torch.float16:
        raise ValueError("one process began this run in float16, which several cannot go on with; resume with one")
    dtype = begun or default_dtype(device)
    dtype = torch.float32 if dtype == torch.float16 else dtype
    model = load_model(plan.model, dtype=dtype, device=device if plan.baseline_examples else "cpu")
    return model, torch.device(device)


def _remember_dtype(folder: Path, plan: RunPlan, dtype: torch.dtype) -> RunPlan:
    """The plan with the base model's dtype, also in the run's folder."""
    name = str(dtype).removeprefix("torch.")
    if plan.dtype == name:
        return plan
    plan = replace(plan, dtype=name)
    processes.from_main(lambda: write_plan(folder, plan))
    return plan


def _evaluate(model, data: RunData, questions: list, say: Listener) -> Evaluation:
    """`evaluate`, each process on its share of the questions; all get all answers."""
    own = processes.share(questions)
    found = Evaluation([], 0.0)
    if own:
        found = evaluate(
            model,
            data.tokenizer,
            own,
            data.max_new_tokens,
            progress=lambda done, of: say.done("answering", done, of),
            judge=data.judge,
        )
    if processes.count() < 2:
        return found
    shares = processes.gathered((found.answers, found.seconds))
    return Evaluation(processes.interleaved([s for s, _ in shares]), max(seconds for _, seconds in shares))


def _before(folder: Path, model, data: RunData, say: Listener) -> Evaluation | None:
    """The base model's answers, made once and kept for a resume."""
    if not data.first:
        return None
    path = folder / "before.json"
    kept = processes.from_main(lambda: _kept_answers(path, data.first))
    if kept is not None:
        texts, seconds = kept
        pairs = zip(data.first, texts, strict=True)
        return Evaluation([Answer(e, text, data.judge(text, e)) for e, text in pairs], seconds)
    say.stage("asking the base model")
    result = _evaluate(model, data, data.first, say)
    answers = [{"command": a.example.command, "text": a.text} for a in result.answers]
    processes.from_main(lambda: write_json(path, {"answers": answers, "seconds": result.seconds}))
    return result


def _kept_answers(path: Path, examples: list) -> tuple[list[str], float] | None:
    """The texts of the base model's answers and how long they took; None where they have to be asked for (again)."""
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8-sig"))
        texts = [answer["text"] for answer in kept["answers"]]
        same = [answer["command"] for answer in kept["answers"]] == [e.command for e in examples]
        whole = same and all(isinstance(text, str) for text in texts) and is_number(kept["seconds"])
    except (ValueError, KeyError, TypeError):
        return None
    return (texts, kept["seconds"]) if whole else None


def _samples(before: Evaluation | None, after: Evaluation | None, count: int = 3) -> list[tuple[str, str, str, str]]:
    """(command, expected, before, after): commands of different kinds that the base model was asked too."""
    base = {answer.example.command: answer.text for answer in before.answers} if before else {}
    rows, kinds = [], set()
    for answer in after.answers if after is not None else ():
        example = answer.example
        if example.command not in base and base:
            continue
        if isinstance(example, OwnQuestion):
            rows.append((example.command, example.expected, base.get(example.command, ""), answer.text))
            continue
        kind = tuple(call["name"] for call in example.calls)
        if kind not in kinds:
            kinds.add(kind)
            expected = json.dumps(list(example.calls), separators=(",", ":"), ensure_ascii=False)
            rows.append((example.command, expected, base.get(example.command, ""), answer.text))
    rows.sort(key=lambda row: -row[1].count('"name"'))  # a two-step command among them
    return rows[:count]


__all__ = ["MAX_NEW_TOKENS", "Listener", "RunPlan", "RunResult", "begin", "check", "execute", "unfinished"]
