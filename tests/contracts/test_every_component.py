"""What holds for every registered component of every room, third-party ones included."""

import json

import pytest

from tamis import registry
from tamis.errors import ConfigError
from tamis.recipe import STAGE_ROOMS
from tamis.report.pages import component_page

EVERY = registry.components()


@pytest.fixture(params=EVERY, ids=lambda c: f"{c.room}-{c.name}")
def component(request):
    return request.param


def required(component):
    return getattr(component.cls, "contract", {})


def test_it_is_documented(component):
    assert component.about.endswith(".")
    assert len(component.page.splitlines()) > 1
    assert not component.row or component.paper


def test_every_option_says_what_it_means_and_where_it_comes_from(component):
    for option in component.options():
        assert option["about"], option["name"]
        assert option["source"] in ("paper", "code", "ours")
        assert f"| {option['name']} |" in component_page(component)


def test_its_options_are_plain_data(component):
    built = component.build(required(component))
    text = json.dumps(registry.config_of(built), default=list)
    assert component.build(json.loads(text)) == built


def test_an_unknown_option_is_refused_with_a_name(component):
    with pytest.raises(ConfigError, match="unknown option 'no_such_option'"):
        component.build({**required(component), "no_such_option": 1})


def test_it_has_the_methods_of_its_room(component):
    methods = {
        "task": ["prompts"],
        "sampler": ["sample"],
        "judge": ["judge"],
        "selector": ["select"],
        "composer": ["compose"],
        "objective": ["weight", "loss"],
        "adapter": ["attach"],
        "evaluator": ["draws", "measure"],
    }[component.room]
    assert all(callable(getattr(component.cls, m)) for m in methods)


def test_it_asks_for_known_capabilities(component):
    from tamis.models.base import CAPABILITIES

    assert set(component.needs) <= set(CAPABILITIES)


def test_every_room_that_a_recipe_names_has_components():
    assert {*STAGE_ROOMS.values(), "task", "adapter"} == {c.room for c in EVERY}
