"""Modular sums with visible steps: the lab's exact task."""

from collections.abc import Iterator

import numpy as np

from tamis.context import Context
from tamis.errors import ConfigError
from tamis.lab.worlds import ModularSums
from tamis.records import Message, Prompt
from tamis.registry import option, task

DRAWN = 1024


@task("modular_sums")
class ModularSumsTask:
    """Sums of residues to be solved step by step ("1+2+3+4=" modulo 6), for the lab's nano models.

    All prompts differ. Held-out prompts come first in the seeded stream and train prompts follow, so that a larger `size`
    keeps the held-out set and only adds to the train set. With `gold` the reference is the left-to-right solution
    "1+2=3,3+3=0,0+4=4,#4", else the answer "#4" alone; `metadata["answer"]` is "4". A right answer is one whose "#" is
    followed by the sum: judge with `answer: {kind: regex, pattern: '#(\\d+)'}`.

    Raises ConfigError when fewer than size + heldout problems exist.
    """

    size: int = option(128, "train prompts", ge=1)
    heldout: int = option(200, "held-out prompts", ge=0)
    terms: int = option(4, "operands of a sum", ge=2, le=12)
    modulus: int = option(6, "modulus of the sums", ge=2, le=10)
    gold: bool = option(False, "give a whole solution as the reference, not the answer alone")

    def prompts(self, ctx: Context) -> Iterator[Prompt]:
        """Yield the held-out prompts, then the train prompts."""
        world = ModularSums(self.modulus, self.terms)
        wanted, there = self.size + self.heldout, self.modulus**self.terms
        if wanted > there:
            raise ConfigError(
                f"{self.size} train and {self.heldout} held-out prompts are {wanted}, but only {there} sums of "
                f"{self.terms} residues of {self.modulus} exist",
                where="task 'modular_sums'",
                hint="Lower `size` or `heldout`, or raise `terms` or `modulus`.",
            )
        for number, problem in enumerate(_distinct(world, ctx.rng("modular_sums", self.modulus, self.terms), wanted)):
            yield Prompt(
                (Message("user", problem),),
                references=(world.solution(problem) if self.gold else f"#{world.answer(problem)}",),
                task="modular_sums",
                metadata={"answer": world.answer(problem)},
                split="heldout" if number < self.heldout else "train",
                source=f"modular_sums:{number + 1}",
            )


def _distinct(world: ModularSums, rng: np.random.Generator, wanted: int) -> Iterator[str]:
    seen: set[str] = set()
    while True:
        for problem in world.problems(rng, DRAWN):
            if len(seen) == wanted:
                return
            if problem not in seen:
                seen.add(problem)
                yield problem
