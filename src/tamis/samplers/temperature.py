"""Sampler `temperature`: n independent completions of every prompt."""

from collections.abc import Iterator, Sequence

from tamis.context import Context
from tamis.records import Completion, Law, Prompt
from tamis.registry import option, sampler


@sampler("temperature", needs=("text",))
class Temperature:
    """Draw n completions of every prompt under one law.

    Logits are divided by the temperature, then cut by top_k, top_p and min_p in that order. Candidate j of a prompt depends
    on the seed, the prompt and j alone. Temperature 0 is greedy and gives one completion.
    """

    n: int = option(8, "completions of each prompt", ge=1, le=1_000_000)
    temperature: float = option(1.0, "divides the logits; 0 is greedy", ge=0)
    top_p: float = option(1.0, "least set of tokens with this probability; 1 is off", gt=0, le=1)
    top_k: int = option(0, "most probable tokens kept; 0 is off", ge=0)
    min_p: float = option(0.0, "least share of the most probable token's probability; 0 is off", ge=0, le=1)
    max_new_tokens: int = option(256, "most tokens of a completion", ge=1)
    stop: tuple[str, ...] = option((), "texts that end a completion")

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.n > 1:
            raise ValueError(
                "temperature 0 is greedy and gives n equal completions; set n to 1 or raise the temperature"
            )

    def sample(self, prompts: Sequence[Prompt], ctx: Context) -> Iterator[Completion]:
        """Yield n completions of each prompt, in prompt order."""
        law = Law(self.temperature, self.top_p, self.top_k, self.min_p, self.max_new_tokens, self.stop)
        wanted = [range(self.n)] * len(prompts)
        yield from ctx.model.generate(prompts, law, candidates=wanted, seed=ctx.seed, sampler="temperature")
