"""`tamis init`: a commented starter recipe for a data file."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tamis.errors import ConfigError
from tamis.recipe import slug

if TYPE_CHECKING:
    from tamis.tasks.data import DataSummary

TEMPLATE = """\
# A recipe for {file}: {rows} rows of the shape {shape}.
# {idea}
# See every option of a part with: tamis methods NAME
name: {name}
model: smollm2-135m                # name, local folder, hub id, or http(s)://host/v1#model for sampling only
task:
  data:
    path: {path}
{mapping}{size}    heldout: {heldout}
seed: 0
stages:
{stages}"""

ANSWERS = (
    "Answers that a rule can check: keep the model's own right answers and tune on them.",
    "prompts set aside for before and after",
    """\
  - sample: {temperature: {n: 8, temperature: 0.9, max_new_tokens: 256}}   # 8 candidates a prompt
  - judge: {answer: {kind: auto}}   # exact, numeric, math, choice, regex, python: tamis methods answer
  - select: {distinct_reasoning: {per_prompt: 4}}
  - compose: {accepted_sft: {}}     # what was accepted becomes training examples
  - tune: {objective: {sft: {}}, adapter: {lora: {r: 16}}, lr: 2.0e-4, epochs: 2}
  - evaluate: {accuracy: {max_new_tokens: 256}}
lab:                               # what --lab changes, to try the stages in seconds on exact sums
  set:
    stages.judge.answer: {kind: regex, pattern: '#(\\d+)'}
    stages.select.distinct_reasoning.modulus: 6
""",
)
TEXTS = (
    "Whole texts, which no rule can check: tune on them as they are.",
    "prompts set aside for before and after",
    """\
  - sample: {gold: {}}              # the answers of the file
  - compose: {accepted_sft: {}}     # they become training examples
  - tune: {objective: {sft: {}}, adapter: {lora: {r: 16}}, lr: 2.0e-4, epochs: 2}
  - evaluate: {perplexity: {}}      # of the answers that were set aside
""",
)
PROMPTS = (
    "No reference answers: tune on the first few tokens of the model's own (the recipe upft).",
    "",
    """\
  - sample: {prefix: {prefix_tokens: 8, structure_ratio: 0.1, temperature: 0.7, max_new_tokens: 256}}
  - compose: {prefix: {}}
  - tune: {objective: {sft: {}}, adapter: {full: {}}, lr: 1.0e-6, schedule: constant, epochs: 2, batch_size: 8}
""",
)
TEXT_FIELDS = ("messages", "conversations", "conversation", "rejected", "output", "response", "completion")
"""Fields that hold whole texts; those of other names hold answers that a rule can check."""


LARGE = 1000
"""Rows above which a starter begins with a part of the data, so that its first run takes minutes."""


def write_starter(data: str, out: Path, mapping: Mapping[str, str]) -> str:
    """Write a starter recipe for a data file; returns what was understood of the file and what to do next.

    Raises DataError when the file cannot be understood and ConfigError when `out` exists or cannot be written.
    """
    from tamis.tasks.data import inspect

    if out.exists():
        raise ConfigError("is there already", where=str(out), hint="Name another with --out.")
    summary = inspect(data, dict(mapping) or None)
    idea, set_aside, stages = _kind(summary)
    text = TEMPLATE.format(
        file=json.dumps(Path(data).name, ensure_ascii=False),
        rows=summary.rows,
        shape=" ".join(summary.shape.split()),
        idea=idea,
        name=json.dumps(slug(Path(data).name.split(".")[0]), ensure_ascii=False),
        path=json.dumps(data, ensure_ascii=False),
        mapping=f"    map: {json.dumps(dict(mapping), ensure_ascii=False)}\n" if mapping else "",
        size=f"    size: 200                      # train prompts to begin with, of {summary.rows}; delete the line for all\n"
        if summary.rows > LARGE
        else "",
        heldout=_heldout(summary, set_aside),
        stages=stages,
    )
    try:
        out.write_text(text, encoding="utf-8")
    except (OSError, UnicodeEncodeError) as error:
        raise ConfigError(f"cannot be written: {error}", where=str(out), hint="Name another with --out.") from None
    return f"{summary}\nwritten: {out}\n         {idea}\nnext:    {shlex.join(['tamis', 'run', str(out)])}"


def _kind(summary: "DataSummary") -> tuple[str, str, str]:
    """Return idea, held-out share and stages that fit the data."""
    if not summary.with_reference:
        return PROMPTS
    return TEXTS if summary.shape.split("/")[-1] in TEXT_FIELDS else ANSWERS


def _heldout(summary: "DataSummary", set_aside: str) -> str:
    """Return the value of `heldout` with its comment."""
    if not set_aside:
        return "0                     # nothing to compare with, so nothing is set aside"
    if summary.rows > LARGE:
        return f"150                   # number (or share) of {set_aside}"
    return f"0.2                   # share (or number) of {set_aside}"
