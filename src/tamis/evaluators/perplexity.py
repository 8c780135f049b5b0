"""Perplexity of the reference solutions."""

import math
from collections.abc import Sequence

import numpy as np

from tamis import hashing
from tamis.errors import DataError
from tamis.evaluators import stats
from tamis.metrics import Draw, Metric, View
from tamis.records import Message, Prompt, Target
from tamis.registry import evaluator


@evaluator("perplexity", version="2", needs=("scoring", "tokens"))
class Perplexity:
    """Perplexity per token of the reference solutions, given their prompts: exp(sum of nll / number of tokens).

    Each held-out prompt is rendered with its first reference as the assistant's answer; the tokens of the answer and its end
    token count, those of the prompt do not. The interval is a bootstrap over prompts; `per_item` is each prompt's mean
    negative log-likelihood per token, in nats, and so is the paired difference. Prompts without a reference, or too long
    for the model's context, are left out and stand in the notes.

    Raises DataError when no prompt is left.
    """

    def draws(self) -> Sequence[Draw]:
        """Ask for no samples."""
        return ()

    def measure(self, view: View) -> list[Metric]:
        """Return the metric "perplexity" (lower is better)."""
        referenced = sorted((p for p in view.prompts if p.references), key=lambda p: p.id)
        targets = [view.model.chat.render(_with_reference(prompt)) for prompt in referenced]
        limit = getattr(view.model, "context_length", None) or math.inf
        kept = [(p, t) for p, t in zip(referenced, targets, strict=True) if len(t.token_ids) <= limit]
        if not kept:
            raise DataError(
                "no held-out prompt has a reference solution that fits the model",
                hint="Perplexity needs references; leave it out where the data has none.",
            )
        scored = view.model.logprobs([target.token_ids for _, target in kept])
        masks = [np.array(target.weights) > 0 for _, target in kept]
        nll = np.array([-row[mask].sum(dtype=np.float64) for row, mask in zip(scored, masks, strict=True)])
        tokens = np.array([mask.sum() for mask in masks])
        ids = [prompt.id for prompt, _ in kept]
        mean, low, high = stats.bootstrap_ratio(nll, tokens, rng=hashing.rng("perplexity", ids))
        left_out = {"no reference": len(view.prompts) - len(referenced), "too long": len(referenced) - len(kept)}
        return [
            Metric(
                "perplexity",
                value=float(np.exp(mean)),
                low=float(np.exp(low)),
                high=float(np.exp(high)),
                n=len(ids),
                per_item=dict(zip(ids, (nll / tokens).tolist(), strict=True)),
                item_unit="nats per token",
                higher_is_better=False,
                notes={"tokens": int(tokens.sum()), **{name: n for name, n in left_out.items() if n}},
            )
        ]


def _with_reference(prompt: Prompt) -> Target:
    return Target((*prompt.messages, Message("assistant", prompt.references[0])))
