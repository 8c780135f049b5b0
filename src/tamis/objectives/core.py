"""Log-probabilities of given tokens: what every language-model objective is built from.

Convention: position i of a (B, L) result belongs to `ids[:, i]`, predicted from the tokens before it; position 0 is 0. The
shift by one between what a model puts out and what it predicts happens in `_aligned` and nowhere else.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tamis.training.batches import Batch

CHUNK_ELEMENTS = 2**23
"""Logits held at once, in elements: 32 MB in float32."""


class Parts(NamedTuple):
    """A causal language model in two parts: `body(**inputs).last_hidden_state` and `head(states) -> logits`."""

    body: "nn.Module"
    head: "nn.Module"


_PARTS: "WeakKeyDictionary[nn.Module, Parts | None]" = WeakKeyDictionary()


def _aligned(outputs: "Tensor", ids: "Tensor") -> "tuple[Tensor, Tensor]":
    """Return (B, L-1, ...) outputs with the (B, L-1) tokens that they predict."""
    return outputs[:, :-1], ids[:, 1:]


def _logprobs(logits: "Tensor", ids: "Tensor") -> "Tensor":
    """Return log softmax(logits)[ids], float32, for logits (N, V) and ids (N,)."""
    from torch.nn.functional import cross_entropy

    return -cross_entropy(logits.float(), ids, reduction="none")


def token_logprobs(logits: "Tensor", ids: "Tensor") -> "Tensor":
    """Return (B, L) float32: [b, i] = log p(ids[b, i] | ids[b, :i]), and 0 at i = 0.

    `logits` (B, L, V) of any float dtype are the model's outputs at `ids` (B, L) int64.
    """
    from torch.nn.functional import pad

    outputs, predicted = _aligned(logits, ids)
    found = _logprobs(outputs.reshape(-1, logits.shape[-1]), predicted.reshape(-1))
    return pad(found.view(predicted.shape), (1, 0))


def hidden_logprobs(
    hidden: "Tensor",
    head: "Callable[[Tensor], Tensor]",
    ids: "Tensor",
    wanted: "Tensor",
    *,
    vocabulary: int,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> "Tensor":
    """Return `token_logprobs(head(hidden), ids)` where `wanted` (B, L) bool is true, and 0 elsewhere; (B, L) float32.

    `hidden` (B, L, d) is the body's output. Logits are made only at wanted positions, at most `chunk_elements` of them at a
    time, so that no (B, L, V) tensor exists in either pass. A frozen `torch.nn.Linear` as `head` makes them once; any other
    makes them again in the backward pass.
    """
    import torch

    states, predicted = _aligned(hidden, ids)
    rows, columns = wanted[:, 1:].nonzero(as_tuple=True)
    states, predicted = states[rows, columns], predicted[rows, columns]
    size = max(1, chunk_elements // vocabulary)
    if type(head) is torch.nn.Linear and not any(p.requires_grad for p in head.parameters()):
        found = _through_frozen(head, states, predicted, size)
    else:
        found = _in_chunks(head, states, predicted, size)
    result = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
    return result.index_put((rows, columns + 1), found)


def _in_chunks(head: "Callable[[Tensor], Tensor]", states: "Tensor", ids: "Tensor", size: int) -> "Tensor":
    """Return (N,) log-probabilities of `ids` (N,) from `states` (N, d), `size` rows of logits at a time."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def piece(part: "Tensor", wanted: "Tensor") -> "Tensor":
        return _logprobs(head(part), wanted)

    if len(ids) <= size:
        return piece(states, ids)
    return torch.cat(
        [
            checkpoint(piece, s, i, use_reentrant=False, preserve_rng_state=False)
            for s, i in zip(states.split(size), ids.split(size), strict=True)
        ]
    )


def _through_frozen(head: "nn.Linear", states: "Tensor", ids: "Tensor", size: int) -> "Tensor":
    """Return what `_in_chunks` returns, of a head W whose weights do not train.

    The gradient of log p(y) by the state is W[y] - sum_v p(v) W[v]. It is made beside log p, while p is at hand; in the
    result, `(state - state without gradient) . slope`, which is 0, carries it.
    """
    import torch

    found, slopes = [], []
    with torch.no_grad():
        for part, wanted in zip(states.detach().split(size), ids.split(size), strict=True):
            logp = torch.log_softmax(head(part).float(), dim=-1)
            found.append(logp.gather(1, wanted[:, None])[:, 0])
            if states.requires_grad:
                slopes.append(head.weight[wanted] - logp.exp_().to(head.weight.dtype) @ head.weight)
    if not slopes:
        return torch.cat(found)
    return torch.cat(found) + ((states - states.detach()) * torch.cat(slopes)).sum(-1)


def batch_logprobs(model: "nn.Module", batch: "Batch") -> "Tensor":
    """Return (B, L) float32 log-probabilities of the batch's trained tokens (weight not 0), 0 elsewhere.

    Never holds the logits of all positions, unless the model does something between its output layer and its logits (a
    soft cap, a scale): then the model's own full forward is used.
    """
    wanted = batch.weights != 0
    parts = split_model(model)
    if parts is None:
        found = token_logprobs(model(**batch.inputs()).logits, batch.input_ids)
        return found.where(wanted, found.new_zeros(()))
    hidden = parts.body(**batch.inputs()).last_hidden_state
    return hidden_logprobs(hidden, parts.head, batch.input_ids, wanted, vocabulary=_rows(model))


def split_model(model: "nn.Module") -> "Parts | None":
    """Return body and output layer of a causal language model, None where they alone do not give its logits.

    Found out once per model, by comparing with the model's own logits on four tokens.
    """
    if model not in _PARTS:
        parts = _candidate(model)
        _PARTS[model] = parts if parts is not None and _gives_logits(model, parts) else None
    return _PARTS[model]


def _rows(model: "nn.Module") -> int:
    """Return the number of embedding rows: the vocabulary, padding rows included."""
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    return int(embeddings.weight.shape[0])


def _candidate(model: Any) -> "Parts | None":
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return None
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    body, head = getattr(base, "base_model", None), base.get_output_embeddings()
    return None if body is None or body is base or head is None else Parts(body, head)


def _gives_logits(model: "nn.Module", parts: "Parts") -> bool:
    import torch

    training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids = torch.arange(4, device=device)[None] % _rows(model)
    with torch.no_grad():
        own = model(input_ids=ids, use_cache=False).logits
        hidden = getattr(parts.body(input_ids=ids, use_cache=False), "last_hidden_state", None)
        same = hidden is not None and torch.allclose(parts.head(hidden).float(), own.float(), rtol=1e-3, atol=1e-4)
    model.train(training)
    return bool(same)
