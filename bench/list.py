"""`python -m bench.list`: methods, strategies with their options, objectives, encoders, data sets, presets."""

from __future__ import annotations

import tomllib

import typer
from rich.console import Console
from rich.table import Table

from bench.specs.grid_spec import PRESETS
from bench.specs.options import Options, takes
from datasets import REGISTRY
from methods import BASELINES, ENCODERS, HEADLINE, OBJECTIVES, STRATEGIES, Entry

app = typer.Typer(add_completion=False)


@app.command()
@takes(Options)
def main(options: Options) -> None:
    """List everything that `bench.run` and `bench.cost` take by name, each with a summary and its source."""
    console = Console()
    console.print(_table("Methods of --methods all", ["method"], [[name] for name in HEADLINE]))
    console.print(
        "Any objective can be combined with any strategy: objective/strategy[option=value,...].\n", markup=False
    )
    columns = ["name", "what", "options (default)", "source"]
    console.print(_table("Objectives", columns, _entry_rows(OBJECTIVES)))
    rows = [
        [*row, ", ".join(entry.encoders)]
        for row, entry in zip(_entry_rows(STRATEGIES), STRATEGIES.values(), strict=True)
    ]
    console.print(_table("Strategies", [*columns, "encoders"], rows))
    console.print(_table("Baselines", ["name", "what it asks"], [[k, b.question] for k, b in BASELINES.items()]))
    console.print(_table("Encoders", ["name", "what"], [[k, v] for k, v in ENCODERS.items()]))
    rows = [[k, e.summary, "\n".join(f"{o}: {h}" for o, h in e.options.items()), e.source] for k, e in REGISTRY.items()]
    console.print(_table("Data sets", ["name", "what", "options (--set data.options.NAME=)", "source"], rows))
    presets = [[path.stem, _first_comment(path.read_text(encoding="utf-8"))] for path in sorted(PRESETS.glob("*.toml"))]
    console.print(_table("Presets", ["name", "what"], presets))


def _entry_rows(entries: dict[str, Entry]) -> list[list[str]]:
    rows = []
    for name, entry in entries.items():
        options = [f"{key} ({_shown(o.default)}): {o.help}" for key, o in entry.options.items()]
        rows.append([name, entry.summary, "\n".join(options), entry.source])
    return rows


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", show_lines=any("\n" in c for r in rows for c in r)
    )
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    return table


def _first_comment(text: str) -> str:
    tomllib.loads(text)  # raises for a file that is not TOML
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


if __name__ == "__main__":
    app()
