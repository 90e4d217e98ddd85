"""What four-bit formats and methods do to a model before it is fine-tuned, as `benchmarks/after_nf4.py` recorded it.

A row is a data type, with what else was done ("nf4 dq", "mxfp4 + GPTQ"). Two models were rounded so: the default one,
whose loss on a text was taken, and one whose weights no 4-bit format had touched before, whose sentence vectors were
compared with those of the original. Of both there is the error of weights and of outputs, relative, and what came of
it. A record may be incomplete: what is not in it is None. The same file has runs on bases that were rounded so, and
of starts and variants of LoRA; `runs_of_both` puts them beside the runs of `recorded_runs`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from qlora_lab.evaluation.intervals import Interval, mean_interval
from qlora_lab.evaluation.recorded_runs import CostRecord
from qlora_lab.tasks.function_calls import data_directory

UNROUNDED = "float32"
WEIGHTS, OUTPUTS = "weights", "outputs"  # relative errors, 0 to 1
HARM = {"default": "loss", "never quantized": "distance"}  # model: what errors do to it. Nats; 1 - cosine, a mean
_CLOSE = 0.01  # bits per weight: a number for the whole tensor counts as nothing


class FormatsRecord:
    """A record of formats and methods.

    Args:
        raw: the JSON of `benchmarks/after_nf4.py`.
    """

    def __init__(self, raw: dict):
        self.raw, self._rows = raw, raw.get("rows", {})

    @classmethod
    def load(cls, path: str | Path | None = None) -> "FormatsRecord":
        """The record in a file; None: the one that comes with the package."""
        path = Path(path) if path else data_directory() / "recorded" / "after-nf4-cpu.json"
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def names(self, method: str | None = None, most_bits: float | None = None) -> list[str]:
        """Names of the rows but for the unrounded one, as they were recorded.

        Args:
            method: only those with this method ("GPTQ", "AWQ"), or with none of them (""). None: all.
            most_bits: only those of no more bits per weight.
        """
        names = [name for name in self._rows if name != UNROUNDED and method in (None, method_of(name))]
        if most_bits is None:
            return names
        return [name for name in names if self.bits(name) <= most_bits + _CLOSE]

    def bits(self, name: str) -> float:
        """Bits per weight, all constants included.

        Raises:
            KeyError: no such row.
        """
        if name not in self._rows:
            raise KeyError(f"no row {name!r}; there are {', '.join(self._rows)}")
        return self._rows[name]["bits"]

    def value(self, name: str, measure: str, model: str = "default") -> float | None:
        """A number of a row; None where it is not recorded.

        Args:
            measure: "weights", "outputs", or what `HARM` says of the model.
        """
        return (self._rows.get(name, {}).get(model) or {}).get(measure)

    def added(self, name: str, model: str = "default") -> float | None:
        """What a row adds to the model's harm: its loss above the unrounded model's, or its distance from it."""
        value, before = (self.value(row, HARM[model], model) for row in (name, UNROUNDED))
        return None if value is None else value - (before or 0.0)

    def points(self, error: str, model: str = "default", leave_out: Sequence[str] = ()) -> dict[str, tuple]:
        """{row: (an error, what it adds to the harm)} of all rows that have both."""
        found = {name: (self.value(name, error, model), self.added(name, model)) for name in self.names()}
        return {name: at for name, at in found.items() if None not in at and name not in leave_out}

    def loss_difference(self, ours: str, theirs: str) -> Interval | None:
        """The default model's loss with one row minus that with another, paired by pieces of the text; None: not there.

        Its interval says what another text of the same kind may have given.
        """
        both = [self.value(name, "losses") for name in (ours, theirs)]
        if not all(both) or len(both[0]) != len(both[1]):
            return None
        return mean_interval([a - b for a, b in zip(*both, strict=True)])


def datatype_of(name: str) -> str:
    """The data type of a row's name: "mxfp4" of "mxfp4 + GPTQ"."""
    return name.partition(" + ")[0]


def method_of(name: str) -> str:
    """The method in a row's name: "GPTQ" of "mxfp4 + GPTQ"; "" for rounding alone."""
    return name.partition(" + ")[2]


def fine_tuned(name: str) -> str:
    """What `recorded_runs` calls QLoRA of rank 16 on a base that is rounded as this row is."""
    if name == UNROUNDED:
        return "lora r16 alpha 32"
    method = method_of(name).lower()
    return f"qlora {datatype_of(name)} r16 alpha 32" + (f" {method}" if method else "")


def runs_of_both(formats: FormatsRecord, costs: CostRecord | None = None) -> CostRecord:
    """The runs of both records as one.

    Args:
        costs: None for the one that comes with the package.
    """
    costs = costs or CostRecord.load()
    return CostRecord(costs.raw | {"runs": costs.raw["runs"] | formats.raw.get("runs", {})})
