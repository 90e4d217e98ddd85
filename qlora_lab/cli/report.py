"""The report of a run: one HTML file with the table, the figures and the samples in it, that needs nothing else."""

import base64
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from qlora_lab import plots
from qlora_lab.evaluation.exact_match import Evaluation
from qlora_lab.machine.environment import versions
from qlora_lab.machine.files import write_json, write_text, write_whole
from qlora_lab.tasks.inspection import Inspection, as_html
from qlora_lab.training.loop import FinetuneResult


def write_report(
    out: str | os.PathLike,
    result: FinetuneResult,
    evaluations: dict[str, Evaluation],
    samples: Sequence[tuple[str, str, str, str]],
    facts: dict[str, str],
    prose: tuple[float, ...] = (),
    inspection: Inspection | None = None,
) -> Path:
    """Write `report.html`, its figures `match.png` and `loss.png`, and its numbers `result.json` into `out`.

    Args:
        evaluations: by name, in the order to be shown.
        samples: (command, expected, base model's answer, tuned model's answer).
        facts: what was run (model, data type, rank, ...), shown as given.
        prose: loss on general text before and after, where it was measured.
        inspection: of one's own data, what was found in it, with the mask of a few examples.

    Without evaluations (answers that nobody judged) there is no `match.png`.

    Returns:
        the path of the HTML file.
    """
    out = Path(out)
    losses = [record.loss for record in result.records]
    curve = plots.loss_curve(losses, validations=[(v.step, v.loss) for v in result.validations])
    figures = {"loss.png": curve}
    if evaluations:
        figures["match.png"] = plots.match_bars([(name, e.exact_match, e.interval) for name, e in evaluations.items()])
    pictures = {name: plots.png(fig) for name, fig in figures.items()}
    for name, picture in pictures.items():
        with write_whole(out / name) as temporary:
            temporary.write_bytes(picture)
    write_json(out / "result.json", _numbers(result, evaluations, facts, prose))
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("qlora_lab.cli").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    page = template.render(
        figures={
            name.removesuffix(".png"): (base64.b64encode(pictures[name]).decode(), fig.alt_text)
            for name, fig in figures.items()
        },
        prose=prose,
        inspection="" if inspection is None else Markup(as_html(inspection)),
        evaluations=evaluations,
        samples=samples,
        facts=facts,
        settings={name: value for name, value in asdict(result.settings).items() if value not in (None, False)},
        versions=versions(),
        result=result,
        errors=list(evaluations.values())[-1].errors.most_common(6) if evaluations else [],
    )
    write_text(out / "report.html", page)
    return out / "report.html"


def _numbers(result: FinetuneResult, evaluations: dict[str, Evaluation], facts: dict[str, str], prose) -> dict:
    numbers = {
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
    if result.validations:
        numbers["validation"] = {
            "losses": {str(record.step): round(record.loss, 5) for record in result.validations},
            "best step": result.best.step,
            "stopped early": result.stopped_early,
        }
    if prose:
        numbers["loss on general text"] = {"before": round(prose[0], 5), "after": round(prose[1], 5)}
    return numbers
