"""Audits a judge from start to end, and writes what was found."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamis import __version__, preferences, registry
from tamis.audit import figures, words
from tamis.audit.asking import Asker, Sitting, judge_name, winner
from tamis.audit.trials import labelled, repeat_counts, trials
from tamis.errors import ConfigError, DataError
from tamis.files import explained, write_atomic, write_json
from tamis.hashing import rng
from tamis.models.options import Asking
from tamis.needs import require
from tamis.plain import file_text, parse, plain
from tamis.preferences import KnownAnswers
from tamis.recipe import assignments
from tamis.records import Verdict
from tamis.registry import config_of
from tamis.replies import Replies

MODEL = "smollm2-135m"
MOST_EXAMPLES = 5


@dataclass(frozen=True)
class AuditResult:
    """What an audit found: `figures` as they stand in audit.json, and the folder it was written to (None: nowhere)."""

    figures: dict[str, Any]
    folder: Path | None = None

    @property
    def summary(self) -> list[str]:
        """The verdict on the judge in three sentences."""
        return words.summary(self.figures)


def audit(
    judge: Any,
    data: KnownAnswers | str | Path,
    *,
    model: str | None = None,
    mapping: Mapping[str, str] | None = None,
    n: int | None = None,
    seed: int = 0,
    repeats: int = 3,
    out: Path | None = None,
    endpoint: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> AuditResult:
    """Return what `judge` is worth on `data`, and write it into the folder `out` where one is given.

    `judge` is a recipe form (`"prefer"`, `{"prefer": {"votes": 3}}`) or an object with `compare` (pairs) or `judge`; `data` a
    file (see `tamis.preferences.read`, with `mapping`) of which `n` random rows are used. `model` is what a judge asks (default
    "smollm2-135m"), an endpoint as `endpoint` says (the fields of `models.options.Asking`). Every pair is shown in both
    orders; `repeats` (0, or 2 and more) further verdicts in the file's order tell self-consistency. Verdicts are kept in
    `out/verdicts.sqlite` and not asked for again.

    Raises ConfigError for an unknown judge or option, DataError for data without known answers or with one label alone,
    ModelError for a model that lacks what the judge needs.
    """
    if repeats == 1 or repeats < 0:
        raise ConfigError(f"--repeats is {repeats}", hint="Self-consistency takes 2 repeats or more; 0 leaves it out.")
    asked = registry.construct(Asking, Asking.model_fields, dict(endpoint or {}), "endpoint")
    made = build(judge, model) if isinstance(judge, str | Mapping) else judge
    found = data if isinstance(data, KnownAnswers) else preferences.read(str(data), mapping)
    found = found.sample(n, seed)
    if not (found.pairs or found.items):
        raise DataError("there is nothing to audit the judge on", where=found.path)
    if out is not None:
        with explained(out):
            out.mkdir(parents=True, exist_ok=True)
    replies = Replies(out / "verdicts.sqlite" if out else None)
    try:
        asker, named = _asker(made, model, asked.options, replies, tell)
        sitting = asker.sit(found, seed=seed, repeats=repeats)
    finally:
        replies.close()
    result = _result(made, found, sitting, seed) | {"tamis": __version__, "made": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    result["judge"] = {"name": judge_name(made), "options": _options(made), **named}
    result["summary"], result["notes"] = words.summary(result), words.notes(result)
    if out is not None:
        _write(out, result, found)
    return AuditResult(result, out)


def spec(judge: str, options: Sequence[str] = ()) -> dict[str, Any]:
    """Return the recipe form of a judge named on the command line: a name, `{name: {option: value}}`, or a YAML file of it.

    `options` are "option=value". Raises ConfigError where either cannot be read.
    """
    made: Any = judge
    if judge.endswith((".yaml", ".yml")):
        made = parse(file_text(judge, "judge's file"), judge)
    elif judge.lstrip().startswith("{"):
        made = parse(judge, "JUDGE")
    name, config = registry.split("judge", made, "JUDGE")
    changes = dict(assignments(options, "temperature=0.7"))
    return {name: {**(config or {}), **changes} if isinstance(config, Mapping | None) else config}


def build(judge: str | Mapping[str, Any], model: str | None) -> Any:
    """Return the judge component; `model` becomes its option of that name where it has one."""
    made = registry.build("judge", judge)
    if model and hasattr(made, "model"):
        made = made.component.build({**config_of(made), "model": model})
    return made


def _asker(
    judge: Any, model: str | None, asked: Mapping[str, Any], replies: Replies, tell: Callable[[str], None]
) -> tuple[Asker, dict[str, Any]]:
    """Return who asks, and the model's name and identity. The model is loaded when the first verdict is missing."""
    component = getattr(judge, "component", None)
    if component is None or not component.needs:
        return Asker(judge, replies=replies, tell=tell), {"model": None, "identity": ""}
    from tamis.models.resolve import load, resolve

    if "embedder" in component.needs:
        raise ConfigError(
            f"the judge '{component.name}' learns with an embedder, and an audit has none",
            hint="Let it learn in a run, with save: rubric.yaml, and audit {rubric: {path: rubric.yaml}}.",
        )
    name = getattr(judge, "model", None) or model or MODEL
    hint = "Name another with --model: a packaged model (tamis models list), a folder, a hub id or an endpoint."
    require(f"the judge '{component.name}'", component.needs, name, hint)
    ref = resolve(name)
    options = asked if ref.kind == "endpoint" else {}
    asker = Asker(judge, replies=replies, identity=ref.identity, load=lambda: load(ref, **options), tell=tell)
    return asker, {"model": name, "identity": ref.identity}


def _options(judge: Any) -> dict[str, Any]:
    return plain(config_of(judge), "judge") if hasattr(judge, "component") else {}


def _result(judge: Any, data: KnownAnswers, sitting: Sitting, seed: int) -> dict[str, Any]:
    """Return every figure as plain data."""
    luck = rng(seed, "audit figures")
    if data.items:
        of = labelled(data, sitting, judge)
        found, prompts = figures.of_items(of, luck), of.prompts
        found["groups"] = figures.item_groups(of, [i.group for i in data.items])
    else:
        t = trials(data, sitting)
        prompts = t.prompts[: len(data.pairs)]
        found = {"agreement": figures.agreement(t, luck)}
        if t.swapped:
            found |= {"outcomes": figures.outcomes(t), "place": figures.place(t)}
        found |= {
            "length": figures.length(t),
            "effects": figures.effects(t),
            "calibration": figures.calibration(t.probability, t.good == 1, t.prompts, luck),
            "groups": figures.groups(t, [c.group for c in data.pairs]),
        }
    if sitting.repeats:
        counts = repeat_counts(sitting, pairs=bool(data.pairs))
        found["consistency"] = figures.consistency(counts, prompts, luck) | {"temperature": sitting.repeated_at}
    kind = "items" if data.items else "pairs"
    about = {"file": Path(data.path).name, "kind": kind, "used": len(prompts), "prompts": int(prompts.max()) + 1}
    found["data"] = about | {"not_drawn": data.unsampled, "left_out": data.reasons}
    return {**found, "cost": _cost(judge, data, sitting), "seed": seed}


def _cost(judge: Any, data: KnownAnswers, sitting: Sitting) -> dict[str, Any]:
    lost = [v for v in sitting.verdicts if (math.isnan(winner(v)) if data.pairs else v.score is None)]
    cost = sitting.cost
    return {
        "verdicts": sitting.wanted,
        "known": sitting.known,
        "judge_calls": cost.judge_calls,
        "prompt_tokens": cost.prompt_tokens,
        "sampled_tokens": cost.sampled_tokens,
        "seconds": sitting.seconds,
        "unreadable": len(lost),
        "examples": [_example(v, data) for v in lost[:MOST_EXAMPLES]],
    }


def _example(verdict: Verdict, data: KnownAnswers) -> dict[str, str]:
    where = {c.pair.prompt.id: c.where for c in data.pairs} | {i.prompt.id: i.where for i in data.items}
    return {"row": where[verdict.prompt_id], "reason": verdict.label, "reply": verdict.rationale[:600]}


def _write(out: Path, result: dict[str, Any], data: KnownAnswers) -> None:
    from tamis.audit.page import render

    rejected = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data.rejected)
    write_atomic(out / "rejected.jsonl", rejected)
    write_json(out / "audit.json", result)
    write_atomic(out / "audit.html", render(result))
