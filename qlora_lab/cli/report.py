"""The report of a run: one HTML file with the table, the figures and the samples in it, that needs nothing else."""

import base64
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import jinja2

from qlora_lab import plots
from qlora_lab.evaluation.exact_match import Evaluation
from qlora_lab.machine.environment import versions
from qlora_lab.machine.files import write_json, write_text, write_whole
from qlora_lab.training.loop import FinetuneResult


def write_report(
    out: str | os.PathLike,
    result: FinetuneResult,
    evaluations: dict[str, Evaluation],
    samples: Sequence[tuple[str, str, str, str]],
    facts: dict[str, str],
) -> Path:
    """Write `report.html`, its two figures `match.png` and `loss.png`, and its numbers `result.json` into `out`.

    Args:
        evaluations: by name, in the order to be shown.
        samples: (command, expected, base model's answer, tuned model's answer).
        facts: what was run (model, data type, rank, ...), shown as given.

    Returns:
        the path of the HTML file.
    """
    out = Path(out)
    losses = [record.loss for record in result.records]
    curve = plots.loss_curve(losses)
    bars = plots.match_bars([(name, e.exact_match, e.interval) for name, e in evaluations.items()])
    for name, fig in (("loss.png", curve), ("match.png", bars)):
        with write_whole(out / name) as temporary:
            temporary.write_bytes(plots.png(fig))
    write_json(out / "result.json", _numbers(result, evaluations, facts))
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("qlora_lab.cli").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    page = template.render(
        figures=[(base64.b64encode(plots.png(fig)).decode(), fig.alt_text) for fig in (bars, curve)],
        evaluations=evaluations,
        samples=samples,
        facts=facts,
        settings=asdict(result.settings),
        versions=versions(),
        result=result,
        errors=list(evaluations.values())[-1].errors.most_common(6) if evaluations else [],
    )
    write_text(out / "report.html", page)
    return out / "report.html"


def _numbers(result: FinetuneResult, evaluations: dict[str, Evaluation], facts: dict[str, str]) -> dict:
    return {
        "facts": facts,
        "versions": versions(),
        "settings": asdict(result.settings),
        "training_seconds": round(result.seconds, 1),
        "tokens_per_second": round(result.tokens_per_second, 1),
        "losses": [round(record.loss, 5) for record in result.records],
        "evaluations": {
            name: {"correct": e.correct, "of": len(e.answers), "interval": e.interval, "errors": dict(e.errors)}
            for name, e in evaluations.items()
        },
    }
