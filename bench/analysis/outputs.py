"""Files that a report may overwrite or remove in its folder. All other files are left alone."""

from __future__ import annotations

import re
from pathlib import Path

TITLE = "Attention strategies in contrastive pre-training on chest X-rays"
MADE_BY = "% Made by `python -m bench.report`."
BEGINNINGS = {"report.md": f"# {TITLE}", "report.tex": MADE_BY, "results.csv": "run_id,", "cost.csv": "method,encoder,"}
LARGE_PARTS = "vit-small-parts"
FIGURE = re.compile(rf"\d+-[a-z0-9-]+-(labels|cost|training|selection)|{LARGE_PARTS}")


def check_reports(folder: Path) -> None:
    """Raise ValueError if a report would overwrite a file that was not written by a report."""
    for name, beginning in BEGINNINGS.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0:
            continue
        with path.open("rb") as stream:
            if not stream.read(len(beginning.encode())) == beginning.encode():
                raise ValueError(
                    f"{path} was not written by bench.report and would be overwritten: choose another folder with "
                    "--reports."
                )


def is_figure(path: Path) -> bool:
    """Whether a file under figures/ was drawn by a report, so that the next report may remove it."""
    return path.suffix in (".png", ".svg") and FIGURE.fullmatch(path.stem) is not None
