"""`python -m bench.verify`: checks whether records hold, by their files and by rerunning them."""

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
    from bench.verification.stages import FileChecks

app = typer.Typer(add_completion=False)
EXAMPLES = (
    "python -m bench.verify results --quick",
    "python -m bench.verify results/RUN --data-root ~/xrays --no-measure",
)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(Options):
    """The command line of `bench.verify`."""

    records: Annotated[
        list[Path], typer.Argument(help="results/<run id>, its record.json, or a results folder; repeatable.")
    ]
    quick: Annotated[
        bool, typer.Option("--quick", help="Don't train: check digests, splits, MACs, and accuracy by the predictions.")
    ] = False
    measure: Annotated[bool, typer.Option(help="Remeasure speed-ups that were measured on this machine.")] = True
    data_root: DataRoot = None
    plugin: Plugin = None
    cache: Cache = None


@app.command(epilog=examples(*EXAMPLES))
@takes(VerifyOptions)
def main(options: VerifyOptions) -> None:
    """Verify records: list what holds, what does not hold, and what can't be compared here."""
    from bench.messages import console_of
    from bench.verification.check import FAILS, HOLDS, OPEN

    console = console_of()
    cache = options.cache or default_cache()
    counts = dict.fromkeys((HOLDS, FAILS, OPEN), 0)
    try:
        found = _check_files(options, cache, console)
        for one in found:
            checks = list(one.checks)
            if not options.quick:
                with console.status(f"Rerunning {one.folder.name} ...") as status:
                    checks += _check_rerun(one, cache, options.measure, lambda state: status.update(_progress(state)))
            _print(one.folder.name, checks, console)
            for check in checks:
                counts[check.verdict] += 1
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. Nothing was changed.", err=True)
        raise typer.Exit(130) from None
    console.print(
        f"{len(found)} record(s): {counts[HOLDS]} checks hold, {counts[FAILS]} do not, "
        f"{counts[OPEN]} can't be compared.",
        highlight=False,
    )
    raise typer.Exit(1 if counts[FAILS] else 0)


def _check_files(options: VerifyOptions, cache: Path, console: Console) -> list[FileChecks]:
    """Check the files of all records. What the user has to fix is reported before anything is trained, after the checks
    of the other records."""
    from bench.messages import error_line
    from bench.specs.plugins import load_plugins
    from bench.verification.files import folders_of
    from bench.verification.stages import FileChecks, check_files

    found: list[FileChecks] = []
    mistakes: list[str] = []
    with exit_on(ValueError, OSError, code=2):
        load_plugins(options.plugin or ())
        folders = dict.fromkeys(folder for place in options.records for folder in folders_of(place))
    for folder in folders:
        with console.status(f"Checking {folder.name} ..."):
            try:
                found.append(check_files(folder, options.data_root, cache))
            except (ValueError, OSError) as mistake:
                mistakes.append(f"{plain(folder.name)}: {error_line(mistake)}")
            except Exception as error:
                found.append(FileChecks(folder, (_unexpected(error),)))
    if mistakes:
        for one in found:
            _print(one.folder.name, list(one.checks), console)
        for text in mistakes:
            typer.echo(f"Error: {text}", err=True)
        raise typer.Exit(2)
    return found


def _check_rerun(
    files: FileChecks, cache: Path, measure: bool, progress: Callable[[dict[str, Any]], None]
) -> list[Check]:
    """Rerun a record and compare."""
    from bench.verification.stages import check_rerun

    try:
        return check_rerun(files, cache, measure, progress)
    except Exception as error:
        return [_unexpected(error)]


def _unexpected(error: Exception) -> Check:
    """A failed check in place of the remaining ones: a record may state anything, and must not stop the next one."""
    from bench.verification.check import FAILS, Check

    return Check("the rest", FAILS, f"checking it failed with {type(error).__name__}: {error}")


def _progress(state: dict[str, Any]) -> str:
    """A line on the progress of a rerun."""
    steps = f", step {state['step']} of {state['steps']}" if "steps" in state else ""
    return f"Rerunning: {state.get('doing', 'training')}{steps}"


def _print(run_id: str, checks: list[Check], console: Console) -> None:
    """Print the checks of a record as a table."""
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
