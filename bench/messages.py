"""Messages on a terminal: text from outside is put on one line, without control characters, and not too long; mistakes
end a command with one line and an exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

LONGEST = 1500  # characters of a message
FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of a full disk


def plain(text: str, most: int = LONGEST) -> str:
    """The text on one line: white space becomes single spaces, control characters are escaped, and the middle is left
    out of a text longer than `most` characters."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def plain_lines(text: str) -> str:
    """The text with each of its lines made `plain`."""
    return "\n".join(plain(line) for line in text.splitlines())


def disk_full(error: object) -> str:
    """What to do about a full disk, with the system's words for it."""
    return f"the disk is full: {error}; make room, then give the command again"


def error_line(mistake: Exception, where: str = "the paths that were given") -> str:
    """A mistake as one line; for an error of the operating system, the file and the reason."""
    if isinstance(mistake, OSError) and mistake.errno in FULL:
        return plain(f"{disk_full(mistake)}.")
    if isinstance(mistake, OSError) and mistake.errno is not None:
        return plain(f"{mistake.filename} can't be used ({mistake.strerror}): check {where}.")
    return plain(str(mistake))


@contextmanager
def exit_on(
    *mistakes: type[Exception], code: int, label: str = "Error:", where: str = "the paths that were given"
) -> Iterator[None]:
    """End the command with this exit code if one of these `mistakes` is raised; it is printed on a line."""
    try:
        yield
    except mistakes as mistake:
        typer.echo(f"{label} {error_line(mistake, where)}", err=True)
        raise typer.Exit(code) from None


def console_of() -> Console:
    """The terminal; where the output is not one, 160 columns, so that tables do not fold."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(width=160)
