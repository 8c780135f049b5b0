"""Bias bench: does the model, as a judge, fall for surface? Pairs of a good answer and a worse one that looks good, by bias."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.errors import ConfigError, DataError, nearest
from tamis.evaluators import stats
from tamis.evaluators.pairs import Compare, both_orders, heldout_pairs, judged_by, pair_judge
from tamis.hashing import file_digest
from tamis.judges.pairs import TIES, Pair
from tamis.metrics import Draw, Metric, View
from tamis.preferences import read
from tamis.registry import evaluator, option
from tamis.tasks import readers

TYPES = (
    "length",
    "concreteness",
    "empty_reference",
    "content_continuation",
    "nested_instruction",
    "familiar_knowledge",
)
"""Biases: the longer answer; citations, numbers and terms; a made-up answer where the input is missing; going on with the text
instead of doing the task; obeying a command inside the material; a well-known fact instead of what was asked."""


def bias_type(name: str, where: str | None = None) -> str:
    """Return the type that a name means ("Length bias", "familiar knowledge preference bias"). Raises ConfigError for none."""
    words = name.casefold().replace("_", " ").replace("-", " ").split()
    said = "_".join(w for w in words if w not in ("bias", "preference"))
    if said not in TYPES:
        raise ConfigError(f"unknown bias type '{name}'", where=where, hint=nearest(said, TYPES))
    return said


@dataclass(frozen=True)
class BiasCase:
    """A pair whose first answer is the good one, and the bias that speaks for the other."""

    pair: Pair
    bias: str


@dataclass(frozen=True)
class BiasTable:
    """What a judge did, each (N,) over the cases: their `biases`, and float64 figures of its two verdicts on a case.

    `single`: share of the two that are right; `pair`: 1 where both are; `agreement`: 1 where they name the same answer, or both
    a tie.
    """

    biases: np.ndarray
    single: np.ndarray
    pair: np.ndarray
    agreement: np.ndarray

    def by_type(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return `values` (N, ...) of the cases of each bias, in the order of the cases."""
        return {bias: values[self.biases == bias] for bias in dict.fromkeys(self.biases.tolist())}


def bias_bench(compare: Compare, cases: Sequence[BiasCase]) -> BiasTable:
    """Return what a judge did on the cases, each judged in both orders, as the good answer stands first in all of them.

    A tie or no answer is wrong. Raises ConfigError for a judge that does not keep to the order it is shown.
    """
    there, back = both_orders(compare, [case.pair for case in cases])
    labels = [(a.label, b.label) for a, b in zip(there, back, strict=True)]
    right = np.array([[a == "A", b == "B"] for a, b in labels], dtype=np.float64)
    same = [{a, b} == {"A", "B"} or (a in TIES and b in TIES) for a, b in labels]
    biases = np.array([case.bias for case in cases])
    return BiasTable(biases, right.mean(axis=1), right.min(axis=1), np.array(same, dtype=np.float64))


def macro(rows: Sequence[np.ndarray]) -> stats.Interval:
    """Return the mean of the types' means with a 95% interval: Wilson's of each, put together (MOVER, Zou and Donner 2008).

    Values lie in [0, 1]; each type counts alike, whatever its number of cases.
    """
    found = [stats.wilson(row.sum(), len(row)) for row in rows]
    value = float(np.mean([f.value for f in found]))
    below, above = (
        math.sqrt(sum((f.value - end) ** 2 for f, end in zip(found, ends, strict=True))) / len(found)
        for ends in ([f.low for f in found], [f.high for f in found])
    )
    return stats.Interval(value, max(0.0, value - below), min(1.0, value + above))


@evaluator(
    "bias_bench",
    row=7,
    paper="OffsetBias: Leveraging Debiased Data for Tuning Evaluators (Park et al. 2024)",
    needs=("text",),
)
class BiasBench:
    """How often the model, as a judge, names the better answer in both orders, by bias and overall.

    Cases: the file `path` (EvalBiasBench's own JSON, or rows of prompt, chosen, rejected and bias), whose types must be known
    ones; without it the held-out prompts' own pairs (chosen and rejected, or two answers and `ratings`; ties are left out and
    stand in the notes), typed by their field "bias", "ordinary" where they have none. The model judges each in both orders,
    by the judge `judge`, and its reading of a reply decides ("Verdict: A"; the paper's own judge says "Output (a)"). A tie or
    a reply that cannot be read is wrong.

    Metrics: pair accuracy (both orders right), single accuracy (two verdicts a case), agreement (both verdicts name the same
    answer, or both tie), each the macro mean over types; then pair accuracy per type with Wilson's interval. Notes: the share
    of cases whose good answer is longer, and Spearman's correlation of the length difference (good - bad) with the verdict,
    the good answer being the same side of all.

    Raises DataError when there is no case, ConfigError for an unknown type or a judge that does not compare.
    """

    path: str = option("", "file of cases; empty: the held-out pairs")
    judge: dict[str, Any] | str = option({"prefer": {}}, "a pairwise judge, without `model`")
    ratings: str = option("ratings", "field of a held-out prompt's metadata that holds the ratings", min_length=1)

    contract = {"judge": {"prefer": {"max_new_tokens": 8, "retries": 0}}}  # noqa: RUF012

    def __post_init__(self) -> None:
        pair_judge(self.judge)

    def fingerprint(self) -> Any:
        """Return what the options only point at: the judge's version and wording, the file's content."""
        judge = pair_judge(self.judge)
        wording = judge.fingerprint() if hasattr(judge, "fingerprint") else ""
        sources = readers.locate(self.path) if self.path else []
        return [judge.component.version, wording, [file_digest(f) for s in sources for f in readers.files(s)]]

    def draws(self) -> Sequence[Draw]:
        """Ask for no samples."""
        return ()

    def measure(self, view: View) -> list[Metric]:
        """Return the metrics overall, then pair accuracy per type."""
        cases, notes = (cases_of(self.path), {}) if self.path else self._heldout(view)
        table = bias_bench(judged_by(pair_judge(self.judge), view.model, view.ctx), cases)
        ids = np.array([case.pair.prompt.id for case in cases])
        figures = {"pair accuracy": table.pair, "single accuracy": table.single, "agreement": table.agreement}
        shown = {**notes, **lengths(cases, table)}
        found = [
            _metric(name, macro(list(table.by_type(values).values())), ids, values, shown)
            for name, values in figures.items()
        ]
        single, agreement, own = (table.by_type(v) for v in (table.single, table.agreement, ids))
        for bias, pair in table.by_type(table.pair).items() if len(own) > 1 else ():
            means = {"single accuracy": float(single[bias].mean()), "agreement": float(agreement[bias].mean())}
            found.append(_metric(f"pair accuracy: {bias}", stats.wilson(pair.sum(), len(pair)), own[bias], pair, means))
        return found

    def _heldout(self, view: View) -> tuple[list[BiasCase], dict[str, float | int | str]]:
        rated = heldout_pairs(view, self.ratings)
        types = {p.id: str(p.metadata.get("bias", "")) for p in view.prompts}
        cases = [
            BiasCase(r.pair if r.share > 0.5 else r.pair.swapped(), bias_type(types[i]) if types[i] else "ordinary")
            for i, r in rated.items()
            if r.share != 0.5
        ]
        if not cases:
            raise DataError("in no held-out pair is one answer the better one", hint="All ratings are ties.")
        left_out = len(view.prompts) - len(cases)
        return cases, {"without a better answer": left_out} if left_out else {}


def cases_of(path: str) -> list[BiasCase]:
    """Return the cases of a file, equal ones once.

    Raises DataError where it has none, or one that cannot be used (no label, good and bad the same...): figures on a part of a
    bench are not the bench's. Raises ConfigError for an unknown type.
    """
    data = read(path)
    for row in data.rejected:
        if row["reason"] != "the same row again":
            raise DataError(
                f"the case cannot be used: {row['reason']} {row['detail']}".strip(),
                where=row["record"],
                hint="A case is prompt, chosen, rejected, bias; or instruction, response1, response2, label (1 or 2), bias.",
            )
    if not data.pairs:
        raise DataError(
            "it holds single answers, not pairs", where=path, hint="A case is prompt, chosen, rejected, bias."
        )
    return [BiasCase(c.pair.swapped() if c.better else c.pair, bias_type(c.group, c.where)) for c in data.pairs]


def lengths(cases: Sequence[BiasCase], table: BiasTable) -> dict[str, float | int | str]:
    """Return the share of cases whose good answer is longer, and how lengths go with verdicts where both vary."""
    longer = np.array([len(c.pair.first.text) - len(c.pair.second.text) for c in cases])
    found: dict[str, float | int | str] = {"good answer longer": float((longer > 0).mean())}
    related = stats.spearman(longer, table.single) if len(cases) > 1 else math.nan
    return found if math.isnan(related) else {**found, "length correlation": related}


def _metric(
    name: str, interval: stats.Interval, ids: np.ndarray, values: np.ndarray, notes: Mapping[str, float | int | str]
) -> Metric:
    items = dict(zip(ids.tolist(), values.tolist(), strict=True))
    return Metric(name, *interval, n=len(items), per_item=items, unit="share", notes=notes)
