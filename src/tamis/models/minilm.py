"""Sentence embeddings by a small BERT encoder (default all-MiniLM-L6-v2): mean over tokens, then length one.

Pooling as in Sentence-BERT (Reimers and Gurevych 2019, arXiv:1908.10084, section 3, MEAN strategy).
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from tamis.errors import ModelError
from tamis.models.base import ModelRef
from tamis.models.gguf import quiet_transformers


class MiniLM:
    """Embedder over a `transformers` BertModel folder.

    `device`: torch device, default the first GPU, else the CPU. `batch_rows`: texts per forward (default 64).
    `max_tokens`: texts are cut after so many tokens, [CLS] and [SEP] included (default 256, as the model was trained for).
    The model is loaded, in float32, on first use.
    """

    def __init__(
        self, ref: ModelRef, *, device: str | None = None, batch_rows: int = 64, max_tokens: int = 256
    ) -> None:
        if ref.folder is None:
            raise ModelError(f"'{ref.name}' has no folder to load an embedder from")
        self.ref, self.name, self.identity, self.folder = ref, ref.name, ref.identity, ref.folder
        self.device, self.batch_rows, self.max_tokens = device, batch_rows, max_tokens

    @cached_property
    def _loaded(self) -> tuple[Any, Any, str]:
        import torch
        from transformers import AutoModel, AutoTokenizer

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(self.folder, **options)
            module = AutoModel.from_pretrained(self.folder, dtype=torch.float32, use_safetensors=True, **options)
        return tokenizer, module.to(device).eval(), device

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return (len(texts), d) float32 unit vectors (d = 384 for MiniLM), one row per text in its order.

        Texts are sorted by length, so that a batch holds little padding; a row depends on its batch by rounding (1e-6) only.
        """
        tokenizer, module, device = self._loaded
        vectors = np.zeros((len(texts), module.config.hidden_size), dtype=np.float32)
        if not len(texts):
            return vectors
        ids = tokenizer(list(texts), truncation=True, max_length=self.max_tokens, padding=False)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
        for start in range(0, len(order), self.batch_rows):
            rows = order[start : start + self.batch_rows]
            batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt").to(device)
            vectors[rows] = _mean_pooled(module, batch).cpu().numpy()
        return vectors


def _mean_pooled(module: Any, batch: Any) -> Any:
    """Return (rows, d) unit vectors: the mean of the last hidden states at real tokens."""
    import torch

    with torch.inference_mode():
        hidden = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        return torch.nn.functional.normalize(mean, dim=-1)
