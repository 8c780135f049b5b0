"""The report's sections: each function turns a run's material into plain data for the template."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from tamis.report import charts, wording
from tamis.report.charts import Bar, Series
from tamis.report.material import Material

COSTS = {
    "prompt_tokens": "prompt tokens",
    "sampled_tokens": "sampled tokens",
    "judge_calls": "judge calls",
    "trained_tokens": "trained tokens",
}
TONES = {"stop": "after", "length": "warn", "error": "bad"}
MOST_REASONS = 12


def setup(m: Material) -> dict[str, Any]:
    """Recipe, model, data, seed, versions and machine."""
    manifest, recipe = m.manifest, m.recipe
    made = str(manifest.get("created", ""))
    task = recipe.get("task") or {}
    component, options = next(iter(task.items()), ("", {})) if isinstance(task, Mapping) else (str(task), {})
    splits = Counter(p.split for p in m.prompts)
    data = " and ".join(
        f"{n:,} {'held-out' if split == 'heldout' else split}" for split, n in sorted(splits.items(), reverse=True)
    )
    row = f" (method row {recipe['row']})" if recipe.get("row") else ""
    facts = [
        ("Recipe", f"{recipe.get('name', m.name)}{row}", recipe.get("about", "")),
        ("Model", m.model, f"identity {str(manifest.get('model', {}).get('identity', ''))[:16] or 'unknown'}"),
        ("Data", component, f"{data} prompts" if data else "no prompts yet"),
        (
            "Seed",
            str(manifest.get("seed", recipe.get("seed", 0))),
            "every random number is derived from it and record ids",
        ),
        (
            "Made",
            made[:16].replace("T", " ") + (" UTC" if made.endswith("+00:00") else ""),
            f"by tamis {manifest.get('tamis', '')}",
        ),
    ]
    if recipe.get("paper"):
        facts.insert(1, ("Paper", str(recipe["paper"]), ""))
    return {
        "facts": facts,
        "options": yaml.safe_dump(options, sort_keys=False, allow_unicode=True) if options else "",
        "versions": _pairs(manifest.get("versions")) + _other_versions(manifest["stages"]),
        "machine": _pairs(manifest.get("machine")),
    }


def _other_versions(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return what was made with versions that were not installed any more when the run ended."""
    return [
        (f"{stage_name(s['folder'])} was made with", s["other_versions"]) for s in stages if s.get("other_versions")
    ]


def _pairs(data: Any) -> list[tuple[str, str]]:
    return (
        [(str(k).replace("_", " "), str(v)) for k, v in data.items() if v is not None]
        if isinstance(data, Mapping)
        else []
    )


def funnel(m: Material) -> dict[str, Any]:
    """How many prompts, samples, accepted and selected samples and training examples there were, and what was left out."""
    bars = [Bar("Prompts", m.train_prompts, "to sample from")] if m.prompts else []
    if m.completions:
        bars.append(
            Bar("Samples", len(m.completions), f"{len(m.completions) / max(m.train_prompts, 1):.3g} per prompt")
        )
    if m.accepted:
        bars.append(Bar("Accepted", sum(m.accepted), _of(sum(m.accepted), len(m.completions), "samples")))
    if m.selected is not None:
        before = sum(m.accepted) if m.accepted else len(m.completions)
        bars.append(
            Bar("Selected", len(m.selected), _of(len(m.selected), before, "accepted" if m.accepted else "samples"))
        )
    if m.examples:
        kinds = " + ".join(sorted({e.kind for e in m.examples}))
        bars.append(Bar("Trained on", len(m.examples), f"{kinds} examples" if "+" not in kinds else kinds))
    return {
        "chart": charts.responsive(
            lambda width: charts.funnel(bars, title="From prompts to training examples", width=width)
        ),
        **_reasons(m),
    }


def _of(part: int, whole: int, noun: str) -> str:
    return f"{100 * part / whole:.1f}% of {noun}" if whole and part <= whole else ""


def _reasons(m: Material) -> dict[str, Any]:
    found: Counter[tuple[str, str]] = Counter()
    for label, n in m.refusals.items():
        found["judge", label.replace("_", " ")] += n
    if m.selected is not None:
        found["select", "accepted, but not selected"] = _passed_over(m, m.selected)
    for row in m.dropped:
        found[stage_name(str(row.get("stage", ""))), str(row.get("reason", "no reason given"))] += 1
    ranked = [(where, reason, n) for (where, reason), n in found.most_common() if n]
    return {"reasons": ranked[:MOST_REASONS], "more_reasons": len(ranked[MOST_REASONS:])}


def _passed_over(m: Material, selected: Sequence[str]) -> int:
    """How many accepted completions were not selected and were not dropped with a reason of their own."""
    dropped = {row.get("record") for row in m.dropped if stage_name(str(row.get("stage", ""))) == "select"}
    known = {*selected, *dropped}
    able = m.accepted or [True] * len(m.completions)
    return sum(ok and c.id not in known for c, ok in zip(m.completions, able, strict=True))


def stage_name(folder: str) -> str:
    """Return "sample" for "02-sample-1a2b3c", "evaluate before" for "07-evaluate_before-…"."""
    parts = folder.split("-")
    return (parts[1] if len(parts) > 2 else folder).replace("_", " ")


def training(m: Material) -> dict[str, Any]:
    """The loss curve, one line per tune stage, and its figures."""
    lines = [part for part in _tunes(m.curve) if part]
    series = [(f"round {i + 1}", _column(part, "step"), _column(part, "loss")) for i, part in enumerate(lines)]
    losses = np.array(_column(m.curve, "loss"))
    good = losses[np.isfinite(losses)]
    facts = []
    if len(good):
        facts = [
            ("Steps", f"{len(m.curve):,}"),
            ("First loss", charts.plain(float(good[0]))),
            ("Last loss", charts.plain(float(good[-1]))),
        ]
    tokens = sum((s.get("cost") or {}).get("trained_tokens") or 0 for s in m.manifest["stages"] if s["kind"] == "tune")
    if tokens:
        facts.append(("Tokens trained", f"{tokens:,}"))
    return {
        "chart": charts.responsive(
            lambda width: charts.line_chart(series, title="Training loss", x_label="optimizer step", width=width)
        ),
        "facts": facts,
        "legend": [(name, f"s{i % 4}") for i, (name, _, _) in enumerate(series)] if len(series) > 1 else [],
        "skipped": len(losses) - len(good),
    }


def _tunes(curve: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Cut the rows of all tune stages, one after the other, where the step count starts again."""
    parts: list[list[Mapping[str, Any]]] = [[]]
    for row in curve:
        if parts[-1] and row.get("step", 0) <= parts[-1][-1].get("step", 0):
            parts.append([])
        parts[-1].append(row)
    return parts


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(row[name]) if wording.finite(row.get(name)) else float("nan") for row in rows]


def sampling(m: Material) -> dict[str, Any]:
    """Lengths, finish reasons and pass rates of the samples; reference solutions used as samples are left out."""
    drawn = [(c, m.accepted[i] if m.accepted else None) for i, c in enumerate(m.completions) if c.sampler != "gold"]
    if not drawn:
        return {"lengths": "", "rates": "", "finish": "", "facts": [], "legend": []}
    ends = Counter(c.finish_reason for c, _ in drawn)
    order = [(reason, ends[reason], TONES.get(reason, "before")) for reason in sorted(ends, key=lambda r: -ends[r])]
    lengths, unit = _lengths([c for c, _ in drawn])
    groups: dict[str, list[bool]] = {}
    for completion, kept in drawn:
        if kept is not None:
            groups.setdefault(completion.prompt_id, []).append(kept)
    facts = [
        (f"Median length, {unit}", f"{np.median(lengths):,.0f}"),
        (f"95th percentile, {unit}", f"{np.percentile(lengths, 95):,.0f}"),
        ("Different texts", f"{100 * len({(c.prompt_id, c.text) for c, _ in drawn}) / len(drawn):.1f}%"),
    ]
    return {
        "finish": charts.share_bar(order, title="How the samples ended"),
        "legend": [(reason, tone, f"{n:,} ({100 * n / len(drawn):.1f}%)") for reason, n, tone in order],
        "lengths": _length_chart([(c.finish_reason, n) for (c, _), n in zip(drawn, lengths, strict=True)], order, unit),
        "rates": _rate_chart(list(groups.values())),
        "facts": facts + _rate_facts(list(groups.values())),
    }


def _lengths(completions: Sequence[Any]) -> tuple[list[int], str]:
    tokens = [len(c.token_ids) or c.cost.sampled_tokens for c in completions]
    return (tokens, "tokens") if any(tokens) else ([len(c.text) for c in completions], "characters")


def _length_chart(found: Sequence[tuple[str, int]], order: Sequence[tuple[str, int, str]], unit: str) -> str:
    edges = charts.bins([n for _, n in found])
    series = []
    for reason, _, tone in order:
        counts = np.histogram([n for r, n in found if r == reason], bins=edges)[0]
        series.append(Series(reason, counts.tolist(), tone))
    step = int(edges[1] - edges[0])
    every = max(1, len(edges) // 6)
    labels = [(float(i), charts.plain(float(edges[i]))) for i in range(0, len(edges), every)]
    hover = [f"{a} {unit}" if step == 1 else f"{a} to {a + step - 1} {unit}" for a in edges[:-1].tolist()]
    return charts.columns(
        series, labels=labels, hover=hover, title=f"Samples by length in {unit}", x_label=f"length, {unit}"
    )


def _rate_chart(groups: Sequence[Sequence[bool]]) -> str:
    sizes = {len(g) for g in groups}
    if not sizes:
        return ""
    size = sizes.pop() if len(sizes) == 1 and max(sizes) <= 24 else 0
    if size:
        counts = np.bincount([sum(g) for g in groups], minlength=size + 1).tolist()
        every = max(1, size // 8)
        labels = [(i + 0.5, str(i)) for i in range(0, size + 1, every)]
        hover, x_label = [f"{i} of {size} accepted" for i in range(size + 1)], f"accepted samples of {size}"
    else:
        counts = np.histogram([sum(g) / len(g) for g in groups], bins=np.linspace(0, 1, 11))[0].tolist()
        labels = [(float(i), f"{10 * i}%") for i in range(0, 11, 2)]
        hover, x_label = [f"{10 * i} to {10 * i + 10}% accepted" for i in range(10)], "share of samples accepted"
    series = [Series("", counts, "after")]
    return charts.columns(series, labels=labels, hover=hover, title="Prompts by accepted samples", x_label=x_label)


def _rate_facts(groups: Sequence[Sequence[bool]]) -> list[tuple[str, str]]:
    if not groups:
        return []
    return [
        ("Mean pass rate", f"{100 * float(np.mean([sum(g) / len(g) for g in groups])):.1f}%"),
        ("Prompts, none accepted", f"{sum(not any(g) for g in groups):,} of {len(groups):,}"),
        ("Prompts, all accepted", f"{sum(all(g) for g in groups):,} of {len(groups):,}"),
    ]


def ledger(m: Material) -> dict[str, Any]:
    """What each stage cost, and the sums: all stages, and those computed by this run rather than taken from another."""
    stages = m.manifest["stages"]
    used = {k: label for k, label in COSTS.items() if any((s.get("cost") or {}).get(k) for s in stages)}
    rows = [
        {
            "number": str(s.get("folder", ""))[:2],
            "stage": str(s.get("kind", "")).replace("_", " "),
            "component": str(s.get("component", "")).replace("+", " + "),
            "state": "reused" if s.get("reused") else str(s.get("status", "")),
            "cells": _cells([s], used),
            "counts": {
                **(s.get("counts") or {}),
                **{k: v for k, v in (s.get("notes") or {}).items() if k != "finding"},
            },
        }
        for s in stages
    ]
    fresh = [s for s in stages if not s.get("reused")]
    totals = [("All stages", _cells(stages, used))]
    if len(fresh) < len(stages):
        totals.append(("Computed by this run", _cells(fresh, used)))
    return {"labels": [*used.values(), "time"], "rows": rows, "totals": totals if stages else []}


def _cells(stages: Sequence[Mapping[str, Any]], used: Mapping[str, str]) -> list[str]:
    sums = [sum((s.get("cost") or {}).get(k) or 0 for s in stages) for k in used]
    return [*(f"{n:,}" if n else "–" for n in sums), wording.seconds(sum(s.get("seconds") or 0 for s in stages))]


def reproduce(m: Material) -> dict[str, Any]:
    """The resolved recipe and the commands that run it again and rebuild this page."""
    text = yaml.safe_dump(m.recipe, sort_keys=False, allow_unicode=True)
    version = m.manifest.get("tamis")
    place = shlex.quote(m.place)
    commands = [
        (f'pip install "tamis=={version}"' if version else "pip install tamis", "the version that made this run"),
        (f"tamis run {place}/recipe.yaml", "takes finished stages from the run folder"),
        (f"tamis run {place}/recipe.yaml --fresh", "computes every stage again"),
        (f"tamis report {place}", "writes this page again"),
    ]
    return {"yaml": text, "commands": commands}
