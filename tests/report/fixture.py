"""A realistic run folder on disk, made without a model: additions, 200 prompts x 8 samples, held-out before and after."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tamis.evaluators.stats import paired, wilson
from tamis.files import write_atomic, write_json
from tamis.hashing import digest, rng
from tamis.records import Completion, Cost, Example, Law, Message, Prompt, Record, Target, Turn, Verdict
from tamis.runs import Run
from tamis.store import StageFolder, Unit

SAMPLED = Law(temperature=0.9, max_new_tokens=48)
GREEDY = Law(temperature=0.0, max_new_tokens=48)


@dataclass
class Parts:
    """The records of a run; a test changes some before they are written."""

    prompts: list[Prompt] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    selected: list[str] | None = None
    examples: list[Example] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    heldout: dict[str, tuple[list[Completion], list[Verdict]]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    status: str = "done"
    error: str = ""


def addition(index: int, split: str) -> Prompt:
    draw = rng("addition", split, index)
    terms = [int(t) for t in draw.integers(2, 999, size=2 + index % 4)]
    question = f"What is {' + '.join(map(str, terms))}? Show each step, then end with “#### answer”."
    return Prompt(
        (Message("user", question),),
        (f"#### {sum(terms)}",),
        "reasoning_gym",
        {"terms": terms},
        split,
        f"chain_sum:{index}",
    )


def answer(prompt: Prompt, right: bool, index: int, law: Law, model: str) -> Completion:
    draw = rng(prompt.id, index, model)
    terms = prompt.metadata["terms"]
    total, lines = terms[0], []
    for term in terms[1:]:
        lines.append(f"{total} + {term} = {total + term}")
        total += term
    length_cut = not right and draw.random() < 0.3
    shown = total if right else total + int(draw.choice([-10, -1, 1, 10]))
    text = "\n".join(lines) + ("\nso that is" if length_cut else f"\n#### {shown}")
    tokens = 48 if length_cut else 12 + 7 * len(terms) + int(draw.integers(0, 6))
    reason = "length" if length_cut else "stop"
    return Completion(
        prompt.id,
        (Turn("assistant", text),),
        index,
        tuple(range(tokens)),
        finish_reason=reason,
        model=model,
        sampler="temperature",
        law=law,
        cost=Cost(prompt_tokens=40 if index == 0 else 0, sampled_tokens=tokens),
    )


def judged(completion: Completion, right: bool, gold: str) -> Verdict:
    if completion.finish_reason == "length":
        return Verdict(
            completion.prompt_id, (completion.id,), "answer", None, "unparseable_answer", None, "no final answer found"
        )
    found = completion.text.rsplit("#### ", 1)[1]
    return Verdict(
        completion.prompt_id,
        (completion.id,),
        "answer",
        float(right),
        "correct" if right else "wrong",
        None,
        f"extracted {found!r}, gold {gold[5:]!r}",
    )


def side(prompts: list[Prompt], name: str, ease: float) -> tuple[list[Completion], list[Verdict]]:
    completions, verdicts = [], []
    for index, prompt in enumerate(prompts):
        skill = ease - 0.1 * len(prompt.metadata["terms"])
        right = bool(rng("skill", index).random() * 0.6 + rng(name, index).random() * 0.4 < skill)
        completions.append(answer(prompt, right, 0, GREEDY, name))
        verdicts.append(judged(completions[-1], right, prompt.references[0]))
    return completions, verdicts


def metric(name: str, before: dict[str, float], after: dict[str, float], **more: Any) -> dict[str, Any]:
    def figures(items: dict[str, float]) -> dict[str, Any]:
        found = wilson(int(sum(items.values())), len(items))
        return {"value": found.value, "low": found.low, "high": found.high, "n": len(items), "notes": {"truncated": 9}}

    difference = paired(before, after, rng(name))
    return {
        "evaluator": name,
        "name": name,
        "unit": "",
        "higher_is_better": True,
        "before": figures(before),
        "after": figures(after),
        "difference": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(difference).items()},
    } | more


def example(prompt: Prompt, completion: Completion) -> Example:
    messages = (*prompt.messages, Message("assistant", completion.text))
    size = len(completion.token_ids)
    target = Target(messages, token_ids=tuple(range(40 + size)), weights=(0.0,) * 40 + (1.0,) * size)
    return Example("sft", prompt.id, target, sources=(completion.id,))


def curve(steps: int, seed: str = "loss", start: float = 1.15) -> list[dict[str, Any]]:
    draw = rng(seed)
    return [
        {
            "step": step + 1,
            "loss": round(start * 0.985**step + 0.21 + 0.06 * float(draw.standard_normal()), 5),
            "lr": 2e-4 * (1 - step / steps),
            "trained_tokens": 400 * (step + 1),
            "seconds": 0.8 * (step + 1),
        }
        for step in range(steps)
    ]


RECIPE: dict[str, Any] = {
    "name": "rft",
    "row": 1,
    "about": "Keep the model's own correct and distinct solutions, then fine-tune on them.",
    "model": "smollm2-135m",
    "task": {"reasoning_gym": {"name": "chain_sum", "size": 200, "heldout": 200}},
    "seed": 0,
    "loop": 1,
    "stages": [
        {"sample": {"temperature": {"n": 8, "temperature": 0.9, "max_new_tokens": 48}}},
        {"judge": {"answer": {"kind": "numeric"}}},
        {"select": {"distinct_reasoning": {"per_prompt": 4}}},
        {"compose": {"accepted_sft": {}}},
        {"tune": {"objective": {"sft": {}}, "adapter": {"lora": {"r": 16}}, "epochs": 2}},
        {"evaluate": {"accuracy": {}}},
    ],
}


def parts() -> Parts:
    """Everything of a finished run of 200 training and 200 held-out prompts."""
    train = [addition(i, "train") for i in range(200)]
    held = [addition(i, "heldout") for i in range(200)]
    made = Parts(prompts=train + held, recipe=RECIPE, curve=curve(120), selected=[])
    for prompt in train:
        rate = float(rng("rate", prompt.id).beta(1.1, 1.6))
        kept = 0
        for index in range(8):
            right = bool(rng("right", prompt.id, index).random() < rate)
            completion = answer(prompt, right, index, SAMPLED, "base")
            made.completions.append(completion)
            made.verdicts.append(judged(completion, right, prompt.references[0]))
            if right and kept < 4:
                kept += 1
                made.selected.append(completion.id)
                made.examples.append(example(prompt, completion))
    made.heldout = {"before": side(held, "before", 0.75), "after": side(held, "after", 0.88)}
    scores = {s: {v.prompt_id: v.score or 0.0 for v in made.heldout[s][1]} for s in made.heldout}
    made.rows = [metric("accuracy", scores["before"], scores["after"])]
    made.dropped = {
        "task": [{"record": f"chain_sum:{900 + i}", "reason": "duplicate prompt"} for i in range(17)]
        + [{"record": "chain_sum:431", "reason": "prompt too long"}],
        "compose": [{"record": c.id, "reason": "same text twice"} for c in made.completions[:23]],
    }
    return made


def write_run(folder: Path, made: Parts, reused: tuple[str, ...] = ("task", "sample")) -> Run:
    """Write the parts as a run folder with real stage folders; a stage without records is left out."""
    stages: list[tuple[str, str, dict[str, list[Record]]]] = [
        ("task", "reasoning_gym", {"prompts": list(made.prompts)})
    ]
    if made.completions:
        stages.append(("sample", "temperature", {"completions": list(made.completions)}))
    if made.verdicts:
        stages.append(("judge", "answer", {"verdicts": list(made.verdicts)}))
    if made.selected is not None:
        stages.append(("select", "distinct_reasoning", {}))
    if made.examples:
        stages.append(("compose", "accepted_sft", {"examples": list(made.examples)}))
    if made.curve:
        stages.append(("tune", "sft+lora", {}))
    for name, (completions, verdicts) in made.heldout.items():
        stages.append((f"evaluate_{name}", "accuracy", {"completions": list(completions), "verdicts": list(verdicts)}))
    entries = [_stage(folder, number, made, *stage, reused) for number, stage in enumerate(stages, 1)]
    write_atomic(folder / "recipe.yaml", yaml.safe_dump(made.recipe or RECIPE, sort_keys=False, allow_unicode=True))
    write_json(folder / "manifest.json", _manifest(made, entries))
    if made.rows:
        write_json(folder / "metrics.json", {"rows": made.rows})
    return Run(folder)


def _stage(
    folder: Path,
    number: int,
    made: Parts,
    kind: str,
    component: str,
    records: dict[str, list[Record]],
    reused: tuple[str, ...],
) -> dict[str, Any]:
    import json

    key = digest(kind, number)
    stage = StageFolder(folder / f"{number:02d}-{kind}-{key[:12]}", key)
    stage.path.mkdir(parents=True, exist_ok=True)
    cost = Cost(trained_tokens=48_000) if kind == "tune" else Cost()
    for record in (r for group in records.values() for r in group):
        cost = cost + record.cost  # type: ignore[attr-defined]
    dropped = made.dropped.get(kind, [])
    unit = Unit(records, cost, dropped=dropped)
    unit.counts.update(f"dropped: {d['reason']}" for d in dropped)
    stage.write_unit("all", 0, unit, seconds=3.7 * number**2)
    if kind == "select":
        write_json(stage.path / "selection.json", {"completion_ids": made.selected, "weights": None})
    if kind == "tune":
        write_atomic(stage.path / "curve.jsonl", "".join(json.dumps(row) + "\n" for row in made.curve))
    info = stage.finish({"kind": kind, "component": component})
    return {"folder": stage.path.name, "kind": kind, "component": component, "key": key, "status": "done"} | {
        "reused": kind in reused,
        **{k: info[k] for k in ("seconds", "cost", "counts", "notes")},
    }


def _manifest(made: Parts, stages: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "tamis": "0.1.0",
        "created": "2025-11-23T20:44:00+00:00",
        "status": made.status,
        "error": made.error,
        "seed": 0,
        "model": {"name": "smollm2-135m", "identity": digest("smollm2-135m")},
        "versions": {
            "python": "3.12.3",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "peft": "0.20.0",
            "numpy": "2.3.1",
        },
        "machine": {"system": "Linux x86_64", "cpu_count": 2, "memory_gb": 8, "device": "cpu"},
        "stages": stages,
    }
