"""Size limits for everything that is read from disk. Larger input is a mistake or an attack.

Sizes are checked before contents are read: that of a file in the file system, that of an image in its header, and that
of an archive in its directory and in the headers of its arrays.
"""

from __future__ import annotations

import os
from pathlib import Path

SPEC_BYTES = 2**20  # a TOML file
TABLE_BYTES = 2**29  # manifest.csv, masks.csv: a few million rows
TABLE_COLUMNS = 1_000
FIELD_CHARACTERS = 100_000  # a cell of a table
NAME_CHARACTERS = 200  # the name of a column, a patient id, a split, a view, a finding
IMAGE_BYTES = 2**28  # an image file
IMAGE_PIXELS = 64_000_000  # three times the largest detectors
ARCHIVE_BYTES = 2**32  # all arrays of an .npz archive, unpacked
ARCHIVE_IMAGES = 200_000  # images of a MedMNIST archive, from which its limit in bytes follows
RECORD_BYTES = 2**26  # a record, an evaluation, a history
PLUGIN_BYTES = 2**20  # a plug-in file
THREADS = 1024  # threads of a record that is run again
PATIENTS = 1_000_000  # patients of the phantom


def read_within(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises FileNotFoundError if the file is missing or is a folder, a device or a pipe, ValueError if it is too large.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The file {path} does not exist or is not a regular file.")
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(limit + 1) if size <= limit else b""
    if max(size, len(content)) > limit:
        raise ValueError(
            f"The file {path} has {size:,} bytes, but the limit is {limit:,}; check that it is the right file."
        )
    return content
