"""What an exported run answers in llama.cpp, beside what it answers here.

    python benchmarks/export_check.py                  the newest finished run of the default model, or a short one made
    python benchmarks/export_check.py runs/NAME        this one

Four forms are exported: the adapter as a LoRA beside the base's own GGUF file, and the merged model in F16, Q8_0 and
Q4_1. Each answers commands of the test split greedily in llama.cpp; here, a model with the very weights of the file
does, read back from it tensor by tensor. Equal answers are counted, and right ones on both sides. They cannot all be
equal: llama.cpp rounds what goes into a product to eight or sixteen bits, and where two tokens are nearly as likely,
that decides. Writes data/recorded/export-check-<device>.json.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import gguf
import torch
from in_llama_cpp import answer, find_python

from qlora_lab.evaluation.exact_match import generate, wilson_interval
from qlora_lab.export import TrainedRun, export, read_run
from qlora_lab.export.architectures import ARCHITECTURES
from qlora_lab.lora import output_head
from qlora_lab.machine.environment import device_name, versions
from qlora_lab.machine.files import write_json
from qlora_lab.models import DEFAULT, ensure_default_gguf, load_adapter
from qlora_lab.tasks import classify_answer, load_examples, spread
from qlora_lab.tasks.function_calls import CORRECT

ROOT = Path(__file__).resolve().parent.parent
MAX_NEW_TOKENS = 96
LEAST_EQUAL = 0.9  # share of equal answers below which something is wrong with a file
FORMS = {"gguf-lora": None, "f16": "f16", "q8_0": "q8_0", "q4_1": "q4_1"}


def find_run(given: str | None) -> Path:
    """The run to take: the one given, the newest finished one of the default model, or one of 60 steps."""
    if given:
        return Path(given)
    found = []
    for path in (ROOT / "runs").rglob("run.json"):
        if (path.parent / "adapter").is_dir() and read_run(path.parent).model == DEFAULT:
            found.append(path.parent)
    if found:
        return max(found, key=lambda folder: (folder / "adapter").stat().st_mtime)
    name = f"export-check-{date.today():%Y-%m-%d}"
    print("no finished run in runs/: training one of 60 steps (some minutes) …", flush=True)
    command = [sys.executable, "-m", "qlora_lab.cli", "finetune", "--name", name, "--steps", "60"]
    command += ["--baseline-examples", "0", "--test-examples", "16", "--paraphrase-examples", "1"]
    subprocess.run(command, check=True, cwd=ROOT)
    return ROOT / "runs" / name


def read_back(run: TrainedRun, file: Path) -> torch.nn.Module:
    """The base's model with the weights that a GGUF file holds, as they decode: the order of rows undone."""
    model = run.load_base("cpu").float()
    config = model.config
    there = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    architecture = ARCHITECTURES[config.model_type]
    head = output_head(model)
    if "output.weight" in there and config.tie_word_embeddings:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    for path, parameter in model.named_parameters():
        tensor = there[architecture.tensor_name(path, config.num_hidden_layers)]
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).view(parameter.shape)
        module = path.rpartition(".")[0]
        if architecture.norms_from_one and "norm" in module.rpartition(".")[2]:
            values = values - 1
        order = architecture.order(module, config)
        parameter.data = values if order is None else torch.empty_like(values).index_copy_(0, order, values)
    return model.eval()


def judged(examples, texts: list[str]) -> list[bool]:
    return [classify_answer(text, example) == CORRECT for example, text in zip(examples, texts, strict=True)]


def share(right: list[bool]) -> dict:
    return {
        "right": sum(right),
        "of": len(right),
        "interval": [round(x, 4) for x in wilson_interval(sum(right), len(right))],
    }


def check(run: TrainedRun, form: str, examples, folder: Path) -> dict:
    """Export one form and compare its answers in llama.cpp with those of the same weights here."""
    to = form if form in ("gguf-lora", "merged") else "gguf"
    made = export(run.folder, to, folder / form, type=FORMS[form])
    prompts = [example.prompt for example in examples]
    if form == "gguf-lora":
        base = Path(ensure_default_gguf())
        model = load_adapter(read_back(run, base), run.adapter)
        file, lora = base, made.path / "adapter.gguf"
    else:
        file, lora = made.path / f"model-{FORMS[form]}.gguf", None
        model = read_back(run, file)
    begun = time.perf_counter()
    found, version = answer(file, prompts, MAX_NEW_TOKENS, lora)
    there, seconds = [each["text"] for each in found], time.perf_counter() - begun
    begun = time.perf_counter()
    here = generate(model, run.load_tokenizer(), prompts, MAX_NEW_TOKENS)
    return {
        "form": form,
        "megabytes": round(made.nbytes / 1e6, 1),
        "equal": sum(one == other for one, other in zip(here, there, strict=True)),
        "here": share(judged(examples, here)),
        "llama.cpp": share(judged(examples, there)),
        "seconds": {"here": round(time.perf_counter() - begun, 1), "llama.cpp": round(seconds, 1)},
        "xllamacpp": version,
        "unequal": [
            {"command": example.command, "here": one, "llama.cpp": other}
            for example, one, other in zip(examples, here, there, strict=True)
            if one != other
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run of the default model; default: the newest in runs/")
    parser.add_argument("--commands", type=int, default=80, help="of the test split (at least 50)")
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "recorded" / "export-check-cpu.json")
    arguments = parser.parse_args()
    if find_python() is None:
        sys.exit("llama.cpp is not here; `make export-check` installs it in an environment of its own")
    run = read_run(find_run(arguments.run))
    examples = spread(load_examples("test"), arguments.commands)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for form in arguments.forms:
            row = check(run, form, examples, Path(folder))
            rows.append(row)
            print(
                f"{form:10} {row['megabytes']:7.1f} MB  equal {row['equal']} of {len(examples)}  right here "
                f"{row['here']['right']}, in llama.cpp {row['llama.cpp']['right']}",
                flush=True,
            )
    write_json(
        arguments.out,
        {
            "made by": "benchmarks/export_check.py",
            "date": date.today().isoformat(),
            "device": device_name("cpu"),
            "versions": versions() | {"xllamacpp": rows[0]["xllamacpp"], "gguf": _version("gguf")},
            "run": {
                "trained beside": f"{run.datatype}, block {run.block_size}"
                + (", double quantization" if run.double_quant else ""),
                "steps": run.result.get("settings", {}).get("steps"),
                "recorded": run.result.get("evaluations", {}),
            },
            "commands": f"{len(examples)} of test, at even distances",
            "forms": [{key: value for key, value in row.items() if key != "xllamacpp"} for row in rows],
        },
    )
    print(f"written: {arguments.out}")
    wrong = [row["form"] for row in rows if row["equal"] < LEAST_EQUAL * len(examples)]
    if wrong:
        sys.exit(f"fewer than {LEAST_EQUAL:.0%} of the answers are equal in {', '.join(wrong)}")


def _version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)


if __name__ == "__main__":
    main()
