"""audit.html, one self-contained page without script, and what the terminal prints."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from tamis.audit import words
from tamis.report import charts, wording
from tamis.report.charts import Interval

if TYPE_CHECKING:
    from jinja2 import Template

    from tamis.audit.run import AuditResult

SECTIONS = {
    "agreement": ("Agreement", "How often the judge says what is known, ties and unreadable answers apart."),
    "outcomes": ("Both orders", "What became of each pair when it was shown in both orders."),
    "place": ("Place", "Whether the verdict changes when only the order does."),
    "length": ("Length", "Whether longer answers win, also where they should not."),
    "effects": (
        "What sways the verdict",
        "Log-odds of being named, from one logistic model with all of these in it; 0 is no effect. Bars are 95% intervals; "
        "p-values are adjusted together (Holm), and those below 0.05 are marked.",
    ),
    "consistency": ("Asked again", "Whether the judge says the same of the same answers, sampled anew."),
    "calibration": ("Probabilities", "Whether what it calls 80% likely is so in 80 of 100 cases."),
    "rating": ("Human ratings", "Whether its scores order the answers as people do."),
}
HEADS = {"effects": ("log-odds", "95% interval", "p, adjusted")}


def render(result: Mapping[str, Any]) -> str:
    """Return the page of an audit, from the data of audit.json."""
    tables = words.tables(result)
    drawn = {"effects": _effects(result), "calibration": _reliability(result)}
    sections = [
        {
            "id": name,
            "title": SECTIONS[name][0],
            "about": SECTIONS[name][1],
            "heads": HEADS.get(name, ("figure", "95% interval", "n")),
            "rows": rows,
            "chart": drawn.get(name, ""),
        }
        for name, rows in tables.items()
    ]
    page = {
        "result": result,
        "sections": sections,
        "groups": _groups(result),
        "group_chart": _group_chart(result),
        "facts_of_audit": _facts(result),
        "costs": words.cost_facts(result["cost"]),
        "table": result["agreement"].get("table"),
        "labels": result["agreement"].get("labels"),
    }
    return wording.visible(_template().render(page))


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    judge, data = result["judge"], result["data"]
    left = [f"{n} left out: {reason}" for reason, n in data["left_out"].items()]
    left += [f"{data['not_drawn']} not drawn"] if data["not_drawn"] else []
    options = ", ".join(f"{k}: {v}" for k, v in judge["options"].items() if v not in (None, ""))
    used = f"{data['file']}: {data['used']} {'answers' if data['kind'] == 'items' else 'pairs'}"
    return [
        ("Judge", judge["name"] + (f" ({options})" if options else "")),
        ("Model", judge["model"] or "none is asked"),
        ("Data", "; ".join([f"{used}, {data['prompts']} prompts", *left])),
        ("Seed", str(result["seed"])),
        ("Made", f"{result['made'][:16].replace('T', ' ')} by tamis {result['tamis']}"),
    ]


def _effects(result: Mapping[str, Any]) -> str:
    effects = result.get("effects") or {}
    groups = [
        (
            words.effect_name(f["name"], effects["length_sd"]),
            [
                Interval(
                    "", f["value"], f["low"], f["high"], words.effect(f)[0], "worse" if f["stands_out"] else "after"
                )
            ],
        )
        for f in effects.get("fitted", [])
    ]
    return charts.responsive(
        lambda width: charts.interval_plot(groups, title="Log-odds with 95% intervals", reference=0.0, width=width)
    )


def _reliability(result: Mapping[str, Any]) -> str:
    bins = (result.get("calibration") or {}).get("bins") or []
    if not bins:
        return ""
    judge = ("the judge", [b["mean"] for b in bins], [b["share"] for b in bins])
    return charts.responsive(
        lambda width: charts.line_chart(
            [judge, ("perfect", [0, 1], [0, 1])],
            title="Share that came true, by the probability given",
            x_label="probability given",
            from_zero=True,
            width=width,
        )
    )


def _groups(result: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = result.get("groups") or []
    return [
        {
            "group": row["group"],
            "n": str(row["n"]),
            "agreement": words.share(row["accuracy"]),
            **({"right in both orders": words.share(row["right_twice"])} if "right_twice" in row else {}),
            **({"flipped by a swap": words.share(row["flips"])} if "flips" in row else {}),
            **({"ties": str(row["ties"])} if "ties" in row else {}),
            "no answer": str(row["no_answer"]),
        }
        for row in (rows if len(rows) > 1 else [])
    ]


def _group_chart(result: Mapping[str, Any]) -> str:
    rows = [row for row in result.get("groups") or [] if row["accuracy"]]
    if len(rows) < 2:
        return ""
    groups = [
        (
            row["group"],
            [
                Interval(
                    "", a["value"], a["low"], a["high"], words.share(a).replace("[", "(").replace("]", ")"), "after"
                )
            ],
        )
        for row in rows
        for a in [row["accuracy"]]
    ]
    return charts.responsive(
        lambda width: charts.interval_plot(
            groups,
            title="Agreement by group",
            form=lambda v: wording.figure(v, True),
            bounds=(0, 1),
            reference=0.5 if result["data"]["kind"] == "pairs" else None,
            width=width,
        )
    )


@cache
def _template() -> "Template":
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader("tamis.audit", "."), PackageLoader("tamis.report", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def print_audit(result: "AuditResult") -> None:
    """Print the sentences, the figures, the groups, what it cost, and where the page is."""
    from tamis.report.tables import console, table

    out, figures = console(), result.figures
    for sentence in (*figures["summary"], *figures["notes"]):
        out.print(sentence, markup=False)
    for name, rows in words.tables(figures).items():
        out.print()
        out.print(table(SECTIONS[name][0].lower(), *HEADS.get(name, ("figure", "95% interval", "n")), rows=rows))
    groups: Sequence[Mapping[str, str]] = _groups(figures)
    if groups:
        out.print()
        out.print(table(*groups[0], rows=[list(row.values()) for row in groups]))
    cost = figures["cost"]
    out.print()
    for reason, n in figures["data"]["left_out"].items():
        out.print(f"{n} rows left out: {reason} (rejected.jsonl)", markup=False)
    out.print(f"{cost['known']} of {cost['verdicts']} verdicts were there already", markup=False)
    out.print("; ".join(f"{value} {name}" for name, value in words.cost_facts(cost)[2:]), markup=False)
    if result.folder:
        out.print(f"\npage  {result.folder / 'audit.html'}", markup=False)
