import pytest

from tamis import registry
from tamis.errors import ConfigError
from tamis.registry import _COMPONENTS, option, selector


@pytest.fixture
def made():
    @selector("made_up", row=999, paper="A paper", version="2", needs=("text",))
    class MadeUp:
        """Pick what is made up.

        More words.
        """

        k: int = option(4, "How many.", source="paper", ge=1)
        mode: str = option(..., "A mode.")

        def __post_init__(self) -> None:
            if self.mode == "bad":
                raise ValueError("mode 'bad' is not a mode")

        def select(self, pool, ctx):
            return None

    yield MadeUp
    del _COMPONENTS["selector", "made_up"]


def test_registering_gives_name_page_and_options(made):
    found = registry.get("selector", "made_up")
    assert (found.row, found.version, found.needs, found.about) == (999, "2", ("text",), "Pick what is made up.")
    k, mode = found.options()
    assert (k["name"], k["type"], k["default"], k["source"], k["about"]) == ("k", "int", 4, "paper", "How many.")
    assert mode["required"]


def test_building_validates_and_freezes(made):
    built = registry.build("selector", {"made_up": {"k": 2, "mode": "x"}})
    assert registry.config_of(built) == {"k": 2, "mode": "x"}
    with pytest.raises(AttributeError):
        built.k = 3
    assert made(mode="x").k == 4


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"mode": "x", "kk": 1}, "Did you mean 'k'"),
        ({"mode": "x", "k": 0}, "greater than or equal to 1"),
        ({"mode": "x", "k": "many"}, "valid integer"),
        ({}, "mode"),
        ({"mode": "bad"}, "mode 'bad' is not a mode"),
        ([1], "must be a mapping"),
        ("", "must be a mapping"),
        ({"mode": "x", "k": True}, "true is not a value for it"),
        ({"mode": "x", 1: 2}, "unknown option '1'"),
    ],
)
def test_wrong_options_teach(made, config, says):
    with pytest.raises(ConfigError) as caught:
        registry.build("selector", {"made_up": config}, "stages[2].select")
    assert says in str(caught.value)
    assert "stages[2].select.made_up" in str(caught.value)


def test_a_second_component_of_the_same_name_is_refused(made):
    with pytest.raises(ConfigError, match="registered twice"):

        @selector("made_up")
        class Other:
            """Another."""

            def select(self, pool, ctx):
                return None


def test_a_component_without_its_method_or_with_an_odd_name_is_refused():
    with pytest.raises(ConfigError, match="selector 'made_up' lacks the method select"):

        @selector("made_up")
        class NoMethod:
            """Nothing."""

    with pytest.raises(ConfigError, match="cannot be the name"):

        @selector("../made_up")
        class OddName:
            """Nothing."""


def test_unknown_names_and_rooms():
    with pytest.raises(ConfigError, match="Did you mean 'random'"):
        registry.get("selector", "randon")
    with pytest.raises(ConfigError, match="Did you mean 'sampler'"):
        registry.components("samplr")
    with pytest.raises(ConfigError, match="expected one selector"):
        registry.build("selector", {"a": {}, "b": {}})
