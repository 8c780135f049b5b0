"""What every registered task keeps, those of third-party packages included.

A task whose options have no defaults names some in a class attribute `contract = {"option": value}`.
"""

import inspect
import json
from dataclasses import replace

import pytest

from tamis import registry
from tamis.context import Context
from tamis.errors import ConfigError, TamisError
from tamis.records import Prompt, from_table, to_table

every = pytest.mark.parametrize("component", registry.components("task"), ids=lambda c: c.name)


@pytest.fixture
def build(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": str(i)}) + "\n" for i in range(20)))

    def made(component, **options):
        known = {"path": str(path)} if component.name == "data" else {}
        return component.build({**getattr(component.cls, "contract", {}), **known, **options})

    return made


def test_there_are_some():
    assert {"data", "reasoning_gym", "modular_sums"} <= {c.name for c in registry.components("task")}


@every
def test_documented(component):
    assert component.about.endswith((".", ":"))
    assert len(component.page) > len(component.about)
    assert all(option["about"] for option in component.options())
    assert inspect.getdoc(component.cls.prompts)


@every
def test_prompts_are_whole_and_differ(component, build):
    prompts = list(build(component).prompts(Context()))
    assert prompts
    assert len({p.id for p in prompts}) == len(prompts)
    for prompt in prompts:
        assert isinstance(prompt, Prompt)
        assert prompt.text.strip()
        assert prompt.messages[-1].role == "user"
        assert prompt.split in ("train", "heldout")
        assert all(isinstance(r, str) and r for r in prompt.references)
        assert prompt.task
        assert prompt.source


@every
def test_both_sides_are_there_and_apart(component, build):
    prompts = list(build(component).prompts(Context()))
    train, heldout = ({p.text for p in prompts if p.split == side} for side in ("train", "heldout"))
    assert train
    assert heldout
    assert not train & heldout


@every
def test_deterministic(component, build):
    assert list(build(component).prompts(Context(seed=5))) == list(build(component).prompts(Context(seed=5)))


@every
def test_prompts_come_one_by_one(component, build):
    found = build(component).prompts(Context())
    assert next(iter(found)) == next(iter(build(component).prompts(Context())))


@every
def test_arrow_round_trip(component, build):
    prompts = list(build(component).prompts(Context()))
    again = from_table(to_table(prompts, Prompt), Prompt)
    assert again == prompts
    assert [replace(p, id="").id for p in again] == [p.id for p in prompts]


@every
def test_unknown_options_are_refused(component, build):
    with pytest.raises(ConfigError, match="unknown option"):
        build(component, no_such_option=1)


@every
def test_empty_input_is_a_clear_error(component, build, tmp_path):
    if "path" not in {o["name"] for o in component.options()}:
        pytest.skip("reads no file")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(TamisError) as caught:
        list(build(component, path=str(tmp_path / "empty.jsonl")).prompts(Context()))
    assert caught.value.where
