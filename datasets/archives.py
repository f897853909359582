"""Safe reading of arrays from untrusted .npz archives: no pickles, and limits on the unpacked size.

The size of an array is given both in the directory of the zip file and in the header of the array. The two must agree
before anything is unpacked.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.dataset import Array
from datasets.limits import ARCHIVE_BYTES

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class _Refused(ValueError):
    """Reason why an archive is refused, as the end of a sentence about the file."""


def read_npz(
    path: Path, names: Sequence[str], optional: Sequence[str] = (), limit: int = ARCHIVE_BYTES
) -> dict[str, Array]:
    """Read the arrays `names`, and those of `optional` that exist, with at most `limit` bytes together.

    Raises FileNotFoundError for a missing file, ValueError for an archive that is damaged, lacks an array, holds Python
    objects or exceeds the limit when unpacked.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The file {path} does not exist or is not a regular file.")
    try:
        with zipfile.ZipFile(path) as archive:
            present = {info.filename: info for info in archive.infolist()}
            missing = [name for name in names if f"{name}.npy" not in present]
            if missing:
                raise _Refused(f"has no array '{missing[0]}'")
            wanted = [*names, *(name for name in optional if f"{name}.npy" in present)]
            members = {name: present[f"{name}.npy"] for name in wanted}
            size = sum(info.file_size for info in members.values())
            if size > limit:
                raise _Refused(f"would take {size:,} bytes when unpacked, but the limit is {limit:,}")
            return {name: _read(archive, info, name) for name, info in members.items()}
    except _Refused as refused:
        raise ValueError(f"The file {path} {refused}; download or create it again.") from None
    except Exception as error:  # hostile bytes make zipfile, zlib and numpy raise nearly anything
        raise ValueError(f"The file {path} is damaged or not an .npz archive; download or create it again.") from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Array:
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise _Refused(f"holds '{name}' in an unknown version of the .npy format")
        shape, _, dtype = _HEADERS[version](stream)
        if dtype.hasobject:
            raise _Refused(f"holds pickled Python objects in '{name}', which are never loaded")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != info.file_size - stream.tell():
            raise _Refused(f"holds another number of bytes of '{name}' than its header declares")
    with archive.open(info) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
