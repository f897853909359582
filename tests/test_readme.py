"""The README's figures are those of the committed reference report, and its plug-in is one that works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import methods
from bench.analysis.judge.claims import ANOTHER_PROCESSOR, SEEDS
from methods.plugins import load_plugin
from methods.strategies.strategy import Call
from tests.bench.analysis.test_verdicts import WORDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = ROOT / "reports" / "reference" / "quick" / "report.md"


def test_every_table_row_of_the_result_stands_in_the_reference_report() -> None:
    part = README.split("## A first result")[1].split("## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("|")]
    assert len(rows) > 10
    report = REFERENCE.read_text(encoding="utf-8").splitlines()
    assert [row for row in rows if row not in report] == []


def test_every_sentence_of_the_finding_is_the_reports() -> None:
    part = README.split("## A first result")[1].split("## ")[0]
    quoted = [line.removeprefix("> ") for line in part.splitlines() if line.startswith("> ") and line != ">"]
    assert quoted
    report = REFERENCE.read_text(encoding="utf-8")
    assert [line for line in quoted if line not in report] == []


def test_few_seeds_are_quoted_without_verdicts_on_accuracy() -> None:
    part = README.split("## A first result")[1].split("## ")[0]
    seeds = [
        int(row.split("|")[3]) for row in part.splitlines() if re.match(r"\| (simclr|moco)/\S+ \| [^|]+ \| \d+ \|", row)
    ]
    assert seeds
    if min(seeds) < SEEDS:
        assert ANOTHER_PROCESSOR in " ".join(part.split())
        quoted = [line for line in part.splitlines() if line.startswith("> ") and "40 % faster" not in line]
        assert [line for line in quoted if WORDS.search(line)] == []


def test_the_plugin_example_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(# every_other\.py\n.*?)```", README, re.DOTALL)
    assert code is not None
    file = tmp_path / "every_other.py"
    file.write_text(code.group(1), encoding="utf-8")
    monkeypatch.setattr(methods, "STRATEGIES", dict(methods.STRATEGIES))
    assert load_plugin(file) == ["everyother"]
    encoder = methods.build_encoder("vit_stem_d64_l4_patch8", "everyother", {}, image_size=32, channels=1, seed=0)
    kept = encoder.eval()(torch.rand(2, 1, 32, 32), Call()).kept
    assert kept.nonzero()[:, 1].tolist() == [0, 2, 4, 6, 8, 10, 12, 14] * 2
