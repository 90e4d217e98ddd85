"""What the command line shows: progress while a run goes on, its result at the end, errors in one line."""

import sys
from collections import deque
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from qlora_lab.machine import processes
from qlora_lab.machine.errors import UserFacingError
from qlora_lab.machine.other_work import OtherWork
from qlora_lab.tasks.inspection import Inspection, shorten

console = Console(highlight=False, emoji=False)
LEARNED, GIVEN = "bold green", "dim"  # of a mask: both can be read on light and on dark
TOLD = (UserFacingError, ValueError, TypeError, FloatingPointError, OSError)


def say(text: str, **options) -> None:
    """Print a line as it is: a name may hold what is markup elsewhere, such as [/b]."""
    console.print(text, markup=False, soft_wrap=True, **options)


def escape_unencodable() -> None:
    """Let streams that cannot encode a character (not UTF-8, or a lone surrogate) get it escaped, and go on."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def print_result(folder: Path, result, seconds: float) -> None:
    training = result.training
    if result.evaluations:
        _print_matches(result)
    if training.validations or result.prose:
        losses = Table(title="Loss, in nats per token", title_justify="left", title_style="bold")
        for column in ("on", "before", "after"):
            losses.add_column(column, justify="left" if column == "on" else "right")
        if training.validations:
            first, best = training.validations[0], training.best
            losses.add_row(f"examples held back (kept: step {best.step})", f"{first.loss:.3f}", f"{best.loss:.3f}")
        if result.prose:
            losses.add_row("general text", *(f"{loss:.3f}" for loss in result.prose))
        console.print(losses)
        if training.validations and training.best.step == 0:
            say("nothing that was learned helps with the examples held back; try a lower --learning-rate, or more data")
        if training.stopped_early:
            say(f"ended early, after step {training.validations[-1].step}: the validation loss fell no more")
    if result.samples:
        _print_samples(result.samples)
    console.print(
        f"trained {result.parameters.trainable:,} of {result.parameters.total:,} parameters "
        f"in {training.seconds:.0f} s ({training.tokens_per_second:,.0f} tokens/s); everything took {minutes(seconds)}"
    )
    say(f"adapter  {folder / 'adapter'}")
    say(f"report   {result.report}")


def print_rates(found, figure: Path) -> None:
    """What a range test of the learning rate says, and where its picture is."""
    say(str(found))
    say(f"picture  {figure}")


def _print_matches(result) -> None:
    table = Table(title="Before and after", title_justify="left", title_style="bold")
    for column in ("commands", "exact match", "95 % interval"):
        table.add_column(column)
    for name, evaluation in result.evaluations.items():
        low, high = evaluation.interval
        table.add_row(
            Text(name),
            f"{evaluation.correct} of {len(evaluation.answers)} = {100 * evaluation.exact_match:.1f} %",
            f"{100 * low:.0f} to {100 * high:.0f} %",
        )
    console.print(table)


def _print_samples(rows) -> None:
    samples = Table(title="Samples", title_justify="left", title_style="bold", show_lines=True)
    for column in ("command", "base model", "after fine-tuning"):
        samples.add_column(column, overflow="fold", ratio=1)
    for command, _, before, after in rows:
        short = " ".join(before.split())
        samples.add_row(*(Text(t) for t in (command, short[:157] + "…" if len(short) > 158 else short, after)))
    console.print(samples)


def print_inspection(inspection: Inspection) -> None:
    """What was found in the data, what should be looked at, and three masks: learned text is green and bold.

    Where there are no colours, learned text stands in «…».
    """
    columns = ("", "training") if inspection.validation is None else ("", "training", "validation")
    table = Table(title="The data", title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if not column else "right", overflow="fold")
    for row in inspection.table():
        table.add_row(*(Text(f"{v:,}" if isinstance(v, int | float) else v or "") for v in row[: len(columns)]))
    console.print(table)
    for warning in inspection.warnings:
        console.print(Text.assemble(("look at this  ", "bold yellow"), warning), soft_wrap=True)
    coloured = console.is_terminal and not console.no_color
    key = Text.assemble(("learned", LEARNED), ("  given", GIVEN)) if coloured else Text("«learned»  given")
    console.print(Text.assemble("What is learned of them:  ", key))
    for origin, pieces in zip(inspection.shown, inspection.masks, strict=True):
        console.print(Text(origin, style="italic"))
        shown = Text()
        for text, learned in shorten(pieces):
            shown.append(f"«{text}»" if learned and not coloured else text, style=LEARNED if learned else GIVEN)
        console.print(shown, soft_wrap=True)


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


class told_errors:
    """What a user can put right is told in one line and exit code 1; everything else keeps its traceback.

    Args:
        interrupted: what to say after Ctrl-C.
    """

    def __init__(self, interrupted: str = "`qlora-lab finetune --resume` goes on from the last checkpoint"):
        self.interrupted = interrupted

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, TOLD) and not isinstance(error, BrokenPipeError):  # of which nobody can be told
            if not getattr(error, "told_by_main", False):
                who = "" if processes.is_main() else f"process {processes.rank()}: "
                text = escape(f"{who}{error}")
                Console(stderr=True, highlight=False, emoji=False).print(
                    f"[bold red]error[/bold red] {text}", soft_wrap=True
                )
            raise typer.Exit(1) from error
        if isinstance(error, KeyboardInterrupt):
            console.print(f"interrupted; {self.interrupted}")
            raise typer.Exit(130) from error


class Bars:
    """A run's progress as bars, and as plain lines where the output is no terminal."""

    def __init__(self):
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks, self.loss, self.others = {}, None, OtherWork()
        self.recent = deque(maxlen=20)  # steps: what is left is promised at their speed, which may change on the way

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *_):
        self.progress.stop()

    def stage(self, text: str) -> None:
        self.tasks.clear()
        self.progress.console.print(text, markup=False, soft_wrap=True)

    def inspection(self, found: Inspection) -> None:
        print_inspection(found)

    def done(self, part: str, done: int, of: int) -> None:
        self._update(part, done, of, "")

    def step(self, record, steps: int) -> None:
        self.loss = record.loss if self.loss is None else 0.9 * self.loss + 0.1 * record.loss
        self.recent.append(record)
        seconds = sum(r.seconds for r in self.recent)
        rate = sum(r.tokens for r in self.recent) / seconds
        left = seconds / len(self.recent) * (steps - record.step)
        note = f"loss {self.loss:.3f}  {rate:,.0f} tokens/s  {minutes(left)} left"
        if processes.count() == 1 and (busy := self.others.in_the_way()):
            note += f"  (slowed down: other work takes {busy:.1f} of {self.others.cores} cores)"
        self._update("training", record.step, steps, note)
        if not console.is_terminal and (record.step % 10 == 0 or record.step == steps):
            console.print(f"step {record.step} of {steps}  {note}")

    def validation(self, record, samples) -> None:
        self.progress.console.print(f"step {record.step}: validation loss {record.loss:.3f}")
        for question, answer in samples[:1]:
            shown = (" ".join(text.split()) for text in (question, answer))
            asked, said = (text[:99] + "…" if len(text) > 100 else text for text in shown)
            self.progress.console.print(f"  {asked}  ->  {said}", markup=False)

    def _update(self, part: str, done: int, of: int, note: str) -> None:
        if part not in self.tasks:
            self.tasks[part] = self.progress.add_task(part, total=of, note=note)
        self.progress.update(self.tasks[part], completed=done, note=note)
