"""A whole report on fewer seeds than a verdict needs: no word of a verdict on accuracy anywhere, in any format."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from bench.analysis.judge import claims
from bench.report import app

WORDS = re.compile(
    r"\b(supported|refuted|undecided|exclud\w+|beats?|beaten|better|worse|best|wins?|won|loses?|outperforms?|superior"
    r"|inferior|significan\w+|equivalent|does as well|as well as|no difference|nothing is decided|can't tell"
    r"|is not seen|teaches|depends on the image|is about the image|not shown|matters|front)\b",
    re.IGNORECASE,
)
SPEED = re.compile(r"times as fast|40 \\?% faster|[Nn]oise floor")
FIXED = (
    # definitions and rules, which hold for any number of seeds
    "Supported: the whole interval lies above the threshold; refuted: below; undecided: the threshold lies in it.",
    "Shown: the own selection is better than both.",
    "Is the selection about the image? At 10 % of the labels",
    "No verdict on whether the selection is about the image",
    "no front is drawn",
    # a ratio of times within the noise floor
    "no difference seen [",
    # claims, beside which the verdict stands
    "better than one fixed mask for all images",
    "better than dropping patches at random in training only",
    "better, at 10 %",
    "selection about the image",
    # on learning rates, chosen with one seed, which the same sentence says
    "Best at an end of that range, so perhaps better outside it",
    "Best at the edge of that range, so perhaps better beyond it",
)
"""What may be said: nothing here is about how one method did."""


@pytest.fixture(scope="module")
def report(tmp_path_factory, synthetic):
    """Writes a report on methods far apart, which any number of seeds would tell; returns its texts by name."""

    def build(seeds):
        make = synthetic.Method
        methods = [
            make("untrained", 0.55, wobble=0.003, inference="dense", verdict="not trained"),
            make("supervised", 0.56, wobble=0.003, inference="dense", verdict="not trained"),
            make("simclr/dense", 0.85, wobble=0.003),
            make("moco/dense", 0.75, wobble=0.003, speed=(1.0, 0.86, 0.86)),
            make(
                *("simclr/sparsecontrast", 0.70, 0.5),
                wobble=0.003,
                speed=(1.75, 1.82, 1.40),
                modes={"dense": 0.72, "mean": 0.6, "shuffled": 0.6},
            ),
            make("simclr/fixed", 0.80, 0.5, wobble=0.003, speed=(1.8, 1.9, 1.5)),
            make("simclr/patchdropout", 0.70, 0.5, wobble=0.003, inference="dense"),
        ]
        world = synthetic.World(
            patients=200,
            seeds=tuple(range(seeds)),
            draws=2,
            fractions={10.0: 0.8, 100.0: 1.0},
            probes=("linear",),
            validation=100,
            flat=("nodule", "pneumothorax"),
        )
        folder = tmp_path_factory.mktemp(f"seeds{seeds}")
        synthetic.write_results(folder / "results", world, methods)
        told = CliRunner().invoke(app, ["--results", str(folder / "results"), "--reports", str(folder / "reports")])
        assert told.exit_code == 0, told.output
        kinds = ("report.md", "report.tex", "results.csv", "figures/*.svg")
        paths = [path for kind in kinds for path in sorted((folder / "reports").glob(kind))]
        assert len(paths) > 6
        return {"terminal": told.output} | {str(path.name): path.read_text() for path in paths}

    return build


def pieces(name, text):
    """Sentences and cells of a text, without mark-up; of a drawing, its texts, which matplotlib gives as comments."""
    if name.endswith(".svg"):
        return re.findall(r"<!-- (.*?) -->", text)
    text = re.sub(r"\\(?=[^a-zA-Z])|\\[a-zA-Z]+\*?|[{}]", "", text).replace("--", "–")
    cells = text.splitlines() if name.endswith(".csv") else re.split(r"\n|\||&|  +", text)
    return [piece for cell in cells for piece in re.split(r"(?<=[.!?]) (?=[A-Z“])", cell) if piece.strip()]


def verdicts(texts):
    """Every piece with a word of a verdict that is neither about speed nor FIXED, by the name of its text."""
    found = []
    for name, text in texts.items():
        rows = [line for line in text.splitlines() if not SPEED.search(line)]  # a sentence, or a claim with its verdict
        for piece in pieces(name, "\n".join(rows)):
            for said in FIXED:
                piece = piece.replace(said, "")
            if WORDS.search(piece):
                found.append((name, piece.strip()))
    return found


@pytest.mark.parametrize("seeds", [1, 3, 4])
def test_no_word_of_a_verdict_on_accuracy_in_a_report_of_few_seeds(report, seeds):
    assert verdicts(report(seeds)) == []


def test_the_words_are_found_where_verdicts_are_given(report, monkeypatch):
    """Else the test above would pass on anything: the same report, if one seed were enough."""
    for module in ("claims", "caveats"):
        monkeypatch.setattr(f"bench.analysis.judge.{module}.SEEDS", 1)
    assert claims.SEEDS == 1
    found = verdicts(report(1))
    assert {name for name, _ in found} >= {"terminal", "report.md", "report.tex"}
    told = " ".join(piece for _, piece in found)
    for word in (
        "refuted",
        "worse than dense",
        "does better",
        "teaches something",
        "weak baseline",
        "the front",
    ):
        assert word in told, word
