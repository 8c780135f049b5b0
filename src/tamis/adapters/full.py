"""Full fine-tuning: every weight of the model trains."""

from typing import TYPE_CHECKING, ClassVar

from tamis.registry import adapter

if TYPE_CHECKING:
    from torch import nn


@adapter("full")
class Full:
    """Train all weights of the model.

    Takes 16 bytes a parameter in float32 (weight, gradient, two moments of AdamW). Wants a learning rate 10 to 20 times
    smaller than LoRA's. The whole model is saved.
    """

    whole: ClassVar[bool] = True
    """The model is loaded in float32 and saved whole, in the dtype its base is stored in."""

    def attach(self, module: "nn.Module", seed: int) -> "nn.Module":
        """Return `module` with every floating-point parameter set to train; `seed` is not needed."""
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return module
