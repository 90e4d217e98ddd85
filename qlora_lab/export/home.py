"""`export`: from a run to files that are at home elsewhere.

peft        the adapter as it is, for PEFT and what takes its adapters
merged      a folder of 16-bit safetensors, for transformers, vLLM and others
gguf-lora   the adapter as a GGUF file, beside a GGUF base, for llama.cpp and Ollama
gguf        the merged model as a GGUF file

Everything is looked at before the first byte is written: the run, the place, whether GGUF has words for the model, the
room on the disk. What is written stands under another name beside its place until it is whole.
"""

import os
import secrets
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from qlora_lab.export.architectures import Architecture, find_architecture
from qlora_lab.export.chat_format import ChatFormat, Stop, find_stop, take_apart
from qlora_lab.export.gguf_files import (
    TYPES,
    carried_fields,
    model_fields,
    plan_adapter,
    plan_model,
    read_gguf,
    write_gguf,
)
from qlora_lab.export.gguf_vocabulary import COUNT, FLAG, TEXT, Field, vocabulary_fields
from qlora_lab.export.merged import BASES, choose_dtype, merge_into_base, save_merged
from qlora_lab.export.model_card import base_name, find_license, model_card
from qlora_lab.export.ollama import modelfile
from qlora_lab.export.trained_run import TrainedRun, read_run
from qlora_lab.machine.arguments import check_choice
from qlora_lab.machine.files import CannotWrite, sync_file, told_writing, write_text
from qlora_lab.models.adapters import CONFIG, WEIGHTS, load_adapter
from qlora_lab.models.base_model import DEFAULT, ensure_default_gguf, load_config

TARGETS = ("peft", "merged", "gguf-lora", "gguf")
_ADAPTER = "adapter.gguf"
_MARGIN = 1 << 20  # bytes for the small files


@dataclass(frozen=True)
class Exported:
    """What was written: the folder (or the one file), its files, and what should be known about them."""

    path: Path
    files: list[str]
    nbytes: int
    remarks: list[str] = field(default_factory=list)


def export(
    run: str | os.PathLike,
    to: str,
    out: str | os.PathLike,
    *,
    type: str | None = None,
    base: str | None = None,
    base_gguf: str | os.PathLike | None = None,
    model: str | None = None,
) -> Exported:
    """Write what a run trained in a form that others read.

    Args:
        run: a run's folder, or one with an adapter in PEFT's format.
        to: "peft", "merged", "gguf-lora" or "gguf".
        out: a folder that is not there yet, or is empty; or, for the two GGUF forms, the name of a file that is not
            there yet and ends in .gguf: it then gets the weights alone, without model card and Modelfile.
        type: of the weights of "gguf": "f16" (None), "q8_0", or "q4_1" where the base came in it.
        base: into what the adapter is merged: "trained", what the 4-bit base decodes to, or "original", the base before
            it was quantized. None: "trained" where a run says what that was, else "original".
        base_gguf: a GGUF file of the base, whose tokenizer, template and settings are taken over. The default model's
            is found by itself.
        model: the base of an adapter that has no run beside it and does not name one.

    Raises:
        ValueError: an argument that makes no sense, no whole run, `out` in use, a model that the form has no words for.
        ModelUnavailable: the base cannot be loaded. CannotWrite, PermissionError: no room, or no right, to write.
        Nothing is left behind in any case.
    """
    check_choice("to", to, TARGETS)
    for name, value, choices, forms in (
        ("type", type, tuple(TYPES), ("gguf",)),
        ("base", base, BASES, ("merged", "gguf")),
        ("base_gguf", base_gguf, None, ("gguf-lora", "gguf")),
    ):
        if value is not None and to not in forms:
            raise ValueError(f"{name} {value} would change nothing in {to}; it is for {' and '.join(forms)}")
        if value is not None and choices:
            check_choice(name, value, choices)
    kind = type or "f16"
    out = Path(out).expanduser()
    out = out.resolve() if out.is_symlink() else out  # a link to an empty folder stays a link
    one_file = out.suffix == ".gguf" and to in ("gguf", "gguf-lora")
    _check_place(out, one_file)
    trained = read_run(run, model)
    if base == "trained" and not trained.is_whole:
        raise ValueError(
            f"{trained.folder} is an adapter without a run.json, so nothing says which 4-bit base it was trained "
            "beside; merge it into the original one"
        )
    base = base or ("trained" if trained.is_whole else "original")
    if base_gguf is None and trained.model == DEFAULT and to in ("gguf", "gguf-lora"):
        base_gguf = ensure_default_gguf()
    reader = None if base_gguf is None else read_gguf(Path(base_gguf))
    if kind == "q4_1" and not (reader and any(t.tensor_type == TYPES[kind][0] for t in reader.tensors)):
        raise ValueError("q4_1 is for a base that came in it; give its GGUF file with --base-gguf, or use q8_0")
    architecture = None
    if to in ("gguf", "gguf-lora"):
        architecture = find_architecture(load_config(trained.model), whole=to == "gguf" and reader is None)
        named = reader.fields["general.architecture"].contents() if reader is not None else architecture.name
        if named != architecture.name:
            raise ValueError(f"{base_gguf} holds a {named} model, and the run's base is one of {architecture.name}")
    tokenizer = trained.load_tokenizer()
    chat = take_apart(tokenizer)
    stop = find_stop(tokenizer, chat)
    remarks = []
    if not trained.is_whole:
        remarks.append(
            "No run.json lay beside the adapter: which 4-bit base it was trained beside, and with which prompt, is not "
            "known. The chat template is the base's own."
        )
    if stop.text and stop.token is None:
        remarks.append(
            f"The tokenizer has no token of its own for `{stop.text}`, so generation does not stop there by itself: "
            "stop at the text."
        )
    make = {"peft": _peft, "merged": _merged, "gguf-lora": _gguf_lora, "gguf": _gguf}[to]
    work = _Work(trained, tokenizer, chat, stop, architecture, reader, base_gguf, kind, base)
    write, files, nbytes, use, more = make(work)
    licence = find_license(trained, reader)
    remarks += more
    card = model_card(trained, to, files, use, stop, licence, remarks)
    _check_room(out, nbytes)

    def write_all(folder: Path) -> None:
        write(folder)
        if not one_file:
            write_text(folder / "README.md", card)
            if (ollama := _modelfile(work, to)) is not None:
                write_text(folder / "Modelfile", ollama)

    _write_whole(out, one_file, files[0], write_all)
    found = [out] if one_file else sorted(out.iterdir())
    return Exported(out, [path.name for path in found], sum(path.stat().st_size for path in found), remarks)


@dataclass(frozen=True)
class _Work:
    """What has been found out about a run by the time its form is made."""

    run: TrainedRun
    tokenizer: object
    chat: ChatFormat | None
    stop: Stop
    architecture: Architecture | None
    reader: object
    base_gguf: str | os.PathLike | None
    kind: str
    base: str


# -- the four forms: each returns (how to write it, its files, bytes, how to use it, remarks)


def _peft(work: _Work):
    run = work.run
    load_adapter(run.load_base("cpu"), run.adapter)  # raises what is wrong with it, and whether it fits

    def write(folder: Path) -> None:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(run.adapter / name, folder / name)
        work.tokenizer.save_pretrained(folder)

    use = (
        "```python\nfrom peft import PeftModel\n"
        "model = PeftModel.from_pretrained(base, FOLDER)  # the base as transformers loads it\n```\n\n"
        "The adapter was trained beside the 4-bit base named below; on another base the answers change."
    )
    nbytes = sum((run.adapter / name).stat().st_size for name in (CONFIG, WEIGHTS))
    return write, [WEIGHTS, CONFIG], nbytes, use, []


def _merged(work: _Work):
    model = merge_into_base(work.run, work.base)
    dtype = choose_dtype(model)

    def write(folder: Path) -> None:
        save_merged(model, work.tokenizer, work.stop, dtype, folder)

    use = (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        'model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto")\n'
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n"
        'chat = tokenizer.apply_chat_template([{"role": "user", "content": "..."}], add_generation_prompt=True,\n'
        '                                     return_tensors="pt", return_dict=True)\n'
        "print(tokenizer.decode(model.generate(**chat, max_new_tokens=96, do_sample=False)[0]))\n```"
    )
    nbytes = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    return write, ["model.safetensors"], nbytes, use, [_said_base(work), _said_dtype(dtype)]


def _gguf_lora(work: _Work):
    model = load_adapter(work.run.load_base("cpu"), work.run.adapter)
    plan = plan_adapter(model, work.architecture, work.reader)
    plan = replace(plan, fields=plan.fields | _about(work))
    where = f"`{Path(work.base_gguf).name}`" if work.base_gguf else "a GGUF file of the base"
    use = (
        f"Beside {where}: `llama-cli -m BASE.gguf --lora {_ADAPTER}`, or `ollama create NAME -f Modelfile` with both "
        "files here.\n\nThe adapter was trained beside the 4-bit base named below; on another base the answers change."
    )
    return lambda folder: write_gguf(folder / _ADAPTER, plan), [_ADAPTER], plan.nbytes, use, []


def _gguf(work: _Work):
    model = merge_into_base(work.run, work.base)
    name = f"model-{work.kind}.gguf"
    rows = model.get_input_embeddings().weight.shape[0]
    bos_first = bool(work.chat and work.chat.bos)
    if work.reader is not None:
        fields = carried_fields(work.reader)
        fields["tokenizer.ggml.add_bos_token"] = (bos_first, FLAG, None)
        if work.stop.token is not None:
            for end in ("eos", "eot"):
                fields[f"tokenizer.ggml.{end}_token_id"] = (work.stop.token, COUNT, None)
    else:
        fields = model_fields(model.config, work.architecture)
        fields |= vocabulary_fields(work.tokenizer, rows, work.stop.token, bos_first)
    fields.pop("tokenizer.chat_template", None)  # the base's need not be the run's
    template = work.tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template  # some have several, by name
    if template:
        fields["tokenizer.chat_template"] = (template, TEXT, None)
    plan = plan_model(model, work.architecture, work.kind, fields | _about(work), work.reader)
    use = f"`llama-cli -m {name}`, or `ollama create NAME -f Modelfile`."
    remarks = [_said_base(work), *(f"{remark}." for remark in plan.remarks)]
    return lambda folder: write_gguf(folder / name, plan), [name], plan.nbytes, use, remarks


def _about(work: _Work) -> dict[str, Field]:
    """What a GGUF file says about where it comes from."""
    name = base_name(work.run)
    fields = {
        "general.name": (f"{name.rpartition('/')[2]} {work.run.folder.name}", TEXT, None),
        "general.finetune": (work.run.folder.name, TEXT, None),
        "general.base_model.count": (1, COUNT, None),
        "general.base_model.0.name": (name.rpartition("/")[2], TEXT, None),
    }
    if "/" in name:
        fields["general.base_model.0.repo_url"] = (f"https://huggingface.co/{name}", TEXT, None)
    licence = find_license(work.run, work.reader)
    return fields | ({"general.license": (licence, TEXT, None)} if licence else {})


def _said_base(work: _Work) -> str:
    if work.base == "trained":
        return "The adapter is merged into the base that it was trained beside, decoded from its 4 bits."
    return "The adapter is merged into the base before it was quantized, which is not what it was trained beside."


def _said_dtype(dtype) -> str:
    return f"The weights are {str(dtype).removeprefix('torch.')}."


def _modelfile(work: _Work, to: str) -> str | None:
    if to == "peft":
        return None
    source, adapter = f"./model-{work.kind}.gguf", None
    if to == "merged":
        source = "."
    elif to == "gguf-lora":
        source = f"./{Path(work.base_gguf).name}" if work.base_gguf else "./BASE.gguf"
        adapter = f"./{_ADAPTER}"
    return modelfile(source, adapter, work.chat, work.stop, base_name(work.run), work.run.template == "")


# -- before the first byte, and whole or not at all


def _check_place(out: Path, one_file: bool) -> None:
    if one_file:
        if out.exists():
            raise ValueError(f"{out} is there already; give another name, or move it away")
    elif out.is_dir():
        if any(out.iterdir()):
            raise ValueError(f"{out} already holds something; give a folder that is empty or not there yet")
    elif out.exists() or out.is_symlink():
        raise ValueError(f"{out} is no folder; give one that is empty or not there yet")
    parent = _existing(out)
    if not parent.is_dir():
        raise ValueError(f"{out} cannot be made: {parent} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {out}: {parent} may not be written to")


def _existing(path: Path) -> Path:
    """The nearest of a path's folders that is there."""
    return next(parent for parent in path.absolute().parents if parent.exists())


def _check_room(out: Path, nbytes: int) -> None:
    free = shutil.disk_usage(_existing(out)).free
    if free < nbytes + _MARGIN:
        raise CannotWrite(
            f"{out} would take {nbytes / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free there; nothing was written"
        )


def _write_whole(out: Path, one_file: bool, name: str, write) -> None:
    """Let `write` fill a folder beside `out`, and move it, or the one file of it, to its place."""
    made = [parent for parent in out.absolute().parents if not parent.exists()]
    staging = out.absolute().parent / f".{secrets.token_hex(8)}.part"
    with told_writing(out, "nothing was written"):
        try:
            staging.mkdir(parents=True)
            write(staging)
            readable = staging.stat().st_mode & 0o666  # safetensors writes for the owner only
            for path in staging.iterdir():
                path.chmod(readable)
                sync_file(path)
            if one_file:
                os.replace(staging / name, out)
            else:
                if out.is_dir():
                    out.rmdir()  # empty, and Windows does not replace it
                os.replace(staging, out)
            made = []
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            for parent in made:  # of a place that was not reached
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()
