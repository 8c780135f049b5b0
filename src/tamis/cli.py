"""The command line. Nothing heavy is imported before a command needs it."""

import os
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis import __version__
from tamis.errors import ConfigError, TamisError, nearest

if TYPE_CHECKING:
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
    recipe: Annotated[str, typer.Argument(help="A packaged recipe (tamis methods) or a YAML file.")],
    model: Annotated[str | None, typer.Option(help="Name, local folder, hub id or http(s)://host/v1#model.")] = None,
    data: Annotated[str | None, typer.Option(help="Your data: JSONL, JSON, CSV, Parquet or a datasets folder.")] = None,
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help="Which column is what, e.g. --map prompt=question.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field: path=value.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    lab: Annotated[
        bool, typer.Option("--lab", help="Try the recipe in seconds: nano model, small exact task.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start this run anew.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
) -> None:
    """Run a recipe. The same command goes on after a stop; nothing finished is done twice."""
    from tamis import pipeline
    from tamis import recipe as recipes
    from tamis.progress import listener

    made = recipes.load(
        recipe, overrides=overrides or (), model=model, data=data, mapping=_pairs(mapping), seed=seed, lab=lab
    )
    mode: Mode = "json" if json_lines else "quiet" if quiet else "auto"
    watch = listener(mode)
    try:
        done = pipeline.run(made, runs_dir=runs_dir, fresh=fresh, listener=watch)
    finally:
        watch.close()
    if not json_lines:
        from tamis.report.tables import print_result

        print_result(done)


def _pairs(mapping: list[str] | None) -> dict[str, str] | None:
    if not mapping:
        return None
    pairs = [m.partition("=") for part in mapping for m in part.split(",")]
    for name, sep, column in pairs:
        if not (name and sep and column):
            raise ConfigError("--map takes field=column", hint="Example: --map prompt=question --map answer=solution")
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        raise ConfigError(f"--map gives a field twice: {', '.join(names)}")
    return {name: column for name, _, column in pairs}


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="A recipe or component: prints its full page.")] = None,
    room: Annotated[str | None, typer.Option(help="Only this room, e.g. sampler.")] = None,
) -> None:
    """List the methods by room, or print one method's page: fields, defaults, where they come from."""
    from tamis.report.tables import print_method, print_methods

    print_method(name) if name else print_methods(room)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Run folder, its name, or 'last'.")], runs_dir: RunsDir = Path("runs")
) -> None:
    """Write report.html of a run again and print its path."""
    from tamis import runs
    from tamis.report.html import write_report

    print(write_report(runs.find(run, runs_dir)))


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Run folder, its name, or 'last'.")],
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
    mapping: Annotated[list[str] | None, typer.Option("--map", help="field=column.")] = None,
) -> None:
    """Look at a data file and write a commented starter recipe for it."""
    from tamis.report.starter import write_starter

    print(write_starter(data, out, _pairs(mapping) or {}))


@models_app.command("list")
def models_list() -> None:
    """List packaged and cached models, their size and whether they are here."""
    from tamis.report.tables import print_models

    print_models()


@models_app.command("get")
def models_get(name: Annotated[str, typer.Argument(help="A name of 'tamis models list' or a hub id.")]) -> None:
    """Fetch a model into the cache and print its folder."""
    from tamis.models.resolve import resolve

    def tell(event: dict[str, Any]) -> None:
        if "text" in event:
            print(event["text"], file=sys.stderr, flush=True)

    found = resolve(name, tell)
    print(found.folder or found.url)


@models_app.command("rm")
def models_rm(name: Annotated[str, typer.Argument(help="A name of 'tamis models list'.")]) -> None:
    """Remove a model from the cache."""
    from tamis.models.catalog import remove_model

    print(f"freed {remove_model(name) / 1e6:.0f} MB")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a user's mistake ends with a message and exit code 2, never with a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore", FutureWarning)
    signal.signal(signal.SIGINT, _stopped)
    signal.signal(signal.SIGTERM, _stopped)
    try:
        app(arguments)
    except TamisError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        command = shlex.join(["tamis", *sys.argv[1:]])
        print(f"\nStopped. What was finished is kept; go on with:\n  {command}", file=sys.stderr)
        sys.exit(128 + stop.args[0])
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


class Stopped(BaseException):
    """Ctrl-C or SIGTERM (its number is the argument): unwinds through every cleanup, caught by nothing on the way."""


def _stopped(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)


if __name__ == "__main__":
    main()
