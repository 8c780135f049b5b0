"""A scripted model, for tests of what asks questions."""

from dataclasses import dataclass, field

from tamis.records import Completion, Cost, Turn


@dataclass
class Oracle:
    """Replies by a function of the question's text: with a text, or a list of one text per candidate.

    `asked` holds the texts of all questions, `temperatures` their temperatures.
    """

    reply: object
    cost: Cost = Cost(1, 1)
    identity: str = "oracle"
    asked: list = field(default_factory=list)
    temperatures: list = field(default_factory=list)

    def generate(self, prompts, law, *, candidates, seed, sampler="temperature"):
        for prompt, wanted in zip(prompts, candidates, strict=True):
            for j in wanted:
                self.asked.append(prompt.text)
                self.temperatures.append(law.temperature)
                said = self.reply(prompt.text)
                text = said if isinstance(said, str) else said[j]
                yield Completion(prompt.id, (Turn("assistant", text),), index=j, cost=self.cost)
