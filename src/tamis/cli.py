"""The command line. Nothing heavy is imported before a command needs it."""

import os
import shlex
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis import __version__
from tamis.errors import ConfigError, TamisError, nearest

if TYPE_CHECKING:
    from tamis import recipe as recipes
    from tamis.progress import Mode

app = typer.Typer(
    name="tamis",
    help="A better model out of your own prompts and data: sample, judge, select, compose, tune, evaluate, again.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(no_args_is_help=True, help="Packaged and cached models.", rich_markup_mode=None)
app.add_typer(models_app, name="models")

BEGAN = time.monotonic()
"""When the command started, as far as this module can tell: plans count start-up too."""

Recipe = Annotated[str, typer.Argument(help="A packaged recipe (tamis methods) or a YAML file.")]
Model = Annotated[str | None, typer.Option(help="Name, local folder, hub id or http(s)://host/v1#model.")]
Data = Annotated[str | None, typer.Option(help="Your data: JSONL, JSON, CSV, Parquet or a datasets folder.")]
Mapping = Annotated[list[str] | None, typer.Option("--map", help="Which column is what, e.g. --map prompt=question.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a field: path=value.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Lab = Annotated[bool, typer.Option("--lab", help="Try the recipe in seconds: nano model, small exact task.")]
RunName = Annotated[str, typer.Argument(help="Run folder, its name, or 'last'.")]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder that holds the run folders.")]


def _version(show: bool) -> None:
    if show:
        print(f"tamis {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def run(
    recipe: Recipe,
    model: Model = None,
    data: Data = None,
    mapping: Mapping = None,
    overrides: Overrides = None,
    seed: Seed = None,
    lab: Lab = False,
    runs_dir: RunsDir = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start this run anew.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
) -> None:
    """Run a recipe. The same command goes on after a stop; nothing finished is done twice."""
    from tamis import pipeline
    from tamis import plan as plans
    from tamis.progress import listener

    made = _load(recipe, overrides, mapping, model=model, data=data, seed=seed, lab=lab)
    mode: Mode = "json" if json_lines else "quiet" if quiet else "auto"
    watch = listener(mode)
    try:
        done = pipeline.run(made, runs_dir=runs_dir, fresh=fresh, listener=watch)
    finally:
        watch.close()
    found = plans.compare(done, time.monotonic() - BEGAN)
    if json_lines:
        watch({"event": "plan", **found.to_dict()}) if found else None
        return
    from tamis.report.planned import comparison_line
    from tamis.report.tables import print_result

    print_result(done)
    if found:
        print(f"\n{comparison_line(found)}")


@app.command()
def plan(
    recipe: Recipe,
    model: Model = None,
    data: Data = None,
    mapping: Mapping = None,
    overrides: Overrides = None,
    seed: Seed = None,
    lab: Lab = False,
    runs_dir: RunsDir = Path("runs"),
    seconds: Annotated[float, typer.Option(help="How long to measure, besides loading models.", min=0)] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what a run will take before it starts: tokens, time, memory, disk. Measures on this machine for ten seconds."""
    import json

    from tamis import plan as plans
    from tamis.report.planned import print_plan

    wanted = _load(recipe, overrides, mapping, model=model, data=data, seed=seed, lab=lab)
    made = plans.plan(wanted, runs_dir=runs_dir, seconds=seconds, began=BEGAN, tell=_tell)
    print(json.dumps(made.to_dict(), indent=1)) if as_json else print_plan(made)


@app.command()
def doctor(
    runs_dir: RunsDir = Path("runs"),
    online: Annotated[bool, typer.Option("--online", help="Also ask whether the model hub can be reached.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at this machine: devices, versions, extras, models, disk, and the fix for what is missing."""
    from tamis.doctor import examine
    from tamis.report.health import print_findings

    findings = examine(runs_dir, online=online)
    print_findings(findings, as_json=as_json)
    raise typer.Exit(1 if any(f.state == "missing" for f in findings) else 0)


def _load(recipe: str, overrides: list[str] | None, mapping: list[str] | None, **changes: Any) -> "recipes.Recipe":
    """Return the recipe that the options of `run` and `plan` name."""
    from tamis import recipe as recipes

    return recipes.load(recipe, overrides=overrides or (), mapping=_pairs(mapping), **changes)


def _pairs(mapping: list[str] | None) -> dict[str, str] | None:
    if not mapping:
        return None
    pairs = [m.partition("=") for part in mapping for m in part.split(",")]
    for name, sep, column in pairs:
        if not (name and sep and column):
            raise ConfigError("--map takes field=column", hint="Example: --map prompt=question --map answer=solution")
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        raise ConfigError(f"--map gives a field twice: {', '.join(names)}", hint="Give each role one column.")
    return {name: column for name, _, column in pairs}


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="A recipe or component: prints its full page.")] = None,
    room: Annotated[str | None, typer.Option(help="Only this room, e.g. sampler.")] = None,
) -> None:
    """List the methods by room, or print one method's page: fields, defaults, where they come from."""
    from tamis.report.tables import print_method, print_methods

    if name and room:
        raise ConfigError(f"both a name ('{name}') and a room ('{room}')", hint="Give one of the two.")
    print_method(name) if name else print_methods(room)


@app.command()
def report(run: RunName, runs_dir: RunsDir = Path("runs")) -> None:
    """Write report.html of a run again and print its path."""
    from tamis import runs
    from tamis.report.html import write_report

    print(write_report(runs.find(run, runs_dir)))


@app.command()
def show(
    run: RunName,
    what: Annotated[str, typer.Argument(help="examples, completions or dropped.")] = "examples",
    n: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Print what a run made: examples with the trained tokens coloured, completions with verdicts, dropped records."""
    from tamis import runs
    from tamis.report.tables import print_dropped, print_examples, print_pool

    kinds = {"examples": print_examples, "completions": print_pool, "dropped": print_dropped}
    if what not in kinds:
        raise ConfigError(f"cannot show '{what}'", hint=nearest(what, kinds))
    kinds[what](runs.find(run, runs_dir), n)


@app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(help="Methods to check, e.g. rft dart.")] = None,
    row: Annotated[list[int] | None, typer.Option(help="Rows to check.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Check every method.")] = False,
    out: Annotated[Path, typer.Option(help="Where tables and plots go.")] = Path("runs/checks"),
) -> None:
    """Run claim checks: what the paper says, the baseline, the figures. Exit code 0 only where every claim holds."""
    from tamis.checks import harness

    chosen = harness.choose(names or [], row or [], every)
    held = [harness.run_and_print(found, out) for found in chosen]
    raise typer.Exit(0 if all(held) else 1)


@app.command()
def init(
    data: Annotated[str, typer.Argument(help="Your data file.")],
    out: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
    mapping: Mapping = None,
) -> None:
    """Look at a data file and write a commented starter recipe for it."""
    from tamis.report.starter import write_starter

    print(write_starter(data, out, _pairs(mapping) or {}))


@app.command()
def audit(
    judge: Annotated[
        str, typer.Argument(help="A judge (tamis methods --room judge), or a YAML file {NAME: {OPTION: VALUE}}.")
    ],
    data: Annotated[str, typer.Option(help="Pairs with a known better answer, or answers with a known label.")],
    model: Model = None,
    mapping: Mapping = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="Set an option of the judge: option=value.")
    ] = None,
    n: Annotated[int | None, typer.Option(help="Use so many random rows of the data.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    repeats: Annotated[int, typer.Option(help="How often pairs are judged again, for self-consistency.", min=0)] = 3,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; default runs/audit-JUDGE-DATA.")] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option(help="How an endpoint is asked: concurrency=8, timeout=60, retries, patience.")
    ] = None,
) -> None:
    """Tell whether a judge can be trusted: agreement, place, length, style, consistency, calibration, cost."""
    from tamis import audit as audits
    from tamis.audit.page import print_audit
    from tamis.audit.run import spec
    from tamis.recipe import assignments

    wanted = spec(judge, options or ())
    folder = out or Path("runs") / f"audit-{next(iter(wanted))}-{Path(data).stem}"
    found = audits.audit(
        wanted,
        data,
        model=model,
        mapping=_pairs(mapping),
        n=n,
        seed=seed,
        repeats=repeats,
        out=folder,
        endpoint=dict(assignments(endpoint or (), "concurrency=8", "--endpoint")),
        tell=_tell,
    )
    print_audit(found)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@models_app.command("list")
def models_list() -> None:
    """List packaged and cached models, their size and whether they are here."""
    from tamis.report.tables import print_models

    print_models()


@models_app.command("get")
def models_get(name: Annotated[str, typer.Argument(help="A name of 'tamis models list' or a hub id.")]) -> None:
    """Fetch a model into the cache and print its folder."""
    from tamis.models.resolve import resolve

    found = resolve(name, lambda event: _tell(event["text"]) if "text" in event else None)
    print(found.folder or found.url)


@models_app.command("rm")
def models_rm(name: Annotated[str, typer.Argument(help="A name of 'tamis models list'.")]) -> None:
    """Remove a model from the cache."""
    from tamis.models.catalog import remove_model
    from tamis.progress import byte_size

    print(f"freed {byte_size(remove_model(name))}")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a user's mistake ends with a message and exit code 2, never with a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore", FutureWarning)
    signal.signal(signal.SIGINT, _stopped)
    signal.signal(signal.SIGTERM, _stopped)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - closed by the caller
    try:
        try:
            _check_here()
            app(arguments)
        finally:
            sys.stdout.flush()
    except TamisError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        command = shlex.join(["tamis", *sys.argv[1:]])
        print(f"\nStopped. What was finished is kept; go on with:\n  {command}", file=sys.stderr)
        sys.exit(128 + stop.args[0])
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        from tamis.files import refused

        print(f"error: {refused(error, Path('standard output'))}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)


def _check_here() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the current folder was removed", hint="Change to a folder that exists.") from None


class Stopped(BaseException):
    """Ctrl-C or SIGTERM (its number is the argument): unwinds through every cleanup, caught by nothing on the way."""


def _stopped(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)


if __name__ == "__main__":
    main()
