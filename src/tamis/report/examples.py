"""Examples to read: held-out answers before and after tuning, and what was trained on. Chosen by order, never by hand."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tamis.records import Completion, Example, Prompt, Target, Verdict
from tamis.report import wording
from tamis.report.material import ACCEPT, Material

SHOWN = {"gained": 4, "lost": 4, "kept_wrong": 2, "kept_right": 2}
TITLES = {
    "gained": ("Gained", "wrong before, right after"),
    "lost": ("Lost", "right before, wrong after"),
    "kept_wrong": ("Still wrong", "wrong before and after"),
    "kept_right": ("Still right", "right before and after"),
}
TRAINED = 5


class Answers:
    """One side's held-out answers: of each prompt the greedy one, or else the first sample."""

    def __init__(self, completions: Sequence[Completion], verdicts: Iterable[Verdict]) -> None:
        ranked = sorted(completions, key=lambda c: (c.law.temperature > 0, c.index))
        self.of: dict[str, Completion] = {}
        self.size: dict[str, int] = {}
        for completion in ranked:
            chosen = self.of.setdefault(completion.prompt_id, completion)
            same = chosen.law == completion.law
            self.size[completion.prompt_id] = self.size.get(completion.prompt_id, 0) + same
        self.verdict: dict[str, Verdict] = {}
        for verdict in (v for v in verdicts if len(v.completion_ids) == 1):
            if verdict.score is not None or verdict.completion_ids[0] not in self.verdict:
                self.verdict[verdict.completion_ids[0]] = verdict

    def right(self, prompt_id: str) -> bool:
        """Whether the answer shown for a prompt has a score of at least 0.5."""
        found = self.of.get(prompt_id)
        verdict = self.verdict.get(found.id) if found else None
        return verdict is not None and verdict.score is not None and verdict.score >= ACCEPT

    def show(self, prompt_id: str, side: str) -> dict[str, Any] | None:
        """Return text and verdict of a prompt's answer, None where there is none."""
        found = self.of.get(prompt_id)
        if found is None:
            return None
        verdict = self.verdict.get(found.id)
        several = self.size[prompt_id]
        return {
            "side": side + (f", first of {several} samples" if several > 1 else ""),
            "text": wording.cut(found.text),
            "cut_short": found.finish_reason == "length",
            "right": self.right(prompt_id),
            "label": verdict.label.replace("_", " ") if verdict else "not judged",
            "rationale": wording.cut(verdict.rationale, 240, 60) if verdict else "",
        }


def comparisons(m: Material) -> list[dict[str, Any]]:
    """Return groups of held-out cases, gained and lost first; without an "after" side, right and wrong answers."""
    before, after = (Answers(*m.heldout[side]) for side in ("before", "after"))
    ids = list(before.of or after.of)
    if not ids:
        return []
    if not (before.of and after.of):
        only, side = (before, "before tuning") if before.of else (after, "after tuning")
        groups = {"Right": [i for i in ids if only.right(i)], "Wrong": [i for i in ids if not only.right(i)]}
        return [_group(m, name, side, found, {side: only}, 3) for name, found in groups.items() if found]
    moved = _moves(before, after, ids)
    sides = {"before": before, "after": after}
    return [_group(m, *TITLES[name], moved[name], sides, most) for name, most in SHOWN.items() if moved[name]]


def _moves(before: Answers, after: Answers, ids: Sequence[str]) -> dict[str, list[str]]:
    """Sort prompts by the verdicts on the two answers that are shown; for greedy accuracy these are the metric's own."""
    names = {(False, True): "gained", (True, False): "lost", (False, False): "kept_wrong", (True, True): "kept_right"}
    moved: dict[str, list[str]] = {name: [] for name in names.values()}
    for i in ids:
        moved[names[before.right(i), after.right(i)]].append(i)
    return moved


def _group(
    m: Material, title: str, about: str, ids: Sequence[str], sides: Mapping[str, Answers], most: int
) -> dict[str, Any]:
    prompts = m.pool.prompts
    cases = [
        {"prompt": _prompt(prompts.get(i)), "answers": [a for s, x in sides.items() if (a := x.show(i, s))]}
        for i in ids[:most]
    ]
    return {"title": title, "about": about, "total": len(ids), "cases": cases}


def _prompt(prompt: Prompt | None) -> dict[str, Any]:
    if prompt is None:
        return {"text": "[the prompt is not in this run]", "references": [], "source": ""}
    return {
        "text": wording.cut(prompt.text),
        "references": [wording.cut(r, 240, 120) for r in prompt.references[:3]],
        "source": prompt.source,
    }


def trained(m: Material) -> list[dict[str, Any]]:
    """Return up to five training examples, evenly spaced through the training set."""
    if not m.examples:
        return []
    at = np.unique(np.linspace(0, len(m.examples) - 1, TRAINED).round().astype(int)).tolist()
    return [_trained(m.examples[i], i + 1) for i in at]


def _trained(example: Example, number: int) -> dict[str, Any]:
    facts = [f"{sum(w > 0 for w in example.target.weights):,} of {len(example.target.token_ids):,} tokens trained"]
    if example.weight != 1:
        facts.append(f"weight {example.weight:.4g}")
    if example.reward is not None:
        facts.append(f"reward {example.reward:.4g}")
    if example.margin is not None:
        facts.append(f"margin {example.margin:.4g}")
    if not example.target.ended:
        facts.append("its end is not trained")
    return {
        "number": number,
        "kind": example.kind,
        "facts": facts,
        "messages": _messages(example.target, "chosen" if example.rejected else ""),
        "rejected": _messages(example.rejected, "rejected")[-1:] if example.rejected else [],
    }


def _messages(target: Target, tone: str) -> list[dict[str, Any]]:
    last = len(target.messages) - 1
    return [
        {"role": x.role, "text": wording.cut(x.content), "tone": (tone or "trained") if i == last else ""}
        for i, x in enumerate(target.messages)
    ]
