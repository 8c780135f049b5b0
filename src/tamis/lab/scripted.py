"""Scripted solvers and judges: stand-ins with a known truth for checks and tests.

Everything they do is a function of a seed and record ids alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tamis import hashing
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.metrics import View
from tamis.models.base import TextModel
from tamis.pool import Pool
from tamis.records import Completion, Cost, Law, Prompt, Turn, Verdict

Rates = Mapping[str, float] | Callable[[Prompt], float] | float
Writer = Callable[[Prompt, int], str]


def right_answer(prompt: Prompt, draw: int) -> str:
    """Return "#" and the prompt's answer (`metadata["answer"]`)."""
    return f"#{prompt.metadata['answer']}"


def wrong_answer(prompt: Prompt, draw: int) -> str:
    """Return "#" and a number that is not the prompt's answer: one of ten, chosen by `draw`."""
    wrong = [str(n) for n in range(11) if str(n) != str(prompt.metadata["answer"])]
    return f"#{wrong[draw % 10]}"


@dataclass(frozen=True)
class ScriptedModel:
    """A solver (capability "text") that answers each prompt rightly at a set rate.

    `pass_rates`: one rate, a rate per prompt id, or a function of the prompt; each in [0, 1]. Candidate j of a prompt is
    right when a uniform number derived from (seed, prompt id, j) lies below the rate; greedily (temperature 0) it is right
    when the rate is at least 0.5. `right` and `wrong` write the text from the prompt and a non-negative 63-bit integer that
    differs from candidate to candidate. `truncated` is the share of sampled completions cut at the length limit. A
    character counts as a sampled token and a prompt character as a prompt token.

    Raises ConfigError for a rate outside [0, 1] or a prompt without one.
    """

    pass_rates: Rates
    right: Writer = right_answer
    wrong: Writer = wrong_answer
    truncated: float = 0.0
    name: str = "scripted"
    identity: str = "scripted"

    def rate(self, prompt: Prompt) -> float:
        """Return the pass rate of a prompt."""
        rates = self.pass_rates
        rate = rates(prompt) if callable(rates) else rates.get(prompt.id) if isinstance(rates, Mapping) else rates
        if rate is None or not 0 <= rate <= 1:
            raise ConfigError(f"prompt {prompt.id} has the pass rate {rate}; it must lie in [0, 1]")
        return rate

    def generate(
        self,
        prompts: Sequence[Prompt],
        law: Law,
        *,
        candidates: Sequence[Sequence[int]],
        seed: int,
        sampler: str = "temperature",
    ) -> Iterator[Completion]:
        """Yield one completion per prompt and candidate index, in that order."""
        for prompt, wanted in zip(prompts, candidates, strict=True):
            for position, index in enumerate(wanted):
                text, finish = self._answer(prompt, law, seed, index)
                yield Completion(
                    prompt.id,
                    (Turn("assistant", text),),
                    index=index,
                    finish_reason=finish,
                    model=self.identity,
                    sampler=sampler,
                    law=law,
                    seed=seed,
                    cost=Cost(prompt_tokens=0 if position else len(prompt.text), sampled_tokens=len(text)),
                )

    def _answer(self, prompt: Prompt, law: Law, seed: int, index: int) -> tuple[str, str]:
        rate = self.rate(prompt)
        if law.temperature == 0:
            right, draw, cut = rate >= 0.5, hashing.derive_seed("greedy", prompt.id), False
        else:
            luck, cutting = hashing.rng(seed, prompt.id, index).random(2)
            right, draw, cut = luck < rate, hashing.derive_seed(seed, prompt.id, index), cutting < self.truncated
        text = (self.right if right else self.wrong)(prompt, draw)
        limit = max(0, min(law.max_new_tokens, len(text) - 1 if cut else len(text)))
        return text[:limit], "length" if limit < len(text) else "stop"


@dataclass(frozen=True)
class ScriptedJudge:
    """A pointwise judge with set error rates around a known truth.

    `truth(prompt, completion)` says what is right. A right completion is scored 0 with probability `false_negatives`, a
    wrong one 1 with probability `false_positives`; a share `unparseable` of all verdicts has no score and the label
    "unparseable_verdict". Each verdict depends on (seed of the context, completion id) alone.

    Raises ConfigError for a rate outside [0, 1].
    """

    truth: Callable[[Prompt, Completion], bool] = lambda prompt, completion: completion.text == right_answer(prompt, 0)
    false_positives: float = 0.0
    false_negatives: float = 0.0
    unparseable: float = 0.0
    name: str = "scripted"

    def __post_init__(self) -> None:
        for rate in (self.false_positives, self.false_negatives, self.unparseable):
            if not 0 <= rate <= 1:
                raise ConfigError(f"an error rate lies in [0, 1], not at {rate}")

    def judge(
        self, prompts: Mapping[str, Prompt], completions: Sequence[Completion], ctx: Context
    ) -> Iterator[Verdict]:
        """Yield one verdict per completion, in order."""
        for completion in completions:
            right = self.truth(prompts[completion.prompt_id], completion)
            unread, slip = ctx.rng(self.name, completion.id).random(2)
            said = right != (slip < (self.false_negatives if right else self.false_positives))
            score = None if unread < self.unparseable else float(said)
            label = "unparseable_verdict" if score is None else "correct" if said else "wrong"
            yield Verdict(completion.prompt_id, (completion.id,), self.name, score, label, cost=Cost(judge_calls=1))


def judged_view(
    evaluator: Any,
    prompts: Sequence[Prompt],
    solver: TextModel,
    judge: ScriptedJudge,
    *,
    model: Any = None,
    seed: int = 0,
) -> View:
    """Return what an evaluator sees of `solver` on `prompts`: every draw it asks for, sampled and judged.

    `model` is handed on for evaluators that need one.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    pools = {}
    for draw in evaluator.draws():
        wanted = [range(draw.n)] * len(prompts)
        made = list(solver.generate(prompts, draw.law, candidates=wanted, seed=seed, sampler="evaluate"))
        pools[draw] = Pool(by_id, made, list(judge.judge(by_id, made, Context(seed=seed))))
    return View(prompts, pools, model)
