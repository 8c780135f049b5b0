"""Prompts drawn by reasoning-gym: about a hundred families of puzzles with exact answers, without end."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from tamis import gym
from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.hashing import derive_seed
from tamis.records import Message, Prompt
from tamis.registry import option, task
from tamis.tasks import splits

_PATIENCE = 500


@dataclass(frozen=True, slots=True)
class _Item:
    seed: int
    index: int
    key: bytes
    question: str
    answers: tuple[str, ...]
    facts: dict[str, Any]


@task("reasoning_gym")
class ReasoningGym:
    """Draw prompts of a reasoning-gym data set (Stojanovski et al. 2025), all different, train and held-out apart.

    reasoning-gym draws item i with seed + i, so streams with nearby seeds are the same items shifted. Here one stream is
    drawn in blocks, each block's seed derived by a hash; items whose normalised question was seen before are skipped,
    until `size + heldout` different ones are there. The held-out ones are those with the smallest content hashes
    (`tamis.tasks.splits`), so no question is on both sides.

    The reference is the item's answer. Metadata: "dataset", "seed", "index" and "options" (from which the item can be drawn
    again), "scorer" ("own" where the data set has a scorer of its own that is safe to call, else "gold"), and the item's
    plain figures (numbers, short texts).

    A few data sets need PYTHONHASHSEED=0 to draw the same items in every process; the error says so.

    Raises ConfigError for an unknown name or option, DataError when fewer different questions exist than asked.
    """

    name: str = option(..., "Name of the data set, for example chain_sum.")
    size: int = option(200, "Training prompts.", ge=1)
    heldout: int = option(100, "Held-out prompts.", ge=0)
    seed: int | None = option(None, "Seed of the stream; none means the run's.")
    options: dict[str, Any] = option({}, "Options of the data set, such as {min_terms: 2, max_terms: 4}.")
    template: str = option("{question}", "Text of the user message, with {question} filled in.")
    system: str = option("", "System prompt.")

    contract = {"name": "chain_sum", "size": 8, "heldout": 4}  # noqa: RUF012

    def __post_init__(self) -> None:
        if "{question}" not in self.template:
            raise ConfigError("template lacks {question}", where="task 'reasoning_gym'")
        reserved = {"seed", "size"} & self.options.keys()
        if reserved:
            raise ConfigError(f"options hold {sorted(reserved)}, which the task sets", where="task 'reasoning_gym'")

    def fingerprint(self) -> str:
        """Return the version of reasoning-gym: another one may draw other items."""
        from importlib.metadata import version

        return version("reasoning-gym")

    def prompts(self, ctx: Context) -> Iterator[Prompt]:
        """Yield the prompts in the order of the stream."""
        items = self._draw(ctx.seed if self.seed is None else self.seed, ctx)
        heldout = splits.heldout_keys({item.key: 1 for item in items}, self.heldout)
        scorer = "own" if gym.has_scorer(self.name) else "gold"
        if self.name in gym.EVALUATING_SCORERS:
            ctx.count("scorer of the data set not used: it would run answers as code")
        origin = {"dataset": self.name, "options": self.options, "scorer": scorer}
        for item in items:
            yield Prompt(
                self._messages(item.question),
                item.answers,
                "reasoning_gym",
                {**item.facts, **origin, "seed": item.seed, "index": item.index},
                "heldout" if item.key in heldout else "train",
                f"{self.name}:{item.seed}+{item.index}",
            )

    def _messages(self, question: str) -> tuple[Message, ...]:
        user = Message("user", self.template.replace("{question}", question))
        return (Message("system", self.system), user) if self.system else (user,)

    def _draw(self, seed: int, ctx: Context) -> list[_Item]:
        """Draw until enough different items are there; give up after a long run of repeats."""
        wanted = self.size + self.heldout
        found: dict[bytes, _Item] = {}
        repeats = drawn = 0
        for item in self._stream(seed):
            repeats = repeats + 1 if item is None or item.key in found else 0
            drawn += 1
            if item is not None:
                found.setdefault(item.key, item)
            if len(found) == wanted:
                break
            if repeats > _PATIENCE + 4 * len(found):
                raise DataError(
                    f"only {len(found)} different questions in {drawn} draws, {wanted} are asked "
                    f"({self.size} to train, {self.heldout} held out)",
                    where=f"reasoning_gym '{self.name}'",
                    hint="Lower `size` or `heldout`, or widen the data set with `options`.",
                )
        ctx.count("repeated questions skipped", drawn - len(found))
        return list(found.values())

    def _stream(self, seed: int) -> Iterator[_Item | None]:
        """Yield items without end, block after block; None where the data set has run out of items for its block."""
        for number in count():
            start = derive_seed(seed, "reasoning_gym", self.name, number) % 2**31
            block = gym.open_block(self.name, start, self.options)
            for index in range(gym.BLOCK):
                try:
                    yield _item(start, index, gym.draw(block, index))
                except IndexError:
                    yield None


def _item(seed: int, index: int, entry: Mapping[str, Any]) -> _Item:
    question, answer = str(entry["question"]), entry.get("answer")
    answers = () if answer is None or not str(answer).strip() else (str(answer),)
    return _Item(seed, index, splits.key(question), question, answers, _facts(entry.get("metadata") or {}))


def _facts(metadata: Mapping[str, Any]) -> dict[str, Any]:
    skipped = ("source_dataset", "source_index")
    return {
        k: v
        for k, v in metadata.items()
        if k not in skipped and (isinstance(v, bool | int | float) or (isinstance(v, str) and len(v) <= 200))
    }
