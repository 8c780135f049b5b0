"""Sampler `dart`: more tries for harder prompts, until each has its share of correct completions.

Row 25 (DART-Math, Tong et al. 2024, arXiv 2407.13690). The targets are in `tamis.difficulty`; the selector
`first_accepted` trims to them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from tamis import difficulty
from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.pool import Pool
from tamis.records import Completion, Law, Prompt, Verdict
from tamis.registry import option, sampler


@dataclass
class Tally:
    """What the tries of one prompt gave so far; `usable` are the correct texts that count toward the target."""

    tries: int = 0
    correct: int = 0
    tokens: int = 0
    usable: list[str] = field(default_factory=list)

    def add(self, completion: Completion, accepted: bool, dedup: str) -> None:
        """Count one try; where its cost is not known (a failure, a server that reports none) the law's limit stands for it."""
        self.tries += 1
        self.tokens += completion.cost.sampled_tokens or completion.law.max_new_tokens
        self.correct += accepted
        if accepted and (dedup == "none" or completion.text not in self.usable):
            self.usable.append(completion.text)


@sampler("dart", row=25, paper="DART-Math (Tong et al. 2024)", needs=("text",))
class DifficultyAware:
    """Sample each prompt until it has its target of correct completions, or `max_tries` tries.

    uniform: the target is k everywhere. prop2diff: `n_probe` tries of every prompt measure its difficulty d = 1 - pass rate;
    the target is max(1, ceil(k * d / max d)). Rounds ask each unfinished prompt for as many tries as its pass rate
    suggests, at most `round_cap`. Try j of a prompt depends on the seed, the prompt and j alone, so rounds and workers do
    not matter. All tries are kept, probes too; the selector `first_accepted` trims to the targets. Prompts that miss their
    target are listed with their tries. Needs a judge and prompts with references. High temperatures suit models that
    reinforcement learning has made peaked.
    """

    needs_judge = True

    policy: difficulty.Policy = option("uniform", "equal targets, or in proportion to the fail rate", source="paper")
    k: int = option(4, "correct completions of each prompt (uniform) or of the hardest one (prop2diff)", ge=1)
    n_probe: int = option(8, "tries that measure the difficulty, for prop2diff", ge=1)
    max_tries: int | None = option(64, "most tries of a prompt; none: only the token budget ends it", ge=1)
    token_budget: int | None = option(None, "sampled tokens after which a prompt gets no further round", ge=1)
    round_cap: int = option(32, "most tries of a prompt in one round", ge=1)
    dedup: Literal["exact", "none"] = option("exact", "whether equal texts of a prompt count once toward the target")
    temperature: float = option(1.6, "divides the logits", source="paper", gt=0)
    top_p: float = option(0.95, "least set of tokens with this probability; 1 is off", source="paper", gt=0, le=1)
    max_new_tokens: int = option(2048, "most tokens of a completion", source="paper", ge=1)
    stop: tuple[str, ...] = option((), "texts that end a completion")

    def __post_init__(self) -> None:
        if self.max_tries is None and self.token_budget is None:
            raise ValueError("`max_tries: none` never ends on an unsolvable prompt; set `token_budget` as well")
        if self.policy == "prop2diff" and self.max_tries is not None and self.max_tries < self.n_probe:
            raise ValueError(f"max_tries ({self.max_tries}) is less than n_probe ({self.n_probe})")

    def probe(self, prompts: Sequence[Prompt], ctx: Context) -> Iterator[Completion]:
        """Yield the first `n_probe` tries of each prompt under prop2diff, nothing under uniform."""
        self._check(prompts, ctx)
        if self.policy == "prop2diff":
            yield from self._generate(prompts, [range(self.n_probe)] * len(prompts), ctx)

    def gather(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], verdicts: Sequence[Verdict]
    ) -> dict[str, Any]:
        """Return `targets` (prompt id to correct completions wanted) and `tallies` (prompt id to what the probe gave)."""
        tallies = {p.id: Tally() for p in prompts}
        pool = Pool({p.id: p for p in prompts}, list(completions), list(verdicts))
        for index, completion in enumerate(completions):
            tallies[completion.prompt_id].add(completion, pool.accepted(index), self.dedup)
        rates = np.array([t.correct / max(t.tries, 1) for t in tallies.values()])
        wanted = difficulty.targets(rates, self.policy, self.k)
        return {"targets": dict(zip(tallies, wanted.tolist(), strict=True)), "tallies": tallies}

    def sample(self, prompts: Sequence[Prompt], ctx: Context) -> Iterator[Completion]:
        """Yield all tries after the probe, by prompt and try. Reads `targets` and `tallies` from `ctx.shared`."""
        self._check(prompts, ctx)
        wanted = np.array([ctx.shared["targets"][p.id] for p in prompts], dtype=np.int64)
        probed = [ctx.shared["tallies"][p.id] for p in prompts]
        tallies = [replace(tally, usable=list(tally.usable)) for tally in probed]
        found: dict[str, list[Completion]] = {p.id: [] for p in prompts}
        while (sizes := self._round(tallies, wanted)).any():
            active = np.flatnonzero(sizes).tolist()
            candidates = [range(tallies[i].tries, tallies[i].tries + int(sizes[i])) for i in active]
            tries = list(self._generate([prompts[i] for i in active], candidates, ctx))
            self._judge({p.id: p for p in prompts}, tries, dict(zip(found, tallies, strict=True)), ctx)
            for completion in tries:
                found[completion.prompt_id].append(completion)
        self._report(prompts, tallies, wanted, ctx)
        for completions in found.values():
            yield from completions

    def _generate(
        self, prompts: Sequence[Prompt], candidates: Sequence[Sequence[int]], ctx: Context
    ) -> Iterator[Completion]:
        law = Law(self.temperature, self.top_p, max_new_tokens=self.max_new_tokens, stop=self.stop)
        return ctx.model.generate(prompts, law, candidates=candidates, seed=ctx.seed, sampler="dart")

    def _round(self, tallies: Sequence[Tally], wanted: np.ndarray) -> np.ndarray:
        tries, usable, tokens = (
            np.array(column, dtype=np.int64)
            for column in ([t.tries for t in tallies], [len(t.usable) for t in tallies], [t.tokens for t in tallies])
        )
        sizes = difficulty.round_size(tries, usable, wanted, self.max_tries, self.round_cap)
        return sizes if self.token_budget is None else np.where(tokens < self.token_budget, sizes, 0)

    def _judge(
        self, prompts: Mapping[str, Prompt], tries: list[Completion], tallies: Mapping[str, Tally], ctx: Context
    ) -> None:
        assert ctx.judge is not None
        pool = Pool(dict(prompts), tries, ctx.judge(prompts, tries))
        for index, completion in enumerate(tries):
            tallies[completion.prompt_id].add(completion, pool.accepted(index), self.dedup)

    def _report(self, prompts: Sequence[Prompt], tallies: Sequence[Tally], wanted: np.ndarray, ctx: Context) -> None:
        for prompt, tally, target in zip(prompts, tallies, wanted.tolist(), strict=True):
            ctx.count("tries", tally.tries)
            ctx.count("correct tries", tally.correct)
            ctx.count("correct tries wanted", target)
            if len(tally.usable) < target:
                detail = {"tries": tally.tries, "correct": len(tally.usable), "target": target}
                ctx.drop(prompt.id, "target not met", **detail)

    def _check(self, prompts: Sequence[Prompt], ctx: Context) -> None:
        if ctx.judge is None:
            raise ConfigError(
                "sampler 'dart' asks a judge while it samples, and there is none",
                hint="Add a judge stage after the sample stage.",
            )
        for prompt in prompts:
            if not prompt.references:
                raise DataError(
                    "sampler 'dart' needs a reference answer for every prompt, and this one has none",
                    where=prompt.source or prompt.id,
                    hint="Give the answer in the data, or leave the prompt out.",
                )
