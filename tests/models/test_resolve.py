"""Names become models: what is found, what is refused, and that the identity is the content's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tamis.errors import ModelError
from tamis.models import ModelRef, load, resolve
from tamis.models.resolve import LOCAL, capabilities

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "_name_or_path": "x"}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def edit_json(path: Path, **changes: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


def make_model(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "generation_config.json", {"eos_token_id": 2, "transformers_version": "5"})
    write_json(folder / "tokenizer.json", {"model": {"vocab": {"a": 0}}})
    write_json(folder / "tokenizer_config.json", {"eos_token": "a", "chat_template": "{{ messages }}"})
    save_file({"w": np.random.default_rng(seed).normal(size=(4, 4))}, folder / "model.safetensors")
    return folder


def make_adapter(folder: Path, base: str, seed: int = 1) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 4, "base_model_name_or_path": base})
    save_file({"lora_A": np.random.default_rng(seed).normal(size=(4, 4))}, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAMIS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


def refused(spec: object) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(str(spec))
    return str(caught.value)


def test_a_local_folder(model: Path) -> None:
    ref = resolve(str(model))
    assert (ref.name, ref.kind, ref.capabilities, ref.folder, ref.adapter) == ("model", "local", LOCAL, model, None)
    assert resolve("model") == ModelRef("model", "local", ref.identity, LOCAL, folder=Path("model"))
    assert capabilities(str(model)) == LOCAL


def test_the_same_content_elsewhere_is_the_same_model(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "deep" / "copy")
    assert resolve(str(tmp_path / "deep" / "copy")).identity == resolve(str(model)).identity


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights": lambda m: save_file({"w": np.ones((4, 4))}, m / "model.safetensors"),
    "tokenizer": lambda m: write_json(m / "tokenizer.json", {"model": {"vocab": {"b": 0}}}),
    "tokenizer settings": lambda m: edit_json(m / "tokenizer_config.json", add_bos_token=True),
    "template in the settings": lambda m: edit_json(m / "tokenizer_config.json", chat_template="{{ other }}"),
    "template in a file": lambda m: (m / "chat_template.jinja").write_text("{{ other }}"),
    "config": lambda m: edit_json(m / "config.json", rope_theta=5.0),
    "end tokens": lambda m: edit_json(m / "generation_config.json", eos_token_id=[2, 3]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_content_is_another_model(model: Path, change: str) -> None:
    before = resolve(str(model)).identity
    CHANGES[change](model)
    assert resolve(str(model)).identity != before


def test_where_a_model_came_from_is_not_its_identity(model: Path) -> None:
    before = resolve(str(model)).identity
    edit_json(model / "config.json", _name_or_path="/somewhere/else", transformers_version="6")
    edit_json(model / "tokenizer_config.json", name_or_path="/somewhere/else")
    edit_json(model / "generation_config.json", transformers_version="6")
    (model / "README.md").write_text("card")
    template = json.loads((model / "tokenizer_config.json").read_text())["chat_template"]
    (model / "chat_template.jinja").write_text(template)
    assert resolve(str(model)).identity == before


def test_pickle_weights_are_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    said = refused(model)
    assert "pickle" in said
    assert "save_pretrained" in said
    assert str(model) in said


def test_a_folder_with_a_gguf_file_names_the_file(model: Path) -> None:
    (model / "model.safetensors").rename(model / "tiny.gguf")
    assert str(model / "tiny.gguf") in refused(model)
    (model / "config.json").unlink()
    assert str(model / "tiny.gguf") in refused(model)


def test_weights_cut_short(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    for cut in (data[:-1], data[:20], data[:4], b""):
        (model / "model.safetensors").write_bytes(cut)
        assert "cut short or damaged" in refused(model)


def test_sharded_weights(model: Path) -> None:
    one = resolve(str(model)).identity
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    index = {"weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}
    write_json(model / "model.safetensors.index.json", index)
    assert "1 of 2 weight files are missing, first model-2.safetensors" in refused(model)
    save_file({"v": np.ones(3)}, model / "model-2.safetensors")
    assert resolve(str(model)).identity != one


def test_other_incomplete_folders(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(model)
    (model / "config.json").write_text("{")
    assert "config.json" in refused(model)
    write_json(model / "config.json", {**CONFIG, "architectures": ["ViTForImageClassification"]})
    assert "ViTForImageClassification" in refused(model)
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused("empty")
    (tmp_path / "notes.txt").touch()
    assert "not a model" in refused("notes.txt")


def test_models_with_code_of_their_own_are_refused(model: Path) -> None:
    edit_json(model / "config.json", auto_map={"AutoModel": "x.py"})
    assert resolve(str(model)).kind == "local"
    edit_json(model / "config.json", model_type="my_own_thing")
    assert "never run" in refused(model)


def test_no_chat_template_is_fine(model: Path) -> None:
    write_json(model / "tokenizer_config.json", {})
    assert resolve(str(model)).kind == "local"


def test_an_adapter_brings_its_base(model: Path, tmp_path: Path) -> None:
    base = resolve(str(model))
    adapter = make_adapter(tmp_path / "adapter", str(model))
    ref = resolve(str(adapter))
    assert (ref.folder, ref.adapter, ref.capabilities) == (model, adapter, LOCAL)
    assert ref.identity not in (base.identity, resolve(str(make_adapter(tmp_path / "two", str(model), 2))).identity)
    moved = shutil.copytree(model, tmp_path / "moved")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(moved))
    assert resolve(str(adapter)).identity == ref.identity
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="../moved")
    assert resolve(str(adapter)).identity == ref.identity
    edit_json(adapter / "adapter_config.json", r=8)
    assert resolve(str(adapter)).identity != ref.identity
    assert capabilities(str(adapter)) == LOCAL


def test_adapters_that_cannot_be_used(model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", "./gone")
    assert "base model './gone' cannot be had" in refused(adapter)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    assert "names no base model" in refused(adapter)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(model))
    assert "itself an adapter" in refused(make_adapter(tmp_path / "second", str(adapter)))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "pickle" in refused(adapter)


def test_a_moved_run_finds_its_packaged_base_by_name(model: Path, tmp_path: Path, monkeypatch) -> None:
    import sys

    asked: list[str] = []
    found = sys.modules["tamis.models.resolve"]
    monkeypatch.setattr(found, "get_model", lambda name, on_event: asked.append(name) or model)
    adapter = make_adapter(tmp_path / "adapter", "/other/machine/cache/models/smollm2-135m")
    assert resolve(str(adapter)).folder == model
    assert asked == ["smollm2-135m"]


def test_a_run_folder_is_its_last_tuned_model(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "rft-0123abcd"
    stages = [{"kind": "task", "folder": "01-task-a"}, {"kind": "tune", "folder": "06-tune-a"}]
    run.mkdir(parents=True)
    write_json(run / "manifest.json", {"stages": stages})
    assert "no tuned model yet" in refused(run)
    first = make_model(run / "06-tune-a" / "model")
    assert "no tuned model yet" in refused(run)
    (run / "06-tune-a" / "stage.json").write_text("{}")
    assert (resolve(str(run)).folder, resolve(str(run)).name) == (first, "rft-0123abcd")
    write_json(run / "manifest.json", {"stages": [*stages, {"kind": "tune", "folder": "12-tune-b"}]})
    assert resolve(str(run)).folder == first
    second = make_model(run / "12-tune-b" / "model", seed=3)
    (run / "12-tune-b" / "stage.json").write_text("{}")
    assert resolve(str(run)).folder == second
    assert resolve(str(run / "06-tune-a")).folder == first
    assert capabilities(str(run)) == LOCAL
    write_json(run / "manifest.json", {"stages": stages[:1]})
    assert "no tune stage" in refused(run)


def test_names_that_lead_nowhere() -> None:
    assert "Did you mean 'smollm2-135m'?" in refused("smolm2-135m")
    assert "Did you mean 'nano-sums'?" in refused("nano-sum")
    assert "on this disk" in refused("./nothing")
    assert "on this disk" in refused("a/b/c")
    assert "on this disk" in refused("nothing.gguf")
    assert "there is no model 'no such name'" in refused("no such name")
    for spec in ("smolm2-135m", "nano-sum", "./nothing", "no such name"):
        with pytest.raises(ModelError):
            capabilities(spec)


def test_endpoints_need_no_network() -> None:
    ref = resolve("http://127.0.0.1:9/v1/#org/model")
    assert (ref.name, ref.kind, ref.url) == ("org/model", "endpoint", "http://127.0.0.1:9/v1#org/model")
    assert ref.capabilities == capabilities("https://host/v1#m") == ("text",)
    assert resolve("http://127.0.0.1:9/v1#other").identity != ref.identity
    assert "http://host/v1#MODEL-NAME" in refused("http://host/v1")
    said = refused("https://me:secret-word@host/v1#m")
    assert "secret-word" not in said
    assert "TAMIS_API_KEY" in said
    assert "secret-word" not in refused("https://host/v1?key=secret-word#m")


def test_capabilities_without_fetching(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    def no(*_: object, **__: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr("subprocess.run", no)
    monkeypatch.setattr("huggingface_hub.snapshot_download", no)
    assert capabilities("smollm2-135m") == LOCAL
    assert capabilities("minilm-l6-v2") == ("embedder",)
    assert capabilities("nano-sums") == LOCAL
    assert capabilities("org/model") == capabilities("org/model@main") == capabilities("gpt2") == LOCAL
    edit_json(model / "config.json", architectures=["BertModel"])
    assert capabilities(str(model)) == ("embedder",)


def test_a_hub_model(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    asked: list[dict] = []

    def download(name: str, **options: object) -> str:
        asked.append({"name": name, **options})
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    ref = resolve("org/name@v1.0")
    assert (ref.name, ref.identity) == ("org/name@v1.0", resolve(str(model)).identity)
    assert (asked[0]["name"], asked[0]["revision"]) == ("org/name", "v1.0")
    from huggingface_hub.utils import filter_repo_objects

    files = ["model.safetensors", "tokenizer.json", "pytorch_model.bin", "consolidated.pt", "x.pkl", "onnx/m.onnx"]
    files += ["original/model.safetensors", "tokenizer.model", "modeling_x.py", "chat_template.jinja"]
    patterns = {name: asked[0][name] for name in ("allow_patterns", "ignore_patterns")}
    kept = {"model.safetensors", "tokenizer.json", "tokenizer.model", "chat_template.jinja"}
    assert set(filter_repo_objects(files, **patterns)) == kept


def test_hub_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    from huggingface_hub import errors

    response = httpx.Response(404, request=httpx.Request("GET", "http://hub.invalid/x"))
    cases = [
        (errors.RepositoryNotFoundError("x", response=response), "log in"),
        (errors.GatedRepoError("x", response=response), "gated"),
        (errors.RevisionNotFoundError("x", response=response), "no revision 'v9'"),
        (errors.LocalEntryNotFoundError("x"), "Check the network"),
        (ConnectionError("down"), "smollm2-135m"),
    ]
    for failure, hint in cases:

        def fail(*_: object, failure: Exception = failure, **__: object) -> None:
            raise failure

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        assert hint in refused("org/name@v9")


def test_load_gives_the_engine_for_the_kind(model: Path) -> None:
    from tamis.models.endpoint import Endpoint
    from tamis.models.minilm import MiniLM

    assert isinstance(load("http://127.0.0.1:9/v1#m", concurrency=2), Endpoint)
    edit_json(model / "config.json", architectures=["BertModel"])
    assert isinstance(load(str(model)), MiniLM)


@pytest.mark.parametrize(
    "url", ["http://h\tx/v1#m", "http://h\nx/v1#m", "http://h x/v1#m", "http://h/v1#m\x00", "http://h:65536/v1#m"]
)
def test_urls_with_control_characters_spaces_or_odd_ports_are_refused(url: str) -> None:
    for find in (resolve, capabilities):
        with pytest.raises(ModelError, match="not the address of a server"):
            find(url)


def test_a_urls_scheme_may_be_in_capitals() -> None:
    assert resolve("HTTP://127.0.0.1:9/v1#m") == resolve("http://127.0.0.1:9/v1#m")
    assert capabilities("HTTPS://host/v1#m") == ("text",)
