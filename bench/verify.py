"""`python -m bench.verify`: does a record hold? Looks at its files, runs it again from what it says, and compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.messages import exit_on, plain
from bench.specs.options import Cache, DataRoot, Options, Plugin, default_cache, examples, takes

if TYPE_CHECKING:
    from rich.console import Console

    from bench.verification.check import Check
    from bench.verification.stages import Looked

app = typer.Typer(add_completion=False)
EXAMPLES = (
    "python -m bench.verify results --quick",
    "python -m bench.verify results/RUN --data-root ~/xrays --no-measure",
)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(Options):
    """The command line of `bench.verify`."""

    records: Annotated[
        list[Path], typer.Argument(help="results/<run id>, its record.json, or a results folder; several.")
    ]
    quick: Annotated[
        bool, typer.Option("--quick", help="Don't train: digests, splits, MACs, predictions -> accuracy.")
    ] = False
    measure: Annotated[bool, typer.Option(help="Measure recorded speed-ups anew, where this is the machine.")] = True
    data_root: DataRoot = None
    plugin: Plugin = None
    cache: Cache = None


@app.command(epilog=examples(*EXAMPLES))
@takes(VerifyOptions)
def main(options: VerifyOptions) -> None:
    """Verify records: what of them holds, what does not, and what can't be compared here."""
    from bench.messages import console_of
    from bench.verification.check import FAILS, HOLDS, OPEN

    console = console_of()
    cache = options.cache or default_cache()
    counts = dict.fromkeys((HOLDS, FAILS, OPEN), 0)
    try:
        looked = _look(options, cache, console)
        for one in looked:
            checks = list(one.checks)
            if not options.quick:
                with console.status(f"Running {one.folder.name} again ...") as status:
                    checks += _anew(one, cache, options.measure, lambda state: status.update(_progress(state)))
            _print(one.folder.name, checks, console)
            for check in checks:
                counts[check.verdict] += 1
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. Nothing was changed.", err=True)
        raise typer.Exit(130) from None
    console.print(
        f"{len(looked)} record(s): {counts[HOLDS]} checks hold, {counts[FAILS]} do not, "
        f"{counts[OPEN]} can't be compared.",
        highlight=False,
    )
    raise typer.Exit(1 if counts[FAILS] else 0)


def _look(options: VerifyOptions, cache: Path, console: Console) -> list[Looked]:
    """What the files tell, of all records: what the user has to mend is said before anything is trained, and what was
    found of the other records with it."""
    from bench.messages import error_line
    from bench.specs.plugins import load_plugins
    from bench.verification.files import folders_of
    from bench.verification.stages import Looked, look

    looked: list[Looked] = []
    mistakes: list[str] = []
    with exit_on(ValueError, OSError, code=2):
        load_plugins(options.plugin or ())
        folders = dict.fromkeys(folder for place in options.records for folder in folders_of(place))
    for folder in folders:
        with console.status(f"Looking at {folder.name} ..."):
            try:
                looked.append(look(folder, options.data_root, cache))
            except (ValueError, OSError) as mistake:
                mistakes.append(f"{plain(folder.name)}: {error_line(mistake)}")
            except Exception as error:
                looked.append(Looked(folder, (_beyond(error),)))
    if mistakes:
        for one in looked:
            _print(one.folder.name, list(one.checks), console)
        for text in mistakes:
            typer.echo(f"Error: {text}", err=True)
        raise typer.Exit(2)
    return looked


def _anew(looked: Looked, cache: Path, measure: bool, progress: Callable[[dict[str, Any]], None]) -> list[Check]:
    """What the run made anew tells."""
    from bench.verification.stages import rerun_stage

    try:
        return rerun_stage(looked, cache, measure, progress)
    except Exception as error:
        return [_beyond(error)]


def _beyond(error: Exception) -> Check:
    """What a record says may be anything, and the next record is looked at all the same."""
    from bench.verification.check import FAILS, Check

    return Check("the rest", FAILS, f"looking at it ended in {type(error).__name__}: {error}")


def _progress(state: dict[str, Any]) -> str:
    """A line on a run at work."""
    steps = f", step {state['step']} of {state['steps']}" if "steps" in state else ""
    return f"Running it again: {state.get('doing', 'training')}{steps}"


def _print(run_id: str, checks: list[Check], console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from bench.verification.check import FAILS, HOLDS, OPEN

    styles = {HOLDS: "green", FAILS: "bold red", OPEN: "yellow"}
    table = Table(title=Text(plain(run_id)), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("check", "verdict"):
        table.add_column(column, no_wrap=True)
    table.add_column("why", overflow="fold")
    for check in checks:
        table.add_row(Text(plain(check.what)), Text(check.verdict, styles[check.verdict]), Text(plain(check.why)))
    console.print(table)


if __name__ == "__main__":
    app()
