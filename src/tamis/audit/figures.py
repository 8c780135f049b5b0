"""Every figure of an audit, each with its 95% interval, as plain data for JSON, the page and the terminal."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tamis.audit import statistics
from tamis.audit.trials import STYLES, Labelled, Trials
from tamis.evaluators.stats import Interval, holm, spearman

Figure = dict[str, Any]
FEWEST_PROMPTS = 20
"""Under so many prompts with a verdict no logistic model is fitted."""
FEWEST_DIFFERENT = 10
"""A feature of style in which fewer rows differ is left out."""
MATCHED = 0.1
"""Answers whose lengths differ by less than this share of the longer one are of like length."""


def figure(found: Interval | None, n: int) -> Figure | None:
    """Return an interval as plain data with the number of rows behind it; None for no figure."""
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high, "n": n}


def _share(hits: np.ndarray, prompts: np.ndarray) -> Figure | None:
    return figure(statistics.share(hits, prompts), len(hits))


def agreement(t: Trials, rng: np.random.Generator) -> Figure:
    """Accuracy among the verdicts that name an answer, Cohen's kappa on them, and what became of all verdicts."""
    d = t.where(t.decided)
    # Where no order is shown each pair counts from both sides: which answer the file has first must not decide chance.
    sides = (1,) if t.swapped else (1, -1)
    known, said = (np.concatenate([side * values < 0 for side in sides]).astype(int) for values in (d.good, d.said))
    kappa = statistics.cohen_kappa(known, said, np.tile(d.prompts, len(sides)), rng)
    return {
        "accuracy": _share(d.right, d.prompts),
        "kappa": figure(kappa, len(d.said)),
        "ties": _share(t.said == 0, t.prompts),
        "no_answer": _share(np.isnan(t.said), t.prompts),
        "verdicts": len(t.said),
    }


def outcomes(t: Trials) -> Figure:
    """What became of each pair over both orders: right twice, wrong twice, flipped, or without two named answers."""
    there, back = _orders(t)
    named = there.decided & back.decided
    right = there.right & back.right
    wrong = named & ~there.right & ~back.right
    first = (there.said == 1) & (back.said == 1)
    second = (there.said == -1) & (back.said == -1)
    parts = {"right": right, "wrong": wrong, "first_place": first, "second_place": second, "open": ~named}
    return {name: _share(rows, there.prompts) for name, rows in parts.items()}


def place(t: Trials) -> Figure:
    """Flips on swap among the pairs that have a named answer in both orders, and which place they favour."""
    there, back = _orders(t)
    named = there.decided & back.decided
    flipped = named & (there.said == back.said)
    return {
        "flips": _share(flipped[named], there.prompts[named]),
        "flips_to_first": _share(there.said[flipped] == 1, there.prompts[flipped]),
        "first_named": _share(t.said[t.decided] == 1, t.prompts[t.decided]),
    }


def _orders(t: Trials) -> tuple[Trials, Trials]:
    half = np.arange(len(t.said)) < len(t.said) // 2
    return t.where(half), t.where(~half)


def length(t: Trials) -> Figure:
    """How often the longer answer is named, and accuracy where the better one is longer, shorter, or of like length."""
    d = t.where(t.decided)
    longer_good = d.length * d.good > 0
    shorter_good = d.length * d.good < 0
    matched = abs(d.length) < MATCHED * np.maximum(d.longest, 1)
    apart = d.length != 0
    return {
        "longer_named": _share((d.said * d.length > 0)[apart], d.prompts[apart]),
        "better_longer": _share(d.right[longer_good], d.prompts[longer_good]),
        "better_shorter": _share(d.right[shorter_good], d.prompts[shorter_good]),
        "matched": _share(d.right[matched], d.prompts[matched]),
    }


def effects(t: Trials) -> Figure:
    """What moves the verdict, as log-odds: place, the known better answer, length per standard deviation, style.

    One logistic model of "names the one shown first" on: 1 (place; only where both orders were asked), which one is better
    (+1 first, -1 second), the difference in length over its root mean square, and the differences in style. Ties and
    missing verdicts are left out.
    """
    d = t.where(t.decided)
    scale = float(np.sqrt((d.length**2).mean())) if len(d.length) else 0.0
    columns = {"quality": d.good}
    if t.swapped:
        columns = {"place": np.ones(len(d.said)), **columns}
    if scale:
        columns["length"] = d.length / scale
    return _fit(columns, d.style, (d.said == 1).astype(float), d.prompts, scale)


def _fit(columns: dict[str, np.ndarray], style: np.ndarray, y: np.ndarray, prompts: np.ndarray, scale: float) -> Figure:
    """Fit the columns and the features of style that differ often enough; p-values of the biases are Holm's."""
    found: Figure = {"fitted": [], "left_out": {}, "length_sd": scale, "prompts": len(np.unique(prompts))}
    if found["prompts"] < FEWEST_PROMPTS:
        found["why_not"] = f"verdicts on {found['prompts']} prompts, and a fit takes {FEWEST_PROMPTS}"
        return found
    columns = dict(columns)
    for name, values in zip(STYLES, style.T, strict=True):
        differs = int((values != np.median(values)).sum())
        if differs >= FEWEST_DIFFERENT:
            columns[name] = values
        else:
            found["left_out"][name] = f"{differs} verdicts differ in it, {FEWEST_DIFFERENT} are needed"
    kept = statistics.full_rank(list(columns.values()))
    names = [name for i, name in enumerate(columns) if i in kept]
    for name in columns.keys() - set(names):
        found["left_out"][name] = "it cannot be told apart from the others in these data"
    fit = statistics.logistic(np.column_stack([columns[name] for name in names]), y, prompts)
    biases = [i for i, name in enumerate(names) if name not in ("quality", "leniency")]
    adjusted = dict(zip(biases, holm(fit.p_values[biases]), strict=True)) if biases else {}
    found["fitted"] = [
        {
            "name": name,
            "value": float(fit.values[i]),
            "low": float(fit.intervals[i, 0]),
            "high": float(fit.intervals[i, 1]),
            "p_adjusted": float(adjusted[i]) if i in adjusted else None,
            "stands_out": bool(i in adjusted and adjusted[i] < 0.05),
            "unbounded": bool(fit.unbounded[i]),
        }
        for i, name in enumerate(names)
    ]
    return found


def groups(t: Trials, names: Sequence[str]) -> list[Figure]:
    """The main figures per group of the file; `names` has one per pair."""
    of_row = np.array(names)[t.pairs]
    rows = []
    for name in dict.fromkeys(names):
        part = t.where(of_row == name)
        row = {
            "group": name or "(none)",
            "n": len(np.unique(part.pairs)),
            "accuracy": _share(part.right[part.decided], part.prompts[part.decided]),
            "ties": int((part.said == 0).sum()),
            "no_answer": int(np.isnan(part.said).sum()),
        }
        if t.swapped:
            row |= {"right_twice": outcomes(part)["right"], "flips": place(part)["flips"]}
        rows.append(row)
    return rows


def item_groups(found: Labelled, names: Sequence[str]) -> list[Figure]:
    """Agreement per group of the file; `names` has one per answer."""
    rows = []
    for name in dict.fromkeys(names):
        part = np.array([n == name for n in names])
        named = part & (found.said >= 0)
        accuracy = _share((found.known == found.said)[named], found.prompts[named])
        rows.append(
            {
                "group": name or "(none)",
                "n": int(part.sum()),
                "accuracy": accuracy,
                "no_answer": int((part & ~named).sum()),
            }
        )
    return rows


def consistency(counts: np.ndarray, prompts: np.ndarray, rng: np.random.Generator) -> Figure:
    """Share of equal verdicts among two repeats, and Fleiss' kappa; `counts` (N, K) as `trials.repeat_counts` gives."""
    equal, kappa = statistics.consistency(counts, prompts, rng)
    return {"repeats": int(counts[0].sum()), "equal": figure(equal, len(counts)), "kappa": figure(kappa, len(counts))}


def calibration(p: np.ndarray, y: np.ndarray, prompts: np.ndarray, rng: np.random.Generator) -> Figure | None:
    """How probabilities meet outcomes; None where there are none but 0, 1/2 and 1, which say no more than a verdict does."""
    there = ~np.isnan(p)
    if not there.any() or np.isin(p[there], (0.0, 0.5, 1.0)).all():
        return None
    _, own = np.unique(prompts[there], return_inverse=True)
    c = statistics.calibration(p[there], y[there].astype(float), own, rng)
    bins = [
        {"low": i / len(c.bins), "high": (i + 1) / len(c.bins), "n": int(n), "mean": float(mean), "share": float(rate)}
        for i, (n, mean, rate) in enumerate(c.bins)
        if n
    ]
    three = {"ece": c.ece, "brier": c.brier, "log_loss": c.log_loss}
    return {name: figure(interval, c.n) for name, interval in three.items()} | {
        "reliability": c.reliability,
        "resolution": c.resolution,
        "uncertainty": c.uncertainty,
        "within": c.within,
        "clipped": c.clipped,
        "bins": bins,
    }


def of_items(found: Labelled, rng: np.random.Generator) -> Figure:
    """Agreement with the labels, what moves the verdict (for two labels), correlation with ratings, calibration."""
    named = found.said >= 0
    known, said, prompts = found.known[named], found.said[named], found.prompts[named]
    _, own = np.unique(prompts, return_inverse=True)
    size = len(found.labels)
    table = [[int(((known == i) & (said == j)).sum()) for j in range(size)] for i in range(size)]
    return {
        "agreement": {
            "accuracy": _share(known == said, prompts),
            "kappa": figure(statistics.cohen_kappa(known, said, own, rng), len(known)),
            "no_answer": _share(~named, found.prompts),
            "verdicts": len(named),
            "labels": list(found.labels),
            "table": table,
        },
        "effects": _item_effects(found, named) if size == 2 else None,
        "rating": _rating(found, rng),
        "calibration": calibration(found.confidence[named], known == said, own, rng),
    }


def _item_effects(found: Labelled, named: np.ndarray) -> Figure:
    """What makes the judge say the good label: leniency, the known label, length, style; lengths and styles centred."""
    length, style = found.length[named], found.style[named]
    scale = float(length.std()) if len(length) else 0.0
    columns = {"leniency": np.ones(len(length)), "quality": np.where(found.known[named] == 0, 1.0, -1.0)}
    if scale:
        columns["length"] = (length - length.mean()) / scale
    return _fit(columns, style, (found.said[named] == 0).astype(float), found.prompts[named], scale)


def _rating(found: Labelled, rng: np.random.Generator) -> Figure | None:
    """Spearman's correlation of scores with human ratings, with a bootstrap interval over prompts."""
    both = ~np.isnan(found.rating) & ~np.isnan(found.score)
    if both.sum() < 3:
        return None
    score, rating, prompts = found.score[both], found.rating[both], found.prompts[both]
    value = spearman(score, rating)
    if math.isnan(value):
        return None
    rows = [np.flatnonzero(prompts == p) for p in np.unique(prompts)]
    draws = (np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))]) for _ in range(500))
    found_all = np.array([spearman(score[d], rating[d]) for d in draws if len(d) > 1])
    low, high = np.nanquantile(found_all, [0.025, 0.975])
    return figure(Interval(value, min(value, float(low)), max(value, float(high))), int(both.sum()))
