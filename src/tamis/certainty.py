"""Certainty in words: the question that follows an answer, how probable a model finds "sure", and what that is worth.

Source: R-Tuning (Zhang et al., NAACL 2024, arXiv 2311.09677).
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic
from pydantic.dataclasses import dataclass as validated

from tamis.answers import normalise
from tamis.errors import ConfigError, ModelError
from tamis.records import Message, Prompt, Target
from tamis.registry import option

if TYPE_CHECKING:
    from tamis.models.chat import ChatFormat

QUESTION = "Are you sure that you answered accurately, from your own knowledge?"
_ROWS = 256


@validated(frozen=True, kw_only=True, config=pydantic.ConfigDict(extra="forbid", allow_inf_nan=False))
class StatesCertainty:
    """The wording of certainty, the same in training and at test: a question after the answer, and two replies to it."""

    question: str = option(QUESTION, "what the model is asked after its answer", min_length=1)
    sure: str = option("I am sure.", "what it says of an answer that it knows", source="paper", min_length=1)
    unsure: str = option("I am unsure.", "what it says of one that it does not know", source="paper", min_length=1)

    def __post_init__(self) -> None:
        if self.sure.strip() == self.unsure.strip():
            raise ValueError("sure and unsure are the same")

    def asked_after(self, prompt: Prompt, answer: str) -> tuple[Message, ...]:
        """Return the conversation up to the question of certainty."""
        return (*prompt.messages, Message("assistant", sentence(answer)), Message("user", self.question))


def sentence(answer: str) -> str:
    """Return an answer as it is trained and shown: white space around it cut, ended by a full stop unless it has an end."""
    answer = answer.strip()
    return answer if answer.endswith((".", "!", "?")) else f"{answer}."


def sure_probabilities(
    model: Any, prompts: Sequence[Prompt], answers: Sequence[str], wording: StatesCertainty
) -> np.ndarray:
    """Return p(sure) / (p(sure) + p(unsure)) of each answer, (N,) float64.

    p are next-token probabilities at the point where the tokens of the two replies part, as training renders them. Raises
    ModelError for a model without next-token logits, ConfigError where the two replies part behind the beginning of the word
    in which they differ (their first tokens coincide, and s would compare something else).
    """
    if not hasattr(model, "next_token_logits"):
        raise ModelError(
            f"the model '{getattr(model, 'name', model)}' gives no next-token logits, which tell how sure it is",
            hint="Use a local model.",
        )
    asked = [wording.asked_after(p, a) for p, a in zip(prompts, answers, strict=True)]
    found = np.empty(len(asked))
    for at in range(0, len(asked), _ROWS):
        forks = [_fork(model.chat, messages, wording) for messages in asked[at : at + _ROWS]]
        logits = model.next_token_logits([before for before, _, _ in forks]).astype(np.float64)
        rows = np.arange(len(forks))
        gap = logits[rows, [b for _, _, b in forks]] - logits[rows, [a for _, a, _ in forks]]
        found[at : at + _ROWS] = np.exp(-np.logaddexp(0, gap))
    return found


def _fork(
    chat: "ChatFormat", messages: tuple[Message, ...], wording: StatesCertainty
) -> tuple[tuple[int, ...], int, int]:
    """Return the tokens that both replies begin with, prompt included, and the first token of each behind them."""
    sure, unsure = (
        chat.render(Target((*messages, Message("assistant", said)))).token_ids
        for said in (wording.sure, wording.unsure)
    )
    shared = _shared(sure, unsure)
    if shared in (len(sure), len(unsure)):
        raise ConfigError("one of the replies sure and unsure is the beginning of the other")
    letters = wording.sure[: _shared(wording.sure, wording.unsure)]
    head = letters[: letters.rfind(" ") + 1]
    said = chat.decode(sure[len(chat.prompt_ids(messages)) : shared])
    if not head.strip().startswith(said.strip()):
        raise ConfigError(
            f"the replies {wording.sure!r} and {wording.unsure!r} share the first token of the word in which they differ",
            hint="Choose words whose first tokens differ in this model's tokenizer, e.g. sure and unsure.",
        )
    return sure[:shared], sure[shared], unsure[shared]


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Return how many elements both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def answer_entropy(answers: Sequence[str]) -> float:
    """Return -sum_j p_j ln p_j over the shares p_j of the distinct answers, in nats. Answers are normalised (our choice)."""
    shares = np.array(list(Counter(map(normalise, answers)).values())) / len(answers)
    return float(abs((shares * np.log(shares)).sum()))


def average_precision(right: np.ndarray, score: np.ndarray) -> float:
    """Return sum_k (R_k - R_{k-1}) P_k over the thresholds k of `score` (N,), `right` (N,) of 0 and 1; 0.0 where none is right.

    Equal scores are one threshold, so their order does not matter.
    """
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(np.asarray(right, dtype=np.float64)[order])
    if not len(hits) or hits[-1] == 0:
        return 0.0
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    return float((np.diff(hits[last] / hits[-1], prepend=0.0) * hits[last] / (last + 1)).sum())
