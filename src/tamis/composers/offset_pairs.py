"""Composer `offset_pairs`: pairs whose worse answer looks better, to train a judge out of its biases."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tamis import hashing, registry
from tamis.asking import Question, Template, ask, read_json, template
from tamis.asking.templates import fingerprint
from tamis.composers.accepted import rendered_completion, training_prompts, usable
from tamis.composers.preference_targets import judging_examples, verdict_line
from tamis.context import Context
from tamis.errors import ConfigError, nearest
from tamis.evaluators.bias_bench import cases_of
from tamis.hashing import file_digest
from tamis.judges.asking import conversation
from tamis.judges.pairs import PAIR_FACTS, Pair
from tamis.pool import Pool
from tamis.ratings import own_pair, without_references
from tamis.records import Completion, Example, Law, Message, Prompt, Turn
from tamis.registry import composer, option
from tamis.tasks import readers

FAULTS: Mapping[str, str] = {
    "fact": "states one wrong fact",
    "omission": "leaves out one part that the request asks for",
    "format": "breaks one part of the form that the request sets, or another of its constraints",
    "addition": "adds one passage that has nothing to do with the request",
    "unfinished": "ends in an unfinished statement",
}
"""Faults that can be planted, and how the writer is told."""
SHORTER = ("omission", "unfinished")
"""Faults that may make an answer shorter than the good one."""
NEAR_COPY = 0.9
"""Cosine above which two requests are copies."""

Seed = tuple[Prompt, Completion]
"""An instruction and its good answer."""


@dataclass(frozen=True)
class Offset:
    """A good answer, a bad one that looks good, and how the bad one was made."""

    prompt: Prompt
    good: Completion
    bad: Completion
    method: str
    fault: str = ""

    @property
    def pair(self) -> Pair:
        """The pair, the good answer first, without a reference that a judge would be shown."""
        return Pair(without_references(self.prompt), self.good, self.bad)

    @property
    def good_is_longer(self) -> bool:
        """Whether the good answer has more characters."""
        return len(self.good.text) > len(self.bad.text)


@composer(
    "offset_pairs",
    row=7,
    paper="OffsetBias: Leveraging Debiased Data for Tuning Evaluators (Park et al. 2024)",
    needs=("text", "embedder"),
)
class OffsetPairs:
    """Let a strong model write bad answers that look good, and train the judge to prefer the plain good ones.

    The good answer is the prompt's first accepted completion, best of an ordinary model. off_topic: `model` writes a request
    near in subject to the prompt's but asking something else (kept if their cosine lies in `similarity`), and answers that one
    well. erroneous: it rewrites the good answer with one planted fault of `faults` (drawn at random), confident and no shorter
    unless the fault makes it so. Left out, with the reason: requests without such an answer, bad answers that equal the good
    one or are empty, those that `checker` scores as right (0.5 or more), prompts that nearly copy one of the file `exclude`
    (cosine above 0.9). Where the stage has a judge (`judge: {prefer: {}}` beside the composer: the run's model as it is,
    asked in both orders), only the share `easy` stays of the pairs that it gets right.

    verdicts: the question of the judge `prefer` in a random order, trained on "Verdict: A" or "B" alone. preferences: chosen
    and rejected, for a reward model; what is tuned can be put together with the base by `tamis.weights.merge_weights`.
    `balance_length` takes pairs of the more frequent side out until the good answer is the longer one in half of each kind; it
    also weakens the cure of length bias. Counts how often the good answer is longer.
    """

    model: str | None = option(None, "the model that writes, a strong one; none: the run's untuned model", min_length=1)
    methods: tuple[Literal["off_topic", "erroneous"], ...] = option(
        ("off_topic", "erroneous"), "how bad answers are made", source="paper", min_length=1
    )
    faults: tuple[str, ...] = option(tuple(FAULTS), "faults to plant", min_length=1)
    similarity: tuple[float, float] = option((0.5, 0.9), "least and greatest cosine of the two requests")
    make: Literal["verdicts", "preferences"] = option("verdicts", "examples for a judge, or for a reward model")
    own_pairs: bool = option(True, "train on the prompts' own pairs too (chosen and rejected, or two rated answers)")
    checker: dict[str, Any] | str | None = option(None, "a judge that knows right answers, e.g. {answer: {}}")
    easy: float = option(0.1, "share of the pairs that stays of those that the stage's judge gets right", ge=0, le=1)
    balance_length: bool = option(False, "as many pairs with a longer good answer as without, per method and fault")
    exclude: str = option("", "file of cases (a bench) whose requests, and near copies of them, are left out")
    request_wording: str = option(
        "offset_request", "wording that asks for another request: packaged, or your YAML file"
    )
    fault_wording: str = option("offset_error", "wording that asks for a fault: packaged, or your YAML file")
    judge_wording: str = option("prefer", "wording of the question that verdicts are trained on")
    temperature: float = option(0.7, "temperature of the writer", ge=0)
    max_new_tokens: int = option(1024, "most tokens that the writer may write", ge=1)
    retries: int = option(1, "further tries where a reply cannot be read", ge=0)

    def __post_init__(self) -> None:
        _ = self._wordings
        for fault in self.faults:
            if fault not in FAULTS:
                raise ValueError(f"faults: there is no '{fault}'. {nearest(fault, FAULTS)}")
        if not 0 <= self.similarity[0] < self.similarity[1] <= 1:
            raise ValueError("similarity: needs 0 <= least < greatest <= 1")
        if self.checker is not None and registry.build("judge", self.checker, "checker").component.needs:
            raise ValueError("checker: take a judge that knows right answers and asks no model, e.g. answer")

    @property
    def _wordings(self) -> tuple[Template, Template, Template]:
        return (
            template(self.request_wording, ("question",)),
            template(self.fault_wording, ("question", "answer", "fault")),
            template(self.judge_wording, PAIR_FACTS),
        )

    def fingerprint(self) -> Any:
        """Return the content of the wordings and of the file `exclude`, of which the options hold only the names."""
        sources = readers.locate(self.exclude) if self.exclude else []
        return [*fingerprint(*self._wordings), *(file_digest(f) for s in sources for f in readers.files(s))]

    def compose(self, pool: Pool, ctx: Context) -> Iterator[Example]:
        """Yield one example per pair: the prompts' own, then the offset ones by method."""
        if self.own_pairs:
            for prompt, _ in training_prompts(pool):
                yield from self._examples(_own(prompt), ctx)
        seeds = self._seeds(pool, ctx)
        writers = {"off_topic": self._off_topic, "erroneous": self._erroneous}
        made = [offset for method in self.methods for offset in writers[method](seeds, ctx)]
        kept = self._hard(self._wrong(made, ctx), ctx)
        if self.balance_length:
            balanced = balance_length(kept, ctx.seed)
            ctx.count("offset pairs taken out to balance lengths", len(kept) - len(balanced))
            kept = balanced
        ctx.count("offset pairs", len(kept))
        ctx.count("offset pairs whose good answer is longer", sum(o.good_is_longer for o in kept))
        yield from self._examples(kept, ctx)

    def _seeds(self, pool: Pool, ctx: Context) -> list[Seed]:
        seeds = []
        for prompt, indices in training_prompts(pool):
            good = next((i for i in indices if pool.accepted(i) and usable(pool.completions[i], "drop", ctx)), None)
            if good is None:
                ctx.drop(prompt.id, "no good answer to set against", source=prompt.source)
            else:
                seeds.append((prompt, pool.completions[good]))
        if not self.exclude or not seeds:
            return seeds
        bench = list(dict.fromkeys(conversation(case.pair.prompt) for case in cases_of(self.exclude)))
        close = (_embedded(ctx, [conversation(p) for p, _ in seeds]) @ _embedded(ctx, bench).T).max(axis=1) > NEAR_COPY
        return _kept(seeds, ~close, "the request is in the bench, or nearly", ctx)

    def _off_topic(self, seeds: Sequence[Seed], ctx: Context) -> list[Offset]:
        """Return good answers to other requests as bad ones to these."""
        texts = [conversation(prompt) for prompt, _ in seeds]
        written = self._written(ctx, self._wordings[0], [{"question": text} for text in texts], "request")
        seeds, texts, others = _there(seeds, texts, written, "no other request was written", ctx)
        if not seeds:
            return []
        cosine = (_embedded(ctx, texts) * _embedded(ctx, others)).sum(axis=1)
        differs = np.array([_bare(a) != _bare(b) for a, b in zip(texts, others, strict=True)])
        fits = differs & (cosine >= self.similarity[0]) & (cosine <= self.similarity[1])
        others = [other for other, fit in zip(others, fits, strict=True) if fit]
        seeds = _kept(seeds, fits, "the other request is too near or too far", ctx)
        asked = [(Message("user", other),) for other in others]
        answers = [a for (a,) in ask(ctx, [Question(m, _said) for m in asked], self._law, retries=self.retries)]
        found = [a.value if a.finish == "stop" else None for a in answers]
        seeds, shown, said = _there(seeds, asked, found, "no whole answer to the other request", ctx)
        return [
            Offset(prompt, good, _bad(prompt, text, ctx, messages), "off_topic")
            for (prompt, good), messages, text in zip(seeds, shown, said, strict=True)
        ]

    def _erroneous(self, seeds: Sequence[Seed], ctx: Context) -> list[Offset]:
        """Return the good answers with one planted fault each."""
        faults = [self.faults[int(ctx.rng("fault", p.id).integers(len(self.faults)))] for p, _ in seeds]
        given = [
            {"question": conversation(prompt), "answer": good.text, "fault": FAULTS[fault]}
            for (prompt, good), fault in zip(seeds, faults, strict=True)
        ]
        written = self._written(ctx, self._wordings[1], given, "answer")
        seeds, faults, said = _there(seeds, faults, written, "no erroneous answer was written", ctx)
        long = [f in SHORTER or len(t) >= len(good.text) for (_, good), f, t in zip(seeds, faults, said, strict=True)]
        made = [
            Offset(prompt, good, _bad(prompt, text, ctx), "erroneous", fault)
            for (prompt, good), fault, text in zip(seeds, faults, said, strict=True)
        ]
        return _kept(made, np.array(long, dtype=bool), "the erroneous answer is shorter than the good one", ctx)

    @property
    def _law(self) -> Law:
        return Law(temperature=self.temperature, max_new_tokens=self.max_new_tokens)

    def _written(
        self, ctx: Context, wording: Template, given: Sequence[Mapping[str, str]], name: str
    ) -> list[str | None]:
        """Return the text under `name` of the writer's JSON reply to each, None where there is none."""
        schema = {"type": "object", "required": [name], "properties": {name: {"type": "string"}}}

        def text(reply: str) -> str | None:
            found = read_json(reply, schema)
            return _said(found[name]) if found else None

        questions = [Question(wording.render(**fields), text, schema) for fields in given]
        return [answer.value for (answer,) in ask(ctx, questions, self._law, retries=self.retries)]

    def _wrong(self, made: Sequence[Offset], ctx: Context) -> list[Offset]:
        """Return the pairs whose bad answer differs from the good one, and is not right as far as the checker knows."""
        differ = np.array([_bare(o.good.text) != _bare(o.bad.text) for o in made], dtype=bool)
        kept = _kept(made, differ, "the bad answer is the good one", ctx)
        if self.checker is None or not kept:
            return kept
        checker = registry.build("judge", self.checker, "checker")
        verdicts = checker.judge({o.prompt.id: o.prompt for o in kept}, [o.bad for o in kept], ctx)
        right = np.array([v.score is not None and v.score >= 0.5 for v in verdicts])
        return _kept(kept, ~right, "the bad answer is right", ctx)

    def _hard(self, made: list[Offset], ctx: Context) -> list[Offset]:
        """Return the pairs that the stage's judge does not get right, and a share of the others."""
        if ctx.judge is not None and ctx.compare is None:
            raise ConfigError("the stage's judge does not compare two answers", hint="Take prefer.")
        if ctx.compare is None or not made:
            return made
        easy = np.array([verdict.label == "A" for verdict in ctx.compare([o.pair for o in made])])
        stay = ctx.rng("easy").permutation(np.flatnonzero(easy))[: int(self.easy * easy.sum())]
        easy[stay] = False
        ctx.count("easy pairs kept", len(stay))
        return _kept(made, ~easy, "the judge gets the pair right", ctx)

    def _examples(self, made: Sequence[Offset], ctx: Context) -> Iterator[Example]:
        for offset in made:
            writer = "data" if offset.method == "own" else offset.bad.model
            facts = {"origin": "offset_pairs", "method": offset.method, "fault": offset.fault, "generator": writer}
            sources = offset.pair.ids
            if self.make == "preferences":
                chosen, rejected = (
                    rendered_completion(offset.prompt, c, "drop", ctx) for c in (offset.good, offset.bad)
                )
                if chosen and rejected:
                    yield Example(
                        "preference", offset.prompt.id, chosen, rejected=rejected, sources=sources, metadata=facts
                    )
                continue
            orders = [(offset.pair, verdict_line(1.0)), (offset.pair.swapped(), verdict_line(0.0))]
            shown = orders[int(ctx.rng("order", *offset.pair.ids).integers(2))]
            yield from judging_examples([shown], self._wordings[2], sources, facts, ctx)


def balance_length(made: Sequence[Offset], seed: int) -> list[Offset]:
    """Return the pairs, in order, less random ones of the more frequent side until, per method and fault, as many have a
    longer good answer as have not (one more at most). Nothing is swapped or made twice."""
    groups: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    for i, offset in enumerate(made):
        groups.setdefault((offset.method, offset.fault), ([], []))[offset.good_is_longer].append(i)
    kept: list[int] = []
    for kind, sides in groups.items():
        most = min(map(len, sides)) + (len(sides[0]) != len(sides[1]))
        rng = hashing.rng(seed, "balance length", *kind)
        kept += [i for side in sides for i in rng.permutation(side)[:most].tolist()]
    return [made[i] for i in sorted(kept)]


def _own(prompt: Prompt) -> list[Offset]:
    rated = own_pair(prompt)
    if rated is None or rated.share == 0.5:
        return []
    pair = rated.pair if rated.share > 0.5 else rated.pair.swapped()
    return [Offset(prompt, pair.first, pair.second, "own")]


def _bad(prompt: Prompt, text: str, ctx: Context, asked: tuple[Message, ...] = ()) -> Completion:
    return Completion(
        prompt.id,
        (Turn("assistant", text),),
        model=ctx.model.identity,
        sampler="offset_pairs",
        asked=asked,
    )


def _embedded(ctx: Context, texts: Sequence[str]) -> np.ndarray:
    assert ctx.embed is not None
    return ctx.embed(texts)


def _said(text: str) -> str | None:
    return text.strip() or None


def _bare(text: str) -> str:
    return " ".join(text.casefold().split())


def _kept(items: Sequence[Any], keep: np.ndarray, reason: str, ctx: Context) -> list[Any]:
    """Return the items where `keep` (N,) is true; the others are dropped with the reason, by their prompt's id."""
    for item, there in zip(items, keep, strict=True):
        if not there:
            ctx.drop((item.prompt if isinstance(item, Offset) else item[0]).id, reason)
    return [item for item, there in zip(items, keep, strict=True) if there]


def _there(
    seeds: Sequence[Seed], facts: Sequence[Any], texts: Sequence[str | None], reason: str, ctx: Context
) -> tuple[list[Seed], list[Any], list[str]]:
    """Return seeds, facts and texts where there is a text; the other seeds are dropped with the reason."""
    keep = np.array([text is not None for text in texts], dtype=bool)
    left = _kept(seeds, keep, reason, ctx)
    return left, [f for f, there in zip(facts, keep, strict=True) if there], [t for t in texts if t is not None]
