"""Drawing one token per row from (rows, vocabulary) logits under a `Law`, by inverse CDF from one uniform per row.

Every truncation is a floor: tokens whose weight lies below it are left out, tokens tied with the last one kept stay in.
So the law is a function of the logits alone, never of a sorting order. Knows nothing of rows, caches or texts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tamis.errors import ConfigError
from tamis.records import Law

_BLOCK = 256
_CACHED = 2**20


@dataclass(frozen=True, slots=True)
class Drawn:
    """One drawn token per row: `tokens` (R,) int64; `logprobs` under the law that was sampled from and `raw_logprobs`
    under the model itself, both (R,) float32, natural logarithms."""

    tokens: Tensor
    logprobs: Tensor
    raw_logprobs: Tensor


def check_law(law: Law) -> None:
    """Raise ConfigError when a field of `law` lies outside its range."""
    ranges = {
        "temperature": (law.temperature >= 0, "0 (greedy) or more"),
        "top_p": (0 < law.top_p <= 1, "above 0 and at most 1 (1 = off)"),
        "top_k": (law.top_k >= 0, "0 (off) or more"),
        "min_p": (0 <= law.min_p <= 1, "between 0 (off) and 1"),
        "max_new_tokens": (law.max_new_tokens >= 1, "1 or more"),
        "stop": (all(law.stop), "without empty strings"),
    }
    for field, (holds, wanted) in ranges.items():
        if not holds:
            raise ConfigError(f"{field} is {getattr(law, field)!r}; it must be {wanted}", where=f"law.{field}")


def draw(logits: Tensor, law: Law, uniforms: Tensor) -> Drawn:
    """Draw one token per row.

    `logits` (R, V) in any floating dtype are used as float32 (float64 where they are float64); `uniforms` (R,) in [0, 1).
    The truncations apply in the order temperature, top_k, top_p, min_p, each on what the one before left, renormalised.
    Temperature 0 takes the most probable token, whose log-probability under the (one-point) law is 0.

    On a CPU the rows are taken a few at a time, so that what is made of their logits stays in its cache.
    """
    rows = max(1, _CACHED // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    parts = [_draw(part, law, own) for part, own in zip(logits.split(rows), uniforms.split(rows), strict=True)]
    return Drawn(*(torch.cat([getattr(part, name) for part in parts]) for name in Drawn.__slots__))


def _draw(logits: Tensor, law: Law, uniforms: Tensor) -> Drawn:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    peak = logits.amax(-1, keepdim=True)
    weights = logits - peak
    if law.temperature == 0:
        tokens = logits.argmax(-1)
        raw = _at(weights, tokens) - _log_total(weights)
        return Drawn(tokens, torch.zeros_like(raw, dtype=torch.float32), raw.float())
    changed = law.temperature != 1 or law.top_k > 0 or law.top_p < 1 or law.min_p > 0
    raw_total = _log_total(weights) if changed else None
    weights = truncate(weights.div_(law.temperature).exp_(), law)
    tokens, total = inverse_cdf(weights, uniforms)
    score = _at(logits, tokens) - peak[:, 0]
    logprobs = score / law.temperature - total.log()
    raw = logprobs if raw_total is None else score - raw_total
    return Drawn(tokens, logprobs.float(), raw.float())


def truncate(weights: Tensor, law: Law) -> Tensor:
    """Set to 0, in place, the weights that `law` leaves out, and return them.

    `weights` (R, V) are unnormalised probabilities whose largest is 1 in every row.
    """
    if 0 < law.top_k < weights.shape[-1]:
        weights.masked_fill_(weights < weights.topk(law.top_k).values[:, -1:], 0)
    if law.top_p < 1:
        weights.masked_fill_(weights < nucleus_floor(weights, law.top_p).clamp_(min=law.min_p), 0)
    elif law.min_p > 0:
        weights.masked_fill_(weights < law.min_p, 0)
    return weights


def nucleus_floor(weights: Tensor, mass: float) -> Tensor:
    """Return (R, 1) the smallest weight in the smallest set of most probable tokens that holds `mass` (0..1) of a row.

    Holtzman et al. 2020 (nucleus sampling), section 3.1: in ascending order, the tokens up to a mass of 1 - `mass` go.
    """
    ascending = _sorted(weights)
    cut = torch.full((len(weights),), 1 - mass, dtype=_wide(weights), device=weights.device)
    lowest, _ = inverse_cdf(ascending, cut)
    return ascending.gather(-1, lowest[:, None])


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return (R,) int64 tokens and (R,) totals: token t is drawn where the running sum of `weights` first exceeds u * total.

    `weights` (R, V) are not negative, with a positive sum in each row; `uniforms` (R,) lie in [0, 1). Sums are taken in
    float64 over blocks of 256 and then within one block, so that a large vocabulary costs neither accuracy nor a full scan.
    A token of weight 0 is never drawn.
    """
    rows, size = weights.shape
    wide = _wide(weights)
    padded = torch.nn.functional.pad(weights, (0, -size % _BLOCK)) if size % _BLOCK else weights
    blocks = padded.view(rows, -1, _BLOCK)
    edges = torch.nn.functional.pad(blocks.sum(-1).cumsum(-1, dtype=wide), (1, 0))
    target = uniforms.to(wide)[:, None] * edges[:, -1:]
    block = _first_above(edges[:, 1:], target)
    inside = blocks[torch.arange(rows, device=weights.device), block].cumsum(-1, dtype=wide)
    token = _first_above(inside, target - edges.gather(-1, block[:, None]))
    return block * _BLOCK + token, edges[:, -1].to(weights.dtype)


def _first_above(running: Tensor, target: Tensor) -> Tensor:
    """First index whose running sum exceeds the target; the last one with a positive weight where rounding leaves none."""
    return torch.minimum((running <= target).sum(-1), (running < running[:, -1:]).sum(-1))


def _log_total(shifted: Tensor) -> Tensor:
    """Log of the sum of exponentials (R,) of logits (R, V) whose peak is at 0."""
    return shifted.exp().sum(-1).log()


def _at(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(-1, tokens[:, None])[:, 0]


def _wide(values: Tensor) -> torch.dtype:
    return torch.float32 if values.device.type == "mps" else torch.float64


def _sorted(weights: Tensor) -> Tensor:
    """Ascending weights per row; numpy's vectorised sort is about twenty times faster than torch's on a CPU."""
    if weights.device.type == "cpu":
        return torch.from_numpy(np.sort(weights.numpy(), axis=-1))
    return weights.sort(-1).values
