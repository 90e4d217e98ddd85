"""A run on disk, as whoever takes its model home needs it: what was trained, beside what, with which prompt.

An adapter is a change of one particular base: the numbers that the 4-bit codes decoded to while it was trained. So the
base, its dtype, the data type of the codes, their blocks and the double quantization are read from `run.json`, and so
is the format of the prompt. An adapter folder without a run beside it says its base at most.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from qlora_lab.machine.dtypes import FLOAT_DTYPES
from qlora_lab.models.adapters import CONFIG, WEIGHTS, load_adapter
from qlora_lab.models.base_model import load_model, load_tokenizer
from qlora_lab.qlora import quantize_model
from qlora_lab.tasks.function_calls import TURN_END, TURN_START
from qlora_lab.training.run_plan import NAME, RunPlan, read_plan

# What `tasks.prompt_text` writes, as a chat template: no system message unless there is one.
CHATML = (
    "{% for message in messages %}{{ '"
    + TURN_START
    + "' + message['role'] + '\\n' + message['content'] + '"
    + TURN_END
    + "' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '"
    + TURN_START
    + "assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TrainedRun:
    """What a run trained.

    Attributes:
        folder: the run's folder, or the adapter's where there is no run.
        adapter: the folder with the adapter in PEFT's format.
        model: the base: the default model's name, a folder, or a hub id.
        dtype: in which the base was loaded; None: nothing says.
        datatype, block_size, double_quant: of the 4-bit base it was trained beside; datatype None: nothing says.
        template: the chat template it was trained with, in Jinja; None: the tokenizer's own; "": none, plain texts.
        plan, result: `run.json`'s plan and `result.json`, for the model card; empty where they are not there.
    """

    folder: Path
    adapter: Path
    model: str
    dtype: torch.dtype | None = None
    datatype: str | None = None
    block_size: int = 64
    double_quant: bool = True
    template: str | None = None
    plan: dict = field(default_factory=dict, repr=False)
    result: dict = field(default_factory=dict, repr=False)

    @property
    def is_whole(self) -> bool:
        """Whether a `run.json` says how it was trained; an adapter's folder alone does not."""
        return self.datatype is not None

    def load_base(self, device=None) -> nn.Module:
        """The base as the run loaded it, before it was quantized."""
        return load_model(self.model, dtype=self.dtype, device=device)

    def load_trained(self, device=None, **options) -> nn.Module:
        """The model as it was trained: the base in 4 bits, the adapter beside it. `options` are `quantize_model`'s.

        Raises:
            ValueError: nothing says what the adapter was trained beside.
        """
        if self.datatype is None:
            raise ValueError(
                f"{self.folder} is an adapter without a run.json, so nothing says which 4-bit base it was trained "
                "beside; give the folder of its run"
            )
        model = self.load_base(device)
        quantize_model(model, self.datatype, self.block_size, self.double_quant, rank=0, **options)
        return load_adapter(model, self.adapter)

    def load_tokenizer(self):
        """The base's tokenizer, with the chat template that the run was trained with."""
        tokenizer = load_tokenizer(self.model)
        if self.template is not None:
            tokenizer.chat_template = self.template or None
        return tokenizer


def read_run(path: str | os.PathLike, model: str | None = None) -> TrainedRun:
    """Read a run's folder, or an adapter's.

    Args:
        path: a folder that `finetune` of the command line left, its `adapter` folder, or any adapter in PEFT's format.
        model: the base of an adapter without a run; None: the one that its configuration names.

    Raises:
        ValueError: no run and no adapter; a run that is not finished, whose `run.json` is damaged, or on another model.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one of a run, such as runs/NAME, or of an adapter")
    if (folder / CONFIG).is_file() and (folder.parent / NAME).is_file():
        folder = folder.parent
    if (folder / NAME).is_file():
        return _read_folder(folder, model)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds neither a run (run.json) nor an adapter ({CONFIG})")
    _check_adapter(folder, f"{folder} lacks {WEIGHTS}, the adapter's weights")
    named = model or _read_json(folder / CONFIG, "the adapter's configuration").get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ValueError(f"{folder / CONFIG} does not name the base model; give it with --model")
    return TrainedRun(folder, folder, named)


def _read_folder(folder: Path, model: str | None) -> TrainedRun:
    plan = read_plan(folder)
    if model is not None and not _is_same(model, plan.model):
        raise ValueError(f"{folder} was trained on {plan.model}, not on {model}; leave the model out")
    adapter = folder / "adapter"
    _check_adapter(adapter, f"{folder} has no trained adapter yet; finish it with `qlora-lab finetune --resume`")
    result = folder / "result.json"
    return TrainedRun(
        folder,
        adapter,
        plan.model,
        FLOAT_DTYPES.get(plan.dtype),
        plan.datatype,
        plan.block_size,
        plan.double_quant,
        _template(plan),
        asdict(plan),
        _read_json(result, "the run's results") if result.is_file() else {},
    )


def _template(plan: RunPlan) -> str | None:
    """The commands' prompt is ChatML written by hand; data of one's own goes by a template, or is plain text."""
    if plan.data is None or plan.format == "function-calls":
        return CHATML
    return "" if plan.format in ("text", "completion") else plan.template


def _check_adapter(folder: Path, message: str) -> None:
    if not all((folder / name).is_file() for name in (CONFIG, WEIGHTS)):
        raise ValueError(message)


def _read_json(path: Path, what: str) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} should say {what}, and is damaged ({error}); restore the file") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} should say {what}, and holds no JSON object; restore the file")
    return value


def _is_same(one: str, other: str) -> bool:
    return one == other or (Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other))
