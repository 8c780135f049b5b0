"""The model card (README.md) of a tuned model: what it was made from, with what, and how it went."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tamis.models.base import ModelRef
from tamis.records import Example
from tamis.registry import config_of
from tamis.training.config import TuneConfig

if TYPE_CHECKING:
    from tamis.training.loop import FitResult


def model_card(
    base: ModelRef,
    objective: Any,
    adapter: Any,
    config: TuneConfig,
    seed: int,
    examples: Sequence[Example],
    fit: "FitResult",
    smoke: str,
) -> str:
    """Return the card as Markdown with the hub's YAML header."""
    return "\n".join(
        [
            _header(base, adapter),
            f"# {base.name}, tuned with tamis",
            "",
            f"`{base.name}` (identity `{base.identity}`), tuned with the objective `{_name(objective)}` and the adapter "
            f"`{_name(adapter)}`.",
            "",
            "## Data",
            "",
            *_data(examples, fit),
            "",
            "## Training",
            "",
            *_training(fit),
            "",
            "## Loading it again",
            "",
            f"Loaded again, the saved model {smoke}.",
            "",
            "## Options",
            "",
            "```json",
            json.dumps(_options(objective, adapter, config, seed), indent=1, ensure_ascii=False, default=str),
            "```",
            "",
        ]
    )


def _name(component: Any) -> str:
    registered = getattr(type(component), "component", None)
    return registered.name if registered else type(component).__name__


def _header(base: ModelRef, adapter: Any) -> str:
    library = "transformers" if getattr(adapter, "whole", False) or base.adapter else "peft"
    lines = ["---", f"library_name: {library}", "tags:", "- tamis"]
    if "/" in base.name and not base.name.startswith(("/", ".")):
        lines.insert(1, f"base_model: {base.name.partition('@')[0]}")
    return "\n".join([*lines, "---", ""])


def _data(examples: Sequence[Example], fit: "FitResult") -> list[str]:
    refused = Counter(r.reason for r in fit.refused)
    prompts = len({e.prompt_id for e in examples})
    lines = [
        f"- {len(examples)} examples from {prompts} prompts, {len(examples) - len(fit.refused)} of them trained on"
    ]
    return lines + [f"- left out: {count} ({reason})" for reason, count in refused.items()]


def _training(fit: "FitResult") -> list[str]:
    first, last = fit.curve[0], fit.curve[-1]
    return [
        f"- {fit.steps} optimizer steps, {fit.trained_tokens} trained tokens (repeats counted), {last['seconds']:.0f} s",
        f"- loss of the first step {first['loss']:.4f}, of the last step {last['loss']:.4f}",
    ]


def _options(objective: Any, adapter: Any, config: TuneConfig, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "objective": {_name(objective): _config(objective)},
        "adapter": {_name(adapter): _config(adapter)},
        **config.model_dump(),
    }


def _config(component: Any) -> dict[str, Any]:
    return config_of(component) if hasattr(component, "__dataclass_fields__") else {}
