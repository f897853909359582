"""What somebody, or a disk, does to a file: calls that take its path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from datasets.limits import RECORD_BYTES

Damage = Callable[[Path], None]


def put(content: bytes) -> Damage:
    """Write other content over it."""

    def do(path: Path) -> None:
        path.write_bytes(content)

    return do


def cut(path: Path) -> None:
    """Leave its first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder(path: Path) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    """Put a pipe in its place, which nobody writes to."""
    path.unlink()
    os.mkfifo(path)


def zero(path: Path) -> None:
    """Put a link in its place, to a device that can be read without end."""
    path.unlink()
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    """Make it longer than a record may be."""
    with path.open("r+b") as file:
        file.truncate(RECORD_BYTES + 1)
