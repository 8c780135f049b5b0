"""The options of a tune stage that are not the objective's or the adapter's."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tamis.registry import construct

NOT_IN_DIGEST = frozenset({"checkpoint_every", "keep", "start"})
Decay = Annotated[float, Field(ge=0, lt=1)]


class TuneConfig(BaseModel):
    """How to train: length, learning rate, batches, precision, checkpoints and seeds.

    The defaults suit LoRA on a few thousand examples; full fine-tuning wants a learning rate 10 to 20 times smaller.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: float = Field(2.0, gt=0, le=100_000, description="passes over the examples; a fraction ends inside a pass")
    max_steps: int | None = Field(
        None, ge=1, description="exact number of optimizer steps; overrides epochs, repeats the examples if needed"
    )
    lr: float = Field(2e-4, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="learning rate after the warm-up: constant, or down to 0 at the end"
    )
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps with a linearly rising learning rate")
    batch_size: int = Field(16, ge=1, description="examples per optimizer step (the window)")
    micro_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens per forward pass, padding included; bounds memory, not the mathematics; null: 512 on a CPU, "
        "4096 elsewhere",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay of matrices; norms and biases have none")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW moment decay rates")
    eps: float = Field(1e-8, gt=0, description="AdamW epsilon")
    clip: float | None = Field(1.0, gt=0, description="largest norm of a window's gradient; null: no clipping")
    batching: Literal["auto", "bucket", "pack"] = Field(
        "auto",
        description="bucket: rows of like length, padded; pack: several examples in one row, kept apart; auto: pack where "
        "the model can attend example by example (on a CPU), else bucket",
    )
    max_length: int = Field(2048, ge=2, description="longer examples are refused and counted, never cut")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, about 30 % slower")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="precision of the forward pass; auto: bfloat16 on a GPU that has it, else float32"
    )
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints kept")
    start: Literal["base", "last"] = Field(
        "base", description="weights each round starts from: base model or last round's"
    )
    init_seed: int | None = Field(None, description="seed of new parameters; null: derived from the run's seed")
    data_seed: int | None = Field(None, description="seed of the data order; null: derived from the run's seed")

    @classmethod
    def build(cls, options: Mapping[str, Any] | None = None, where: str = "tune") -> "TuneConfig":
        """Return the config of recipe options. Raises ConfigError that names the field, or the nearest one."""
        return construct(cls, cls.model_fields, options, where)

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of step `step` (0-based) of `steps`."""
        warm = math.ceil(self.warmup * steps)
        if step < warm:
            return self.lr * (step + 1) / warm
        done = (step - warm) / max(1, steps - warm)
        if self.schedule == "linear":
            return self.lr * (1 - done)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        return self.lr

    def mathematics(self) -> dict[str, Any]:
        """Return the options that decide what the trained weights are; a checkpoint of others cannot be resumed."""
        return self.model_dump(exclude=set(NOT_IN_DIGEST))
