"""Composer `refusal_rows`: answers with what the model is to say of its certainty, or refusals of what it does not know."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

from tamis.answers import normalise
from tamis.certainty import StatesCertainty, answer_entropy, sentence
from tamis.composers.accepted import rendered, sources_of, training_prompts
from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.pool import Pool
from tamis.records import Example, Message, Prompt, Target
from tamis.refusals import SENTENCES
from tamis.registry import composer, option


class Row(NamedTuple):
    """A question, the answer that is shown, whether the model knew it, and the pool indices of its answers."""

    prompt: Prompt
    answer: str
    known: bool
    indices: list[int]
    entropy: float | None = None


@composer(
    "refusal_rows",
    row=88,
    paper="R-Tuning: Instructing Large Language Models to Say 'I Don't Know' (Zhang et al., NAACL 2024)",
    needs=("tokens",),
)
class RefusalRows(StatesCertainty):
    """Teach the model to say when it does not know, by what its untuned self answered (R-Tuning).

    Forms: *sure* shows the gold answer, asks whether the model is sure, and trains "sure" where the untuned model's greedy
    answer was right, "unsure" where not. *refuse* shows the gold answer where it was right, one of `refusals` (drawn by the
    prompt's id) where not. *entropy* needs no gold: with m >= 2 samples of each question, u = -sum_j p_j ln p_j over the shares
    of distinct answers; the half of the questions with the lowest u (floor(N/2); ties by id, our choice) are "sure". Shown is
    gold where there is one, else the most frequent answer, of equals the first drawn (our choice).

    The wrong answer itself is never trained in the forms that know the gold one. Metadata: known (bool), entropy (nats). A
    question's first reference is gold. Answers may be cut at the length limit, as the paper's are. Several tasks in one data
    set are tuned together. By default the loss lies on answer and certainty; the paper's code trains on the whole text.
    """

    form: Literal["sure", "refuse", "entropy"] = option("sure", "what is composed", source="paper")
    known: Literal["contains", "score"] = option(
        "contains", "known is: a reference occurs in the answer (case aside); the judge's score is at least 0.5"
    )
    loss_on: Literal["response", "all"] = option("response", "trained tokens: the assistant's, or the whole text")
    refusals: tuple[str, ...] = option(SENTENCES, "the sentences of form refuse", min_length=1)

    def compose(self, pool: Pool, ctx: Context) -> Iterator[Example]:
        """Yield one sft example per question.

        Raises ConfigError for answers of another model than the untuned one, answers that are not greedy (sure, refuse) or
        fewer than 2 samples of every question (entropy), DataError where no question has a gold answer (sure, refuse).
        """
        rows = self._by_entropy(pool, ctx) if self.form == "entropy" else self._by_answer(pool, ctx)
        for known, what in ((True, "known"), (False, "unknown")):
            ctx.count(f"questions {what}", n := sum(row.known == known for row in rows))
            if rows and n == len(rows):
                ctx.count(f"all questions are {what}: there is nothing to contrast")
        for row in rows:
            example = self._example(row, pool, ctx)
            if example is not None:
                yield example

    def _answers(self, indices: list[int], pool: Pool, ctx: Context) -> list[int]:
        """Return which completions are answers; refuses those that cannot say what the untuned model knows."""
        base = getattr(ctx.model, "identity", None)
        for completion in (pool.completions[i] for i in indices):
            if base is not None and completion.model != base:
                raise ConfigError(
                    f"completion {completion.id} is by another model than the one to be tuned",
                    hint="What the untuned model knows shows in its own answers: sample them before any tuning.",
                )
            if self.form != "entropy" and completion.law.temperature != 0:
                raise ConfigError(
                    f"form {self.form} needs greedy answers; these have temperature {completion.law.temperature:g}",
                    hint="Use sample: {temperature: {n: 1, temperature: 0, max_new_tokens: 15}}, or form: entropy.",
                )
        return [i for i in indices if pool.completions[i].finish_reason != "error"]

    def _by_answer(self, pool: Pool, ctx: Context) -> list[Row]:
        rows, without = [], 0
        for prompt, indices in training_prompts(pool):
            answers = self._answers(indices, pool, ctx)[:1]
            score = pool.score(answers[0]) if answers else None
            if not prompt.references or not prompt.references[0].strip():
                without += 1
                ctx.drop(prompt.id, "no gold answer", source=prompt.source)
            elif not answers:
                ctx.drop(prompt.id, "the model gave no answer", source=prompt.source)
            elif self.known == "score" and score is None:
                ctx.drop(prompt.id, "the answer has no score", source=prompt.source)
            else:
                known = score is not None and score >= 0.5
                if self.known == "contains":
                    known = _contains(pool.completions[answers[0]].text, prompt.references)
                rows.append(Row(prompt, prompt.references[0], known, answers))
        if without and not rows:
            raise DataError(
                "no question has a gold answer",
                where="composer 'refusal_rows'",
                hint="Map the field that holds it (--map answer=FIELD), or use form: entropy, which needs none.",
            )
        return rows

    def _by_entropy(self, pool: Pool, ctx: Context) -> list[Row]:
        rows, short = [], 0
        for prompt, indices in training_prompts(pool):
            answers = self._answers(indices, pool, ctx)
            if len(answers) < 2:
                short += 1
                ctx.drop(prompt.id, "fewer than 2 answers", source=prompt.source)
                continue
            texts = [pool.completions[i].text for i in answers]
            gold = next((text for text in prompt.references[:1] if text.strip()), "")
            rows.append(Row(prompt, gold or _most_frequent(texts), False, answers, answer_entropy(texts)))
        if short and not rows:
            raise ConfigError(
                "form entropy needs at least 2 answers to each question",
                hint="Use sample: {temperature: {n: 5, temperature: 0.7}}.",
            )
        calm = sorted(rows, key=lambda row: (row.entropy, row.prompt.id))[: len(rows) // 2]
        sure = {row.prompt.id for row in calm}
        return [row._replace(known=row.prompt.id in sure) for row in rows]

    def _example(self, row: Row, pool: Pool, ctx: Context) -> Example | None:
        prompt = row.prompt
        if self.form != "refuse":
            said = Message("assistant", self.sure if row.known else self.unsure)
            messages = (*self.asked_after(prompt, row.answer), said)
        else:
            refusal = self.refusals[ctx.rng("refusal_rows", prompt.id).integers(len(self.refusals))]
            messages = (*prompt.messages, Message("assistant", sentence(row.answer) if row.known else refusal))
        target = rendered(Target(messages), prompt.id, ctx, train=len(prompt.messages))
        if target is None:
            return None
        if self.loss_on == "all":
            target = replace(target, weights=(0.0, *[1.0] * (len(target.weights) - 1)))
        metadata = {"origin": f"refusal_rows:{self.form}", "known": row.known}
        metadata |= {} if row.entropy is None else {"entropy": row.entropy}
        sources = tuple(dict.fromkeys(i for index in row.indices for i in sources_of(pool, index)))
        return Example("sft", prompt.id, target, sources=sources, metadata=metadata)


def _contains(text: str, references: tuple[str, ...]) -> bool:
    return any(normalise(gold) in normalise(text) for gold in references if gold.strip())


def _most_frequent(texts: list[str]) -> str:
    """Return the first drawn text of the answer that most of `texts` give."""
    answer, _ = Counter(map(normalise, texts)).most_common(1)[0]
    return next(text for text in texts if normalise(text) == answer)
