"""`tamis init`: a commented starter recipe for a data file."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from tamis.errors import ConfigError

TEMPLATE = """\
# A recipe for {file}: {rows} rows of the shape {shape}.
# Check it and see every option of a part with: tamis methods NAME
# Run it with: tamis run {out}      (try the stages first, in seconds: add --lab)
name: {name}
model: smollm2-135m                # name, local folder, hub id, or http(s)://host/v1#model for sampling only
task:
  data:
    path: {path}
{mapping}    heldout: 0.2                   # share (or number) of prompts set aside for before and after
seed: 0
stages:
  - sample: {{temperature: {{n: 8, temperature: 0.9, max_new_tokens: 256}}}}   # 8 candidates a prompt
  - judge: {{answer: {{kind: auto}}}}   # exact, numeric, math, choice, regex, python: tamis methods answer
  - select: {{distinct_reasoning: {{per_prompt: 4}}}}
  - compose: {{accepted_sft: {{}}}}     # what was accepted becomes training examples
  - tune: {{objective: {{sft: {{}}}}, adapter: {{lora: {{r: 16}}}}, lr: 2.0e-4, epochs: 2}}
  - evaluate: {{accuracy: {{max_new_tokens: 256}}}}
"""


def write_starter(data: str, out: Path, mapping: Mapping[str, str]) -> str:
    """Write a starter recipe for a data file; returns what was understood of the file and what to do next.

    Raises DataError when the file cannot be understood and ConfigError when `out` exists.
    """
    from tamis.tasks.data import inspect

    summary = inspect(data, dict(mapping) or None)
    if out.exists():
        raise ConfigError("is there already", where=str(out), hint="Name another with --out.")
    lines = f"    map: {yaml.safe_dump(dict(mapping), default_flow_style=True).strip()}\n" if mapping else ""
    name = Path(data).name.split(".")[0] or "mine"
    out.write_text(
        TEMPLATE.format(
            file=Path(data).name,
            rows=summary.rows,
            shape=summary.shape,
            out=out,
            name=yaml.safe_dump(name, default_flow_style=True).splitlines()[0],
            path=yaml.safe_dump(data, default_flow_style=True).splitlines()[0],
            mapping=lines,
        ),
        encoding="utf-8",
    )
    return f"{summary}\nwritten: {out}\nnext:    tamis run {out}"
