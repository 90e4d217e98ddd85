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

console = Console(highlight=False, emoji=False)
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
    samples = Table(title="Samples", title_justify="left", title_style="bold", show_lines=True)
    for column in ("command", "base model", "after fine-tuning"):
        samples.add_column(column, overflow="fold", ratio=1)
    for command, _, before, after in result.samples:
        short = " ".join(before.split())
        samples.add_row(*(Text(t) for t in (command, short[:157] + "…" if len(short) > 158 else short, after)))
    console.print(samples)
    training = result.training
    console.print(
        f"trained {result.parameters.trainable:,} of {result.parameters.total:,} parameters "
        f"in {training.seconds:.0f} s ({training.tokens_per_second:,.0f} tokens/s); everything took {minutes(seconds)}"
    )
    say(f"adapter  {folder / 'adapter'}")
    say(f"report   {result.report}")


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
        self.progress.console.print(text, markup=False)

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

    def _update(self, part: str, done: int, of: int, note: str) -> None:
        if part not in self.tasks:
            self.tasks[part] = self.progress.add_task(part, total=of, note=note)
        self.progress.update(self.tasks[part], completed=done, note=note)
