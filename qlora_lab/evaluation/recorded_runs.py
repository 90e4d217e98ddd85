"""What ranks, data types and methods cost and give, as `benchmarks/costs.py` recorded it, and what follows from that.

A condition (one way to fine-tune) was run with several seeds. `CostRecord` gives its results with intervals, compares
two conditions within each seed, and puts the comparison into a sentence: another record, another sentence.
"""

import json
import math
from collections.abc import Iterable
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
            return f"{self.measure}: {i.count} seeds do not tell {self.ours} from {self.theirs}: {seen}"
        return f"{self.measure}: {self.ours} is {'higher' if i.sign > 0 else 'lower'} than {self.theirs}: {seen}"


class CostRecord:
    """A record of runs.

    Args:
        raw: the JSON of `benchmarks/costs.py`; runs that failed are left out.

    Raises:
        ValueError: it holds no run that went through.
    """

    def __init__(self, raw: dict):
        self.raw = raw
        self._runs: dict[str, dict[int, dict]] = {}
        for key, run in raw.get("runs", {}).items():
            if "exact match" in run:
                self._runs.setdefault(key.rpartition(" seed ")[0], {})[run["seed"]] = run
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
        """The first of `conditions`, cheapest first, that the seeds do not tell from the best of them."""
        names = list(conditions)
        best = self.best(names, measure)
        return next(name for name in names if name == best or self.compare(name, best, measure).interval.sign <= 0)


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
