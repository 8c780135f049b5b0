"""Judge `rank`: a model puts all completions of a prompt into one order."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from tamis.asking import Answer, Question, ask, read_json
from tamis.context import Context
from tamis.judges.asking import AsksModel, asked, by_prompt, failed, prompt_of
from tamis.records import Completion, Cost, Prompt, Verdict, total_cost
from tamis.registry import judge, option


@judge("rank", needs=("text",))
class Rank(AsksModel):
    """Let a model rank the completions of each prompt, best first.

    They are shown in `rounds` random orders, numbered from 1; the reply is JSON {"reason": text, "order": numbers, best
    first}, which must name each number once. A completion's score is the share of the others it stands above, the mean over
    the readable rounds: 1 for the best, 0 for the last. A prompt with one completion is not asked about and scores 1.
    """

    wording: ClassVar[str] = "rank"
    gives: ClassVar[tuple[str, ...]] = ("question", "answers", "reference", "count")

    rounds: int = option(2, "random orders in which the completions are shown", ge=1)

    def judge(
        self, prompts: Mapping[str, Prompt], completions: Sequence[Completion], ctx: Context
    ) -> Iterator[Verdict]:
        """Yield one verdict per completion, in order."""
        shown = [
            (group, [group[i] for i in ctx.rng("rank", group[0].prompt_id, round_number).permutation(len(group))])
            for group in by_prompt(completions).values()
            for round_number in range(self.rounds if len(group) > 1 else 0)
        ]
        questions = [self._question(prompt_of(prompts, order[0]), order) for _, order in shown]
        answers = [a for (a,) in ask(ctx, questions, self.law, retries=self.retries)]
        of_prompt: dict[str, list[tuple[list[Completion], Answer[Any]]]] = {}
        for (_, order), answer in zip(shown, answers, strict=True):
            of_prompt.setdefault(order[0].prompt_id, []).append((order, answer))
        for completion in completions:
            yield failed(completion, "rank") or _verdict(completion, of_prompt.get(completion.prompt_id, []))

    def _question(self, prompt: Prompt, order: Sequence[Completion]) -> Question[dict[str, Any]]:
        schema = {
            "type": "object",
            "required": ["order"],
            "properties": {"reason": {"type": "string"}, "order": {"type": "array", "items": {"type": "integer"}}},
        }
        whole = list(range(1, len(order) + 1))

        def read(text: str) -> dict[str, Any] | None:
            found = read_json(text, schema)
            return found if found and sorted(found["order"]) == whole else None

        messages = self.asked_with.render(**asked(prompt), answers=[c.text for c in order], count=len(order))
        return Question(messages, read, schema)


def _verdict(completion: Completion, answers: Sequence[tuple[list[Completion], Answer[Any]]]) -> Verdict:
    read = [(order, a.value) for order, a in answers if a.value is not None]
    shares = [_share(completion, order, value["order"]) for order, value in read]
    score = sum(shares) / len(shares) if shares else None if answers else 1.0
    first = min((c.id for c in answers[0][0]), default="") if answers else ""
    return Verdict(
        completion.prompt_id,
        (completion.id,),
        "rank",
        score=score,
        label=answers[0][1].fault if score is None else "ranked",
        rationale=str(read[0][1].get("reason", "")) if read else "",
        cost=total_cost(a for _, a in answers) if completion.id == first else Cost(),
    )


def _share(completion: Completion, order: Sequence[Completion], ranking: Sequence[int]) -> float:
    place = ranking.index(1 + [c.id for c in order].index(completion.id))
    return 1 - place / (len(order) - 1)
