"""Names from data (findings, columns, data sets, notes, reasons) that are markup, commands or control codes: every
page shows them as they are and obeys none of them."""

from __future__ import annotations

import csv
import html
import io
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bench.analysis.show.document import Bullets, Paragraph, Table, escape_latex, to_latex, to_markdown, to_text
from bench.messages import plain
from tests.bench.analysis.synthetic import Method, World, write_run
from tests.bench.small import make_folder
from tests.hostile.harness import Commands

NASTY = (
    "a|b",
    "$\\frac{$",  # no mathematics of matplotlib's: it would raise
    "$x$",
    "<script>alert(1)</script>",
    "\\input{/etc/passwd}",
    "\\write18{touch went_off}",
    "`rm -rf`",
    "two\nlines",
    "- a list",
    "1. a list",
    "![x](http://a/b.png)",
    "[red]rich[/red] [/]",
    "\x1b[31mred\x1b[0m",
    "bell\x07 null\x00 back\x08",
    "100 % & #1 ~ ^ _x_ {y}",
    "*bold* _it_ ~~no~~",
    "=cmd|' /C calc'!A0",
    "\u202eright to left",
    "肺炎 Ærø é",
    "&lt;b&gt; &#60;",
)
TAGS = {"h1", "h2", "h3", "p", "ul", "li", "strong", "table", "thead", "tbody", "tr", "th", "td", "img"}
PAGE = MarkdownIt("commonmark").enable(["table", "strikethrough"])


class Reader(HTMLParser):
    """Tags, and the text of every cell, item and paragraph."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.texts: list[str] = [""]
        self.images: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.texts.append("")
        self.images += [value or "" for key, value in attrs if key == "src"]
        assert {key for key, _ in attrs} <= {"src", "alt"}, attrs

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Commands, str]:
    """A report on data whose every name is nasty, and what the command said."""
    bench = Commands(tmp_path_factory.mktemp("nasty"), cache)
    world = World(
        patients=60, seeds=(0,), draws=1, fractions={10.0: 0.8}, probes=("linear",), labels=NASTY, notes=NASTY
    )
    named = {
        "name": NASTY[3],
        "fingerprint": "f" * 64,
        "label_names": NASTY,
        "patient_ids_known": True,
        "notes": NASTY,
    }
    results = bench.folder / "results"
    for method in (Method("simclr/dense", 0.8), Method("simclr/sparsecontrast", 0.8, 0.5)):
        made = write_run(results, world, method, 0, data=named)
        images = np.full((2, 8, 8), 90, np.uint8)
        labels = np.ones((2, len(NASTY)), np.float32)
        np.savez(made / "selection.npz", images=images, kept=images[:, :4, :4] > 0, labels=labels, rule=NASTY[4])
    failed = Method("moco/dense", 0.8)
    write_run(results, world, failed, 0, status="failed", reason="; ".join(NASTY), data=named)
    done = bench.report()
    assert done.exit_code == 0, done.output + done.stderr
    return bench, done.output


def test_markdown(reported: tuple[Commands, str]) -> None:
    page = (reported[0].folder / "reports" / "report.md").read_text(encoding="utf-8")
    assert all(line.isprintable() for line in page.split("\n"))
    read = Reader(PAGE.render(page))
    assert read.tags <= TAGS and all(re.fullmatch(r"figures/[\w-]+\.png", one) for one in read.images)
    texts = {text.strip() for text in read.texts}
    for name in NASTY:
        assert plain(name) in texts, name


def test_latex(reported: tuple[Commands, str]) -> None:
    page = (reported[0].folder / "reports" / "report.tex").read_text(encoding="utf-8")
    assert page.isascii() and all(line.isprintable() for line in page.split("\n"))
    assert set(re.findall(r"\\(input|write|include|openin|openout|read|csname|catcode)\b", page)) == set()
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not on PATH")
    folder = reported[0].folder / "reports"
    (folder / "main.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{report.tex}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-recorder", "main.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-1500:]
    assert "/etc/passwd" not in (folder / "main.fls").read_text() and not (folder / "went_off").exists()


def test_figures(reported: tuple[Commands, str]) -> None:
    figures = sorted((reported[0].folder / "reports" / "figures").glob("*.svg"))
    assert {path.stem.rsplit("-", 1)[-1] for path in figures} >= {"labels", "selection"}
    for path in figures:
        tags = {element.tag.rsplit("}", 1)[-1] for element in ElementTree.parse(path).iter()}
        assert not tags & {"script", "a", "foreignObject", "iframe"}
        assert re.fullmatch(r"[a-z0-9-]+", path.stem)


def test_terminal(reported: tuple[Commands, str]) -> None:
    assert all(line.isprintable() for line in reported[1].split("\n"))


def test_tidy_data(reported: tuple[Commands, str]) -> None:
    text = (reported[0].folder / "reports" / "results.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 3 and {row["data"] for row in rows} == {NASTY[3]}


def test_a_plan_and_a_whole_run_on_columns_of_such_names(bench: Commands) -> None:
    """What a manifest may have for names goes through the plan, training, figures and report."""
    names = [name for name in NASTY if name.isprintable()]
    root = make_folder(bench.folder / "data" / "all")
    lines = (root / "manifest.csv").read_text().splitlines()
    stream = io.StringIO()
    table = csv.writer(stream)
    table.writerow(["path", "patient_id", "view", *names])
    for i, line in enumerate(lines[1:]):
        path, patient, label = line.split(",")
        table.writerow([path, f"{NASTY[i % len(names)]} {patient}".replace("\0", ""), NASTY[0], *[label] * len(names)])
    (root / "manifest.csv").write_text(stream.getvalue(), encoding="utf-8")
    options = ["--data", "folder", "--data-root", str(root), "--cache", str(bench.folder / "cache")]
    planned = bench.run(*options, "--dry-run")
    assert planned.exit_code == 0, planned.output + planned.stderr
    assert "[red]" in planned.output
    done = bench.run(*options)
    assert done.exit_code == 0, done.output + done.stderr
    page = Reader(PAGE.render((bench.folder / "reports" / "report.md").read_text(encoding="utf-8")))
    assert page.tags <= TAGS and {plain(name) for name in names} <= {text.strip() for text in page.texts}


TEXT = st.text(max_size=30) | st.text(alphabet="\\`*_[]()|#~$<>&!-+.=1 :{}%^\"'\n", max_size=20)


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_any_text_in_markdown(text: str) -> None:
    """In a cell, an item and a paragraph alike the page shows the text itself, and no markup comes of it."""
    shown = " ".join(plain(text, 10_000).split())
    for block in (Table("t", ("h",), ((text,),)), Bullets((text,)), Paragraph(text)):
        page = PAGE.render(to_markdown([block]))
        read = Reader(page)
        assert read.tags <= {"p", "ul", "li", "strong", "table", "thead", "tbody", "tr", "th", "td"}, page
        assert shown == "" or shown in {" ".join(one.split()) for one in read.texts}, page
    assert html.unescape(shown) is not None


MACROS = re.compile(
    r"\\text(backslash|asciitilde|asciicircum|less|greater|bar)\{\}|\\[{}$&#%_]|\$(\\[a-z]+|-)\$|\\(ldots|ss|o|O|ae|AE|l)\{\}"
    r"|\{[\[\]*]\}|\\[`'^~\"rcvukHdb.=]\{(\\?[A-Za-z ]?|\W)\}"
)


@settings(max_examples=300, deadline=None)
@given(text=TEXT | st.text(alphabet=st.characters(codec="utf-8"), max_size=10))
def test_any_text_in_latex(text: str) -> None:
    """Without the few macros that stand for a character, nothing is left that TeX obeys."""
    left = MACROS.sub("", escape_latex(text))
    assert left.isascii() and not set(left) & set("\\{}$&#%_~^<>|*[]"), left
    assert len(to_latex([Paragraph(text)]).splitlines()) <= 3


@given(text=TEXT)
def test_any_text_on_a_terminal(text: str) -> None:
    shown = to_text(Table(text, (text,), ((text,),), text))
    assert all(line.isprintable() for line in shown.split("\n"))
