"""Tune a model and leave behind a folder that plain `transformers` and PEFT load."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.errors import ModelError, TrainingError
from tamis.files import remove
from tamis.hashing import derive_seed, digest, file_digest
from tamis.models.base import ModelRef
from tamis.records import Example, Law, Prompt
from tamis.training.config import TuneConfig

if TYPE_CHECKING:
    import torch

    from tamis.training.loop import FitResult, Objective

OnEvent = Callable[[dict[str, Any]], None]

MARKER = "tamis.json"
HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class TuneResult:
    """The tuned model, what training did, and how the saved model answered one training prompt when loaded again."""

    model: ModelRef
    fit: "FitResult"
    smoke: str


def tune(
    ref: ModelRef,
    examples: Sequence[Example],
    objective: "Objective",
    adapter: Any,
    config: TuneConfig,
    *,
    seed: int,
    folder: Path,
    on_event: OnEvent | None = None,
) -> TuneResult:
    """Tune the model `ref` on `examples` and save it in folder/model with tokenizer, generation config and model card.

    Checkpoints are in folder/checkpoints until the model is saved, the curve in folder/curve.jsonl. A call that was cut off
    goes on where it was; a finished one returns what it made, unless a file of it is missing or damaged: then it is trained
    again. The model is saved as a PEFT adapter, or whole when the
    adapter trains whole weights (`adapter.whole`) or `ref` has an adapter already, which is merged. Before folder/model
    appears, what was saved is loaded again and answers one training prompt.

    Raises ModelError when the model cannot be trained or loaded again, TrainingError when folder/model is of another
    training, and what `fit` raises.
    """
    parts = [[type(part).__name__, part] for part in (objective, adapter)]
    stamp = digest(ref.identity, seed, config.mathematics(), [e.id for e in examples], parts)
    if not _whole(folder):
        _Tuning(ref, objective, adapter, config, seed, folder, on_event or (lambda event: None)).run(examples, stamp)
    return _finished(ref, folder, stamp)


def _whole(folder: Path) -> bool:
    """Whether folder/model and folder/curve.jsonl are there as they were written."""
    try:
        files = json.loads((folder / "model" / MARKER).read_text(encoding="utf-8"))["files"]
        return all(file_digest(folder / name) == sha for name, sha in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _finished(ref: ModelRef, folder: Path, stamp: str) -> TuneResult:
    """Return the result that folder/model and folder/curve.jsonl hold."""
    from tamis.training.batches import Refused
    from tamis.training.loop import FitResult

    info = json.loads((folder / "model" / MARKER).read_text(encoding="utf-8"))
    if info["stamp"] != stamp:
        raise TrainingError(
            "this folder holds a model of another training: other examples, options, seed or base model",
            where=str(folder / "model"),
            hint="Train in another folder, or delete this one.",
        )
    lines = (folder / "curve.jsonl").read_text(encoding="utf-8").splitlines()
    refused = [Refused(**row) for row in info["refused"]]
    fit = FitResult(info["steps"], [json.loads(line) for line in lines], info["trained_tokens"], refused)
    return TuneResult(tuned_ref(ref, folder / "model", info["whole"]), fit, info["smoke"])


def tuned_ref(base: ModelRef, saved: Path, whole: bool) -> ModelRef:
    """Return the reference of a model saved in `saved`: whole, or as an adapter on the base's folder."""
    from tamis.models.folders import adapter_identity, model_identity

    if whole:
        return ModelRef(base.name, base.kind, model_identity(saved), base.capabilities, folder=saved)
    identity = adapter_identity(base.identity, saved)
    return ModelRef(base.name, base.kind, identity, base.capabilities, folder=base.folder, adapter=saved)


@dataclass(frozen=True)
class _Tuning:
    ref: ModelRef
    objective: "Objective"
    adapter: Any
    config: TuneConfig
    seed: int
    folder: Path
    emit: OnEvent

    def run(self, examples: Sequence[Example], stamp: str) -> None:
        """Load, train, save, try, and let folder/model appear."""
        from tamis.training.loop import fit
        from tamis.training.world import World

        world = World(self.config.dtype)
        module, tokenizer = self.load(str(world.device))
        seed = self.config.init_seed if self.config.init_seed is not None else derive_seed(self.seed, "init")
        module = self.adapter.attach(module, seed)
        result = fit(
            module,
            examples,
            self.objective,
            self.config,
            seed=self.seed,
            folder=self.folder,
            on_event=self.emit,
            stamp=stamp,
        )
        if world.main:
            self.publish(module, tokenizer, examples, result, stamp)
        world.wait()

    def load(self, device: str) -> tuple[Any, Any]:
        """Return the base as a module to train, and its tokenizer."""
        from tamis.models.resolve import load

        if "trainable" not in self.ref.capabilities:
            hint = "Training needs a model in a local folder or on the hub."
            raise ModelError(f"the model '{self.ref.name}' cannot be trained", hint=hint)
        model = load(self.ref, device=device, dtype="float32" if self.loads_whole else None)
        return model.module(), model.tokenizer

    @property
    def loads_whole(self) -> bool:
        """Whether whole weights change: all train, or the base's own adapter is merged into them."""
        return self.ref.adapter is not None or getattr(self.adapter, "whole", False)

    def publish(
        self, module: Any, tokenizer: Any, examples: Sequence[Example], result: "FitResult", stamp: str
    ) -> None:
        """Save the model in a temporary folder, try it, and rename it to folder/model."""
        from tamis.training.card import model_card
        from tamis.training.checkpoints import publish

        whole = self.loads_whole or not hasattr(module, "peft_config")
        temporary = self.folder / ".model.tmp"
        remove(temporary)
        self.save(module, tokenizer, temporary, whole)
        smoke = smoke_test(tuned_ref(self.ref, temporary, whole), examples, result)
        info = {
            "stamp": stamp,
            "base": self.ref.name,
            "base_identity": self.ref.identity,
            "whole": whole,
            "seed": self.seed,
            "objective": type(self.objective).__name__,
            "adapter": type(self.adapter).__name__,
            "steps": result.steps,
            "trained_tokens": result.trained_tokens,
            "refused": [asdict(r) for r in result.refused],
            "smoke": smoke,
        }
        card = model_card(self.ref, self.objective, self.adapter, self.config, self.seed, examples, result, smoke)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        saved = {
            f"model/{p.relative_to(temporary)}": file_digest(p) for p in sorted(temporary.rglob("*")) if p.is_file()
        }
        info["files"] = saved | {"curve.jsonl": file_digest(self.folder / "curve.jsonl")}
        (temporary / MARKER).write_text(json.dumps(info, indent=1, ensure_ascii=False), encoding="utf-8")
        publish(temporary, self.folder / "model")
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        self.emit({"event": "tuned", "text": f"saved; loaded again, the model {smoke}"})

    def save(self, module: Any, tokenizer: Any, folder: Path, whole: bool) -> None:
        """Write weights, tokenizer and generation config."""
        _set_ends(module, tokenizer)
        if whole:
            module = module.merge_and_unload() if hasattr(module, "peft_config") else module
            module.to(_stored_dtype(self.ref)).save_pretrained(folder)
        else:
            _name_base(module, self.ref)
            module.save_pretrained(folder, save_embedding_layers=False)
            module.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _set_ends(module: Any, tokenizer: Any) -> None:
    """Set the end tokens that generation stops at: the base's and those that end a turn in the chat format."""
    from transformers import GenerationConfig

    from tamis.models.chat import ChatFormat

    config = module.generation_config
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    config.eos_token_id = list(dict.fromkeys(i for i in (*known, *ChatFormat(tokenizer).end_ids) if i is not None))
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    try:
        config.validate(strict=True)
    except ValueError:
        ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        module.generation_config = GenerationConfig(**ids)


def _stored_dtype(ref: ModelRef) -> "torch.dtype":
    """Return the dtype the base is stored in, as its config says; float32 where it says nothing."""
    import torch

    assert ref.folder is not None
    config = json.loads((ref.folder / "config.json").read_text(encoding="utf-8"))
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"), torch.float32)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _name_base(module: Any, ref: ModelRef) -> None:
    """Write into the adapter's config how plain PEFT finds the base: its hub id, or its folder.

    PEFT keeps module names in a set, whose order differs from process to process: sorted, equal trainings give equal files.
    """
    assert ref.folder is not None
    hub = HUB_ID.fullmatch(ref.name) if not Path(ref.name).exists() else None
    for config in module.peft_config.values():
        config.base_model_name_or_path = hub["id"] if hub else str(ref.folder.resolve())
        config.revision = hub["revision"] if hub else None
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)


def smoke_test(ref: ModelRef, examples: Sequence[Example], fit: "FitResult") -> str:
    """Load `ref` and let it answer the prompt of the first trained example, greedily. Return what happened in words."""
    from tamis.models.resolve import load

    refused = {r.example_id for r in fit.refused}
    example = next(e for e in examples if e.id not in refused)
    history = example.target.messages[:-1]
    if not history:
        return "the examples have no prompt to try"
    limit = max(32, 2 * sum(w != 0 for w in example.target.weights))
    law = Law(temperature=0.0, max_new_tokens=limit)
    (answer,) = load(ref).generate([Prompt(history)], law, candidates=[[0]], seed=0)
    if answer.finish_reason == "error":
        raise ModelError("the tuned model was saved, but does not answer a training prompt", where=str(ref.folder))
    ended = "stopped by itself" if answer.finish_reason == "stop" else f"did not stop within {limit} tokens"
    return f"answered a training prompt and {ended}: {answer.text[:200]!r}"
