"""The limits on what is read from disk, in one place: what lies beyond them is a mistake or a bomb.

Sizes are looked at before contents: a file's before it is read, an image's in its header, an archive's in its
directory and in the headers of its arrays.
"""

from __future__ import annotations

import os
from pathlib import Path

SPEC_BYTES = 2**20  # a TOML file
TABLE_BYTES = 2**29  # manifest.csv, masks.csv: some millions of rows
TABLE_COLUMNS = 1_000
FIELD_CHARACTERS = 100_000  # a cell of a table
NAME_CHARACTERS = 200  # a column's name, a patient's id, a split, a view, a finding
IMAGE_BYTES = 2**28  # a file
IMAGE_PIXELS = 64_000_000  # three times the largest detectors
ARCHIVE_BYTES = 2**32  # arrays of an .npz together, unpacked
ARCHIVE_IMAGES = 200_000  # of MedMNIST's format, whose size says what one takes
RECORD_BYTES = 2**26  # a record, an evaluation, a history
PLUGIN_BYTES = 2**20
THREADS = 1024  # of a record that is run again
PATIENTS = 1_000_000  # of the phantom


def read_within(path: Path, most: int) -> bytes:
    """The bytes of a regular file (no device, no pipe). Raises FileNotFoundError where there is none, and ValueError
    for more than `most` bytes; both name the file."""
    if not path.is_file():
        raise FileNotFoundError(f"The file {path} was looked for and is not there, or is no file.")
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(most + 1) if size <= most else b""
    if max(size, len(content)) > most:
        raise ValueError(f"The file {path} has {size:,} bytes, and at most {most:,} are read; is it the right one?")
    return content
