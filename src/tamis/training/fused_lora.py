"""LoRA's forward and backward pass in as few passes over memory as there are matrix products.

PEFT computes `W x + B(A(x)) * s` as three products, a scaling and a sum, each of which writes a tensor of the output's size.
Here the low-rank product is added into the output of `W x` by the matrix product itself, likewise in the backward pass.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear


class _Update(torch.autograd.Function):
    """y = x W' + bias + s (x A') B' for x (..., in), frozen W (out, in) and bias (out,), A (r, in), B (out, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.T
        y = linear(rows, weight, bias).addmm_(low, b.T, alpha=scale)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, weight, a, b = ctx.saved_tensors
        dy = grads[0].reshape(-1, weight.shape[0])
        dlow = (dy @ b).mul_(ctx.scale)
        dx = (dy @ weight).addmm_(dlow, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return dx, None, None, dlow.T @ rows, (dy.T @ low).mul_(ctx.scale), None


class FusedLinear(Linear):
    """PEFT's LoRA layer over a linear layer; plain LoRA in training goes the short way, everything else PEFT's."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return W x + s B A x, of the shape of x but for the last axis."""
        if args or kwargs or not self._plain():
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        base: Any = self.get_base_layer()
        a: Any = self.lora_A[name].weight
        b: Any = self.lora_B[name].weight
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        given = (None if tensor is None else tensor.to(dtype) for tensor in (x, base.weight, base.bias, a, b))
        updated: Tensor = _Update.apply(*given, self.scaling[name])  # type: ignore[no-untyped-call]
        return updated

    def _plain(self) -> bool:
        """Whether this is one adapter of A and B alone, beside a frozen linear layer."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_B[name].bias is not None:
            return False
        dropout = self.lora_dropout[name]
        idle = isinstance(dropout, nn.Identity) or not dropout.training
        return idle and not any(p.requires_grad for p in self.get_base_layer().parameters())


def fuse(module: nn.Module) -> None:
    """Let the LoRA layers of a PEFT model over plain linear layers take the short way. Names and weights stay as they are."""
    for layer in module.modules():
        if type(layer) is Linear and type(layer.base_layer) is nn.Linear:
            layer.__class__ = FusedLinear
