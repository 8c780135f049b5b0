"""LoRA: low-rank updates beside frozen weights, through PEFT."""

import re
from typing import TYPE_CHECKING

from tamis.errors import ConfigError
from tamis.registry import adapter, option

if TYPE_CHECKING:
    from torch import nn


@adapter("lora", paper="LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, arXiv 2106.09685)")
class LoRA:
    """Train a low-rank update of the linear layers and leave the model's weights as they are.

    W x becomes W x + s B A x with A (r, in) drawn at random (Kaiming uniform), B (out, r) zero, and s = alpha / r, or
    alpha / sqrt(r) with `use_rslora`. At the start the model is therefore unchanged. The adapter is saved in PEFT's format.
    """

    r: int = option(16, "rank of the update", ge=1, le=4096)
    alpha: float = option(32.0, "scale of the update: divided by r, or by its root with use_rslora", gt=0)
    dropout: float = option(0.0, "dropout on the input of the update while training", ge=0, lt=1)
    targets: str | tuple[str, ...] = option(
        "all-linear", "layers to update: 'all-linear' (all but the output layer) or names such as q_proj, v_proj"
    )
    use_rslora: bool = option(False, "rank-stabilised scale, alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732)")

    def attach(self, module: "nn.Module", seed: int) -> "nn.Module":
        """Return `module` with the adapter in it (a PEFT model whose other weights are frozen), drawn from `seed`.

        Raises ConfigError when no layer has a name of `targets`.
        """
        import warnings

        import torch
        from peft import LoraConfig, get_peft_model

        from tamis.training.fused_lora import fuse

        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets if isinstance(self.targets, str) else list(self.targets),
            use_rslora=self.use_rslora,
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.manual_seed(seed)
            try:
                tuned = get_peft_model(module, config)
            except (ValueError, re.error) as error:
                raise ConfigError(f"targets: {error}", where="adapter 'lora'", hint="Check `targets`.") from None
        fuse(tuned)
        return tuned
