"""Reading a run folder: what `tamis.run` returns, and what the report and `tamis show` are made from."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import yaml

from tamis.errors import StoreError, nearest
from tamis.files import read_json
from tamis.records import Completion, Example, Prompt, Record, Verdict
from tamis.store import AGAIN, StageFolder

R = TypeVar("R", bound=Record)
Kinds = Mapping[str, tuple[type, ...]]
NUMBER, MAYBE = (int, float), (int, float, NoneType)
WORDS = {
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
    NoneType: "null",
}
MANIFEST: Kinds = {"status": (str,), "stages": (list,)}
MANIFEST_MORE: Kinds = {
    **dict.fromkeys(("created", "error", "tamis"), (str,)),
    **dict.fromkeys(("model", "versions", "machine"), (dict,)),
}
STAGE: Kinds = dict.fromkeys(("folder", "kind", "key", "status"), (str,))
STAGE_MORE: Kinds = {
    **dict.fromkeys(("component", "other_versions"), (str,)),
    **dict.fromkeys(("cost", "counts", "notes"), (dict,)),
    "seconds": NUMBER,
    "reused": (bool,),
}
METRIC: Kinds = {"name": (str,), "before": (dict,)}
METRIC_MORE: Kinds = {
    **dict.fromkeys(("evaluator", "unit"), (str,)),
    **dict.fromkeys(("after", "difference"), (dict,)),
    "higher_is_better": (bool,),
}
SIDE: Kinds = {**dict.fromkeys(("value", "low", "high"), MAYBE), "n": NUMBER}
SIDE_MORE: Kinds = {"notes": (dict,)}
DIFFERENCE: Kinds = dict.fromkeys(("value", "low", "high", "p_value"), MAYBE)
DIFFERENCE_MORE: Kinds = {
    **dict.fromkeys(("test", "unit"), (str,)),
    **dict.fromkeys(("n", "kept_right", "kept_wrong"), NUMBER),
    **dict.fromkeys(("gained", "lost"), (list,)),
}


class Run:
    """A finished, failed or still running run folder. Raises StoreError when `path` is not one."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not (self.path / "manifest.json").exists():
            known = (
                sorted(p.parent.name for p in self.path.parent.glob("*/manifest.json"))
                if self.path.parent.exists()
                else []
            )
            raise StoreError(
                "is not a run folder (it has no manifest.json)",
                where=str(path),
                hint=f"Runs there: {', '.join(known)}" if known else "Give the folder that 'tamis run' printed.",
            )

    @property
    def name(self) -> str:
        """Folder name, `<recipe>-<hash>`."""
        return self.path.name

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        path = self.path / "recipe.yaml"
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise StoreError(f"cannot be read: {error}", where=str(path), hint=AGAIN) from error
        return _expect(isinstance(found, dict) and isinstance(found.get("model"), str), found, path)

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, machine, model identity, seed, and the stages with keys, status, counts and costs."""
        path = self.path / "manifest.json"
        found = read_json(path)
        _check(found, path, "", MANIFEST, MANIFEST_MORE)
        for number, stage in enumerate(found["stages"]):
            at = f"stages[{number}]"
            _check(stage, path, at, STAGE, STAGE_MORE)
            for sums in ("cost", "counts"):
                values = stage.get(sums) or {}
                _check(values, path, f"{at}.{sums}", {}, dict.fromkeys(values, NUMBER))
            if "/" in stage["folder"]:
                raise _wrong(path, f"{at}.folder", "a name")
        return dict(found)

    def stages(self, *kinds: str) -> list[StageFolder]:
        """Return the stage folders of these kinds (all without kinds), in run order."""
        return [
            StageFolder(self.path / s["folder"], s["key"])
            for s in self.manifest["stages"]
            if not kinds or s["kind"] in kinds
        ]

    def _records(self, kind: str, record: type[R]) -> list[R]:
        """Read the records of one kind of stage. Raises StoreError where those of a finished stage are gone."""
        done = {stage["folder"] for stage in self.manifest["stages"] if stage["status"] == "done"}
        found: list[R] = []
        for stage in self.stages(kind):
            if stage.path.name in done and not stage.done:
                raise StoreError("what this stage made is gone", where=str(stage.path), hint=AGAIN)
            found += stage.read(record)
        return found

    def prompts(self) -> list[Prompt]:
        """Return all prompts, train and held-out."""
        return self._records("task", Prompt)

    def completions(self) -> list[Completion]:
        """Return all completions sampled for training."""
        return self._records("sample", Completion)

    def verdicts(self) -> list[Verdict]:
        """Return all verdicts on completions sampled for training."""
        return self._records("judge", Verdict)

    def selected(self) -> list[str] | None:
        """Return the completion ids that the select stages kept, None when the recipe has none."""
        found = self.stages("select")
        if not found:
            return None
        return [i for s in found if s.done for i in s.selection()[0]]

    @property
    def examples(self) -> list[Example]:
        """What was trained on."""
        return self._records("compose", Example)

    def curve(self) -> list[dict[str, Any]]:
        """Return the training curve, one row a step, all tune stages one after the other."""
        rows = []
        for stage in self.stages("tune"):
            rows += _lines(stage.path / "curve.jsonl", {"step": NUMBER})
        return rows

    @property
    def metrics(self) -> dict[str, Any]:
        """Before and after with intervals and paired differences: `{"rows": [...]}`, empty before evaluation."""
        path = self.path / "metrics.json"
        found = read_json(path) if path.exists() else {"rows": []}
        _check(found, path, "", {"rows": (list,)})
        for number, row in enumerate(found["rows"]):
            at = f"rows[{number}]"
            _check(row, path, at, METRIC, METRIC_MORE)
            for side in ("before", "after"):
                if side == "before" or row.get(side):
                    _check(row[side], path, f"{at}.{side}", SIDE, SIDE_MORE)
            if row.get("difference"):
                _check(row["difference"], path, f"{at}.difference", DIFFERENCE, DIFFERENCE_MORE)
        return dict(found)

    @property
    def model(self) -> Path | None:
        """Folder of the last tuned model, None when nothing is tuned."""
        found = [s.path / "model" for s in self.stages("tune") if s.done]
        return found[-1] if found else None

    def heldout(self, side: str) -> tuple[list[Completion], list[Verdict]]:
        """Return the held-out completions and verdicts of a side, "before" or "after" (the last round's)."""
        found = self.stages(f"evaluate_{side}")
        if not found:
            return [], []
        return found[-1].read(Completion), found[-1].read(Verdict)

    def dropped(self) -> list[dict[str, Any]]:
        """Return what was left out: record, reason and stage."""
        rows = []
        for stage in self.stages():
            found = _lines(stage.path / "rejected.jsonl", {"record": (str,), "reason": (str,)})
            rows += [{**row, "stage": stage.path.name} for row in found]
        return rows

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, status={self.manifest['status']!r})"


def _expect(holds: bool, found: Any, path: Path) -> Any:
    """Return what was found in a file. Raises StoreError where it is not what a run writes there."""
    if not holds:
        raise StoreError("does not hold what a run writes there", where=str(path), hint=AGAIN)
    return found


def _wrong(path: Path, at: str, wanted: str) -> StoreError:
    return StoreError(f"{at} is not {wanted}", where=str(path), hint=AGAIN)


def _check(entry: Any, path: Path, at: str, required: Kinds, optional: Kinds | None = None) -> None:
    """Raise StoreError that names the file and the field unless its fields are of these kinds; optional ones may be null."""
    if not isinstance(entry, dict):
        raise _wrong(path, at or "what it holds", WORDS[dict])
    for name, kinds in {**(optional or {}), **required}.items():
        field, value = f"{at}.{name}" if at else name, entry.get(name)
        if name in required and name not in entry:
            raise StoreError(f"{field} is missing", where=str(path), hint=AGAIN)
        if value is None and name not in required:
            continue
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if not fits or (isinstance(value, int | float) and not abs(value) <= 1e300):
            raise _wrong(path, field, " or ".join(dict.fromkeys(WORDS[kind] for kind in kinds)))


def _lines(path: Path, required: Kinds) -> list[dict[str, Any]]:
    """Return the whole lines of a file of JSON lines; none where it is not there. Raises StoreError for a wrong one."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="\n") as lines:
        try:
            rows = [json.loads(line) for line in lines if line.endswith("\n")]
        except (ValueError, RecursionError) as error:
            raise StoreError(f"is not JSON lines: {error}", where=str(path), hint=AGAIN) from error
    for number, row in enumerate(rows, 1):
        _check(row, path, f"line {number}", required)
    return rows


def find(name: str, runs_dir: Path) -> Run:
    """Return the run at path `name`, or of that name (or unique beginning) in `runs_dir`, or the newest for "last"."""
    if (Path(name) / "manifest.json").exists():
        return Run(name)
    known = sorted(runs_dir.glob("*/manifest.json"), key=lambda p: p.stat().st_mtime)
    if name == "last" and known:
        return Run(known[-1].parent)
    matches = [p.parent for p in known if p.parent.name.startswith(name)]
    if len(matches) == 1:
        return Run(matches[0])
    if matches:
        raise StoreError(
            f"'{name}' fits several runs", where=str(runs_dir), hint=f"One of: {[m.name for m in matches]}"
        )
    raise StoreError(
        f"there is no run '{name}'",
        where=str(runs_dir),
        hint=nearest(name, [p.parent.name for p in known]) if known else "No run is there; another folder: --runs-dir.",
    )
