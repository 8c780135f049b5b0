"""What a run folder holds, read once for the whole report."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tamis.pool import Pool
from tamis.records import Completion, Example, Prompt, Verdict
from tamis.runs import Run

ACCEPT = 0.5


@dataclass(frozen=True)
class Material:
    """The records and figures of a run. Lists are empty, and `selected` is None, where a stage is missing or not done."""

    name: str
    place: str
    recipe: dict[str, Any]
    manifest: dict[str, Any]
    prompts: list[Prompt]
    completions: list[Completion]
    verdicts: list[Verdict]
    selected: list[str] | None
    examples: list[Example]
    curve: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    heldout: dict[str, tuple[list[Completion], list[Verdict]]]
    dropped: list[dict[str, Any]]

    @classmethod
    def read(cls, run: Run) -> "Material":
        """Read everything the report shows. Raises StoreError for a damaged run folder."""
        manifest = run.manifest
        selecting = any(s["kind"] == "select" and s.get("status") == "done" for s in manifest["stages"])
        return cls(
            name=run.name,
            place=f"{run.path.resolve().parent.name}/{run.name}",
            recipe=run.recipe,
            manifest=manifest,
            prompts=run.prompts(),
            completions=run.completions(),
            verdicts=run.verdicts(),
            selected=run.selected() if selecting else None,
            examples=run.examples,
            curve=run.curve(),
            rows=list(run.metrics.get("rows", [])),
            heldout={side: run.heldout(side) for side in ("before", "after")},
            dropped=run.dropped(),
        )

    @cached_property
    def pool(self) -> Pool:
        """The completions sampled for training with their prompts and verdicts."""
        return Pool({p.id: p for p in self.prompts}, self.completions, self.verdicts)

    @cached_property
    def accepted(self) -> list[bool]:
        """Whether each completion has a score of at least 0.5; empty when nothing is judged."""
        return [self.pool.accepted(i, ACCEPT) for i in range(len(self.pool))] if self.verdicts else []

    @cached_property
    def refusals(self) -> Counter[str]:
        """How often each verdict label stands behind a completion that is not accepted."""
        of = self.pool.verdicts_of
        refused = [c.id for c, kept in zip(self.completions, self.accepted, strict=False) if not kept]
        return Counter((of[i][-1].label or "score below 0.5") if i in of else "not judged" for i in refused)

    @property
    def model(self) -> str:
        """The name of the model the run starts from."""
        return str(self.manifest.get("model", {}).get("name") or self.recipe.get("model", "the model"))

    @property
    def train_prompts(self) -> int:
        """How many prompts were there to sample from."""
        return sum(p.split != "heldout" for p in self.prompts)

    @property
    def tuned(self) -> bool:
        """Whether a tune stage is done."""
        return any(s["kind"] == "tune" and s.get("status") == "done" for s in self.manifest["stages"])
