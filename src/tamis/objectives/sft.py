"""Supervised fine-tuning: the weighted cross-entropy of the trained tokens."""

from typing import TYPE_CHECKING, Any, ClassVar

from tamis.registry import objective

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tamis.training.batches import Batch


@objective("sft")
class SFT:
    """Raise the probability of the examples' trained tokens.

    loss = sum_i w_i * -log p(token_i | tokens before i) / sum_i w_i, both sums over all trained tokens of a window (the
    examples of one optimizer step), so that the loss does not depend on micro-batches or processes. Nats per token.
    """

    kinds: ClassVar[tuple[str, ...]] = ("sft",)

    def weight(self, batch: "Batch") -> float:
        """Return the sum of the batch's token weights."""
        return float(batch.weights.sum())

    def loss(self, model: "nn.Module", batch: "Batch") -> "tuple[Tensor, dict[str, Any]]":
        """Return the weighted sum of negative log-probabilities (a scalar, nats) and no further metrics."""
        from tamis.objectives.core import batch_logprobs

        return -(batch.weights * batch_logprobs(model, batch)).sum(), {}
