"""The model card: README.md beside an exported model, with what somebody needs to know who only has that folder."""

from pathlib import Path

from qlora_lab.evaluation.exact_match import wilson_interval
from qlora_lab.export.chat_format import Stop
from qlora_lab.export.trained_run import CHATML, TrainedRun
from qlora_lab.models import hub
from qlora_lab.models.base_model import DEFAULT

DEFAULT_SOURCE = "HuggingFaceTB/SmolLM2-135M-Instruct"
_KINDS = {
    "peft": "a LoRA adapter in PEFT's format",
    "merged": "the merged model as 16-bit safetensors",
    "gguf-lora": "a LoRA adapter in GGUF",
    "gguf": "the merged model in GGUF",
}
_LIBRARIES = {"peft": "peft", "merged": "transformers", "gguf-lora": "gguf", "gguf": "gguf"}


def base_name(run: TrainedRun) -> str:
    """What the base is called to others: a hub id as it is, of a folder only its last part."""
    if run.model == DEFAULT:
        return DEFAULT_SOURCE
    return Path(run.model).name if Path(run.model).expanduser().is_dir() else run.model


def find_license(run: TrainedRun, reader=None) -> str | None:
    """The base's licence as its GGUF file or the head of its README.md says; None: neither does."""
    if run.model == DEFAULT:
        return "apache-2.0"
    if reader is not None and "general.license" in reader.fields:
        return str(reader.fields["general.license"].contents())
    try:
        lines = (hub.find_folder(run.model, weights=False) / "README.md").read_text(encoding="utf-8").splitlines()
    except (OSError, RuntimeError, UnicodeError):
        return None
    head = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    found = [line.partition(":")[2].strip() for line in head if line.startswith("license:")]
    return found[0] if found and found[0] else None


def model_card(
    run: TrainedRun,
    to: str,
    files: list[str],
    use: str,
    stop: Stop,
    licence: str | None,
    remarks: list[str],
) -> str:
    """The text of README.md: base, data, settings, results, how to use it, licence."""
    name, plan = base_name(run), run.plan
    head = [f"license: {licence}"] if licence else []
    if "/" in name:
        head.append(f"base_model: {name}")
    head += [f"library_name: {_LIBRARIES[to]}", "pipeline_tag: text-generation", "tags: [qlora, lora]"]
    settings = plan.get("settings", {}) | run.result.get("settings", {})
    rows = {
        "base": name + (" (decoded from its Q4_1 file)" if run.model == DEFAULT else ""),
        "trained beside": _trained_beside(run),
        "data": _data(plan),
        "adapters": f"rank {plan['rank']}, alpha {plan['alpha']:g}" if {"rank", "alpha"} <= plan.keys() else None,
        **{key.replace("_", " "): value for key, value in settings.items()},
        "trained": str(run.result.get("facts", {}).get("finished", ""))[:10] or None,
        "prompt": _prompt(run.template),
        "answers end with": f"`{stop.text}`" if stop.text else None,
    }
    table = [f"| {key} | {value} |" for key, value in rows.items() if value is not None]
    text = [
        "---",
        *head,
        "---",
        "",
        f"# {run.folder.name}: {name.rpartition('/')[2]}, fine-tuned",
        "",
        f"This is {_KINDS[to]}, trained with QLoRA Lab. Files: {', '.join(f'`{file}`' for file in files)}.",
        "",
        "## Use",
        "",
        use,
        "",
        "## How it was made",
        "",
        "| | |",
        "|---|---|",
        *table,
        "",
        "## Results",
        "",
        *_results(run),
        "",
        *([*remarks, ""] if remarks else []),
        "## Licence",
        "",
        f"The base model's: {licence}."
        if licence
        else "The base model's; its card says which. None was found in its files.",
        "",
    ]
    return "\n".join(text)


def _trained_beside(run: TrainedRun) -> str | None:
    if not run.is_whole:
        return "not recorded"
    double = ", double quantization" if run.double_quant else ""
    return f"{run.datatype}, blocks of {run.block_size}{double}"


def _prompt(template: str | None) -> str:
    if template == "":
        return "plain texts, no chat template"
    return "the chat template that comes with it" + (" (ChatML, no system message)" if template == CHATML else "")


def _data(plan: dict) -> str | None:
    if not plan:
        return "not recorded"
    if plan.get("data"):
        return Path(str(plan["data"])).name
    first = f"the first {plan['train_examples']}" if plan.get("train_examples") else "all"
    return f"commands to a home assistant, function calls as JSON ({first} training examples of QLoRA Lab)"


def _results(run: TrainedRun) -> list[str]:
    found = run.result.get("evaluations") or {}
    if not found:
        return ["None were recorded with this run."]
    lines = ["| commands | exact match | 95 % interval |", "|---|---|---|"]
    for name, each in found.items():
        low, high = wilson_interval(each["correct"], each["of"])
        share = 100 * each["correct"] / each["of"]
        lines.append(
            f"| {name} | {each['correct']} of {each['of']} = {share:.1f} % | {100 * low:.0f} to {100 * high:.0f} % |"
        )
    return [*lines, "", "Measured with the adapter beside the 4-bit base that it was trained beside, greedily."]
