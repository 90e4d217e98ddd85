"""Explorers of what was recorded: how a base is stored and its rank, and what formats do before any run."""

import re

import ipywidgets
from matplotlib.figure import Figure

from qlora_lab import plots
from qlora_lab.evaluation.formats_record import HARM, FormatsRecord, datatype_of, method_of
from qlora_lab.evaluation.recorded_runs import MEASURES, CostRecord
from qlora_lab.widgets.explorers import Explorer, choice

NEITHER = "rounding alone"
RANKS = [1, 2, 4, 8, 16, 32, 64]


def explore_costs(record: CostRecord | None = None) -> Explorer:
    """Data type of the base, rank and measure: where the choice lies among what was recorded with alpha twice the rank.

    Args:
        record: None for the one that comes with the package.
    """
    record = record or CostRecord.load()
    conditions = {short(way): record.quoted(way, seeds=3) for way in record.ways()}
    # another alpha cannot be chosen here, and its long name would lie on others
    conditions = {name: condition for name, condition in conditions.items() if condition and " alpha " not in name}
    bases = list(dict.fromkeys(name.rpartition(" r")[0] for name in conditions if _RANK.search(name)))

    def draw(base: str, rank: int, measure: str) -> Figure:
        points = {
            name.removeprefix("qlora "): (record.state_bytes(at) / 1e6, record.result(at, measure))
            for name, at in conditions.items()
        }
        chosen = f"{base} r{rank}"
        at_dot = chosen.removeprefix("qlora ")
        if at_dot in points:
            size, (mean, low, high, values) = points[at_dot]
            title = f"{chosen}: {size:,.0f} MB; {measure} {mean:.3f} ({low:.3f} to {high:.3f}, {len(values)} seeds)"
            return plots.quality_and_memory(points, at_dot, title, MEASURES[measure])
        like = next(condition for name, condition in conditions.items() if name.startswith(f"{base} r"))
        size = (record.size(like, "bytes of weights") + 16 * record.trained(base.split()[0], rank)) / 1e6
        title = f"{chosen}: {size:,.0f} MB; its {measure} was not recorded"
        return plots.quality_and_memory(points, None, title, MEASURES[measure], at=size)

    base, _, rank = next(name for name in conditions if name.startswith("qlora") and _RANK.search(name)).rpartition(
        " r"
    )
    controls = {
        "base": ipywidgets.ToggleButtons(description="base", options=bases, value=base),
        "rank": choice("rank", RANKS, int(rank)),
        "measure": ipywidgets.ToggleButtons(description="measure", options=list(MEASURES)),
    }
    question = (
        "Of which choices does the interval reach full fine-tuning's dot in the validation loss, and of which in test? "
        "How many seeds stand behind those?"
    )
    return Explorer(controls, draw, question)


def explore_formats(record: FormatsRecord | None = None) -> Explorer:
    """Data type and method: errors of weights and outputs and what came of them, in both models, beside NF4's.

    Args:
        record: with a row "nf4"; None for the one that comes with the package.

    Raises:
        ValueError: the record has no row "nf4".
    """
    record = record or FormatsRecord.load()
    names = record.names()
    if "nf4" not in names:
        raise ValueError(f'everything is compared with NF4, and the record has no row "nf4"; it has {names}')
    measures = {}
    for model, harm in HARM.items():
        for measure in ("weights", "outputs", harm):
            values = {
                name: record.added(name, model) if measure == harm else record.value(name, measure, model)
                for name in names
            }
            words = f"{measure}, {model}" if measure != "loss" else "loss above float32's, default"
            if values["nf4"]:
                measures[words] = {name: value for name, value in values.items() if value is not None}

    def draw(datatype: str, method: str) -> Figure:
        name = datatype if method == NEITHER else f"{datatype} + {method}"
        title = f"{name}: {record.bits(name):.2f} bits per weight" if name in names else f"{name} was not recorded"
        return plots.row_in_measures(measures, name, "nf4", title)

    methods = [NEITHER, *sorted({method_of(name) for name in names} - {""})]
    controls = {
        "datatype": choice("data type", list(dict.fromkeys(map(datatype_of, names))), datatype_of(names[-1])),
        "method": ipywidgets.ToggleButtons(description="method", options=methods),
    }
    question = (
        "Which rows have a larger error of weights than NF4 (a mark to the right of the dashed line) and still do "
        "less harm (to the left of it)? Is it so in both models?"
    )
    return Explorer(controls, draw, question)


def short(way: str) -> str:
    """A way's name without its alpha where that is twice the rank."""
    found = re.fullmatch(r"(.* r(\d+)) alpha (\S+)", way)
    return found[1] if found and float(found[3]) == 2 * int(found[2]) else way


_RANK = re.compile(r" r\d+$")
