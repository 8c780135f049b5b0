"""Pages made from the registry: one per method, for `tamis methods NAME` and for docs/methods/."""

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from tamis import recipe as recipes
from tamis import registry
from tamis.errors import ModelError
from tamis.needs import HINT, WORDS, require
from tamis.registry import Component

SOURCES = {"paper": "paper", "code": "official code", "ours": "our choice"}


def component_page(component: Component) -> str:
    """Return a component's page as Markdown: use, fields with defaults and provenance, needs."""
    lines = [f"# {component.name} ({component.room})", "", component.page, ""]
    facts = [("paper", component.paper), ("row", component.row), ("needs", ", ".join(component.needs))]
    lines += [f"- {name}: {value}" for name, value in facts if value]
    options = component.options()
    if options:
        lines += ["", "| option | type | default | meaning | from |", "|---|---|---|---|---|"]
        lines += [_option_row(o) for o in options]
    return "\n".join(lines)


def _option_row(option: dict[str, Any]) -> str:
    default = "required" if option["required"] else f"`{option['default']!r}`"
    kind = option["type"].replace("|", "\\|")
    meaning = option["about"].replace("|", "\\|")
    return f"| {option['name']} | `{kind}` | {default} | {meaning} | {SOURCES[option['source']]} |"


def recipe_page(name: str) -> str:
    """Return a recipe's page as Markdown: use, claim check, the YAML, the pages of its parts by name."""
    recipe = recipes.load(name)
    lines = [f"# {name} (recipe)", "", recipe.about, ""]
    lines += [f"- paper: {recipe.paper}"] if recipe.paper else []
    lines += [f"- row: {recipe.row}"] if recipe.row else []
    lines += [f"- try it in seconds: `tamis run {name} --lab`", f"- its claim, measured: `tamis check {name}`"]
    source = files("tamis.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return "\n".join([*lines, "", "```yaml", source.rstrip(), "```"])


def write_pages(folder: Path) -> list[Path]:
    """Write one page per recipe and component and an index into `folder`/methods. Returns the paths."""
    target = folder / "methods"
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.md"):
        old.unlink()
    index = [
        "# Methods",
        "",
        "Generated from the registry by `make docs`.",
        "",
        "| name | kind | row | use |",
        "|---|---|---|---|",
    ]
    for name in recipes.names():
        recipe = recipes.load(name)
        (target / f"recipe-{name}.md").write_text(recipe_page(name) + "\n", encoding="utf-8")
        index.append(f"| [{name}](recipe-{name}.md) | recipe | {recipe.row or ''} | {recipe.about} |")
    for component in registry.components():
        page = f"{component.room}-{component.name}.md"
        (target / page).write_text(component_page(component) + "\n", encoding="utf-8")
        index.append(f"| [{component.name}]({page}) | {component.room} | {component.row or ''} | {component.about} |")
    (target / "index.md").write_text("\n".join(index) + "\n", encoding="utf-8")
    return sorted(target.glob("*.md"))


def write_samplers(folder: Path) -> Path:
    """Write `folder`/samplers.md: what each sampler needs of its model, and what is said of a model that lacks it."""
    url = "http://localhost:8000/v1#model"
    lines = [
        "# Samplers, and what they need",
        "",
        "Generated from the registry by `make docs`. A local model offers text, log-probabilities and next-token logits; an",
        "endpoint offers text alone. What a recipe needs is checked before anything runs.",
        "",
        "| sampler | needs | an endpoint will do | asks a judge | use |",
        "|---|---|---|---|---|",
    ]
    refusals = []
    for component in registry.components("sampler"):
        needs = ", ".join(WORDS[need] for need in component.needs) or "no model"
        refusal = _refusal(component, url)
        refusals += [refusal] if refusal else []
        asks = "yes" if getattr(component.cls, "needs_judge", False) else "no"
        name = f"[{component.name}](methods/sampler-{component.name}.md)"
        lines.append(f"| {name} | {needs} | {'no' if refusal else 'yes'} | {asks} | {component.about} |")
    lines += ["", f"Where an endpoint will not do, `{url}` is refused:", "", "```text", "\n\n".join(refusals), "```"]
    path = folder / "samplers.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _refusal(component: Component, model: str) -> str:
    """What `tamis` says where this model cannot do what the component needs, "" where it can."""
    try:
        require(f"{component.room} '{component.name}'", component.needs, model, HINT)
    except ModelError as error:
        return str(error)
    return ""


def write_evidence(folder: Path) -> Path:
    """Write `folder`/evidence.md from the results that `tamis check --out FOLDER/evidence` left there; returns its path."""
    lines = [
        "# Evidence",
        "",
        "What each method's paper claims, tried in a small world whose truth is known. Seeds are fixed beforehand; a gate",
        "that does not hold is reported as not holding. `tamis check NAME` measures it again.",
        "",
        "| method | row | claim holds | gates | seeds | seconds |",
        "|---|---|---|---|---|---|",
    ]
    results = [json.loads(p.read_text(encoding="utf-8")) for p in (folder / "evidence").glob("*.json")]
    results.sort(key=lambda r: r["row"])
    for result in results:
        gates = [f["holds"] for f in result["figures"] if f["kind"] == "gate"]
        holds = "yes" if result["holds"] else "**no**"
        counts = f"{sum(gates)} of {len(gates)}"
        lines.append(
            f"| [{result['name']}](evidence/{result['name']}.md) | {result['row']} | {holds} | {counts} | "
            f"{len(result['seeds'])} from {min(result['seeds'])} | {result['seconds']:.0f} |"
        )
    for result in results:
        lines += ["", f"## {result['name']}", "", result["claim"]]
        if (folder / "evidence" / f"{result['name']}.svg").exists():
            lines += ["", f"![figures of {result['name']}](evidence/{result['name']}.svg)"]
    path = folder / "evidence.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    target = Path(sys.argv[1])
    print(f"{len(write_pages(target))} pages, {write_samplers(target)}, {write_evidence(target)}")
