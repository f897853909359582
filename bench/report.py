"""`python -m bench.report`: results/ -> reports/. Reads records only; it never trains nor measures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bench.analysis.page import ReportSummary

app = typer.Typer(add_completion=False)


def write_report(results: Path, reports: Path, planned: int = 0) -> ReportSummary:
    """Report on all records in `results`; see `bench.analysis.page.write_report`."""
    from bench.analysis import page  # pandas and seaborn: late, so that --help is quick

    return page.write_report(results, reports, planned)


@app.command()
def main(
    results: Annotated[Path, typer.Option(help="The folder with the records.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("reports"),
) -> None:
    """Write the report on all finished runs: tables, figures, the finding in sentences."""
    from bench.analysis.outputs import check_reports
    from bench.analysis.read.groups import ReportRefused
    from bench.messages import account, plain, told

    try:
        check_reports(reports)
    except (ValueError, OSError) as wrong:
        typer.echo(f"Error: {told(wrong, '--results and --reports')}", err=True)
        raise typer.Exit(2) from None
    try:
        summary = write_report(results, reports)
    except ReportRefused as refused:
        typer.echo(f"The report is refused. {account(str(refused))}", err=True)
        raise typer.Exit(1) from None
    except OSError as wrong:
        typer.echo(f"Error: {told(wrong, '--results and --reports')}", err=True)
        raise typer.Exit(2) from None
    for group in summary.groups:
        typer.echo(f"\n{group.table}\n")
        for sentence in group.finding:
            typer.echo(f"- {plain(sentence)}")
    typer.echo(f"\nReport: {summary.path}")


if __name__ == "__main__":
    app()
