"""What the figures of an audit say: three sentences, notes, and the rows of its tables. Never more than the figures do."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tamis.evaluators.stats import wilson
from tamis.report import wording

EFFECTS = {
    "place": "shown first, not second",
    "quality": "known to be better",
    "leniency": "leaning to the good label",
    "length": "longer",
    "headings": "has headings",
    "lists": "has lists",
    "bold": "has bold text",
    "numbers": "has numbers",
    "citations": "has citations",
}
FEW = 30


class Row(NamedTuple):
    """A line of a table: what, the figure, its 95% interval, and the number of rows behind it."""

    name: str
    value: str
    interval: str
    n: str


def share(figure: Mapping[str, Any] | None) -> str:
    """Return a share with its interval: "81.2% [73.1%, 87.4%]"; "–" for none."""
    return "–" if figure is None else f"{_value(figure, True)} {_span(figure, True)}"


def _value(figure: Mapping[str, Any], percent: bool) -> str:
    return wording.figure(figure["value"], True) if percent else f"{figure['value']:.3f}".replace("-", "−")


def _span(figure: Mapping[str, Any], percent: bool) -> str:
    return f"[{_value({'value': figure['low']}, percent)}, {_value({'value': figure['high']}, percent)}]"


def effect(found: Mapping[str, Any]) -> tuple[str, str]:
    """Return a log-odds with its sign, and its interval."""
    value, low, high = (f"{found[k]:+.2f}".replace("-", "−") for k in ("value", "low", "high"))
    return value, f"[{low}, {high}]"


def effect_name(name: str, scale: float) -> str:
    """Return what a log-odds is the price of."""
    return f"{EFFECTS[name]} by {scale:,.0f} characters (1 s.d.)" if name == "length" else EFFECTS[name]


def summary(result: Mapping[str, Any]) -> list[str]:
    """Return the verdict on the judge: how often it agrees, what place does, what length and style do."""
    return [_agreement(result), _place(result), _leanings(result)]


def _agreement(result: Mapping[str, Any]) -> str:
    found, pairs = result["agreement"], result["data"]["kind"] == "pairs"
    what = "names the better answer" if pairs else "gives the known label"
    accuracy = found["accuracy"]
    if accuracy is None:
        return f"The judge {result['judge']['name']} gave none of {found['verdicts']} verdicts that names an answer."
    text = f"The judge {result['judge']['name']} {what} in {share(accuracy)} of {accuracy['n']} verdicts that give one"
    if pairs and accuracy["low"] <= 0.5 <= accuracy["high"]:
        text += ", which is compatible with guessing (50%)"
    kappa = found["kappa"]
    if not pairs and kappa and kappa["low"] <= 0 <= kappa["high"]:
        text += f", which is compatible with chance (kappa {_value(kappa, False)} {_span(kappa, False)})"
    missing = [f"{share(found[k])} {name}" for k, name in MISSING.items() if found.get(k) and found[k]["value"] > 0]
    return f"{text}." + (f" Besides: {' and '.join(missing)}." if missing else "")


MISSING = {"ties": "are ties", "no_answer": "give no answer that can be read"}


def _place(result: Mapping[str, Any]) -> str:
    place = result.get("place")
    if place is None:
        return "It judges each answer by itself, so no place can sway it."
    if place["flips"] is None:
        return "No pair has a named answer in both orders, so nothing can be said about place."
    text = f"Its verdict follows the place, not the answer, in {share(place['flips'])} of {place['flips']['n']} pairs"
    found = _fitted(result).get("place")
    if found is None:
        return f"{text}."
    value, span = effect(found)
    lean = f"it favours the {'first' if found['value'] > 0 else 'second'} place" if found["stands_out"] else NO_PLACE
    return f"{text}; {lean} ({value} {span} log-odds)."


NO_PLACE = "a lean to one place does not stand out"


def _leanings(result: Mapping[str, Any]) -> str:
    effects, fitted = result.get("effects"), _fitted(result)
    if effects is None:
        return "What sways its verdicts is not told for more than two labels."
    if not fitted:
        return f"Nothing can be said about leanings to length or style: {effects['why_not']}."
    biases = {name: f for name, f in fitted.items() if name not in ("place", "quality", "leniency")}
    said = []
    for name, found in biases.items():
        if found["stands_out"]:
            value, span = effect(found)
            said.append(f"{_favoured(name, found['value'], effects['length_sd'])} ({value} {span} log-odds)")
    if not biases:
        return "The answers do not differ enough in length and style to tell leanings to them."
    if not said:
        return "A leaning to length or style does not stand out."
    return f"With the known {_known(result)} held fixed it favours {'; '.join(said)}."


def _known(result: Mapping[str, Any]) -> str:
    return "better answer" if result["data"]["kind"] == "pairs" else "label"


def _favoured(name: str, value: float, scale: float) -> str:
    if name == "length":
        return f"{'longer' if value > 0 else 'shorter'} answers, per {scale:,.0f} characters"
    return f"answers {'with' if value > 0 else 'without'} {EFFECTS[name].removeprefix('has ')}"


def _fitted(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {f["name"]: f for f in (result.get("effects") or {}).get("fitted", [])}


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader should know beside the figures."""
    effects, prompts = result.get("effects") or {}, result["data"]["prompts"]
    found = []
    if prompts < FEW:
        widest = wilson(prompts, prompts)
        found.append(
            f"These are {wording.count(prompts, 'prompt')}: even a judge right on all of them would be known to be right "
            f"in {100 * widest.low:.0f}% or more only. Figures are rough, and small biases cannot be seen."
        )
    endless = [EFFECTS[f["name"]] for f in effects.get("fitted", []) if f["unbounded"]]
    if endless:
        found.append(
            f"The verdicts can be told without error along: {', '.join(endless)}. No finite log-odds fits best there; read "
            "the signs, not the sizes."
        )
    left_out = [f"{EFFECTS[name]} ({why})" for name, why in effects.get("left_out", {}).items()]
    found += [f"Left out of the fit: {'; '.join(left_out)}."] if left_out else []
    repeats = result.get("consistency")
    if repeats and repeats["temperature"] is not None:
        found.append(
            f"The judge is greedy; its repeats were asked at temperature {repeats['temperature']:g}, where they can differ."
        )
    clipped = (result.get("calibration") or {}).get("clipped")
    if clipped:
        found.append(f"{clipped} probabilities of 0 or 1 count as 1e-6 from them in the log loss.")
    return found


def tables(result: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Return the rows of each table, by section."""
    found = {
        "agreement": list(_shares(result["agreement"], AGREEMENT)),
        "outcomes": list(_shares(result.get("outcomes"), OUTCOMES)),
        "place": list(_shares(result.get("place"), PLACE)),
        "length": list(_shares(result.get("length"), LENGTH)),
        "effects": [_effect_row(f, result["effects"]["length_sd"]) for f in _fitted(result).values()],
        "consistency": list(_shares(result.get("consistency"), CONSISTENCY)),
        "calibration": list(_shares(result.get("calibration"), CALIBRATION)),
        "rating": list(_shares({"rating": result.get("rating")}, {"rating": ("Spearman with human ratings", False)})),
    }
    return {name: rows for name, rows in found.items() if rows}


AGREEMENT = {
    "accuracy": ("agreement with the known answer", True),
    "kappa": ("Cohen's kappa", False),
    "ties": ("ties", True),
    "no_answer": ("no answer that can be read", True),
}
OUTCOMES = {
    "right": ("right in both orders", True),
    "wrong": ("wrong in both orders", True),
    "first_place": ("the first place in both orders", True),
    "second_place": ("the second place in both orders", True),
    "open": ("a tie or no answer in one order or both", True),
}
PLACE = {
    "flips": ("pairs flipped by a swap", True),
    "flips_to_first": ("of these, to the first place", True),
    "first_named": ("verdicts for the first place", True),
}
LENGTH = {
    "longer_named": ("verdicts for the longer answer", True),
    "better_longer": ("right where the better is longer", True),
    "better_shorter": ("right where the better is shorter", True),
    "matched": ("right where lengths differ by < 10%", True),
}
CONSISTENCY = {"equal": ("equal verdicts in two repeats", True), "kappa": ("Fleiss' kappa", False)}
CALIBRATION = {
    "ece": ("expected calibration error, 10 bins", False),
    "brier": ("Brier score", False),
    "log_loss": ("log loss, nats", False),
}


def _shares(figures: Mapping[str, Any] | None, names: Mapping[str, tuple[str, bool]]) -> Iterator[Row]:
    for key, (name, percent) in names.items():
        found = (figures or {}).get(key)
        if found:
            yield Row(name, _value(found, percent), _span(found, percent), f"{found['n']:,}")


def _effect_row(found: Mapping[str, Any], scale: float) -> Row:
    value, span = effect(found)
    p = "" if found["p_adjusted"] is None else wording.p_value(found["p_adjusted"])
    return Row(effect_name(found["name"], scale), value, span, p)


def cost_facts(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the verdicts cost, and how many were there already."""
    return [
        ("verdicts", f"{cost['verdicts']:,}"),
        ("there already", f"{cost['known']:,} of {cost['verdicts']:,}"),
        ("calls of the model", f"{cost['judge_calls']:,}"),
        ("tokens read", f"{cost['prompt_tokens']:,}"),
        ("tokens written", f"{cost['sampled_tokens']:,}"),
        ("time now", wording.seconds(cost["seconds"])),
        ("no readable answer", f"{cost['unreadable']:,} of {cost['verdicts']:,}"),
    ]
