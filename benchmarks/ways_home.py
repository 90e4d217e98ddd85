"""What each way home costs: loss and exact match of one adapter, served in each of the ways that there are.

    python benchmarks/ways_home.py runs/NAME [runs/ANOTHER]      writes data/recorded/ways-home-<device>.json

A run is given by its folder, or by words for how it was trained and its folder: `merge-aware=runs/THIRD`. One trained
beside int4_affine in blocks of 32 was trained beside the codes of the base's own GGUF file. Of each run's adapter are
measured: beside the 4-bit base that it was trained beside (here, and for NF4 in PEFT with bitsandbytes), beside the
base before it was quantized, beside the base's own file in llama.cpp, merged into one base or the other and written in
F16, Q8_0 and Q4_1, and merged and rounded back into the 4 bits it was trained beside.

Three numbers: the loss per token of the right answers to test commands, and of some prose (what was forgotten), both
of the weights as they decode; and how many commands are answered exactly, in llama.cpp where the form is its.

Each way is written down as soon as it is measured, and one that stands there is not measured again: it goes on where it
was stopped. Other numbers of commands or tokens are other measurements, and begin anew.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch
from export_check import ROOT, judged, read_back, share
from in_llama_cpp import answer, find_python

from qlora_lab.evaluation.exact_match import generate, loss_per_token
from qlora_lab.export import TrainedRun, export, read_run
from qlora_lab.export.merged import merge_into_base
from qlora_lab.loss import supervised_loss_sum
from qlora_lab.machine.environment import device_name, versions
from qlora_lab.machine.files import write_json
from qlora_lab.models import DEFAULT, ensure_default_gguf, load_adapter
from qlora_lab.qlora import quantize_model
from qlora_lab.tasks import encode, evaluation_text, load_examples, pad_batch, spread

MAX_NEW_TOKENS = 96
BATCH = 16
# A way: from a run and a folder to write in, to the model with the weights served, and its answers to prompts
Served = tuple[torch.nn.Module, Callable[[Sequence[str]], list[str]]]


def here(run: TrainedRun, model: torch.nn.Module) -> Served:
    tokenizer = run.load_tokenizer()
    return model, lambda prompts: generate(model, tokenizer, prompts, MAX_NEW_TOKENS)


def in_llama(model: torch.nn.Module, file: Path, lora: Path | None = None) -> Served:
    return model, lambda prompts: [each["text"] for each in answer(file, prompts, MAX_NEW_TOKENS, lora)[0]]


def trained(run: TrainedRun, _: Path) -> Served:
    return here(run, run.load_trained("cpu"))


def in_peft(run: TrainedRun, folder: Path) -> Served:
    """The same adapter beside bitsandbytes' NF4, opened by PEFT."""
    import peft
    import transformers

    from qlora_lab.models import ensure_default_model

    transformers.utils.logging.disable_progress_bar()
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=run.double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = ensure_default_model() if run.model == DEFAULT else run.model
    model = transformers.AutoModelForCausalLM.from_pretrained(base, quantization_config=config, dtype=torch.float32)
    return here(run, peft.PeftModel.from_pretrained(model, str(run.adapter)).eval())


def beside_original(run: TrainedRun, _: Path) -> Served:
    return here(run, load_adapter(run.load_base("cpu"), run.adapter))


def beside_own_file(run: TrainedRun, folder: Path) -> Served:
    base = Path(ensure_default_gguf())
    made = export(run.folder, "gguf-lora", folder / "lora")
    return in_llama(load_adapter(read_back(run, base), run.adapter), base, made.path / "adapter.gguf")


def merged(kind: str, base: str) -> Callable[[TrainedRun, Path], Served]:
    def way(run: TrainedRun, folder: Path) -> Served:
        made = export(run.folder, "gguf", folder / "merged", type=kind, base=base)
        file = made.path / f"model-{kind}.gguf"
        return in_llama(read_back(run, file), file)

    return way


def merged_and_rounded(run: TrainedRun, _: Path) -> Served:
    model = merge_into_base(run, "trained")
    return here(run, quantize_model(model, run.datatype, run.block_size, run.double_quant, rank=0))


WAYS = {
    "adapter beside the 4-bit base it was trained beside": trained,
    "the same in PEFT with bitsandbytes": in_peft,
    "adapter beside the base in full precision": beside_original,
    "adapter beside the base's own Q4_1 file": beside_own_file,
    **{
        f"merged into {words}, {kind.upper()}": merged(kind, base)
        for base, words in (("trained", "the base it was trained beside"), ("original", "the base in full precision"))
        for kind in ("f16", "q8_0", "q4_1")
    },
    "merged and rounded back into the 4 bits it was trained beside": merged_and_rounded,
}


def ways_of(run: TrainedRun) -> dict[str, Callable]:
    """Those that there are for a run: PEFT has NF4 in blocks of 64 only, llama.cpp a file of the default model's.

    The default model came in affine blocks of 32, so int4_affine at that size is its full precision (to 1e-7), and
    those two bases are one.
    """
    ways = dict(WAYS)
    if (run.model, run.datatype, run.block_size) == (DEFAULT, "int4_affine", 32):
        ways = {name: way for name, way in ways.items() if "full precision" not in name}
    if (run.datatype, run.block_size) != ("nf4", 64):
        ways.pop("the same in PEFT with bitsandbytes")
    if run.model != DEFAULT:
        ways = {name: way for name, way in ways.items() if "own" not in name and "Q4_1" not in name}
    return ways


@torch.no_grad()
def answer_loss(model: torch.nn.Module, tokenizer, examples) -> float:
    """Mean cross-entropy, in nats, of the tokens of the right answers."""
    total = count = 0
    encoded = sorted((encode(example, tokenizer) for example in examples), key=lambda pair: len(pair[0]))
    for start in range(0, len(encoded), BATCH):
        batch = pad_batch(encoded[start : start + BATCH], tokenizer.pad_token_id)
        total += supervised_loss_sum(model, batch.input_ids, batch.attention_mask, batch.labels).item()
        count += int((batch.labels != -100).sum())
    return total / count


def measure(run: TrainedRun, way: Callable, examples, prose: str) -> dict:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, answers = way(run, Path(folder))
        model.eval()
        tokenizer = run.load_tokenizer()
        right = judged(examples, answers([example.prompt for example in examples]))
        return {
            "exact match": share(right),
            "loss of answers": round(answer_loss(model, tokenizer, examples), 5),
            "loss of prose": round(loss_per_token(model, tokenizer, prose), 5),
            "which were right": "".join("01"[each] for each in right),  # for differences that are paired by command
        }


def identity(run: TrainedRun) -> str:
    weights = (run.adapter / "adapter_model.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of finished runs, or WORDS=FOLDER")
    parser.add_argument("--commands", type=int, default=200, help="of the test split, at even distances")
    parser.add_argument("--prose", type=int, default=0, help="use only the first N characters of the prose (0: all)")
    parser.add_argument("--ways", nargs="*", help="only those whose names hold one of these words")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "recorded" / "ways-home-cpu.json")
    arguments = parser.parse_args()
    if find_python() is None:
        sys.exit("llama.cpp is not here; `make ways-home` installs it in an environment of its own")
    examples = spread(load_examples("test"), arguments.commands)
    prose = evaluation_text()[: arguments.prose or None]
    question = {"commands": len(examples), "characters of prose": len(prose)}
    kept = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    rows = kept["rows"] if kept.get("measured") == question else []
    for given in arguments.runs:
        how, _, folder = given.rpartition("=")
        run = read_run(folder)
        double = "double quantization" if run.double_quant else ""
        beside = ", ".join(filter(None, (run.datatype, f"block {run.block_size}", double, how)))
        for name, way in ways_of(run).items():
            key = {"trained beside": beside, "adapter": identity(run), "way": name}
            if arguments.ways and not any(word in name for word in arguments.ways):
                continue
            if any(key.items() <= row.items() for row in rows):
                continue
            row = key | measure(run, way, examples, prose)
            rows.append(row)
            found = row["exact match"]
            print(
                f"{beside}: {name}: {found['right']} of {found['of']}, loss {row['loss of answers']:.4f}, "
                f"prose {row['loss of prose']:.4f}",
                flush=True,
            )
            write_json(
                arguments.out,
                {
                    "made by": "benchmarks/ways_home.py",
                    "date": date.today().isoformat(),
                    "device": device_name("cpu"),
                    "versions": versions(),
                    "measured": question,
                    "rows": rows,
                },
            )


if __name__ == "__main__":
    main()
