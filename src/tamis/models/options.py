"""How models are run and asked, as recipes say it. None leaves a choice to the engine or the client."""

from typing import Any, Literal

import pydantic

from tamis.models.engines import EngineName


class Engine(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How local models are run; a name alone stands for its mapping (`engine: vllm`).

    `name`: auto takes vllm where it is installed and has a CUDA device, else transformers (see `models.engines`).
    """

    name: EngineName = "auto"
    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    batch_rows: int | None = pydantic.Field(None, ge=1)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _by_name(cls, engine: Any) -> Any:
        return {"name": engine} if isinstance(engine, str) else engine

    @property
    def options(self) -> dict[str, Any]:
        """What a model is made with: what is given, so that the rest is the engine's own default."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class Asking(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How endpoints are asked (see `models.endpoint.Endpoint`). It changes no result."""

    concurrency: int | None = pydantic.Field(None, ge=1)
    timeout: float | None = pydantic.Field(None, gt=0)
    retries: int | None = pydantic.Field(None, ge=0)
    patience: float | None = pydantic.Field(None, ge=0)

    @property
    def options(self) -> dict[str, Any]:
        """What an endpoint is made with: what is given, so that the rest is the client's own default."""
        return self.model_dump(exclude_none=True)
