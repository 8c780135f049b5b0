"""Composer `critique`: train critiques of answers instead of answers (CFT)."""

from collections.abc import Iterator

from tamis.composers.accepted import rendered, sources_of, training_prompts, usable
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.judges.asking import conversation
from tamis.pool import Pool
from tamis.records import Example, Message, Prompt, Target, Verdict
from tamis.registry import composer, option

INSTRUCTION = "Please critique whether the following solution to the question is correct."
FAULTS = {"no_reply": "the critic gave no reply", "cut_reply": "the critique was cut at the length limit"}


def critique_request(instruction: str, question: str, solution: str) -> str:
    """Return what a model trained on critiques is asked."""
    return f"{instruction}\n\nQuestion:\n{question}\n\nSolution:\n{solution}"


@composer("critique", row=27, paper="Critique Fine-Tuning (Wang et al. 2025)")
class CritiqueTargets:
    """Train the model to criticise: user = instruction, question and a noisy answer; assistant = the critique.

    The critiques are the rationales of the judge `critique`, of right and wrong answers alike; answers are not filtered. The
    loss lies on the critique and its end alone: L = -log p(c | [x; y]). One answer per prompt by default, as the paper has
    it. Critiques without a conclusion, cut, empty or refused were given no score by the judge and are dropped, counted.
    At test time the plain question is asked.

    Counts "answers judged right" and "wrong", and where the prompts have references and another judge ran ("answer"), how
    often the critic agrees with it. Wrong critiques stay (paper: about one in five) unless `drop_wrong_critiques`.
    """

    instruction: str = option(INSTRUCTION, "what the model is asked to do with a solution", min_length=1)
    per_prompt: int | None = option(1, "most answers of one prompt; none: all", source="paper", ge=1)
    drop_wrong_critiques: bool = option(False, "leave out critiques that another judge contradicts", source="paper")

    def compose(self, pool: Pool, ctx: Context) -> Iterator[Example]:
        """Yield one sft example per criticised completion. Raises ConfigError without critiques, or without another judge
        where wrong critiques are to be dropped."""
        trained = any(pool.prompt(i).split == "train" for i in range(len(pool)))
        if trained and not any(v.judge == "critique" for v in pool.verdicts):
            raise ConfigError("there is no critique to train on", hint="Put the stage judge: {critique: {}} before it.")
        others = {v.judge for v in pool.verdicts if len(v.completion_ids) == 1} - {"critique"}
        if self.drop_wrong_critiques and not others:
            raise ConfigError(
                "drop_wrong_critiques: no other judge says which critiques are wrong",
                hint="Put a judge with references, e.g. judge: {answer: {}}, before the judge critique.",
            )
        for prompt, indices in training_prompts(pool):
            made: set[str] = set()
            for index in indices:
                completion = pool.completions[index]
                if completion.id in made:
                    ctx.drop(completion.id, "the same answer again", prompt=prompt.id)
                elif len(made) == self.per_prompt:
                    ctx.count("over per_prompt")
                elif example := self._example(prompt, index, pool, ctx):
                    made.add(completion.id)
                    yield example

    def _example(self, prompt: Prompt, index: int, pool: Pool, ctx: Context) -> Example | None:
        completion = pool.completions[index]
        if not usable(completion, "complete", ctx):
            return None
        verdicts = pool.verdicts_of.get(completion.id, [])
        critique = next((v for v in reversed(verdicts) if v.judge == "critique"), None)
        if critique is None or critique.score is None:
            fault = FAULTS.get(critique.label if critique else "", "no critique with a conclusion")
            ctx.drop(completion.id, fault, prompt=prompt.id)
            return None
        if self._contradicted(critique, verdicts, ctx) and self.drop_wrong_critiques:
            ctx.drop(completion.id, "another judge contradicts the critique", prompt=prompt.id)
            return None
        ctx.count(f"answers judged {critique.label}")
        asked = critique_request(self.instruction, conversation(prompt), completion.text)
        messages = (Message("user", asked), Message("assistant", critique.rationale))
        target = rendered(Target(messages), completion.id, ctx)
        if target is None:
            return None
        metadata = {"origin": "critique", "conclusion": critique.label}
        weight, sources = pool.weight(index), sources_of(pool, index)
        return Example("sft", prompt.id, target, weight=weight, sources=sources, metadata=metadata)

    def _contradicted(self, critique: Verdict, verdicts: list[Verdict], ctx: Context) -> bool:
        known = next((v.score for v in verdicts if v.judge != "critique" and v.score is not None), None)
        if known is None:
            return False
        agrees = (known >= 0.5) == (critique.label == "right")
        ctx.count("critiques that agree with the other judge" if agrees else "critiques that another judge contradicts")
        return not agrees
