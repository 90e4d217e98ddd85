"""Sentences that follow from a record, of runs or of formats: another record, another sentence.

"No clear difference" is said where an interval holds zero. It does not say that two are equal. A comparison concludes
something about methods or ranks only where the rate of each was chosen; where not, the sentence says so itself.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from qlora_lab.evaluation.formats_record import OUTPUTS, WEIGHTS, FormatsRecord, datatype_of
from qlora_lab.evaluation.intervals import Interval, mean_interval
from qlora_lab.evaluation.recorded_runs import BEFORE, LOSS, PROSE, SCALINGS, CostRecord

WORSE = {LOSS: 1, PROSE: 1, "test": -1, "paraphrases": -1}  # the sign of a difference that is worse
WORDS = {
    LOSS: "loss on new commands",
    PROSE: "loss on prose",
    "test": "share of commands answered exactly",
    "paraphrases": "share of paraphrases answered exactly",
}
NO_DIFFERENCE = "no clear difference"
QUALITY = (LOSS, "test", PROSE)
_DIGITS = {LOSS: 3, PROSE: 2, "test": 2, "paraphrases": 2}


def signed(interval: Interval) -> str:
    """A difference with its interval, three digits each."""
    return f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def judged(interval: Interval, measure: str) -> str:
    """Ours minus theirs in words: "worse", "better", "no clear difference"."""
    return {0: NO_DIFFERENCE, WORSE[measure]: "worse", -WORSE[measure]: "better"}[interval.sign]


def compared(record: CostRecord, ours: str, theirs: str, measure: str, names: Mapping[str, str] | None = None) -> str:
    """Two ways by one measure in a line: the paired difference, and what it says."""
    name, interval = (names or {}).get, _between(record, ours, theirs, measure)
    difference = f"{name(ours, ours)} minus {name(theirs, theirs)} {signed(interval)}"
    return f"{WORDS[measure]}: {difference}, {judged(interval, measure)} ({interval.count} seeds)"


def forgetting(record: CostRecord, way: str, names: Mapping[str, str] | None = None) -> str:
    """What training did to the loss on a text that has nothing to do with the task."""
    condition = record.quoted(way)
    before = record.values(condition, BEFORE)
    change = mean_interval([after - before[seed] for seed, after in record.values(condition, PROSE).items()])
    verdict = {1: "forgets", -1: "gains", 0: "neither clearly forgets nor gains"}[change.sign]
    start = next(iter(before.values()))
    return f"{(names or {}).get(way, way)} {verdict}: loss on prose {start:.3f} before, {signed(change)} by training"


def rates_chosen(record: CostRecord) -> str:
    """Of how many ways the learning rate has been chosen, and of which it has not."""
    ways = record.ways()
    tried = {way: len(record.rates(way)) for way in ways if record.chosen_rate(way) is None}
    said = f"learning rates chosen: {len(ways) - len(tried)} of {len(ways)} ways to fine-tune"
    if not tried:
        waiting = [way for way in ways if not record.settled(way)]
        if waiting:
            return f"{said}. Not yet run at theirs: {', '.join(waiting)}."
        return f"{said}. Methods and ranks are compared at the best rate of each."
    if len(tried) == len(ways):
        rates = {rate for way in ways if way != "full" for rate in record.rates(way)}
        if len(rates) == 1:
            of_full = f", full fine-tuning had {_rates(len(record.rates('full')))}" if "full" in ways else ""
            return f"{said}. All adapters had one rate, {rates.pop():g}{of_full}: not yet a fair comparison."
        return f"{said}. Each had {_rates(max(tried.values()))} at most: not yet a fair comparison."
    return f"{said}. Still open: {', '.join(tried)}."


def as_good(record: CostRecord, ours: str, theirs: str, names: Mapping[str, str] | None = None) -> str:
    """Whether one way keeps the quality of another, by every measure of `QUALITY`, with the paired intervals.

    Args:
        ours, theirs: ways.
        names: {way: what to call it}.
    """
    name = (names or {}).get
    we, they = name(ours, ours), name(theirs, theirs)
    found = {measure: _between(record, ours, theirs, measure) for measure in QUALITY}
    verdicts = {measure: judged(interval, measure) for measure, interval in found.items()}
    worse = [measure for measure, verdict in verdicts.items() if verdict == "worse"]
    if len(worse) == len(QUALITY):
        said = f"does not hold here: {we} is worse in all {len(QUALITY)} measures."
    elif worse:
        said = f"does not hold here in {len(worse)} of {len(QUALITY)} measures."
    elif set(verdicts.values()) == {NO_DIFFERENCE}:
        said = f"is neither refuted here nor shown: {NO_DIFFERENCE} in any measure."
    else:
        said = f"holds here: {we} is worse in none of the {len(QUALITY)} measures."
    lines = [f'"{we} keeps the quality of {they}" {said}']
    for measure, interval in found.items():
        lines.append(f"  {WORDS[measure]}: {signed(interval)}, {verdicts[measure]} ({interval.count} seeds)")
    return "\n".join([*lines, f"  {fairly(record, (ours, theirs), names)}"])


def method_rows(record: CostRecord, ways: Mapping[str, str]) -> dict[str, list[tuple[str, str, str]]]:
    """Memory and quality of ways as `plots.method_table` takes them, each judged against the first.

    Args:
        ways: {what to call it: way}.

    Returns:
        {name: [(number, interval, verdict) of MB, then of each measure of `QUALITY`]}, and a last row for the last way
        minus the first.
    """
    conditions = {name: record.quoted(way) for name, way in ways.items()}
    (first, theirs), *_, (last, ours) = conditions.items()
    sizes = {name: record.state_bytes(condition) / 1e6 for name, condition in conditions.items()}
    rows = {}
    for name, condition in conditions.items():
        lighter = {-1: "better", 0: "", 1: "worse"}[(sizes[name] > sizes[first]) - (sizes[name] < sizes[first])]
        rows[name] = [(f"{sizes[name]:,.0f}", "", lighter)]
        for measure in QUALITY:
            i, digits = record.interval(condition, measure), _DIGITS[measure]
            verdict = "" if name == first else judged(record.compare(condition, theirs, measure).interval, measure)
            rows[name].append((f"{i.mean:.{digits}f}", f"{i.low:.{digits}f}–{i.high:.{digits}f}", verdict))
    saved = sizes[last] - sizes[first]
    row = [(_minus(f"{saved:+,.0f}"), _minus(f"{100 * saved / sizes[first]:+.0f} %"), rows[last][0][2])]
    for measure in QUALITY:
        i, digits = record.compare(ours, theirs, measure).interval, _DIGITS[measure]
        small = f"{i.low:+.{digits}f} to {i.high:+.{digits}f}"
        row.append((_minus(f"{i.mean:+.{digits}f}"), _minus(small), judged(i, measure)))
    return rows | {f"{last} − {first}": row}


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _between(record: CostRecord, ours: str, theirs: str, measure: str) -> Interval:
    return record.compare(record.quoted(ours), record.quoted(theirs), measure).interval


def fairly(record: CostRecord, ways: Sequence[str], names: Mapping[str, str] | None = None) -> str:
    """Whether ways are compared at rates that were chosen alike, and if not, what each had."""
    name = (names or {}).get
    if all(record.settled(way) for way in ways):
        rates = ", ".join(f"{name(way, way)} {record.chosen_rate(way):g}" for way in ways)
        return f"A fair comparison: each at its chosen rate ({rates})."
    if all(record.chosen_rate(way) for way in ways):
        waiting = ", ".join(name(way, way) for way in ways if not record.settled(way))
        return f"Not yet a fair comparison: not run at the rate that was chosen: {waiting}."
    counts = [len(record.rates(way)) for way in ways]
    if len(set(counts)) == 1:
        had = f"each had {_rates(counts[0])}"
    else:
        had = ", ".join(f"{name(way, way)} had {_rates(count)}" for way, count in zip(ways, counts, strict=True))
    return f"Not yet a fair comparison: {had} to choose from."


def _rates(count: int) -> str:
    return "one rate" if count == 1 else f"{count} rates"


def rank_extremes(record: CostRecord, ranks: Mapping[int, str], measure: str = LOSS) -> list[str]:
    """ "Too small limits learning" and "too large is worse", each against the rank of the best mean in that measure.

    Args:
        ranks: {rank: way}, two at least, each run with two seeds or more.
    """
    conditions = {rank: record.quoted(way) for rank, way in sorted(ranks.items())}
    best = min(conditions, key=lambda rank: WORSE[measure] * record.interval(conditions[rank], measure).mean)
    lines = []
    for words, rank in (("too small limits learning", min(ranks)), ("too large is worse", max(ranks))):
        if rank == best:
            lines.append(f"{words}: not seen; {WORDS[measure]}, rank {rank} has the best mean")
            continue
        difference = record.compare(conditions[rank], conditions[best], measure).interval
        verdict = {"worse": "yes", "better": "on the contrary", NO_DIFFERENCE: "not seen"}
        seen = verdict[judged(difference, measure)]
        lines.append(f"{words}: {seen}; {WORDS[measure]}, rank {rank} minus rank {best} {signed(difference)}")
    return lines


def same_rate_for_all_ranks(record: CostRecord, scaling: str) -> str:
    """Whether the best rate is the same for all ranks, and how many times that of full fine-tuning.

    The rates that are tried are a factor of 2 apart, and with one seed neighbours are often equally good, so "the same"
    is said up to a factor of 2.
    """
    assert scaling in SCALINGS, scaling
    ranks = record.by_rank(scaling)
    rates = {rank: record.chosen_rate(way) for rank, way in ranks.items()}
    chosen = {rank: rate for rank, rate in rates.items() if rate}
    if len(chosen) < 2:
        return f"{scaling}: cannot be said yet; the rate is chosen for {len(chosen)} of {len(ranks)} ranks"
    spread, by_root = _apart(chosen.values()), _apart(rate * math.sqrt(rank) for rank, rate in chosen.items())
    said = "the same up to a factor of 2" if spread < 2.5 else f"not the same: a factor of {spread:.0f} apart"
    if by_root < 2.5 <= spread:
        said += "; times the root of the rank they are the same" + (" up to a factor of 2" if by_root > 1.01 else "")
    line = f"{scaling}: the best rates are {said} ("
    line += ", ".join(f"rank {rank} {rate:g}" for rank, rate in chosen.items()) + ")"
    if full := record.chosen_rate("full"):
        low, high = min(chosen.values()) / full, max(chosen.values()) / full
        times = f"{low:.0f}" if spread < 1.01 else f"{low:.0f} to {high:.0f}"
        line += f", {times} times full fine-tuning's {full:g}"
    return line


def _apart(rates: Iterable[float]) -> float:
    rates = list(rates)
    return max(rates) / min(rates)


def at_one_rate(record: CostRecord, ways: Mapping[str, str], chosen_for: str) -> str:
    """Whether ways ran at the learning rate that was chosen for one of them, and which did not.

    Args:
        ways: {what to call it: way}; those that are not recorded are left out.
        chosen_for: a name among them.
    """
    conditions = {name: record.quoted(way) for name, way in ways.items()}
    rates = {name: float(condition.rpartition(" lr ")[2]) for name, condition in conditions.items() if condition}
    chosen = record.chosen_rate(ways[chosen_for])
    if chosen is None:
        tried = _rates(len(record.rates(ways[chosen_for])))
        return f"No rate is chosen yet for {chosen_for}, which had {tried}: not yet a fair comparison."
    others = [f"{name} {rate:g}" for name, rate in rates.items() if not math.isclose(rate, chosen)]
    if others:
        return f"The rate chosen for {chosen_for} is {chosen:g}; at another: {', '.join(others)}. Not yet fair."
    return f"All at the rate chosen for {chosen_for}, {chosen:g}."


def sorted_by_verdict(record: CostRecord, ways: Mapping[str, str], theirs: str, measure: str = LOSS) -> str:
    """Which ways are better than one of them by a measure, which worse, of which neither is shown.

    Args:
        ways: {what to call it: way}, `theirs` among the names.
    """
    groups: dict[str, list[str]] = {"better": [], NO_DIFFERENCE: [], "worse": [], "not recorded": []}
    for name, way in ways.items():
        if name != theirs:
            there = record.quoted(way) and record.quoted(ways[theirs])
            verdict = judged(_between(record, way, ways[theirs], measure), measure) if there else "not recorded"
            groups[verdict].append(name)
    said = [f"{verdict}: {', '.join(names)}" for verdict, names in groups.items() if names]
    return f"{WORDS[measure]}, against {theirs}. {'; '.join(said) or 'Nothing to compare'}."


def rates_and_variants(record: CostRecord, ways: Mapping[str, str], plain: str) -> str:
    """What a rate off by a factor of two costs, beside what variants change, in loss on new commands.

    Args:
        ways: {what to call it: way}, `plain` among the names: the one whose rates are asked for.
    """
    rates, chosen = record.rates(ways[plain]), record.chosen_rate(ways[plain])
    if chosen is None:
        return f"No rate is chosen yet for {plain}."
    off = [loss - rates[chosen] for rate, loss in rates.items() if 1.5 < max(rate / chosen, chosen / rate) < 3]
    said = f"A rate off by a factor of two costs {plain} {min(off):+.3f} to {max(off):+.3f} nats (one seed)"
    changes = {
        name: _between(record, way, ways[plain], LOSS).mean
        for name, way in ways.items()
        if name != plain and record.quoted(way) and record.quoted(ways[plain])
    }
    if not changes:
        return f"{said}; no variant is recorded."
    least, most = min(changes, key=changes.get), max(changes, key=changes.get)
    span = f"{changes[least]:+.3f} ({least})"
    if least != most:
        span = f"{span} to {changes[most]:+.3f} ({most})"
    return f"{said}; the variants change {span}, by their means."


def least_harm(formats: FormatsRecord, most_bits: float, method: str | None = "") -> str:
    """Which rounding adds least to the default model's loss, and which others the text does not tell from it.

    Args:
        most_bits: per weight.
        method: as `FormatsRecord.names`.
    """
    names = [name for name in formats.names(method, most_bits) if formats.added(name) is not None]
    if not names:
        return f"At most {most_bits:g} bits: nothing is recorded."
    best = min(names, key=formats.added)
    differences = {name: formats.loss_difference(name, best) for name in names if name != best}
    worse = [name for name, difference in differences.items() if difference and difference.sign > 0]
    others = [name for name in differences if name not in worse]
    said = f"At most {most_bits:g} bits: {best} adds least to the loss, {formats.added(best):+.3f} nats."
    said += f" Not shown worse: {', '.join(others) or 'none'}."
    return f"{said} Shown worse: {', '.join(worse) or 'none'}."


def data_against_none(formats: FormatsRecord, method: str) -> list[str]:
    """What a method that looks at data changes of each data type: errors by a factor, the loss by an interval."""
    lines = []
    for name in formats.names(method):
        plain = datatype_of(name)
        factors = []
        for measure in (WEIGHTS, OUTPUTS):
            after, before = formats.value(name, measure), formats.value(plain, measure)
            if after and before:
                factors.append(f"error of {measure} times {after / before:.2f}")
        difference = formats.loss_difference(name, plain)
        if difference is not None:
            factors.append(f"loss {signed(difference)}, {judged(difference, LOSS)}")
        lines.append(f"{method} on {plain}: {'; '.join(factors) or 'not recorded'}")
    return lines
