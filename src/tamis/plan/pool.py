"""A whole pool from a part of it: prompts that were not sampled borrow the completions of one that was.

Selectors and composers can then be run as they will be, whether they keep so many per prompt, a share, or so many in all.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tamis.records import Completion, Example, Prompt, Verdict

MOST = 8192
"""Most completions of a pool that is filled up; beyond it, figures are scaled."""


@dataclass(frozen=True)
class Filled:
    """A filled pool: completions, verdicts, and for each of its prompts the sampled one it borrowed from (or itself)."""

    completions: list[Completion]
    verdicts: list[Verdict]
    donors: dict[str, str]


def fill(
    prompts: Sequence[Prompt],
    sampled: Sequence[str],
    lent: Collection[str],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    rng: np.random.Generator,
) -> Filled:
    """Return the pool of all train `prompts`, or as many as keep it below `MOST` completions.

    `sampled` are the ids of the prompts that have all their completions; of these, the others borrow those with ids in
    `lent` and keep their own. Every sampled prompt lends as often as any other, give or take one.
    """
    own: dict[str, list[Completion]] = {i: [] for i in sampled}
    for completion in completions:
        own.setdefault(completion.prompt_id, []).append(completion)
    said: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        said.setdefault(verdict.prompt_id, []).append(verdict)
    train, known = [p for p in prompts if p.split == "train"], set(sampled)
    others = [p.id for p in train if p.id not in known]
    rows = max(1.0, sum(len(own[i]) for i in sampled) / len(sampled))
    room = max(0, int(MOST / rows) - len(sampled))
    borrowers = [others[i] for i in rng.permutation(len(others))[:room]]
    donors = {i: i for i in sampled} | dict(zip(borrowers, _in_turn(sampled, len(borrowers), rng), strict=True))
    made: list[Completion] = []
    judged: list[Verdict] = []
    for prompt in train:
        if prompt.id not in donors:
            continue
        donor = donors[prompt.id]
        loans = [c for c in own[donor] if c.id in lent] if donor != prompt.id else []
        taken = [replace(c, prompt_id=prompt.id, id="") for c in loans]
        made += [*own.get(prompt.id, ()), *taken]
        judged += said.get(prompt.id, ())
        if taken:
            renamed = {c.id: t.id for c, t in zip(loans, taken, strict=True)}
            judged += [_of(v, prompt.id, renamed) for v in said.get(donor, ()) if renamed.keys() >= {*v.completion_ids}]
    return Filled(made, judged, donors)


def _in_turn(ids: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    rounds = -(-count // len(ids))
    return [ids[i] for _ in range(rounds) for i in rng.permutation(len(ids))][:count]


def _of(verdict: Verdict, prompt_id: str, renamed: Mapping[str, str]) -> Verdict:
    """Return the verdict as one on the same completions of another prompt."""
    return replace(
        verdict, prompt_id=prompt_id, completion_ids=tuple(renamed[i] for i in verdict.completion_ids), id=""
    )


def trained_by_donor(examples: Sequence[Example], donors: Mapping[str, str]) -> list[float]:
    """Return for each sampled prompt the trained tokens that a prompt with its completions gives on average."""
    sums, lent = dict.fromkeys(donors.values(), 0.0), dict.fromkeys(donors.values(), 0)
    for donor in donors.values():
        lent[donor] += 1
    for example in examples:
        if example.prompt_id in donors:
            targets = [t for t in (example.target, example.rejected) if t is not None]
            sums[donors[example.prompt_id]] += sum(w != 0 for t in targets for w in t.weights)
    return [sums[donor] / lent[donor] for donor in sums]
