"""`python -m bench.report`: results/ -> reports/. Reads records only; it never trains nor measures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def main(
    results: Annotated[Path, typer.Option(help="The folder with the records.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("reports"),
) -> None:
    """Write the report on all finished runs: tables, figures, the finding in sentences."""
    from bench.analysis.outputs import check_reports
    from bench.analysis.read.groups import ReportRefused
    from bench.messages import account, error_line, plain

    try:
        check_reports(reports)
    except (ValueError, OSError) as wrong:
        typer.echo(f"Error: {error_line(wrong, '--results and --reports')}", err=True)
        raise typer.Exit(2) from None
    from bench.analysis.page import write_report  # brings pandas and seaborn

    try:
        summary = write_report(results, reports)
    except ReportRefused as refused:
        typer.echo(f"The report is refused. {account(str(refused))}", err=True)
        raise typer.Exit(1) from None
    except OSError as wrong:
        typer.echo(f"Error: {error_line(wrong, '--results and --reports')}", err=True)
        raise typer.Exit(2) from None
    for group in summary.groups:
        typer.echo(f"\n{group.table}\n")
        for sentence in group.finding:
            typer.echo(f"- {plain(sentence)}")
    typer.echo(f"\nReport: {summary.path}")


if __name__ == "__main__":
    app()
