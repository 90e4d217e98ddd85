"""The command line: `qlora-lab finetune`, `ask`, `export`, `memory`, `progress`, `graduate`, `fetch` and more."""

import contextlib
import re
import time
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from qlora_lab.cli import classroom_commands
from qlora_lab.cli.terminal import Bars, console, escape_unencodable, print_rates, print_result, say, told_errors
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
EPOCHS = 3.0  # of one's own data, where nothing is said
RENAMED = {"rslora": "use_rslora"}  # options whose value has another name in a plan

Runs = Annotated[Path, typer.Option(help="Folder that holds the runs.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or mps. Default: the GPU where there is one.")]


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
    datatype: Annotated[
        str,
        typer.Option(
            help="nf4, fp4, int4, int4_affine, or one of those since: nf4_float16, int4_signed, bof4, bof4_s, q4_0, "
            "q4_1, iq4_nl, mxfp4, nvfp4."
        ),
    ] = "nf4",
    block_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale, 16 to 4096. Default: the data type's own, or 64.")
    ] = None,
    double_quant: Annotated[
        bool, typer.Option(help="Store the scales in 8 bits, where they are float32 and have no minimum beside them.")
    ] = True,
    rank: Annotated[int, typer.Option(help="Rank r of the adapters.")] = 16,
    alpha: Annotated[float | None, typer.Option(help="Adapters are scaled by alpha / rank. Default: 2 * rank.")] = None,
    dropout: Annotated[float, typer.Option(help="Share of adapter inputs dropped while training.")] = 0.0,
    rslora: Annotated[bool, typer.Option(help="Scale by alpha / sqrt(rank) instead.")] = False,
    compute_dtype: Annotated[
        str, typer.Option(help="Products with 4-bit weights: float32, bfloat16, float16, or auto, what is fast here.")
    ] = "auto",
    target_modules: Annotated[
        str, typer.Option(help="Layers that get adapters: all-linear, or names such as q_proj,v_proj.")
    ] = "all-linear",
    data: Annotated[
        Path | None,
        typer.Option(
            help="A file or folder of your own examples. Default: the function-calling task.", show_default=False
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(help="Of --data: chat, prompt-completion, completion, instruction, text, or auto.")
    ] = "auto",
    validation: Annotated[Path | None, typer.Option(help="A file of examples to validate on, not to train on.")] = None,
    validation_share: Annotated[
        float, typer.Option(help="Share of --data to hold back, where there is no --validation (0: none).")
    ] = 0.1,
    template: Annotated[
        Path | None, typer.Option(help="A file with a chat template, in place of the tokenizer's own.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="What makes an answer right: exact, json, or module:function of your own.")
    ] = None,
    mix: Annotated[
        Path | None, typer.Option(help="A file of general text to train on too, against forgetting.")
    ] = None,
    mix_share: Annotated[float, typer.Option(help="Of the learned tokens, how many are --mix's.")] = DEFAULTS.mix_share,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = DEFAULTS.steps,
    epochs: Annotated[
        float | None,
        typer.Option(help="How often the examples are gone through, in place of --steps. Default with --data: 3."),
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of an example; longer ones are cut.")] = None,
    packing: Annotated[
        bool, typer.Option("--packing", help="Several short examples in a row, which do not see each other.")
    ] = False,
    validate_every: Annotated[
        int | None, typer.Option(help="Steps between two measurements of the validation loss. Default: a tenth of all.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="End after so many measurements in a row without a lower validation loss.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples per forward pass.")] = DEFAULTS.batch_size,
    accumulation: Annotated[int, typer.Option(help="Forward passes per optimizer step.")] = 1,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate. Default: by the size of the base, 3e-3 at 135 million."),
    ] = None,
    find_rate: Annotated[
        bool, typer.Option("--find-rate", help="Train nothing: try which learning rate fits, and draw it.")
    ] = False,
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
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write events for TensorBoard too, where it is installed.")
    ] = False,
    device: Device = None,
) -> None:
    """Quantize a model to 4 bits, train LoRA adapters, and report before and after.

    On the function-calling task, or on your own examples: `qlora-lab finetune --data train.jsonl`. Of these a tenth is
    held back; the loss on it is measured as the run goes on, and the weights of its lowest are kept.

    Leaves `runs/NAME/` with the adapter in PEFT's format, `metrics.jsonl`, `loss.png`, `report.html` and its numbers,
    `result.json`. A run that was killed goes on with `--resume` and, on a CPU, ends with the same weights as one that
    was not.

    Under torchrun several processes, each with a GPU where there are any, share one run and its memory:
    `torchrun --nproc-per-node 2 -m qlora_lab.cli finetune`. A run may go on with another number of them.
    """
    from qlora_lab.cli.run import Listener, RunPlan, begin, check, execute, try_rates, unfinished
    from qlora_lab.cli.run_data import read_data, read_template
    from qlora_lab.machine import processes
    from qlora_lab.machine.arguments import is_number
    from qlora_lab.quantization.datatypes import get_datatype
    from qlora_lab.training.run_plan import check_targets
    from qlora_lab.training.tensorboard_events import check_tensorboard

    began = time.perf_counter()
    given = {name for name in ctx.params if ctx.get_parameter_source(name).name == "COMMANDLINE"}
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "accumulation": accumulation,
        "learning_rate": learning_rate,
        "seed": seed,
        "checkpointing": checkpointing,
        "state_bits": state_bits,
        "validate_every": validate_every,
        "patience": patience,
        "max_length": max_length,
        "packing": packing or None,
        "mix_share": mix_share if mix is not None or "mix_share" in given else None,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    decisive = {*(f.name for f in fields(Settings)), *RENAMED, *(f.name for f in fields(RunPlan))}
    if data is not None and not given & {"steps", "epochs"}:
        epochs = EPOCHS
    if epochs is not None and "steps" not in given:
        del settings["steps"]

    def start(plan: RunPlan) -> tuple[Path, RunPlan, object]:
        if resume:
            folder = runs / name if name else unfinished(runs)
        else:
            folder = runs / (name or datetime.now().strftime("%Y-%m-%d-%H%M%S"))
        check(plan)
        if tensorboard:
            check_tensorboard()
        examples = None if resume else read_data(plan)
        if not resume:
            check_targets(plan)
            plan = replace(plan, format=examples.format)
        if find_rate:
            return folder, plan, examples
        asked = [RENAMED.get(n, n) for n in ctx.params if n in given & decisive]
        return folder, begin(folder, plan, resume, asked), examples if processes.count() < 2 else None

    with told_errors(), processes.connected(device) as device:
        if page_budget is not None and not (is_number(page_budget) and page_budget >= 0):
            raise ValueError(f"page_budget {page_budget} is not allowed; give a number of MB, 0 or more")
        if find_rate and (resume or processes.count() > 1):
            raise ValueError("--find-rate tries rates in one process, from the beginning; leave --resume out")
        paging = None if page_budget is None else {"device_budget": round(1e6 * page_budget)}
        plan = RunPlan(
            model=model,
            datatype=datatype,
            block_size=block_size,
            double_quant=double_quant and ("double_quant" in given or get_datatype(datatype).allows_double_quant),
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
            target_modules=_targets(target_modules),
            epochs=epochs,
            data=_absolute(data),
            format=format,
            validation=_absolute(validation),
            validation_share=validation_share,
            template=read_template(template),
            metric=metric,
            mix=_absolute(mix),
        )
        folder, plan, examples = processes.from_main(lambda: start(plan))
        with Bars() if processes.is_main() else contextlib.nullcontext(Listener()) as listener:
            if find_rate:
                print_rates(*try_rates(folder, plan, device, listener, examples))
                return
            result = execute(folder, plan, resume, device, listener, checkpoint_every, paging, examples, tensorboard)
        main = processes.is_main()
    if main:
        print_result(folder, result, time.perf_counter() - began)


def _targets(text: str) -> str | list[str]:
    """Names with commas between them; or, as it has signs that no name has, a regular expression."""
    if text == "all-linear" or re.search(r"[\\*+|()\[\]^$?]", text):
        return text
    return [name.strip() for name in text.split(",")]


def _absolute(path: Path | None) -> str | None:
    """A path as a run remembers it, so that it goes on from any working directory."""
    return None if path is None else str(path.expanduser().absolute())


@app.command()
def ask(
    command: Annotated[str, typer.Argument(help="What to ask, such as: wake me at half past six tomorrow")],
    adapter: Annotated[
        Path | None,
        typer.Option(help="An adapter's or a run's folder. Default: the newest in runs/; 'none' for the base model."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The base model. Default: the one that the run was trained on.")
    ] = None,
    runs: Runs = RUNS,
    device: Device = None,
) -> None:
    """Let the tuned model answer one command, beside the base model.

    How the base was stored, in which dtype it computes and which template it was trained with, the run itself says.
    """
    from qlora_lab.evaluation.exact_match import generate
    from qlora_lab.machine.dtypes import FLOAT_DTYPES
    from qlora_lab.models.adapters import load_adapter
    from qlora_lab.models.base_model import load_model
    from qlora_lab.training.run_plan import RunPlan, plan_of, prompt_of, quantize_as, tokenizer_of

    with told_errors():
        tuned = str(adapter) != "none"
        if tuned and adapter is None:
            found = sorted(runs.rglob("adapter"), key=lambda path: path.stat().st_mtime)
            if not found:
                raise ValueError(f"no adapter in {runs}; run `qlora-lab finetune` first, or give --adapter")
            adapter = found[-1]
        if tuned and (adapter / "adapter" / "adapter_config.json").exists():
            adapter = adapter / "adapter"
        plan = (plan_of(adapter) if tuned else None) or RunPlan()
        plan = replace(plan, model=model) if model is not None else plan
        tokenizer = tokenizer_of(plan)
        prompt = prompt_of(plan, tokenizer, command)
        base = load_model(plan.model, dtype=FLOAT_DTYPES.get(plan.dtype), device=device)
        answers = {"base model": generate(base, tokenizer, [prompt])[0]}
        if tuned:
            trained = load_adapter(quantize_as(plan, base, rank=0), adapter)
            answers[f"with {adapter}"] = generate(trained, tokenizer, [prompt])[0]
    for who, text in answers.items():
        say(who, style="bold")
        console.print(text.strip(), markup=False)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="The run: its folder, its name in runs/, or an adapter's folder.")],
    to: Annotated[str, typer.Option(help="peft, merged, gguf-lora or gguf.")],
    out: Annotated[
        Path, typer.Option(help="A folder that is not there yet or empty; for GGUF also the name of a file.")
    ],
    type: Annotated[
        str | None, typer.Option(help="Of gguf's weights: f16 (default), q8_0, or q4_1 where the base came in it.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="What the adapter is merged into: trained (what the 4-bit base decodes to; default) or original."
        ),
    ] = None,
    base_gguf: Annotated[
        Path | None, typer.Option(help="A GGUF file of the base, to take tokenizer and settings from.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The base of an adapter that has no run beside it.")] = None,
    runs: Runs = RUNS,
) -> None:
    """Take a trained model home: an adapter for PEFT, merged weights for transformers, or GGUF for llama.cpp.

    Beside the weights it leaves a model card (README.md) and, for Ollama, a Modelfile with the template and the stop
    token that the run was trained with. All is checked before the first byte is written.
    """
    from qlora_lab.export import export as export_run

    with told_errors("nothing was written"):
        found = runs / run if not Path(run).exists() and (runs / run).is_dir() else Path(run)
        made = export_run(found, to, out, type=type, base=base, base_gguf=base_gguf, model=model)
    for remark in made.remarks:
        say(remark)
    say(f"{made.path}  {made.nbytes / 1e6:,.1f} MB: {', '.join(made.files)}")


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
    adapter_dtype: Annotated[
        str, typer.Option(help="float32, in which adapters are trained unless one asks otherwise, or bfloat16.")
    ] = "float32",
    chunked_loss: Annotated[
        bool, typer.Option(help="Logits a few rows at a time, as here; without, as transformers computes a loss.")
    ] = True,
    reserve: Annotated[
        float | None, typer.Option(help="GB of the GPU that are not the step's. Default: 1.5, of a small GPU a tenth.")
    ] = None,
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
            "adapter_dtype": adapter_dtype,
            "chunked_loss": chunked_loss,
        }
        predicted = predict_training(model, method, **plan)
        said = fit_to_gpu(predicted, gpu, reserve) if gpu is not None else None
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
    adapters = "" if method == "full" else f", adapters of rank {rank} in {adapter_dtype}"
    say(f"{model}, {method}, batch {batch_size} × {sequence_length} tokens{adapters}")
    console.print(table)
    if said is not None:
        say(str(said))


@app.command()
def progress() -> None:
    """The board of all exercises: which answers are kept in my_qlora, and which are open."""
    from qlora_lab import mine
    from qlora_lab.checks import kept

    board = mine.board()
    table = Table("notebook", "yours", "", box=None, pad_edge=False)
    for number, row in board.rows.items():
        marks = "  ".join(f"[green]✓\u00a0{name}[/]" if own else f"○\u00a0{name}" for name, own in row.items())
        table.add_row(number, f"{sum(row.values())} of {len(row)}", marks)
    console.print(table)
    say(f"{board.done} of {board.total} exercises are yours; they are kept in {kept.folder()}")


@app.command()
def graduate(
    steps: Annotated[int, typer.Option(help="Optimizer steps, of twelve commands each.", min=1)] = 30,
    commands: Annotated[int, typer.Option(help="Of the test split, asked before and after.", min=1)] = 24,
    out: Annotated[Path | None, typer.Option(help="A new folder for the adapter, in PEFT's format.")] = None,
    device: Device = None,
) -> None:
    """Fine-tune the default model by your own pieces alone, those that `check` has kept in my_qlora.

    Each piece is checked first, and one that is wrong is refused. What is not written yet is taken from the finished
    version, and said so. Then the losses are compared with the package's, and the adapter is opened in PEFT.
    """
    from qlora_lab.graduation import Recipe, graduate

    with told_errors():
        say(str(graduate(Recipe(steps=steps), commands=commands, out=out, device=device, notice=say)))


@app.command()
def fetch(
    gguf: Annotated[
        Path | None, typer.Option(help="The model's GGUF file where it is at hand already, as in a bundle.")
    ] = None,
    minilm: Annotated[
        Path | None, typer.Option(help="The file of never-quantized weights where it is at hand, as in a bundle.")
    ] = None,
) -> None:
    """Fetch, verify and convert the default model, so that nothing later needs the network.

    With it, the weights of all-MiniLM-L6-v2, which notebooks 01 to 03 measure on because no 4-bit format has touched
    them. What is there already is read and compared with what was written, and made again where it differs.
    """
    from qlora_lab.models import base_model, never_quantized

    with told_errors():
        say(f"ready: {base_model.ensure_default_model(gguf, full=True)}")
        say(f"ready: {never_quantized.ensure_never_quantized(minilm)}")


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
