"""The command line: `qlora-lab finetune`, `ask`, `memory`, `fetch`, `bundle`, `classroom`, `doctor`."""

import contextlib
import time
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from qlora_lab.cli import classroom_commands
from qlora_lab.cli.terminal import Bars, console, escape_unencodable, print_result, say, told_errors
from qlora_lab.training.settings import Settings

app = typer.Typer(
    help="QLoRA, built piece by piece. Start with `qlora-lab doctor`, then `qlora-lab finetune`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(classroom_commands.app, name="classroom")
RUNS = Path("runs")
DEFAULTS = Settings()
RENAMED = {"rslora": "use_rslora"}  # options whose value has another name in a plan

Runs = Annotated[Path, typer.Option(help="Folder that holds the runs.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. Default: the GPU where there is one.")]


@app.command()
def finetune(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Option(help="Name of the run and of its folder. Default: date and time.")] = None,
    runs: Runs = RUNS,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a killed run: the one named, or else the newest unfinished.")
    ] = False,
    model: Annotated[
        str, typer.Option(help="The base: the default model, a local folder, or a hub id.")
    ] = "SmolLM2-135M-Instruct",
    datatype: Annotated[str, typer.Option(help="nf4, fp4, int4 or int4_affine.")] = "nf4",
    block_size: Annotated[int, typer.Option(help="Weights that share a scale, 16 to 4096.")] = 64,
    double_quant: Annotated[bool, typer.Option(help="Store the scales in 8 bits.")] = True,
    rank: Annotated[int, typer.Option(help="Rank r of the adapters.")] = 16,
    alpha: Annotated[float | None, typer.Option(help="Adapters are scaled by alpha / rank. Default: 2 * rank.")] = None,
    dropout: Annotated[float, typer.Option(help="Share of adapter inputs dropped while training.")] = 0.0,
    rslora: Annotated[bool, typer.Option(help="Scale by alpha / sqrt(rank) instead.")] = False,
    compute_dtype: Annotated[
        str, typer.Option(help="Products with 4-bit weights: float32, bfloat16, float16, or auto, what is fast here.")
    ] = "auto",
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = DEFAULTS.steps,
    batch_size: Annotated[int, typer.Option(help="Examples per forward pass.")] = DEFAULTS.batch_size,
    accumulation: Annotated[int, typer.Option(help="Forward passes per optimizer step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = DEFAULTS.learning_rate,
    seed: Annotated[int, typer.Option(help="Decides adapters' start, order of examples and dropout.")] = 0,
    checkpointing: Annotated[
        str, typer.Option(help="Gradient checkpointing: none, reentrant or non-reentrant.")
    ] = "none",
    state_bits: Annotated[int, typer.Option(help="Of the optimizer's moments: 32, or 8 (block-wise).")] = 32,
    page_budget: Annotated[
        float | None,
        typer.Option(help="MB of optimizer state kept beside the model; the rest lies in pages. Default: no paging."),
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints on disk.")] = 20,
    train_examples: Annotated[int, typer.Option(help="Use only the first N training examples (0: all).")] = 0,
    baseline_examples: Annotated[int, typer.Option(help="Test commands the base model is asked first.")] = 16,
    test_examples: Annotated[int, typer.Option(help="Test commands asked afterwards (0: all).")] = 0,
    paraphrase_examples: Annotated[int, typer.Option(help="Hand-written paraphrases asked afterwards (0: all).")] = 120,
    device: Device = None,
) -> None:
    """Quantize a model to 4 bits, train LoRA adapters on the function-calling task, and report before and after.

    Leaves `runs/NAME/` with the adapter in PEFT's format, `metrics.jsonl`, `loss.png`, `report.html` and its numbers,
    `result.json`. A run that was killed goes on with `--resume` and, on a CPU, ends with the same weights as one that
    was not.

    Under torchrun several processes, each with a GPU where there are any, share one run and its memory:
    `torchrun --nproc-per-node 2 -m qlora_lab.cli finetune`. A run may go on with another number of them.
    """
    from qlora_lab.cli.run import Listener, RunPlan, begin, check, execute, unfinished
    from qlora_lab.machine import processes
    from qlora_lab.machine.arguments import is_number

    began = time.perf_counter()
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "accumulation": accumulation,
        "learning_rate": learning_rate,
        "seed": seed,
        "checkpointing": checkpointing,
        "state_bits": state_bits,
    }
    decisive = {*settings, *RENAMED, *(f.name for f in fields(RunPlan))}
    given = {name for name in ctx.params if ctx.get_parameter_source(name).name == "COMMANDLINE"}

    def start(plan: RunPlan) -> tuple[Path, RunPlan]:
        if resume:
            folder = runs / name if name else unfinished(runs)
        else:
            folder = runs / (name or datetime.now().strftime("%Y-%m-%d-%H%M%S"))
        check(plan)
        return folder, begin(folder, plan, resume, [RENAMED.get(n, n) for n in ctx.params if n in given & decisive])

    with told_errors(), processes.connected(device) as device:
        if page_budget is not None and not (is_number(page_budget) and page_budget >= 0):
            raise ValueError(f"page_budget {page_budget} is not allowed; give a number of MB, 0 or more")
        paging = None if page_budget is None else {"device_budget": round(1e6 * page_budget)}
        plan = RunPlan(
            model=model,
            datatype=datatype,
            block_size=block_size,
            double_quant=double_quant and (datatype != "int4_affine" or "double_quant" in given),
            rank=rank,
            alpha=alpha if alpha is not None else 2 * rank,
            dropout=dropout,
            use_rslora=rslora,
            compute_dtype=compute_dtype,
            train_examples=train_examples,
            baseline_examples=baseline_examples,
            test_examples=test_examples,
            paraphrase_examples=paraphrase_examples,
            settings=settings,
        )
        folder, plan = processes.from_main(lambda: start(plan))
        with Bars() if processes.is_main() else contextlib.nullcontext(Listener()) as listener:
            result = execute(folder, plan, resume, device, listener, checkpoint_every, paging)
        main = processes.is_main()
    if main:
        print_result(folder, result, time.perf_counter() - began)


@app.command()
def ask(
    command: Annotated[str, typer.Argument(help="What to ask, such as: wake me at half past six tomorrow")],
    adapter: Annotated[
        Path | None, typer.Option(help="An adapter folder. Default: the newest in runs/; 'none' for the base model.")
    ] = None,
    model: Annotated[str, typer.Option(help="The base model the adapter was trained for.")] = "SmolLM2-135M-Instruct",
    runs: Runs = RUNS,
    device: Device = None,
) -> None:
    """Let the tuned model answer one command, beside the base model."""
    from qlora_lab.evaluation.exact_match import generate
    from qlora_lab.models.adapters import load_adapter
    from qlora_lab.models.base_model import load_model, load_tokenizer
    from qlora_lab.qlora import quantize_model
    from qlora_lab.tasks.function_calls import prompt_text

    with told_errors():
        prompt = prompt_text(command)
        if adapter is None:
            found = sorted(runs.rglob("adapter"), key=lambda path: path.stat().st_mtime)
            if not found:
                raise ValueError(f"no adapter in {runs}; run `qlora-lab finetune` first, or give --adapter")
            adapter = found[-1]
        tokenizer, base = load_tokenizer(model), load_model(model, device=device)
        answers = {"base model": generate(base, tokenizer, [prompt])[0]}
        if str(adapter) != "none":
            tuned = load_adapter(quantize_model(base, rank=0), adapter)
            answers[f"with {adapter}"] = generate(tuned, tokenizer, [prompt])[0]
    for who, text in answers.items():
        say(who, style="bold")
        console.print(text.strip(), markup=False)


@app.command()
def memory(
    model: Annotated[
        str, typer.Option(help="llama-7b to llama-65b, llama-2-70b, the default model, or a config.json.")
    ] = ("llama-65b"),
    method: Annotated[str, typer.Option(help="full, lora or qlora.")] = "qlora",
    gpu: Annotated[float | None, typer.Option(help="Memory of the GPU in GB (10^9 bytes): does it fit?")] = None,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Sequences per forward pass.")] = 1,
    sequence_length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 512,
    checkpointing: Annotated[
        str, typer.Option(help="Gradient checkpointing: none, reentrant or non-reentrant.")
    ] = "reentrant",
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Also run the step over tensors without values (up to a minute).")
    ] = False,
) -> None:
    """Say where the bytes of one training step go, before any is allocated, and whether they fit.

    The figures are a closed form over the model's shape; `--simulate` runs the real model, layers and optimizer over
    tensors without values and counts them.
    """
    from qlora_lab.memory.closed_form import predict_training
    from qlora_lab.memory.fit import fit_to_gpu
    from qlora_lab.memory.simulation import simulate_training

    with told_errors():
        plan = {
            "rank": rank,
            "batch_size": batch_size,
            "sequence_length": sequence_length,
            "checkpointing": checkpointing,
        }
        predicted = predict_training(model, method, **plan)
        said = fit_to_gpu(predicted, gpu) if gpu is not None else None
        traced = simulate_training(model, method, **plan) if simulate else None
    table = Table()  # without a title, which would wrap to the table's width
    table.add_column("category")
    table.add_column("predicted", justify="right")
    if traced:
        table.add_column("simulated", justify="right")
    for name, amount in predicted.by_category.items():
        row = [name, f"{amount / 1e9:,.2f} GB"]
        table.add_row(*row, *([f"{traced.by_category.get(name, 0) / 1e9:,.2f} GB"] if traced else []))
    table.add_section()
    table.add_row("peak", f"{predicted.peak / 1e9:,.2f} GB", *([f"{traced.peak / 1e9:,.2f} GB"] if traced else []))
    say(f"{model}, {method}, batch {batch_size} × {sequence_length} tokens")
    console.print(table)
    if said is not None:
        say(str(said))


@app.command()
def fetch(
    gguf: Annotated[
        Path | None, typer.Option(help="The model's GGUF file where it is at hand already, as in a bundle.")
    ] = None,
) -> None:
    """Fetch, verify and convert the default model, so that nothing later needs the network.

    What is there already is read and compared with what was written, and made again where it differs.
    """
    from qlora_lab.models.base_model import ensure_default_model

    with told_errors():
        say(f"ready: {ensure_default_model(gguf, full=True)}")


@app.command()
def bundle(
    out: Annotated[Path, typer.Option(help="The archive to write.")] = Path("qlora-lab-bundle.zip"),
    checkout: Annotated[Path, typer.Option(help="The checkout whose package and notebooks go into it.")] = Path("."),
) -> None:
    """Pack all that a room without internet needs into one archive: wheels, the model's file, the notebooks.

    Its README has the two commands that install from it. The wheels are those for the system and the Python that this
    runs on, in the pinned versions, from wherever pip is set up to get them: an index with CPU builds of torch gives a
    much smaller archive than one with CUDA builds.
    """
    from qlora_lab.cli.bundle import write_bundle

    with told_errors(), console.status("") as status:
        size = write_bundle(out, checkout, notice=say, progress=lambda text: status.update(escape(text)))
    say(f"{out}: {size / 1e6:,.0f} MB")


@app.command()
def doctor(
    full: Annotated[
        bool, typer.Option("--full", help="Read all of the cached model and compare its SHA-256 (a second or two).")
    ] = False,
) -> None:
    """Say what this machine is, whether everything is in place, and what would run."""
    from qlora_lab.machine.environment import describe, versions
    from qlora_lab.models.base_model import DEFAULT, default_model_status

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in {**versions(), **describe()}.items():
        table.add_row(name, escape(value))
    with told_errors():
        status = default_model_status(full=full)
    state = f"in the cache, {status.nbytes / 1e6:.0f} MB" if status.ready else f"not ready: {status.problem}"
    table.add_row(DEFAULT, escape(state))
    table.add_row("cache", escape(str(status.folder.parent.parent)))
    console.print(table)
    missing = [
        name for name, version in versions().items() if version == "missing" and name in ("bitsandbytes", "peft")
    ]
    if missing:
        console.print(f"{', '.join(missing)} not installed: the comparisons in the notebooks and tests need them.")
    if not status.ready:
        console.print("`qlora-lab finetune` would make the model first (from the file in the cache, or 98 MB, once).")
    else:
        console.print("`qlora-lab finetune` would run now.")


def main() -> None:
    """Entry point of the `qlora-lab` command."""
    escape_unencodable()
    app()
