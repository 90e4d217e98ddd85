"""What ranks, data types and methods cost and give, as `benchmarks/costs.py` recorded it.

A *way* to fine-tune is a method with its data type, rank and alpha ("qlora nf4 dq r16 alpha 32"); a *condition* is a
way at a learning rate ("qlora nf4 dq r16 alpha 32 lr 0.004"). Conditions are run with several seeds. Ways are compared
fairly only where the rate of each was chosen alike: the one of least loss among `LEAST_RATES` or more, with one seed,
and not at either end of what was tried. `CostRecord` gives results with intervals, compares two conditions within each
seed, and says which rates have been chosen. `conclusions` makes sentences of that.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qlora_lab.evaluation.intervals import Interval, mean_interval, paired_difference
from qlora_lab.tasks.function_calls import data_directory

LOSS, PROSE, BEFORE = "validation loss", "loss on prose after", "loss on prose before"
MEASURES = {  # name in the record: words for an axis
    LOSS: "loss on new commands (nats)",
    PROSE: "loss on prose (nats)",
    "test": "answered exactly, of 1",
    "paraphrases": "paraphrases answered exactly, of 1",
}
LEAST_RATES, CHOOSING_SEED = 5, 0  # a rate is chosen among so many at least, by the runs of this seed
# How alpha may follow the rank. The adapter's factor alpha / r is 2 for all three at rank 16, and for the first at
# every rank. rsLoRA divides by the root of r instead of r: with alpha 8 that is what alpha = 8√r is for LoRA.
SCALINGS = {"alpha = 2r": lambda r: 2 * r, "alpha = 32": lambda r: 32, "rsLoRA": lambda r: 8 * math.sqrt(r)}


def way_of(run: Mapping) -> str:
    """What a run's method, data type, rank, alpha and variant are called. Runs without an alpha had twice the rank."""
    bits = f" {run['datatype']}{' dq' if run.get('double_quant') else ''}" if run.get("datatype") else ""
    rank = run.get("rank", 0)
    adapter = f" r{rank} alpha {run.get('alpha') or 2 * rank:g}" if rank else ""
    return run["method"] + bits + adapter + (f" {run['variant']}" if run.get("variant") else "")


def condition_of(run: Mapping) -> str:
    """The name of a run's condition: its way and its learning rate."""
    return f"{way_of(run)} lr {run['learning_rate']:g}"


def best_rate(losses: Mapping[float, float]) -> float | None:
    """The learning rate of least loss, if it may be called chosen; else None.

    Args:
        losses: {rate: loss}; infinite where training broke down.

    Returns:
        None for fewer than `LEAST_RATES` rates, and where the best is the lowest or the highest of them: beyond that
        end may be a better one.
    """
    if len(losses) < LEAST_RATES:
        return None
    best = min(losses, key=losses.get)
    return None if best in (min(losses), max(losses)) else best


@dataclass(frozen=True)
class Difference:
    """Condition `ours` minus condition `theirs` in one measure, paired by seed."""

    ours: str
    theirs: str
    measure: str
    interval: Interval

    def __str__(self) -> str:
        i = self.interval
        seen = f"{i.mean:+.3f} ({i.low:+.3f} to {i.high:+.3f})"
        if i.sign == 0:
            both = f"{self.ours} and {self.theirs}"
            return f"{self.measure}: no clear difference between {both} over {i.count} seeds: {seen}"
        return f"{self.measure}: {self.ours} is {'higher' if i.sign > 0 else 'lower'} than {self.theirs}: {seen}"


class CostRecord:
    """A record of runs.

    Args:
        raw: the JSON of `benchmarks/costs.py`, of today's form or of an earlier one, whose names said neither alpha nor
            the rate of adapters. Runs that failed are left out. A run without "exact match" was made to choose a rate.

    Raises:
        ValueError: it holds no run that went through.
    """

    def __init__(self, raw: dict):
        self.raw = raw
        self._runs: dict[str, dict[int, dict]] = {}
        self._rates: dict[str, dict[float, float]] = {}
        for run in raw.get("runs", {}).values():
            if "exact match" in run:
                self._runs.setdefault(condition_of(run), {})[run["seed"]] = run
            if run.get("seed") == CHOOSING_SEED and LOSS in run:
                loss = math.inf if run[LOSS] is None else run[LOSS]
                self._rates.setdefault(way_of(run), {})[run["learning_rate"]] = loss
        if not self._runs:
            raise ValueError("the record holds no run; benchmarks/costs.py makes one")

    @classmethod
    def load(cls, path: str | Path | None = None) -> "CostRecord":
        """The record in a file; None: the one that comes with the package."""
        path = Path(path) if path else data_directory() / "recorded" / "costs-cpu.json"
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def conditions(self, method: str = "", seeds: int = 2) -> list[str]:
        """Names of the conditions with that many seeds at least, of one method or of all, as they were recorded."""
        return [name for name, runs in self._runs.items() if name.split()[0].startswith(method) and len(runs) >= seeds]

    def ways(self, method: str = "") -> list[str]:
        """Names of the ways of which there is a run, of one method or of all."""
        names = dict.fromkeys([*map(_way, self._runs), *self._rates])
        return [name for name in names if name.split()[0].startswith(method)]

    def rates(self, way: str) -> dict[float, float]:
        """{learning rate: validation loss} by which the way's rate is chosen, lowest rate first; infinite: it broke."""
        return dict(sorted(self._rates.get(way, {}).items()))

    def chosen_rate(self, way: str) -> float | None:
        """The learning rate that was chosen for a way; None while none is."""
        return best_rate(self.rates(way))

    def settled(self, way: str) -> bool:
        """Whether a way's rate is chosen, and it was run at that rate with two seeds or more."""
        chosen = self.chosen_rate(way)
        return chosen is not None and self.quoted(way) == f"{way} lr {chosen:g}"

    def quoted(self, way: str, seeds: int = 2) -> str | None:
        """The condition that speaks for a way: at its chosen rate; while there is none, the one that was run most.

        Args:
            seeds: so many it must have, else None.
        """
        names = [name for name in self.conditions(seeds=seeds) if _way(name) == way]
        chosen = self.chosen_rate(way)
        at_chosen = f"{way} lr {chosen:g}" if chosen else ""
        return at_chosen if at_chosen in names else max(names, key=lambda name: len(self._runs[name]), default=None)

    def by_rank(self, scaling: str, base: str = "nf4 dq") -> dict[int, str]:
        """{rank: way} of QLoRA on a base, where alpha follows the rank as a name of `SCALINGS` says."""
        found = {}
        for way in self.ways("qlora"):
            match = re.fullmatch(rf"qlora {re.escape(base)} r(\d+) alpha (\S+)", way)
            if match and f"{SCALINGS[scaling](int(match[1])):g}" == match[2]:
                found[int(match[1])] = way
        return dict(sorted(found.items()))

    def values(self, condition: str, measure: str) -> dict[int, float]:
        """{seed: result}. measure: "test" and "paraphrases" are shares of exact answers; else a number of the run.

        Raises:
            KeyError: a condition or a measure that the record does not have.
        """
        if condition not in self._runs:
            raise KeyError(f"no condition {condition!r}; there are {', '.join(self._runs)}")
        found = {}
        for seed, run in sorted(self._runs[condition].items()):
            asked = run["exact match"].get(measure)
            if asked is None and measure not in run:
                raise KeyError(f"no measure {measure!r}; there are {', '.join((*run['exact match'], *run))}")
            found[seed] = asked["correct"] / asked["of"] if asked else run[measure]
        return found

    def interval(self, condition: str, measure: str) -> Interval:
        return mean_interval(list(self.values(condition, measure).values()))

    def compare(self, ours: str, theirs: str, measure: str = LOSS) -> Difference:
        return Difference(
            ours, theirs, measure, paired_difference(self.values(ours, measure), self.values(theirs, measure))
        )

    def size(self, condition: str, what: str) -> int:
        """Bytes or parameters, which do not depend on the seed."""
        return int(next(iter(self.values(condition, what).values())))

    def trained(self, method: str, rank: int) -> int:
        """Numbers that are trained at a rank, whether it was recorded or not: adapters grow in proportion to it.

        Raises:
            KeyError: the record has no run of the method.
        """
        names = self.conditions(method, seeds=1)
        if not names:
            raise KeyError(f"no run of {method!r}")
        run = next(iter(self._runs[names[0]].values()))
        return run["trained parameters"] * rank // run["rank"] if run["rank"] else run["trained parameters"]

    def state_bytes(self, condition: str) -> int:
        """What training keeps between steps, in float32: weights, what is trained, its gradients and two moments."""
        trained = self.size(condition, "trained parameters")
        apart = self.size(condition, "bytes of the adapter's file") > 0  # else what is trained is among the weights
        return self.size(condition, "bytes of weights") + (16 if apart else 12) * trained

    def result(self, condition: str, measure: str = LOSS) -> tuple[float, float, float, list[float]]:
        """As figures take it: mean, low, high, and the seeds' values."""
        i = self.interval(condition, measure)
        return i.mean, i.low, i.high, list(self.values(condition, measure).values())

    def best(self, conditions: Iterable[str], measure: str = LOSS) -> str:
        """The condition of least mean."""
        return min(conditions, key=lambda name: self.interval(name, measure).mean)

    def smallest_as_good(self, conditions: Iterable[str], measure: str = LOSS) -> str:
        """The first of `conditions`, cheapest first, that is not clearly worse than the best of them."""
        names = list(conditions)
        best = self.best(names, measure)
        return next(name for name in names if name == best or self.compare(name, best, measure).interval.sign <= 0)


def _way(condition: str) -> str:
    return condition.rpartition(" lr ")[0]


def fit_line(points: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """(intercept, slope) of the least squares line.

    Raises:
        ValueError: fewer than two different x.
    """
    xs, ys = zip(*points, strict=True)
    n, mean_x, mean_y = len(xs), math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    if n < 2 or spread == 0:
        raise ValueError("a line needs two different x")
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    return mean_y - slope * mean_x, slope
