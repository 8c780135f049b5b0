"""Sampler `conformal`: sets of answers of which an acceptable one is a member, at a promised risk (row 75)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from tamis import registry
from tamis.conformal import CLMConfig, SetBuilder, SetScore
from tamis.conformal_answers import Quality, alike, answers, calibrated, quality_of, told
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.pool import Pool
from tamis.records import Completion, Law, Prompt, Verdict
from tamis.registry import option, sampler


@sampler("conformal", row=75, paper="Conformal Language Modeling (Quach et al., ICLR 2024)", needs=("text",))
class Conformal:
    """Draw answers of each prompt until, at a promised risk, an acceptable one is in the set.

    A random `share` of the prompts calibrates: each is drawn `k_max` times and judged, and the cheapest rule is taken that
    leaves at most a share `eps` of prompts without an acceptable answer, with confidence 1 - delta (over the calibration;
    no single prompt is promised anything). The other prompts are drawn one by one: a draw of too low quality, or too like a
    member, is rejected; drawing ends when the set score is high enough, or after `k_max`. Where no rule can be promised
    no set is made, and the other prompts are dropped with that reason.

    Acceptable is a judge's score of at least 0.5; the judge is asked about calibration prompts alone. Likeness is the
    ratio of common words. `metadata` of a completion has its "quality" and its "set": "calibration", "kept", or why it was
    rejected. The other prompts must be of the kind of those that calibrate. Raises ModelError where quality is the
    likelihood and the model gives no log-probabilities.
    """

    needs_judge = True
    contract: ClassVar[dict[str, Any]] = {"quality": "agreement", "eps": 0.9, "delta": 0.5, "k_max": 4}

    eps: float = option(0.2, "share of prompts that may lack an acceptable answer", gt=0, lt=1)
    delta: float = option(0.05, "chance, over the calibration, that more do", source="paper", gt=0, lt=1)
    k_max: int = option(20, "most draws of a prompt", source="paper", ge=1)
    set_score: SetScore = option("max", "what ends drawing: number of draws, best, sum or geometric sum of quality")
    quality: Quality = option(
        "likelihood", "quality of an answer: mean token likelihood, agreement with earlier draws, judge"
    )
    judge: dict[str, Any] | None = option(None, "for quality judge: {NAME: {OPTION: VALUE}}; it asks the sampled model")
    share: float = option(0.5, "share of the prompts that calibrates", gt=0, lt=1)
    opt_frac: float = option(0.3, "share of the calibration that chooses what is tested", source="code", gt=0, lt=1)
    n_grid: int = option(25, "quantiles tried of each threshold", source="code", ge=2)
    temperature: float = option(0.7, "divides the logits", gt=0)
    top_p: float = option(1.0, "least set of tokens with this probability; 1 is off", gt=0, le=1)
    max_new_tokens: int = option(256, "most tokens of a completion", ge=1)
    stop: tuple[str, ...] = option((), "texts that end a completion")

    def __post_init__(self) -> None:
        if (self.quality == "judge") != (self.judge is not None):
            raise ValueError("`quality: judge` and the option `judge` go together, e.g. judge: {score: {}}")
        if self.judge is not None and getattr(self._judge(), "model", None):
            raise ValueError("judge: it asks the model that is sampled; leave its `model` out")

    def fingerprint(self) -> Any:
        """Return the version of the judge of quality."""
        return None if self.judge is None else self._judge().component.version

    def probe(self, prompts: Sequence[Prompt], ctx: Context) -> Iterator[Completion]:
        """Yield `k_max` draws of each prompt that calibrates."""
        if ctx.judge is None:
            raise ConfigError("sampler 'conformal' asks a judge", hint="Add a judge stage after the sample stage.")
        chosen = [p for p in prompts if self._calibrates(p, ctx)]
        drawn = self._drawn(chosen, [range(self.k_max)] * len(chosen), ctx)
        earlier: dict[str, list[str]] = {}
        for completion, judged in zip(drawn, self._judged(chosen, drawn, ctx), strict=True):
            before = earlier.setdefault(completion.prompt_id, [])
            score = quality_of(completion, self.quality, alike(completion.text, before), judged[0])
            before.append(completion.text)
            yield _noted(completion, score, "calibration", judged[1])

    def gather(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], verdicts: Sequence[Verdict]
    ) -> dict[str, Any]:
        """Return the rule (or abstention) as `rule` and, as `notes`, what it promises."""
        pool = Pool({p.id: p for p in prompts}, list(completions), list(verdicts))
        rows = [pool.by_prompt[prompt_id] for prompt_id in sorted(pool.by_prompt)]
        data = (
            answers(
                [[completions[i].text for i in row] for row in rows],
                [[completions[i].metadata["quality"] for i in row] for row in rows],
                [[pool.judged() and pool.accepted(i) for i in row] for row in rows],
            )
            if rows
            else None
        )
        seed = completions[0].seed if completions else 0
        rule = calibrated(data, self.eps, self.delta, self.set_score, self.n_grid, self.opt_frac, seed)
        return {"rule": rule, "notes": {"finding": told(rule)}}

    def sample(self, prompts: Sequence[Prompt], ctx: Context) -> Iterator[Completion]:
        """Yield every draw of the prompts that do not calibrate, by prompt; nothing after an abstention."""
        others = [p for p in prompts if not self._calibrates(p, ctx)]
        rule = ctx.shared["rule"]
        if not isinstance(rule, CLMConfig):
            for prompt in others:
                ctx.drop(prompt.id, "no set: the risk cannot be promised")
            return
        sets = {p.id: SetBuilder(rule, self.k_max) for p in others}
        found: dict[str, list[Completion]] = {p.id: [] for p in others}
        while active := [p for p in others if not sets[p.id].done]:
            drawn = self._drawn(active, [[sets[p.id].draws] for p in active], ctx)
            for completion, judged in zip(drawn, self._judged(active, drawn, ctx), strict=True):
                own = found[completion.prompt_id]
                similar = alike(completion.text, [c.text for c in own])
                score = quality_of(completion, self.quality, similar, judged[0])
                fate = sets[completion.prompt_id].add(-float("inf") if score is None else score, similar)
                own.append(_noted(completion, score, fate, judged[1]))
                ctx.count(f"draws: {fate}")
        ctx.count("sets", len(sets))
        ctx.count("sets ended by the stop rule", sum(s.reached for s in sets.values()))
        for completions in found.values():
            yield from completions

    def _calibrates(self, prompt: Prompt, ctx: Context) -> bool:
        return bool(ctx.rng("conformal", prompt.id).random() < self.share)

    def _drawn(self, prompts: Sequence[Prompt], candidates: Sequence[Sequence[int]], ctx: Context) -> list[Completion]:
        law = Law(self.temperature, self.top_p, max_new_tokens=self.max_new_tokens, stop=self.stop)
        return list(ctx.model.generate(prompts, law, candidates=candidates, seed=ctx.seed, sampler="conformal"))

    def _judge(self) -> Any:
        assert self.judge is not None
        return registry.build("judge", self.judge, "sampler 'conformal'.judge")

    def _judged(
        self, prompts: Sequence[Prompt], drawn: Sequence[Completion], ctx: Context
    ) -> list[tuple[float | None, Verdict | None]]:
        if self.judge is None:
            return [(None, None)] * len(drawn)
        verdicts = list(self._judge().judge({p.id: p for p in prompts}, drawn, ctx))
        ctx.count("answers without a quality", sum(v.score is None for v in verdicts))
        return [(v.score, v) for v in verdicts]


def _noted(completion: Completion, quality: float | None, fate: str, verdict: Verdict | None) -> Completion:
    cost = completion.cost + verdict.cost if verdict else completion.cost
    return replace(completion, metadata={"quality": quality, "set": fate}, cost=cost, id="")
