"""From a name to a model: `resolve` finds it, checks it and says what it can do; `load` gives the object behind it.

A name is, in this order: a packaged model (`smollm2-135m`), a lab model (`nano-sums`), an endpoint
(`http://host:port/v1#model`), something on disk (a model, adapter, run or stage folder, or a .gguf file), or a model of the
Hugging Face hub (`org/name`, `org/name@revision`).
"""

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from tamis.errors import ModelError, nearest
from tamis.models import folders
from tamis.models.base import ModelRef
from tamis.models.catalog import CATALOG, OnEvent, convert_once, get_gguf, get_model

LOCAL = ("text", "scoring", "tokens", "trainable")
CAPABILITIES_OF = {"local": LOCAL, "embedder": ("embedder",), "endpoint": ("text",)}
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt"]
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


def resolve(spec: str, on_event: OnEvent | None = None, *, gguf: bool = False) -> ModelRef:
    """Return the model that `spec` names, fetched or converted first where needed, but not loaded.

    `on_event` hears of downloads and conversions (see `catalog.get_model`). For an endpoint the server is asked once for
    what it says of its models; no answer is no error here. Raises ModelError, with what to do, for a name that leads
    nowhere and a model that is incomplete or refused. With `gguf` a local model also has its .gguf file, and one that has
    none is refused.
    """
    ref = _resolve(spec, on_event)
    if not gguf or ref.kind != "local":
        return ref
    file = get_gguf(spec, on_event) if spec in CATALOG else Path(spec).expanduser()
    if file is None or file.suffix.lower() != ".gguf" or not file.is_file():
        raise ModelError(
            f"engine llamacpp runs .gguf files, and '{spec}' is none",
            hint="Name a .gguf file or 'smollm2-135m', or take engine transformers.",
        )
    return replace(ref, gguf=file)


def _resolve(spec: str, on_event: OnEvent | None) -> ModelRef:
    if spec in CATALOG:
        return _model(spec, get_model(spec, on_event))
    if _is_lab(spec):
        return _model(spec, _lab_folder(spec))
    if _is_url(spec):
        return _endpoint(spec)
    path = Path(spec).expanduser()
    if path.exists():
        return _on_disk(path, on_event)
    _refuse_missing(spec)
    if on_event:
        on_event({"event": "fetch", "name": spec, "text": f"fetching '{spec}' from the hub, unless it is in the cache"})
    return _model(spec, _fetch_from_hub(spec))


def capabilities(spec: str) -> tuple[str, ...]:
    """Return what the model that `spec` names can do, without network, download or conversion.

    A hub model is taken for a causal language model. Raises ModelError for a name that cannot be one.
    """
    if spec in CATALOG:
        return CAPABILITIES_OF[CATALOG[spec].kind]
    if _is_url(spec):
        split_endpoint(spec)
        return CAPABILITIES_OF["endpoint"]
    path = Path(spec).expanduser()
    if path.is_dir() and not _is_lab(spec):
        folder = _model_inside(path)
        if not (folder / "adapter_config.json").is_file():
            return CAPABILITIES_OF[folders.kind_of(folder)]
        return LOCAL
    if _is_lab(spec):
        _check_lab(spec)
    elif not path.exists():
        _refuse_missing(spec)
    return LOCAL


def load(ref: ModelRef | str, *, engine: str = "transformers", **options: Any) -> Any:
    """Return the model behind a reference (or a name), made with `options`: an Endpoint, a MiniLM, or a local model.

    `engine` (see `models.engines`) runs a local model; only under transformers can it be tuned.
    """
    found = resolve(ref, gguf=engine == "llamacpp") if isinstance(ref, str) else ref
    if found.kind == "endpoint":
        from tamis.models.endpoint import Endpoint

        return Endpoint(found, **options)
    if found.kind == "embedder":
        from tamis.models.minilm import MiniLM

        return MiniLM(found, **options)
    from tamis.models import engines

    engines.check(engine)
    name = engines.choose(engine, found) if engine == "auto" else engine
    return engines.open_model(found, name, **options)


def _model(name: str, folder: Path) -> ModelRef:
    kind = folders.kind_of(folder)
    folders.check_model(folder)
    return ModelRef(name, kind, folders.model_identity(folder), CAPABILITIES_OF[kind], folder=folder)


def _is_lab(spec: str) -> bool:
    return spec.startswith("nano-") and "/" not in spec


def _lab_folder(name: str) -> Path:
    from tamis.lab import nano

    return nano.folder(name)


def _check_lab(name: str) -> None:
    from tamis.lab import nano

    if name not in nano.names():
        raise ModelError(f"unknown lab model '{name}'", hint=nearest(name, nano.names()))


def _is_url(spec: str) -> bool:
    return spec.lower().startswith(("http://", "https://"))


def split_endpoint(spec: str) -> tuple[str, str]:
    """Return base URL and model name of `http(s)://host[:port]/v1#model`. Raises ModelError for another form."""
    parts = None
    with suppress(ValueError):
        parts = urlsplit(spec)
    if parts is None:
        raise ModelError(
            "this is not the address of an endpoint: its host cannot be read",
            hint="Example: http://127.0.0.1:8000/v1#NAME; an IPv6 address stands in brackets: http://[::1]:8000/v1#NAME",
        )
    base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    address = spec.partition("#")[0]
    if parts.username or parts.password or "@" in parts.netloc or parts.query:
        raise ModelError(
            "an endpoint's URL may hold no user, password or query",
            where=f"{parts.scheme}://{parts.hostname}",
            hint="Put the key into the environment variable TAMIS_API_KEY (or OPENAI_API_KEY).",
        )
    if not spec.isprintable() or " " in address or not _is_port(parts):
        raise ModelError(
            "this is not the address of a server: it holds a space or a control character, or its port is no port",
            where=repr(spec)[1:-1],
            hint="Example: http://127.0.0.1:8000/v1#NAME; ports go from 1 to 65535.",
        )
    if not parts.hostname or not parts.fragment:
        raise ModelError(
            "the endpoint names no model", where=base, hint=f"Write it as {base or 'http://host:8000/v1'}#MODEL-NAME."
        )
    return base, parts.fragment


def _is_port(parts: SplitResult) -> bool:
    with suppress(ValueError):
        return parts.port != 0
    return False


def _endpoint(spec: str) -> ModelRef:
    from tamis.models.endpoint import endpoint_identity

    base, model = split_endpoint(spec)
    return ModelRef(
        model, "endpoint", endpoint_identity(base, model), CAPABILITIES_OF["endpoint"], url=f"{base}#{model}"
    )


def _on_disk(path: Path, on_event: OnEvent | None) -> ModelRef:
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(
                "this file is not a model", where=str(path), hint="Name a model folder, or a file that ends in .gguf."
            )
        return _model(path.stem, convert_once(path, on_event))
    folder = _model_inside(path)
    name = path.resolve().name
    return _adapter(name, folder) if (folder / "adapter_config.json").is_file() else _model(name, folder)


def _model_inside(path: Path) -> Path:
    """Return the model or adapter folder that a folder is or holds (run and stage folders)."""
    if _holds_model(path):
        return path
    if _holds_model(path / "model"):
        return path / "model"
    if (path / "manifest.json").is_file():
        return _tuned_in_run(path)
    ggufs = sorted(path.glob("*.gguf"))
    raise ModelError(
        "this folder holds no model (no config.json, no adapter_config.json)",
        where=str(path),
        hint=f"Name the file itself: {ggufs[0]}" if ggufs else "Name the folder that holds config.json.",
    )


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def _tuned_in_run(run: Path) -> Path:
    stages = folders.read_json(run / "manifest.json").get("stages", [])
    tuned = [run / str(stage.get("folder")) for stage in stages if stage.get("kind") == "tune"]
    done = [stage / "model" for stage in tuned if (stage / "stage.json").is_file() and _holds_model(stage / "model")]
    if done:
        return done[-1]
    raise ModelError(
        "this run has no tuned model" + (" yet" if tuned else ": its recipe has no tune stage"),
        where=str(run),
        hint="Run the same command again to finish it." if tuned else "Name a run whose recipe tunes a model.",
    )


def _adapter(name: str, adapter: Path) -> ModelRef:
    config = folders.read_json(adapter / "adapter_config.json")
    named = str(config.get("base_model_name_or_path") or "")
    if not named:
        raise ModelError(
            "adapter_config.json names no base model",
            where=str(adapter),
            hint="Set base_model_name_or_path there to the model the adapter was tuned on.",
        )
    try:
        base = resolve(_base_spec(named, str(config.get("revision") or ""), adapter))
    except ModelError as error:
        raise ModelError(
            f"the adapter's base model '{named}' cannot be had: {error.message}", where=str(adapter), hint=error.hint
        ) from error
    if base.kind != "local" or base.adapter:
        raise ModelError(
            f"the adapter's base '{named}' is {'itself an adapter' if base.adapter else 'no causal language model'}",
            where=str(adapter),
            hint="Merge the base into one model folder first, and tune on that.",
        )
    identity = folders.adapter_identity(base.identity, adapter)
    return ModelRef(name, "local", identity, LOCAL, folder=base.folder, adapter=adapter)


def _base_spec(named: str, revision: str, adapter: Path) -> str:
    """Return how an adapter's base is named here: a folder beside it, or this machine's copy of a model of ours."""
    if (adapter / named).is_dir():
        return str(adapter / named)
    last = Path(named).name
    if not Path(named).exists() and (last in CATALOG or last in _lab_names()):
        return last
    return f"{named}@{revision}" if revision and not Path(named).exists() else named


def _refuse_missing(spec: str) -> None:
    """Raise ModelError for a name that is on no disk and cannot be one of the hub."""
    import difflib

    known = [*CATALOG, *_lab_names()]
    looks_like_path = spec.startswith((".", "/", "~")) or spec.endswith((".gguf", "/")) or spec.count("/") > 1
    if looks_like_path and not ("@" in spec and HUB_NAME.fullmatch(spec)):
        raise ModelError(f"there is no '{spec}' on this disk", hint="Check the path, also where it starts from.")
    if not HUB_NAME.fullmatch(spec) or ("/" not in spec and difflib.get_close_matches(spec, known, 1, 0.6)):
        raise ModelError(
            f"there is no model '{spec}'",
            hint=f"{nearest(spec, known)} A folder is written ./name, a hub model org/name, "
            "an endpoint http://host:port/v1#model.",
        )


def _lab_names() -> list[str]:
    from tamis.lab import nano

    return nano.names()


def _fetch_from_hub(spec: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name, _, revision = spec.partition("@")
    try:
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=HUB_FILES, ignore_patterns=["*/*", "consolidated*"]
        )
    except GatedRepoError:
        raise ModelError(
            f"the hub model '{name}' is gated", hint="Accept its terms on its page, then log in: hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"the hub model '{name}' has no revision '{revision}'") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"there is no model '{name}' on the hub, or it is private",
            hint=f"{nearest(name, [*CATALOG, *_lab_names()])} For a private model log in: hf auth login",
        ) from None
    except Exception as error:
        raise ModelError(
            f"the hub model '{name}' cannot be fetched ({type(error).__name__})",
            hint="Check the network. Without one, use the packaged 'smollm2-135m', or copy the model's folder here and "
            "name that folder.",
        ) from error
    return Path(folder)
