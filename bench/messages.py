"""Text that came from outside, for a terminal: one line, nothing in it that a terminal obeys, and not too long."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

LONGEST = 1500  # characters of a message
FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk that takes no more


def plain(text: str, most: int = LONGEST) -> str:
    """`text` on one line: white space runs become one space, control characters are spelt out, the middle of a text
    longer than `most` is left out."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def account(text: str) -> str:
    """A text of several lines, each of them plain."""
    return "\n".join(plain(line) for line in text.splitlines())


def disk_full(said: object) -> str:
    """What to do about a disk of which the system said so."""
    return f"the disk is full: {said}; make room, then give the command again"


def error_line(mistake: Exception, where: str = "the paths that were given") -> str:
    """A mistake as one line; of the system's own errors the file and the reason."""
    if isinstance(mistake, OSError) and mistake.errno in FULL:
        return plain(f"{disk_full(mistake)}.")
    if isinstance(mistake, OSError) and mistake.errno is not None:
        return plain(f"{mistake.filename} can't be used ({mistake.strerror}): look at {where}.")
    return plain(str(mistake))


@contextmanager
def exit_on(
    *mistakes: type[Exception], code: int, label: str = "Error:", where: str = "the paths that were given"
) -> Iterator[None]:
    """End the command with this exit code at one of these `mistakes`, which is printed as a line after the `label`."""
    try:
        yield
    except mistakes as mistake:
        typer.echo(f"{label} {error_line(mistake, where)}", err=True)
        raise typer.Exit(code) from None


def console_of() -> Console:
    """The terminal; where there is none to fit, 160 columns, so that tables do not fold."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(width=160)
