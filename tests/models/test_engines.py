"""Which engine runs a model, what a recipe says of it, and what of it enters a stage's key."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tamis import environment, recipe
from tamis.errors import ConfigError, MissingExtra, ModelError
from tamis.models import ModelRef, engines, keeper, load, resolve
from tamis.models.engines import EngineState, choose
from tamis.models.hf import LocalModel
from tamis.models.keeper import Models


@pytest.fixture
def ref(tmp_path: Path) -> ModelRef:
    (tmp_path / "model.safetensors").write_bytes(b"0" * 64)
    return ModelRef("m", "local", "identity", ("text",), folder=tmp_path)


def installed(monkeypatch, *names: str) -> None:
    def check(name: str) -> None:
        if name not in ("auto", "transformers", *names):
            raise MissingExtra(name, name, f"engine {name}")

    monkeypatch.setattr(engines, "check", check)


def models_of(monkeypatch, *overrides: str) -> tuple[Models, list[str]]:
    notes: list[str] = []
    made = recipe.load("rft", overrides=list(overrides))
    return Models(made, lambda event, **fields: notes.append(fields.get("text", ""))), notes


@pytest.mark.parametrize(
    ("override", "name"), [("engine=vllm", "vllm"), ("engine.name=llamacpp", "llamacpp"), ("seed=1", "auto")]
)
def test_a_recipe_names_its_engine_in_either_form(override, name):
    made = recipe.load("rft", overrides=[override])
    assert made.engine.name == name
    assert made.engine.options == {}
    assert recipe.check({**made.model_dump(), "engine": {"name": name, "batch_rows": 8}}).engine.options == {
        "batch_rows": 8
    }


def test_options_can_be_set_beside_the_short_form():
    made = recipe.load("rft", overrides=["engine=vllm", "engine.dtype=float16"])
    assert (made.engine.name, made.engine.dtype) == ("vllm", "float16")


def test_a_wrong_engine_is_refused_by_name():
    with pytest.raises(ConfigError, match="'auto', 'transformers', 'vllm' or 'llamacpp'"):
        recipe.load("rft", overrides=["engine=vlm"])
    with pytest.raises(ModelError, match="Did you mean 'vllm'"):
        engines.check("vlm")


def test_auto_takes_vllm_where_it_is_and_the_model_is_worth_it(monkeypatch, ref):
    assert choose("auto", ref) == "transformers"
    installed(monkeypatch, "vllm")
    assert choose("auto", ref) == "transformers"
    monkeypatch.setattr(engines, "WORTH_STARTING", 64)
    assert choose("auto", ref) == "vllm"
    assert choose("transformers", ref) == "transformers"


def test_what_is_asked_for_and_not_there_names_the_command(monkeypatch, ref):
    monkeypatch.setattr(environment, "version", lambda package: "")
    for name in ("vllm", "llamacpp"):
        with pytest.raises(MissingExtra, match=rf"pip install 'tamis\[{name}\]'"):
            choose(name, ref)


def test_every_engine_is_listed_with_the_reason_it_cannot_be_used(monkeypatch):
    installed(monkeypatch, "llamacpp")
    found = {state.name: state for state in engines.engines()}
    assert list(found) == list(engines.ENGINES)
    assert found["transformers"].available
    assert found["llamacpp"].available
    assert isinstance(found["vllm"], EngineState)
    assert not found["vllm"].available
    assert "not installed" in found["vllm"].reason
    assert "pip install" in found["vllm"].fix


def test_llamacpp_refuses_a_model_that_is_no_gguf_file(monkeypatch, ref):
    monkeypatch.setattr(sys.modules["tamis.models.resolve"], "_resolve", lambda spec, on_event: ref)
    with pytest.raises(ModelError, match=r"runs \.gguf files, and 'nano-sums' is none"):
        resolve("nano-sums", gguf=True)


def test_a_gguf_file_is_kept_beside_its_folder(monkeypatch, ref, tmp_path):
    file = tmp_path / "Tiny.GGUF"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(sys.modules["tamis.models.resolve"], "_resolve", lambda spec, on_event: ref)
    assert resolve(str(file), gguf=True) == replace(ref, gguf=file)
    assert resolve(str(file)) == ref


def test_a_tuned_model_under_llamacpp_is_sampled_by_transformers(monkeypatch, ref):
    installed(monkeypatch, "llamacpp")
    models, notes = models_of(monkeypatch, "engine.name=llamacpp", "engine.batch_rows=8")
    opened = []
    models._refs["m"] = ref
    monkeypatch.setattr(
        engines, "open_model", lambda ref, name, **o: opened.append((name, o)) or SimpleNamespace(key={"engine": name})
    )
    base = replace(ref, gguf=Path("m.gguf"))
    tuned = replace(ref, identity="tuned", adapter=Path("a"))
    assert models.engine(base) == {"engine": "llamacpp"}
    assert models.engine(tuned) == {"engine": "transformers"}
    assert models.engine(models.comparable(base)) == {"engine": "transformers"}
    assert opened == [("llamacpp", {"batch_rows": 8}), *[("transformers", {"batch_rows": 8})] * 2]
    assert sum("runs the tuned model" in note for note in notes) == 1
    assert sum("alike" in note for note in notes) == 1


def test_a_recipe_that_tunes_nothing_measures_by_its_own_engine(monkeypatch, ref):
    models, _ = models_of(monkeypatch)
    base = replace(ref, gguf=Path("m.gguf"))
    untuned = [stage for stage in models.recipe.stages if "tune" not in stage]
    models.recipe = models.recipe.model_copy(update={"stages": untuned})
    assert models.comparable(base) is base


def test_one_model_is_in_memory_and_is_released_before_the_next(monkeypatch, ref):
    installed(monkeypatch, "llamacpp")
    models, _ = models_of(monkeypatch, "engine=llamacpp")
    released = []

    def opened(ref, name, **options):
        return SimpleNamespace(name=name, release=lambda: released.append(name))

    monkeypatch.setattr(engines, "open_model", opened)
    base = replace(ref, gguf=Path("m.gguf"))
    first = models.get(base)
    assert models.get(base) is first
    assert models.get(replace(base, gguf=None)).name == "transformers"
    assert released == ["llamacpp"]
    models.release()
    models.release()
    assert released == ["llamacpp", "transformers"]


def test_a_run_fails_before_it_starts_without_its_engine(monkeypatch):
    installed(monkeypatch)
    models, _ = models_of(monkeypatch, "engine=vllm")
    monkeypatch.setattr(keeper.engines, "check", engines.check)
    with pytest.raises(MissingExtra, match="engine vllm"):
        models.resolve("smollm2-135m")


def test_the_default_is_transformers_and_its_key_says_so(ref):
    model = load(ref, device="cpu")
    assert isinstance(model, LocalModel)
    assert model.key == {"engine": "transformers", "device": "cpu", "dtype": "float32", "batch_rows": model.batch_rows}
