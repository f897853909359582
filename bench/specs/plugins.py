"""Load the plug-ins that a command or a job was given, each within the limit on its size."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from datasets.limits import PLUGIN_BYTES, read_within
from methods.plugins import load_plugin


def load_plugins(files: Iterable[Path]) -> None:
    """Register what each file defines. Raises what `load_plugin` raises, and ValueError for a file that is too
    large."""
    for file in files:
        load_plugin(file, lambda path: read_within(path, PLUGIN_BYTES))
