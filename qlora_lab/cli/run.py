"""A run from beginning to end, as the command line starts it: base model, before, training, after, report.

A run's folder holds `run.json` (how it was begun), `before.json` (the base model's answers), what `training.finetune`
writes, and at the end the adapter, `loss.png` and `report.html`. With these a killed run goes on by its name alone.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path

import torch

from qlora_lab import distributed
from qlora_lab.cli.report import write_report
from qlora_lab.evaluation.exact_match import Answer, Evaluation, evaluate
from qlora_lab.lora import ParameterCount, check_adapter_arguments, count_parameters
from qlora_lab.machine import processes
from qlora_lab.machine.arguments import check_choice, check_count, is_number
from qlora_lab.machine.dtypes import FLOAT_DTYPES, default_compute_dtype, default_dtype
from qlora_lab.machine.environment import device_name
from qlora_lab.machine.files import told_writing, write_json
from qlora_lab.models.base_model import DEFAULT, load_model, load_tokenizer
from qlora_lab.qlora import quantize_model
from qlora_lab.quantization.tensor import quantize
from qlora_lab.tasks.function_calls import Example, classify_answer, load_examples, spread
from qlora_lab.training import StepRecord
from qlora_lab.training.loop import FinetuneResult, finetune
from qlora_lab.training.settings import Settings

MAX_NEW_TOKENS = 96


@dataclass(frozen=True)
class RunPlan:
    """What a run does. `settings` are those of `training.Settings`; sample counts limit the evaluations (0: all).

    `compute_dtype` is that of the products with 4-bit weights: "float32", "bfloat16", "float16", or "auto", see
    `models.default_compute_dtype`. `dtype` is that of the base model: "auto", see `models.default_dtype`, until the run
    has loaded it; then what it was loaded in, so that a resume loads the same.
    """

    model: str = DEFAULT
    datatype: str = "nf4"
    block_size: int = 64
    double_quant: bool = True
    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    use_rslora: bool = False
    compute_dtype: str = "auto"
    dtype: str = "auto"
    train_examples: int = 0
    baseline_examples: int = 16
    test_examples: int = 0
    paraphrase_examples: int = 120
    settings: dict = field(default_factory=dict)


@dataclass
class RunResult:
    training: FinetuneResult
    parameters: ParameterCount
    evaluations: dict[str, Evaluation]
    samples: list[tuple[str, str, str, str]]
    report: Path


class Listener:
    """What a run tells while it goes on; the command line draws bars from it, a test listens, this one is silent."""

    def stage(self, text: str) -> None: ...
    def done(self, part: str, done: int, of: int) -> None: ...
    def step(self, record: StepRecord, steps: int) -> None: ...


def check(plan: RunPlan) -> None:
    """Raise ValueError for a plan that makes no sense, before a folder is made or a model fetched."""
    Settings.of(**plan.settings)
    check_adapter_arguments(plan.rank, plan.alpha, plan.dropout)
    quantize(torch.zeros(1), plan.datatype, plan.block_size, plan.double_quant)
    if plan.rank == 0:
        raise ValueError("rank 0 would train nothing; give a rank of at least 1")
    check_choice("compute_dtype", plan.compute_dtype, ("auto", *FLOAT_DTYPES))
    for name in ("train_examples", "baseline_examples", "test_examples", "paraphrase_examples"):
        check_count(name, getattr(plan, name), least=0)


def begin(folder: Path, plan: RunPlan, resume: bool, given: Collection[str] = ()) -> RunPlan:
    """Make the run's folder, or find it for a resume; returns the plan to follow. Of several processes the main one's.

    Args:
        given: which values of `plan`, by name, somebody asked for; a resume must have been begun with the same.

    Raises:
        ValueError: the folder holds a run already, or there is none to resume, or it was begun otherwise.
    """
    path = folder / "run.json"
    if resume:
        if not path.exists():
            raise ValueError(f"{folder} holds no run to resume")
        begun = _read_plan(path)
        _check_given(folder, begun, plan, given)
        return begun
    there = [file for file in folder.iterdir() if not _is_leftover(file)] if folder.exists() else []
    if there:
        raise ValueError(f"{folder} already holds something; continue it with --resume or choose another --name")
    with told_writing(path, "nothing was begun"):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"plan": asdict(plan), "begun": datetime.now().astimezone().isoformat(timespec="seconds")})
    return plan


def _is_leftover(file: Path) -> bool:
    """A file that a kill left while it was written, before there was a run."""
    return file.name.startswith(".run.json.") and file.name.endswith(".part")


def _read_plan(path: Path) -> RunPlan:
    """The plan that a run was begun with.

    Raises:
        ValueError: the file is damaged, or of a version that knows more.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file, so the run cannot go on; it says how it was begun")
    try:
        saved = json.loads(path.read_text(encoding="utf-8-sig"))["plan"]
        known = {f.name for f in fields(RunPlan)}
        if more := [name for name in saved if name not in known]:
            raise ValueError(f"{more[0]!r} is unknown to this version")
        plan = RunPlan(**saved)
        check(plan)
        if plan.dtype not in ("auto", *FLOAT_DTYPES) or not isinstance(plan.model, str):
            raise ValueError(f"a model {plan.model!r} in {plan.dtype!r} cannot be loaded")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path} does not say how the run was begun ({what}); restore the file, or begin anew with another --name"
        ) from error
    return plan


def _check_given(folder: Path, begun: RunPlan, plan: RunPlan, given: Collection[str]) -> None:
    """Raise ValueError where somebody asks a run to go on otherwise than it was begun: it would not."""
    before, now = ({**asdict(p), **asdict(Settings(**p.settings))} for p in (begun, plan))
    for name in given:
        same = now[name] == before[name]
        if name == "model" and not same:
            same = Path(now[name]).exists() and Path(now[name]).resolve() == Path(before[name]).resolve()
        if not same:
            raise ValueError(
                f"{folder} was begun with {name} {before[name]} and goes on with it, not with {now[name]}; leave the "
                "option out, or begin another run"
            )


def unfinished(runs: Path) -> Path:
    """The newest run that was begun and has no report yet.

    Raises:
        ValueError: there is none.
    """
    found = [path.parent for path in runs.rglob("run.json") if not (path.parent / "report.html").exists()]
    if not found:
        raise ValueError(f"no unfinished run in {runs}; start one without --resume")
    return max(found, key=lambda folder: (folder / "run.json").stat().st_mtime)


def execute(
    folder: Path,
    plan: RunPlan,
    resume: bool = False,
    device: torch.device | str | None = None,
    listener: Listener | None = None,
    checkpoint_every: int = 20,
    paging: Mapping | None = None,
) -> RunResult:
    """Carry out a plan in `folder` (after `begin`). `paging` is `training.finetune`'s; it changes no result.

    Where several processes are connected, all call this: they train one model together, answer a share of the questions
    each, and the main one writes. `listener` is the process's own.

    Raises: as `load_model`, `quantize_model` and `finetune`.
    """
    say = listener or Listener()
    say.stage("loading the base model")
    tokenizer = load_tokenizer(plan.model)
    model, device = _load(plan, device)
    plan = _remember_dtype(folder, plan, model.dtype)
    compute_dtype = default_compute_dtype(device) if plan.compute_dtype == "auto" else FLOAT_DTYPES[plan.compute_dtype]
    splits = {name: load_examples(name) for name in ("train", "test", "paraphrases")}
    train = splits["train"][: plan.train_examples or None]
    test = splits["test"][: plan.test_examples or None]
    paraphrases = spread(splits["paraphrases"], plan.paraphrase_examples)
    before = _before(folder, model, tokenizer, test[: plan.baseline_examples], say)
    say.stage(f"quantizing to {plan.datatype}, adding adapters of rank {plan.rank}")
    torch.manual_seed(plan.settings.get("seed", 0))
    quantize_model(
        model,
        plan.datatype,
        plan.block_size,
        plan.double_quant,
        plan.rank,
        plan.alpha,
        dropout=plan.dropout,
        use_rslora=plan.use_rslora,
        compute_dtype=compute_dtype,
        progress=lambda done, of: say.done("quantizing", done, of),
    )
    parameters = count_parameters(model)
    distributed.shard(model, device)
    say.stage("training" + (f", in {processes.count()} processes" if processes.count() > 1 else ""))

    def on_step(record: StepRecord) -> None:
        say.step(record, steps)

    steps = Settings(**plan.settings).steps
    training = finetune(
        model,
        tokenizer,
        train,
        out=folder,
        resume=resume,
        checkpoint_every=checkpoint_every,
        on_step=on_step,
        paging=paging,
        **plan.settings,
    )
    evaluations = {f"base model ({len(before.answers)} of test)": before} if before is not None else {}
    with distributed.whole_model(model):
        for name, examples in (("test", test), ("paraphrases", paraphrases)):
            say.stage(f"answering {name}")
            evaluations[name] = _evaluate(model, tokenizer, examples, say)
    samples = _samples(before, evaluations["test"])
    facts = {
        "run": folder.name,
        "model": plan.model,
        "base": f"{plan.datatype}, block {plan.block_size}{', double quantization' if plan.double_quant else ''}",
        "adapters": f"rank {plan.rank}, alpha {plan.alpha:g}",
        "trained": f"{parameters.trainable:,} of {parameters.total:,} parameters",
        "device": device_name(device),
        "products in": str(compute_dtype or model.dtype).removeprefix("torch."),
        "finished": datetime.now().astimezone().isoformat(timespec="minutes"),
    }
    if processes.count() > 1:
        facts["processes"] = str(processes.count())
    report = processes.from_main(lambda: write_report(folder, training, evaluations, samples, facts))
    return RunResult(training, parameters, evaluations, samples, report)


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
    path, name = folder / "run.json", str(dtype).removeprefix("torch.")
    if plan.dtype == name:
        return plan
    plan = replace(plan, dtype=name)

    def write() -> None:
        write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"plan": asdict(plan)})

    processes.from_main(write)
    return plan


def _evaluate(model, tokenizer, examples: list[Example], say: Listener) -> Evaluation:
    """`evaluate`, each process on its share of the examples; all get all answers."""
    own = processes.share(examples)
    found = Evaluation([], 0.0)
    if own:
        found = evaluate(
            model, tokenizer, own, MAX_NEW_TOKENS, progress=lambda done, of: say.done("answering", done, of)
        )
    if processes.count() < 2:
        return found
    shares = processes.gathered((found.answers, found.seconds))
    return Evaluation(processes.interleaved([s for s, _ in shares]), max(seconds for _, seconds in shares))


def _before(folder: Path, model, tokenizer, examples: list[Example], say: Listener) -> Evaluation | None:
    """The base model's answers, made once and kept for a resume."""
    if not examples:
        return None
    path = folder / "before.json"
    kept = processes.from_main(lambda: _kept_answers(path, examples))
    if kept is not None:
        texts, seconds = kept
        pairs = zip(examples, texts, strict=True)
        return Evaluation([Answer(e, text, classify_answer(text, e)) for e, text in pairs], seconds)
    say.stage("asking the base model")
    result = _evaluate(model, tokenizer, examples, say)
    answers = [{"command": a.example.command, "text": a.text} for a in result.answers]
    processes.from_main(lambda: write_json(path, {"answers": answers, "seconds": result.seconds}))
    return result


def _kept_answers(path: Path, examples: list[Example]) -> tuple[list[str], float] | None:
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


def _samples(before: Evaluation | None, after: Evaluation, count: int = 3) -> list[tuple[str, str, str, str]]:
    """(command, expected, before, after): commands of different kinds that the base model was asked too."""
    base = {answer.example.command: answer.text for answer in before.answers} if before else {}
    rows, kinds = [], set()
    for answer in after.answers:
        example = answer.example
        kind = tuple(call["name"] for call in example.calls)
        if (example.command in base or not base) and kind not in kinds:
            kinds.add(kind)
            expected = json.dumps(list(example.calls), separators=(",", ":"), ensure_ascii=False)
            rows.append((example.command, expected, base.get(example.command, ""), answer.text))
    rows.sort(key=lambda row: -row[1].count('"name"'))  # a two-step command among them
    return rows[:count]


__all__ = ["Listener", "RunPlan", "RunResult", "begin", "execute", "unfinished"]
