"""The models of one run: each resolved once, one generating model in memory at a time."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.errors import ModelError
from tamis.models import engines
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
        self._loaded: tuple[tuple[str, str], Any] | None = None
        self._said: set[str] = set()
        self._refs: dict[str, ModelRef] = {}
        self._chats: dict[str, ChatFormat] = {}
        self._embedder: Any = None

    def resolve(self, name: str) -> ModelRef:
        """Return the resolved model of this name, resolved once a run.

        Raises ModelError where the recipe's engine cannot be used here or cannot run the model.
        """
        from tamis.models.resolve import resolve

        if name not in self._refs:
            engine = self.recipe.engine.name
            engines.check(engine)
            self._refs[name] = resolve(name, self._tell, gguf=engine == "llamacpp")
        return self._refs[name]

    def comparable(self, base: ModelRef) -> ModelRef:
        """Return the base as it is measured: by the engine that can run the tuned model too, where the recipe tunes one."""
        if base.gguf is None or not any("tune" in stage for stage in self.recipe.stages):
            return base
        self._say("transformers measures the base and the tuned model alike: llama.cpp cannot run a tuned one")
        return replace(base, gguf=None)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.log("note", text=text)

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

        engine = engines.choose(self.recipe.engine.name, ref) if ref.kind == "local" else ""
        if self._loaded is None or self._loaded[0] != (ref.identity, engine):
            self.release()
            options = self.recipe.endpoint.options if ref.kind == "endpoint" else {}
            made = self._open(ref, engine) if engine else load(ref, **options)
            self._loaded = ((ref.identity, engine), made)
        return self._loaded[1]

    def _open(self, ref: ModelRef, engine: str) -> Any:
        named = {known.identity for known in self._refs.values()}
        if self.recipe.engine.name not in ("auto", engine) and ref.identity not in named:
            self._say("transformers runs the tuned model: llama.cpp has no .gguf file of it")
        return engines.open_model(ref, engine, **self.recipe.engine.options)

    def engine(self, ref: ModelRef) -> dict[str, Any]:
        """Return how this machine runs a model, as far as it decides results: engine, device, dtype, rows per batch."""
        if ref.kind != "local":
            return {}
        return self._open(ref, engines.choose(self.recipe.engine.name, ref)).key

    def release(self) -> None:
        """Let go of the loaded model, and of the memory that its engine holds."""
        if self._loaded is not None and hasattr(self._loaded[1], "release"):
            self._loaded[1].release()
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
