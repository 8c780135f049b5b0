"""A recipe with every kind of stage, which runs in seconds on the nano model."""

from typing import Any

from tamis import recipe as recipes


def small(**tune: Any) -> dict[str, Any]:
    """The recipe as plain data, with these further options of its tune stage."""
    return {
        "name": "small",
        "model": "nano-sums",
        "task": {"modular_sums": {"size": 24, "heldout": 16}},
        "stages": [
            {"sample": {"temperature": {"n": 4, "temperature": 0.9, "max_new_tokens": 40}}},
            {"judge": {"answer": {"kind": "regex", "pattern": r"#(\d+)"}}},
            {"select": {"distinct_reasoning": {"per_prompt": 2}}},
            {"compose": {"accepted_sft": {}}},
            {"tune": {"objective": "sft", "adapter": {"lora": {"r": 4}}, "lr": 0.001, "epochs": 2, **tune}},
            {"evaluate": {"accuracy": {"max_new_tokens": 40}}},
        ],
    }


def load(recipe: dict[str, Any], *overrides: str, **changes: Any) -> recipes.Recipe:
    """The recipe with fields changed and `--set` overrides, checked."""
    return recipes.load({**recipe, **changes}, overrides=overrides)
