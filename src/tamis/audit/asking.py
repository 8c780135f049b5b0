"""Asks a judge for everything an audit needs: pairs in both orders, single answers, and repeats; kept by content.

A pairwise judge (one with `compare`) is shown each pair in both orders. A pointwise judge scores both answers, and the higher
score is its verdict on the pair.
"""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tamis.asking.ask import RETRY_TEMPERATURE, silence, unanswered
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.hashing import derive_seed, digest
from tamis.judges.pairs import TIES, Pair
from tamis.preferences import Item, KnownAnswers, Preference
from tamis.records import Cost, Verdict, total_cost
from tamis.registry import config_of
from tamis.replies import Replies

CHUNK = 64
Tell = Callable[[str], None]
Ask = Callable[[Any, Sequence[Any], Context], list[Verdict]]


@dataclass
class Sitting:
    """What a judge said: a verdict per pair (or item) in the file's order, in the other order, and per repeat.

    Labels of verdicts on pairs are "A" (the one shown first), "B", a tie or a fault. `back` is empty for a judge that is shown
    no order. `repeated_at` is the temperature of the repeats where it is not the judge's own. `known` of `wanted` verdicts
    were kept from before; `cost` counts all of them, `seconds` only what was asked now.
    """

    there: list[Verdict]
    back: list[Verdict] = field(default_factory=list)
    repeats: list[list[Verdict]] = field(default_factory=list)
    repeated_at: float | None = None
    wanted: int = 0
    known: int = 0
    seconds: float = 0.0

    @property
    def verdicts(self) -> list[Verdict]:
        """All of them."""
        return [*self.there, *self.back, *(v for row in self.repeats for v in row)]

    @property
    def cost(self) -> Cost:
        """What all verdicts cost when they were asked for."""
        return total_cost(self.verdicts)


def is_pairwise(judge: Any) -> bool:
    """Whether a judge compares two answers that it is shown in an order."""
    return callable(getattr(judge, "compare", None))


class Asker:
    """Asks `judge` in chunks; what it said of the same content before, with the same options, model and seed, is not asked.

    `load` makes the model when the first verdict is missing; `identity` is that of the model. A judge that is no registered
    component is asked every time.
    """

    def __init__(
        self,
        judge: Any,
        *,
        replies: Replies | None = None,
        identity: str = "",
        load: Callable[[], Any] = lambda: None,
        tell: Tell = lambda _: None,
    ) -> None:
        self.judge, self.replies, self.identity, self.load, self.tell = (
            judge,
            replies or Replies(),
            identity,
            load,
            tell,
        )
        self.model: Any = None
        self.wanted = self.known = 0
        self.counts: Counter[str] = Counter()
        self.dropped: list[dict[str, Any]] = []

    def sit(self, data: KnownAnswers, *, seed: int, repeats: int) -> Sitting:
        """Return all verdicts on the data.

        Raises ConfigError for a pairwise judge of single answers, ModelError where a server answers nothing and no verdict
        is kept from before.
        """
        started = time.monotonic()
        pairwise = is_pairwise(self.judge)
        if data.items and pairwise:
            raise ConfigError(
                f"the judge '{judge_name(self.judge)}' compares two answers, and the data are single answers",
                where=data.path,
                hint="Take a judge of single answers (score, label, answer), or data with pairs.",
            )
        ask = _ask_items if data.items else _ask_pairs if pairwise else _ask_scores
        units: Sequence[Preference | Item] = data.items or data.pairs
        swapped = [dataclasses.replace(p, pair=p.pair.swapped()) for p in data.pairs] if pairwise else []
        judge, warmer = self.judge, _warmer(self.judge)
        found = Sitting(
            self._verdicts(judge, ask, units, seed, "in the order given"),
            self._verdicts(judge, ask, swapped, seed, "in the other order"),
            [
                self._verdicts(warmer or judge, ask, units, derive_seed(seed, "repeat", r), f"again ({r + 1})")
                for r in range(repeats)
            ],
            getattr(warmer, "temperature", None) if repeats else None,
        )
        if not self.known and (reasons := silence(self.counts, self.dropped)):
            raise unanswered("question to the model", reasons, judge_name(self.judge))
        found.wanted, found.known, found.seconds = self.wanted, self.known, time.monotonic() - started
        return found

    def _verdicts(self, judge: Any, ask: Ask, units: Sequence[Any], seed: int, what: str) -> list[Verdict]:
        keys = [self._key(judge, unit, seed) for unit in units]
        kept = {key: row for key, row in self.replies.get(k for k in keys if k).items() if _whole(row)}
        self.wanted += len(units)
        self.known += sum(k in kept for k in keys)
        found = {i: _restored(kept[key], units[i]) for i, key in enumerate(keys) if key in kept}
        missing = [i for i in range(len(units)) if i not in found]
        for start in range(0, len(missing), CHUNK):
            part = missing[start : start + CHUNK]
            self.tell(f"asking {what}: {start} of {len(missing)}")
            fresh = ask(judge, [units[i] for i in part], self._context(seed))
            found |= dict(zip(part, fresh, strict=True))
            self.replies.put({keys[i]: _kept(found[i]) for i in part if keys[i] and found[i].label != "no_reply"})
        return [found[i] for i in range(len(units))]

    def _key(self, judge: Any, unit: Preference | Item, seed: int) -> str:
        component = getattr(judge, "component", None)
        if component is None:
            return ""
        prints = judge.fingerprint() if hasattr(judge, "fingerprint") else ""
        asked = (component.name, component.version, config_of(judge), prints, self.identity)
        return digest("audit verdict", asked, unit.content, seed)

    def _context(self, seed: int) -> Context:
        if self.model is None:
            self.model = self.load()
        return Context(seed=seed, model=self.model, replies=self.replies, counts=self.counts, dropped=self.dropped)


def judge_name(judge: Any) -> str:
    """Return the name of a judge, registered or not."""
    component = getattr(judge, "component", None)
    return str(component.name if component else getattr(judge, "name", type(judge).__name__))


def _warmer(judge: Any) -> Any:
    """Return the judge at a temperature at which repeats can differ; None where it samples already or cannot."""
    if getattr(judge, "temperature", None) == 0:
        return dataclasses.replace(judge, temperature=RETRY_TEMPERATURE)
    return None


def _ask_pairs(judge: Any, pairs: Sequence[Preference], ctx: Context) -> list[Verdict]:
    """Return a verdict per pair, each shown once, in the order given."""
    return list(getattr(judge, "in_order", judge.compare)([p.pair for p in pairs], ctx))


def _ask_items(judge: Any, items: Sequence[Item], ctx: Context) -> list[Verdict]:
    return list(judge.judge({i.prompt.id: i.prompt for i in items}, [i.completion for i in items], ctx))


def _ask_scores(judge: Any, pairs: Sequence[Preference], ctx: Context) -> list[Verdict]:
    """Return a verdict per pair from the scores of its two answers."""
    prompts = {p.pair.prompt.id: p.pair.prompt for p in pairs}
    found = list(judge.judge(prompts, [c for p in pairs for c in (p.pair.first, p.pair.second)], ctx))
    return [_higher(p.pair, *two) for p, two in zip(pairs, zip(found[::2], found[1::2], strict=True), strict=True)]


def _higher(pair: Pair, first: Verdict, second: Verdict) -> Verdict:
    if first.score is None or second.score is None:
        label = (first if first.score is None else second).label or "no_score"
    else:
        label = "A" if first.score > second.score else "B" if second.score > first.score else "tie"
    said = [f"[{v.label} {v.score}]\n{v.rationale}" for v in (first, second)]
    return Verdict(
        pair.prompt.id, pair.ids, first.judge, label=label, rationale="\n\n".join(said), cost=first.cost + second.cost
    )


def _kept(verdict: Verdict) -> dict[str, Any]:
    row = {name: getattr(verdict, name) for name in ("judge", "score", "label", "probability", "rationale")}
    return row | {"cost": dataclasses.asdict(verdict.cost)}


def _whole(row: Any) -> bool:
    """Whether a kept row is as `_kept` makes them; any other is asked for again."""
    try:
        made = Verdict("", ("",), **{**row, "cost": Cost(**row["cost"])})
    except (TypeError, KeyError, ValueError):
        return False
    texts = (made.judge, made.label, made.rationale)
    numbers = (made.score, made.probability)
    costs = dataclasses.asdict(made.cost).values()
    read = all(isinstance(t, str) for t in texts) and all(type(n) in (int, float) for n in costs)
    return read and all(n is None or type(n) in (int, float) for n in numbers)


def _restored(kept: dict[str, Any], unit: Preference | Item) -> Verdict:
    ids = unit.pair.ids if isinstance(unit, Preference) else (unit.completion.id,)
    prompt = unit.pair.prompt if isinstance(unit, Preference) else unit.prompt
    return Verdict(prompt.id, ids, **{**kept, "cost": Cost(**kept["cost"])})


def winner(verdict: Verdict) -> float:
    """Return 1 where a verdict on a pair names the one shown first, -1 the second, 0 for a tie, NaN for none."""
    if verdict.label in TIES:
        return 0.0
    return {"A": 1.0, "B": -1.0}.get(verdict.label, math.nan)
