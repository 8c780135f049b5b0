"""Sampler `gold`: reference solutions as completions, without a model."""

from collections.abc import Iterator, Sequence
from typing import Literal

from tamis.context import Context
from tamis.records import Completion, Prompt, Turn
from tamis.registry import option, sampler


@sampler("gold")
class Gold:
    """Turn the reference solutions of the data into completions, so that plain SFT and data selection are recipes too.

    No model is asked and no token is spent. A prompt without a reference is written aside.
    """

    references: Literal["first", "all"] = option("first", "which references of a prompt become completions")

    def sample(self, prompts: Sequence[Prompt], ctx: Context) -> Iterator[Completion]:
        """Yield the references of each prompt as finished completions of the model "data"."""
        for prompt in prompts:
            texts = list(dict.fromkeys(text for text in prompt.references if text.strip()))
            if not texts:
                ctx.drop(prompt.id, "no reference", source=prompt.source)
            for index, text in enumerate(texts[:1] if self.references == "first" else texts):
                turn = Turn("assistant", text)
                yield Completion(prompt.id, (turn,), index=index, model="data", sampler="gold")
