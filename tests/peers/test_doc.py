"""The table in peers/README.md is what was measured last."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "peers"


def test_every_comparison_stands_in_the_readme_with_its_verdict() -> None:
    expected = []
    for name in ("harness", "views", "step"):
        for row in json.loads((FOLDER / "results" / f"{name}.json").read_bytes())["rows"]:
            ratio, target = row["ratio"], row["target"]
            measured = f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
            wanted, verdict = ("–", "–") if target is None else (f"{target:.2f}", row["verdict"])
            expected.append(f"| {name} | {row['what']} | {row['against']} | {measured} | {wanted} | {verdict} |")
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("| comparison | what | against | ratio [95 %] | at least | verdict |")
    assert lines[start + 2 : start + 2 + len(expected)] == expected
