"""A local model through vLLM's offline engine. Written against vLLM 0.33.0; not run on a GPU here, only against a stub."""

import gc
import json
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from tamis import environment
from tamis.errors import ConfigError, MissingExtra, ModelError
from tamis.models.base import ModelRef
from tamis.models.folders import read_json
from tamis.models.sampled import SampledModel
from tamis.records import Law

if TYPE_CHECKING:
    from tamis.generation import Request, Sampled, StopStrings

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for its greatest LoRA rank."""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0
"""vLLM raises a lower temperature (other than 0) in silence, and refuses a higher one."""


class VLLMModel(SampledModel):
    """A `transformers` folder, with its adapter where it has one, on CUDA devices: capabilities text and scoring.

    `dtype` defaults to bfloat16 where the device computes in it, else float16. `batch_rows` is the most sequences that
    vLLM runs together (None: its own default). Devices are those of CUDA_VISIBLE_DEVICES. Loaded at its first use; vLLM
    then takes most of the GPU's memory, until `release`.

    Every candidate is a request of its own with its own seed, so a draw does not depend on how many candidates there are.
    vLLM batches as it sees fit, and rounding with it: the same seeds give the same tokens up to that, and to the bit only
    with VLLM_BATCH_INVARIANT=1 (on GPUs that vLLM supports it on). `raw_logprobs` are the model's own (vLLM's mode
    "raw_logprobs"); `logprobs` are given where they follow from them: at temperature 1 without truncation, and at 0.

    A plain LoRA adapter is handed to vLLM; another kind of adapter is merged into a temporary copy of the base.
    Raises MissingExtra without vLLM, ModelError without a CUDA device, ConfigError for another device.
    """

    _running: "ClassVar[weakref.ref[VLLMModel] | None]" = None

    def __init__(
        self, ref: ModelRef, *, device: str | None = None, dtype: str | None = None, batch_rows: int | None = None
    ) -> None:
        super().__init__(ref, batch_rows)
        if device not in (None, "cuda"):
            raise ConfigError(
                f"vLLM runs on CUDA devices, not on '{device}'",
                where="engine.device",
                hint="Leave device out; CUDA_VISIBLE_DEVICES chooses among several.",
            )
        self._dtype, self.device = dtype, "cuda"
        self._merged: tempfile.TemporaryDirectory[str] | None = None

    @cached_property
    def dtype(self) -> str:
        """Dtype of weights and activations: as asked, or what suits the device."""
        import torch

        return self._dtype or ("bfloat16" if torch.cuda.is_bf16_supported() else "float16")

    @property
    def key(self) -> dict[str, Any]:
        """What decides results besides the model: engine and its version (random streams change with it), dtype, rows."""
        invariant = os.environ.get("VLLM_BATCH_INVARIANT", "0") not in ("", "0")
        return {
            "engine": "vllm",
            "version": environment.version("vllm"),
            "device": self.device,
            "dtype": self.dtype,
            "batch_rows": self.batch_rows,
            "invariant": invariant,
        }

    @property
    def context_length(self) -> int | None:
        """Most tokens a sequence may have, as vLLM settled it."""
        return int(self._llm.model_config.max_model_len)

    def draw(self, requests: "Sequence[Request]", law: Law, stop: "StopStrings | None") -> "Iterator[Sampled]":
        """Yield a `Sampled` per seed of every request, in order; all of them are sampled before the first is given.

        Raises ConfigError for a law that vLLM would not sample from as it is written.
        """
        from vllm import SamplingParams

        _check_law(law)
        wanted = [(n, c) for n, request in enumerate(requests) for c in range(len(request.seeds))]
        params = [
            SamplingParams(
                n=1,
                seed=requests[n].seeds[c],
                temperature=law.temperature,
                top_p=law.top_p,
                top_k=law.top_k,
                min_p=law.min_p,
                max_tokens=requests[n].limit,
                stop=list(law.stop) or None,
                stop_token_ids=list(self.end_ids),
                ignore_eos=True,
                logprobs=0,
                detokenize=bool(law.stop),
            )
            for n, c in wanted
        ]
        outputs = self._generate([requests[n].tokens for n, _ in wanted], params)
        for (n, c), output in zip(wanted, outputs, strict=True):
            yield _sampled(n, c, output.outputs[0], law, stop)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return for each sequence a float32 array of its length: [i] = log p(token i | tokens before i), [0] = 0.

        Raises ModelError for a sequence that leaves no room for one token more, which vLLM always samples.
        """
        from vllm import SamplingParams

        scores = [np.zeros(len(sequence), dtype=np.float32) for sequence in sequences]
        numbers = [i for i, sequence in enumerate(sequences) if len(sequence) > 1]
        most = (self.context_length or 0) - 1
        too_long = next((i for i in numbers if len(sequences[i]) > most), None)
        if too_long is not None:
            raise ModelError(
                f"sequence {too_long} has {len(sequences[too_long])} tokens; vLLM scores at most {most} of this model",
                hint="Leave long sequences out, or take engine transformers.",
            )
        params = SamplingParams(n=1, temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._generate([sequences[i] for i in numbers], [params] * len(numbers))
        for i, output in zip(numbers, outputs, strict=True):
            found = zip(sequences[i][1:], output.prompt_logprobs[1:], strict=True)
            scores[i][1:] = [place[token].logprob for token, place in found]
        return scores

    def next_token_logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Raise ModelError: vLLM gives no logits of the whole vocabulary."""
        raise ModelError(
            "vLLM gives no logits of the whole vocabulary", hint="Take engine transformers for what needs them."
        )

    def release(self) -> None:
        """End vLLM's process and give the GPU's memory back; the model is loaded again at its next use."""
        llm = self.__dict__.pop("_llm", None)
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
            del llm
            _free_memory()
        if self._merged is not None:
            self._merged.cleanup()
            self._merged = None

    def _generate(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        if not prompts:
            return []
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
        return self._llm.generate(inputs, list(params), use_tqdm=False, lora_request=self._lora)

    @cached_property
    def _lora(self) -> Any:
        if self.ref.adapter is None or not _is_plain_lora(self.ref.adapter):
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(lora_name=self.identity, lora_int_id=1, lora_path=str(self.ref.adapter))

    @cached_property
    def _llm(self) -> Any:
        check_vllm()
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import LLM

        options: dict[str, Any] = {}
        if self.batch_rows is not None:
            options["max_num_seqs"] = self.batch_rows
        if self.ref.adapter is not None and _is_plain_lora(self.ref.adapter):
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _rank(self.ref.adapter)}
        self._take_device()
        try:
            return LLM(
                model=str(self._weights()),
                tokenizer=str(self.folder_with("tokenizer_config.json")),
                dtype=self.dtype,
                seed=0,
                trust_remote_code=False,
                generation_config="vllm",
                logprobs_mode="raw_logprobs",
                **options,
            )
        except (ValueError, RuntimeError, OSError) as error:
            said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ModelError(
                f"vLLM cannot load '{self.name}': {said}",
                where=str(self.ref.folder),
                hint="Or take engine transformers.",
            ) from error

    def _take_device(self) -> None:
        """End the engine of another model: each takes most of the GPU's memory, so only one can run."""
        other = VLLMModel._running() if VLLMModel._running else None
        if other is not None and other is not self:
            other.release()
        VLLMModel._running = weakref.ref(self)
        _free_memory()

    def _weights(self) -> Path:
        """The folder to load: the base's, or a temporary one with an adapter merged that vLLM does not know."""
        assert self.ref.folder is not None
        if self.ref.adapter is None or _is_plain_lora(self.ref.adapter):
            return self.ref.folder
        from tamis.models.hf import LocalModel

        self._merged = tempfile.TemporaryDirectory(prefix="tamis-merged-")
        LocalModel(self.ref, device="cpu", dtype=self.dtype).module().save_pretrained(self._merged.name)
        return Path(self._merged.name)


def check_vllm() -> None:
    """Raise MissingExtra where vLLM is not installed, ModelError where there is no CUDA device."""
    if not environment.version("vllm"):
        raise MissingExtra("vllm", "vllm", "engine vllm")
    import torch

    if not torch.cuda.is_available():
        raise ModelError(
            "vLLM needs a CUDA device, and torch finds none here", hint="Leave engine out, or set it to transformers."
        )


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _check_law(law: Law) -> None:
    low = 0 < law.temperature < LOWEST_TEMPERATURE
    if low or law.temperature > HIGHEST_TEMPERATURE:
        raise ConfigError(
            f"vLLM samples at temperatures 0 and {LOWEST_TEMPERATURE} to {HIGHEST_TEMPERATURE}, not {law.temperature}",
            where="law.temperature",
            hint="Take engine transformers for this law.",
        )
    if law.top_p < 1 and law.min_p > 0:
        raise ConfigError(
            "vLLM applies min_p before top_p, tamis after it: together they are another law there",
            where="law.min_p",
            hint="Set one of them, or take engine transformers.",
        )


def _is_plain_lora(adapter: Path) -> bool:
    """Whether vLLM computes with this adapter what PEFT does: LoRA alone, of a rank that it takes."""
    config = read_json(adapter / "adapter_config.json")
    more = (
        "use_dora",
        "lora_bias",
        "modules_to_save",
        "layer_replication",
        "alora_invocation_tokens",
        "use_bdlora",
        "use_qalora",
        "target_parameters",
        "trainable_token_indices",
        "rank_pattern",
        "alpha_pattern",
    )
    return (
        config.get("peft_type") == "LORA"
        and not any(config.get(name) for name in more)
        and config.get("bias", "none") == "none"
        and isinstance(config.get("init_lora_weights", True), bool)
        and int(config.get("r") or 0) <= RANKS[-1]
        and "embed_tokens" not in json.dumps(config.get("target_modules"))
        and "lm_head" not in json.dumps(config.get("target_modules"))
    )


def _rank(adapter: Path) -> int:
    rank = int(read_json(adapter / "adapter_config.json")["r"])
    return next(allowed for allowed in RANKS if allowed >= rank)


def _sampled(request: int, candidate: int, output: Any, law: Law, stop: "StopStrings | None") -> "Sampled":
    """Return vLLM's output as ours: cut where our own reading of the tokens first meets a stop string."""
    from tamis.generation import Sampled

    if output.finish_reason not in ("stop", "length"):
        raise ModelError(f"vLLM ended a request with '{output.finish_reason}'", hint="Run the same command again.")
    finish: Literal["stop", "length"] = output.finish_reason
    tokens = tuple(int(token) for token in output.token_ids)
    met = stop(tokens, len(tokens)) if stop else None
    if met is not None:
        tokens, finish = tokens[:met], "stop"
    raw = tuple(float(np.float32(place[token].logprob)) for token, place in zip(tokens, output.logprobs, strict=False))
    if len(raw) != len(tokens) or not np.isfinite(raw).all():
        raise ModelError("vLLM gave log-probabilities that are missing or no numbers", hint="Try dtype float32.")
    plain = law.temperature == 1 and law.top_p == 1 and not law.top_k and not law.min_p
    ours = raw if plain else (0.0,) * len(raw) if law.temperature == 0 else ()
    return Sampled(request, candidate, tokens, ours, raw, finish)
