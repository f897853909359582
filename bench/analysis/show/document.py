"""A document as a list of blocks of plain text, with renderers to Markdown, LaTeX and terminal text.

Renderers escape all text of the blocks, so that a finding named `A_b|c` or `50 % & more` cannot break a document. The
LaTeX requires booktabs; it uses graphicx, if loaded, for figures and wide tables.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from bench.analysis.outputs import MADE_BY
from bench.messages import plain


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table with a note below it. `wide` names the columns of prose, which wrap."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    wide: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A figure with its caption. `name` is the file name under figures/, without its extension."""

    name: str
    caption: str


Block = Heading | Paragraph | Bullets | Table | Figure

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "–": "--",
    "—": "---",
    "→": r"$\rightarrow$",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "µ": r"$\mu$",
    "·": r"$\cdot$",
    "†": r"\dag{}",
    "…": r"\ldots{}",
    "ß": r"\ss{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ł": r"\l{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",  # at the start of a row it would belong to the \tabularnewline before it
    "`": r"\`{}",
}
_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0308": '"',
    "\u030a": "r",
    "\u030c": "v",
}
_ACCENTS["\u0327"] = "c"


def escape_latex(text: str) -> str:
    """Escape text for pdflatex without further packages. Characters that it lacks become their code points."""
    return "".join(_latex_character(character) for character in _line(text))


def _latex_character(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii():
        return character
    base, *marks = list(unicodedata.normalize("NFKD", character))
    if base.isascii() and len(marks) == 1 and marks[0] in _ACCENTS:
        dotless = {"i": r"\i", "j": r"\j"}.get(base, base)
        return f"\\{_ACCENTS[marks[0]]}{{{dotless}}}"
    return f"U+{ord(character):04X}"


def escape_markdown(text: str) -> str:
    """Escape text as one line of Markdown, for a table cell or the inside of a line."""
    safe = _line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", safe)


def _block_markdown(text: str) -> str:
    """Escape text for the beginning of a line, where it could start a list, a rule or an underline."""
    return re.sub(r"^(\d*)([-+=.)])(?=[\s=-]|$)", r"\1\\\2", escape_markdown(text))


def _line(text: str) -> str:
    """Text as one line, with control characters spelled out."""
    return plain(text, most=max(1, len(text) * 10))


def to_markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {escape_markdown(text)}"
        case Paragraph(text, strong):
            return f"**{escape_markdown(text)}**" if strong else _block_markdown(text)
        case Bullets(items):
            return "\n".join(f"- {_block_markdown(item)}" for item in items)
        case Figure(name, caption):
            return f"![{escape_markdown(caption)}](figures/{name}.png)\n\n{_block_markdown(caption)}"
        case Table():
            lines = [f"**{escape_markdown(block.title)}**", ""]
            lines.append("| " + " | ".join(escape_markdown(column) for column in block.columns) + " |")
            lines.append("|" + " --- |" * len(block.columns))
            lines += ["| " + " | ".join(escape_markdown(cell) for cell in row) + " |" for row in block.rows]
            return "\n".join(lines) + (f"\n\n{_block_markdown(block.note)}" if block.note else "")


def to_latex(blocks: Sequence[Block]) -> str:
    head = f"{MADE_BY} Needs \\usepackage{{booktabs}}; with graphicx it also shows figures\n"
    return (
        head
        + "% (paths relative to this file's folder) and shrinks wide tables to the line.\n"
        + "\n\n".join(_latex(block) for block in blocks)
    )


def _latex(block: Block) -> str:
    match block:
        case Heading(level, text):
            command = {1: "section", 2: "subsection", 3: "subsubsection"}.get(level, "paragraph")
            return f"\\{command}*{{{escape_latex(text)}}}"
        case Paragraph(text, strong):
            return f"\\textbf{{{escape_latex(text)}}}" if strong else escape_latex(text)
        case Bullets(items):
            return "\\begin{itemize}\n" + "\n".join(f"\\item {escape_latex(i)}" for i in items) + "\n\\end{itemize}"
        case Figure(name, caption):
            inner = [
                f"\\includegraphics[width=\\linewidth]{{figures/{name}.png}}",
                _caption("figure", caption),
            ]
            return "\n".join([r"\ifdefined\includegraphics", *_fixed(inner), r"\fi"])
        case Table():
            return _latex_table(block)


def _fixed(inner: list[str]) -> list[str]:
    """Wrap lines in a minipage. Floats could move away from the text about them."""
    start = [
        r"\par\medskip\noindent\begin{minipage}{\linewidth}",
        r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
    ]
    return [*start, *inner, r"\end{minipage}\par\medskip"]


def _caption(kind: str, text: str) -> str:
    return f"\\makeatletter\\def\\@captype{{{kind}}}\\makeatother\\caption{{{escape_latex(text)}}}"


def _latex_table(table: Table) -> str:
    width = 0.75 if len(table.columns) == 2 else 0.32
    kinds = "".join(f"p{{{width}\\linewidth}}" if column in table.wide else "l" for column in table.columns)

    def cell(column: str, text: str) -> str:
        return rf"\raggedright {escape_latex(text)}" if column in table.wide else escape_latex(text)

    body = [" & ".join(map(cell, table.columns, row)) + r" \tabularnewline" for row in table.rows]
    head = " & ".join(escape_latex(column) for column in table.columns) + r" \tabularnewline"
    inner = [
        _caption("table", table.title),
        r"\setbox0=\hbox{%",
        f"\\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
    ]
    inner += [head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}}%"]
    shrunk = r"\ifdefined\resizebox\resizebox{\linewidth}{!}{\box0}\else\box0\fi"
    inner.append(rf"\ifdim\wd0>\linewidth{shrunk}\else\box0\fi")
    if table.note:
        inner.append(f"\\par\\smallskip\\parbox{{\\linewidth}}{{\\scriptsize {escape_latex(table.note)}}}")
    return "\n".join(_fixed(inner))


def to_text(table: Table) -> str:
    """Render a table for a terminal."""
    from tabulate import tabulate

    rows = [[_line(cell) for cell in row] for row in table.rows]
    text = tabulate(rows, headers=[*map(_line, table.columns)], tablefmt="simple", disable_numparse=True)
    return f"{_line(table.title)}\n\n{text}" + (f"\n\n{_line(table.note)}" if table.note else "")
