"""An explorer of recorded runs: choose how the base is stored, and a rank; see memory, and quality with intervals."""

import ipywidgets
from matplotlib.figure import Figure

from qlora_lab import plots
from qlora_lab.evaluation.recorded_runs import MEASURES, CostRecord
from qlora_lab.widgets.explorers import Explorer, choice

RANKS = [1, 2, 4, 8, 16, 32, 64]


def explore_costs(record: CostRecord | None = None) -> Explorer:
    """Data type of the base, rank and measure: where the choice lies among all conditions that were recorded.

    Args:
        record: None for the one that comes with the package.
    """
    record = record or CostRecord.load()
    names = record.conditions(seeds=3)
    bases = list(dict.fromkeys(name.rpartition(" r")[0] for name in names if " r" in name))  # in the record's order

    def draw(base: str, rank: int, measure: str) -> Figure:
        points = {name: (record.state_bytes(name) / 1e6, record.result(name, measure)) for name in names}
        chosen = f"{base} r{rank}"
        if chosen in points:
            size, (mean, low, high, values) = points[chosen]
            title = f"{chosen}: {size:,.0f} MB; {measure} {mean:.3f} ({low:.3f} to {high:.3f}, {len(values)} seeds)"
            return plots.quality_and_memory(points, chosen, title, MEASURES[measure])
        weights = next(record.size(name, "bytes of weights") for name in names if name.startswith(f"{base} r"))
        size = (weights + 16 * record.trained(base.split()[0], rank)) / 1e6
        title = f"{chosen}: {size:,.0f} MB; its {measure} was not recorded"
        return plots.quality_and_memory(points, None, title, MEASURES[measure], at=size)

    first = next(name for name in names if name.startswith("qlora"))
    base, _, rank = first.rpartition(" r")
    controls = {
        "base": ipywidgets.ToggleButtons(description="base", options=bases, value=base),
        "rank": choice("rank", RANKS, int(rank)),
        "measure": ipywidgets.ToggleButtons(description="measure", options=list(MEASURES)),
    }
    question = "Does a higher rank buy quality here, or only cost memory? Which base would you take, and why?"
    return Explorer(controls, draw, question)
