"""Options of the commands: how they get from the command line into a spec, and those that several commands share.

The options of a command are the fields of a frozen dataclass (`bench.grid.options.RunOptions`, `CostOptions` in
`bench.cost`, ...). A field stands for everything there is to say about an option: its name, its type, the text and
heading in `--help`, the value of the spec that it sets, and its default:

    labels: Annotated[str | None, compared(help="..."), Key("evaluation.labels", numbers)] = None

`takes` turns the fields into parameters of the command, for typer; `changes_of` collects the values that were given for
options with a `Key`, for `load_grid`.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

PROJECT = "sparse-attention-bench"


@dataclass(frozen=True)
class Key:
    """Marks an option that sets a value of the spec: the dotted `name` of that value in `GridSpec`, and `read`, which
    gets the option's name (for messages) and what typer hands over, and returns the value or raises ValueError."""

    name: str
    read: Callable[[str, Any], Any] = lambda option, given: given


def numbers(option: str, text: str, example: str) -> tuple[float, ...]:
    """Read a comma-separated list of numbers, each once. Raises ValueError, which shows the `example`."""
    try:
        found = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"{option} '{text}' is not a comma-separated list of numbers: write e.g. {option} {example}.")
    return tuple(dict.fromkeys(found))


def names(option: str, text: str) -> tuple[str, ...]:
    """Read a comma-separated list of words."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def real_path(option: str, path: Path) -> str:
    """The absolute path without links, as text."""
    return os.path.realpath(path)


def version() -> str:
    """The version of this project, installed or not."""
    from importlib import metadata

    try:
        return metadata.version(PROJECT)
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        import tomllib

        text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
        return str(tomllib.loads(text)["project"]["version"])


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"{PROJECT} {version()}")
        raise typer.Exit


def default_cache() -> Path:
    """Folder of data sets that are rendered or resized once: BENCH_CACHE, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BENCH_CACHE") or Path(home) / PROJECT)


compared = partial(typer.Option, rich_help_panel="What is compared")
settings = partial(typer.Option, rich_help_panel="Where the settings come from")
files = partial(typer.Option, rich_help_panel="Files")
"""`typer.Option` under a heading of `--help`; a command adds headings of its own in the same way."""

Methods = Annotated[
    str | None,
    compared(
        help=r"Comma-separated list of objective/strategy\[option=value,...]; 'all': the headline set of bench.list."
    ),
    Key("methods"),
]
Keep = Annotated[
    str | None,
    compared(help="Keep ratios, e.g. 0.5,0.7, for strategies with an option 'keep'."),
    Key("keep", partial(numbers, example="0.5,0.7")),
]
Preset = Annotated[str, settings(help="Scale and its settings: the name of a file in bench/presets/.")]
DataRoot = Annotated[
    Path | None,
    files(help="Folder with the files of the data set; by default the one that the spec or the record names."),
    Key("data.root", real_path),
]
Plugin = Annotated[list[Path] | None, files(help="Python file that defines methods of your own; repeatable.")]
Results = Annotated[Path, files(help="Folder of the records.")]
Reports = Annotated[Path, files(help="Folder of the report, its tables and figures.")]
Cache = Annotated[
    Path | None, files(help="Folder of data sets rendered or resized once; by default BENCH_CACHE, else ~/.cache.")
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that every command has."""

    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False


T = TypeVar("T", bound=Options)


def takes(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Give a command's function, which takes an object of this class, a parameter for each field, as typer asks."""
    hints = get_type_hints(options, include_extras=True)
    fields = [field.replace(annotation=hints[field.name]) for field in inspect.signature(options).parameters.values()]

    def decorate(main: Callable[[T], None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            main(options(**given))

        command.__doc__ = main.__doc__
        command.__signature__ = inspect.Signature(fields)  # type: ignore[attr-defined]
        return command

    return decorate


def examples(*commands: str) -> str:
    """Worked examples for the end of `--help`."""
    return "\n  ".join(["Examples:", *commands]).replace("[", r"\[")


def changes_of(options: Options) -> dict[str, Any]:
    """The values of the spec that options set, by dotted key; options that were not given are left out."""
    changes = {}
    for name, hint in get_type_hints(type(options), include_extras=True).items():
        given = getattr(options, name)
        for key in getattr(hint, "__metadata__", ()):
            if isinstance(key, Key) and given is not None:
                changes[key.name] = key.read(f"--{name.replace('_', '-')}", given)
    return changes
