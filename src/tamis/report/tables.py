"""What the command line prints: results, methods, models, records. Everything goes through rich tables."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tamis import recipe as recipes
from tamis import registry
from tamis.errors import ConfigError, nearest
from tamis.progress import byte_size
from tamis.report import wording
from tamis.runs import Run


def console() -> Console:
    """Return a console for standard output, wide enough for paths when it is not a terminal."""
    import sys

    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def table(*columns: str, rows: Iterable[Sequence[Any]], title: str = "") -> Table:
    """Return a plain table; cells are text, never markup."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(escape(str(cell)) for cell in row))
    return made


def print_result(run: Run) -> None:
    """Print before, after, intervals and p-values, the report's path, and three commands to try next."""
    out = console()
    rows = [_metric_row(row) for row in run.metrics["rows"]]
    if rows:
        out.print(table("metric", "before", "after", "difference (95%)", "p", "n", rows=rows))
        for row in run.metrics["rows"]:
            out.print(wording.finding(row).title, markup=False)
    for found in wording.findings(run.manifest):
        out.print(found["sentence"], markup=False)
    out.print(f"\nreport  {run.path / 'report.html'}", markup=False)
    if run.model:
        out.print(f"model   {run.model}", markup=False)
    out.print("\nnext")
    for command in _next_commands(run):
        out.print(f"  {command}", markup=False)


def _next_commands(run: Run) -> list[str]:
    name = run.recipe["name"].removesuffix("-lab")
    where = "" if str(run.path.parent) == "runs" else f" --runs-dir {shlex.quote(str(run.path.parent))}"
    return [
        f"tamis show {run.name} examples --n 3{where}",
        *([f"tamis methods {name}"] if name in recipes.names() else []),
        "tamis init your_data.jsonl   # then: tamis run recipe.yaml",
    ]


def _metric_row(row: Mapping[str, Any]) -> list[str]:
    share = wording.is_share(row)
    sides = [_interval(row.get(side), share) for side in ("before", "after")]
    found = row.get("difference") or {}
    difference, p = "–", "–"
    if found:
        low, high = (wording.change(found[k], share, unit=False) for k in ("low", "high"))
        difference = f"{wording.paired_change(row)} [{low}, {high}]"
        p = wording.p_value(found["p_value"])
    return [row["name"], *sides, difference, p, str((row.get("before") or row["after"])["n"])]


def _interval(side: Mapping[str, Any] | None, share: bool) -> str:
    if not side:
        return "–"
    value, low, high = (wording.figure(side[k], share) for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def print_methods(room: str | None = None) -> None:
    """Print recipes and components by room: name, row, one-line use."""
    out = console()
    room = room.removesuffix("s") if room else None
    if room is None:
        found = [recipes.load(name) for name in recipes.names()]
        rows = [(r.name, r.row or "", r.about) for r in found]
        out.print(table("recipe", "row", "use", rows=rows), "")
    for name in (room,) if room else registry.ROOMS:
        rows = [(c.name, c.row or "", c.about) for c in registry.components(name)]
        out.print(table(name, "row", "use", rows=rows), "")
    out.print("tamis methods NAME prints a method's full page.", markup=False)


def print_method(name: str) -> None:
    """Print the page of a recipe or of every component of this name."""
    from tamis.report.pages import component_page, recipe_page

    pages = [recipe_page(name)] if name in recipes.names() else []
    pages += [component_page(c) for c in registry.components() if c.name == name]
    if not pages:
        known = {*recipes.names(), *(c.name for c in registry.components())}
        raise ConfigError(f"there is no method '{name}'", hint=nearest(name, known))
    console().print("\n\n".join(pages), markup=False)


def print_models() -> None:
    """Print the models of the catalogue and of the cache."""
    from tamis.models.catalog import list_models

    rows = [
        (m.name, m.kind, m.licence, byte_size(m.size) if m.size else "–", "yes" if m.present else "no", m.source)
        for m in list_models()
    ]
    console().print(table("model", "kind", "licence", "size", "here", "source", rows=rows))


def print_examples(run: Run, n: int) -> None:
    """Print the first `n` examples as they are trained on, trained tokens coloured and underlined."""
    from transformers import AutoTokenizer

    from tamis.models.chat import ChatFormat
    from tamis.models.resolve import resolve
    from tamis.report.terminal import show_examples

    examples = run.examples
    if not examples:
        raise ConfigError("this run has no examples yet", where=str(run.path), hint="Did its compose stage finish?")
    folder = resolve(run.recipe["model"]).folder
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    show_examples(examples, ChatFormat(tokenizer), n, console())


def print_pool(run: Run, n: int) -> None:
    """Print the first `n` completions with their prompts and verdicts."""
    from tamis.report.terminal import show_completions

    prompts = {p.id: p for p in run.prompts()}
    show_completions(run.completions(), prompts, run.verdicts(), n, console())


def print_dropped(run: Run, n: int) -> None:
    """Print how many records were left out by reason, and the first `n`."""
    rows = run.dropped()
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        reasons[row["stage"], row["reason"]] = reasons.get((row["stage"], row["reason"]), 0) + 1
    out = console()
    if not rows:
        out.print("Nothing was left out.")
        return
    out.print(table("stage", "reason", "records", rows=[(*key, count) for key, count in reasons.items()]), "")
    out.print(table("record", "stage", "reason", rows=[(r["record"], r["stage"], r["reason"]) for r in rows[:n]]))
