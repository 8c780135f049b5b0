"""Rubrics: what one is, how it is read and written, and how one is learned from preferences without training.

Row 26 (Auto-Rubric 2025, arXiv 2510.17314). Learning: criteria are proposed pair by pair and kept only where a judge that
does not know the label finds the better answer by them; a core set is chosen by coding rate; a model groups it into themes.
A pair's rounds count evaluations, so that E rounds revise at most E - 1 times. A tie is a failure; the released code takes
one as right when the better answer stands first.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tamis.asking import Question, Template, ask, read_json, read_label, template
from tamis.coding_rate import coding_rate, coding_rate_select, narrowed, normalised
from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.files import write_atomic
from tamis.judges.pairs import PREFERENCES, SWAPPED
from tamis.plain import file_text, parse
from tamis.preferences import Preference
from tamis.records import Law

SHORTEST = 10
"""A criterion of so many characters or fewer says nothing."""
EMPTY_RETRIES = 5
WORDINGS = ("rubric_propose", "rubric_revise", "rubric_structure")


@dataclass(frozen=True)
class QueryRubric:
    """Criteria of one pair: whether the last ones were found valid, and in which round (0: none were proposed)."""

    pair_id: str
    criteria: tuple[str, ...]
    valid: bool
    epoch: int


@dataclass(frozen=True)
class Theme:
    """A statement that holds for every query, specific tips, and the numbers (from 0) of the criteria it is made from."""

    statement: str
    tips: tuple[str, ...] = ()
    sources: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rubric:
    """Themes, the core criteria they are made from, the pair each came from, and why learning stopped."""

    themes: tuple[Theme, ...]
    criteria: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    stopped: str = ""

    @property
    def text(self) -> str:
        """The rubric as a judge is shown it."""
        lines = []
        for number, theme in enumerate(self.themes, 1):
            lines += [f"{number}. {theme.statement}", *(f"   - {tip}" for tip in theme.tips)]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write the rubric as YAML."""
        plain = {
            "stopped": self.stopped,
            "themes": [{**asdict(t), "tips": list(t.tips), "sources": list(t.sources)} for t in self.themes],
            "criteria": list(self.criteria),
            "pairs": list(self.pairs),
        }
        write_atomic(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120))


def read(path: Path) -> Rubric:
    """Return the rubric of a YAML file: a list `themes` of {statement, tips, sources}. Raises ConfigError with the field."""
    raw = parse(file_text(str(path), "rubric"), str(path))

    def refuse(what: str) -> ConfigError:
        hint = "A rubric is {themes: [{statement: TEXT, tips: [TEXT]}]}."
        return ConfigError(what, where=str(path), hint=hint)

    if not isinstance(raw, dict) or not isinstance(raw.get("themes"), list) or not raw["themes"]:
        raise refuse("this is not a rubric: it has no list of themes")
    unknown = sorted(str(name) for name in raw.keys() - {"themes", "criteria", "pairs", "stopped"})
    if unknown:
        raise refuse(f"a rubric has no field '{unknown[0]}'")
    themes = []
    for number, theme in enumerate(raw["themes"]):
        statement = theme.get("statement") if isinstance(theme, dict) else None
        if not isinstance(statement, str) or not statement.strip():
            raise refuse(f"themes[{number}] has no statement")
        tips, sources = theme.get("tips") or [], theme.get("sources") or []
        if not isinstance(tips, list) or not all(isinstance(tip, str) for tip in tips):
            raise refuse(f"themes[{number}].tips is not a list of texts")
        if not isinstance(sources, list) or not all(type(source) is int for source in sources):
            raise refuse(f"themes[{number}].sources is not a list of whole numbers")
        themes.append(Theme(statement, tuple(tips), tuple(sources)))
    for name in ("criteria", "pairs"):
        if not isinstance(raw.get(name) or [], list):
            raise refuse(f"{name} is not a list")
    criteria, pairs = (tuple(map(str, raw.get(name) or ())) for name in ("criteria", "pairs"))
    return Rubric(tuple(themes), criteria, pairs, str(raw.get("stopped", "")))


def numbered(criteria: Sequence[str]) -> str:
    """Return criteria as a list that a judge is shown."""
    return "\n".join(f"{number}. {text}" for number, text in enumerate(criteria, 1))


def propose_evaluate_revise(
    ctx: Context, preferences: Sequence[Preference], law: Law, judged_by: Template, *, m: int = 1, max_epochs: int = 10
) -> list[QueryRubric]:
    """Return the criteria of each pair, in order, by `ctx.model`; all pairs of a round are asked about together.

    Criteria are written from the query, both answers, the label and the critiques, under `law`. They are valid where a
    greedy judge that sees neither label nor critiques (wording `judged_by`) names the better answer by them, in a random
    order of its own for each pair and round. Up to `max_epochs` rounds; what failed is shown when they are rewritten.
    """
    done = [QueryRubric(p.pair.prompt.id, (), False, 0) for p in preferences]
    failed: dict[int, list[str]] = {i: [] for i in range(len(preferences))}
    for epoch in range(1, max_epochs + 1):
        written = _written(ctx, {i: preferences[i] for i in failed}, failed, law, m)
        found = {i: criteria for i, criteria in written.items() if criteria is not None}
        valid = _evaluated(ctx, {i: preferences[i] for i in found}, found, law, judged_by, epoch)
        for i, criteria in found.items():
            done[i] = QueryRubric(done[i].pair_id, criteria, valid[i], epoch)
        failed = {i: [*failed[i], *found[i]] for i in found if not valid[i]}
        if not failed:
            break
    for preference, rubric in zip(preferences, done, strict=True):
        if not rubric.valid:
            reason = "no valid criterion was found" if rubric.epoch == max_epochs else "no criterion was written"
            ctx.drop(preference.where or rubric.pair_id, reason)
    ctx.count("pairs with a valid criterion", sum(rubric.valid for rubric in done))
    return done


def _written(
    ctx: Context, preferences: dict[int, Preference], failed: dict[int, list[str]], law: Law, m: int
) -> dict[int, tuple[str, ...] | None]:
    schema = {"type": "object", "required": ["criteria"], "properties": {"criteria": _TEXTS}}

    def criteria(text: str) -> tuple[str, ...] | None:
        found = read_json(text, schema) or {"criteria": []}
        return tuple(c.strip() for c in found["criteria"] if len(c.strip()) > SHORTEST)[:m] or None

    questions = []
    for i, preference in preferences.items():
        swap = bool(ctx.rng("rubric written", preference.pair.ids).random() < 0.5)
        pair, better = preference.shown(swap)
        facts = {**pair.facts(), "better": better, "critiques": preference.critiques, "count": m, "failed": failed[i]}
        wording = template("rubric_revise" if failed[i] else "rubric_propose")
        questions.append(Question(wording.render(**facts), criteria, schema))
    answers = ask(ctx, questions, law, retries=EMPTY_RETRIES)
    return {i: answer.value for i, (answer,) in zip(preferences, answers, strict=True)}


def _evaluated(
    ctx: Context,
    preferences: dict[int, Preference],
    criteria: dict[int, tuple[str, ...]],
    law: Law,
    judged_by: Template,
    epoch: int,
) -> dict[int, bool]:
    """Return whether a judge that does not know the label names the better answer by the criteria."""
    questions, better = [], []
    for i, preference in preferences.items():
        swap = bool(ctx.rng("rubric judged", preference.pair.ids, epoch).random() < 0.5)
        pair, label = preference.shown(swap)
        messages = judged_by.render(**pair.facts(), rubric=numbered(criteria[i]))
        questions.append(Question(messages, lambda text: read_label(text, PREFERENCES)))
        better.append(label)
    answers = ask(ctx, questions, replace(law, temperature=0.0))
    return {i: a.value == label for i, (a,), label in zip(preferences, answers, better, strict=True)}


@dataclass
class _Core:
    """The core set while it grows: criteria, the pairs they came from, their embeddings, and its coding rate."""

    criteria: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    embeddings: list[np.ndarray] = field(default_factory=list)
    rate: float = 0.0

    def grow(self, ctx: Context, found: Sequence[QueryRubric], k: int) -> float:
        """Choose again from the core so far and the valid criteria of `found`; return by how much the coding rate rose."""
        new = [(text, rubric.pair_id) for rubric in found if rubric.valid for text in rubric.criteria]
        if not new:
            return 0.0
        if ctx.embed is None:
            raise ConfigError("rubrics are chosen by embeddings, and this run has no embedder", hint="Set `embedder:`.")
        embeddings = [*self.embeddings, *ctx.embed([text for text, _ in new])]
        rows = normalised(narrowed(np.array(embeddings)))
        chosen = coding_rate_select(rows, k, normalize=False).indices.tolist()
        before, self.rate = self.rate, coding_rate(rows[chosen])
        criteria, pairs = [*self.criteria, *(t for t, _ in new)], [*self.pairs, *(p for _, p in new)]
        self.criteria, self.pairs = [criteria[i] for i in chosen], [pairs[i] for i in chosen]
        self.embeddings = [embeddings[i] for i in chosen]
        return self.rate - before


def learn(
    ctx: Context,
    preferences: Sequence[Preference],
    law: Law,
    judged_by: Template,
    *,
    m: int = 1,
    max_epochs: int = 10,
    batch: int = 10,
    k: int = 200,
    least_rise: float = 0.002,
    patience: int = 2,
    max_rounds: int = 50,
    least_success: float = 0.3,
    max_themes: int = 5,
    max_tips: int = 5,
) -> Rubric:
    """Return the rubric that `ctx.model` and `ctx.embed` learn from `preferences`, `batch` pairs at a time.

    After every batch the core set of at most `k` criteria is chosen again. Learning stops when all pairs are seen, after
    `patience` successive batches that raise its coding rate by less than `least_rise`, when k is reached, after
    `max_rounds` batches, or after a batch with a share of valid pairs below `least_success`. Every reply is kept in
    `ctx.replies`, so that learning goes on where it was killed and learning again asks nothing.

    Raises DataError where no pair gave a valid criterion.
    """
    core, low, stopped = _Core(), 0, "all pairs were seen"
    for number, start in enumerate(range(0, len(preferences), batch), 1):
        part = preferences[start : start + batch]
        found = propose_evaluate_revise(ctx, part, law, judged_by, m=m, max_epochs=max_epochs)
        low = low + 1 if core.grow(ctx, found, k) < least_rise else 0
        success = sum(rubric.valid for rubric in found) / len(part)
        if success < least_success:
            stopped = f"only {success:.0%} of the pairs of batch {number} gave a valid criterion"
        elif len(core.criteria) >= k:
            stopped = f"the core set has {k} criteria"
        elif low == patience:
            stopped = f"{patience} batches in a row added nothing new"
        elif number == max_rounds:
            stopped = f"{max_rounds} batches were seen"
        else:
            continue
        break
    if not core.criteria:
        raise DataError(
            f"no criterion was learned from {len(preferences)} pairs ({stopped})",
            hint="A stronger model, or pairs that differ more clearly, may help.",
        )
    embeddings = np.array(core.embeddings)
    themes = structure(ctx, core.criteria, embeddings, law, max_themes=max_themes, max_tips=max_tips)
    return Rubric(tuple(themes), tuple(core.criteria), tuple(core.pairs), stopped)


_TEXTS = {"type": "array", "items": {"type": "string"}}
_THEME = {
    "type": "object",
    "required": ["statement", "tips", "sources"],
    "properties": {
        "statement": {"type": "string"},
        "tips": _TEXTS,
        "sources": {"type": "array", "items": {"type": "integer"}},
    },
}


def structure(
    ctx: Context,
    criteria: Sequence[str],
    embeddings: np.ndarray,
    law: Law,
    *,
    max_themes: int = 5,
    max_tips: int = 5,
) -> list[Theme]:
    """Return the criteria grouped into themes by `ctx.model`, in one question.

    Sources that are no number of a criterion are dropped, and a theme without any is; criteria that no theme names are
    counted. Where no reply gives a theme: k-means on `embeddings` (n, d), a theme being the criterion nearest to a
    centre, its tips the next nearest, its sources the whole cluster. Raises ValueError for no criteria.
    """
    if not criteria:
        raise ValueError("there is no criterion to group")
    schema = {"type": "object", "required": ["themes"], "properties": {"themes": {"type": "array", "items": _THEME}}}

    def read_themes(text: str) -> list[Theme] | None:
        found = read_json(text, schema) or {"themes": []}
        made = [_theme(raw, len(criteria), max_tips) for raw in found["themes"]]
        return [theme for theme in made if theme.sources and theme.statement][:max_themes] or None

    wording = template("rubric_structure")
    asked = wording.render(criteria=list(criteria), max_themes=max_themes, max_tips=max_tips)
    ((answer,),) = ask(ctx, [Question(asked, read_themes, schema)], law)
    themes = answer.value
    if themes is None:
        ctx.count("rubrics grouped by k-means, for want of a readable reply")
        themes = clustered(criteria, embeddings, max_themes, max_tips, ctx.rng("rubric themes"))
    cited = {source for theme in themes for source in theme.sources}
    ctx.count("criteria that no theme names", len(criteria) - len(cited))
    return themes


def _theme(raw: dict[str, Any], n: int, max_tips: int) -> Theme:
    sources = tuple(dict.fromkeys(source - 1 for source in raw["sources"] if 1 <= source <= n))
    tips = [tip.strip() for tip in raw["tips"] if tip.strip()]
    return Theme(raw["statement"].strip(), tuple(tips[:max_tips]), sources)


def clustered(
    criteria: Sequence[str], embeddings: np.ndarray, max_themes: int, max_tips: int, rng: np.random.Generator
) -> list[Theme]:
    """Return the criteria grouped by k-means on their directions."""
    from sklearn.cluster import KMeans

    rows = normalised(embeddings)
    most = min(max_themes, len(np.unique(rows, axis=0)))
    fitted = KMeans(most, n_init=5, random_state=int(rng.integers(2**31))).fit(rows)
    far = fitted.transform(rows)
    themes = []
    for cluster in range(most):
        members = np.flatnonzero(fitted.labels_ == cluster)
        medoid, *others = members[np.argsort(far[members, cluster], kind="stable")].tolist()
        themes.append(Theme(criteria[medoid], tuple(criteria[i] for i in others[:max_tips]), tuple(members.tolist())))
    return themes


@dataclass(frozen=True)
class ThemeFigures:
    """What one theme does on held-out pairs; None where a share has no pair to be a share of.

    `coverage`: share of verdicts by it alone that are no tie; `precision`: right ones among them; `contribution`: accuracy of
    the whole rubric - accuracy without it.
    """

    theme: int
    coverage: float
    precision: float | None
    contribution: float


def analyse(
    themes: Sequence[Theme],
    preferences: Sequence[Preference],
    judge: Callable[[Sequence[Theme], Sequence[Preference]], Sequence[str]],
) -> tuple[float, list[ThemeFigures]]:
    """Return the accuracy of the whole rubric and the figures of each theme, on pairs that did not make the rubric.

    `judge(themes, preferences)` gives "A", "B" or a tie for each pair in its own order, and is not asked about no themes: they
    are a tie. A tie, or a verdict that cannot be read, is never right. Raises DataError for no pairs.
    """
    if not preferences:
        raise DataError("there is no held-out pair to look at the rubric with")

    def right(some: Sequence[Theme]) -> tuple[float, float]:
        """Return the shares of pairs that are decided, and rightly."""
        labels = judge(some, preferences) if some else ["tie"] * len(preferences)
        decided = [label in SWAPPED for label in labels]
        hits = [label == "AB"[p.better] for label, p in zip(labels, preferences, strict=True)]
        return float(np.mean(decided)), float(np.mean(hits))

    accuracy = right(themes)[1]
    rows = []
    for number, theme in enumerate(themes):
        coverage, hits = right([theme])
        others = right([t for i, t in enumerate(themes) if i != number])[1]
        rows.append(ThemeFigures(number, coverage, hits / coverage if coverage else None, accuracy - others))
    return accuracy, rows
