"""The models of one run: each resolved once, one generating model in memory at a time."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import ModelError
from tamis.models.base import ModelRef
from tamis.store import StageFolder

if TYPE_CHECKING:
    from tamis.models.chat import ChatFormat
    from tamis.recipe import Recipe

Log = Callable[..., None]


class Models:
    """The models of a run: resolved once, one generating model in memory at a time."""

    def __init__(self, recipe: "Recipe", log: Log) -> None:
        self.recipe, self.log = recipe, log
        self._loaded: tuple[str, Any] | None = None
        self._refs: dict[str, ModelRef] = {}
        self._chats: dict[str, ChatFormat] = {}
        self._embedder: Any = None

    def resolve(self, name: str) -> ModelRef:
        """Return the resolved model of this name, resolved once a run."""
        from tamis.models.resolve import resolve

        if name not in self._refs:
            self._refs[name] = resolve(name, self._tell)
        return self._refs[name]

    def _tell(self, event: dict[str, Any]) -> None:
        if "text" in event:
            self.log("note", text=event["text"])

    def tuned(self, base: ModelRef, folder: StageFolder) -> ModelRef:
        """Return the model that a finished tune stage made."""
        from tamis.training.tune import tuned_ref

        return tuned_ref(base, folder.path / "model", folder.info()["whole"])

    def get(self, ref: ModelRef) -> Any:
        """Return the loaded model; the one loaded before is released."""
        from tamis.models.resolve import load

        if self._loaded is None or self._loaded[0] != ref.identity:
            self.release()
            options = self.recipe.engine.model_dump() if ref.kind == "local" else {}
            self._loaded = (ref.identity, load(ref, **options))
        return self._loaded[1]

    def engine(self, ref: ModelRef) -> dict[str, Any]:
        """Return how this machine runs a model, as far as it decides results: device, dtype, rows per batch."""
        from tamis.models.hf import LocalModel

        if ref.kind != "local":
            return {}
        model = LocalModel(ref, **self.recipe.engine.model_dump())
        return {"device": model.device.split(":")[0], "dtype": model.dtype, "batch_rows": model.batch_rows}

    def release(self) -> None:
        """Let go of the loaded model."""
        self._loaded = None

    def chat(self, ref: ModelRef) -> "ChatFormat":
        """Return the chat format of a model, without loading its weights."""
        from transformers import AutoTokenizer

        from tamis.models.chat import ChatFormat

        if ref.folder is None:
            raise ModelError(f"the model '{ref.name}' has no tokenizer here", hint="Use a local or hub model.")
        key = str(ref.folder)
        if key not in self._chats:
            tokenizer = AutoTokenizer.from_pretrained(ref.folder, local_files_only=True, trust_remote_code=False)
            self._chats[key] = ChatFormat(tokenizer)
        return self._chats[key]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return (N, d) float32 embeddings by the recipe's embedder."""
        from tamis.models.resolve import load

        if self._embedder is None:
            self._embedder = load(self.resolve(self.recipe.embedder))
        return self._embedder.embed(texts)
