"""report.html: one self-contained page made from a run folder. No script, no external resource, every text escaped."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.files import write_atomic
from tamis.report import examples, result, sections, wording
from tamis.report.material import Material
from tamis.runs import Run

if TYPE_CHECKING:
    from jinja2 import Template

CONTENTS = {
    "result": "Result",
    "setup": "What was run",
    "funnel": "From prompts to training data",
    "training": "Training",
    "sampling": "Sampling",
    "examples": "Examples to read",
    "cost": "Cost",
    "recipe": "Recipe",
    "reproduce": "Reproduce",
}


def write_report(run: Run) -> Path:
    """Write `report.html` into the run folder, atomically; returns its path. Raises StoreError when it cannot."""
    path = run.path / "report.html"
    write_atomic(path, render_report(run))
    return path


def render_report(run: Run) -> str:
    """Return the report of a finished, failed or running run as one HTML page. Raises StoreError for a damaged folder."""
    return wording.visible(_template().render(page(Material.read(run))))


def page(m: Material) -> dict[str, Any]:
    """Return everything the template shows, as plain data."""
    return {
        "name": m.name,
        "status": m.manifest.get("status", ""),
        "error": m.manifest.get("error", ""),
        "made": str(m.manifest.get("created", "")),
        "version": m.manifest.get("tamis", ""),
        "contents": CONTENTS,
        "headline": result.headline(m),
        "setup": sections.setup(m),
        "funnel": sections.funnel(m),
        "training": sections.training(m),
        "sampling": sections.sampling(m),
        "comparisons": examples.comparisons(m),
        "trained": examples.trained(m),
        "ledger": sections.ledger(m),
        "reproduce": sections.reproduce(m),
    }


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tamis.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html.j2")
