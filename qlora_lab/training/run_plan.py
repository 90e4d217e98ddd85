"""What a run does, as `run.json` in its folder says it: the base and how it is quantized, the adapters, the data.

Whoever opens a run afterwards (to go on with it, to ask it, to take it elsewhere) reads it here, and builds the base
that the adapter was trained beside: another data type, block size or template would run just as well, and be wrong.
"""

import contextlib
import json
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path

import torch

from qlora_lab.lora import check_adapter_arguments, find_targets
from qlora_lab.machine.arguments import check_choice, check_count, check_positive, is_number
from qlora_lab.machine.dtypes import FLOAT_DTYPES, default_compute_dtype
from qlora_lab.machine.files import write_json
from qlora_lab.models.adapters import load_adapter
from qlora_lab.models.base_model import DEFAULT, load_model, load_skeleton, load_tokenizer
from qlora_lab.qlora import quantize_model
from qlora_lab.quantization.datatypes import get_datatype
from qlora_lab.quantization.tensor import quantize
from qlora_lab.tasks.chat import generation_prompt, has_template
from qlora_lab.tasks.function_calls import prompt_text
from qlora_lab.tasks.own_data import Record
from qlora_lab.training.settings import Settings

NAME = "run.json"


@dataclass(frozen=True)
class RunPlan:
    """What a run does. `settings` are those of `training.Settings`; sample counts limit the evaluations (0: all).

    `compute_dtype` is that of the products with 4-bit weights: "float32", "bfloat16", "float16", or "auto", see
    `models.default_compute_dtype`. `dtype` is that of the base model: "auto", see `models.default_dtype`, until the run
    has loaded it; then what it was loaded in, so that a resume loads the same.

    `block_size` None becomes the data type's own. `target_modules` are those of `inject_lora`. `epochs` stands in
    place of `settings["steps"]`.

    `data` is a file or folder of one's own; None is the task of function calls. `format` is what `tasks.load_dataset`
    takes; once the run is begun, what "auto" turned out to be. `validation` is a file of examples that are not trained
    on; else `validation_share` of the data is held back. `template` is the text of a chat template that takes the place
    of the tokenizer's. `metric` judges answers: "exact", "json", or "module:function". `mix` is general text, of which
    `settings["mix_share"]` of the learned tokens are.
    """

    model: str = DEFAULT
    datatype: str = "nf4"
    block_size: int | None = None
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
    target_modules: str | list[str] = "all-linear"
    epochs: float | None = None
    data: str | None = None
    format: str = "auto"
    validation: str | None = None
    validation_share: float = 0.1
    template: str | None = None
    metric: str | None = None
    mix: str | None = None

    def __post_init__(self):
        if self.block_size is None:
            with contextlib.suppress(ValueError):  # no such data type: `check_plan` says so
                object.__setattr__(self, "block_size", get_datatype(self.datatype).usual_block_size)

    @property
    def base(self) -> str:
        """How the base is stored, in words."""
        return f"{self.datatype}, block {self.block_size}{', double quantization' if self.double_quant else ''}"


def check_plan(plan: RunPlan) -> None:
    """Raise ValueError for a plan that makes no sense, before a folder is made or a model fetched."""
    Settings.of(**plan.settings)
    check_adapter_arguments(plan.rank, plan.alpha, plan.dropout)
    quantize(torch.zeros(1), plan.datatype, plan.block_size, plan.double_quant)
    if plan.rank == 0:
        raise ValueError("rank 0 would train nothing; give a rank of at least 1")
    check_choice("compute_dtype", plan.compute_dtype, ("auto", *FLOAT_DTYPES))
    for name in ("train_examples", "baseline_examples", "test_examples", "paraphrase_examples"):
        check_count(name, getattr(plan, name), least=0)
    targets = plan.target_modules
    if not isinstance(targets, str | list) or not targets or not all(t and isinstance(t, str) for t in targets):
        raise ValueError(f"target_modules {targets!r} is neither 'all-linear' nor a list of names of layers")
    if plan.epochs is not None:
        check_positive("epochs", plan.epochs)
        if "steps" in plan.settings:
            raise ValueError("a run has epochs or steps, not both; leave one of them out")
    for name in ("data", "validation", "template", "metric", "mix"):
        if not isinstance(getattr(plan, name), str | None):
            raise ValueError(f"{name} {getattr(plan, name)!r} is no text")
    if not (is_number(plan.validation_share) and 0 <= plan.validation_share < 1):
        raise ValueError(f"validation_share {plan.validation_share!r} is not a share of the data, 0 to below 1")
    if plan.mix is None and "mix_share" in plan.settings:
        raise ValueError("mix_share is for text that is mixed in; give mix (--mix) too")
    if plan.data is None:
        for name in ("validation", "template", "metric"):
            if getattr(plan, name) is not None:
                raise ValueError(f"{name} is for data of your own; give data (--data) too")


def check_targets(plan: RunPlan) -> None:
    """Raise ValueError where the plan's `target_modules` are none of its model's linear layers. The weights are not
    loaded for that."""
    if plan.target_modules != "all-linear":
        find_targets(load_skeleton(plan.model), plan.target_modules)


def write_plan(folder: Path, plan: RunPlan) -> None:
    """Write `run.json`, or the plan in it anew; when the run was begun stays."""
    path = folder / NAME
    rest = {"begun": datetime.now().astimezone().isoformat(timespec="seconds")}
    if path.exists():
        rest = json.loads(path.read_text(encoding="utf-8-sig"))
    write_json(path, rest | {"plan": asdict(plan)})


def read_plan(folder: Path) -> RunPlan:
    """The plan that the run in `folder` was begun with.

    Raises:
        ValueError: there is no `run.json`, or it is damaged, or of a version that knows more.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        raise ValueError(f"{path} is no file, so the run cannot go on; it says how it was begun")
    try:
        saved = json.loads(path.read_text(encoding="utf-8-sig"))["plan"]
        known = {f.name for f in fields(RunPlan)}
        if more := [name for name in saved if name not in known]:
            raise ValueError(f"{more[0]!r} is unknown to this version")
        plan = RunPlan(**saved)
        check_plan(plan)
        if plan.dtype not in ("auto", *FLOAT_DTYPES) or not isinstance(plan.model, str):
            raise ValueError(f"a model {plan.model!r} in {plan.dtype!r} cannot be loaded")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path} does not say how the run was begun ({what}); restore the file, or begin anew with another --name"
        ) from error
    return plan


def plan_of(adapter: Path) -> RunPlan | None:
    """The plan of the run that an adapter's folder lies in (or that the folder is); None where it lies in none.

    Raises:
        ValueError: as `read_plan`.
    """
    adapter = Path(adapter)
    found = next((folder for folder in (adapter, adapter.parent) if (folder / NAME).exists()), None)
    return None if found is None else read_plan(found)


def tokenizer_of(plan: RunPlan):
    """The base's tokenizer, with the run's template."""
    tokenizer = load_tokenizer(plan.model)
    if plan.template is not None:
        tokenizer.chat_template = plan.template
    return tokenizer


def prompt_of(plan: RunPlan, tokenizer, command: str) -> str:
    """The text to generate from, as the run's examples have it: its chat template, or the form of its data.

    Raises:
        ValueError: the template refuses it, or the command holds a marker that would end its turn.
    """
    if plan.data is None or plan.format == "function-calls":
        return prompt_text(command)
    if plan.format == "text":
        return command
    asked = Record(prompt=command, completion="", plain=plan.format == "completion")
    if plan.format == "instruction":
        asked.input = ""
    elif plan.format == "chat" and has_template(tokenizer):
        return generation_prompt([{"role": "user", "content": command}], tokenizer)
    return asked.question_and_answer(tokenizer)[0]


def quantize_as(plan: RunPlan, model: torch.nn.Module, rank: int | None = None, **options) -> torch.nn.Module:
    """`quantize_model` as the plan says; `rank` takes the place of the plan's: 0 for the base alone."""
    compute_dtype = (
        default_compute_dtype(next(model.parameters()).device)
        if plan.compute_dtype == "auto"
        else FLOAT_DTYPES[plan.compute_dtype]
    )
    return quantize_model(
        model,
        plan.datatype,
        plan.block_size,
        plan.double_quant,
        plan.rank if rank is None else rank,
        plan.alpha,
        plan.target_modules,
        compute_dtype,
        plan.dropout,
        plan.use_rslora,
        **options,
    )


def load_run(folder: Path, device: torch.device | str | None = None) -> tuple[torch.nn.Module, object, RunPlan]:
    """A finished run's model, its adapter on the base that it was trained beside, with tokenizer and plan.

    Raises:
        ValueError: as `read_plan`, `load_model` and `load_adapter`.
        FileNotFoundError: it has no adapter yet.
    """
    folder = Path(folder)
    plan = read_plan(folder)
    tokenizer = tokenizer_of(plan)
    model = load_model(plan.model, dtype=FLOAT_DTYPES.get(plan.dtype), device=device)
    return load_adapter(quantize_as(plan, model, rank=0), folder / "adapter"), tokenizer, plan
