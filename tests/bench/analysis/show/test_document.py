"""Escaping and rendering: whatever a finding is called, the page shows exactly that."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from markdown_it import MarkdownIt

from bench.analysis.show.document import (
    Bullets,
    Figure,
    Heading,
    Paragraph,
    Table,
    escape_latex,
    escape_markdown,
    to_latex,
    to_markdown,
    to_text,
)

NASTY = [
    "A_b|c",
    "50 % & more",
    "$x^2$ #1 {y}",
    r"back\slash ~tilde",
    "<b>bold</b> *star* [link](x)",
    "`code`",
    "±×−≥“q”",
]
NASTY += ["Épanchement à droite, Ærø, naïve", "肺炎", "new\nline", "\\input{/etc/passwd}", "x" * 60]
TABLE = Table(
    "A_b & c", ("finding", "value [95 %]", "prose"), tuple((text, "+0.1", text) for text in NASTY), "n_o_te", ("prose",)
)


@pytest.mark.parametrize("text", NASTY)
def test_markdown_shows_the_text_itself(text):
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    html = page.render(to_markdown([Table("t", ("head",), ((text,),))]))
    cell = re.search(r"<td>(.*?)</td>", html)
    assert cell is not None
    assert not re.search(r"<[a-z]", cell[1])  # no markup came of it
    import html as entities

    assert entities.unescape(cell[1]) == " ".join(text.split())
    assert "\n" not in escape_markdown(text)


def test_latex_escapes_every_special_character():
    assert escape_latex("50 % & a_b #1") == r"50 \% \& a\_b \#1"
    assert escape_latex(r"\input{x}") == r"\textbackslash{}input\{x\}"
    assert escape_latex("é ç") == r"\'{e} \c{c}"
    assert escape_latex("肺") == "U+80BA"
    assert escape_latex("[a]") == "{[}a{]}"  # after a row's end a bracket would be an argument


def test_the_terminal_table_has_title_rows_and_note():
    text = to_text(Table("title", ("a", "b"), (("x", "0.10"),), "note"))
    assert text.splitlines()[0] == "title"
    assert re.search(r"^x\s+0\.10$", text, re.M)  # 0.10 stays 0.10
    assert text.endswith("note")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not on PATH")
@pytest.mark.parametrize("packages", ["booktabs", "booktabs,graphicx"])
def test_nasty_names_compile(tmp_path, packages):
    (tmp_path / "figures").mkdir()
    import matplotlib.image
    import numpy as np

    matplotlib.image.imsave(tmp_path / "figures" / "f.png", np.zeros((4, 4)))
    blocks = [
        Heading(1, "A_b"),
        Paragraph("& so", strong=True),
        Bullets(tuple(NASTY)),
        TABLE,
        Figure("f", "c_aption %"),
    ]
    (tmp_path / "report.tex").write_text(to_latex(blocks))
    main = (
        f"\\documentclass{{article}}\\usepackage{{{packages}}}\\begin{{document}}\\input{{report.tex}}\\end{{document}}"
    )
    (tmp_path / "main.tex").write_text(main)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-1500:]
    assert (tmp_path / "main.pdf").stat().st_size > 1000
