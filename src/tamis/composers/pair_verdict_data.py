"""Composer `pair_verdict_data`: comparisons of a right and a wrong solution, to train a pairwise judge on."""

from collections.abc import Iterator
from itertools import combinations, product
from typing import ClassVar

import numpy as np

from tamis.composers.accepted import rendered, sources_of, training_prompts, usable
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.judges.asking import AsksModel
from tamis.judges.pair_verdicts import two_verdicts, verdict_line
from tamis.judges.pairs import PAIR_FACTS, Pair
from tamis.pool import Pool
from tamis.records import Example, Message, Prompt, Target
from tamis.registry import composer, option

Labelled = tuple[Pair, tuple[int, int], tuple[bool, bool]]
"""A pair as it is shown, the pool indices of its completions, and whether each is right."""


@composer(
    "pair_verdict_data",
    row=60,
    paper="PairJudge RM: Best-of-N Sampling with Knockout Tournament (Liu et al. 2025)",
    needs=("text",),
)
class PairVerdictData(AsksModel):
    """Train the model to be the judge `pair_verdicts`: user = its question about two solutions, assistant = the comparison.

    Solutions are right or wrong by the score of a judge that knows the reference (at least 0.5 is right). Right ones are
    paired with wrong ones, and some with their like. `model` (a strong one) compares each pair in both orders without being
    told what is right; a pair is kept where both its verdicts are true, so that neither place is favoured, and gives two
    examples. The loss lies on the comparison and its end alone. Pairs that are left out are counted with their reason.
    """

    wording: ClassVar[str] = "pair_verdicts"
    gives: ClassVar[tuple[str, ...]] = PAIR_FACTS

    max_new_tokens: int = option(1024, "most tokens of a comparison", ge=1)
    mixed: int = option(4, "most pairs of a right and a wrong solution of one prompt", ge=0)
    alike: int = option(1, "most pairs of two right, and of two wrong solutions of one prompt", ge=0)
    reasoning: bool = option(
        True, "let `model` write the comparison; false: train on the verdict line alone, ask nobody"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mixed + self.alike:
            raise ValueError("mixed and alike are both 0, so that there would be no pair")

    def compose(self, pool: Pool, ctx: Context) -> Iterator[Example]:
        """Yield two sft examples per pair. Raises ConfigError where no completion has a score."""
        if len(pool) and all(pool.score(i) is None for i in range(len(pool))):
            raise ConfigError(
                "no solution is known to be right or wrong", hint="Put the stage judge: {answer: {}} before this one."
            )
        shown = [
            order
            for prompt, indices in training_prompts(pool)
            for pair, (a, b), (a_right, b_right) in self._pairs(prompt, indices, pool, ctx)
            for order in ((pair, (a, b), (a_right, b_right)), (pair.swapped(), (b, a), (b_right, a_right)))
        ]
        texts = self._comparisons(shown, ctx)
        for both in zip(shown[::2], shown[1::2], texts[::2], texts[1::2], strict=True):
            yield from self._examples(both[:2], both[2:], pool, ctx)

    def _pairs(self, prompt: Prompt, indices: list[int], pool: Pool, ctx: Context) -> Iterator[Labelled]:
        right: dict[str, int] = {}
        wrong: dict[str, int] = {}
        for index in indices:
            completion, score = pool.completions[index], pool.score(index)
            if score is None:
                ctx.drop(completion.id, "no score", prompt=prompt.id)
            elif usable(completion, "drop", ctx):
                (right if score >= 0.5 else wrong).setdefault(completion.text, index)
        goods, bads = list(right.values()), list(wrong.values())
        rng = ctx.rng("pair_verdict_data", prompt.id)
        kinds = (
            (list(product(goods, bads)), self.mixed, (True, False)),
            (list(combinations(goods, 2)), self.alike, (True, True)),
            (list(combinations(bads, 2)), self.alike, (False, False)),
        )
        for possible, most, truth in kinds:
            for i in rng.permutation(len(possible))[:most]:
                places = possible[i]
                yield Pair(prompt, *(pool.completions[p] for p in places)), places, truth

    def _comparisons(self, shown: list[Labelled], ctx: Context) -> list[tuple[str, str]]:
        """Return for each pair the comparison and why it cannot be trained on, "" where it can."""
        if not self.reasoning:
            return [(verdict_line(*truth), "") for _, _, truth in shown]
        answers = self.ask(ctx, [pair.facts() for pair, _, _ in shown], two_verdicts)
        return [(a.text.strip(), _fault(a.value, truth)) for (a,), (_, _, truth) in zip(answers, shown, strict=True)]

    def _examples(
        self, both: tuple[Labelled, ...], texts: tuple[tuple[str, str], ...], pool: Pool, ctx: Context
    ) -> Iterator[Example]:
        pair, places, _ = both[0]
        record = "+".join(pair.ids)
        fault = next((fault for _, fault in texts if fault), "")
        if fault:
            ctx.drop(record, fault, prompt=pair.prompt.id)
            return
        targets = []
        for (order, _, _), (text, _) in zip(both, texts, strict=True):
            asked = self.asked_with.render(**order.facts())
            targets.append(rendered(Target((*asked, Message("assistant", text))), record, ctx))
        if any(target is None for target in targets):
            return
        sources = (*sources_of(pool, places[0]), *sources_of(pool, places[1]))
        weight = float(np.mean([pool.weight(p) for p in places]))
        for target, (_, _, truth) in zip(targets, both, strict=True):
            assert target is not None
            metadata = {"origin": "pair_verdict_data", "right": list(truth)}
            yield Example("sft", pair.prompt.id, target, weight=weight, sources=sources, metadata=metadata)


def _fault(said: tuple[bool, bool] | None, truth: tuple[bool, bool]) -> str:
    if said is None:
        return "a comparison has no verdicts that can be read"
    return "" if said == truth else "a comparison contradicts what is known"
